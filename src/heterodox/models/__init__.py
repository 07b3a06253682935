"""Whole architectures, built from components with open slots."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.models.transformer import Block, DecoderLM
    from heterodox.models.vision import MLP, ConvNet, ViT

_EXPORTS = {
    "Block": "heterodox.models.transformer",
    "ConvNet": "heterodox.models.vision",
    "DecoderLM": "heterodox.models.transformer",
    "MLP": "heterodox.models.vision",
    "ViT": "heterodox.models.vision",
}

__all__ = ["MLP", "Block", "ConvNet", "DecoderLM", "ViT"]

__getattr__ = lazy_exports(__name__, _EXPORTS)
