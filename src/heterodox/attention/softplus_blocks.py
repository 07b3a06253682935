"""Softplus attention, a block of query rows at a time: linear memory and an analytic gradient.

With s_ij = q_i · k_j (temperature times cosine), m_ij the mask and c_i = O_i / N_i,

    a_ij = softplus(s_ij) m_ij,   t_i = c_i Σ_k a_ik,   u_ij = ReLU(a_ij - t_i) / (max_k a_ik - t_i)
    W_ij = u_ijᵖ / Σ_k u_ikᵖ   (re-weighted),   or   W_ij = a_ij / Σ_k a_ik   (not re-weighted)

which is the method of `heterodox.attention.softplus` without the factors that cancel in a row:
ReLU(N A - O) is proportional to ReLU(a - (O / N) Σ a). A block holds whole rows, so that their sum
and maximum are at hand while it is in the cache. The backward pass computes each block again
instead of storing it. With g_i = ∂L/∂o_i and D_i = g_i · o_i,

    ∂L/∂v_j  = Σ_i W_ij g_i
    b_ij     = (g_i · v_j - D_i) p u_ijᵖ⁻¹ / ((max_k a_ik - t_i) Σ_k u_ikᵖ)
    ∂L/∂s_ij = σ(s_ij) m_ij (b_ij - c_i Σ_k b_ik)                    (re-weighted)
    ∂L/∂s_ij = σ(s_ij) m_ij (g_i · v_j - D_i) / Σ_k a_ik             (not re-weighted)
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from heterodox.autocast import without_autocast

# Numbers in a block: on a CPU what its caches hold, on a GPU enough to keep it busy.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**26
MIN_ROWS, MAX_ROWS = 64, 256
LOG2_E = math.log2(math.e)


class Block(NamedTuple):
    """Some rows of some heads, and the keys that they see."""

    batch: slice
    heads: slice
    rows: slice
    keys: slice

    @property
    def shape(self) -> list[int]:
        return [axis.stop - axis.start for axis in self]

    def at_rows(self, x: Tensor) -> Tensor:
        return x[self.batch, self.heads, self.rows]

    def at_keys(self, x: Tensor) -> Tensor:
        return x[self.batch, self.heads, self.keys]

    def of(self, x: Tensor) -> Tensor:
        """The part of a tensor over (batch, heads, rows, keys); axes of size 1 are left alone."""
        return x[tuple(slice(None) if n == 1 else s for n, s in zip(x.shape, self, strict=True))]


def blocks(query: Tensor, key: Tensor, is_causal: bool) -> list[Block]:
    """All rows of all heads; small heads, and small elements of the batch, share a block."""
    (batch, heads, rows, _), keys = query.shape, key.shape[2]
    size = CPU_BLOCK if query.device.type == "cpu" else GPU_BLOCK
    row_step = min(rows, MAX_ROWS, max(MIN_ROWS, size // keys))
    matrices = max(1, size // (row_step * keys))
    head_step, batch_step = min(heads, matrices), max(1, matrices // heads)

    def steps(length: int, step: int) -> list[slice]:
        return [slice(i, min(i + step, length)) for i in range(0, length, step)]

    return [
        Block(b, h, r, slice(0, min(r.stop, keys) if is_causal else keys))
        for b in steps(batch, batch_step)
        for h in steps(heads, head_step)
        for r in steps(rows, row_step)
    ]


def rooms(number: int, plan: list[Block], like: Tensor) -> list[Tensor]:
    """Memory that all blocks use in turn: fresh pages would cost more than the arithmetic."""
    size = max(math.prod(block.shape) for block in plan)
    return [like.new_empty(size) for _ in range(number)]


def furnish(block: Block, memory: list[Tensor]) -> Iterator[Tensor]:
    """The rooms in the shape of a block."""
    return (room[: math.prod(block.shape)].view(block.shape) for room in memory)


def product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x @ y, into `out` if it is given, for each head of each element of the batch."""
    if out is None:
        return torch.bmm(x.flatten(0, 1), y.flatten(0, 1)).unflatten(0, x.shape[:2])
    torch.bmm(x.flatten(0, 1), y.flatten(0, 1), out=out.flatten(0, 1))
    return out


