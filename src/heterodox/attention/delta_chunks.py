"""The delta rule in chunks: products of matrices in place of a recurrence over positions.

With K, Q (C, d_k) and V (C, d_v) the rows of a chunk, b = diag(β) and S the state at its start,

    L = I + tril(b K Kᵀ, -1),   [W, U] = L⁻¹ b [K, V],   P = tril(Q Kᵀ)
    R = U - W S,   O = s (Q S + P R),   S' = S + Kᵀ R

Everything but R and S' is computed for many chunks at once; the inverse of L is one batched
triangular solve. The backward pass computes the chunks again, last segment first. With G = s ∂O
and ∂S' from the chunks after this one,

    ∂R = Pᵀ G + K ∂S',   ∂S = ∂S' + Qᵀ G - Wᵀ ∂R                        (one loop over chunks)
    ∂P = tril(G Rᵀ),     ∂Q = G Sᵀ + ∂P K,     [Y, Z] = L⁻ᵀ [-∂R Sᵀ, ∂R]
    ∂L = -tril(Y Wᵀ + Z Uᵀ, -1),     X = Y + ∂L K,     ∂V = b Z
    ∂K = R ∂S'ᵀ + ∂Pᵀ Q + b X + ∂Lᵀ b K,     ∂β = rowsum(X ∘ K + Z ∘ V)

Yang et al., arXiv 2406.06484, section 3; the backward pass is worked out from the forward pass.
Segments of chunks keep the intermediate products in the cache of a CPU; only the states at their
boundaries are stored.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from heterodox.autocast import without_autocast

# Rows (positions of all heads) in a segment: on a CPU what its caches hold, on a GPU all that is
# needed to keep it busy.
CPU_ROWS, GPU_ROWS = 2**11, 2**18


def in_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """(batch, heads, length, ...) to a view (chunks, batch, heads, chunk_size, ...)."""
    return x.unflatten(2, (-1, chunk_size)).movedim(2, 0)


def segments(chunked: Tensor) -> list[slice]:
    """Consecutive chunks that are computed together."""
    chunks, batch, heads, size = chunked.shape[:4]
    rows = CPU_ROWS if chunked.device.type == "cpu" else GPU_ROWS
    step = max(1, rows // max(1, batch * heads * size))
    return [slice(start, min(start + step, chunks)) for start in range(0, chunks, step)]


class Segment(NamedTuple):
    """What both passes need of some chunks; chunks and heads are one axis of all tensors."""

    query: Tensor
    key: Tensor
    gram: Tensor
    """b K Kᵀ, of which only what lies below the diagonal is used."""
    solved: Tensor
    """W and U side by side."""
    weights: Tensor
    """P."""
    states: Tensor
    """(chunks + 1, heads, d_k, d_v): S of every chunk, and of the one after the last."""
    residual: Tensor
    """R."""

    @property
    def at_start(self) -> Tensor:
        return self.states[:-1].flatten(0, 1)


def solve(gram: Tensor, rows: Tensor, *, transposed: bool = False) -> Tensor:
    """L⁻¹ rows, or L⁻ᵀ rows, in the place of `rows`; only what is below L's diagonal is read.

    Solved from the right, rowsᵀ = Xᵀ Lᵀ, which takes rows as they lie in memory.
    """
    triangle = gram if transposed else gram.mT
    torch.linalg.solve_triangular(
        triangle, rows.mT, upper=not transposed, left=False, unitriangular=True, out=rows.mT
    )
    return rows


def compute(query: Tensor, key: Tensor, value: Tensor, beta: Tensor, state: Tensor) -> Segment:
    """The forward pass of a segment, (chunks, batch, heads, chunk_size, dim), from its state."""
    (chunks, *_, size, key_dim), value_dim = key.shape, value.shape[-1]
    solved = key.new_empty(*key.shape[:-1], key_dim + value_dim)
    torch.mul(key, beta[..., None], out=solved[..., :key_dim])
    torch.mul(value, beta[..., None], out=solved[..., key_dim:])
    solved = solved.flatten(0, 2)
    query, key = query.reshape(-1, size, key_dim), key.reshape(-1, size, key_dim)
    gram = torch.bmm(solved[..., :key_dim], key.mT)
    solve(gram, solved)
    weights = torch.bmm(query, key.mT).tril_()
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    residual = state.new_empty(chunks, len(state), size, value_dim)
    w, u, turned = (
        x.unflatten(0, (chunks, -1)).unbind()
        for x in (solved[..., :key_dim], solved[..., key_dim:], key.mT)
    )
    before, after, r = states[:-1].unbind(), states[1:].unbind(), residual.unbind()
    for i in range(chunks):
        torch.baddbmm(u[i], w[i], before[i], alpha=-1, out=r[i])
        torch.baddbmm(before[i], turned[i], r[i], out=after[i])
    return Segment(query, key, gram, solved, weights, states, residual.flatten(0, 1))


def gradients(
    segment: Segment, value: Tensor, beta: Tensor, grad_output: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of query, key, value, beta and the state at the start, of one segment.

    `grad_output` is already multiplied by the scale; heads and chunks are one axis.
    """
    query, key, gram, solved, weights, states, residual = segment
    chunks, key_dim = len(states) - 1, key.shape[-1]
    grad_residual = torch.bmm(weights.mT, grad_output).unflatten(0, (chunks, -1))
    grad_states = torch.empty_like(states)
    torch.bmm(query.mT, grad_output, out=grad_states[:-1].flatten(0, 1))
    grad_states[-1] = grad_state
    w, keys = (x.unflatten(0, (chunks, -1)).unbind() for x in (solved[..., :key_dim].mT, key))
    before, after, r = grad_states[:-1].unbind(), grad_states[1:].unbind(), grad_residual.unbind()
    for i in reversed(range(chunks)):
        r[i].baddbmm_(keys[i], after[i])
        before[i].add_(after[i]).baddbmm_(w[i], r[i], alpha=-1)
    grad_residual, at_end = grad_residual.flatten(0, 1), grad_states[1:].flatten(0, 1)

    grad_weights = torch.bmm(grad_output, residual.mT).tril_()
    grad_query = torch.bmm(grad_output, segment.at_start.mT).baddbmm_(grad_weights, key)
    grad_key = torch.bmm(residual, at_end.mT).baddbmm_(grad_weights.mT, query)
    grad_solved = torch.empty_like(solved)
    grad_w = torch.bmm(grad_residual, segment.at_start.mT)
    torch.neg(grad_w, out=grad_solved[..., :key_dim])
    grad_solved[..., key_dim:] = grad_residual
    solve(gram, grad_solved, transposed=True)
    minus_grad_gram = torch.bmm(grad_solved, solved.mT).tril_(-1)
    scaled_key, scaled_value = grad_solved[..., :key_dim], grad_solved[..., key_dim:]
    scaled_key = torch.baddbmm(scaled_key, minus_grad_gram, key, alpha=-1)
    grad_beta = (scaled_key * key).sum(-1) + (scaled_value * value).sum(-1)
    beta = beta[..., None]
    grad_key.addcmul_(scaled_key, beta.expand_as(key))
    grad_key.baddbmm_(minus_grad_gram.mT, key * beta, alpha=-1)
    return grad_query, grad_key, scaled_value * beta, grad_beta, grad_states[0]


