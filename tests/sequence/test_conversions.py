"""Every conversion against the mixer as its own paper writes it."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention.delta import delta_rule_recurrent
from heterodox.attention.linear import linear_attention
from heterodox.sequence.dynamical_system import (
    DynamicalSystem,
    from_delta_rule,
    from_gated_rnn,
    from_linear_attention,
    from_normalized_attention,
    from_s6,
    from_softmax_attention,
    from_ssd,
    qlstm_transition,
    rg_lru_transition,
)

LENGTH, HEAD_DIM, CHANNELS, OUTPUTS = 9, 3, 4, 5


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def draw_heads(*batch):
    """Query, key, value matrix and inputs."""
    return (
        draw(*batch, LENGTH, HEAD_DIM, seed=1),
        draw(*batch, LENGTH, HEAD_DIM, seed=2),
        draw(OUTPUTS, CHANNELS, seed=3),
        draw(*batch, LENGTH, CHANNELS, seed=4),
    )


def elu(x):
    return F.elu(x) + 1


def attend(weights, value_weight, inputs):
    return weights @ (inputs @ value_weight.T)


def normalised(weights):
    weights = weights.tril()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_linear_attention_is_its_weighted_mean(batch):
    query, key, weight, inputs = draw_heads(*batch)
    system = from_linear_attention(query, key, weight)
    assert system.state_size == OUTPUTS * HEAD_DIM
    expected = attend(normalised(elu(query) @ elu(key).mT), weight, inputs)
    torch.testing.assert_close(system.run(inputs), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_attention_is_the_attention_function(normalize):
    query, key, weight, inputs = draw_heads(2, 3)
    system = from_linear_attention(query, key, weight, normalize=normalize)
    expected = linear_attention(query, key, inputs @ weight.T, is_causal=True, normalize=normalize)
    torch.testing.assert_close(system.run(inputs), expected)


def test_linear_attention_takes_any_feature_map():
    query, key, weight, inputs = draw_heads()
    system = from_linear_attention(query, key, weight, feature_map=torch.exp)
    expected = attend(normalised(query.exp() @ key.exp().T), weight, inputs)
    torch.testing.assert_close(system.run(inputs), expected)


def test_linear_attention_has_weights_that_sum_to_one():
    query, key, _, _ = draw_heads()
    system = from_linear_attention(query, key, torch.eye(CHANNELS).double())
    torch.testing.assert_close(
        system.kernel().sum(1), torch.eye(CHANNELS).double().expand(LENGTH, -1, -1)
    )


@pytest.mark.parametrize("batch", [(), (2,)])
def test_normalised_attention_divides_each_row_by_its_number(batch):
    query, key, weight, inputs = draw_heads(*batch)
    normalizer = draw(*batch, LENGTH, seed=5).exp()
    system = from_normalized_attention(query, key, weight, normalizer)
    expected = attend((query @ key.mT).tril() / normalizer[..., None], weight, inputs)
    torch.testing.assert_close(system.run(inputs), expected)


def test_the_transition_of_normalised_attention_may_exceed_one():
    query, key, weight, _ = draw_heads()
    normalizer = torch.tensor([8.0, 4, 2, 1, 1, 2, 4, 8, 16], dtype=torch.float64)
    system = from_normalized_attention(query, key, weight, normalizer)
    expected = torch.tensor([1, 2, 2, 2, 1, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(system.transition, expected[:, None].expand(-1, 15))


def softmax_attention(query, key, weight, inputs):
    return F.scaled_dot_product_attention(
        query[None], key[None], (inputs @ weight.T)[None], is_causal=True
    )[0]


def test_cut_softmax_is_attention_with_the_cut_series():
    query, key, weight, inputs = draw_heads()
    for degree in range(4):
        system = from_softmax_attention(query, key, weight, degree, scale=0.2)
        logits = 0.2 * query @ key.T
        series = sum(logits**t / math.factorial(t) for t in range(degree + 1))
        torch.testing.assert_close(system.run(inputs), attend(normalised(series), weight, inputs))
        assert system.state_size == OUTPUTS * math.comb(HEAD_DIM + degree, degree)


def test_cut_softmax_comes_to_softmax_at_least_geometrically():
    query, key, weight, inputs = draw_heads()
    query, key = (x / x.norm(dim=-1, keepdim=True) * 3**0.25 for x in (query, key))
    assert (query @ key.T / 3**0.5).abs().max() <= 1
    exact = softmax_attention(query, key, weight, inputs)
    errors = [
        (from_softmax_attention(query, key, weight, degree).run(inputs) - exact).abs().max().item()
        for degree in range(13)
    ]
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors[1:]))
    assert errors[12] < 1e-8


def scan(delta, a, b, c, d, inputs):
    """The selective scan of one sequence, channel by channel, as Mamba's reference has it."""
    outputs = torch.zeros_like(inputs)
    for channel in range(inputs.shape[1]):
        state = torch.zeros(a.shape[1], dtype=torch.float64)
        for t in range(len(inputs)):
            step = delta[t, channel]
            state = torch.exp(step * a[channel]) * state + step * b[t] * inputs[t, channel]
            outputs[t, channel] = c[t] @ state + d[channel] * inputs[t, channel]
    return outputs


