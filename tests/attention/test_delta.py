"""The delta rule against its equations as a loop, and what follows from them."""

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention import delta_chunks
from heterodox.attention.delta import (
    delta_rule,
    delta_rule_attention_map,
    delta_rule_recurrent,
    delta_rule_step,
    wy_representation,
)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Segments of few chunks, so that short sequences have several."""
    monkeypatch.setattr(delta_chunks, "CPU_ROWS", 90)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def draw_inputs(batch=2, heads=3, length=37, key_dim=6, value_dim=5, dtype=torch.float64):
    """Query, key (of length 1), value, beta in (0, 1) and a state."""
    return (
        draw(batch, heads, length, key_dim, dtype=dtype, seed=1),
        F.normalize(draw(batch, heads, length, key_dim, seed=2), dim=-1).to(dtype),
        draw(batch, heads, length, value_dim, dtype=dtype, seed=3),
        draw(batch, heads, length, seed=4).sigmoid().to(dtype),
        draw(batch, heads, key_dim, value_dim, dtype=dtype, seed=5),
    )


def by_hand(query, key, value, beta, state, scale):
    """One head in Python's own numbers, from the equations as the paper writes them."""
    outputs = []
    for q, k, v, b in zip(query, key, value, beta, strict=True):
        held = [sum(k[i] * state[i][j] for i in range(len(k))) for j in range(len(v))]
        state = [
            [state[i][j] + b * k[i] * (v[j] - held[j]) for j in range(len(v))]
            for i in range(len(k))
        ]
        read = [sum(q[i] * state[i][j] for i in range(len(q))) for j in range(len(v))]
        outputs.append([scale * x for x in read])
    return outputs, state


def outputs_and_gradients(function, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output, state = function(*inputs)
    total = (output * draw(*output.shape, dtype=output.dtype, seed=8)).sum()
    total = total + (state * draw(*state.shape, dtype=state.dtype, seed=9)).sum()
    return output.detach(), state.detach(), *torch.autograd.grad(total, inputs)


def chunked(*inputs, **options):
    return delta_rule(*inputs, return_state=True, **options)


def recurrent(*inputs, **options):
    return delta_rule_recurrent(*inputs, return_state=True, **options)


def test_the_recurrence_is_that_of_the_paper_s_equations():
    inputs = draw_inputs(batch=1, heads=2, length=9)
    output, state = recurrent(*inputs)
    for head in range(2):
        numbers = [x[0, head].tolist() for x in inputs]
        expected_output, expected_state = by_hand(*numbers, 6**-0.5)
        for row, expected in zip(output[0, head], expected_output, strict=True):
            assert row.tolist() == pytest.approx(expected, abs=1e-12)
        for row, expected in zip(state[0, head], expected_state, strict=True):
            assert row.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, None])
