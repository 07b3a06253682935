"""The head as a layer: in place of `nn.Linear`, in any precision, saved, copied and compiled."""

import copy
import math

import pytest
import torch
from torch import nn

from heterodox.layers import HEADS
from heterodox.layers.fourier_head import FourierHead, fourier_logits, fourier_penalty
from heterodox.layers.gaussian_mixture_head import GaussianMixtureHead
from heterodox.training.seeding import seeded

BOTH_WAYS = pytest.mark.parametrize(("frequencies", "bins"), [(4, 9), (70, 80)])


def make(frequencies=4, bins=9, features=6, **options):
    with seeded(0):
        return FourierHead(features, bins, frequencies, **options)


@pytest.fixture
def x():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@BOTH_WAYS
def test_the_head_is_fourier_logits_of_a_linear_layer(x, frequencies, bins):
    head = make(frequencies, bins).double()
    expected = fourier_logits(head.linear(x.double()), bins)
    torch.testing.assert_close(head(x.double()), expected)


def test_the_first_outputs_are_real_parts_and_the_last_imaginary_parts(x):
    head = make(2)
    r = head.linear(x)
    a = torch.complex(r[:, :3], r[:, 3:])
    c = torch.stack([(a[:, k:] * a[:, : 3 - k].conj()).sum(-1) for k in range(3)], dim=-1)
    torch.testing.assert_close(head.coefficients(x), c)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 3, 2), (2, 1, 3, 2), (0,), (2, 0)])
def test_leading_axes_are_kept(lead):
    head = make(regularization=1e-6)
    logits, penalty = head(torch.randn(*lead, 6), return_penalty=True)
    assert logits.shape == (*lead, 9) and penalty.shape == () and penalty.isfinite()


def test_initial_weights_are_those_of_a_linear_layer_over_a_hundred():
    with seeded(0):
        linear = nn.Linear(6, 10)
    head = make()
    torch.testing.assert_close(head.linear.weight, linear.weight / 100)
    torch.testing.assert_close(head.linear.bias, linear.bias / 100)
    chronos = make(weight_scale=1e-3, bias_scale=0.1)
    torch.testing.assert_close(chronos.linear.weight, linear.weight / 1000)
    torch.testing.assert_close(chronos.linear.bias, linear.bias / 10)


def test_the_penalty_is_returned_and_reaches_the_weights(x):
    head = make(regularization=0.5)
    logits, penalty = head(x, return_penalty=True)
    torch.testing.assert_close(logits, head(x))
    torch.testing.assert_close(penalty, 0.5 * fourier_penalty(head.coefficients(x)))
    penalty.backward()
    assert head.linear.weight.grad.abs().sum() > 0
    assert not any(isinstance(value, torch.Tensor) for value in vars(head).values())
    assert set(dict(head.named_buffers())) == {"basis"}


def test_without_regularization_the_penalty_is_zero(x):
    assert make()(x, return_penalty=True)[1].item() == 0


def test_descent_on_the_penalty_takes_the_high_frequencies_out(x):
    head = make(weight_scale=1.0, bias_scale=1.0, regularization=1e-2)
    before = head.coefficients(x).abs()
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        head(x, return_penalty=True)[1].backward()
        optimizer.step()
    after = head.coefficients(x).abs()
    assert after[:, 4].mean() < 0.6 * before[:, 4].mean()


@BOTH_WAYS
def test_no_features_and_no_bias_give_uniform_logits_and_finite_gradients(frequencies, bins):
    head = make(frequencies, bins, bias=False)
    x = torch.zeros(3, 6, requires_grad=True)
    logits, penalty = head(x, return_penalty=True)
    torch.testing.assert_close(logits, torch.full((3, bins), math.log(1 / bins + 1e-5)))
    (logits[:, 0].sum() + penalty).backward()
    assert x.grad.isfinite().all() and head.linear.weight.grad.isfinite().all()


def test_a_single_feature_suffices():
    assert make(features=1)(torch.randn(4, 1)).isfinite().all()


@BOTH_WAYS
def test_a_row_does_not_depend_on_its_batch(x, frequencies, bins):
    head = make(frequencies, bins).double()
    together = head(x.double())
    torch.testing.assert_close(head(x[2:3].double()), together[2:3])


def test_the_head_learns_a_density_that_a_count_would_show():
    head = make(frequencies=6, bins=12, features=1)
    target = torch.tensor([0, 3, 3, 4, 4, 4, 5, 11] * 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(torch.ones(32, 1)), target).backward()
        optimizer.step()
    pmf = head(torch.ones(1, 1)).softmax(-1)[0]
    counts = torch.bincount(target, minlength=12) / 32
    assert (pmf - counts).abs().max() < 0.05


