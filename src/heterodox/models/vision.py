"""Small networks for images: a vision transformer, a convolutional network and an MLP."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.models.transformer import (
    INIT_STD,
    AttentionFactory,
    Block,
    NormFactory,
    attention_of_layers,
    feed_forward,
    initialise,
    norm_from,
    refuse_unnamed,
)


class ViT(nn.Module, PyTorchModelHubMixin):
    """A vision transformer: patches, learned positions, pre-norm blocks, mean of the tokens.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929, with the mean over
    all tokens in place of a class token, as in Beyer et al., 2022, arXiv 2205.01580.

    Args:
        image_shape: (channels, height, width); `patch` must divide height and width.
        patch: side of a patch in pixels.
        classes: number of classes.
        width, layers, heads: of the transformer; heads must divide width.
        attention: name in `ATTENTION`, or a factory of the kind in `heterodox.attention.slot`.
        norm: name in `NORMS`, or a factory `(dim)`.
        hybrid_norm, layer_scale: see `heterodox.models.Block`.

    Raises:
        ValueError: unknown names, sizes that are not positive or do not divide each other.

    Example:
        >>> model = ViT((1, 28, 28), 4, 10, width=32, layers=2, heads=2, attention="sigmoid")
        >>> model(torch.randn(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch: int,
        classes: int,
        width: int,
        layers: int,
        heads: int,
        *,
        attention: str | AttentionFactory = "softmax",
        norm: str | NormFactory = "layer",
        hybrid_norm: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        channels, height, image_width = _checked(image_shape, classes)
        for name, size in {
            "patch": patch,
            "width": width,
            "layers": layers,
            "heads": heads,
        }.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        if height % patch or image_width % patch:
            raise ValueError(
                f"patch: {patch} given, a divisor of the image's {height} x {image_width} expected"
            )
        if width % heads:
            raise ValueError(f"heads: {heads} given, a divisor of the width {width} expected")
        factories, make_norm = attention_of_layers(attention, layers), norm_from(norm)
        tokens = (height // patch) * (image_width // patch)
        self.image_shape = channels, height, image_width
        self.patch = patch
        self.slots = {"attention": attention, "norm": norm}
        self.embedding = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(torch.empty(tokens, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                make_attention(width, heads, sequence_length=tokens, position=None),
                feed_forward(width),
                make_norm,
                layer_scale=layer_scale,
                hybrid_norm=hybrid_norm,
            )
            for make_attention in factories
        )
        self.norm = make_norm(width)
        self.readout = nn.Linear(width, classes)
        initialise(self)
        nn.init.trunc_normal_(self.positions, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        _check_images(images, self.image_shape)
        x = self.embedding(patches(images, self.patch)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x).mean(dim=1))

    def _save_pretrained(self, save_directory: Path) -> None:
        refuse_unnamed(**self.slots)
        super()._save_pretrained(save_directory)


def patches(
    images: Float[Tensor, "batch channels height width"], side: int
) -> Float[Tensor, "batch tokens pixels"]:
    """Square patches in reading order, each flattened as (channels, side, side).

    Example:
        >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
        tensor([2., 3., 6., 7.])
    """
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class ConvNet(nn.Module):
    """Stages of two 3x3 convolutions with batch norm and ReLU, each stage halving the image by max
    pooling, then the mean over pixels and a linear layer: a small VGG.

    Args:
        image_shape: (channels, height, width); too small an image is no longer halved.
        classes: number of classes.
        widths: channels of each stage.

    Raises:
        ValueError: a size is not positive, or there is no stage.

    Example:
        >>> ConvNet((3, 32, 32), 10)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, image_shape: Sequence[int], classes: int, *, widths: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        channels, height, width = _checked(image_shape, classes)
        self.channels = channels
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: {tuple(widths)} given, positive numbers expected")
        layers: list[nn.Module] = []
        for stage in widths:
            for inputs in (channels, stage):
                convolution = nn.Conv2d(inputs, stage, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(stage), nn.ReLU()]
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            channels = stage
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(channels, classes)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        _check_images(images, (self.channels, *images.shape[2:]))
        return self.readout(self.features(images).mean(dim=(2, 3)))


class MLP(nn.Module):
    """Linear layers with ReLU between them, on flattened images.

    Args:
        image_shape: (channels, height, width).
        classes: number of classes.
        widths: of the hidden layers; none makes it linear.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> MLP((1, 8, 8), 10)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, image_shape: Sequence[int], classes: int, *, widths: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__()
        self.image_shape = _checked(image_shape, classes)
        if any(width < 1 for width in widths):
            raise ValueError(f"widths: {tuple(widths)} given, positive numbers expected")
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(self.image_shape)
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        _check_images(images, self.image_shape)
        return self.layers(images)


def _checked(image_shape: Sequence[int], classes: int) -> tuple[int, int, int]:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape: {tuple(image_shape)} given, positive (channels, height, width) expected"
        )
    if classes < 1:
        raise ValueError(f"classes: {classes} given, a positive number expected")
    channels, height, width = image_shape
    return channels, height, width


def _check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or images.shape[1:] != image_shape:
        expected = ", ".join(map(str, image_shape))
        raise ValueError(f"images: shape {tuple(images.shape)} given, (batch, {expected}) expected")
