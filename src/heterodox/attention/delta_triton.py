"""The delta rule in Triton kernels, by the equations of `heterodox.attention.delta_chunks`.

Three kernels forward: W and U of every chunk; the states, chunk after chunk; the outputs. Five
backward: W, U and the states again, then the gradients of R and of the states, chunk after chunk
from the last, then all others. Only the two that walk over chunks are sequential, and those walk
separately for each block of value channels.

L⁻¹ is built by blocks of 4, of 16, then of 64, each out of four of the last: with D the inverse
of the diagonal blocks and N what lies below them in the larger block, M = D N has M⁴ = 0 and

    (D⁻¹ + N)⁻¹ = (I + M)⁻¹ D = (I - M)(I + M²) D

These are products of matrices alone. The series I - A + A² - ... of the whole chunk would be too,
but its powers grow like binomial coefficients where keys are alike, and cancel.

Everything is float32, whose products are three of TF32 unless PyTorch is told to take one
(`torch.set_float32_matmul_precision`). Yang et al., arXiv 2406.06484, section 3.
"""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Padded channels of a key up to which a chunk has so many rows, and so many levels of blocks by
# fours. Chosen so that tiles fit in the 99 KiB of shared memory of the smaller GPUs.
CHUNKS = ((64, 64, 3), (128, 16, 2))
VALUE_BLOCK, VALUE_BLOCK_OF_WALK = 64, 32


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels cover these dtypes and sizes."""
    padded = max(16, triton.next_power_of_2(query.shape[-1]))
    floats = (torch.float16, torch.bfloat16, torch.float32)
    return (
        all(x.dtype in floats for x in (query, key, value))
        and 0 not in (*query.shape, *value.shape)
        and padded <= CHUNKS[-1][0]
    )


@triton.jit
def _read(base, rows, columns, end, WIDTH: tl.constexpr):
    """Rows of a contiguous matrix; zeros beyond its end and its width."""
    inside = (rows[:, None] < end) & (columns[None, :] < WIDTH)
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _write(base, rows, columns, end, WIDTH: tl.constexpr, tile):
    inside = (rows[:, None] < end) & (columns[None, :] < WIDTH)
    pointers = base + rows[:, None] * WIDTH + columns[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _inverse(gram, SIZE: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + tril(gram, -1))⁻¹, of 4^LEVELS rows."""
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inverse = tl.where(rows == columns, 1.0, 0.0)
    for level in range(LEVELS):
        width = 1 << (2 * level)
        below = (rows // width > columns // width) & (rows // (4 * width) == columns // (4 * width))
        m = tl.dot(inverse, tl.where(below, gram, 0.0), input_precision=PRECISION)
        x = tl.dot(m, inverse, input_precision=PRECISION)
        x = inverse + tl.dot(m, x, input_precision=PRECISION)
        inverse = x - tl.dot(m, x, input_precision=PRECISION)
    return inverse


@triton.jit
def _solve_kernel(
    K, V, BETA, INVERSE, W, U, length, chunks,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr, INVERT: tl.constexpr,
):  # fmt: skip
    """W and U of a chunk; L⁻¹ is worked out and stored, or read if it was before."""
    chunk, head = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    K += head * length * DIM
    V += head * length * VALUE_DIM
    INVERSE += (head * chunks + chunk) * SIZE * SIZE
    W += head * chunks * SIZE * DIM
    U += head * chunks * SIZE * VALUE_DIM
    local, channels = tl.arange(0, SIZE), tl.arange(0, PADDED)
    rows = chunk * SIZE + local
    k = _read(K, rows, channels, length, DIM)
    beta = tl.load(BETA + head * length + rows, mask=rows < length, other=0.0).to(tl.float32)
    if INVERT:
        gram = tl.dot(k, tl.trans(k), input_precision=PRECISION) * beta[:, None]
        inverse = _inverse(gram, SIZE, LEVELS, PRECISION)
        _write(INVERSE, local, local, SIZE, SIZE, inverse)
    else:
        inverse = _read(INVERSE, local, local, SIZE, SIZE)
    scaled = k * beta[:, None]
    w = tl.dot(inverse, scaled, input_precision=PRECISION)
    _write(W, rows, channels, chunks * SIZE, DIM, w)
    for start in range(0, VALUE_DIM, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        v = _read(V, rows, columns, length, VALUE_DIM)
        u = tl.dot(inverse, v * beta[:, None], input_precision=PRECISION)
        _write(U, rows, columns, chunks * SIZE, VALUE_DIM, u)


@triton.jit
def _states_kernel(
    K, W, U, START, STATES, R, END, length, chunks,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S at the start of every chunk and after the last, and R, for one block of channels."""
    head = tl.program_id(1).to(tl.int64)
    K += head * length * DIM
    W += head * chunks * SIZE * DIM
    U += head * chunks * SIZE * VALUE_DIM
    R += head * chunks * SIZE * VALUE_DIM
    STATES += head * chunks * DIM * VALUE_DIM
    channels, columns = tl.arange(0, PADDED), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    state = _read(START + head * DIM * VALUE_DIM, channels, columns, DIM, VALUE_DIM)
    for chunk in range(chunks):
        rows = chunk * SIZE + tl.arange(0, SIZE)
        _write(STATES, channels, columns, DIM, VALUE_DIM, state)
        STATES += DIM * VALUE_DIM
        k = _read(K, rows, channels, length, DIM)
        w = _read(W, rows, channels, chunks * SIZE, DIM)
        u = _read(U, rows, columns, chunks * SIZE, VALUE_DIM)
        r = u - tl.dot(w, state, input_precision=PRECISION)
        _write(R, rows, columns, chunks * SIZE, VALUE_DIM, r)
        state += tl.dot(tl.trans(k), r, input_precision=PRECISION)
    _write(END + head * DIM * VALUE_DIM, channels, columns, DIM, VALUE_DIM, state)


@triton.jit
def _output_kernel(
    Q, K, R, STATES, OUT, length, chunks, scale,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O = s (Q S + P R) of a chunk and a block of channels."""
    chunk, head = tl.program_id(1) % chunks, (tl.program_id(1) // chunks).to(tl.int64)
    local, channels = tl.arange(0, SIZE), tl.arange(0, PADDED)
    rows, columns = chunk * SIZE + local, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q = _read(Q + head * length * DIM, rows, channels, length, DIM)
    k = _read(K + head * length * DIM, rows, channels, length, DIM)
    r = _read(R + head * chunks * SIZE * VALUE_DIM, rows, columns, chunks * SIZE, VALUE_DIM)
    STATES += (head * chunks + chunk) * DIM * VALUE_DIM
    state = _read(STATES, channels, columns, DIM, VALUE_DIM)
    weights = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    weights = tl.where(local[:, None] >= local[None, :], weights, 0.0)
    out = tl.dot(q, state, input_precision=PRECISION)
    out += tl.dot(weights, r, input_precision=PRECISION)
    _write(OUT + head * length * VALUE_DIM, rows, columns, length, VALUE_DIM, out * scale)


@triton.jit
def _local_gradient_kernel(
    Q, K, GRAD_OUT, GRAD_R, length, chunks, scale,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pᵀ G, the part of ∂R that needs no other chunk."""
    chunk, head = tl.program_id(1) % chunks, (tl.program_id(1) // chunks).to(tl.int64)
    local, channels = tl.arange(0, SIZE), tl.arange(0, PADDED)
    rows, columns = chunk * SIZE + local, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q = _read(Q + head * length * DIM, rows, channels, length, DIM)
    k = _read(K + head * length * DIM, rows, channels, length, DIM)
    g = _read(GRAD_OUT + head * length * VALUE_DIM, rows, columns, length, VALUE_DIM)
    turned = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    turned = tl.where(local[:, None] <= local[None, :], turned, 0.0)
    grad_r = tl.dot(turned, g, input_precision=PRECISION)
    GRAD_R += head * chunks * SIZE * VALUE_DIM
    _write(GRAD_R, rows, columns, chunks * SIZE, VALUE_DIM, grad_r)


@triton.jit
def _state_gradients_kernel(
    Q, K, W, GRAD_OUT, GRAD_END, GRAD_R, GRAD_STATES, GRAD_START, length, chunks, scale,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂R, and ∂S after every chunk and before the first, from the last chunk to the first."""
    head = tl.program_id(1).to(tl.int64)
    Q += head * length * DIM
    K += head * length * DIM
    W += head * chunks * SIZE * DIM
    GRAD_OUT += head * length * VALUE_DIM
    GRAD_R += head * chunks * SIZE * VALUE_DIM
    GRAD_STATES += head * chunks * DIM * VALUE_DIM
    channels, columns = tl.arange(0, PADDED), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grad = _read(GRAD_END + head * DIM * VALUE_DIM, channels, columns, DIM, VALUE_DIM)
    for done in range(chunks):
        chunk = chunks - 1 - done
        rows = chunk * SIZE + tl.arange(0, SIZE)
        after = GRAD_STATES + chunk * DIM * VALUE_DIM
        _write(after, channels, columns, DIM, VALUE_DIM, grad)
        q = _read(Q, rows, channels, length, DIM)
        k = _read(K, rows, channels, length, DIM)
        w = _read(W, rows, channels, chunks * SIZE, DIM)
        g = _read(GRAD_OUT, rows, columns, length, VALUE_DIM)
        grad_r = _read(GRAD_R, rows, columns, chunks * SIZE, VALUE_DIM).to(tl.float32)
        grad_r += tl.dot(k, grad, input_precision=PRECISION)
        _write(GRAD_R, rows, columns, chunks * SIZE, VALUE_DIM, grad_r)
        grad += tl.dot(tl.trans(q), g, input_precision=PRECISION) * scale
        grad -= tl.dot(tl.trans(w), grad_r, input_precision=PRECISION)
    _write(GRAD_START + head * DIM * VALUE_DIM, channels, columns, DIM, VALUE_DIM, grad)


@triton.jit
def _product_gradients_kernel(
    Q, K, R, STATES, GRAD_OUT, GRAD_R, GRAD_STATES, GRAD_Q, GRAD_K, GRAD_W, length, chunks, scale,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂Q, ∂W, and R ∂S'ᵀ + ∂Pᵀ Q of ∂K, of a chunk."""
    chunk, head = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    local, channels = tl.arange(0, SIZE), tl.arange(0, PADDED)
    rows = chunk * SIZE + local
    R += head * chunks * SIZE * VALUE_DIM
    GRAD_R += head * chunks * SIZE * VALUE_DIM
    STATES += (head * chunks + chunk) * DIM * VALUE_DIM
    GRAD_STATES += (head * chunks + chunk) * DIM * VALUE_DIM
    grad_weights = tl.full((SIZE, SIZE), 0.0, tl.float32)
    grad_q = tl.full((SIZE, PADDED), 0.0, tl.float32)
    grad_k = tl.full((SIZE, PADDED), 0.0, tl.float32)
    grad_w = tl.full((SIZE, PADDED), 0.0, tl.float32)
    for start in range(0, VALUE_DIM, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        g = _read(GRAD_OUT + head * length * VALUE_DIM, rows, columns, length, VALUE_DIM)
        r = _read(R, rows, columns, chunks * SIZE, VALUE_DIM)
        grad_r = _read(GRAD_R, rows, columns, chunks * SIZE, VALUE_DIM)
        state = tl.trans(_read(STATES, channels, columns, DIM, VALUE_DIM))
        after = tl.trans(_read(GRAD_STATES, channels, columns, DIM, VALUE_DIM))
        grad_weights += tl.dot(g, tl.trans(r), input_precision=PRECISION)
        grad_q += tl.dot(g, state, input_precision=PRECISION)
        grad_k += tl.dot(r, after, input_precision=PRECISION)
        grad_w -= tl.dot(grad_r, state, input_precision=PRECISION)
    q = _read(Q + head * length * DIM, rows, channels, length, DIM)
    k = _read(K + head * length * DIM, rows, channels, length, DIM)
    grad_weights = tl.where(local[:, None] >= local[None, :], grad_weights * scale, 0.0)
    grad_q = grad_q * scale + tl.dot(grad_weights, k, input_precision=PRECISION)
    grad_k += tl.dot(tl.trans(grad_weights), q, input_precision=PRECISION)
    _write(GRAD_Q + head * length * DIM, rows, channels, length, DIM, grad_q)
    _write(GRAD_K + head * length * DIM, rows, channels, length, DIM, grad_k)
    _write(GRAD_W + head * chunks * SIZE * DIM, rows, channels, chunks * SIZE, DIM, grad_w)


@triton.jit
def _solve_gradients_kernel(
    K, V, BETA, INVERSE, W, U, GRAD_W, GRAD_R, GRAD_K, GRAD_V, GRAD_BETA, length, chunks,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂V, ∂β, and what ∂K has to gain from L, W and U, of a chunk."""
    chunk, head = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
    local, channels = tl.arange(0, SIZE), tl.arange(0, PADDED)
    rows = chunk * SIZE + local
    K += head * length * DIM
    W += head * chunks * SIZE * DIM
    U += head * chunks * SIZE * VALUE_DIM
    GRAD_R += head * chunks * SIZE * VALUE_DIM
    GRAD_K += head * length * DIM
    beta = tl.load(BETA + head * length + rows, mask=rows < length, other=0.0).to(tl.float32)
    INVERSE += (head * chunks + chunk) * SIZE * SIZE
    turned = tl.trans(_read(INVERSE, local, local, SIZE, SIZE))
    grad_w = _read(GRAD_W + head * chunks * SIZE * DIM, rows, channels, chunks * SIZE, DIM)
    y = tl.dot(turned, grad_w, input_precision=PRECISION)
    w = _read(W, rows, channels, chunks * SIZE, DIM)
    minus_grad_gram = tl.dot(y, tl.trans(w), input_precision=PRECISION)
    grad_beta = tl.full((SIZE,), 0.0, tl.float32)
    for start in range(0, VALUE_DIM, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        grad_r = _read(GRAD_R, rows, columns, chunks * SIZE, VALUE_DIM)
        u = _read(U, rows, columns, chunks * SIZE, VALUE_DIM)
        v = _read(V + head * length * VALUE_DIM, rows, columns, length, VALUE_DIM)
        z = tl.dot(turned, grad_r, input_precision=PRECISION)
        minus_grad_gram += tl.dot(z, tl.trans(u), input_precision=PRECISION)
        grad_beta += tl.reduce(z * v, 1, _add)
        GRAD = GRAD_V + head * length * VALUE_DIM
        _write(GRAD, rows, columns, length, VALUE_DIM, z * beta[:, None])
    k = _read(K, rows, channels, length, DIM)
    minus_grad_gram = tl.where(local[:, None] > local[None, :], minus_grad_gram, 0.0)
    x = y - tl.dot(minus_grad_gram, k, input_precision=PRECISION)
    grad_beta += tl.reduce(x * k, 1, _add)
    scaled = k * beta[:, None]
    grad_k = _read(GRAD_K, rows, channels, length, DIM) + x * beta[:, None]
    grad_k -= tl.dot(tl.trans(minus_grad_gram), scaled, input_precision=PRECISION)
    _write(GRAD_K, rows, channels, length, DIM, grad_k)
    tl.store(GRAD_BETA + head * length + rows, grad_beta, mask=rows < length)


class _Plan:
    """Sizes that all kernels share, and the tensors between them."""

    def __init__(self, query: Tensor, value: Tensor) -> None:
        self.heads, self.length, dim = query.shape
        padded = max(16, triton.next_power_of_2(dim))
        _, self.size, self.levels = next(c for c in CHUNKS if padded <= c[0])
        self.chunks = triton.cdiv(self.length, self.size)
        self.like, self.value_dim = query, value.shape[-1]
        width = max(16, triton.next_power_of_2(self.value_dim))
        self.block, self.walk = min(VALUE_BLOCK, width), min(VALUE_BLOCK_OF_WALK, width)
        exact = torch.get_float32_matmul_precision() == "highest"
        self.options = {
            "DIM": dim,
            "VALUE_DIM": self.value_dim,
            "PADDED": padded,
            "SIZE": self.size,
            "PRECISION": "tf32x3" if exact else "tf32",
            "num_warps": 4,
            "num_stages": 1,
        }

    def rows(self, width: int) -> Tensor:
        """Room for all chunks, (heads, chunks * size, width)."""
        return self.like.new_empty(self.heads, self.chunks * self.size, width)

    def states(self) -> Tensor:
        return self.like.new_empty(self.heads, self.chunks, self.options["DIM"], self.value_dim)

    @property
    def by_chunk(self) -> tuple[int]:
        return (self.heads * self.chunks,)

    @property
    def by_block(self) -> tuple[int, int]:
        return triton.cdiv(self.value_dim, self.block), self.heads * self.chunks

    @property
    def by_walk(self) -> tuple[int, int]:
        return triton.cdiv(self.value_dim, self.walk), self.heads

    def solve(
        self, key: Tensor, value: Tensor, beta: Tensor, inverse: Tensor, *, invert: bool
    ) -> tuple[Tensor, Tensor]:
        w, u = self.rows(key.shape[-1]), self.rows(self.value_dim)
        _solve_kernel[self.by_chunk](
            key, value, beta, inverse, w, u, self.length, self.chunks,
            BLOCK=self.block, LEVELS=self.levels, INVERT=invert, **self.options,
        )  # fmt: skip
        return w, u

    def walk_forward(
        self, key: Tensor, w: Tensor, u: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, residual, end = self.states(), self.rows(self.value_dim), torch.empty_like(start)
        _states_kernel[self.by_walk](
            key, w, u, start, states, residual, end, self.length, self.chunks,
            BLOCK=self.walk, **self.options,
        )  # fmt: skip
        return states, residual, end


class _TritonDeltaRule(torch.autograd.Function):
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
        query, key, value, beta, state = (x.contiguous() for x in (query, key, value, beta, state))
        plan = _Plan(query, value)
        inverse = query.new_empty(plan.heads, plan.chunks, plan.size, plan.size)
        output = torch.empty_like(value)
        with _on(query.device):
            w, u = plan.solve(key, value, beta, inverse, invert=True)
            states, residual, end = plan.walk_forward(key, w, u, state)
            _output_kernel[plan.by_block](
                query, key, residual, states, output, plan.length, plan.chunks, scale,
                BLOCK=plan.block, **plan.options,
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, beta, state, inverse)
        ctx.scale = scale
        return output, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, beta, state, inverse = ctx.saved_tensors
        grad_output, grad_end = grad_output.contiguous(), grad_end.contiguous()
        plan = _Plan(query, value)
        sizes = (plan.length, plan.chunks)
        grad_query, grad_key, grad_value, grad_beta, grad_start = (
            torch.empty_like(x) for x in (query, key, value, beta, state)
        )
        grad_residual, grad_states = plan.rows(plan.value_dim), plan.states()
        grad_w = plan.rows(key.shape[-1])
        with _on(query.device):
            w, u = plan.solve(key, value, beta, inverse, invert=False)
            states, residual, _ = plan.walk_forward(key, w, u, state)
            _local_gradient_kernel[plan.by_block](
                query, key, grad_output, grad_residual, *sizes, ctx.scale,
                BLOCK=plan.block, **plan.options,
            )  # fmt: skip
            _state_gradients_kernel[plan.by_walk](
                query, key, w, grad_output, grad_end, grad_residual, grad_states, grad_start,
                *sizes, ctx.scale, BLOCK=plan.walk, **plan.options,
            )  # fmt: skip
            _product_gradients_kernel[plan.by_chunk](
                query, key, residual, states, grad_output, grad_residual, grad_states,
                grad_query, grad_key, grad_w, *sizes, ctx.scale,
                BLOCK=plan.block, **plan.options,
            )  # fmt: skip
            _solve_gradients_kernel[plan.by_chunk](
                key, value, beta, inverse, w, u, grad_w, grad_residual,
                grad_key, grad_value, grad_beta, *sizes, BLOCK=plan.block, **plan.options,
            )  # fmt: skip
        return grad_query, grad_key, grad_value, grad_beta, grad_start, None


def _on(device: torch.device) -> Any:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@torch.compiler.disable
def triton_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and final state, for what `supports` allows; differentiable once.

    Tensors are (batch, heads, length, dim), beta without the last axis, and `state` is (batch,
    heads, d_k, d_v). All are computed in float32, and so is the final state.
    """
    output, end = _TritonDeltaRule.apply(
        *(x.float().flatten(0, 1) for x in (query, key, value, beta, state)), scale
    )
    return output.to(value.dtype).view(value.shape), end.view(state.shape)
