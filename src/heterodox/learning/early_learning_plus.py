"""ELR+: two networks learn from noisy labels, each held near what the other's average has said.

    x̃ = l x + (1 − l) x[π],   ỹ = l y + (1 − l) y[π],   l = max(l', 1 − l'),  l' ~ Beta(α, α)
    T_i ← β T_i + (1 − β) softmax(B̄(x_i)),   q = l T + (1 − l) T[π]
    L_A = CE(A(x̃), ỹ) + λ mean log(1 − ⟨softmax(A(x̃)), q⟩)
    θ_Ā ← m θ_Ā + (1 − m) θ_A,   m = 0.997 exp(−5 (1 − min(step, S) / S)²)

and the same with A and B exchanged; Ā and B̄ are weight averages. What is used in the end is the
mean of the logits of A and B. Liu et al., NeurIPS 2020, arXiv 2007.00151; the order of the steps is
that of the authors' code. There the averages normalise a batch by its own statistics; here they use
the running statistics of the networks that they average. Cost of a step: forward and backward of
one network, and one forward of another.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from heterodox.losses.early_learning import EarlyLearningPlusLoss, sigmoid_rampup
from heterodox.losses.mixing import mixing_weight
from heterodox.training.progress import report


@runtime_checkable
class Epochs(Protocol):
    """What is gone through once an epoch: a `DataLoader`, or `heterodox.training.Shuffled`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


class MeanLogits(nn.Module):
    """The mean of the logits of several networks.

    Example:
        >>> pair = MeanLogits(nn.Linear(3, 2), nn.Linear(3, 2))
        >>> pair(torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, input: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch classes"]:
        return torch.stack([network(input) for network in self.networks]).mean(0)


@dataclass
class TrainedPair:
    """What `train_elr_plus` leaves behind.

    Attributes:
        model: the mean of both networks' logits, in evaluation mode.
        averages: the weight averages of the first and of the second network.
        losses: their losses, which hold the targets.
        epochs: of each epoch the mean "loss" of both networks, and what `evaluate` returned.
        diverged: a loss was not finite, and training stopped in that epoch.
    """

    model: MeanLogits
    averages: tuple[AveragedModel, AveragedModel]
    losses: tuple[EarlyLearningPlusLoss, EarlyLearningPlusLoss]
    epochs: list[dict[str, float]] = field(default_factory=list)
    diverged: bool = False


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The authors' for CIFAR-10: rate 0.02, momentum 0.9, weight decay 5e-4."""
    return SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-4)


def train_elr_plus(
    network_a: nn.Module,
    network_b: nn.Module,
    batches_a: Epochs,
    batches_b: Epochs,
    *,
    num_examples: int,
    num_classes: int,
    epochs: int = 200,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = sgd,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    strength: int | float = 3.0,
    momentum: int | float = 0.7,
    rampup_steps: int = 0,
    reweight_labels: bool = False,
    mixup: int | float = 1.0,
    average: int | float = 0.997,
    average_rampup: int = 40_000,
    prepare: Callable[[Tensor], Tensor] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    generator: torch.Generator | None = None,
) -> TrainedPair:
    """Trains two networks with ELR+, in place and where they are.

    Args:
        network_a, network_b: from inputs to logits, initialised apart.
        batches_a, batches_b: yield (input, label, index); each network has its own, so that each
            sees an order of its own. Gone through once an epoch. See `heterodox.training.Indexed`
            for a data set that knows no indices.
        num_examples: of the data set; indices are below it.
        num_classes: number of classes.
        epochs: 200 in the authors' settings for CIFAR-10, 250 for CIFAR-100. In each, A is trained
            before B.
        optimizer: makes each network's.
        scheduler: makes each optimizer's, stepped after each epoch; the authors divide the rate by
            10 after epoch 150 (CIFAR-100: 200). None keeps it.
        strength, momentum, rampup_steps, reweight_labels: see `EarlyLearningPlusLoss`.
        mixup: α; 1 in the authors' settings, 0 does not mix.
        average, average_rampup: 0.997 and S of the weight averages. An average follows its network
            closely for the first steps: fewer steps in all need a smaller S.
        prepare: from a batch's inputs, on the networks' device, to what networks take, such as
            normalisation or augmentation.
        evaluate: from the pair, in evaluation mode and without gradients, to named metrics; called
            after each epoch.
        generator: on the CPU, for mixup; None is torch's own.

    Raises:
        ValueError: a number is out of range, a batch is no such triple, or an index or a label is
            out of range.

    Example:
        >>> from heterodox.training import Shuffled
        >>> x, y, index = torch.randn(60, 4), torch.arange(60) % 3, torch.arange(60)
        >>> order_a, order_b = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        >>> pair = train_elr_plus(
        ...     nn.Linear(4, 3),
        ...     nn.Linear(4, 3),
        ...     Shuffled((x, y, index), 20, order_a),
        ...     Shuffled((x, y, index), 20, order_b),
        ...     num_examples=60,
        ...     num_classes=3,
        ...     epochs=2,
        ... )
        >>> pair.model(x).shape, len(pair.epochs)
        (torch.Size([60, 3]), 2)
    """
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} given, a positive number expected")
    if not 0 <= mixup < math.inf:
        raise ValueError(f"mixup: {mixup} given, a number that is not negative expected")
    if not 0 <= average < 1:
        raise ValueError(f"average: {average} given, a number in [0, 1) expected")
    if average_rampup < 0:
        raise ValueError(f"average_rampup: {average_rampup} given, at least 0 expected")
    if network_a is network_b:
        raise ValueError("network_b: network_a given once more, another network expected")

    def learner(network: nn.Module, batches: Epochs, name: str) -> _Learner:
        loss = EarlyLearningPlusLoss(
            num_examples, num_classes, strength, momentum, rampup_steps, reweight_labels
        )
        descent = optimizer(network.parameters())
        return _Learner(
            name,
            network,
            ramped_average(network, average, average_rampup),
            batches,
            loss.to(next(network.parameters()).device),
            descent,
            None if scheduler is None else scheduler(descent),
        )

    a = learner(network_a, batches_a, "batches_a")
    b = learner(network_b, batches_b, "batches_b")
    trained = TrainedPair(
        MeanLogits(network_a, network_b), (a.averaged, b.averaged), (a.loss, b.loss)
    )
    for epoch in range(1, epochs + 1):
        losses = [
            one.epoch(other.averaged, mixup, prepare or nn.Identity(), generator)
            for one, other in ((a, b), (b, a))
        ]
        trained.model.eval()
        metrics = {"loss": sum(losses) / 2}
        trained.diverged = not math.isfinite(metrics["loss"])
        if evaluate is not None and not trained.diverged:
            with torch.no_grad():
                metrics |= evaluate(trained.model)
        trained.epochs.append(metrics)
        report(epoch, epochs, **{name.replace(" ", "_"): x for name, x in metrics.items()})
        if trained.diverged:
            break
    return trained