def power_(x: Tensor, power: int | float, room: Tensor) -> Tensor:
    """x ** power in place for non-negative x: five products for a power of 15.

    0 ** 0 is 0, the slope of ReLU at its kink.
    """
    if power == 0:
        return x.sign_()
    if not float(power).is_integer():
        return x.pow_(power)
    power = int(power)
    while power % 3 == 0:
        x.mul_(torch.mul(x, x, out=room))
        power //= 3
    while power % 2 == 0:
        x.mul_(x)
        power //= 2
    if power > 1:
        torch.mul(x, x, out=room)
        for bit in f"{power:b}"[1:-1]:
            if bit == "1":
                room.mul_(x)
            room.mul_(room)
        x.mul_(room)
    return x


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: a row without visible keys becomes a row of zeros."""
    return torch.where(x > 0, 1 / x, 0)


def hide_(block: Block, visible: Tensor | None, is_causal: bool, x: Tensor) -> Tensor:
    """Zeros in place for the keys that a row does not see."""
    if is_causal:
        x[..., block.rows.start :].tril_()
    return x if visible is None else x.mul_(block.of(visible))


def reweigh_(a: Tensor, share: Tensor) -> Tensor:
    """u in the place of `a`. Returns 1 / (max a - t), which is 0 if all visible keys are equal."""
    threshold, peak = share * a.sum(-1, keepdim=True), a.amax(-1, keepdim=True)
    spread = peak - threshold
    # A spread of the size of rounding errors would make the weights of equal keys arbitrary.
    noise = 16 * torch.finfo(a.dtype).eps * peak
    scale = inverse(torch.where(spread > noise, spread, 0))
    a.sub_(threshold).mul_(scale).clamp_(min=0)
    return scale


def scores(
    query: Tensor,
    key: Tensor,
    hide_: Callable[[Tensor], Tensor],
    overflows: bool,
    a: Tensor,
    slope: Tensor | None = None,
    room: Tensor | None = None,
) -> None:
    """softplus(s) m into `a` and, with a `room` to work in, σ(s) m into `slope`."""
    if overflows:
        product(query, key.mT, a)
        if slope is not None:
            hide_(torch.sigmoid(a, out=slope))
        hide_(a.copy_(F.softplus(a, threshold=40.0)))
        return
    # exp2, because it takes less time than exp on most processors.
    exp = product(query * LOG2_E, key.mT, a if slope is None else slope)
    torch.log1p(hide_(exp.exp2_()), out=a)
    if slope is not None:
        slope.div_(torch.add(slope, 1, out=room))


def fold(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Iterator[Any]:
    """The inputs under `vmap`, whose axis of `size` becomes the outer part of the batch axis."""
    tensors = [
        (x if dim is None else x.movedim(dim, 0), dim is not None)
        for x, dim in zip(inputs, in_dims, strict=True)
        if isinstance(x, Tensor)
    ]
    batch = max(x.shape[is_mapped] for x, is_mapped in tensors)
    folded = (
        (x if is_mapped else x[None]).expand(size, batch, *x.shape[-3:]).flatten(0, 1)
        for x, is_mapped in tensors
    )
    return (next(folded) if isinstance(x, Tensor) else x for x in inputs)


class SoftplusBlocks(Function):
    """`apply(query, key, value, visible, share, power, is_causal, overflows)`, four axes each.

    `query` and `key` are normalised and `query` is multiplied by its temperature. `visible`
    (boolean, or None) and `share`, the c of the equations, broadcast over (batch, heads, rows,
    keys). `power` is None without re-weighting. `overflows` tells that exp(s) may not be finite.
    """

    @staticmethod
    def forward(query, key, value, visible, share, power, is_causal, overflows):
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output = value.new_empty(*query.shape[:3], value.shape[3])
        plan = blocks(query, key, is_causal)
        memory = rooms(2, plan, query)
        for block in plan:
            q, k, v = block.at_rows(query), block.at_keys(key), block.at_keys(value)
            a, room = furnish(block, memory)
            scores(q, k, partial(hide_, block, visible, is_causal), overflows, a)
            if power is not None:
                reweigh_(a, block.of(share))
                power_(a, power, room)
            total = a.sum(-1, keepdim=True)
            torch.mul(product(a, v), inverse(total), out=block.at_rows(output))
        return output

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, visible, share, *ctx.settings = inputs
        ctx.save_for_backward(query, key, value, visible, share, output)

    @staticmethod
    def backward(ctx, gradient):
        with without_autocast(gradient.device.type):
            gradients = SoftplusBlocksGradient.apply(gradient, *ctx.saved_tensors, *ctx.settings)
        return *gradients, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        output = SoftplusBlocks.apply(*fold(info.batch_size, in_dims, inputs))
        return output.unflatten(0, (info.batch_size, -1)), 0


class SoftplusBlocksGradient(Function):
    """The gradients of query, key and value; a function of its own so that `vmap` can fold it."""

    @staticmethod
    def forward(gradient, query, key, value, visible, share, output, power, is_causal, overflows):
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        along = (gradient * output).sum(-1, keepdim=True)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        plan = blocks(query, key, is_causal)
        memory = rooms(4, plan, query)
        for block in plan:
            q, k, v = block.at_rows(query), block.at_keys(key), block.at_keys(value)
            a, slope, steep, b = furnish(block, memory)
            scores(q, k, partial(hide_, block, visible, is_causal), overflows, a, slope, b)
            if power is None:
                weight = inverse(a.sum(-1, keepdim=True))
                g = block.at_rows(gradient) * weight
                product(g, v.mT, b).sub_(block.at_rows(along) * weight)
                grad = product(b.mul_(slope), k)
            else:
                scale = reweigh_(a, block.of(share)).mul_(power)
                power_(steep.copy_(a), power - 1, b)
                a.mul_(steep)
                weight = inverse(a.sum(-1, keepdim=True))
                g = block.at_rows(gradient) * weight
                product(g, v.mT, b).sub_(block.at_rows(along) * weight).mul_(steep)
                b.sub_(block.of(share) * b.sum(-1, keepdim=True))
                grad = product(b.mul_(slope), k).mul_(scale)
                q = q * scale
            block.at_rows(grad_query).copy_(grad)
            block.at_keys(grad_key).add_(product(b.mT, q))
            block.at_keys(grad_value).add_(product(a.mT, g))
        return grad_query, grad_key, grad_value

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError(
            "softplus_attention: no second derivatives; use softplus_attention_weights @ value"
        )

    @staticmethod
    def vmap(info, in_dims, *inputs):
        gradients = SoftplusBlocksGradient.apply(*fold(info.batch_size, in_dims, inputs))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in gradients), (0, 0, 0)
