"""LoRA: a frozen linear layer plus a trained update of low rank.

    y = x Wᵀ + b + α/r · (x Aᵀ) Bᵀ,   A (r, in),   B (out, r)

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685; the layer
that arXiv 2406.03136 analyses. Time O(r (in + out)) a row above that of the layer.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A linear layer whose weight stays, with an adapter that is trained.

    A starts as `nn.Linear` does, B with zeros, so that the layer starts as `base`. With the same
    weights it gives the numbers of peft's `lora.Linear`, whose `lora_A` and `lora_B` are `a` and
    `b`.

    Args:
        base: the layer, which becomes part of this one and is frozen: its parameters no longer
            require gradients.
        rank: r, at least 1.
        alpha: α; `rank` by default, which leaves the update as it is.
        dropout: probability with which an input of the adapter is dropped in training.

    Raises:
        ValueError: `base` is no `nn.Linear`, `rank` is below 1, `alpha` is not finite, or `dropout`
            is not in [0, 1).

    Example:
        >>> base = nn.Linear(16, 8)
        >>> layer = LoRALinear(base, rank=2)
        >>> x = torch.randn(3, 16)
        >>> torch.equal(layer(x), base(x))
        True
        >>> [name for name, p in layer.named_parameters() if p.requires_grad]
        ['a', 'b']
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: int | float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise ValueError(f"base: {type(base).__name__} given, nn.Linear expected")
        if rank < 1:
            raise ValueError(f"rank: {rank} given, at least 1 expected")
        if alpha is not None and not math.isfinite(alpha):
            raise ValueError(f"alpha: {alpha} given, a finite number expected")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: {dropout} given, a number in [0, 1) expected")
        self.base = base.requires_grad_(False)
        self.alpha = float(rank if alpha is None else alpha)
        self.dropout = dropout
        self.a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out"]:
        if x.shape[-1] != self.base.in_features:
            raise ValueError(
                f"x: shape {tuple(x.shape)} given, (..., {self.base.in_features}) expected"
            )
        dropped = F.dropout(x, self.dropout, self.training)
        update = F.linear(F.linear(dropped, self.a), self.b)
        return self.base(x) + self.alpha / self.rank * update

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A new `nn.Linear` that computes the same in one product.

        Example:
            >>> layer = LoRALinear(nn.Linear(16, 8), rank=2, alpha=4)
            >>> layer.b.data.normal_(generator=torch.Generator().manual_seed(0)).shape
            torch.Size([8, 2])
            >>> x = torch.randn(3, 16)
            >>> torch.allclose(layer.merge()(x), layer(x), atol=1e-5)
            True
        """
        merged = nn.Linear(
            self.base.in_features,
            self.base.out_features,
            bias=self.base.bias is not None,
            device=self.base.weight.device,
            dtype=self.base.weight.dtype,
        )
        merged.weight.copy_(self.base.weight + self.alpha / self.rank * self.b @ self.a)
        if self.base.bias is not None:
            merged.bias.copy_(self.base.bias)
        return merged

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout}"
