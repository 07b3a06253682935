"""Where the norms of a model's queries and keys lie: below the threshold of cheap gradients or not.

    max |X W_Q|,  max |X W_K|   against   √(log L)

with each W including its adapter and any normalisation of queries and keys. Hu et al., arXiv
2406.03136, theorems 3.1, 4.1 and A.1: entries that grow more slowly with the length L allow a LoRA
gradient in almost linear time, entries that grow faster do not. The theorems are about growth;
what they leave open for one L, the rank of a polynomial approximation, stands beside the norms.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.compression.certificate import logit_bound
from heterodox.layers.polynomial import degree_for

TOLERANCE = 1e-3

# How attention layers are written: names of their projections, heads, head size and scale.
FUSED = ("qkv", "c_attn", "qkv_proj")  # all queries, then all keys, then all values
INTERLEAVED = ("query_key_value",)  # head by head, each with query, key and value
PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("q_lin", "k_lin"), ("q", "k"), ("to_q", "to_k"))
NORMS = ("q_norm", "k_norm")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "dim_head")
SCALES = ("scaling", "scale", "inv_norm_factor")


@dataclass(frozen=True)
class HeadNorms:
    """One head of one attention layer.

    Attributes:
        layer: the module's name in the model.
        head: its number.
        query, key: largest absolute entries of X W_Q and X W_K, as they enter the logits.
        threshold: √(log L), L the most keys that the layer was given.
        bound: on the absolute logits, from norms of queries and keys.
        rank: C(d + g, g), what a polynomial approximation of the head's softmax matrix to a
            relative error of 1e-3 in the exponentials needs; of use if it is far below L.
    """

    layer: str
    head: int
    query: float
    key: float
    threshold: float
    bound: float
    rank: int

    @property
    def below(self) -> bool:
        """Whether queries and keys are below the threshold.

        Example:
            >>> HeadNorms("attention", 0, 1.2, 2.5, 2.2, 3.0, 126).below
            False
        """
        return max(self.query, self.key) < self.threshold


@torch.no_grad()
def efficiency_norms(
    x: Float[Tensor, "length dim"],
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, tuple[Tensor, Tensor]],
    alpha: int | float = 1.0,
) -> dict[str, float]:
    """The norms of one head, and their threshold.

    Args:
        x: the tokens, one a row.
        weights: "q" and "k", which stand to the right of `x`: x W. Others are not looked at.
        adapters: (A, B) of any of them, as for `full_lora_gradients`.
        alpha: α of the adapters: W + α/r B A.

    Returns:
        "query": max |X W_Q|, "key": max |X W_K|, "threshold": √(log L).

    Raises:
        ValueError: there are no tokens, a weight is missing, or shapes do not fit.

    Example:
        >>> norms = efficiency_norms(torch.ones(8, 2), {"q": torch.eye(2), "k": torch.eye(2)}, {})
        >>> norms["query"], norms["key"], round(norms["threshold"], 3)
        (1.0, 1.0, 1.442)
    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (length, dim) expected, length above 0")
    found = {}
    for name, label in (("q", "query"), ("k", "key")):
        if name not in weights:
            raise ValueError(f"weights: {', '.join(weights) or 'nothing'} given, q and k expected")
        weight = weights[name]
        if weight.ndim != 2 or len(weight) != x.shape[1]:
            raise ValueError(
                f"weights: shape {tuple(weight.shape)} given for {name}, ({x.shape[1]}, columns) "
                "expected"
            )
        if name in adapters:
            a, b = adapters[name]
            rank = a.shape[0]
            if rank == 0 or a.shape != (rank, weight.shape[1]) or b.shape != (len(weight), rank):
                raise ValueError(
                    f"adapters: shapes {tuple(a.shape)} and {tuple(b.shape)} given for {name}, "
                    f"(rank, {weight.shape[1]}) and ({len(weight)}, rank) expected"
                )
            weight = weight + alpha / rank * b @ a
        product = x @ weight
        found[label] = float(product.abs().max()) if product.numel() else 0.0
    return found | {"threshold": math.sqrt(math.log(len(x)))}


