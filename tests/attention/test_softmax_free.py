"""Softmax-free attention against the paper's equations written with dense n x n matrices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention.slot import soft, soft_plus_plus
from heterodox.attention.softmax_free import (
    SoftmaxFreeAttention,
    gaussian_kernel,
    newton_inverse,
    softmax_free_attention,
)


def draw(*shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def draw_attention(batch=2, heads=3, length=12, tokens=4, head_dim=5, value_dim=3, **options):
    return (
        draw(batch, heads, length, head_dim, seed=1, **options),
        draw(batch, heads, length, value_dim, seed=2, **options),
        draw(batch, heads, tokens, head_dim, seed=3, **options),
    )


def kernel_by_differences(query, key):
    return torch.exp(-(query[..., :, None, :] - key[..., None, :, :]).square().sum(-1) / 2)


def implied_map(query, bottleneck, ridge, normalize):
    """The n x n map, from the equations, with an exact inverse."""
    kernel = kernel_by_differences(query, bottleneck)
    among = kernel_by_differences(bottleneck, bottleneck)
    inverse = torch.linalg.inv(among + ridge * torch.eye(among.shape[-1], dtype=among.dtype))
    if normalize:
        root = torch.diag_embed(among.sum(-1).rsqrt())
        inverse = root @ inverse @ root
    return kernel @ inverse @ kernel.mT


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_the_kernel_is_the_exponential_of_half_the_squared_distance(shape):
    query, key = draw(*shape, 7, 5, seed=1), draw(*shape, 6, 5, seed=2)
    torch.testing.assert_close(gaussian_kernel(query, key), kernel_by_differences(query, key))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_the_kernel_of_tokens_with_themselves_is_symmetric_with_ones_on_the_diagonal(dtype, shift):
    x = draw(3, 40, 16, dtype=dtype) * 0.2 + shift
    kernel = gaussian_kernel(x, x)
    rounding = 40 * torch.finfo(dtype).eps * (1 + 16 * shift**2)
    torch.testing.assert_close(kernel, kernel.mT, atol=rounding, rtol=0)
    ones = torch.ones(3, 40, dtype=dtype)
    torch.testing.assert_close(kernel.diagonal(dim1=1, dim2=2), ones, atol=rounding, rtol=0)
    assert (kernel > 0).all() and (kernel <= 1).all()


def test_far_points_have_a_kernel_of_exactly_zero():
    near = draw(1, 4, 8, dtype=torch.float32)
    kernel = gaussian_kernel(near, near + 100)
    assert (kernel == 0).all()
    x, y = leaves(near, near + 100)
    gradients = torch.autograd.grad(gaussian_kernel(x, y).sum(), (x, y))
    assert all((g == 0).all() for g in gradients)


def test_gradients_of_the_kernel_match_finite_differences():
    query, key = leaves(draw(2, 4, 3, seed=1), draw(2, 5, 3, seed=2))
    assert torch.autograd.gradcheck(gaussian_kernel, (query, key))
    assert torch.autograd.gradgradcheck(gaussian_kernel, (query, key))
    assert torch.autograd.gradcheck(lambda x: gaussian_kernel(x, x), (query,))


def test_the_kernel_keeps_nothing_of_its_size_but_itself():
    query, key = leaves(draw(1, 300, 4), draw(1, 40, 4))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        gaussian_kernel(query, key)
    assert sorted(sizes) == [40 * 4, 300 * 4, 300 * 40]


def positive_definite(batch=3, size=6, seed=0):
    x = draw(batch, size, 2 * size, seed=seed)
    return x @ x.mT / size


def test_newton_comes_to_the_exact_inverse_as_iterations_grow():
    matrix = positive_definite()
    exact = torch.linalg.inv(matrix + 0.1 * torch.eye(6, dtype=torch.float64))
    errors = [
        (newton_inverse(matrix, steps, 0.1) - exact).abs().max().item() for steps in (2, 5, 9, 20)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12


@pytest.mark.parametrize("iterations", [1, 3])
def test_newton_starts_from_the_row_sum_and_doubles_its_order_with_every_step(iterations):
    matrix = positive_definite().abs()  # a kernel's numbers are positive
    eye = torch.eye(6, dtype=torch.float64)
    for one, inverse in zip(matrix, newton_inverse(matrix, iterations, 0.01), strict=True):
        ridged = one + 0.01 * eye
        start = 0.9 * 2 / one.sum(-1).max() ** 2 * ridged
        # Newton's error is squared by each step, so that it has a closed form.
        error = torch.linalg.matrix_power(eye - ridged @ start, 2**iterations)
        torch.testing.assert_close(inverse, torch.linalg.solve(ridged, eye - error))


@pytest.mark.parametrize("ridge", [0.0, 0.01, 10.0])
def test_newton_converges_whatever_the_ridge_and_the_size_of_the_numbers(ridge):
    for scale in (1e-3, 1.0, 1e3):
        matrix = scale * (positive_definite() + torch.eye(6, dtype=torch.float64))
        exact = torch.linalg.inv(matrix + ridge * torch.eye(6, dtype=torch.float64))
        torch.testing.assert_close(newton_inverse(matrix, 25, ridge), exact)


def test_newton_does_not_need_symmetry():
    matrix = positive_definite() + 0.3 * draw(3, 6, 6, seed=4)
    torch.testing.assert_close(newton_inverse(matrix, 40, 0.0), torch.linalg.inv(matrix))


def test_a_matrix_is_inverted_as_if_it_were_alone():
    matrices = positive_definite()
    matrices[0] *= 1000
    together = newton_inverse(matrices, 4)
    for matrix, inverse in zip(matrices, together, strict=True):
        torch.testing.assert_close(newton_inverse(matrix, 4), inverse)


def test_the_gradient_of_the_inverse_is_the_closed_form():
    (matrix,) = leaves(positive_definite())
    upstream = draw(3, 6, 6, seed=9)
    inverse = newton_inverse(matrix, 20, 0.1)
    (gradient,) = torch.autograd.grad(inverse, matrix, upstream)
    torch.testing.assert_close(gradient, -inverse.mT @ upstream @ inverse.mT)
    assert torch.autograd.gradcheck(lambda x: newton_inverse(x, 30, 0.1), (matrix,))
    assert torch.autograd.gradgradcheck(lambda x: newton_inverse(x, 30, 0.1), (matrix,))


def test_the_closed_form_keeps_one_matrix_and_no_iteration():
    (matrix,) = leaves(positive_definite())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.numel()) or x, lambda x: x
    ):
        newton_inverse(matrix, 20)
    assert saved == [matrix.numel()]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("inverse", ["newton", "cholesky"])
@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_attention_is_the_implied_map_times_the_values(normalize, inverse, ridge):
    query, value, bottleneck = draw_attention()
    expected = implied_map(query, bottleneck, ridge, normalize) @ value
    output = softmax_free_attention(
        query,
        value,
        bottleneck,
        iterations=30,
        ridge=ridge,
        normalize=normalize,
        inverse=inverse,
    )
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("inverse", ["newton", "cholesky"])
def test_with_all_tokens_as_bottleneck_it_is_full_gaussian_attention(inverse):
    query, value, _ = draw_attention()
    output = softmax_free_attention(query, value, query, iterations=40, ridge=0.0, inverse=inverse)
    torch.testing.assert_close(output, kernel_by_differences(query, query) @ value)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("iterations", [3, 20])
def test_the_map_is_symmetric_and_positive_semidefinite(normalize, iterations):
    query, _, bottleneck = draw_attention(length=20, scale=0.3)
    eye = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    attention = softmax_free_attention(
        query, eye, bottleneck, normalize=normalize, iterations=iterations
    )
    torch.testing.assert_close(attention, attention.mT)
    assert torch.linalg.eigvalsh(attention).min() > -1e-10


def test_the_norm_of_the_normalised_map_stays_as_tokens_are_repeated_and_that_of_soft_grows():
    query, _, bottleneck = draw_attention(length=16, tokens=4)
    norms = {}
    for normalize in (False, True):
        for times in (1, 4):
            q, t = query.repeat(1, 1, times, 1), bottleneck.repeat(1, 1, times, 1)
            eye = torch.eye(16 * times, dtype=torch.float64).expand(2, 3, -1, -1)
            attention = softmax_free_attention(
                q, eye, t, normalize=normalize, inverse="cholesky", ridge=1e-6
            )
            norms[normalize, times] = torch.linalg.matrix_norm(attention, ord=2)
    torch.testing.assert_close(norms[False, 4], 4 * norms[False, 1], rtol=1e-3, atol=0)
    torch.testing.assert_close(norms[True, 4], norms[True, 1], rtol=1e-3, atol=0)


def test_permuted_tokens_give_permuted_outputs():
    query, value, bottleneck = draw_attention()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = softmax_free_attention(query, value, bottleneck)[:, :, order]
    output = softmax_free_attention(query[:, :, order], value[:, :, order], bottleneck.flip(2))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("inverse", ["newton", "cholesky"])
def test_gradients_match_finite_differences(normalize, inverse):
    inputs = leaves(*draw_attention(1, 2, 5, 3, 3, 2))

    def attend(query, value, bottleneck):
        return softmax_free_attention(
            query,
            value,
            bottleneck,
            iterations=30,
            ridge=0.1,
            normalize=normalize,
            inverse=inverse,
        )

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("normalize", [False, True])
def test_cholesky_equals_newton_at_convergence_with_gradients(normalize):
    results = []
    for inverse in ("newton", "cholesky"):
        inputs = leaves(*draw_attention())
        output = softmax_free_attention(
            *inputs, iterations=30, ridge=0.1, normalize=normalize, inverse=inverse
        )
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for newton, cholesky in zip(*results, strict=True):
        torch.testing.assert_close(newton, cholesky)


def test_an_item_does_not_depend_on_the_others_of_its_batch():
    query, value, bottleneck = draw_attention(scale=0.3)
    bottleneck[0] = 5 * bottleneck[0]  # another norm of A
    together = softmax_free_attention(query, value, bottleneck, iterations=3, normalize=True)
    alone = softmax_free_attention(
        query[1:], value[1:], bottleneck[1:], iterations=3, normalize=True
    )
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("inverse", ["newton", "cholesky"])
def test_a_large_grid_gives_finite_numbers_in_single_precision(normalize, inverse):
    torch_layer = SoftmaxFreeAttention(64, 2, 8, normalize=normalize, inverse=inverse)
    x = draw(1, 3136, 64, dtype=torch.float32).requires_grad_()
    output = torch_layer(x, 56, 56)
    gradients = torch.autograd.grad(output.sum(), [x, *torch_layer.parameters()])
    assert output.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_equal_tokens_give_finite_numbers_in_single_precision():
    value = draw(1, 1, 64, 4, dtype=torch.float32)
    same = torch.full((1, 1, 64, 8), 3.0)
    for inverse in ("newton", "cholesky"):
        inputs = leaves(same, value, same[:, :, :49])
        output = softmax_free_attention(*inputs, inverse=inverse)
        assert output.isfinite().all()
        # A is all ones: (A + εI)⁻¹ takes 1 to 1 / (m + ε), so that each output is Σ v.
        expected = (49 / 49.01) * value.sum(2, keepdim=True).expand_as(output)
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
        assert all(g.isfinite().all() for g in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_inputs_and_output_only(dtype):
    inputs = [x.to(dtype) for x in draw_attention()]
    output = softmax_free_attention(*inputs)
    assert output.dtype == dtype
    single = softmax_free_attention(*(x.float() for x in inputs))
    torch.testing.assert_close(output, single.to(dtype))
    for x in (gaussian_kernel(inputs[0], inputs[2]), newton_inverse(positive_definite().to(dtype))):
        assert x.dtype == dtype and x.isfinite().all()
    large = 300 * torch.ones(1, 2, 3, dtype=dtype)  # squares of which overflow float16
    assert (gaussian_kernel(large, large) == 1).all()


def test_autocast_leaves_the_attention_in_single_precision():
    inputs = draw_attention(dtype=torch.float32)
    expected = softmax_free_attention(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(softmax_free_attention(*inputs), expected)


@pytest.mark.parametrize(("batch", "length"), [(0, 12), (2, 0), (0, 0)])
def test_empty_dimensions_work(batch, length):
    inputs = leaves(*draw_attention(batch, 3, length))
    output = softmax_free_attention(*inputs, normalize=True)
    assert output.shape == (batch, 3, length, 3)
    output.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in inputs)


def test_what_is_kept_for_the_backward_pass_is_linear_and_small():
    # The paper's first stage: 56 x 56 tokens, 49 bottleneck tokens, two heads of 32 channels.
    inputs = leaves(*draw_attention(1, 2, 3136, 49, 32, 32, dtype=torch.float32))
    known = {x.data_ptr() for x in inputs}
    saved = {}

    def note(x):
        if x.data_ptr() not in known:
            saved[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = softmax_free_attention(*inputs)
    assert sum(saved.values()) + output.numel() < 1.3 * sum(x.numel() for x in inputs)


BAD_FUNCTION = [
    ("query", lambda q, v, t: softmax_free_attention(q[0], v, t)),
    ("value", lambda q, v, t: softmax_free_attention(q, v[:, :, 1:], t)),
    ("value", lambda q, v, t: softmax_free_attention(q, v.float(), t)),
    ("bottleneck", lambda q, v, t: softmax_free_attention(q, v, t[..., 1:])),
    ("bottleneck", lambda q, v, t: softmax_free_attention(q, v, t[:, :, :0])),
    ("bottleneck", lambda q, v, t: softmax_free_attention(q, v, t.float())),
    ("iterations", lambda q, v, t: softmax_free_attention(q, v, t, iterations=0)),
    ("ridge", lambda q, v, t: softmax_free_attention(q, v, t, ridge=-0.1)),
    ("ridge", lambda q, v, t: softmax_free_attention(q, v, t, ridge=float("nan"))),
    ("inverse", lambda q, v, t: softmax_free_attention(q, v, t, inverse="lu")),
    ("query", lambda q, v, t: gaussian_kernel(q[0, 0, 0], t)),
    ("key", lambda q, v, t: gaussian_kernel(q, t[..., 1:])),
    ("key", lambda q, v, t: gaussian_kernel(q, t[:1])),
    ("matrix", lambda q, v, t: newton_inverse(t)),
    ("matrix", lambda q, v, t: newton_inverse(t[..., :0, :0])),
    ("iterations", lambda q, v, t: newton_inverse(q @ q.mT, 0)),
    ("ridge", lambda q, v, t: newton_inverse(q @ q.mT, ridge=-1.0)),
]


@pytest.mark.parametrize(("argument", "call"), BAD_FUNCTION)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call(*draw_attention())


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("embed_dim", (30, 4, 2), {}),
        ("num_heads", (32, 0, 2), {}),
        ("ratio", (32, 4, 0), {}),
        ("conv_size", (32, 4, 2), {"conv_size": 4}),
        ("conv_size", (32, 4, 2), {"conv_size": -1}),
        ("iterations", (32, 4, 2), {"iterations": 0}),
        ("ridge", (32, 4, 2), {"ridge": -0.01}),
        ("inverse", (32, 4, 2), {"inverse": "qr"}),
    ],
)
def test_a_layer_that_cannot_be_built_names_the_argument(argument, arguments, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        SoftmaxFreeAttention(*arguments, **options)


@pytest.mark.parametrize(
    ("argument", "shape", "height", "width"),
    [
        ("height", (2, 24, 16), 4, 4),
        ("height", (2, 24, 16), 3, 8),
        ("height", (2, 0, 16), 0, 4),
        ("width", (2, 24, 16), 8, 3),
        ("x", (2, 24, 8), 4, 6),
        ("x", (24, 16), 4, 6),
    ],
)
def test_a_grid_that_does_not_fit_names_the_argument(argument, shape, height, width):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        SoftmaxFreeAttention(16, 2, 2)(torch.zeros(shape), height, width)


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("conv_size", [0, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_layer_is_its_equations(ratio, conv_size, normalize):
    height, width, heads, head_dim = 4, 6, 2, 5
    layer = SoftmaxFreeAttention(
        10, heads, ratio, conv_size=conv_size, ridge=0.1, iterations=30, normalize=normalize
    ).double()
    nn.init.normal_(layer.bottleneck_norm.weight)
    x = draw(2, height * width, 10)
    query, value = layer.query(x) / head_dim**0.25, layer.value(x)
    output = torch.zeros(2, height * width, 10, dtype=torch.float64)
    for b in range(2):
        for h in range(heads):
            q, v = (y[b, :, h * head_dim : (h + 1) * head_dim] for y in (query, value))
            tokens = []
            for top in range(0, height, ratio):
                for left in range(0, width, ratio):
                    token = sum(
                        layer.bottleneck.weight[:, :, i, j] @ q[(top + i) * width + left + j]
                        for i in range(ratio)
                        for j in range(ratio)
                    )
                    tokens.append(F.gelu(layer.bottleneck_norm(token)))
            mixed = implied_map(q, torch.stack(tokens), 0.1, normalize) @ v
            if conv_size:
                mixed = mixed + local_term(layer.local.weight[h, 0], v.view(height, width, -1))
            output[b, :, h * head_dim : (h + 1) * head_dim] = mixed
    torch.testing.assert_close(layer(x, height, width), layer.proj(output))


def local_term(weights, grid):
    """The same filter over every channel of a head, zeros beyond the border."""
    height, width, channels = grid.shape
    reach = len(weights) // 2
    result = torch.zeros(height, width, channels, dtype=grid.dtype)
    for y in range(height):
        for x in range(width):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        result[y, x] += weights[dy + reach, dx + reach] * grid[y + dy, x + dx]
    return result.reshape(height * width, channels)


def test_projections_have_a_bias_and_the_convolutions_have_none():
    layer = SoftmaxFreeAttention(16, 2, 4, conv_size=9)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        **{f"{name}.weight": (16, 16) for name in ("query", "value", "proj")},
        **{f"{name}.bias": (16,) for name in ("query", "value", "proj")},
        "bottleneck.weight": (8, 8, 4, 4),
        "bottleneck_norm.weight": (8,),
        "bottleneck_norm.bias": (8,),
        "local.weight": (2, 1, 9, 9),
    }
    assert SoftmaxFreeAttention(16, 2, 4).local is None


@pytest.mark.parametrize(("factory", "normalize"), [(soft, False), (soft_plus_plus, True)])
def test_the_slot_takes_a_square_grid_and_the_smallest_ratio(factory, normalize):
    layer = factory(16, 2, sequence_length=81, position=None)
    assert (layer.attention.ratio, layer.attention.normalize) == (3, normalize)
    x = draw(2, 81, 16, dtype=torch.float32)
    torch.testing.assert_close(layer(x), layer.attention(x, 9, 9))
    assert layer(draw(1, 36, 16, dtype=torch.float32)).shape == (1, 36, 16)  # another resolution


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("sequence_length", lambda x: soft(16, 2, sequence_length=15)),
        ("sequence_length", lambda x: soft(16, 2, sequence_length=1)),
        ("position", lambda x: soft(16, 2, sequence_length=16, position="rotary")),
        ("position", lambda x: soft_plus_plus(16, 2, sequence_length=16, position="alibi")),
        ("is_causal", lambda x: soft(16, 2, sequence_length=16)(x, is_causal=True)),
        ("attn_mask", lambda x: soft(16, 2, sequence_length=16)(x, torch.ones(16, 16).bool())),
        ("x", lambda x: soft(16, 2, sequence_length=16)(x[:, :15])),
        ("height", lambda x: soft(16, 2, sequence_length=16)(x[:, :9])),
    ],
)
def test_the_slot_refuses_what_the_method_cannot_do(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call(torch.zeros(2, 16, 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("inverse", ["newton", "cholesky"])
def test_cuda_equals_the_cpu(inverse):
    inputs = draw_attention(dtype=torch.float32)
    output = softmax_free_attention(*(x.cuda() for x in inputs), inverse=inverse)
    expected = softmax_free_attention(*inputs, inverse=inverse)
    torch.testing.assert_close(output.cpu(), expected, atol=1e-3, rtol=1e-3)
