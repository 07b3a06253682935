"""Hyperfitting: fine-tuning a language model on a tiny sample until it knows it by heart.

    min_θ  −1/(N (L − 1)) Σ_i Σ_t log p_θ(x_i,t+1 | x_i,≤t)      until the loss is near 0

Carlsson et al., "The Hyperfitting Phenomenon: Sharpening and Stabilizing LLMs for Open-Ended Text
Generation", ICLR 2025, arXiv 2412.04318. The validation loss rises severalfold, and greedy decoding
of new contexts stops repeating itself. Cost: `epochs` passes over N sequences.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from heterodox.training.batches import Shuffled
from heterodox.training.seeding import generator_for


@dataclass
class HyperfitHistory:
    """What a run of `hyperfit` has shown.

    Attributes:
        train_loss: mean loss of each epoch's batches while it ran [nats/token].
        stopped: whether `target_loss` was reached.
        diverged: whether the loss became NaN or infinite, which ends the run.
    """

    train_loss: list[float] = field(default_factory=list)
    stopped: bool = False
    diverged: bool = False


def hyperfit(
    model: nn.Module,
    sequences: Int[Tensor, "sequences length"],
    *,
    epochs: int = 20,
    lr: float = 1e-6,
    batch_size: int = 8,
    target_loss: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    logits: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
    callback: Callable[[int, float], object] | None = None,
) -> HyperfitHistory:
    """Trains `model` in place on all positions of a few sequences, and keeps the last weights.

    No dropout, no label smoothing, no schedule and no clipping, as in the paper. All weights that
    require a gradient are trained; the model's modes and dropout rates are put back at the end.

    Args:
        model: a trained causal language model, from tokens (batch, length) to logits (batch,
            length, vocabulary) or to an object with `.logits`, as Hugging Face's models do.
        sequences: token ids of equal length, at least 2; 2000 of 256 in the paper, and as few as 8
            are reported to work.
        epochs: 20 in the paper, 30 in the released code.
        lr: constant; 1e-6 in the paper for models of a billion parameters, 5e-6 in the released
            code. A small model needs much more, from a third of its peak rate in pre-training on.
        batch_size: at most this many sequences a step; 8 in the paper. An incomplete last batch is
            left out, another one each epoch.
        target_loss: stop after the first epoch whose mean loss is not above it; 0.1 is a sign that
            the sample is known. 0 runs all epochs.
        weight_decay: 0 in the paper; the released code has AdamW with its default of 0.01.
        optimizer: called as `optimizer(parameters, lr=..., weight_decay=...)`.
        logits: from the model's output to the logits; default the output, or its `.logits`.
        seed: of the order of sequences, which decides about a third of the most probable tokens
            (section 5 of the paper).
        callback: called as `callback(epoch, loss)` after each epoch, from 1 on, with the model in
            its former modes, so that it can be evaluated.

    Raises:
        ValueError: sequences are none, too short, not integers, or beyond the model's vocabulary;
            an argument is out of range; no weight requires a gradient; or the model's logits are
            NaN or infinite before training.

    Example:
        >>> from heterodox.models import DecoderLM
        >>> model = DecoderLM(20, width=32, layers=1, heads=2, length=12)
        >>> few = torch.randint(20, (4, 12), generator=torch.Generator().manual_seed(0))
        >>> history = hyperfit(model, few, epochs=200, lr=1e-2, target_loss=0.1)
        >>> history.stopped, history.train_loss[-1] <= 0.1
        (True, True)
    """
    _check_numbers(epochs, lr, batch_size, target_loss, weight_decay)
    _check_sequences(sequences)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("model: no weight that requires a gradient given, at least one expected")
    read = _logits_of if logits is None else logits
    device = trained[0].device
    _check_vocabulary(model, sequences, read, device)

    count = min(batch_size, len(sequences))
    batches = Shuffled((sequences,), count, generator_for(seed, "order of sequences"))
    stepper = optimizer(trained, lr=lr, weight_decay=weight_decay)
    history = HyperfitHistory()
    for epoch in range(1, epochs + 1):
        with _training_without_dropout(model), torch.enable_grad():
            total = torch.zeros((), device=device)  # read once an epoch: reading waits for a GPU
            for _ in range(len(batches)):
                tokens = next(batches)[0].to(device).long()
                output = read(model(tokens[:, :-1]))
                loss = F.cross_entropy(output.flatten(0, 1), tokens[:, 1:].flatten())
                stepper.zero_grad()
                loss.backward()
                stepper.step()
                total = total + loss.detach()  # float32 or better
            stepper.zero_grad()
        mean = total.item() / len(batches)
        history.train_loss.append(mean)
        history.diverged = not math.isfinite(mean)
        if callback is not None:
            callback(epoch, mean)
        history.stopped = mean <= target_loss
        if history.stopped or history.diverged:
            break
    return history


def _logits_of(output: Any) -> Tensor:
    return getattr(output, "logits", output)


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    """Training mode with every rate of dropping set to 0; afterwards all is as it was.

    Rates are those of dropout layers, and numbers that other modules keep under a name with "drop",
    as attention layers and recurrences do.
    """
    modes = {module: module.training for module in model.modules()}
    rates = [
        (module, name, value)
        for module in modes
        for name, value in vars(module).items()
        if isinstance(value, float)
        and ("drop" in name or (name == "p" and isinstance(module, _DropoutNd)))
    ]
    try:
        model.train()
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in rates:
            setattr(module, name, value)
        for module, training in modes.items():
            module.training = training


def _check_numbers(
    epochs: int, lr: float, batch_size: int, target_loss: float, weight_decay: float
) -> None:
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name}: {count} given, a positive number expected")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: {lr} given, a positive number expected")
    for name, given in (("target_loss", target_loss), ("weight_decay", weight_decay)):
        if not 0 <= given < math.inf:
            raise ValueError(f"{name}: {given} given, a number that is not negative expected")


def _check_sequences(sequences: Tensor) -> None:
    if sequences.is_floating_point() or sequences.is_complex() or sequences.dtype == torch.bool:
        raise ValueError(f"sequences: {sequences.dtype} given, integer token ids expected")
    if sequences.ndim != 2 or len(sequences) == 0 or sequences.shape[1] < 2:
        raise ValueError(
            f"sequences: shape {tuple(sequences.shape)} given, (sequences, length) with at least "
            "one sequence of two tokens expected"
        )


@torch.no_grad()
def _check_vocabulary(
    model: nn.Module, sequences: Tensor, read: Callable[[Any], Tensor], device: torch.device
) -> None:
    """Asks the model once, about a sequence of token 0, what it gives."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    length = sequences.shape[1] - 1
    try:
        answer = read(model(torch.zeros(1, length, dtype=torch.int64, device=device)))
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(answer, Tensor) or answer.ndim != 3 or answer.shape[:2] != (1, length):
        given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"model: {given} given for logits, (1, {length}, vocabulary) expected")
    if not bool(answer.isfinite().all()):
        raise ValueError("model: logits that are NaN or infinite given, finite logits expected")
    low, high = int(sequences.min()), int(sequences.max())
    if low < 0 or high >= answer.shape[-1]:
        raise ValueError(
            f"sequences: tokens from {low} to {high} given, 0 to {answer.shape[-1] - 1} expected, "
            "the model's vocabulary"
        )
