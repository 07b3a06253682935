"""SOFT and SOFT++: a pyramid of softmax-free attention for images.

    x = LN(x + drop(attention(x))),   x = LN(x + drop(MLP(x)))      (all stages but the last)

Every stage begins with an overlapping convolution that makes the grid coarser, and a table of
positions. The last stage, whose grid is small, is a pre-norm transformer with softmax attention and
a class token, from which the classes are read. Lu et al., "Softmax-free Linear Transformers", IJCV
2024, arXiv 2207.03341; what the paper leaves open is taken from the authors' code: batch norm and
ReLU after the convolutions, MLPs of 4 times the width, a GELU approximated by tanh, initial weights
from a truncated normal. Their code has three small convolutions in place of the first.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_dropout
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.attention.softmax_free import SoftmaxFreeAttention
from heterodox.models.transformer import INIT_STD, Block, feed_forward, initialise

# Kernel sizes of the patch embeddings: of the image, and of the later stages, which halve the grid.
FIRST_KERNEL, LATER_KERNEL, LATER_STRIDE = 7, 3, 2


class PostNormBlock(nn.Module):
    """A post-norm transformer block on a grid of tokens: the one of SOFT.

    Args:
        dim: width of the tokens.
        attention: called as `attention(x, height, width)`, x (batch, height * width, dim).
        dropout: probability with which a number of a branch's output is dropped in training.

    Raises:
        ValueError: `dropout` is not in [0, 1).

    Example:
        >>> block = PostNormBlock(32, SoftmaxFreeAttention(32, 2, ratio=2))
        >>> block(torch.randn(3, 24, 32), height=4, width=6).shape
        torch.Size([3, 24, 32])
    """

    def __init__(self, dim: int, attention: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        check_dropout("dropout", dropout)
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.mlp_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length dim"], height: int, width: int
    ) -> Float[Tensor, "batch length dim"]:
        x = self.attention_norm(x + self.dropout(self.attention(x, height, width)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class PatchEmbedding(nn.Module):
    """A convolution whose patches overlap, and learned positions, interpolated to any grid.

    Args:
        channels, dim: channels before and after.
        kernel, stride: of the convolution; `kernel` is odd, and pads by half of itself.
        side: of the grid that the positions are made for.

    Example:
        >>> embedding = PatchEmbedding(3, 16, kernel=7, stride=4, side=8)
        >>> embedding(torch.randn(2, 3, 32, 48)).shape
        torch.Size([2, 16, 8, 12])
    """

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, side: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(dim)
        self.positions = nn.Parameter(torch.empty(1, dim, side, side))
        nn.init.trunc_normal_(self.positions, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        grid = F.relu(self.norm(self.convolution(images)))
        return grid + interpolated(self.positions, grid.shape[2], grid.shape[3])


def interpolated(
    positions: Float[Tensor, "1 dim side side"], height: int, width: int
) -> Float[Tensor, "1 dim height width"]:
    """A table of positions on another grid, bilinearly; the table itself on its own grid.

    Example:
        >>> interpolated(torch.ones(1, 4, 7, 7), 14, 10).shape
        torch.Size([1, 4, 14, 10])
    """
    if positions.shape[2:] == (height, width):
        return positions
    return F.interpolate(positions, size=(height, width), mode="bilinear", align_corners=False)


class SoftVisionTransformer(nn.Module, PyTorchModelHubMixin):
    """SOFT (`normalize=False`) or SOFT++ as an image classifier.

    Args:
        image_size: side of the training images, which fixes the tables of positions; other images,
            square or not, are taken if they fit all grids.
        patch_size: stride of the first convolution; 4 in the paper.
        widths, depths, heads: channels, blocks and heads of each stage, the last one with softmax.
        ratios: side of the patches behind a bottleneck token, for each stage but the last; 8, 4, 2
            in the paper. A last ratio of 1, for the softmax stage, may be written too, as in the
            authors' code.
        num_classes: number of classes.
        normalize: SOFT++ in all stages but the last.
        channels: of an image.
        conv_sizes: of the local terms of the stages; 0 leaves one out. None: 9, 5 and 3, and 3 in
            further stages, as in the authors' code.
        dropout: of the last softmax-free block's branches; it rises linearly from 0 in the first.
        iterations, ridge, inverse: see `heterodox.attention.softmax_free_attention`.

    `save_pretrained` and `from_pretrained` work as in Hugging Face.

    Raises:
        ValueError: sizes are not positive, differ in number, or do not fit each other.

    Example:
        >>> model = SoftVisionTransformer(32, 4, (16, 32), (1, 1), (2, 4), (2,), 10)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        ratios: Sequence[int],
        num_classes: int,
        normalize: bool = True,
        *,
        channels: int = 3,
        conv_sizes: Sequence[int] | None = None,
        dropout: float = 0.0,
        iterations: int = 20,
        ridge: float = 0.01,
        inverse: str = "newton",
    ) -> None:
        super().__init__()
        soft_stages = len(widths) - 1
        if len(ratios) == len(widths) and ratios and ratios[-1] == 1:
            ratios = ratios[:-1]
        if conv_sizes is None:
            conv_sizes = ((9, 5) + (3,) * soft_stages)[:soft_stages]
        _check_stages(widths, depths, heads, ratios, conv_sizes)
        for name, size in {
            "image_size": image_size,
            "patch_size": patch_size,
            "num_classes": num_classes,
            "channels": channels,
        }.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        check_dropout("dropout", dropout)
        self.channels = channels
        self.strides = (patch_size, *(LATER_STRIDE for _ in range(soft_stages)))
        self.ratios = tuple(ratios)
        self._check_size("image_size", image_size)

        self.embeddings = nn.ModuleList()
        side, inputs = image_size, channels
        for stride, width in zip(self.strides, widths, strict=True):
            side //= stride
            kernel = LATER_KERNEL if self.embeddings else FIRST_KERNEL
            self.embeddings.append(PatchEmbedding(inputs, width, kernel, stride, side))
            inputs = width

        steps = max(1, sum(depths[:-1]) - 1)
        rates = (dropout * step / steps for step in itertools.count())
        self.stages = nn.ModuleList()
        for width, depth, number, ratio, conv_size in zip(
            widths[:-1], depths[:-1], heads[:-1], ratios, conv_sizes, strict=True
        ):
            make = partial(
                SoftmaxFreeAttention,
                width,
                number,
                ratio,
                conv_size=conv_size,
                iterations=iterations,
                ridge=ridge,
                normalize=normalize,
                inverse=inverse,
            )
            blocks = [PostNormBlock(width, make(), next(rates)) for _ in range(depth)]
            self.stages.append(nn.ModuleList(blocks))

        width = widths[-1]
        make_norm = partial(nn.LayerNorm, eps=1e-6)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.softmax_stage = nn.ModuleList(
            Block(
                width,
                SoftmaxAttention(width, heads[-1], bias=True),
                feed_forward(width),
                make_norm,
            )
            for _ in range(depths[-1])
        )
        self.norm = make_norm(width)
        self.head = nn.Linear(width, num_classes)
        initialise(self)
        nn.init.trunc_normal_(self.class_token, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Raises:
        ValueError: `images` have other channels, or a size that does not fit all grids.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images: shape {tuple(images.shape)} given, (batch, {self.channels}, height, "
                "width) expected"
            )
        for side in images.shape[2:]:
            self._check_size("images", side)
        grid = images
        for embedding, blocks in zip(self.embeddings, self.stages, strict=False):
            grid = embedding(grid)
            height, width = grid.shape[2:]
            tokens = grid.flatten(2).mT
            for block in cast(nn.ModuleList, blocks):
                tokens = block(tokens, height, width)
            grid = tokens.mT.unflatten(2, (height, width))
        tokens = self.embeddings[-1](grid).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.softmax_stage:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))

    def _check_size(self, name: str, size: int) -> None:
        """Every stride must divide what is left of a side, and every ratio its grid."""
        unit, stride_so_far = math.prod(self.strides), 1
        for stride, ratio in zip(self.strides, self.ratios, strict=False):
            stride_so_far *= stride
            unit = math.lcm(unit, stride_so_far * ratio)
        if size < unit or size % unit:
            raise ValueError(
                f"{name}: side {size} given, a multiple of {unit} expected, so that strides and "
                "ratios divide it"
            )


