"""Sums over the rows of products of Gaussian Gram matrices, without storing the matrices.

    s_pj = log Σ_i Π_{d ∈ p} exp(−½ |u^d_j − v^d_i|²)

for every row j and every product p of a list. The gradient needs the same matrices again,

    ∂s_pj / ∂u^d_j = Σ_i w_ji (v^d_i − u^d_j),   w_ji = Π exp(…) / exp(s_pj),

and they are computed again for some rows at a time, so that memory is linear in the rows. If they
are few they are kept. Second derivatives are not implemented.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from heterodox.losses.gaussian_kernels import half_distances

# Of each matrix that a block of rows needs: 4 MB in float32, so that 1024 rows are one block.
ENTRIES = 2**20

Pairs = tuple[tuple[int, int], ...]
Products = tuple[tuple[int, ...], ...]


def log_row_sums(
    points: Sequence[Tensor], pairs: Pairs, products: Products, block_size: int | None = None
) -> Tensor:
    """The logarithms s, (products, rows), in float64 where there is one.

    Args:
        points: sets of vectors, (rows, dim) each, in units of their kernels' widths.
        pairs: of sets, by their numbers; each pair is a Gram matrix, rows of the first by rows of
            the second. The first sets have one length, and so have the second ones.
        products: of Gram matrices, by their numbers in `pairs`; a number twice is a square.
        block_size: rows at a time; None takes as many as keep a matrix within `ENTRIES`. It
            changes memory and speed, not the result.

    Raises:
        ValueError: `block_size` is not positive.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> log_row_sums([x], ((0, 0),), ((0,), (0, 0))).exp().float()
        tensor([[1.6065, 1.6065],
                [1.3679, 1.3679]])
    """
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size: {block_size} given, a positive number or None expected")
    size = block_size or max(1, ENTRIES // max(1, len(points[pairs[0][1]])))
    return _LogRowSums.apply(pairs, products, size, *points)


class _LogRowSums(Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, products: Products, size: int, *points: Tensor) -> Tensor:
        rows = len(points[pairs[0][0]])
        ctx.pairs, ctx.products, ctx.size = pairs, products, size
        ctx.grams = None
        blocks = []
        for start in range(0, rows, size):
            grams = _Grams(points, pairs, slice(start, start + size))
            blocks.append(torch.stack([grams.log_sums(product) for product in products]))
            if size >= rows and any(ctx.needs_input_grad[3:]):
                ctx.grams = grams
        log_sums = torch.cat(blocks, dim=1)
        ctx.save_for_backward(log_sums, *points)
        return log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        log_sums, *points = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        gradients = [
            torch.zeros_like(x) if need else None for x, need in zip(points, needed, strict=True)
        ]
        for start in range(0, log_sums.shape[1], ctx.size):
            rows = slice(start, start + ctx.size)
            grams = ctx.grams or _Grams(points, ctx.pairs, rows)
            for number, (first, second) in enumerate(ctx.pairs):
                if not needed[first] and not needed[second]:
                    continue
                weights = grams.weights(number, ctx.products, log_sums[:, rows], gradient[:, rows])
                u, v = points[first][rows], points[second]
                if needed[first]:
                    gradients[first][rows] += weights @ v - weights.sum(1, keepdim=True) * u
                if needed[second]:
                    gradients[second] += weights.mT @ u - weights.sum(0)[:, None] * v
        ctx.grams = None
        return None, None, None, *gradients


class _Grams:
    """Gram matrices of some rows and their products, those between two different sets divided by
    the largest entry of each row.

    Between a set and itself, sums hold the 1 of the diagonal. Between two sets that are far apart
    every entry may be 0, while the logarithm of the sum and its gradient are not.
    """

    def __init__(self, points: Sequence[Tensor], pairs: Pairs, rows: slice) -> None:
        self.own = [a == b for a, b in pairs]
        self.distances = [half_distances(points[a][rows], points[b]) for a, b in pairs]
        for distances, own in zip(self.distances, self.own, strict=True):
            if own:  # squares cancel: far from the mean a row's distance to itself is not 0
                distances.diagonal(rows.start).zero_()
        self.grams = [
            distances.neg().exp() if own else distances
            for distances, own in zip(self.distances, self.own, strict=True)
        ]
        self.products: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def product(self, factors: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Entries, and the logarithms of what they were divided by."""
        if factors not in self.products:
            self.products[factors] = self._product(*factors)
        return self.products[factors]

    def _product(self, first: int, *others: int) -> tuple[Tensor, Tensor | None]:
        if all(self.own[d] for d in (first, *others)):
            entries = self.grams[first]
            for d in others:
                entries = entries * self.grams[d]
            return entries, None
        distances = self.distances[first]
        for d in others:
            distances = distances + self.distances[d]
        nearest = distances.amin(1, keepdim=True)
        return (nearest - distances).exp_(), -nearest[:, 0]

    def log_sums(self, factors: tuple[int, ...]) -> Tensor:
        entries, log_largest = self.product(factors)
        log_sums = wide(entries.sum(1)).log()
        return log_sums if log_largest is None else log_sums + log_largest

    def weights(
        self, number: int, products: Products, log_sums: Tensor, gradient: Tensor
    ) -> Tensor:
        """w of all products with this factor, times the gradients of their sums."""
        total = torch.zeros_like(self.distances[number])
        for factors, log_sum, slope in zip(products, log_sums, gradient, strict=True):
            if number in factors:
                entries, log_largest = self.product(factors)
                log_sum = log_sum if log_largest is None else log_sum - log_largest
                scale = factors.count(number) * slope * (-log_sum).exp()
                total.addcmul_(entries, scale.to(total.dtype)[:, None])
        return total


def wide(x: Tensor) -> Tensor:
    """`x` in float64 where there is one: what follows subtracts logarithms that nearly cancel."""
    return x if x.device.type == "mps" else x.double()
