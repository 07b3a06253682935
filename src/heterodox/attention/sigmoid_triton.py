"""Sigmoid attention in Triton kernels: one forward, one for dQ, one for dK and dV.

A program keeps its tile of queries (or of keys) and walks over the other side. No maximum, no sum,
no rescaling: a tile of weights σ(scale · q · k + b) is final, nothing is stored for the backward
pass, and a key's gradient is summed by one program over all query heads that share the key.

The sigmoid is 1 / (1 + 2^(-x log2 e)). The hardware's tanh would be one instruction shorter, but
its absolute error, 2^-11, is as large as a typical weight 1 / n.
Ramapuram et al., arXiv 2409.04431, section 4.
"""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from heterodox.attention.sigmoid_blocked import Logits

# Bytes of a padded row up to which a tile is used; its queries, keys, warps and pipeline stages.
# Chosen so that a tile fits in the 99 KiB of shared memory of the smaller GPUs.
TILES = {
    False: ((128, 128, 64, 4, 3), (256, 128, 64, 8, 2), (512, 64, 32, 8, 1)),
    True: ((128, 64, 64, 4, 3), (256, 64, 32, 8, 2), (512, 32, 32, 8, 1)),
}
LARGEST_ROW = 512
LOG2_E = tl.constexpr(1.4426950408889634)


def supports(query: Tensor, value: Tensor, logits: Logits) -> bool:
    """Whether the kernels cover this case: no dropout, no mask but a boolean one of keys."""
    mask = logits.attn_mask
    return (
        query.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and max(query.shape[3], value.shape[3]) * query.element_size() <= LARGEST_ROW
        and logits.dropout_p == 0
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)))
    )


# Rows and channels beyond the end are read as zeros and never written. A weight between a zero row
# and anything else is some finite number, and it only ever multiplies zeros: no tail is masked.


