"""The one training loop, on Lightning Fabric: CPU, one GPU or several, in any of its precisions."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from heterodox.training.batches import Batches
from heterodox.training.checkpoint import load_checkpoint, save_checkpoint
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.progress import progress_bar, report
from heterodox.training.seeding import random_state, seeded, set_random_state


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int | None = None,
    identity: str = "",
    fabric: Fabric | None = None,
    seed: int = 0,
    progress: bool = False,
) -> History:
    """Trains `model` in place.

    Args:
        model, optimizer: as built by the caller; the model is moved to the device of `fabric`.
        batches: yields a tuple of tensors a step. With several devices every process draws the same
            batch and takes its own share of the rows, so that the batch stays what it is on one.
        loss: from model and batch to a scalar.
        steps: optimizer steps in all.
        scheduler: stepped after every optimizer step.
        clip: largest norm of the gradient over all parameters; None does not clip.
        evaluate: from model to named metrics, without gradients and in evaluation mode. The first
            metric is the one that `patience` watches; lower is better.
        evaluate_every: steps between evaluations; the last step is always evaluated.
        patience: stop after so many evaluations in a row without a new best.
        checkpoint: file to resume from if it exists, and to keep up to date. It is left in place at
            the end; a finished run that is started again returns at once.
        checkpoint_every: steps between checkpoints; default a tenth of `steps`.
        identity: names the run; a checkpoint of a run with another identity is refused.
        fabric: default one CPU device, float32.
        seed: of what the model draws itself while training, such as dropout.
        progress: show a bar on a terminal, if nobody listens to the reports.

    Returns:
        The history. A loss that is not finite, or a step of the optimizer that raises
        FloatingPointError, ends the run with `diverged=True`, without exception.

    Resuming is exact, to the bit, on one device. With several, dropout draws anew after resuming.

    Raises:
        ValueError: an argument is out of range, or the checkpoint is damaged or of another run.

    Example:
        >>> from heterodox.training import Shuffled
        >>> model, x = nn.Linear(1, 1), torch.linspace(-1, 1, 32)[:, None]
        >>> batches = Shuffled((x, 3 * x), 8, torch.Generator().manual_seed(0))
        >>> history = fit(
        ...     model,
        ...     torch.optim.SGD(model.parameters(), lr=0.3),
        ...     batches,
        ...     lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     steps=100,
        ... )
        >>> round(model.weight.item(), 3)
        3.0
    """
    positive = {"steps": steps, "clip": clip, "evaluate_every": evaluate_every}
    positive |= {"patience": patience, "checkpoint_every": checkpoint_every}
    for name, given in positive.items():
        if given is not None and not given > 0:
            raise ValueError(f"{name}: {given} given, a positive number expected")
    if evaluate is None and (patience is not None or evaluate_every is not None):
        name = "patience" if patience is not None else "evaluate_every"
        raise ValueError(f"{name}: given without evaluate, something to evaluate expected")

    fabric = fabric or fabric_on("cpu")
    was_training = model.training
    wrapped, stepper = fabric.setup(model, optimizer)
    wrapped.train()
    evaluate_every = evaluate_every or steps
    checkpoint_every = checkpoint_every or max(1, steps // 10)
    interval = max(1, min(50, steps // 100))  # steps between points of the curve
    history = History()
    unread: list[Tensor] = []  # losses on the device; reading them waits for it
    since_point: list[float] = []
    header = {"identity": identity, "of_steps": steps}

    def save() -> None:
        if checkpoint is None or not fabric.is_global_zero:
            return
        state = {
            **header,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "batches": batches.state_dict(),
            "random": random_state(fabric.device),
            "history": history.to_dict(),
            "since_point": since_point,
        }
        save_checkpoint(checkpoint, state)

    def read_losses() -> None:
        if not unread:
            return
        losses: Any = torch.stack(unread)
        if fabric.world_size > 1:
            losses = fabric.all_reduce(losses, reduce_op="mean")
        first = history.steps - len(unread) + 1
        unread.clear()
        for step, value in enumerate(losses.tolist(), start=first):
            if not math.isfinite(value):
                history.diverged, history.steps = True, step
                return
            since_point.append(value)

    def add_point() -> None:
        if since_point:
            mean = sum(since_point) / len(since_point)
            history.loss.append((float(history.steps), mean))
            since_point.clear()
            if fabric.is_global_zero:
                report(history.steps, steps, loss=mean)

    def evaluate_now() -> None:
        assert evaluate is not None
        wrapped.eval()
        with torch.no_grad():
            metrics = {name: float(value) for name, value in evaluate(wrapped).items()}
        wrapped.train()
        for name, value in metrics.items():
            history.evaluations.setdefault(name, []).append((float(history.steps), value))
        watched = next(iter(metrics.values()))
        history.diverged |= not math.isfinite(watched)
        improved = watched < history.best
        history.evaluations_since_best = 0 if improved else history.evaluations_since_best + 1
        history.best = min(history.best, watched)
        if patience is not None and history.evaluations_since_best >= patience:
            history.stopped_early = True
        if fabric.is_global_zero:
            report(history.steps, steps, **{n.replace(" ", "_"): v for n, v in metrics.items()})

    with (
        seeded(seed + fabric.global_rank, fabric.device),
        progress_bar("training") if progress else nullcontext(),
    ):
        if checkpoint is not None and checkpoint.exists():
            state = _load(checkpoint, header)
            try:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
                if scheduler is not None:
                    scheduler.load_state_dict(state["scheduler"])
                batches.load_state_dict(state["batches"])
                history = History.from_dict(state["history"])
                since_point[:] = state["since_point"]
                if fabric.world_size == 1:
                    set_random_state(state["random"], fabric.device)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"checkpoint: {checkpoint} is of another model: {error}"
                ) from error

        while history.steps < steps and not (history.diverged or history.stopped_early):
            batch = _share(fabric.to_device(next(batches)), fabric)
            value = loss(wrapped, batch)
            fabric.backward(value)
            if clip is not None:
                fabric.clip_gradients(wrapped, stepper, max_norm=clip, error_if_nonfinite=False)
            try:
                stepper.step()
            except FloatingPointError:
                history.diverged = True
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
            unread.append(value.detach())
            history.steps += 1

            last = history.steps == steps
            evaluating = evaluate is not None and (last or history.steps % evaluate_every == 0)
            saving = history.steps % checkpoint_every == 0
            if last or evaluating or saving or history.steps % interval == 0:
                read_losses()
            if not history.diverged:
                if last or history.steps % interval == 0:
                    add_point()
                if evaluating:
                    evaluate_now()
            if saving or last or history.diverged or history.stopped_early:
                save()
    model.train(was_training)
    return history


def _share(batch: Any, fabric: Fabric) -> Any:
    """This process's rows of a batch that all processes have drawn alike."""
    if fabric.world_size == 1:
        return batch
    rows = len(batch[0])
    if rows % fabric.world_size:
        raise ValueError(
            f"batches: {rows} rows given, a multiple of the {fabric.world_size} processes expected"
        )
    return tuple(tensor[fabric.global_rank :: fabric.world_size] for tensor in batch)


def _load(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    state = load_checkpoint(path)
    for name, expected in header.items():
        if state.get(name) != expected:
            found = state.get(name)
            raise ValueError(
                f"checkpoint: {path} is of another run: "
                f"{name} {found!r} found, {expected!r} expected"
            )
    return state
