"""Another attention in an existing model: swapped in place, with the weights that are there.

Three kinds of layer are recognised: `nn.MultiheadAttention` (also inside PyTorch's transformer
layers), self-attention in the shape of timm's `Attention`, and layers of an earlier swap. A
replacement takes over all of its predecessor's state (parameters, submodules, hooks, attributes)
and differs only in `forward`; so optimizers keep working and old checkpoints load.

The weights were made for the attention that was there: swapping changes the function that the
model computes, and it has to be trained again.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from heterodox.swapping.method import AttentionMethod
from heterodox.swapping.multihead import SwappedMultiheadAttention
from heterodox.swapping.self_attention import SwappedSelfAttention, why_not_self_attention


class Replaced(NamedTuple):
    """A layer that was replaced: its name in the model, its attention before and after."""

    name: str
    old: str
    new: str


class Skipped(NamedTuple):
    """A layer that looks like attention and was left alone."""

    name: str
    type: str
    reason: str


@dataclass
class SwapReport:
    """What `swap` did; `print` it.

    Attributes:
        attention: the new attention with its settings.
        replaced: the layers that were replaced.
        skipped: the layers that look like attention and were left alone, with the reason.
        notes: what else was changed, or should be known.
    """

    attention: str
    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced"]
        lines += [f"  {name}: {old} -> {new}" for name, old, new in self.replaced]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped")
            lines += [f"  {name}: {kind}: {reason}" for name, kind, reason in self.skipped]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def swap(
    model: nn.Module,
    attention: str = "sigmoid",
    *,
    sequence_length: int | None = None,
    **options: Any,
) -> SwapReport:
    """Replaces the attention layers of `model` in place and keeps their weights.

    Either every layer that can be replaced is, or an exception is raised and nothing has changed.
    An `nn.TransformerEncoder` also stops converting padded batches to nested tensors, which only
    PyTorch's fused softmax path understands.

    Args:
        model: contains the layers; it must not itself be one.
        attention: a name of `heterodox.attention.ATTENTION_FUNCTIONS`; "softmax" swaps back.
        sequence_length: tokens in a training sequence; fixes the bias of sigmoid attention at
            −log(sequence_length). By default the bias follows the number of keys of each call.
        options: keywords of that function, for example `power` for "softplus".

    Raises:
        ValueError: `attention` or an option is unknown or has an impossible value; `model` is
            itself an attention layer; a layer has `add_bias_kv` or `add_zero_attn`; nothing was
            found to replace.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.TransformerEncoderLayer(16, nhead=2, batch_first=True))
        >>> print(swap(model, attention="sigmoid", sequence_length=128))
        1 replaced
          0.self_attn: MultiheadAttention -> sigmoid attention (bias=-4.852)
        >>> model(torch.randn(1, 5, 16)).shape
        torch.Size([1, 5, 16])
    """
    method = AttentionMethod.make(attention, sequence_length, options)
    report = SwapReport(str(method))
    # One outcome for each layer: a layer in two places stays one layer in two places.
    outcomes = {layer: _replacement(layer, method) for layer in model.modules()}
    layers = list(model.named_modules(remove_duplicate=False))
    if isinstance(outcomes[model], nn.Module):
        raise ValueError(
            f"model: a {type(model).__name__} itself given, a model that contains it expected, for "
            "example nn.ModuleDict({'attention': layer}), because it is replaced in its parent"
        )
    for name, layer in layers:
        outcome = outcomes[layer]
        if isinstance(outcome, str):
            report.skipped.append(Skipped(name, type(layer).__name__, outcome))
        elif outcome is not None:
            old = str(getattr(layer, "method", type(layer).__name__))
            report.replaced.append(Replaced(name, old, report.attention))
    if not report.replaced:
        raise ValueError(f"model: {_nothing_found(model, report.skipped)}")

    for name, layer in layers:
        outcome = outcomes[layer]
        if isinstance(outcome, nn.Module):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, outcome)
    if method.follows_the_number_of_keys:
        report.notes.append(
            "the bias is −log of the number of keys of each call; give sequence_length to fix it, "
            "or outputs depend on padding and on the length of a decoding cache"
        )
    for name, encoder in model.named_modules():
        if _disable_nested_tensors(encoder):
            report.notes.append(f"{name or 'model'}: use_nested_tensor set to False")
    return report


def _replacement(layer: nn.Module, method: AttentionMethod) -> nn.Module | str | None:
    """What stands in for `layer`; or, as text, why nothing does; or None if it is no attention."""
    kinds = (nn.MultiheadAttention, SwappedMultiheadAttention, SwappedSelfAttention)
    if not isinstance(layer, kinds) and not (hasattr(layer, "qkv") and hasattr(layer, "num_heads")):
        return None
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if isinstance(layer, SwappedSelfAttention):
        return SwappedSelfAttention(layer, method)
    if isinstance(layer, SwappedMultiheadAttention) or type(layer) is nn.MultiheadAttention:
        return SwappedMultiheadAttention(layer, method)
    if isinstance(layer, nn.MultiheadAttention):
        return "a subclass of MultiheadAttention, whose own code the replacement would not run"
    return why_not_self_attention(layer) or SwappedSelfAttention(layer, method)


def _disable_nested_tensors(encoder: nn.Module) -> bool:
    """Stops an encoder with a swapped layer from making nested tensors; whether it would have."""
    if not isinstance(encoder, nn.TransformerEncoder) or not encoder.use_nested_tensor:
        return False
    if not any(isinstance(layer, SwappedMultiheadAttention) for layer in encoder.modules()):
        return False
    encoder.use_nested_tensor = False
    return True


def _nothing_found(model: nn.Module, skipped: list[Skipped]) -> str:
    message = (
        f"a {type(model).__name__} without a layer to replace given, one with "
        "nn.MultiheadAttention or timm's Attention expected"
    )
    if any(base.__module__.startswith("transformers.") for base in type(model).__mro__):
        message += (
            "; Hugging Face models are served by heterodox.integrations.transformers.register()"
        )
    reasons = dict.fromkeys(f"{kind} skipped: {reason}" for _, kind, reason in skipped)
    return "; ".join([message, *reasons])
