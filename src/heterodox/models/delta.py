"""A language model of DeltaNet layers, some of which may be softmax attention.

    x = x + DeltaNet(RMSNorm(x)),   x = x + SwiGLU(RMSNorm(x))

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS
2024, arXiv 2406.06484, sections 3.3 and 4. No positions, but for rotary embedding in the softmax
layers of a hybrid; all weights from a normal of standard deviation 0.02, as in the authors' code.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from heterodox.attention.softmax import SoftmaxAttention
from heterodox.layers.short_convolution import ShortConvolution
from heterodox.models.transformer import INIT_STD, AttentionFactory, DecoderLM


def delta_net_language_model(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    length: int,
    *,
    hybrid: Sequence[int] = (),
    window: int | None = None,
) -> DecoderLM:
    """A decoder of `DeltaNet` and SwiGLU blocks, with softmax attention in the layers of `hybrid`.

    The paper's models of 340 million and 1.3 billion parameters have 24 layers of width 1024 with 8
    heads, and of width 2048 with 16 heads. Its hybrids have softmax attention in every other
    layer, over a window of 2048, or without a window in two: the second, and the one after the
    middle.

    Args:
        vocabulary: number of tokens.
        width, layers, heads: of the decoder; heads divide the width.
        length: longest sequence in training; the model runs at any length.
        hybrid: which layers, counted from 0, are softmax attention with rotary positions.
        window: how many keys their queries see; by default all up to their own. A model with a
            window has no name for its layers and cannot be saved by `save_pretrained`.

    Raises:
        ValueError: sizes do not fit, or a layer of `hybrid` does not exist.

    Example:
        >>> import torch
        >>> model = delta_net_language_model(65, 32, layers=4, heads=2, length=16, hybrid=[1, 3])
        >>> model(torch.randint(65, (2, 16))).shape
        torch.Size([2, 16, 65])
    """
    if len(set(hybrid) & set(range(layers))) < len(hybrid):
        raise ValueError(
            f"hybrid: {list(hybrid)} given, different layers between 0 and {layers - 1} expected"
        )
    if window is not None and window < 1:
        raise ValueError(f"window: {window} given, a positive number or None expected")
    softmax: str | AttentionFactory = "softmax" if window is None else partial(_windowed, window)
    model = DecoderLM(
        vocabulary,
        width,
        layers,
        heads,
        length,
        attention=[softmax if layer in hybrid else "deltanet" for layer in range(layers)],
        position="rotary" if hybrid else "none",
        norm="rms",
        mlp="swiglu",
        tie_embeddings=False,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | ShortConvolution):
            nn.init.normal_(module.weight, std=INIT_STD)
    return model


def _windowed(
    window: int,
    embed_dim: int,
    num_heads: int,
    *,
    sequence_length: int,
    position: str | None = None,
) -> nn.Module:
    return SoftmaxAttention(embed_dim, num_heads, position=position, window=window)