def draw_s6(states=3):
    return (
        F.softplus(draw(LENGTH, CHANNELS, seed=1)),
        -draw(CHANNELS, states, seed=2).exp(),
        draw(LENGTH, states, seed=3),
        draw(LENGTH, states, seed=4),
        draw(CHANNELS, seed=5),
    )


def test_s6_is_the_selective_scan():
    given, inputs = draw_s6(), draw(LENGTH, CHANNELS)
    system = from_s6(*given)
    assert system.state_size == CHANNELS * 3
    torch.testing.assert_close(system.run(inputs), scan(*given, inputs))


def test_the_state_of_s6_is_ordered_by_channel_first():
    delta, a, b, c, _ = draw_s6()
    system = from_s6(delta, a, b, c)
    inputs = torch.zeros(LENGTH, CHANNELS, dtype=torch.float64)
    inputs[:, 1] = 1
    states = system.states(inputs)
    assert states[:, 3:6].all()
    assert not states[:, :3].any() and not states[:, 6:].any()


def test_ssd_is_s6_with_one_number_a_head():
    delta, _, b, c, d = draw_s6()
    a = -draw(2, seed=6).exp()
    system = from_ssd(delta[:, :2], a, b, c, d, head_dim=2)
    tied = from_s6(delta[:, [0, 0, 1, 1]], a[[0, 0, 1, 1], None].expand(CHANNELS, 3), b, c, d)
    inputs = draw(LENGTH, CHANNELS)
    torch.testing.assert_close(system.run(inputs), tied.run(inputs))
    assert torch.equal(system.transition, tied.transition)


def test_a_batch_of_s6_is_its_rows():
    delta, a, b, c, d = draw_s6()
    many = from_s6(torch.stack((delta, 2 * delta)), a, b.expand(2, -1, -1), c.expand(2, -1, -1), d)
    inputs = draw(LENGTH, CHANNELS)
    torch.testing.assert_close(
        many.run(inputs.expand(2, -1, -1))[1], scan(2 * delta, a, b, c, d, inputs)
    )


def test_attention_with_a_normaliser_that_grows_steadily_is_s6():
    # With η_{i−1}/η_i = exp(Δ a) at every step, φ(q) = c and ψ(k) = b, both fade alike; then B is
    # that of S6 up to 1/η against Δ.
    query, key, _, inputs = draw_heads()
    normalizer = 1.25 ** torch.arange(LENGTH, dtype=torch.float64)
    attention = from_normalized_attention(query, key, torch.eye(CHANNELS).double(), normalizer)
    step = torch.ones(LENGTH, CHANNELS, dtype=torch.float64)
    a = torch.full((CHANNELS, HEAD_DIM), -math.log(1.25), dtype=torch.float64)
    s6 = from_s6(step, a, key / normalizer[:, None], query)
    torch.testing.assert_close(attention.transition[1:], s6.transition[1:])
    torch.testing.assert_close(attention.input_matrix, s6.input_matrix)
    torch.testing.assert_close(attention.output_matrix, s6.output_matrix)
    torch.testing.assert_close(attention.run(inputs), s6.run(inputs))


