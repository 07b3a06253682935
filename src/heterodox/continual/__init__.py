"""Continual learning: tasks that come one after another, and rules that keep the old ones."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.continual.elastic_weights import ElasticWeights
    from heterodox.continual.metrics import accuracy_matrix, average_accuracy, backward_transfer
    from heterodox.continual.orthogonal_projection import (
        HebbianSubspace,
        OrthogonalProjection,
        ProjectedConv2d,
        ProjectedLinear,
        gradient_projection_basis,
        hebbian_subspace_update,
        project,
        project_out,
    )
    from heterodox.continual.spiking_mlp import SpikingMLP
    from heterodox.continual.streams import ImageTask, permuted_tasks, split_tasks

_EXPORTS = {
    "ElasticWeights": "heterodox.continual.elastic_weights",
    "HebbianSubspace": "heterodox.continual.orthogonal_projection",
    "ImageTask": "heterodox.continual.streams",
    "OrthogonalProjection": "heterodox.continual.orthogonal_projection",
    "ProjectedConv2d": "heterodox.continual.orthogonal_projection",
    "ProjectedLinear": "heterodox.continual.orthogonal_projection",
    "SpikingMLP": "heterodox.continual.spiking_mlp",
    "accuracy_matrix": "heterodox.continual.metrics",
    "average_accuracy": "heterodox.continual.metrics",
    "backward_transfer": "heterodox.continual.metrics",
    "gradient_projection_basis": "heterodox.continual.orthogonal_projection",
    "hebbian_subspace_update": "heterodox.continual.orthogonal_projection",
    "permuted_tasks": "heterodox.continual.streams",
    "project": "heterodox.continual.orthogonal_projection",
    "project_out": "heterodox.continual.orthogonal_projection",
    "split_tasks": "heterodox.continual.streams",
}

__all__ = [
    "ElasticWeights",
    "HebbianSubspace",
    "ImageTask",
    "OrthogonalProjection",
    "ProjectedConv2d",
    "ProjectedLinear",
    "SpikingMLP",
    "accuracy_matrix",
    "average_accuracy",
    "backward_transfer",
    "gradient_projection_basis",
    "hebbian_subspace_update",
    "permuted_tasks",
    "project",
    "project_out",
    "split_tasks",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
