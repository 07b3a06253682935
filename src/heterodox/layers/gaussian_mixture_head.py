"""A head whose density is a mixture of K Gaussians, which the Fourier head is compared with.

    logits = log(y + ε),   y_j = p(b_j) / Σ_i p(b_i),   p(x) = (1/K) Σ_k N(x; tanh(w_k · h), σ_k²)

The parametric baseline of the toy problems of Gillman et al., ICLR 2025, arXiv 2410.22269: equal
weights, means from the input, one σ_k for all inputs. Unlike their code, which adds ε to p itself,
it adds ε to y, as the Fourier head does. Time and memory O(K m) a row.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.autocast import without_autocast
from heterodox.layers.fourier_series import EPS, bin_centres, check_bins, check_eps


class GaussianMixtureHead(nn.Module):
    """In place of `nn.Linear(in_features, out_features)` before softmax over ordered bins.

    Half precision is computed in float32.

    Args:
        in_features: d.
        out_features: m uniform bins of [-1, 1], at least 2.
        components: K; 2 in the paper.
        bias: whether the means' linear layer has one.
        eps: ε, the least probability before normalisation.

    Each σ starts at the width of a bin, as in the authors' code.

    Raises:
        ValueError: a size or `eps` is out of range.

    Example:
        >>> GaussianMixtureHead(16, 50)(torch.randn(8, 16)).shape
        torch.Size([8, 50])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        components: int = 2,
        bias: bool = True,
        eps: float = EPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("components", components)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: {size} given, a positive whole number expected")
        check_bins("out_features", out_features)
        check_eps(eps)
        self.in_features = in_features
        self.out_features = out_features
        self.eps = eps
        self.means = nn.Linear(in_features, components, bias=bias, device=device, dtype=dtype)
        width = torch.full((components,), math.log(math.expm1(2 / out_features)))
        self.widths = nn.Parameter(width.to(self.means.weight))

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch bins"]:
        """Logits.

        Raises:
            ValueError: `input` has no last axis of `in_features`.
        """
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input: shape {tuple(input.shape)} given, (..., {self.in_features}) expected"
            )
        dtype = torch.promote_types(self.widths.dtype, torch.float32)
        weight, bias = self.means.weight.to(dtype), self.means.bias
        with without_autocast(input.device.type):
            means = F.linear(input.to(dtype), weight, None if bias is None else bias.to(dtype))
        deviation = F.softplus(self.widths.to(dtype))[:, None]
        centres = bin_centres(self.out_features, dtype, input.device)
        z = (centres - means.tanh()[..., None]) / deviation
        log_density = torch.logsumexp(-0.5 * z.square() - deviation.log(), dim=-2)
        y = log_density.softmax(-1)
        return (y + self.eps).log().to(torch.promote_types(input.dtype, self.widths.dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
