"""A head of a trained model beside the SVM of its own selection.

    logits_t = x_tᵀ W z + (the same for all t),   W = W_kᵀ W_q · scale,   z = x_p

for the query at position p. A query's bias b_q adds x_tᵀ W_kᵀ b_q: with 1 appended to z it is one
more column of W. A key's bias changes no softmax. What is added or turned by position (rotary,
ALiBi), and normalised queries or keys, leave no such W: these heads are refused.

The question is that of Tarzanagh et al., 2023, arXiv 2308.16898: how near is W to the direction of
the SVM that separates the tokens which the head selects?
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from heterodox.probes.attention_margins import (
    AttentionSVM,
    Norm,
    direction_correlation,
    solve_attention_svm,
)

# Names of the projections, and of the one of the output, in the layers that are known.
LAYOUTS: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("qkv",), "proj"),  # this library, timm
    (("c_attn",), "c_proj"),  # GPT-2
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT, CLIP, Whisper
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # ViT
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    (("query", "key", "value"), None),  # BERT
)
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")


@dataclass(frozen=True)
class HeadProbe:
    """What `probe_head` found, in float64 on the device of the input.

    Attributes:
        weight: W, (dim, dim), or (dim, dim + 1) with a bias of the query; scale included.
        selected: the token of the largest logit in each sequence.
        probabilities: the softmax over the tokens that the query sees.
        margins: how far the largest logit is above the next, in each sequence.
        svm: the SVM for `selected`.
        span_weight: the part of W between the differences of these tokens and these queries. The
            rest changes no softmax here, and the SVM has none of it.
        correlation: of W with the SVM's weight.
        span_correlation: of `span_weight` with the SVM's weight.
    """

    weight: Float[Tensor, "dim query_dim"]
    selected: Int[Tensor, "sequences"]
    probabilities: Float[Tensor, "sequences length"]
    margins: Float[Tensor, "sequences"]
    svm: AttentionSVM
    span_weight: Float[Tensor, "dim query_dim"]
    correlation: float
    span_correlation: float


@torch.no_grad()
def probe_head(
    module: nn.Module,
    x: Float[Tensor, "sequences length dim"],
    head: int = 0,
    *,
    position: int = -1,
    is_causal: bool = False,
    norm: Norm = "nuclear",
    tol: float = 1e-6,
) -> HeadProbe:
    """Compares one head of a self-attention layer with the SVM of the tokens that it selects.

    Almost any selection is separable if dim ≥ max(length − 1, sequences); keep to fewer sequences
    than that, or the SVM may not exist.

    Args:
        module: `torch.nn.MultiheadAttention`, this library's `SoftmaxAttention`, or a layer with
            projections named as in timm or Hugging Face's GPT-2, OPT, ViT, BERT or DistilBERT. It
            is tried out first, and must compute softmax attention with logits xᵀ W z.
        x: the layer's input (after the norm in front of it), without padding.
        head: which head of the query.
        position: the query's, counted from the end if negative.
        is_causal: whether it sees the tokens up to itself only.
        norm: of the SVM; "nuclear" is what training key and query projections is said to lead to.
        tol: see `solve_attention_svm`.

    Raises:
        ValueError: `module` is of another kind or its logits are no xᵀ W z, `x` does not fit it,
            `head` or `position` is out of range, or the query sees one token only.
        InfeasibleError: (a ValueError) no weight separates the selected tokens, as when one of them
            occurs twice.
        RuntimeError: `tol` was not reached.

    Example:
        >>> layer = nn.MultiheadAttention(8, num_heads=2, bias=False)
        >>> x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
        >>> probe = probe_head(layer, x, head=1)
        >>> probe.selected.shape, bool(probe.correlation > 0)
        (torch.Size([4]), True)
    """
    if isinstance(module, nn.MultiheadAttention):
        projections, heads = _of_multihead(module), module.num_heads
        scale = module.head_dim**-0.5
    else:
        names, out = _layout(module)
        _try_out(module, names, out)
        projections = _projections(module, dict(module.named_parameters()), names)
        heads, scale = _heads(module), _scale(module, len(projections[0][0]) // _heads(module))
    if x.ndim != 3 or x.shape[-1] != projections[0][0].shape[1] or 0 in x.shape:
        raise ValueError(
            f"x: shape {tuple(x.shape)} given, (sequences, length, {projections[0][0].shape[1]}) "
            "expected"
        )
    if not 0 <= head < heads:
        raise ValueError(f"head: {head} given, 0 to {heads - 1} expected")
    length = x.shape[1]
    if not -length <= position < length:
        raise ValueError(f"position: {position} given, one within the length {length} expected")
    position %= length
    visible = position + 1 if is_causal else length
    if visible < 2:
        raise ValueError(f"position: {position} given, one that sees two tokens or more expected")

    tokens, queries = x[:, :visible].double(), x[:, position].double()
    weight, biased = _bilinear(projections, head, heads, scale)
    weight = weight.to(x.device)
    if biased:
        queries = torch.cat([queries, queries.new_ones(len(queries), 1)], -1)
    logits = torch.einsum("ntd,de,ne->nt", tokens, weight, queries)
    best = logits.topk(2)
    selected = best.indices[:, 0]
    svm = solve_attention_svm(tokens, selected, queries, norm=norm, tol=tol)
    differences = (tokens - tokens[:, :1]).flatten(0, 1)
    span_weight = _projector(differences) @ weight @ _projector(queries)
    return HeadProbe(
        weight=weight,
        selected=selected,
        probabilities=logits.softmax(-1),
        margins=best.values[:, 0] - best.values[:, 1],
        svm=svm,
        span_weight=span_weight,
        correlation=direction_correlation(weight, svm.weight),
        span_correlation=direction_correlation(span_weight, svm.weight),
    )


Projection = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias (out,)."""