def _check_stages(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    ratios: Sequence[int],
    conv_sizes: Sequence[int],
) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            f"widths: {tuple(widths)} given, positive numbers for at least two stages expected"
        )
    for name, given, stages in (
        ("depths", depths, len(widths)),
        ("heads", heads, len(widths)),
        ("ratios", ratios, len(widths) - 1),
        ("conv_sizes", conv_sizes, len(widths) - 1),
    ):
        lowest = 0 if name == "conv_sizes" else 1
        if len(given) != stages or min(given) < lowest:
            kind = "numbers that are not negative" if lowest == 0 else "positive numbers"
            raise ValueError(f"{name}: {tuple(given)} given, {stages} {kind} expected")
    if any(width % number for width, number in zip(widths, heads, strict=True)):
        raise ValueError(
            f"heads: {tuple(heads)} given, divisors of widths = {tuple(widths)} expected"
        )


def _paper_model(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    num_classes: int,
    normalize: bool,
    image_size: int,
) -> SoftVisionTransformer:
    return SoftVisionTransformer(
        image_size, 4, widths, depths, heads, (8, 4, 2), num_classes, normalize
    )


def soft_tiny(
    num_classes: int = 1000, *, normalize: bool = True, image_size: int = 224
) -> SoftVisionTransformer:
    """SOFT++-Tiny, or SOFT-Tiny: 13 million parameters.

    Example:
        >>> model = soft_tiny(10, image_size=32)
        >>> round(sum(p.numel() for p in model.parameters()) / 1e6)
        12
    """
    widths, heads = (64, 128, 320, 512), (2, 4, 10, 16)
    return _paper_model(widths, (1, 2, 3, 2), heads, num_classes, normalize, image_size)