def ramped_average(network: nn.Module, average: int | float, rampup: int) -> AveragedModel:
    """The weight average of `network`, in evaluation mode, whose rate m rises to `average`.

    Its buffers, such as running statistics, are those of the network. The first of its
    `update_parameters` copies the weights, as all of torch's averages do.

    Example:
        >>> averaged = ramped_average(nn.Linear(2, 2), 0.997, rampup=40_000)
        >>> averaged.training
        False
    """

    def step(averages: Any, weights: Any, number: Any) -> None:
        # The count of the average itself: `number` may be on an accelerator, and would be awaited.
        rate = average * sigmoid_rampup(int(averaged.n_averaged) + 1, rampup)
        torch._foreach_lerp_(averages, weights, 1 - rate)

    averaged = AveragedModel(network, multi_avg_fn=step)
    return averaged.eval()


@dataclass
class _Learner:
    """One of the two networks, with what is its own."""

    name: str
    network: nn.Module
    averaged: AveragedModel
    batches: Epochs
    loss: EarlyLearningPlusLoss
    optimizer: Optimizer
    scheduler: LRScheduler | None
    steps: int = 0

    def epoch(
        self,
        peer: AveragedModel,
        mixup: int | float,
        prepare: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> float:
        """One pass over the batches; returns the mean loss, which is NaN or infinite if one was."""
        self.network.train()
        device, classes = self.loss.targets.device, self.loss.targets.shape[1]
        losses = []
        for batch in itertools.islice(self.batches, len(self.batches)):
            inputs, labels, index = _triple(batch, self.name, classes)
            x = prepare(inputs.to(device))
            y = F.one_hot(labels.to(device).long(), classes).to(torch.float32)
            with torch.no_grad():
                targets = self.loss.update(peer(x), index)
            weight, order = 1.0, torch.arange(len(x))
            if mixup:
                weight = mixing_weight(mixup, generator)
                weight, order = max(weight, 1 - weight), torch.randperm(len(x), generator=generator)
            order = order.to(device)
            mixed = [torch.lerp(whole[order], whole, weight) for whole in (x, y, targets)]
            loss = self.loss(self.network(mixed[0]), mixed[1], mixed[2], self.steps)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.averaged.update_parameters(self.network)
            losses.append(loss.detach())
            self.steps += 1
        if self.scheduler is not None:
            self.scheduler.step()
        if not losses:
            raise ValueError(f"{self.name}: no batches given, at least one expected")
        return float(torch.stack(losses).mean())


def _triple(batch: Any, name: str, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) != 3:
        given = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise ValueError(f"{name}: batches of {given} given, (input, label, index) expected")
    inputs, labels, index = batch
    if labels.ndim != 1 or index.shape != labels.shape or len(inputs) != len(labels):
        raise ValueError(
            f"{name}: labels {tuple(labels.shape)} and indices {tuple(index.shape)} given for "
            f"{len(inputs)} inputs, one each expected"
        )
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise ValueError(f"{name}: label {wrong} given, a class in [0, {classes}) expected")
    return inputs, labels, index
