"""The mixers: against the equations, against their own systems, and at the edges."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention import ATTENTION
from heterodox.sequence.dynamical_system import QLSTM, LinearAttention, NormalizedAttention
from heterodox.training.seeding import seeded

MIXERS = {
    "linear": lambda: LinearAttention(6, 4, num_heads=2),
    "linear, no bias": lambda: LinearAttention(6, bias=False),
    "normalised": lambda: NormalizedAttention(6, 4, num_heads=2),
    "normalised, no bias": lambda: NormalizedAttention(6, 3, num_heads=3, bias=False),
    "softplus": lambda: NormalizedAttention(6, normalizer="softplus"),
    "sigmoid": lambda: NormalizedAttention(6, normalizer="sigmoid"),
    "qLSTM": lambda: QLSTM(6),
    "qLSTM, reversed": lambda: QLSTM(6, reversed_sigmoid=True),
    "qLSTM, no convolution": lambda: QLSTM(6, expansion=1, kernel_size=1),
    "qLSTM, two taps": lambda: QLSTM(6, kernel_size=2, reversed_sigmoid=True),
}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def build(name, seed=0):
    """With biases and α away from where they start."""
    with seeded(seed):
        layer = MIXERS[name]().double()
        for parameter in layer.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return layer


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@every_mixer
@pytest.mark.parametrize("length", [1, 2, 3, 11])
def test_a_mixer_is_the_system_that_it_gives(name, length):
    layer, x = build(name), draw(2, length, 6)
    system = layer.dynamical_system(x)
    torch.testing.assert_close(system.run(x), layer(x), rtol=0, atol=1e-11)


@every_mixer
def test_later_inputs_do_not_matter(name):
    layer, x = build(name), draw(2, 9, 6)
    changed = x.clone()
    changed[:, 5:] = draw(2, 4, 6, seed=1)
    before, after = layer(x), layer(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).all()


@every_mixer
def test_gradients_match_finite_differences(name):
    layer = build(name)
    assert torch.autograd.gradcheck(layer, draw(1, 5, 6).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_linear_attention_is_the_authors_masked_product(num_heads):
    layer, x = build("linear" if num_heads == 2 else "linear, no bias"), draw(2, 70, 6)
    query, key = layer.query_key(x).unflatten(-1, (2, num_heads, -1)).unbind(2)
    value = layer.value(x).unflatten(-1, (num_heads, -1))
    scores = torch.einsum("bthd,bshd->bhts", F.elu(query) + 1, F.elu(key) + 1).tril()
    weights = scores / scores.sum(-1, keepdim=True)
    expected = layer.proj(torch.einsum("bhts,bshd->bthd", weights, value).flatten(2))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("name", "positive"),
    [("normalised", torch.exp), ("softplus", F.softplus), ("sigmoid", torch.sigmoid)],
)
def test_normalised_attention_is_the_authors_masked_product(name, positive):
    layer, x = build(name), draw(2, 70, 6)
    query, key = layer.query_key(x).unflatten(-1, (2, layer.num_heads, -1)).unbind(2)
    value = layer.value(x).unflatten(-1, (layer.num_heads, -1))
    scores = torch.einsum("bthd,bshd->bhts", query, key).tril()
    weights = scores / positive(layer.norm(x)).mT[..., None]
    expected = layer.proj(torch.einsum("bhts,bshd->bthd", weights, value).flatten(2))
    torch.testing.assert_close(layer(x), expected)


def test_a_normaliser_of_any_size_is_divided_in_log_space():
    layer = NormalizedAttention(4, bias=False)
    with torch.no_grad():
        layer.norm.weight.fill_(20.0)
        layer.query_key.weight[4:].mul_(1e-3)
    x = draw(1, 12, 4, dtype=torch.float32) * 1.5
    assert layer.log_normalizer(x).abs().max() > 88  # exp of it is not a float32
    exact = layer.double()
    system = exact.dynamical_system(x.double())
    torch.testing.assert_close(system.run(x.double()), exact(x.double()), rtol=1e-8, atol=1e-8)
    far = (torch.arange(12) % 2 * 200.0)[None, None]
    layer.float()
    with torch.no_grad():
        layer.log_normalizer = lambda x: far
        outputs, system = layer(x), layer.dynamical_system(x)
    assert outputs.isfinite().all()
    assert system.transition.isinf().any()  # e^200, which no finite number of float32 is
    assert not system.transition.isnan().any()


@pytest.mark.parametrize("value", [-1e4, -200.0, -40.0, -39.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize("normalizer", ["exp", "softplus", "sigmoid"])
def test_the_logarithm_of_the_normaliser_is_finite_everywhere(value, normalizer):
    layer = NormalizedAttention(1, normalizer=normalizer)
    with torch.no_grad():
        layer.norm.weight.fill_(value)
        layer.norm.bias.zero_()
    x = torch.ones(1, 1, 1, requires_grad=True)
    log = layer.log_normalizer(x)
    expected = {
        "exp": value,
        "softplus": value if value < -30 else math.log(math.log1p(math.exp(min(value, 700)))),
        "sigmoid": value if value < 0 else -math.log1p(math.exp(-value)),
    }[normalizer]
    if normalizer == "softplus" and value == 1e4:
        expected = math.log(1e4)
    assert log.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    log.sum().backward()
    assert x.grad.isfinite().all()


def test_the_qlstm_is_the_authors_layer():
    for name in ("qLSTM", "qLSTM, reversed"):
        layer, x = build(name), draw(2, 8, 6)
        z, inner = layer.input(x).chunk(2, dim=-1)
        padded = torch.cat((torch.zeros(2, 3, 12, dtype=torch.float64), inner), dim=1)
        taps = layer.conv.weight[:, 0]
        inner = torch.stack(
            [(padded[:, t : t + 4] * taps.T).sum(1) + layer.conv.bias for t in range(8)], dim=1
        )
        forget, enter, leave = layer.gates(inner).chunk(3, dim=-1)
        decay = forget.sigmoid()
        if layer.reversed_sigmoid:
            decay = (-forget).sigmoid() ** layer.alpha.relu()
        state, states = torch.zeros(2, 12, dtype=torch.float64), []
        for t in range(8):
            state = decay[:, t] * state + enter.sigmoid()[:, t] * inner[:, t]
            states.append(state)
        expected = layer.output(F.gelu(z) * leave.sigmoid() * torch.stack(states, 1))
        torch.testing.assert_close(layer(x), expected)


def test_the_variants_start_from_the_same_weights_and_differ_in_the_transition():
    with seeded(0):
        plain = QLSTM(6)
    with seeded(0):
        other = QLSTM(6, reversed_sigmoid=True)
    assert other.alpha.item() == 1
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in plain.state_dict().items())
    x = draw(1, 5, 6, dtype=torch.float32)
    torch.testing.assert_close(other.recurrence(x).transition, 1 - plain.recurrence(x).transition)


def test_the_recurrence_inside_reads_the_convolved_channels():
    layer, x = build("qLSTM, reversed"), draw(2, 7, 6)
    inside = layer.recurrence(x)
    assert inside.state_size == 12 and not inside.is_dense
    z, convolved = layer._projected(x)
    torch.testing.assert_close(layer.output(F.gelu(z) * inside.run(convolved)), layer(x))
    whole = torch.linalg.eigvals(layer.dynamical_system(x).transition).abs()
    largest = inside.transition.amax(-1)
    torch.testing.assert_close(whole.amax(-1), largest)


def test_initial_weights_have_the_authors_deviations():
    with seeded(0):
        layer = QLSTM(64)
    for linear in (layer.input, layer.gates, layer.output):
        assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.05)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_close_and_keeps_its_dtype(name, dtype):
    exact, x = build(name), draw(2, 80, 6) * 0.5
    expected = exact(x)
    output = build(name).to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    error = (output.double() - expected).abs().max() / expected.abs().max()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]


@every_mixer
@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6)])
def test_nothing_gives_nothing(name, shape):
    layer = build(name)
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    output = layer(x)
    assert output.shape == shape
    output.sum().backward()
    assert layer.dynamical_system(x).run(x).shape == shape


@pytest.mark.parametrize("name", ["normalized", "qlstm", "qlstm-reversed"])
def test_the_slot_builds_causal_layers(name):
    layer = ATTENTION[name](8, 2, sequence_length=5, position="rotary")
    x = draw(2, 5, 8, dtype=torch.float32)
    assert layer(x, is_causal=True).shape == x.shape


@pytest.mark.parametrize("name", ["normalized", "qlstm", "qlstm-reversed"])
def test_the_slot_refuses_what_a_mixer_cannot_do(name):
    with pytest.raises(ValueError, match=r"^position: 'alibi'"):
        ATTENTION[name](8, 2, sequence_length=5, position="alibi")
    layer = ATTENTION[name](8, 2, sequence_length=5, position=None)
    x = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match=r"^is_causal: "):
        layer(x)
    with pytest.raises(ValueError, match=r"^attn_mask: "):
        layer(x, attn_mask=torch.ones(5, 5, dtype=torch.bool), is_causal=True)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dim", lambda: LinearAttention(6, 4, num_heads=4)),
        ("dim", lambda: LinearAttention(0)),
        ("state_dim", lambda: NormalizedAttention(6, 4, num_heads=3)),
        ("state_dim", lambda: NormalizedAttention(6, 0)),
        ("num_heads", lambda: NormalizedAttention(6, num_heads=0)),
        ("normalizer", lambda: NormalizedAttention(6, normalizer="relu")),
        ("dim", lambda: QLSTM(0)),
        ("expansion", lambda: QLSTM(4, expansion=0)),
        ("kernel_size", lambda: QLSTM(4, kernel_size=0)),
        ("x", lambda: LinearAttention(6)(torch.zeros(2, 5, 4))),
        ("x", lambda: NormalizedAttention(6)(torch.zeros(5, 6))),
        ("x", lambda: QLSTM(6)(torch.zeros(2, 5, 4))),
        ("x", lambda: QLSTM(6).dynamical_system(torch.zeros(5, 6))),
    ],
)
def test_bad_input_is_named(name, make):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        make()