def soft_small(
    num_classes: int = 1000, *, normalize: bool = True, image_size: int = 224
) -> SoftVisionTransformer:
    """SOFT++-Small, or SOFT-Small: 39 million parameters with the depths of the authors' code,
    where the paper reports 24."""
    widths, heads = (64, 128, 320, 512), (2, 4, 10, 16)
    return _paper_model(widths, (1, 3, 20, 4), heads, num_classes, normalize, image_size)


def soft_medium(
    num_classes: int = 1000, *, normalize: bool = True, image_size: int = 224
) -> SoftVisionTransformer:
    """SOFT++-Medium, or SOFT-Medium: 46 million parameters."""
    widths, heads = (64, 128, 288, 512), (2, 4, 9, 16)
    return _paper_model(widths, (1, 3, 29, 5), heads, num_classes, normalize, image_size)


def soft_large(
    num_classes: int = 1000, *, normalize: bool = True, image_size: int = 224
) -> SoftVisionTransformer:
    """SOFT++-Large, or SOFT-Large: 65 million parameters."""
    widths, heads = (64, 128, 320, 512), (2, 4, 10, 16)
    return _paper_model(widths, (1, 3, 40, 5), heads, num_classes, normalize, image_size)


def soft_huge(
    num_classes: int = 1000, *, normalize: bool = True, image_size: int = 224
) -> SoftVisionTransformer:
    """SOFT++-Huge, or SOFT-Huge: 87 million parameters."""
    widths, heads = (64, 128, 352, 512), (2, 4, 11, 16)
    return _paper_model(widths, (1, 5, 49, 5), heads, num_classes, normalize, image_size)