@triton.jit
def _read(base, stride, rows, end, channels, DIM: tl.constexpr):
    inside = (rows[:, None] < end) & (channels[None, :] < DIM)
    pointers = base + rows[:, None].to(tl.int64) * stride + channels[None, :]
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _write(base, stride, rows, end, channels, DIM: tl.constexpr, tile):
    inside = (rows[:, None] < end) & (channels[None, :] < DIM)
    pointers = base + rows[:, None].to(tl.int64) * stride + channels[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _weights(q, k, rows, columns, num_queries, num_keys, scale, bias, slope, mask, mask_stride,
             DIAGONAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SLOPES: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """P of queries `rows` and keys `columns`; scale, bias, slope come multiplied by log2 e."""
    x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
    if HAS_SLOPES:
        x -= slope * tl.abs(rows[:, None] + (num_keys - num_queries) - columns[None, :]).to(
            tl.float32
        )
    p = 1.0 / (1.0 + tl.exp2(-x))
    if DIAGONAL:
        p = tl.where(rows[:, None] >= columns[None, :], p, 0.0)
    if HAS_MASK:
        kept = tl.load(mask + columns.to(tl.int64) * mask_stride, mask=columns < num_keys, other=0)
        p = tl.where(kept[None, :] != 0, p, 0.0)
    return p


@triton.jit
def _forward_kernel(
    Q, K, V, MASK, SLOPES, OUT,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    mask_batch, mask_stride, heads, group, num_queries, num_keys, scale, bias,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SLOPES: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row_blocks = (num_queries + BLOCK_M - 1) // BLOCK_M
    first = tl.program_id(0) % row_blocks * BLOCK_M
    batch_head = (tl.program_id(0) // row_blocks).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    Q += batch * q_batch + head * q_head
    K += batch * k_batch + head // group * k_head
    V += batch * v_batch + head // group * v_head
    MASK += batch * mask_batch
    OUT += batch_head * num_queries * VALUE_DIM
    slope = tl.load(SLOPES + head) * LOG2_E if HAS_SLOPES else 0.0
    rows, channels = first + tl.arange(0, BLOCK_M), tl.arange(0, PADDED)
    value_channels = tl.arange(0, VALUE_PADDED)
    q = _read(Q, q_row, rows, num_queries, channels, DIM)
    out = tl.full((BLOCK_M, VALUE_PADDED), 0.0, tl.float32)
    end = min(num_keys, first + BLOCK_M) if IS_CAUSAL else num_keys
    plain_end = min(end, (first + 1) // BLOCK_N * BLOCK_N) if IS_CAUSAL else num_keys
    for diagonal in tl.static_range(1 + IS_CAUSAL):
        for start in range(plain_end if diagonal else 0, end if diagonal else plain_end, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            k = _read(K, k_row, columns, num_keys, channels, DIM)
            v = _read(V, v_row, columns, num_keys, value_channels, VALUE_DIM)
            p = _weights(q, k, rows, columns, num_queries, num_keys, scale, bias, slope, MASK,
                         mask_stride, diagonal, HAS_MASK, HAS_SLOPES, PRECISION)  # fmt: skip
            out += tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    _write(OUT, VALUE_DIM, rows, num_queries, value_channels, VALUE_DIM, out)


@triton.jit
def _query_gradient_kernel(
    Q, K, V, MASK, SLOPES, GRAD_OUT, GRAD_Q,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    mask_batch, mask_stride, heads, group, num_queries, num_keys, scale, bias,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SLOPES: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row_blocks = (num_queries + BLOCK_M - 1) // BLOCK_M
    first = tl.program_id(0) % row_blocks * BLOCK_M
    batch_head = (tl.program_id(0) // row_blocks).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    Q += batch * q_batch + head * q_head
    K += batch * k_batch + head // group * k_head
    V += batch * v_batch + head // group * v_head
    MASK += batch * mask_batch
    GRAD_OUT += batch_head * num_queries * VALUE_DIM
    GRAD_Q += batch_head * num_queries * DIM
    slope = tl.load(SLOPES + head) * LOG2_E if HAS_SLOPES else 0.0
    rows, channels = first + tl.arange(0, BLOCK_M), tl.arange(0, PADDED)
    value_channels = tl.arange(0, VALUE_PADDED)
    q = _read(Q, q_row, rows, num_queries, channels, DIM)
    grad_out = _read(GRAD_OUT, VALUE_DIM, rows, num_queries, value_channels, VALUE_DIM)
    grad_q = tl.full((BLOCK_M, PADDED), 0.0, tl.float32)
    end = min(num_keys, first + BLOCK_M) if IS_CAUSAL else num_keys
    plain_end = min(end, (first + 1) // BLOCK_N * BLOCK_N) if IS_CAUSAL else num_keys
    for diagonal in tl.static_range(1 + IS_CAUSAL):
        for start in range(plain_end if diagonal else 0, end if diagonal else plain_end, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            k = _read(K, k_row, columns, num_keys, channels, DIM)
            v = _read(V, v_row, columns, num_keys, value_channels, VALUE_DIM)
            p = _weights(q, k, rows, columns, num_queries, num_keys, scale, bias, slope, MASK,
                         mask_stride, diagonal, HAS_MASK, HAS_SLOPES, PRECISION)  # fmt: skip
            grad_p = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
            grad_s = p * (1 - p) * grad_p
            grad_q += tl.dot(grad_s.to(k.dtype), k, input_precision=PRECISION)
    _write(GRAD_Q, DIM, rows, num_queries, channels, DIM, grad_q * (scale / LOG2_E))


@triton.jit
def _key_value_gradient_kernel(
    Q, K, V, MASK, SLOPES, GRAD_OUT, GRAD_K, GRAD_V,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    mask_batch, mask_stride, heads, group, num_queries, num_keys, scale, bias,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PADDED: tl.constexpr, VALUE_PADDED: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SLOPES: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    column_blocks = (num_keys + BLOCK_N - 1) // BLOCK_N
    first = tl.program_id(0) % column_blocks * BLOCK_N
    batch_kv_head = (tl.program_id(0) // column_blocks).to(tl.int64)
    kv_heads = heads // group
    batch, kv_head = batch_kv_head // kv_heads, batch_kv_head % kv_heads
    K += batch * k_batch + kv_head * k_head
    V += batch * v_batch + kv_head * v_head
    MASK += batch * mask_batch
    GRAD_K += batch_kv_head * num_keys * DIM
    GRAD_V += batch_kv_head * num_keys * VALUE_DIM
    columns, channels = first + tl.arange(0, BLOCK_N), tl.arange(0, PADDED)
    value_channels = tl.arange(0, VALUE_PADDED)
    k = _read(K, k_row, columns, num_keys, channels, DIM)
    v = _read(V, v_row, columns, num_keys, value_channels, VALUE_DIM)
    grad_k = tl.full((BLOCK_N, PADDED), 0.0, tl.float32)
    grad_v = tl.full((BLOCK_N, VALUE_PADDED), 0.0, tl.float32)
    # Rows before `begin` see none of these keys, rows from `plain` on see all of them.
    begin = first // BLOCK_M * BLOCK_M if IS_CAUSAL else 0
    plain = (first + BLOCK_N + BLOCK_M - 2) // BLOCK_M * BLOCK_M if IS_CAUSAL else 0
    for head in range(kv_head * group, (kv_head + 1) * group):
        Q_HEAD = Q + batch * q_batch + head * q_head
        GRAD_OUT_HEAD = GRAD_OUT + (batch * heads + head) * num_queries * VALUE_DIM
        slope = tl.load(SLOPES + head) * LOG2_E if HAS_SLOPES else 0.0
        for diagonal in tl.static_range(1 + IS_CAUSAL):
            for start in range(begin if diagonal else plain,
                               min(plain, num_queries) if diagonal else num_queries,
                               BLOCK_M):  # fmt: skip
                rows = start + tl.arange(0, BLOCK_M)
                q = _read(Q_HEAD, q_row, rows, num_queries, channels, DIM)
                grad_out = _read(
                    GRAD_OUT_HEAD, VALUE_DIM, rows, num_queries, value_channels, VALUE_DIM
                )
                p = _weights(q, k, rows, columns, num_queries, num_keys, scale, bias, slope, MASK,
                             mask_stride, diagonal, HAS_MASK, HAS_SLOPES, PRECISION)  # fmt: skip
                grad_v += tl.dot(
                    tl.trans(p.to(grad_out.dtype)), grad_out, input_precision=PRECISION
                )
                grad_p = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
                grad_s = p * (1 - p) * grad_p
                grad_k += tl.dot(tl.trans(grad_s.to(q.dtype)), q, input_precision=PRECISION)
    _write(GRAD_K, DIM, columns, num_keys, channels, DIM, grad_k * (scale / LOG2_E))
    _write(GRAD_V, VALUE_DIM, columns, num_keys, value_channels, VALUE_DIM, grad_v)


class _TritonSigmoidAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, logits: Logits) -> Tensor:
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
        ctx.save_for_backward(query, key, value)
        ctx.logits = logits
        batch, heads, num_queries, _ = query.shape
        out = query.new_empty(batch, heads, num_queries, value.shape[3])
        options = _options(query, key, value, logits)
        blocks = triton.cdiv(num_queries, options["BLOCK_M"])
        with _on(query.device):
            _forward_kernel[(batch * heads * blocks,)](
                query, key, value, *_extras(query, logits), out, **options
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        batch, heads, num_queries, _ = query.shape
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
        inputs = (query, key, value, *_extras(query, ctx.logits), grad_out.contiguous())
        options = _options(query, key, value, ctx.logits, backward=True)
        row_blocks = triton.cdiv(num_queries, options["BLOCK_M"])
        column_blocks = triton.cdiv(key.shape[2], options["BLOCK_N"])
        with _on(query.device):
            _query_gradient_kernel[(batch * heads * row_blocks,)](*inputs, grads[0], **options)
            _key_value_gradient_kernel[(batch * key.shape[1] * column_blocks,)](
                *inputs, *grads[1:], **options
            )
        return *grads, None


def _on(device: torch.device) -> Any:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _extras(query: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
    """Mask and slopes; a kernel that has none of them gets, and does not read, the query."""
    mask, slopes = logits.attn_mask, logits.alibi_slopes
    return (
        query if mask is None else mask.view(torch.uint8),
        query if slopes is None else slopes.to(torch.float32).contiguous(),
    )


def _options(
    query: Tensor, key: Tensor, value: Tensor, logits: Logits, backward: bool = False
) -> dict[str, Any]:
    """Everything that the kernels take by name."""
    mask = logits.attn_mask
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, 1, key.shape[2])
    padded, value_padded = (max(16, triton.next_power_of_2(x.shape[3])) for x in (query, value))
    bytes_per_row = max(padded, value_padded) * query.element_size()
    block_m, block_n, warps, stages = next(
        tiles for limit, *tiles in TILES[backward] if bytes_per_row <= limit
    )
    return {
        **{
            f"{name}_{axis}": stride
            for name, x in (("q", query), ("k", key), ("v", value))
            for axis, stride in zip(("batch", "head", "row"), x.stride(), strict=False)
        },
        "mask_batch": 0 if mask is None else mask.stride(0),
        "mask_stride": 0 if mask is None else mask.stride(3),
        "heads": query.shape[1],
        "group": query.shape[1] // key.shape[1],
        "num_queries": query.shape[2],
        "num_keys": key.shape[2],
        "scale": logits.scale * LOG2_E.value,
        "bias": logits.bias * LOG2_E.value,
        "DIM": query.shape[3],
        "VALUE_DIM": value.shape[3],
        "PADDED": padded,
        "VALUE_PADDED": value_padded,
        "IS_CAUSAL": logits.is_causal,
        "HAS_MASK": mask is not None,
        "HAS_SLOPES": logits.alibi_slopes is not None,
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": warps,
        "num_stages": stages,
    }


@torch.compiler.disable
def triton_sigmoid_attention(query: Tensor, key: Tensor, value: Tensor, logits: Logits) -> Tensor:
    """Sigmoid attention for what `supports` allows; the heads of the keys divide the queries'.

    Differentiable once, in query, key and value.
    """
    return _TritonSigmoidAttention.apply(query, key, value, logits)