def test_the_state_is_that_of_the_linear_layer_alone():
    assert list(make().state_dict()) == ["linear.weight", "linear.bias"]
    assert list(make(bias=False).state_dict()) == ["linear.weight"]


@BOTH_WAYS
def test_waves_are_made_anew_in_another_precision(x, frequencies, bins):
    head = make(frequencies, bins)
    twice = copy.deepcopy(head).double()
    fresh = FourierHead(6, bins, frequencies, dtype=torch.float64)
    fresh.load_state_dict(twice.state_dict())
    assert torch.equal(twice.basis, fresh.basis)
    assert torch.equal(twice(x.double()), fresh(x.double()))
    assert head.to(torch.bfloat16).basis.dtype == torch.float32
    assert torch.equal(head.float().basis, make(frequencies, bins).basis)


def test_waves_follow_the_weights_to_another_device():
    head = FourierHead(6, 9, 4, device="meta")
    assert head(torch.zeros(2, 6, device="meta")).device.type == "meta"
    assert torch.equal(head.to_empty(device="cpu").basis, make().basis)


@BOTH_WAYS
def test_autocast_is_computed_in_float32(x, frequencies, bins):
    head = make(frequencies, bins, regularization=1e-6)
    expected, penalty = head(x, return_penalty=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, under_autocast = head(x, return_penalty=True)
        log_prob = head.distribution(x).log_prob(torch.zeros(5))
    assert torch.equal(logits, expected) and torch.equal(penalty, under_autocast)
    assert log_prob.isfinite().all()


@BOTH_WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(x, dtype, frequencies, bins):
    head = make(frequencies, bins, regularization=1e-6).to(dtype)
    x = x.to(dtype).requires_grad_()
    logits, penalty = head(x, return_penalty=True)
    exact = copy.deepcopy(head).float()(x.float())
    assert logits.dtype == dtype and penalty.dtype == torch.float32
    assert torch.equal(logits, exact.to(dtype))
    logits.sum().backward()
    assert x.grad.isfinite().all()


@BOTH_WAYS
def test_compiled_equals_eager(x, frequencies, bins):
    head = make(frequencies, bins, regularization=1e-6).double()
    torch.compiler.reset()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(x.double(), return_penalty=True), head(x.double(), return_penalty=True)
    )
    torch.compiler.reset()


def test_gradients_match_finite_differences(x):
    head = make(regularization=1.0, eps=1e-2, weight_scale=1.0).double()
    x = x[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head(x, return_penalty=True), x)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("in_features", {"features": 0}),
        ("num_frequencies", {"frequencies": 0}),
        ("num_frequencies", {"frequencies": 2.5}),
        ("out_features", {"bins": 1}),
        ("eps", {"eps": -1e-5}),
        ("regularization", {"regularization": -1.0}),
        ("weight_scale", {"weight_scale": 0.0}),
        ("bias_scale", {"bias_scale": math.inf}),
    ],
)
def test_bad_sizes_name_the_argument(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        make(**options)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_built_alike(name):
    head = HEADS[name](6, 9)
    assert (head.in_features, head.out_features) == (6, 9)
    assert head(torch.randn(2, 3, 6)).shape == (2, 3, 9)


@pytest.mark.parametrize("name", ["fourier", "gaussian-mixture"])
def test_heads_of_densities_refuse_features_of_another_number(name):
    with pytest.raises(ValueError, match=r"^input: shape \(2, 5\) given, .* expected"):
        HEADS[name](6, 9)(torch.randn(2, 5))


def test_the_slot_takes_a_quarter_as_many_frequencies_as_bins():
    assert HEADS["fourier"](6, 50).num_frequencies == 12
    assert HEADS["fourier"](6, 2).num_frequencies == 1
    assert HEADS["fourier"](6, 50, num_frequencies=3).num_frequencies == 3


def test_the_mixture_head_is_a_mixture_of_gaussians_at_the_bins():
    head = GaussianMixtureHead(6, 20).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    logits = head(x)
    for row, means in zip(logits, torch.tanh(head.means(x)).tolist(), strict=True):
        p = [0.0] * 20
        for mean, width in zip(means, head.widths.tolist(), strict=True):
            deviation = math.log1p(math.exp(width))
            assert deviation == pytest.approx(0.1)
            for j in range(20):
                z = (-1 + (2 * j + 1) / 20 - mean) / deviation
                p[j] += math.exp(-z * z / 2) / deviation
        expected = [math.log(value / sum(p) + 1e-5) for value in p]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)