def test_a_gated_rnn_is_its_loop():
    forget, enter, leave = (torch.sigmoid(draw(2, LENGTH, CHANNELS, seed=s)) for s in (1, 2, 3))
    inputs = draw(2, LENGTH, CHANNELS)
    state, outputs = torch.zeros(2, CHANNELS, dtype=torch.float64), []
    for t in range(LENGTH):
        state = forget[:, t] * state + enter[:, t] * inputs[:, t]
        outputs.append(leave[:, t] * state)
    system = from_gated_rnn(forget, enter, leave)
    torch.testing.assert_close(system.run(inputs), torch.stack(outputs, 1))
    assert system.state_size == CHANNELS


def test_griffins_recurrence_is_a_gated_rnn():
    gate, decay = draw(LENGTH, CHANNELS, seed=1), draw(CHANNELS, seed=2)
    a = torch.sigmoid(-decay) ** (8 * torch.sigmoid(gate))  # Griffin's own form
    torch.testing.assert_close(rg_lru_transition(gate, decay), a)
    enter = torch.sigmoid(draw(LENGTH, CHANNELS, seed=3)) * (1 - a**2).sqrt()
    inputs, state = draw(LENGTH, CHANNELS), torch.zeros(CHANNELS, dtype=torch.float64)
    outputs = []
    for t in range(LENGTH):
        state = a[t] * state + enter[t] * inputs[t]
        outputs.append(state)
    system = from_gated_rnn(rg_lru_transition(gate, decay), enter, torch.ones_like(a))
    torch.testing.assert_close(system.run(inputs), torch.stack(outputs))


def test_the_reversed_sigmoid_is_one_minus_the_sigmoid_to_a_power():
    x = draw(50) * 5
    torch.testing.assert_close(qlstm_transition(x), x.sigmoid())
    torch.testing.assert_close(qlstm_transition(x, reversed_sigmoid=True), 1 - x.sigmoid())
    torch.testing.assert_close(
        qlstm_transition(x, reversed_sigmoid=True, exponent=2.5), (1 - x.sigmoid()) ** 2.5
    )
    # The identity that leads from S6 to it.
    torch.testing.assert_close(
        qlstm_transition(x, reversed_sigmoid=True, exponent=0.3), (-0.3 * F.softplus(x)).exp()
    )


def test_a_negative_exponent_is_none():
    x = draw(5)
    assert torch.equal(
        qlstm_transition(x, reversed_sigmoid=True, exponent=-1.0), torch.ones_like(x)
    )


def delta_rule(query, key, beta, value, scale):
    state, outputs = torch.zeros(HEAD_DIM, value.shape[1], dtype=torch.float64), []
    for q, k, b, v in zip(query, key, beta, value, strict=True):
        state = state + torch.outer(k, b * (v - state.T @ k))
        outputs.append(scale * state.T @ q)
    return torch.stack(outputs)


def test_the_delta_rule_is_its_loop_with_a_full_transition():
    query, key, weight, inputs = draw_heads()
    beta = draw(LENGTH, seed=6).sigmoid()
    system = from_delta_rule(query, key, beta, weight)
    assert system.transition.shape == (LENGTH, 15, 15)
    expected = delta_rule(query, key, beta, inputs @ weight.T, HEAD_DIM**-0.5)
    torch.testing.assert_close(system.run(inputs), expected)
    doubled = from_delta_rule(query, key, beta, weight, scale=2 * HEAD_DIM**-0.5)
    torch.testing.assert_close(doubled.run(inputs), 2 * expected)


