"""Continual learning with Hebbian orthogonal projection: a model that goes from task to task.

    task 1        neurons beside every layer learn the subspace of its inputs; weights learn freely
    task 2, 3...  weights learn outside of the subspace of all earlier tasks, new neurons learn what
                  that subspace leaves; biases, normalisation and thresholds stay as they are

Any training rule will do whose update is (error) x (input), or x (trace). Xiao et al., ICLR 2024,
arXiv 2402.11984. Here are its parts:

- `heterodox.continual.hebbian_subspace`: the neurons and their rule;
- `heterodox.continual.projected_layers`: layers whose gradient is projected;
- `heterodox.continual.gradient_projection`: the same subspace by singular values, the baseline.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heterodox.continual.gradient_projection import gradient_projection_basis
from heterodox.continual.hebbian_subspace import (
    HebbianSubspace,
    hebbian_subspace_update,
    project,
    project_out,
)
from heterodox.continual.projected_layers import ProjectedConv2d, ProjectedLinear

__all__ = [
    "HebbianSubspace",
    "OrthogonalProjection",
    "ProjectedConv2d",
    "ProjectedLinear",
    "gradient_projection_basis",
    "hebbian_subspace_update",
    "project",
    "project_out",
]


class OrthogonalProjection:
    """Takes a model with projected layers from task to task.

    Args:
        model: with layers `ProjectedLinear` or `ProjectedConv2d`; other layers learn freely.

    Raises:
        ValueError: there are no such layers.

    Example:
        >>> model = nn.Sequential(ProjectedLinear(8, 16), nn.ReLU(), ProjectedLinear(16, 4))
        >>> learner = OrthogonalProjection(model)
        >>> for units in ([4, 6], 2):  # neurons of each layer for the first task, for the second
        ...     learner.begin_task(units)
        ...     loss = model(torch.randn(32, 8)).square().mean()
        ...     loss.backward()  # then a step of plain SGD
        ...     learner.end_task()
        >>> [layer.subspace.num_frozen for layer in learner.layers]
        [6, 8]
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = list(_projected_layers(model))
        if not self.layers:
            raise ValueError(
                "model: no projected layers given, ProjectedLinear or ProjectedConv2d expected"
            )
        # A model whose banks hold frozen rows, such as a loaded one, has tasks behind it.
        self.tasks_done = 0
        if any(layer.subspace.num_frozen for layer in self.layers):
            self.tasks_done = 1
            self._freeze_vectors()

    def begin_task(
        self, units: int | list[int], *, generator: torch.Generator | None = None
    ) -> None:
        """Adds neurons that learn during the task; after the first task switches projection on.

        Args:
            units: for every layer, or one number for each, from the input on.
            generator: of the CPU, for the neurons' first weights.

        Raises:
            ValueError: another number of layers; numbers that do not fit, see
                `HebbianSubspace.grow`; or the task before has not ended.
        """
        counts = [units] * len(self.layers) if isinstance(units, int) else list(units)
        if len(counts) != len(self.layers):
            raise ValueError(
                f"units: {len(counts)} numbers given, one for each of {len(self.layers)} layers "
                "expected"
            )
        for layer, count in zip(self.layers, counts, strict=True):
            room = layer.subspace.in_features - layer.subspace.num_units
            if not 0 <= count <= room:
                raise ValueError(
                    f"units: {count} given for a layer with room for {room}, 0 to {room} expected"
                )
        for layer, count in zip(self.layers, counts, strict=True):
            layer.subspace.grow(count, generator=generator)
            layer.learning = True
            layer.projecting = self.tasks_done > 0

    def end_task(self) -> None:
        """Freezes the neurons; after the first task also all that is no matrix.

        Parameters with less than two axes (biases, normalisation, thresholds) lose their gradient,
        and batch normalisation stays in evaluation mode, whatever `model.train()` says. Build the
        optimizer of the next task afterwards.
        """
        for layer in self.layers:
            layer.subspace.freeze()
            layer.learning = False
        if self.tasks_done == 0:
            self._freeze_vectors()
        self.tasks_done += 1

    def _freeze_vectors(self) -> None:
        for parameter in self.model.parameters():
            if parameter.ndim < 2:
                parameter.requires_grad_(False)
                parameter.grad = None
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
                module.register_forward_pre_hook(_in_evaluation_mode)


def _projected_layers(model: nn.Module) -> Iterator[ProjectedLinear | ProjectedConv2d]:
    for module in model.modules():
        if isinstance(module, ProjectedLinear | ProjectedConv2d):
            yield module


def _in_evaluation_mode(module: nn.Module, inputs: Any) -> None:
    module.training = False