def _bilinear(
    projections: list[Projection], head: int, heads: int, scale: float
) -> tuple[Tensor, bool]:
    """W, and whether its last column belongs to the query's bias."""
    (query, query_bias), (key, _) = projections[:2]
    head_dim = len(query) // heads
    group = head * (len(key) // head_dim) // heads  # several heads of the query may share a key's
    own = slice(head * head_dim, (head + 1) * head_dim)
    key = key[group * head_dim : (group + 1) * head_dim].double()
    query = query[own].double()
    if query_bias is not None:
        query = torch.cat([query, query_bias[own, None].double()], -1)
    return scale * key.mT @ query, query_bias is not None


def _projector(rows: Tensor) -> Tensor:
    """The orthogonal projection on the span of the rows."""
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[singular > 1e-10 * singular.max()]
    return basis.mT @ basis


def _of_multihead(mha: nn.MultiheadAttention) -> list[Projection]:
    if mha.in_proj_weight is None:
        raise ValueError(
            f"module: kdim {mha.kdim} and vdim {mha.vdim} given, embed_dim = {mha.embed_dim} for "
            "both expected"
        )
    if mha.bias_k is not None or mha.add_zero_attn:
        raise ValueError("module: keys of its own given, no add_bias_kv or add_zero_attn expected")
    bias = mha.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return list(zip(mha.in_proj_weight.chunk(3), biases, strict=True))


def _layout(module: nn.Module) -> tuple[tuple[str, ...], str | None]:
    children = dict(module.named_children())
    for names, out in LAYOUTS:
        if all(name in children for name in (*names, *([out] if out else []))):
            return names, out
    raise ValueError(
        f"module: {type(module).__name__} given, nn.MultiheadAttention or a self-attention with "
        "projections of known names expected"
    )


def _projections(
    module: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str]
) -> list[Projection]:
    """Of query, key and value, with values taken from `weights`."""
    found: list[Projection] = []
    for name in names:
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        # GPT-2's Conv1D has its weight the other way round.
        found.append((weight if isinstance(getattr(module, name), nn.Linear) else weight.mT, bias))
    if len(found) == 1:
        weight, bias = found[0]
        biases = (None, None, None) if bias is None else bias.chunk(3)
        found = list(zip(weight.chunk(3), biases, strict=True))
    return found


def _heads(module: nn.Module) -> int:
    for place in (module, getattr(module, "config", None)):
        for name in HEAD_COUNTS:
            if isinstance(count := getattr(place, name, None), int):
                return count
    raise ValueError(
        f"module: {type(module).__name__} without a number of heads given, one of "
        f"{', '.join(HEAD_COUNTS)} expected"
    )


def _scale(module: nn.Module, head_dim: int) -> float:
    for name in ("scaling", "scale"):
        if isinstance(scale := getattr(module, name, None), float | int):
            return float(scale)
    return head_dim**-0.5


def _try_out(module: nn.Module, names: tuple[str, ...], out: str | None) -> None:
    """Raises ValueError unless `module` computes what its projections and softmax alone would.

    Names do not tell: a layer may rotate, normalise or scale by position, or use no softmax. So it
    is called with random weights and input.
    """
    kind = type(module).__name__
    if "position_embeddings" in inspect.signature(module.forward).parameters:
        raise ValueError(f"module: {kind} with rotary positions given, logits xᵀ W z expected")
    generator = torch.Generator().manual_seed(0)

    def random(shape: Iterable[int], like: Tensor) -> Tensor:
        return torch.randn(tuple(shape), generator=generator).to(like)

    weights = {
        # Twice the usual size, so that attention is far from uniform.
        name: random(w.shape, w) * (2 * w.shape[-1] ** -0.5 if w.ndim > 1 else 1.0)
        for name, w in module.named_parameters()
    }
    projections = _projections(module, weights, names)
    x = random((2, 7, projections[0][0].shape[1]), projections[0][0])
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        result: Any = functional_call(module, weights, (x,))
    except Exception as error:  # whatever a foreign module does with an input it does not expect
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"module: {kind} given, which fails on a sequence alone ({type(error).__name__}: "
            f"{reason}), self-attention expected"
        ) from None
    finally:
        for part, training in modes.items():
            part.training = training
    output = result[0] if isinstance(result, tuple) else result
    for causal in (False, True):
        expected = _attention(module, projections, x, causal)
        if out is not None:
            ((weight, bias),) = _projections_of_output(module, weights, out)
            expected = F.linear(expected, weight, bias)
        if output.shape == expected.shape and (output - expected).norm() <= 1e-2 * expected.norm():
            return
    raise ValueError(
        f"module: {kind} given, which computes something else than softmax attention of xᵀ W z "
        "(rotary or ALiBi positions, normalised queries, another score), that expected"
    )


def _projections_of_output(
    module: nn.Module, weights: Mapping[str, Tensor], out: str
) -> list[Projection]:
    weight, bias = weights[f"{out}.weight"], weights.get(f"{out}.bias")
    return [(weight if isinstance(getattr(module, out), nn.Linear) else weight.mT, bias)]


def _attention(
    module: nn.Module, projections: list[Projection], x: Tensor, is_causal: bool
) -> Tensor:
    """Softmax attention from the projections alone, before the one of the output."""
    heads = _heads(module)
    head_dim = len(projections[0][0]) // heads
    query, key, value = (
        F.linear(x, weight, bias).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for weight, bias in projections
    )
    key, value = (y.repeat_interleave(heads // y.shape[1], 1) for y in (key, value))
    output = F.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=_scale(module, head_dim)
    )
    return output.transpose(1, 2).flatten(2)
