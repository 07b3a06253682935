"""Another attention or output layer in an existing model, swapped in place.

Three kinds of attention are recognised: `nn.MultiheadAttention` (also inside PyTorch's transformer
layers), self-attention in the shape of timm's `Attention`, and layers of an earlier swap. A
replacement takes over all of its predecessor's state (parameters, submodules, hooks, attributes)
and differs only in `forward`; so optimizers keep working and old checkpoints load.

The weights were made for the attention that was there: swapping changes the function that the
model computes, and it has to be trained again. Output layers are replaced by new ones; see
`heterodox.swapping.output_layer`.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from heterodox.swapping.method import AttentionMethod
from heterodox.swapping.multihead import SwappedMultiheadAttention
from heterodox.swapping.output_layer import HeadSwap, options_of_head
from heterodox.swapping.self_attention import SwappedSelfAttention, why_not_self_attention


class Replaced(NamedTuple):
    """A layer that was replaced: its name in the model, what was there and what is."""

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
        attention: the new attention with its settings; "" if it was not asked for.
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
    attention: str | None = None,
    *,
    head: str | None = None,
    name: str | None = None,
    sequence_length: int | None = None,
    **options: Any,
) -> SwapReport:
    """Replaces the attention layers of `model` in place, or its output layer, or both.

    Attention layers keep their weights; an output layer starts with new ones. Either all that is
    asked for is replaced, or an exception is raised and nothing has changed. An
    `nn.TransformerEncoder` also stops converting padded batches to nested tensors, which only
    PyTorch's fused softmax path understands.

    Args:
        model: contains the layers; it must not itself be one.
        attention: a name of `heterodox.attention.ATTENTION_FUNCTIONS`; "softmax" swaps back. By
            default "sigmoid", or with `head` none.
        head: a name of `heterodox.layers.HEADS`, "fourier" for example. Weights that the output
            layer shares with an embedding are untied. For the penalty of a Fourier head see
            `heterodox.swapping.head_penalties`.
        name: of the output layer in `model`; None asks `model.get_output_embeddings()`, which
            models of Transformers have.
        sequence_length: tokens in a training sequence; fixes the bias of sigmoid attention at
            −log(sequence_length). By default the bias follows the number of keys of each call.
        options: keywords of the attention function, for example `power` for "softplus", and of the
            head, for example `num_frequencies`; a keyword of both goes to the attention.

    Raises:
        ValueError: `attention`, `head` or an option is unknown or has an impossible value; `model`
            is itself such a layer; an attention layer has `add_bias_kv` or `add_zero_attn`; no
            attention was found to replace, or no output layer; `name` is given without `head`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.TransformerEncoderLayer(16, nhead=2, batch_first=True))
        >>> print(swap(model, attention="sigmoid", sequence_length=128))
        1 replaced
          0.self_attn: MultiheadAttention -> sigmoid attention (bias=-4.852)
        >>> model(torch.randn(1, 5, 16)).shape
        torch.Size([1, 5, 16])
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 50))
        >>> report = swap(model, head="fourier", name="2", num_frequencies=12)
        >>> report.replaced[0].new
        'fourier head (num_frequencies=12)'
    """
    if attention is None and head is None:
        attention = "sigmoid"
    if head is None and name is not None:
        raise ValueError(f"name: {name!r} given without head, the name of a head expected as well")
    if attention is None and sequence_length is not None:
        raise ValueError(
            f"sequence_length: {sequence_length} given without attention, None expected"
        )
    of_head = {} if head is None else _options_of_head(head, attention, options)
    of_attention = {key: value for key, value in options.items() if key not in of_head}
    report = SwapReport("")
    output = None if head is None else HeadSwap.make(model, head, name, of_head)
    if attention is not None:
        _swap_attention(
            model, AttentionMethod.make(attention, sequence_length, of_attention), report
        )
    if output is not None:
        for place in output.names:
            report.replaced.append(Replaced(place, type(output.old).__name__, output.says))
        report.notes += output.put_into(model)
    return report


def _options_of_head(head: str, attention: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The part of a swap's options that is for its head: with an attention, what that leaves."""
    if attention is None:
        return options
    theirs, mine = AttentionMethod.options_of(attention), options_of_head(head)
    for option in options:
        if option not in (*theirs, *mine):
            raise ValueError(
                f"{option}: not an option of {attention} attention or the {head} head, one of "
                f"{', '.join((*theirs, *mine))} expected"
            )
    return {key: value for key, value in options.items() if key not in theirs}


def _swap_attention(model: nn.Module, method: AttentionMethod, report: SwapReport) -> None:
    report.attention = str(method)
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
