"""A linear layer whose synapses have delays: a convolution over time with one tap a synapse.

    y_o[t] = Σ_i Σ_τ K_oi(τ) x_i[t - τ],      K_oi(τ) = Σ_k w_k g_k(τ) / (Σ_τ' g_k(τ') + 1e-7)
    g(τ) = exp(-½ ((τ - d) / s)²),  s = |σ| + 0.27      in training
    g(τ) = ReLU(1 - |τ - d|),  d rounded                 at test time: one tap of weight w

A single spike at a real lag has no gradient in the lag; the Gaussian has, and shrinks during
training. Hammouamri, Khalfaoui-Hassani, Masquelier, "Learning Delays in Spiking Neural Networks
using Dilated Convolutions with Learnable Spacings", ICLR 2024, arXiv 2306.17670. The 0.27 and the
1e-7 are those of the authors' package DCLS; the paper's formula lacks them.

Time O(time · batch · in · out · lags) at most: where it is less, the convolution is a product of
Fourier transforms.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# What a number of a Fourier transform costs, per level, in multiplications of a convolution; and
# what one of the products of transforms costs. Measured on a CPU.
COST_OF_TRANSFORM, COST_OF_PRODUCT = 12.0, 2.8

LEAST_WIDTH = 0.27
EPS = 1e-7


def delay_kernel(
    weight: Float[Tensor, "out_features in_features kernel_count"],
    delay: Float[Tensor, "out_features in_features kernel_count"],
    sigma: int | float | Float[Tensor, ""],
    max_delay: int,
) -> Float[Tensor, "out_features in_features {max_delay}"]:
    """The blurred kernel K of training, indexed by lag.

    Half precision is computed in float32.

    Args:
        weight, delay: w and d of each synapse; delays in steps, from 0 to max_delay - 1.
        sigma: σ in steps; the Gaussian's width is |σ| + 0.27. A tensor is not checked, so that the
            device need not be waited for.
        max_delay: how many lags there are.

    Raises:
        ValueError: shapes that differ, `sigma` is negative, or `max_delay` is below 1.

    Example:
        >>> kernel = delay_kernel(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0), 0.23, 3)
        >>> [round(x, 2) for x in kernel.flatten().tolist()]
        [0.21, 1.57, 0.21]
    """
    _check_synapses(weight, delay, max_delay)
    if not isinstance(sigma, Tensor):
        _check_sigma(sigma)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    d = delay.to(dtype)[..., None]
    lags = torch.arange(max_delay, dtype=dtype, device=weight.device)
    width = (sigma.to(dtype).abs() if isinstance(sigma, Tensor) else sigma) + LEAST_WIDTH
    g = ((lags - d) / width).square().mul(-0.5).exp()
    share = weight.to(dtype) / (g.sum(-1) + EPS)
    return (share[..., None] * g).sum(2).to(weight.dtype)


def hard_delay_kernel(
    weight: Float[Tensor, "out_features in_features kernel_count"],
    delay: Float[Tensor, "out_features in_features kernel_count"],
    max_delay: int,
) -> Float[Tensor, "out_features in_features {max_delay}"]:
    """The kernel of test time: each weight at its rounded delay, brought into the window.

    Raises:
        ValueError: shapes that differ, or `max_delay` is below 1.

    Example:
        >>> kernel = hard_delay_kernel(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.2), 3)
        >>> [round(x, 2) for x in kernel.flatten().tolist()]
        [0.0, 2.0, 0.0]
    """
    _check_synapses(weight, delay, max_delay)
    # bfloat16 cannot tell lags above 256 apart.
    dtype = torch.promote_types(delay.dtype, torch.float32)
    lags = torch.arange(max_delay, dtype=dtype, device=weight.device)
    at = lags == delay.detach().to(dtype).round().clamp(0, max_delay - 1)[..., None]
    return ((weight / (1 + EPS))[..., None] * at).sum(2)


def delayed_linear(
    x: Float[Tensor, "time batch in_features"],
    kernel: Float[Tensor, "out_features in_features lags"],
    *,
    extend: int = 0,
    bias: Float[Tensor, " out_features"] | None = None,
) -> Float[Tensor, "longer_time batch out_features"]:
    """y[t] = Σ_τ K(τ) x[t - τ], causal, with x = 0 before its start and after its end.

    On a CPU the convolution is done by Fourier transforms where these are estimated to be quicker;
    outputs then have the rounding errors of their largest, also where they would be exactly 0.

    Args:
        x: spikes, counts or currents.
        kernel: indexed by lag, as from `delay_kernel`.
        extend: steps that the output goes on after the end of x, for what is still under way.
        bias: added at every step.

    Raises:
        ValueError: shapes that do not fit, or `extend` is negative.

    Example:
        >>> x = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        >>> kernel = torch.tensor([0.0, 0.5]).view(1, 1, 2)
        >>> delayed_linear(x, kernel, extend=1).flatten()
        tensor([0.0000, 0.5000, 0.0000, 0.0000])
    """
    if kernel.ndim != 3 or kernel.shape[2] == 0:
        raise ValueError(
            f"kernel: shape {tuple(kernel.shape)} given, (out_features, in_features, lags) expected"
        )
    outs, ins, lags = kernel.shape
    if x.ndim != 3 or x.shape[2] != ins:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (time, batch, {ins}) expected")
    _check_extend(extend)
    if bias is not None and bias.shape != (outs,):
        raise ValueError(f"bias: shape {tuple(bias.shape)} given, ({outs},) expected")
    steps, batch = len(x) + extend, x.shape[1]
    if lags == 1 or steps == 0 or x.numel() == 0:
        longer = x if extend == 0 else F.pad(x, (0, 0, 0, 0, 0, extend))
        return F.linear(longer, kernel.sum(-1), bias)
    if x.device.type == "cpu" and _transforms_are_quicker(steps, batch, ins, outs, lags, x.dtype):
        y = _by_transforms(x, kernel, steps)
    else:
        padded = F.pad(x.permute(1, 2, 0), (lags - 1, extend))
        y = F.conv1d(padded, kernel.flip(-1)).permute(2, 0, 1)
    return y if bias is None else y + bias


def _transforms_are_quicker(
    steps: int, batch: int, ins: int, outs: int, lags: int, dtype: torch.dtype
) -> bool:
    if dtype not in (torch.float32, torch.float64):
        return False
    points = _transform_length(steps + lags - 1)
    transforms = batch * ins + batch * outs + ins * outs
    cost = COST_OF_PRODUCT * points * batch * ins * outs
    cost += COST_OF_TRANSFORM * points * math.log2(points) * transforms
    return cost < steps * lags * batch * ins * outs


def _transform_length(least: int) -> int:
    """The next number of which 2, 3 and 5 are the only prime factors."""
    length = least
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _by_transforms(x: Tensor, kernel: Tensor, steps: int) -> Tensor:
    points = _transform_length(steps + kernel.shape[2] - 1)
    waves = torch.fft.rfft(x, n=points, dim=0)
    response = torch.fft.rfft(kernel, n=points, dim=2).permute(2, 1, 0)
    return torch.fft.irfft(waves @ response, n=points, dim=0)[:steps]


class DelayedLinear(nn.Module):
    """Synapses with a weight and a delay each; in place of a linear layer between spiking layers.

    In training mode delays are blurred, and their gradient is that of `delay_kernel`; in evaluation
    mode they are rounded, without changing what is stored. After each step of the optimizer call
    `clamp_delays_`, and after each epoch `set_sigma`, see `sigma_at`. Delays are trained with a
    rate of their own, 100 times that of the weights in the paper.

    Args:
        in_features, out_features: as in `nn.Linear`.
        max_delay: how many lags there are, 0 to max_delay - 1; an even number is made odd by one
            more. With 1 the layer is linear.
        kernel_count: synapses of each pair of neurons; 1 in the paper, 2 in its largest models.
        sigma: σ at first, in steps; by default max_delay // 2, as in the paper.
        extend: steps by which the output is longer; by default (max_delay - 1) // 2, as in the
            authors' code.
        bias: whether there is one; not in the paper.
        learn_delays: whether delays have a gradient.

    Weights start uniform in ±√(6 / (in_features · kernel_count)), delays uniform over the window.

    Raises:
        ValueError: a number of features, `max_delay` or `kernel_count` is below 1; `sigma` or
            `extend` is negative.

    Example:
        >>> layer = DelayedLinear(20, 5, max_delay=7)
        >>> layer(torch.zeros(10, 2, 20)).shape
        torch.Size([13, 2, 5])
    """

    sigma: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_delay: int,
        *,
        kernel_count: int = 1,
        sigma: int | float | None = None,
        extend: int | None = None,
        bias: bool = False,
        learn_delays: bool = True,
    ) -> None:
        super().__init__()
        for name, given in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("max_delay", max_delay),
            ("kernel_count", kernel_count),
        ):
            _check_count(name, given)
        self.in_features, self.out_features = in_features, out_features
        self.max_delay = odd(max_delay)
        self.kernel_count = kernel_count
        self.extend = (self.max_delay - 1) // 2 if extend is None else _check_extend(extend)
        sigma = self.max_delay // 2 if sigma is None else _check_sigma(sigma)
        shape = (out_features, in_features, kernel_count)
        bound = math.sqrt(6 / (in_features * kernel_count))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        delays = torch.empty(shape).uniform_(0, self.max_delay - 1)
        self.delay = nn.Parameter(delays, requires_grad=learn_delays)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def kernel(self) -> Float[Tensor, "out_features in_features lags"]:
        """What `forward` convolves with: blurred in training, hard in evaluation."""
        if self.training:
            return delay_kernel(self.weight, self.delay, self.sigma, self.max_delay)
        return hard_delay_kernel(self.weight, self.delay, self.max_delay)

    def forward(
        self, x: Float[Tensor, "time batch in_features"]
    ) -> Float[Tensor, "longer_time batch out_features"]:
        """See `delayed_linear`."""
        return delayed_linear(x, self.kernel(), extend=self.extend, bias=self.bias)

    @torch.no_grad()
    def clamp_delays_(self) -> None:
        """Brings every delay into the window."""
        self.delay.clamp_(0, self.max_delay - 1)

    @torch.no_grad()
    def round_delays_(self) -> None:
        """Rounds every delay to a lag of the window."""
        self.delay.round_().clamp_(0, self.max_delay - 1)

    def set_sigma(self, value: int | float) -> None:
        """Sets the blur σ, in steps.

        Raises:
            ValueError: `value` is negative.
        """
        self.sigma.fill_(_check_sigma(value, "value"))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"max_delay={self.max_delay}, kernel_count={self.kernel_count}, extend={self.extend}"
        )


def odd(max_delay: int) -> int:
    """The number of lags, one more if it is even, so that the window has a middle.

    Example:
        >>> odd(24), odd(25)
        (25, 25)
    """
    return max_delay + 1 - max_delay % 2


def _check_synapses(weight: Tensor, delay: Tensor, max_delay: int) -> None:
    if weight.ndim != 3:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} given, (out_features, in_features, kernel_count) "
            "expected"
        )
    if delay.shape != weight.shape:
        raise ValueError(
            f"delay: shape {tuple(delay.shape)} given, weight's {tuple(weight.shape)} expected"
        )
    _check_count("max_delay", max_delay)


def _check_count(name: str, given: int) -> None:
    if given < 1:
        raise ValueError(f"{name}: {given} given, at least 1 expected")


def _check_sigma(sigma: int | float, name: str = "sigma") -> int | float:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"{name}: {sigma} given, a number that is not negative expected")
    return sigma


def _check_extend(extend: int) -> int:
    if extend < 0:
        raise ValueError(f"extend: {extend} given, a number of steps from 0 on expected")
    return extend
