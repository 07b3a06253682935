"""One exact gradient step on W = V U + 1 wᵀ without W, and what keeps its factors healthy.

    G = Eᵀ H,   E = diag(g_A) Y + diag(2 g_q) H Wᵀ + g_s 1ᵀ       the gradient of the loss in W
    W − η (G + λ W) = W R − η (1 uᵀ + Yᵀ diag(g_A) H),   u = Hᵀ g_s
    R = (1 − η λ) I − η Hᵀ B,   B = 2 g_q ∘ H

    U ← U R,   w ← R w − η u,   V ← V − η Yᵀ diag(g_A) H U⁻¹,   U⁻¹ ← R⁻¹ U⁻¹
    W̄ ← R W̄ − η (D u + g),      g = Hᵀ g_A,   W̄ = Wᵀ 1
    Q ← R Q R − η (R Zᵀ H + Hᵀ Z R) + η² (D u uᵀ + u gᵀ + g uᵀ + Fᵀ F),   Q = Wᵀ W

for hidden rows H (m × d), one-hot targets Y, and the loss's gradients g_A, g_q, g_s in o_c, Σ o²
and Σ o. Z = g_A ∘ W_y + g_s W̄ᵀ, and F holds the rows of g_A ∘ H, summed for each class. Vincent, de
Brébisson and Bouthillier, "Efficient Exact Gradient Update for training Deep Networks with Very
Large Sparse Targets", NIPS 2015, arXiv 1412.7091; R, and weight decay in it, are our way to write
it. Time O(m d² + m² d) or, for m ≥ d, O(m d² + d³); none of it depends on the number of classes D.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Singular values of U beyond these are brought back to 1, as in the authors' code.
SMALLEST, LARGEST = 0.5, 2.0

ROWS_AT_ONCE = 2**16


class Record(NamedTuple):
    """A minibatch and the gradients of its loss: all that a step needs besides the factors.

    Attributes:
        hidden: H.
        target: y.
        row: W_y, the targets' rows of W.
        target_grad, square_grad, total_grad: g_A, g_q and g_s.
    """

    hidden: Float[Tensor, "batch width"]
    target: Int[Tensor, "batch"]
    row: Float[Tensor, "batch width"]
    target_grad: Float[Tensor, "batch"]
    square_grad: Float[Tensor, "batch"]
    total_grad: Float[Tensor, "batch"]

    def contraction_bound(self, rate: float) -> Float[Tensor, ""]:
        """A bound on the eigenvalues of η Hᵀ B; NaN if anything in the record is not finite."""
        squares = self.hidden.square().sum(-1)
        bound = 2 * rate * (self.square_grad.abs() * squares).sum()
        return bound + 0 * (self.target_grad.sum() + self.total_grad.sum() + squares.sum())


class Contraction:
    """R = r I − η Hᵀ B, applied without being formed where the batch is narrower than R.

    Args:
        record: of the step.
        rate: η.
        keep: r = 1 − η λ.
    """

    def __init__(self, record: Record, rate: float, keep: float) -> None:
        self.hidden = record.hidden
        self.scaled = 2 * rate * record.square_grad[:, None] * record.hidden
        self.keep = keep
        rows, width = record.hidden.shape
        self.matrix = None
        if rows >= width:
            eye = torch.eye(width, dtype=self.hidden.dtype, device=self.hidden.device)
            self.matrix = keep * eye - self.hidden.mT @ self.scaled

    def after(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """x R."""
        if self.matrix is not None:
            return x @ self.matrix
        return self.keep * x - (x @ self.hidden.mT) @ self.scaled

    def inverse_times(self, x: Float[Tensor, "width columns"]) -> Float[Tensor, "width columns"]:
        """R⁻¹ x, by Cholesky, or by the Woodbury identity; R must be positive definite."""
        if self.matrix is not None:
            return torch.cholesky_solve(x, torch.linalg.cholesky_ex(self.matrix).L)
        rows = len(self.hidden)
        eye = torch.eye(rows, dtype=x.dtype, device=x.device)
        inner = self.keep * eye - self.scaled @ self.hidden.mT
        # The _ex forms leave the check to the caller, who has made it: no wait for a GPU.
        correction = torch.linalg.solve_ex(inner, self.scaled @ x).result
        return (x + self.hidden.mT @ correction) / self.keep

    def extreme_eigenvalues(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of R."""
        values = torch.linalg.eigvalsh(self.hidden.mT @ self.scaled)
        if not len(values):
            return self.keep, self.keep
        largest, smallest = values[[-1, 0]].tolist()
        return self.keep - largest, self.keep - smallest


