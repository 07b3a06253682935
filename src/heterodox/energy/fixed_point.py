"""Fixed points q = F(q): found by plain iteration or Anderson's method, differentiated implicitly.

    picard:   q ← F(q)
    anderson: q ← Σ_i w_i F(q_i) of the last q_i, Σ w = 1, with the least ‖Σ_i w_i (F(q_i) − q_i)‖
    gradient: g = Jᵀ g + g_out with J = ∂F/∂q at the fixed point, solved by the same method

Anderson, J. ACM 1965; Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019, arXiv
1909.01377. Every sample of the batch has its own weights and stops by itself. Memory: the last five
iterates, whatever the number of iterations.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Step = Callable[[Tensor], Tensor]
Solver = Literal["anderson", "picard"]

# Anderson's method: memory and ridge of arXiv 2307.04990. The ridge is here a share of each
# iterate's own squared residual; an absolute one outweighs residuals below its square root.
MEMORY = 5
RIDGE = 1e-4

# An iterate whose residual is so many times the smallest so far sends its sample back there.
FARTHEST = 2.0


@dataclass(frozen=True)
class SolverInfo:
    """How a solution ended.

    Attributes:
        iterations: calls of the step.
        residual: the largest of the batch, ‖F(q) − q‖ / ‖F(q)‖ at its last call.
        converged: whether it is within the tolerance.

    Example:
        >>> solve_fixed_point(torch.neg, torch.ones(1, 1), solver="picard", max_iter=3)[1]
        SolverInfo(iterations=3, residual=2.0, converged=False)
    """

    iterations: int
    residual: float
    converged: bool


def solve_fixed_point(
    step: Step,
    start: Float[Tensor, "batch *shape"],
    *,
    solver: str = "anderson",
    tolerance: float = 1e-4,
    max_iter: int = 100,
) -> tuple[Float[Tensor, "batch *shape"], SolverInfo]:
    """A fixed point of `step`, without a gradient.

    A sample whose step changes it by less than the tolerance is done and keeps what that step gave.
    Anderson's method goes back to the best iterate, and a plain step from there, when it has gone
    astray; so it ends wherever plain iteration does. Without convergence the last result is
    returned, and the record says so.

    Args:
        step: F; from all samples to all samples, each by itself.
        start: first q, one sample a row. float16 and bfloat16 are what `step` gets, while the rest
            is computed in float32.
        solver: "anderson" or "picard".
        tolerance: of the residual relative to ‖F(q)‖ over a sample. Less than 8 units of the
            dtype's precision counts as that.
        max_iter: calls of `step` at most.

    Raises:
        ValueError: `start` has no batch axis or no floating type, `solver` is neither, `tolerance`
            is not positive, or `max_iter` below 1.

    Example:
        >>> q, info = solve_fixed_point(torch.cos, torch.zeros(1, 1), tolerance=1e-6)
        >>> round(q.item(), 4), info.converged, info.iterations < 10
        (0.7391, True, True)
    """
    if start.ndim < 1 or not start.is_floating_point():
        raise ValueError(
            f"start: {start.dtype} of shape {tuple(start.shape)} given, "
            "a floating (batch, ...) expected"
        )
    check_solver(solver, tolerance, max_iter)
    tolerance = max(tolerance, 8 * torch.finfo(start.dtype).eps)
    with torch.no_grad():
        if start.numel() == 0:
            return start.clone(), SolverInfo(0, 0.0, True)
        method = _anderson if solver == "anderson" else _picard
        working = torch.promote_types(start.dtype, torch.float32)
        q, info = method(
            lambda q: step(q.to(start.dtype)).to(working), start.to(working), tolerance, max_iter
        )
        return q.to(start.dtype), info


def implicit_fixed_point(
    step: Step,
    start: Float[Tensor, "batch *shape"],
    *,
    adjoint: Callable[[Tensor, Tensor], Tensor] | None = None,
    solver: str = "anderson",
    tolerance: float = 1e-4,
    max_iter: int = 100,
) -> tuple[Float[Tensor, "batch *shape"], SolverInfo]:
    """A fixed point of `step`, with its exact gradient in everything that `step` depends on.

    The iteration leaves nothing behind for the backward pass, which needs one call of `step` and
    products with its Jacobian. There are no second derivatives. Without convergence there is a
    warning, for the gradient as well. Arguments and errors as for `solve_fixed_point`, and

    Args:
        adjoint: from F(q) at the fixed point and g to Jᵀ g, where that is known; by autograd, at
            the cost of a backward pass of `step`, if None.

    Example:
        >>> b = torch.tensor([[0.5]], requires_grad=True)
        >>> q, _ = implicit_fixed_point(lambda q: torch.tanh(b - q), torch.zeros(1, 1))
        >>> q.sum().backward()
        >>> slope = 1 - q.detach() ** 2  # dq = slope (db − dq)
        >>> torch.allclose(b.grad, slope / (1 + slope), atol=1e-3)
        True
    """
    found, info = solve_fixed_point(
        step, start, solver=solver, tolerance=tolerance, max_iter=max_iter
    )
    _warn_unless(info, "fixed point")
    if not torch.is_grad_enabled():
        return step(found), info
    inner = found.detach().requires_grad_(adjoint is None)
    attached = step(inner)
    if not attached.requires_grad or attached.numel() == 0:
        return attached, info
    after = attached.detach()

    def solve(gradient: Tensor) -> Tensor:
        def transposed(g: Tensor) -> Tensor:
            if adjoint is not None:
                return adjoint(after, g) + gradient
            (back,) = torch.autograd.grad(
                attached, inner, g, retain_graph=True, materialize_grads=True
            )
            return back + gradient

        solution, back_info = solve_fixed_point(
            transposed, gradient, solver=solver, tolerance=tolerance, max_iter=max_iter
        )
        _warn_unless(back_info, "gradient")
        return solution

    return _Implicit.apply(attached, solve), info


class _Implicit(torch.autograd.Function):
    """The identity, whose gradient is put through `solve`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, solve: Step) -> Tensor:
        ctx.solve = solve
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradient), None


