"""Whole architectures, built from components with open slots."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.models.bottleneck import BottleneckMLP
    from heterodox.models.delta import delta_net_language_model
    from heterodox.models.soft import SoftVisionTransformer
    from heterodox.models.transformer import Block, DecoderLM, SwiGLU
    from heterodox.models.vision import MLP, ConvNet, ViT

_EXPORTS = {
    "BottleneckMLP": "heterodox.models.bottleneck",
    "Block": "heterodox.models.transformer",
    "ConvNet": "heterodox.models.vision",
    "DecoderLM": "heterodox.models.transformer",
    "MLP": "heterodox.models.vision",
    "SoftVisionTransformer": "heterodox.models.soft",
    "SwiGLU": "heterodox.models.transformer",
    "ViT": "heterodox.models.vision",
    "delta_net_language_model": "heterodox.models.delta",
}

__all__ = [
    "MLP",
    "Block",
    "BottleneckMLP",
    "ConvNet",
    "DecoderLM",
    "SoftVisionTransformer",
    "SwiGLU",
    "ViT",
    "delta_net_language_model",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