@torch.no_grad()
def audit(model: nn.Module, batch: Any) -> list[HeadNorms]:
    """The norms of every head of every attention layer, while a model reads a batch.

    Known are `nn.MultiheadAttention`, the attention layers of this library and of timm, and those
    of Hugging Face Transformers that project by one layer for queries and one for keys (BERT,
    Llama, OPT, Qwen, T5, ViT, ...) or by one for all (Bloom, GPT-2, GPT-NeoX, Phi-3), with or
    without adapters of peft, which are taken into account. Layers written differently are left out.

    The model is called once, in evaluation mode, without gradients, and is left as it was. All
    positions count, padded ones too. Norms are taken before a rotation by position, which
    does not change the bound.

    Args:
        model: of any kind.
        batch: what it is called with: a tensor, a tuple of arguments, or a mapping of keyword
            arguments such as a tokenizer returns.

    Raises:
        ValueError: no attention layer that is known took part in the call, or none had a token.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.ones(1, 5, 8)
        >>> [(norms.layer, norms.head) for norms in audit(attention, (x, x, x))]
        [('', 0), ('', 1)]
    """
    seen: dict[str, _Layer] = {}
    handles = []
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it would go round the layers
        for name, module in model.named_modules():
            layer = _Layer(module)
            attached = layer.attach()
            if attached:
                seen[name] = layer
                handles += attached
        model.eval()
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, tuple):
            model(*batch)
        else:
            model(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    found = [head for name, layer in seen.items() for head in layer.heads(name)]
    if not found:
        raise ValueError(
            f"model: {type(model).__name__} given, one expected that calls nn.MultiheadAttention "
            "or a layer with query and key projections of a known name, on at least one token"
        )
    return found


class _Layer:
    """One attention layer: watches its projections and keeps the largest norms of each head."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.head_dim = 1
        self.most_keys = 0
        # Head by head: largest entries of queries and keys, and bound of the logits.
        self.largest: list[tuple[float, float, float]] = []

    def attach(self) -> list[Any]:
        """Hooks where the layer's queries and keys come from; none if that is not known."""
        parts = {name: part for name, part in self.module._modules.items() if part is not None}
        if isinstance(self.module, nn.MultiheadAttention):
            return [self.module.register_forward_pre_hook(self._multihead, with_kwargs=True)]
        if self._number(HEADS) is None and self._number(HEAD_DIMS) is None:
            return []
        for name in FUSED:
            if name in parts and "q_attn" not in parts:
                return [parts[name].register_forward_hook(self._fused)]
        for name in INTERLEAVED:
            if name in parts:
                return [parts[name].register_forward_hook(self._interleaved)]
        for query, key in PAIRS:
            if query in parts and key in parts:
                return [
                    parts[query].register_forward_hook(self._take("query")),
                    parts[key].register_forward_hook(self._take("key")),
                ]
        return []

    def heads(self, name: str) -> list[HeadNorms]:
        found = []
        for head, (query, key, bound) in enumerate(self.largest):
            degree = degree_for(bound, TOLERANCE)
            degree += degree % 2
            rank = math.comb(self.head_dim + degree, degree)
            threshold = math.sqrt(math.log(self.most_keys))
            found.append(HeadNorms(name, head, query, key, threshold, bound, rank))
        return found

    def _number(self, names: tuple[str, ...]) -> int | None:
        """The first of the attributes, of the layer or else of its config, that is a number."""
        for owner in (self.module, getattr(self.module, "config", None)):
            for name in names:
                if isinstance(found := getattr(owner, name, None), int) and found > 0:
                    return found
        return None

    def _scale(self) -> float:
        for name in SCALES:
            if isinstance(found := getattr(self.module, name, None), float):
                return abs(found)
        return self.head_dim**-0.5

    def _take(self, which: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            setattr(self, which, output)
            if self.query is not None and self.key is not None:
                query, key = self.query, self.key
                self.query = self.key = None
                self._note(query, key)

        return hook

    def _fused(self, module: nn.Module, args: Any, output: Tensor) -> None:
        heads = self._number(HEADS)
        width = output.shape[-1]
        if heads is None:
            return
        groups = self._number(("num_key_value_heads",)) or heads
        if width % (heads + 2 * groups):
            return
        size = width // (heads + 2 * groups)
        self._note(*output.split([heads * size, groups * size, groups * size], dim=-1)[:2])

    def _interleaved(self, module: nn.Module, args: Any, output: Tensor) -> None:
        heads = self._number(HEADS)
        if heads is None or output.shape[-1] % (3 * heads):
            return
        if getattr(self.module, "multi_query", False) or getattr(
            self.module, "new_decoder_architecture", False
        ):
            return  # Falcon, whose heads share keys in another order
        query, key, _ = output.unflatten(-1, (heads, 3, -1)).unbind(-2)
        self._note(query.flatten(-2), key.flatten(-2))

    def _multihead(self, module: Any, args: Any, kwargs: Any) -> None:
        query, key = (
            args[place] if len(args) > place else kwargs[name]
            for place, name in enumerate(("query", "key"))
        )
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)[:2]
        else:
            weights = module.q_proj_weight, module.k_proj_weight
        biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
        query = F.linear(query, weights[0], biases[0])
        key = F.linear(key, weights[1], biases[1])
        if query.ndim == 3 and not module.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        if module.bias_k is not None:
            learned = module.bias_k[0] if key.ndim == 2 else module.bias_k.expand(len(key), 1, -1)
            key = torch.cat([key, learned], dim=-2)
        self._note(query, key)

    def _note(self, query: Tensor, key: Tensor) -> None:
        """Takes in queries and keys (..., length, heads · head_dim)."""
        self.head_dim = self._number(HEAD_DIMS) or query.shape[-1] // (self._number(HEADS) or 1)
        if query.numel() == 0 or key.numel() == 0:
            return
        query, key = (
            self._normalised(x, norm).float() for x, norm in zip((query, key), NORMS, strict=True)
        )
        now = []
        for head, rows in enumerate(query):
            keys = key[head * len(key) // len(query)]  # several heads may share keys
            bound = self._scale() * logit_bound(rows, keys)
            now.append((float(rows.abs().max()), float(keys.abs().max()), bound))
        before = self.largest or [(0.0, 0.0, 0.0)] * len(now)
        self.largest = [
            (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]))
            for a, b in zip(before, now, strict=True)
        ]
        self.most_keys = max(self.most_keys, key.shape[-2])

    def _normalised(self, x: Tensor, name: str) -> Tensor:
        """(heads, batch, length, head_dim), through the layer's own norm of queries or keys."""
        norm = self.module._modules.get(name)
        width = getattr(getattr(norm, "weight", None), "shape", (0,))[-1]
        if norm is not None and width == x.shape[-1]:  # of all heads together
            x, norm = norm(x), None
        x = x.reshape(-1, *x.shape[-2:]).unflatten(-1, (-1, self.head_dim))
        x = x.permute(2, 0, 1, 3)
        return x if norm is None else norm(x)
