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
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

# Numbers in a block: on a CPU what its caches hold, on a GPU enough to keep it busy.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**26
MIN_ROWS, MAX_ROWS = 64, 256


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Turns autocast off, also where there is none to turn off, as on "meta"."""
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


class Block(NamedTuple):
    """Some rows of some heads, and the keys that they see."""

    batch: slice
    heads: slice
    rows: slice
    keys: slice

    def at_rows(self, x: Tensor) -> Tensor:
        return x[self.batch, self.heads, self.rows]

    def at_keys(self, x: Tensor) -> Tensor:
        return x[self.batch, self.heads, self.keys]

    def of(self, x: Tensor) -> Tensor:
        """The part of a tensor over (batch, heads, rows, keys); axes of size 1 are left alone."""
        return x[tuple(slice(None) if n == 1 else s for n, s in zip(x.shape, self, strict=True))]


def blocks(query: Tensor, key: Tensor, is_causal: bool) -> Iterator[Block]:
    """All rows of all heads; small heads, and small elements of the batch, share a block."""
    (batch, heads, rows, _), keys = query.shape, key.shape[2]
    size = CPU_BLOCK if query.device.type == "cpu" else GPU_BLOCK
    row_step = min(rows, MAX_ROWS, max(MIN_ROWS, size // keys))
    matrices = max(1, size // (row_step * keys))
    head_step, batch_step = min(heads, matrices), max(1, matrices // heads)
    for b in range(0, batch, batch_step):
        for h in range(0, heads, head_step):
            for r in range(0, rows, row_step):
                stop = min(r + row_step, rows)
                seen = min(stop, keys) if is_causal else keys
                yield Block(
                    slice(b, b + batch_step), slice(h, h + head_step), slice(r, stop), slice(seen)
                )


def integer_power_(x: Tensor, power: int) -> Tensor:
    """x ** power in place, by repeated squaring and cubing: five products for a power of 15."""
    if power == 1:
        return x
    if power % 2 == 0:
        return integer_power_(x.mul_(x), power // 2)
    if power % 3 == 0:
        return integer_power_(x.mul_(x * x), power // 3)
    return x.mul_(integer_power_(x * x, power // 2))


def power_(x: Tensor, power: int | float) -> Tensor:
    """x ** power in place for non-negative x, with 0 ** 0 = 0: the slope of ReLU at its kink."""
    if power == 0:
        return x.sign_()
    return integer_power_(x, int(power)) if float(power).is_integer() else x.pow_(power)


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: a row without visible keys becomes a row of zeros."""
    return torch.where(x > 0, 1 / x, 0)


def hide_(x: Tensor, block: Block, visible: Tensor | None, is_causal: bool) -> Tensor:
    """Zeros in place for the keys that a row does not see."""
    if is_causal:
        x[..., block.rows.start :].tril_()
    return x if visible is None else x.mul_(block.of(visible))


def reweigh_(a: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """u, in the place of `a`, and 1 / (max a - t), which is 0 where all visible keys are equal."""
    threshold, peak = share * a.sum(-1, keepdim=True), a.amax(-1, keepdim=True)
    spread = peak - threshold
    # A spread of the size of rounding errors would make the weights of equal keys arbitrary.
    noise = 16 * torch.finfo(a.dtype).eps * peak
    scale = inverse(torch.where(spread > noise, spread, 0))
    return a.sub_(threshold).mul_(scale).clamp_(min=0), scale


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
        for block in blocks(query, key, is_causal):
            q, k, v = block.at_rows(query), block.at_keys(key), block.at_keys(value)
            if overflows:
                a = hide_(F.softplus(q @ k.mT, threshold=40.0), block, visible, is_causal)
            else:
                exp = ((q * math.log2(math.e)) @ k.mT).exp2_()  # exp2: faster than exp on CPUs
                a = hide_(exp, block, visible, is_causal).log1p_()
            if power is not None:
                u, _ = reweigh_(a, block.of(share))
                a = power_(u, power)
            block.at_rows(output).copy_((a @ v).mul_(inverse(a.sum(-1, keepdim=True))))
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
        for block in blocks(query, key, is_causal):
            q, k, v = block.at_rows(query), block.at_keys(key), block.at_keys(value)
            if overflows:
                s = q @ k.mT
                a = hide_(F.softplus(s, threshold=40.0), block, visible, is_causal)
                slope = hide_(s.sigmoid_(), block, visible, is_causal)
            else:
                exp = ((q * math.log2(math.e)) @ k.mT).exp2_()
                a = hide_(exp, block, visible, is_causal).log1p()
                slope = exp.div_(exp + 1)
            if power is None:
                weight = inverse(a.sum(-1, keepdim=True))
                g = block.at_rows(gradient) * weight
                b = (g @ v.mT).sub_(block.at_rows(along) * weight)
            else:
                u, scale = reweigh_(a, block.of(share))
                steep = power_(u.clone(), power - 1)
                a = u.mul_(steep)
                weight = inverse(a.sum(-1, keepdim=True))
                g = block.at_rows(gradient) * weight
                b = (g @ v.mT).sub_(block.at_rows(along) * weight).mul_(steep)
                b.sub_(block.of(share) * b.sum(-1, keepdim=True))
                q = q * (power * scale)
            b.mul_(slope)
            grad = b @ k
            block.at_rows(grad_query).copy_(grad if power is None else grad.mul_(power * scale))
            block.at_keys(grad_key).add_(b.mT @ q)
            block.at_keys(grad_value).add_(a.mT @ g)
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
