"""What tells sequence mixers apart once they are written as systems, as a table.

Questions of "Understanding the differences in Foundation Models", arXiv 2405.15731: how large
the state is, what the transition may be, and how far back the outputs reach. The measures of
reach and of rank are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from heterodox.sequence.system import DynamicalSystem


@dataclass(frozen=True)
class SystemSummary:
    """One row of the table.

    Attributes:
        state_size: numbers in the state.
        smallest_transition, largest_transition: range of |Λ|, over all positions but the first,
            where there is nothing to keep; of the eigenvalues, where Λ is full.
        memory_length: positions that the last output rests on, (Σ_j w_j)² / Σ_j w_j² with
            w_j = ‖Φ_ij‖: as many as there are, if all weigh the same; mean over the batch.
        kernel_rank: rank of Φ from the first half of the positions to the second, which is what
            passes through the state and at most its size; mean over the batch.
    """

    state_size: int
    smallest_transition: float
    largest_transition: float
    memory_length: float
    kernel_rank: float


class Comparison(dict[str, SystemSummary]):
    """Name -> summary; prints as a table."""

    def __str__(self) -> str:
        names = [field.name for field in fields(SystemSummary)]
        table = [["", *(name.replace("_", " ") for name in names)]]
        for system, summary in self.items():
            table.append([system, *(f"{getattr(summary, name):.4g}" for name in names)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in table
        ]
        return "\n".join(lines)


@torch.no_grad()
def compare(systems: Mapping[str, DynamicalSystem]) -> Comparison:
    """State size, range of the transition, memory and rank of each system.

    Args:
        systems: by name, of two positions or more. Kernels are stored: keep them short.

    Raises:
        ValueError: there is no system, or one of fewer than two positions.

    Example:
        >>> from heterodox.sequence import QLSTM, LinearAttention
        >>> x = torch.randn(1, 12, 4)
        >>> layers = {"linear attention": LinearAttention(4, 2), "qLSTM": QLSTM(4)}
        >>> table = compare({name: layer.dynamical_system(x) for name, layer in layers.items()})
        >>> table["linear attention"].state_size, table["qLSTM"].state_size
        (8, 20)
        >>> print(table)  # doctest: +SKIP
                          state size  smallest transition  largest transition  memory length  ...
        linear attention           8               0.4787              0.9323          11.81  ...
        qLSTM                     20                    0              0.7312          2.941  ...
    """
    if not systems:
        raise ValueError("systems: none given, at least one expected")
    for name, system in systems.items():
        if system.length < 2:
            raise ValueError(
                f"systems: {name!r} of length {system.length} given, at least 2 expected"
            )
    return Comparison({name: _summary(system) for name, system in systems.items()})


def _summary(system: DynamicalSystem) -> SystemSummary:
    system = system.to(torch.float64)
    if system.is_dense:
        sizes = torch.linalg.eigvals(system.transition[..., 1:, :, :]).abs()
    else:
        sizes = system.transition[..., 1:, :].abs()
    kernel = system.kernel()
    weights = kernel[..., -1, :, :, :].flatten(-2).norm(dim=-1)
    reach = weights.sum(-1).square() / weights.square().sum(-1)
    return SystemSummary(
        system.state_size,
        sizes.min().item(),
        sizes.max().item(),
        reach.mean().item(),
        _rank_across_the_middle(kernel).double().mean().item(),
    )


def _rank_across_the_middle(kernel: Tensor) -> Tensor:
    middle = kernel.shape[-3] // 2
    block = kernel[..., middle:, :middle, :, :].transpose(-3, -2)
    return torch.linalg.matrix_rank(block.flatten(-2).flatten(-3, -2))
