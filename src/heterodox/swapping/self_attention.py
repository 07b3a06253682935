"""The replacement of self-attention in the shape of timm's `Attention`, and its recognition."""

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from heterodox.swapping.method import AttentionMethod, take_over


class SwappedSelfAttention(nn.Module):
    """The state of a self-attention like timm's `Attention` with another attention in it.

    It has submodules `qkv` and `proj` and optionally `q_norm`, `k_norm`, `attn_drop`, `norm` (of
    the heads' concatenated outputs), `gate` (of the same) and `proj_drop`.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int

    def __init__(self, layer: nn.Module, method: AttentionMethod) -> None:
        super().__init__()
        take_over(self, layer)
        self.method = method
        head_dim = self.qkv.out_features // (3 * self.num_heads)
        method.try_out(self.num_heads, head_dim, self.qkv.weight)

    def forward(
        self,
        x: Float[Tensor, "batch length channels"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length channels_out"]:
        """`attn_mask` as for `scaled_dot_product_attention`: True where attention is allowed."""
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        query, key = self._optional("q_norm", query), self._optional("k_norm", key)
        drop = getattr(self, "attn_drop", None)
        dropout = drop.p if self.training and isinstance(drop, nn.Dropout) else 0.0
        output = self.method(query, key, value, attn_mask, dropout, is_causal)
        output = self._optional("norm", output.transpose(1, 2).flatten(2))
        gate = getattr(self, "gate", None)
        if gate is not None:
            output = output * gate(x).sigmoid()
        return self._optional("proj_drop", self.proj(output))

    def _optional(self, name: str, x: Tensor) -> Tensor:
        module = getattr(self, name, None)
        return x if module is None else module(x)

    def extra_repr(self) -> str:
        return str(self.method)


def why_not_self_attention(layer: nn.Module) -> str | None:
    """Why `SwappedSelfAttention` cannot stand in for `layer`; None if it can."""
    for name in ("qkv", "proj"):
        if not isinstance(getattr(layer, name, None), nn.Linear):
            return f"its {name} is no nn.Linear"
    if not isinstance(getattr(layer, "attn_drop", None), nn.Dropout | nn.Identity | None):
        return "its attn_drop is no nn.Dropout"
    parts = {"qkv", "proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj_drop"}
    extra = [name for name, _ in layer.named_children() if name not in parts]
    extra += [name for name, _ in layer.named_parameters(recurse=False)]
    extra += [name for name, _ in layer.named_buffers(recurse=False)]
    if extra:
        return f"it also holds {', '.join(extra)}, which the replacement would not use"
    _, *arguments = inspect.signature(layer.forward).parameters
    extra = [name for name in arguments if name not in ("attn_mask", "is_causal")]
    if extra:
        return f"its forward also takes {', '.join(extra)}"
    try:
        same = _computes_softmax_attention(layer, arguments)
    except Exception as error:  # whatever a foreign module does with an input it does not expect
        return f"trying it out failed: {type(error).__name__}: {error}"
    return None if same else "it computes something else than softmax self-attention"


def _computes_softmax_attention(layer: nn.Module, arguments: list[str]) -> bool:
    """Whether `layer` and its replacement with softmax agree, for random weights and inputs.

    Names alone do not tell: attention over channels, within windows or with another scale may
    have the same submodules.
    """
    twin = SwappedSelfAttention(layer, AttentionMethod.make("softmax", None, {}))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    device = torch.device("cpu") if twin.qkv.weight.is_meta else twin.qkv.weight.device
    weights = {
        # Twice the usual size, so that logits are far from zero and attention far from uniform.
        name: random(*weight.shape) * (2 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 1.0)
        for name, weight in layer.named_parameters()
    }
    x = random(2, 7, twin.qkv.in_features)
    calls: list[dict[str, Any]] = [{}]
    calls += [{"attn_mask": random(7, 7)}] if "attn_mask" in arguments else []
    calls += [{"is_causal": True}] if "is_causal" in arguments else []
    modes = {module: module.training for module in layer.modules()}
    layer.eval()
    twin.training = False
    try:
        with torch.no_grad():
            for keywords in calls:
                expected = functional_call(layer, weights, (x,), keywords)
                difference = functional_call(twin, weights, (x,), keywords) - expected
                if not difference.norm() <= 1e-2 * expected.norm():  # also false for NaN
                    return False
    finally:
        for module, training in modes.items():
            module.training = training
    return True