def check_solver(solver: str, tolerance: float, max_iter: int) -> None:
    if solver not in ("anderson", "picard"):
        raise ValueError(f"solver: {solver!r} given, 'anderson' or 'picard' expected")
    if not tolerance > 0:
        raise ValueError(f"tolerance: {tolerance} given, a positive number expected")
    if max_iter < 1:
        raise ValueError(f"max_iter: {max_iter} given, at least 1 expected")


def _warn_unless(info: SolverInfo, what: str) -> None:
    if not info.converged:
        warnings.warn(
            f"the {what} did not converge to the tolerance within max_iter; see the solver's info",
            RuntimeWarning,
            stacklevel=3,
        )


def _distance(after: Tensor, before: Tensor) -> Float[Tensor, "batch"]:
    return (after - before).flatten(1).norm(dim=1)


def _relative(distance: Tensor, after: Tensor) -> Float[Tensor, "batch"]:
    return distance / after.flatten(1).norm(dim=1).clamp(min=torch.finfo(after.dtype).tiny)


def _picard(step: Step, q: Tensor, tolerance: float, max_iter: int) -> tuple[Tensor, SolverInfo]:
    done = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    residual = torch.full((len(q),), torch.inf, dtype=q.dtype, device=q.device)
    iteration = 0
    while iteration < max_iter and not bool(done.all()):
        iteration += 1
        after = step(q)
        residual = torch.where(done, residual, _relative(_distance(after, q), after))
        q = torch.where(done.view(-1, *[1] * (q.ndim - 1)), q, after)
        done |= residual <= tolerance
    return q, SolverInfo(iteration, float(residual.max()), bool(done.all()))


def _anderson(step: Step, q: Tensor, tolerance: float, max_iter: int) -> tuple[Tensor, SolverInfo]:
    """Rings of the last iterates and their images; `held` says which of them a sample still uses.

    A sample that has gone astray forgets them, and begins anew with the image of its best iterate.
    """
    flat = result = q.flatten(1)
    iterates = flat.new_zeros(len(q), MEMORY, flat.shape[1])
    images = torch.zeros_like(iterates)
    held = torch.zeros(len(q), MEMORY, dtype=torch.bool, device=q.device)
    done = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    residual = flat.new_full((len(q),), torch.inf)
    least, best = residual, flat  # the smallest distance so far, and the image there
    iteration = 0
    while True:
        after = step(flat.view(q.shape)).flatten(1)
        distance = _distance(after, flat)
        residual = torch.where(done, residual, _relative(distance, after))
        result = torch.where(done[:, None], result, after)
        done |= residual <= tolerance
        place = iteration % MEMORY
        iteration += 1
        if iteration == max_iter or bool(done.all()):
            return result.view(q.shape), SolverInfo(
                iteration, float(residual.max()), bool(done.all())
            )
        astray = ~(distance <= FARTHEST * least)
        best = torch.where((distance < least)[:, None], after, best)
        least = torch.where(astray, torch.inf, torch.minimum(least, distance))
        # What went astray may not be finite, and zero times infinity is not zero.
        iterates[:, place] = torch.where(astray[:, None], 0, flat)
        images[:, place] = torch.where(astray[:, None], 0, after)
        held &= ~astray[:, None]
        held[:, place] = ~astray
        mixed = (_weights(images - iterates, held)[:, None] @ images)[:, 0]
        flat = torch.where(astray[:, None], best, mixed)
        flat = torch.where(done[:, None], result, flat)


def _weights(
    residuals: Float[Tensor, "batch memory size"], held: Bool[Tensor, "batch memory"]
) -> Float[Tensor, "batch memory"]:
    """w of the least combined residual, zero where nothing is held."""
    gram = residuals @ residuals.mT
    size = gram.diagonal(dim1=1, dim2=2)
    used = held & (size > 0)
    # In units of each residual's own length the diagonal is 1, and the ridge a share of it.
    length = torch.where(used, size, 1).sqrt()
    system = torch.where(
        used[:, :, None] & used[:, None, :], gram / (length[:, :, None] * length[:, None, :]), 0
    )
    diagonal = torch.where(used, 1 + RIDGE, 1.0).to(gram.dtype)
    system = system - torch.diag_embed(system.diagonal(dim1=1, dim2=2)) + torch.diag_embed(diagonal)
    solution = torch.linalg.solve_ex(system, (used / length)[..., None])[0][..., 0] / length
    total = solution.sum(1, keepdim=True)
    return torch.where(total == 0, 0, solution / torch.where(total == 0, 1, total))
