"""What is kept of earlier tasks: accuracies after each task, their mean, and how they moved.

    ACC = mean_j A[T, j],     BWT = mean_{j < T} (A[T, j] - A[j, j])

with A[t, j] the accuracy on task j after task t of T. A negative BWT is forgetting. Lopez-Paz and
Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv 1706.08840.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Task = TypeVar("Task")


def accuracy_matrix(
    tasks: Sequence[Task],
    learn: Callable[[int, Task], object],
    accuracy: Callable[[int, Task], float],
) -> Float[Tensor, "{len(tasks)} {len(tasks)}"]:
    """The protocol: learns one task after the other, and after each measures all so far.

    Args:
        tasks: in the order in which they come.
        learn: called once for each, with its number from 0 on.
        accuracy: on a task that has been learned; NaN where it cannot be measured, which stays NaN.

    Returns:
        A, with NaN above the diagonal: tasks that have not come yet.

    Raises:
        ValueError: there are no tasks.

    Example:
        >>> learned = []
        >>> matrix = accuracy_matrix(
        ...     ["a", "b"],
        ...     lambda number, task: learned.append(task),
        ...     lambda number, task: 90.0 if task == learned[-1] else 80.0,
        ... )
        >>> matrix.tolist(), average_accuracy(matrix), backward_transfer(matrix)
        ([[90.0, nan], [80.0, 90.0]], 85.0, -10.0)
    """
    if not tasks:
        raise ValueError("tasks: none given, at least one expected")
    matrix = torch.full((len(tasks), len(tasks)), torch.nan, dtype=torch.float64)
    for number, task in enumerate(tasks):
        learn(number, task)
        for earlier, known in enumerate(tasks[: number + 1]):
            matrix[number, earlier] = accuracy(earlier, known)
    return matrix


def average_accuracy(matrix: Float[Tensor, "tasks tasks"]) -> float:
    """ACC: the mean over tasks at the end.

    Raises:
        ValueError: `matrix` is not square or empty.

    Example:
        >>> average_accuracy(torch.tensor([[90.0, torch.nan], [70.0, 80.0]]))
        75.0
    """
    _check_matrix(matrix, 1)
    return matrix[-1].double().mean().item()


def backward_transfer(matrix: Float[Tensor, "tasks tasks"]) -> float:
    """BWT: what later tasks did to earlier ones, in the mean; negative is forgetting.

    Raises:
        ValueError: `matrix` is not square, or there is one task only, after which nothing came.

    Example:
        >>> backward_transfer(torch.tensor([[90.0, torch.nan], [70.0, 80.0]]))
        -20.0
    """
    _check_matrix(matrix, 2)
    moved = matrix[-1] - matrix.diagonal()
    return moved[:-1].double().mean().item()


def _check_matrix(matrix: Tensor, least: int) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < least:
        raise ValueError(
            f"matrix: shape {tuple(matrix.shape)} given, accuracies of {least} or more tasks, "
            "(tasks, tasks), expected"
        )
