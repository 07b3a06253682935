"""The Fourier head: the logits of ordered bins from a smooth density on [-1, 1].

    r = W h + b,   a_l = r_l + i r_{N+1+l},   l = 0..N
    logits = log(y + ε),   y_j = p(b_j) / Σ_i p(b_i),   p(x) = |Σ_l a_l e^{iπlx}|² / (2 Σ_l |a_l|²)

In place of a linear layer before softmax where classes are bins of a quantity in their order, such
as prices, actions or angles. Few frequencies N force neighbouring bins to be alike. Gillman et al.,
"Fourier Head: Helping Large Language Models Learn Complex Probability Distributions", ICLR 2025,
arXiv 2410.22269; https://github.com/nate-gillman/fourier-head. The equations stand in
`heterodox.layers.fourier_series`.

Time O(d N + N m) a row, or O(d N + m log m) from 64 frequencies on; memory O(m + N).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from heterodox.autocast import without_autocast
from heterodox.layers.fourier_distribution import FourierDistribution
from heterodox.layers.fourier_series import (
    EPS,
    autocorrelation,
    check_bins,
    check_eps,
    fourier_cdf,
    fourier_density,
    fourier_logits,
    fourier_penalty,
    logits_of_waves,
    waves,
)
from heterodox.layers.pmf_smoothness import smoothness

__all__ = [
    "FourierDistribution",
    "FourierHead",
    "autocorrelation",
    "fourier_cdf",
    "fourier_density",
    "fourier_logits",
    "fourier_penalty",
    "smoothness",
]


class FourierHead(nn.Module):
    """In place of `nn.Linear(in_features, out_features)` before softmax over ordered bins.

    Class j is the j-th of m = out_features uniform bins of [-1, 1]. All is computed in float32, or
    float64, also under autocast; half-precision weights and inputs give half-precision logits.
    Numbers that are not finite give logits that are not, in their rows.

    Args:
        in_features: d, at least 1.
        out_features: m, at least 2.
        num_frequencies: N, at least 1. More fit finer shapes, less smoothly; beyond m / 2 they only
            alias. In the paper 12 for m = 50, and 64 to 550 for m = 4096: choose by validation on a
            grid that doubles.
        bias: whether the linear layer has one.
        regularization: γ, the factor of the penalty on high frequencies; 1e-6 in the paper, which
            has an effect only where the penalty is added to the loss.
        eps: ε, the least probability before normalisation; 1e-5 in the authors' code.
        weight_scale, bias_scale: what the initial weight and bias of `nn.Linear` are multiplied
            by; 1/100 in the authors' code, 1/1000 and 1/10 in their Chronos. The factor cancels in
            the density: it makes the penalty small, and steps large beside the weights.

    The only parameters and the whole state are those of `linear`, d -> 2 (N + 1).

    Raises:
        ValueError: a size, `regularization`, `eps` or a scale is out of range.

    Example:
        >>> head = FourierHead(16, 50, num_frequencies=12, regularization=1e-6)
        >>> logits, penalty = head(torch.randn(8, 16), return_penalty=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.arange(8)) + penalty
        >>> logits.shape
        torch.Size([8, 50])
    """

    basis: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_frequencies: int,
        bias: bool = True,
        regularization: float = 0.0,
        eps: float = EPS,
        weight_scale: float = 0.01,
        bias_scale: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("num_frequencies", num_frequencies)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: {size} given, a positive whole number expected")
        check_bins("out_features", out_features)
        check_eps(eps)
        if not 0 <= regularization < float("inf"):
            raise ValueError(
                f"regularization: {regularization} given, a number that is not negative expected"
            )
        for name, scale in (("weight_scale", weight_scale), ("bias_scale", bias_scale)):
            if not 0 < scale < float("inf"):
                raise ValueError(f"{name}: {scale} given, a positive number expected")
        self.in_features = in_features
        self.out_features = out_features
        self.num_frequencies = num_frequencies
        self.regularization = regularization
        self.eps = eps
        self.linear = nn.Linear(
            in_features, 2 * (num_frequencies + 1), bias=bias, device=device, dtype=dtype
        )
        with torch.no_grad():
            self.linear.weight.mul_(weight_scale)
            if bias:
                self.linear.bias.mul_(bias_scale)
        self._make_basis()

    def forward(
        self, input: Float[Tensor, "*batch in_features"], return_penalty: bool = False
    ) -> Float[Tensor, "*batch bins"] | tuple[Float[Tensor, "*batch bins"], Float[Tensor, ""]]:
        """Logits; with `return_penalty` also γ R, see `fourier_penalty`, to be added to the loss.

        Raises:
            ValueError: `input` has no last axis of `in_features`.
        """
        parameters = self._parameters_of(input)
        logits = logits_of_waves(parameters, self.basis, self.out_features, self.eps)
        logits = logits.to(torch.promote_types(input.dtype, self.linear.weight.dtype))
        if not return_penalty:
            return logits
        return logits, self.regularization * fourier_penalty(_coefficients(parameters))

    def coefficients(
        self, input: Float[Tensor, "*batch in_features"]
    ) -> Complex[Tensor, "*batch frequencies"]:
        """c_0..c_N of every row, not normalised: complex64, or complex128 in float64."""
        return _coefficients(self._parameters_of(input))

    def distribution(self, input: Float[Tensor, "*batch in_features"]) -> FourierDistribution:
        """The densities themselves, without bins."""
        return FourierDistribution(self.coefficients(input))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_frequencies={self.num_frequencies}"
        )

    def _parameters_of(self, input: Tensor) -> Float[Tensor, "*batch twice_frequencies"]:
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input: shape {tuple(input.shape)} given, (..., {self.in_features}) expected"
            )
        weight, bias, dtype = self.linear.weight, self.linear.bias, self.basis.dtype
        with without_autocast(input.device.type):
            # Not self.linear(input), which would round to half precision what log(y) enlarges.
            return F.linear(
                input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            )

    def _make_basis(self) -> None:
        weight = self.linear.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        basis = waves(self.num_frequencies, self.out_features, dtype, weight.device)
        self.register_buffer("basis", basis, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FourierHead":
        super()._apply(fn, recurse)
        self._make_basis()  # in the new precision, rather than cast to it from the old
        return self


def _coefficients(parameters: Tensor) -> Complex[Tensor, "*batch frequencies"]:
    return autocorrelation(torch.complex(*parameters.chunk(2, dim=-1)))
