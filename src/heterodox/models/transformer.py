"""The pre-norm transformer block with open slots, and a decoder for language made of it.

    x = x + LS1(Attn(LN1(x)))
    x = x + LS2(MLP(LN2(x)))

LS is LayerScale or the identity. With hybrid norm, x = x + LS1(LN(Attn(LN1(x)))).
Sizes and initialisation follow "Theory, Analysis, and Best Practices for Sigmoid Self-Attention"
(Ramapuram et al., 2024, arXiv 2409.04431): MLP of 4x the width with GELU, no biases in the
attention's projections, all weights from a truncated normal of standard deviation 0.02.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from heterodox.attention import ATTENTION, ATTENTION_LAYOUTS, POSITIONS
from heterodox.attention.sigmoid import LayerScale
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.layers import NORMS
from heterodox.models.incremental import IncrementalDecoder

AttentionFactory = Callable[..., nn.Module]
"""`(embed_dim, num_heads, *, sequence_length, position) -> Module`; see `attention.slot`."""

NormFactory = Callable[[int], nn.Module]

INIT_STD = 0.02


class Block(nn.Module):
    """One pre-norm transformer block.

    Args:
        dim: width of the residual stream.
        attention: called as `attention(x, attn_mask=..., is_causal=...)`, x (batch, length, dim).
        mlp: acts on each position; see `feed_forward`. None leaves its branch out.
        norm: builds a normalisation layer from `dim`.
        layer_scale: initial value of LayerScale on both branches; None leaves it out.
        hybrid_norm: one more norm on the attention's output, before the residual sum.

    Example:
        >>> from heterodox.attention import SoftmaxAttention
        >>> block = Block(16, SoftmaxAttention(16, 2), feed_forward(16), nn.LayerNorm)
        >>> block(torch.randn(2, 5, 16), is_causal=True).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp: nn.Module | None,
        norm: NormFactory,
        *,
        layer_scale: float | None = None,
        hybrid_norm: bool = False,
    ) -> None:
        super().__init__()
        scale = nn.Identity if layer_scale is None else partial(LayerScale, dim, layer_scale)
        self.attention_norm = norm(dim)
        self.attention = attention
        self.output_norm = norm(dim) if hybrid_norm else nn.Identity()
        self.attention_scale = scale()
        self.mlp = mlp
        if mlp is not None:
            self.mlp_norm = norm(dim)
            self.mlp_scale = scale()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length dim"]:
        attended = self.attention(self.attention_norm(x), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.attention_scale(self.output_norm(attended))
        return x if self.mlp is None else x + self.mlp_scale(self.mlp(self.mlp_norm(x)))


class SwiGLU(nn.Module):
    """W_3 (SiLU(W_1 x) ⊙ W_2 x) without biases, Shazeer, 2020, arXiv 2002.05202, equation 6.

    Args:
        dim: channels of input and output.
        hidden: channels in between; by default 8/3 `dim`, rounded, as many weights as an MLP of
            four times the width has.

    Example:
        >>> SwiGLU(96)(torch.randn(2, 5, 96)).shape
        torch.Size([2, 5, 96])
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = round(8 * dim / 3) if hidden is None else hidden
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def feed_forward(dim: int, expansion: int = 4) -> nn.Module:
    """The block's MLP: Linear, GELU, Linear, with biases."""
    return nn.Sequential(
        nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
    )


MLPS: dict[str, Callable[[int], nn.Module | None]] = {
    "gelu": feed_forward,
    "swiglu": SwiGLU,
    "none": lambda dim: None,
}


def initialise(model: nn.Module, std: float = INIT_STD) -> None:
    """Weights of linear and embedding layers from a normal truncated at two deviations, biases 0.

    Norms and LayerScale keep what they start with.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def attention_of_layers(
    slot: str | AttentionFactory | Sequence[str | AttentionFactory], layers: int
) -> list[AttentionFactory]:
    """The factory of each layer.

    Args:
        slot: a name of `ATTENTION` or a factory, for all layers; a name of `ATTENTION_LAYOUTS`,
            whose layers differ; or a name or factory for each layer.
        layers: how many.

    Raises:
        ValueError: an unknown name, or not one of the sequence for each layer.
    """
    if isinstance(slot, str) and slot in ATTENTION_LAYOUTS:
        slot = ATTENTION_LAYOUTS[slot](layers)
    if isinstance(slot, str) or callable(slot):
        slot = [slot] * layers
    if len(slot) != layers:
        raise ValueError(f"attention: {len(slot)} layers given, {layers} expected")
    return [ATTENTION[each] if isinstance(each, str) else each for each in slot]


def try_attention(
    factories: Sequence[AttentionFactory], width: int, heads: int, length: int, position: str
) -> None:
    """Raises the ValueError of a layer that cannot honour the position, or cannot be causal."""
    inside = position if position in ("rotary", "alibi") else None
    with torch.no_grad():
        for make_attention in set(factories):
            layer = make_attention(width, heads, sequence_length=length, position=inside)
            layer(torch.zeros(1, min(2, length), width), is_causal=True)


def norm_from(slot: str | NormFactory) -> NormFactory:
    """The factory behind a name of `NORMS`, or the factory itself."""
    return NORMS[slot] if isinstance(slot, str) else slot


def refuse_unnamed(**slots: Any) -> None:
    """A saved model is rebuilt from its arguments as JSON, which can hold a slot's name only."""
    for name, given in slots.items():
        names = [given] if isinstance(given, str) or callable(given) else given
        if not all(isinstance(each, str) for each in names):
            raise ValueError(
                f"{name}: {given!r} given, a name expected of every slot of a model to be saved"
            )


class DecoderLM(nn.Module, PyTorchModelHubMixin):
    """A causal language model with open slots.

    Args:
        vocabulary: number of tokens.
        width, layers, heads: of the transformer; heads must divide width.
        length: longest sequence in training. Sigmoid attention fixes its bias there, and learned
            positions end there; the others run at any length.
        attention: name in `ATTENTION` or `ATTENTION_LAYOUTS`, a factory of the kind in
            `heterodox.attention.slot`, or a name or factory for each layer.
        position: "rotary", "alibi", "learned" (a table of `length` vectors) or "none".
        norm: name in `NORMS`, or a factory `(dim)`.
        mlp: "gelu" (four times the width), "swiglu" (`SwiGLU`) or "none".
        hybrid_norm, layer_scale: see `Block`.
        init_std: see `initialise`.
        tie_embeddings: whether the read-out shares the token embedding's weight, as GPT-2 does.

    `save_pretrained` and `from_pretrained` work as in Hugging Face, for models whose slots are
    given by name.

    Raises:
        ValueError: unknown names, sizes that are not positive, heads that do not divide width, or
            an odd head size with rotary positions.

    Example:
        >>> model = DecoderLM(65, width=32, layers=2, heads=2, length=16, attention="sigmoid")
        >>> model(torch.randint(65, (4, 16))).shape
        torch.Size([4, 16, 65])
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        length: int,
        *,
        attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
        position: str = "rotary",
        norm: str | NormFactory = "layer",
        mlp: str = "gelu",
        hybrid_norm: bool = False,
        layer_scale: float | None = None,
        init_std: float = INIT_STD,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        check_decoder(
            vocabulary=vocabulary,
            width=width,
            layers=layers,
            heads=heads,
            length=length,
            position=position,
            mlp=mlp,
        )
        factories, make_norm = attention_of_layers(attention, layers), norm_from(norm)
        self.length = length
        self.slots = {"attention": attention, "norm": norm}
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width) if position == "learned" else None
        inside = position if position in ("rotary", "alibi") else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                make_attention(width, heads, sequence_length=length, position=inside),
                MLPS[mlp](width),
                make_norm,
                layer_scale=layer_scale,
                hybrid_norm=hybrid_norm,
            )
            for make_attention in factories
        )
        self.norm = make_norm(width)
        self.readout = nn.Linear(width, vocabulary, bias=False)
        initialise(self, init_std)
        if tie_embeddings:
            self.readout.weight = self.embedding.weight

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        x = self.embedding(tokens)
        if self.positions is not None:
            if tokens.shape[1] > self.length:
                raise ValueError(
                    f"tokens: length {tokens.shape[1]} given, at most {self.length} expected: "
                    "learned positions end at the training length"
                )
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=True)
        return self.readout(self.norm(x))

    @torch.no_grad()
    def attention_norms(self, tokens: Int[Tensor, "batch length"]) -> list[float]:
        """Mean Euclidean norm, over all positions, of each layer's attention output.

        Taken before hybrid norm and LayerScale. A value far above softmax's at initialisation is
        what the sigmoid-attention paper names as the cause of failed training (section 3).
        """
        norms: list[float] = []

        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            norms.append(output.float().norm(dim=-1).mean().item())

        attentions: Any = [block.attention for block in self.blocks]
        handles = [attention.register_forward_hook(note) for attention in attentions]
        try:
            self(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return norms

    @property
    def has_cache(self) -> bool:
        """Whether `incremental` works: every layer is softmax attention."""
        return all(isinstance(block.attention, SoftmaxAttention) for block in self.blocks)

    def incremental(self) -> IncrementalDecoder:
        """What reads a sequence piece by piece with this model, each token once.

        Raises:
            ValueError: a layer is no softmax attention and keeps no keys and values.
        """
        return IncrementalDecoder(self)

    def _save_pretrained(self, save_directory: Path) -> None:
        refuse_unnamed(**self.slots)
        super()._save_pretrained(save_directory)


def check_decoder(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    length: int,
    position: str,
    mlp: str = "gelu",
) -> None:
    """Raises the ValueErrors of `DecoderLM` for its sizes."""
    sizes = {"vocabulary": vocabulary, "width": width, "layers": layers}
    for name, size in {**sizes, "heads": heads, "length": length}.items():
        if size < 1:
            raise ValueError(f"{name}: {size} given, a positive number expected")
    if width % heads:
        raise ValueError(f"heads: {heads} given, a divisor of the width {width} expected")
    if mlp not in MLPS:
        raise ValueError(f"mlp: {mlp!r} given, one of {', '.join(MLPS)} expected")
    if position not in POSITIONS:
        raise ValueError(f"position: {position!r} given, one of {', '.join(POSITIONS)} expected")
    if position == "rotary" and (width // heads) % 2:
        raise ValueError(
            f"heads: {heads} given, an even width / heads expected with rotary positions, "
            f"{width} / {heads} is {width // heads}"
        )


def token_losses(
    model: nn.Module,
    tokens: Int[Tensor, "batch length"],
    targets: Int[Tensor, "batch length"],
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> Float[Tensor, ""]:
    """The mean of `loss` over all positions of all sequences."""
    logits = model(tokens)
    return loss(logits.flatten(0, 1), targets.flatten())