class _ChunkedDeltaRule(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        beta: Tensor,
        state: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(value)
        plan = segments(key)
        starts = state.new_empty(len(plan), *state.shape)
        for part, start in zip(plan, starts, strict=True):
            start.copy_(state)
            segment = compute(query[part], key[part], value[part], beta[part], start)
            rows = torch.bmm(segment.query, segment.at_start)
            rows.baddbmm_(segment.weights, segment.residual, alpha=scale, beta=scale)
            output[part] = rows.view(output[part].shape)
            state = segment.states[-1]
        ctx.save_for_backward(query, key, value, beta, starts)
        ctx.scale = scale
        return output, state.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad_output.device.type):
            grads = _Gradients.apply(grad_output, grad_state, *ctx.saved_tensors, ctx.scale)
        return *grads, None


class _Gradients(Function):
    """A function of its own, so that it can refuse to be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        grad_state: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        beta: Tensor,
        starts: Tensor,
        scale: float,
    ) -> tuple[Tensor, ...]:
        grads = [torch.empty_like(x) for x in (query, key, value, beta)]
        for part, start in zip(reversed(segments(key)), reversed(starts.unbind()), strict=True):
            segment = compute(query[part], key[part], value[part], beta[part], start)
            *results, grad_state = gradients(
                segment,
                value[part].reshape(-1, *value.shape[3:]),
                beta[part].reshape(-1, *beta.shape[3:]),
                (grad_output[part] * scale).reshape(-1, *value.shape[3:]),
                grad_state,
            )
            for grad, result in zip(grads, results, strict=True):
                grad[part] = result.view(grad[part].shape)
        return *grads, grad_state.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "delta_rule: no second derivatives in chunks; use delta_rule_recurrent"
        )


# A compiler would unroll the loop over chunks, whose number differs from call to call.
@torch.compiler.disable
def chunked_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and the state after the last chunk; differentiable once.

    Tensors are (chunks, batch, heads, chunk_size, dim), beta without the last axis, and `state` is
    (batch * heads, d_k, d_v), all of one dtype of at least float32.
    """
    return _ChunkedDeltaRule.apply(query, key, value, beta, state, scale)