@pytest.mark.parametrize("length", [1, 32, 37])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_chunks_equal_the_recurrence_with_all_gradients(chunk_size, length, dtype, tolerance):
    inputs = draw_inputs(length=length, dtype=dtype)
    fast = outputs_and_gradients(lambda *x: chunked(*x, chunk_size=chunk_size), inputs)
    slow = outputs_and_gradients(recurrent, inputs)
    for result, expected in zip(fast, slow, strict=True):
        assert result.dtype == dtype
        assert (result - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def test_a_state_of_zeros_is_the_default():
    *sequences, state = draw_inputs()
    torch.testing.assert_close(
        delta_rule(*sequences), delta_rule(*sequences, torch.zeros_like(state))
    )
    torch.testing.assert_close(
        delta_rule_recurrent(*sequences), delta_rule_recurrent(*sequences, torch.zeros_like(state))
    )


@pytest.mark.parametrize("function", [delta_rule, delta_rule_recurrent])
def test_the_scale_multiplies_the_output_and_replaces_the_root_of_the_key_dim(function):
    inputs = draw_inputs()
    torch.testing.assert_close(function(*inputs, scale=3.0), 3.0 * 6**0.5 * function(*inputs))


def test_gradients_match_finite_differences():
    inputs = [x.requires_grad_() for x in draw_inputs(1, 2, length=7, key_dim=3, value_dim=2)]
    assert torch.autograd.gradcheck(lambda *x: chunked(*x, chunk_size=3), inputs)


def test_a_second_derivative_is_refused_in_chunks_and_given_by_the_recurrence():
    inputs = [x.requires_grad_() for x in draw_inputs(1, 1, length=3, key_dim=2, value_dim=2)]
    (gradient,) = torch.autograd.grad(delta_rule(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="use delta_rule_recurrent"):
        gradient.sum().backward()
    assert torch.autograd.gradgradcheck(delta_rule_recurrent, inputs)


@pytest.mark.parametrize("function", [chunked, recurrent])
@pytest.mark.parametrize("cut", [1, 16, 30])
def test_a_carried_state_equals_one_long_call(function, cut):
    *sequences, state = draw_inputs()
    output, end = function(*sequences, state)
    first, middle = function(*(x[:, :, :cut] for x in sequences), state)
    second, last = function(*(x[:, :, cut:] for x in sequences), middle)
    torch.testing.assert_close(torch.cat((first, second), dim=2), output)
    torch.testing.assert_close(last, end)


def test_steps_equal_one_long_call():
    *sequences, state = draw_inputs()
    output, end = chunked(*sequences, state, scale=0.3)
    for t in range(sequences[0].shape[2]):
        row, state = delta_rule_step(*(x[:, :, t] for x in sequences), state, scale=0.3)
        torch.testing.assert_close(row, output[:, :, t])
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("function", [chunked, recurrent])
def test_orthonormal_keys_keep_their_values_exactly(function):
    key = torch.linalg.qr(draw(8, 8)).Q[None, None]
    value, beta = draw(1, 1, 8, 3, seed=1), torch.ones(1, 1, 8, dtype=torch.float64)
    output, state = function(key, key, value, beta, scale=1.0)
    torch.testing.assert_close(key @ state, value)
    torch.testing.assert_close(output, value)  # read after the write


@pytest.mark.parametrize("function", [chunked, recurrent])
def test_a_key_written_twice_keeps_the_second_value_only(function):
    key = F.normalize(draw(1, 1, 1, 6), dim=-1).expand(1, 1, 2, 6)
    value = draw(1, 1, 2, 4, seed=1)
    _, state = function(key, key, value, torch.ones(1, 1, 2, dtype=torch.float64))
    torch.testing.assert_close(key[:, :, :1] @ state, value[:, :, 1:])


@pytest.mark.parametrize("function", [chunked, recurrent])
def test_nothing_is_written_where_beta_or_the_key_is_zero(function):
    query, key, value, beta, state = draw_inputs()
    _, without_beta = function(query, key, value, torch.zeros_like(beta), state)
    _, without_key = function(query, torch.zeros_like(key), value, torch.ones_like(beta), state)
    torch.testing.assert_close(without_beta, state)
    torch.testing.assert_close(without_key, state)


def test_w_is_the_product_of_householder_factors_and_u_what_the_chunk_writes():
    _, key, value, beta, _ = draw_inputs(length=11)
    w, u = wy_representation(key, value, beta)
    product = torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6)
    written = torch.zeros(2, 3, 6, 5, dtype=torch.float64)
    for t in range(11):
        k, v, b = key[:, :, t, :, None], value[:, :, t, None], beta[:, :, t, None, None]
        factor = torch.eye(6, dtype=torch.float64) - b * k @ k.mT
        product, written = factor @ product, factor @ written + b * k @ v
    torch.testing.assert_close(torch.eye(6, dtype=torch.float64) - key.mT @ w, product)
    torch.testing.assert_close(key.mT @ u, written)


def test_the_attention_map_times_the_values_is_the_output():
    query, key, value, beta, _ = draw_inputs()
    weights = delta_rule_attention_map(query, key, beta)
    torch.testing.assert_close(weights @ value, delta_rule(query, key, value, beta))
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(
        delta_rule_attention_map(query, key, beta, scale=2.0), 2.0 * 6**0.5 * weights
    )


def test_the_output_at_a_position_has_no_gradient_to_later_inputs():
    inputs = [x.requires_grad_() for x in draw_inputs()]
    output = delta_rule(*inputs, chunk_size=8)
    gradients = torch.autograd.grad(output[:, :, 19].sum(), inputs[:4])
    for gradient in gradients:
        assert (gradient[:, :, 20:] == 0).all()
        assert (gradient[:, :, :20] != 0).any()


def test_keys_are_not_normalised_inside():
    query, key, value, beta, _ = draw_inputs()
    longer, expected = 0.5 * key, delta_rule(query, key, value, beta)
    assert not torch.allclose(delta_rule(query, longer, value, beta), expected)
    torch.testing.assert_close(  # k u stays what it was if v and beta make up for it
        delta_rule(query, longer, 0.5 * value, 4 * beta), 0.5 * 2 * expected
    )


def test_hundred_thousand_unit_keys_stay_finite(monkeypatch):
    monkeypatch.undo()
    inputs = draw_inputs(batch=1, heads=1, length=100_000, key_dim=4, value_dim=4)
    query, key, value, beta = (x.float() for x in inputs[:4])
    output, state = chunked(query, key, value, 2 * beta)
    assert output.isfinite().all() and state.isfinite().all()
    assert state.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [chunked, recurrent])