def test_the_delta_rule_is_that_of_deltanet():
    query, key, weight, inputs = draw_heads(2, 3)
    beta = draw(2, 3, LENGTH, seed=6).sigmoid()
    system = from_delta_rule(query, key, beta, weight)
    expected = delta_rule_recurrent(query, key, inputs @ weight.T, beta)
    torch.testing.assert_close(system.run(inputs), expected)


def conversions():
    query, key, weight, inputs = draw_heads()
    gate = draw(LENGTH, CHANNELS, seed=7).sigmoid()
    return {
        "linear": (from_linear_attention(query, key, weight), inputs),
        "normalised": (
            from_normalized_attention(query, key, weight, query[:, 0].exp()),
            inputs,
        ),
        "softmax": (from_softmax_attention(query, key, weight, 2), inputs),
        "s6": (from_s6(*draw_s6()), inputs),
        "gated rnn": (from_gated_rnn(gate, 1 - gate, gate), inputs),
        "delta rule": (from_delta_rule(query, key, gate[:, 0], weight), inputs),
    }


@pytest.mark.parametrize("name", conversions())
def test_the_kernel_of_every_mixer_makes_its_outputs(name):
    system, inputs = conversions()[name]
    outputs = torch.einsum("ijoc,jc->io", system.kernel(), inputs)
    torch.testing.assert_close(outputs, system.run(inputs))


@pytest.mark.parametrize("name", conversions())
def test_every_mixer_runs_in_two_pieces(name):
    system, inputs = conversions()[name]
    tensors = [system.transition, system.input_matrix, system.output_matrix]
    through = system.feedthrough
    first = DynamicalSystem(*(x[:4] for x in tensors), None if through is None else through[:4])
    second = DynamicalSystem(*(x[4:] for x in tensors), None if through is None else through[4:])
    begun, state = first.run(inputs[:4], return_state=True)
    torch.testing.assert_close(
        torch.cat((begun, second.run(inputs[4:], state))), system.run(inputs)
    )


def bad():
    query, key, weight, _ = draw_heads()
    delta, a, b, c, d = draw_s6()
    gate = torch.rand(LENGTH, CHANNELS)
    normalizer = torch.ones(LENGTH)
    with_zero = normalizer.clone()
    with_zero[3] = 0
    return [
        ("query", from_linear_attention, (query[0], key[0], weight)),
        ("key", from_linear_attention, (query, key[:-1], weight)),
        ("value_weight", from_linear_attention, (query, key, weight[0])),
        ("normalizer", from_normalized_attention, (query, key, weight, normalizer[:-1])),
        ("normalizer", from_normalized_attention, (query, key, weight, with_zero)),
        ("degree", from_softmax_attention, (query, key, weight, -1)),
        ("degree", from_softmax_attention, (query, key, weight, 1.5)),
        ("scale", from_softmax_attention, (query, key, weight, 2, -1.0)),
        ("delta", from_s6, (delta[0, 0], a, b, c)),
        ("a", from_s6, (delta, a[:-1], b, c)),
        ("b", from_s6, (delta, a, b[:, :-1], c)),
        ("c", from_s6, (delta, a, b, c[:-1])),
        ("d", from_s6, (delta, a, b, c, d[:-1])),
        ("a", from_ssd, (delta, a, b, c)),
        ("delta", from_ssd, (delta[0, 0], a, b, c)),
        ("transition", from_gated_rnn, (gate[0], gate[0], gate[0])),
        ("input_gate", from_gated_rnn, (gate, gate[:-1], gate)),
        ("output_gate", from_gated_rnn, (gate, gate, gate[:, :-1])),
        ("beta", from_delta_rule, (query, key, gate, weight)),
    ]


@pytest.mark.parametrize(("name", "convert", "given"), bad())
def test_bad_input_is_named(name, convert, given):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        convert(*given)


def test_a_head_without_channels_is_refused():
    delta, _, b, c, _ = draw_s6()
    with pytest.raises(ValueError, match=r"^head_dim: 0 given"):
        from_ssd(delta, -torch.ones(CHANNELS), b, c, head_dim=0)