class Factors(NamedTuple):
    """W = V U + 1 wᵀ, and what is kept in step with it; every method works in place.

    Attributes:
        V, U, w: the factors.
        Uinv, Q, wbar: U⁻¹, Wᵀ W and Wᵀ 1.
    """

    V: Float[Tensor, "classes width"]
    U: Float[Tensor, "width width"]
    w: Float[Tensor, "width"]
    Uinv: Float[Tensor, "width width"]
    Q: Float[Tensor, "width width"]
    wbar: Float[Tensor, "width"]

    def descend(
        self, record: Record, contraction: Contraction, rate: float, refactor: bool
    ) -> None:
        """The step; with `refactor` W is written into V in between, and R may be singular."""
        hidden, total_grad = record.hidden, record.total_grad
        pulled = record.target_grad[:, None] * hidden
        classes, summed = _by_class(record.target, pulled)
        u, g = hidden.mT @ total_grad, pulled.sum(0)
        z = record.target_grad[:, None] * record.row + total_grad[:, None] * self.wbar
        cross = contraction.after(hidden.mT @ z)
        outer = torch.outer(u, g + len(self.V) / 2 * u)
        square = contraction.after(contraction.after(self.Q).mT) - rate * (cross + cross.mT)
        square += rate**2 * (outer + outer.mT + summed.mT @ summed)
        self.Q.copy_((square + square.mT) / 2)
        self.wbar.copy_(contraction.after(self.wbar) - rate * (len(self.V) * u + g))
        self.w.copy_(contraction.after(self.w) - rate * u)
        self.U.copy_(contraction.after(self.U))
        if refactor:
            self.refactor()
        else:
            self.Uinv.copy_(contraction.inverse_times(self.Uinv))
        self.V.index_add_(0, classes, summed @ self.Uinv, alpha=-rate)

    def refactor(self) -> None:
        """V ← V U + 1 wᵀ, U ← I, w ← 0, in O(D d²)."""
        for rows in self.V.split(ROWS_AT_ONCE):
            rows.copy_(torch.addmm(self.w, rows, self.U))
        self.w.zero_()
        for matrix in (self.U, self.Uinv):
            matrix.zero_().fill_diagonal_(1)

    def stabilise(self) -> float:
        """Brings U's singular values into [1/2, 2], leaving W as it is, in O(D d) for each that is
        out of range; returns the largest |log| of those that remain.

        Raises:
            FloatingPointError: U is not finite.
        """
        if not self.U.isfinite().all():
            raise FloatingPointError("U: not finite")
        left, values, right = torch.linalg.svd(self.U)
        outside = (values < SMALLEST) | (values > LARGEST)
        count = int(outside.sum())
        if count > len(values) / 3:
            self.refactor()
            return 0.0
        if count:
            vectors, excess = left[:, outside], values[outside] - 1
            for rows in self.V.split(ROWS_AT_ONCE):
                rows.addmm_(rows @ (vectors * excess), vectors.mT)
        values = values.masked_fill(outside, 1.0)
        self.U.copy_(left @ (values[:, None] * right))
        self.Uinv.copy_((right.mT / values) @ left.mT)
        return float(values.log().abs().max())

    def renew_inverse(self) -> None:
        """U⁻¹ from U."""
        self.Uinv.copy_(torch.linalg.inv_ex(self.U).inverse)

    def renew_sums(self) -> None:
        """Q and W̄ from V, in O(D d²)."""
        square, total = self.sums()
        self.Q.copy_(square)
        self.wbar.copy_(total)

    def sums(self) -> tuple[Float[Tensor, "width width"], Float[Tensor, "width"]]:
        """Wᵀ W and Wᵀ 1, computed from V."""
        classes, total = len(self.V), self.V.sum(0) @ self.U
        mixed = torch.outer(total, self.w)
        square = self.U.mT @ (self.V.mT @ self.V) @ self.U + mixed + mixed.mT
        square += classes * torch.outer(self.w, self.w)
        return (square + square.mT) / 2, total + classes * self.w


def _by_class(
    target: Int[Tensor, "batch"], rows: Float[Tensor, "batch width"]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch width"]]:
    """The classes in `target`, and for each the sum of its rows; rows left over are 0, of class 0.

    Unlike `torch.unique` it does not wait for a GPU to know how many classes there are.
    """
    ordered, order = target.sort(stable=True)
    new = torch.ones_like(ordered)
    new[1:] = ordered[1:] != ordered[:-1]
    place = new.cumsum(0) - 1
    classes = torch.zeros_like(ordered).scatter_(0, place, ordered)
    summed = torch.zeros_like(rows)
    if rows.is_cuda:  # where index_add_ sums in another order every time
        return classes, summed.index_put_((place,), rows[order], accumulate=True)
    return classes, summed.index_add_(0, place, rows[order])