def test_half_precision_is_computed_in_float32_with_a_float32_state(dtype, function):
    *sequences, state = draw_inputs(dtype=dtype)
    output, end = function(*sequences, state.float())
    exact, exact_end = function(*(x.float() for x in sequences), state.float())
    assert output.dtype == dtype and end.dtype == torch.float32
    torch.testing.assert_close(end, exact_end)
    torch.testing.assert_close(output, exact.to(dtype))


def test_autocast_does_not_lower_the_precision_forward_or_backward():
    inputs = draw_inputs(dtype=torch.float32)
    exact = outputs_and_gradients(chunked, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = outputs_and_gradients(chunked, inputs)
    for result, expected in zip(under_autocast, exact, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("function", [chunked, recurrent])
@pytest.mark.parametrize("empty", ["batch", "length"])
def test_no_positions_or_an_empty_batch_leave_the_state_as_it_is(function, empty):
    sizes = {"batch": 2, "length": 5, empty: 0}
    inputs = [x.requires_grad_() for x in draw_inputs(**sizes)]
    output, state = function(*inputs)
    assert output.shape == (sizes["batch"], 3, sizes["length"], 5)
    if empty == "length":
        torch.testing.assert_close(state, inputs[4])
    (output.sum() + state.sum()).backward()
    assert inputs[4].grad.shape == inputs[4].shape


BAD = {
    "query": lambda q, k, v, b, s: (q[0], k, v, b, s),
    "key": lambda q, k, v, b, s: (q, k[..., :3], v, b, s),
    "value": lambda q, k, v, b, s: (q, k, v[:, :, :4], b, s),
    "beta": lambda q, k, v, b, s: (q, k, v, b[..., None], s),
    "initial_state": lambda q, k, v, b, s: (q, k, v, b, s.mT),
}


@pytest.mark.parametrize("function", [delta_rule, delta_rule_recurrent])
@pytest.mark.parametrize("argument", BAD)
def test_a_wrong_shape_names_the_argument(function, argument):
    with pytest.raises(ValueError, match=rf"^{argument}: shape "):
        function(*BAD[argument](*draw_inputs()))


def test_a_wrong_shape_of_a_step_or_a_chunk_names_the_argument():
    *sequences, state = draw_inputs()
    rows = [x[:, :, 0] for x in sequences]
    with pytest.raises(ValueError, match=r"^state: shape "):
        delta_rule_step(*rows, state.mT)
    with pytest.raises(ValueError, match=r"^query: shape "):
        delta_rule_step(*sequences, state)
    with pytest.raises(ValueError, match=r"^beta: shape "):
        wy_representation(*sequences[1:3], sequences[3][..., None])
    with pytest.raises(ValueError, match=r"^beta: shape "):
        delta_rule_attention_map(*sequences[:2], sequences[3][..., None])


def test_a_chunk_has_at_least_one_position():
    with pytest.raises(ValueError, match=r"^chunk_size: 0 given"):
        delta_rule(*draw_inputs(), chunk_size=0)
