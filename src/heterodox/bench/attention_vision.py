"""Attention for images: layers on a square grid of tokens, at growing resolutions.

Layers with their projections are compared, because the peers are layers. All of them compress the
grid to 49 tokens where they compress it to tokens at all, and none has a local term.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from heterodox.attention.low_rank_baselines import MixedAttention, SoftmaxMix
from heterodox.attention.softmax_free import SoftmaxFreeAttention
from heterodox.bench.attention import dense_softmax
from heterodox.bench.workload import Case, Target, Workload
from heterodox.training.seeding import seeded

BATCH, HEADS, HEAD_DIM = 1, 2, 32
WIDTH = HEADS * HEAD_DIM
TOKENS_SIDE = 7
TOKENS = TOKENS_SIDE**2
FEATURES = 64

TARGETS = (
    Target("soft", "time", "3136", "forward and backward", 1 / 6),
    Target("soft++", "time", "3136", "forward and backward", 1 / 6),
    Target("soft-cholesky", "time", "3136", "forward and backward", 1 / 6),
)

Layer = Callable[[Tensor], Tensor]


def workload() -> Workload:
    return Workload(
        facts={
            "batch": str(BATCH),
            "heads": str(HEADS),
            "head_dim": str(HEAD_DIM),
            "bottleneck tokens, landmarks or projected keys": str(TOKENS),
            "random features": str(FEATURES),
            "dtype": "float32 on a CPU, bfloat16 on a GPU",
            "size": "tokens of a square grid",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward, and forward and backward, on every grid.

    Raises:
        ValueError: a size is not the square of a multiple of 7, so that 49 patches cover it.
    """
    for size in sizes:
        side = math.isqrt(int(size)) if size.isdecimal() else 0
        if side < 1 or side % TOKENS_SIDE or side**2 != int(size):
            raise ValueError(
                f"sizes: {size!r} given, the square of a multiple of {TOKENS_SIDE} such as 3136 "
                "expected"
            )
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(build: Callable[[int], Layer], case: Case, device: str) -> Callable[[], object]:
    """A call of the layer that `build` makes for a grid of this side, on standard normal tokens.

    The backward pass is that to the tokens and to all weights.
    """
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    side = math.isqrt(int(case.size))
    generator = torch.Generator().manual_seed(0)
    x, upstream = (
        torch.randn(BATCH, side**2, WIDTH, generator=generator).to(device, dtype) for _ in range(2)
    )
    with seeded(0):
        layer = build(side)
    weights: list[Tensor] = []
    if isinstance(layer, nn.Module):
        layer.to(device, dtype)
        weights = [p for p in layer.parameters() if p.requires_grad]

    @torch.no_grad()
    def forward() -> object:
        return layer(x)

    inputs = [x.requires_grad_(), *weights]

    def forward_and_backward() -> object:
        return torch.autograd.grad(layer(x), inputs, upstream)

    return forward if case.passes == "forward" else forward_and_backward


class OnGrid(nn.Module):
    """A layer that is called with its grid, which is square and known."""

    def __init__(self, layer: nn.Module, side: int) -> None:
        super().__init__()
        self.layer = layer
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.side, self.side)


class DenseMix(nn.Module):
    """Softmax attention that stores all weights."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, height: int, width: int) -> Tensor:
        return dense_softmax(query, key, value)


def softmax(side: int) -> nn.Module:
    """Torch's scaled_dot_product_attention."""
    return OnGrid(MixedAttention(WIDTH, HEADS, SoftmaxMix()), side)


def dense(side: int) -> nn.Module:
    """Softmax attention in three lines of torch, with all weights stored."""
    return OnGrid(MixedAttention(WIDTH, HEADS, DenseMix()), side)


def soft(side: int, *, normalize: bool = False, inverse: str = "newton") -> nn.Module:
    ratio = side // TOKENS_SIDE
    layer = SoftmaxFreeAttention(WIDTH, HEADS, ratio, normalize=normalize, inverse=inverse)
    return OnGrid(layer, side)


soft_plus_plus = partial(soft, normalize=True)
soft_cholesky = partial(soft, inverse="cholesky")


def nystrom_attention(side: int, *, residual: bool = False) -> nn.Module:
    """nystrom-attention's layer; as it is by default, it has a convolution of its values."""
    from nystrom_attention import NystromAttention

    return NystromAttention(
        WIDTH, dim_head=HEAD_DIM, heads=HEADS, num_landmarks=TOKENS, residual=residual
    )


nystrom_attention_residual = partial(nystrom_attention, residual=True)


def performer_pytorch(side: int) -> nn.Module:
    """performer-pytorch's layer with softmax features."""
    from performer_pytorch import SelfAttention

    return SelfAttention(WIDTH, heads=HEADS, dim_head=HEAD_DIM, nb_features=FEATURES)


def linformer(side: int) -> nn.Module:
    """linformer's layer."""
    from linformer import LinformerSelfAttention

    return LinformerSelfAttention(WIDTH, seq_len=side**2, k=TOKENS, heads=HEADS)
