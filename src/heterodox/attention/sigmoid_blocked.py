"""Sigmoid attention tile by tile, with its own backward: memory linear in the length.

    P = σ(scale · Q Kᵀ + b),   O = P V
    dV = Pᵀ dO,   dS = P ∘ (1 - P) ∘ (dO Vᵀ),   dQ = scale · dS K,   dK = scale · dSᵀ Q

A row has no maximum and no sum, so a tile of P needs nothing from its neighbours, nothing but the
inputs is kept for the backward pass, and P is computed a second time there.
Ramapuram et al., arXiv 2409.04431, section 4; time O(n_q · n · d), any device and dtype.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers in a tile: on a CPU what stays in the second-level cache, on a GPU enough to fill it.
CPU_TILE, GPU_TILE = 2**19, 2**25
# Tall and narrow tiles: a causal mask then skips most of what lies above the diagonal.
MAX_ROWS = 2048


class Logits(NamedTuple):
    """What the weights depend on besides query and key; the mask has four axes or is None."""

    scale: float
    bias: float
    is_causal: bool
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    dropout_p: float
    seed: int


class Tile(NamedTuple):
    """A part of the weights (batch, heads, rows, columns)."""

    batch: slice
    heads: slice
    rows: slice
    columns: slice

    def queries(self, x: Tensor) -> Tensor:
        """This tile's part of (batch, heads, rows, dim), with batch and heads as one axis."""
        return x[self.batch, self.heads, self.rows].flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """This tile's part of (batch, heads, columns, dim), with batch and heads as one axis."""
        return x[self.batch, self.heads, self.columns].flatten(0, 1)


def _slices(stop: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))


def _tiles(shape: torch.Size, is_causal: bool, size: int) -> Iterator[Tile]:
    batch, heads, num_queries, num_keys = shape
    height = min(num_queries, MAX_ROWS)
    width = min(num_keys, size // (MAX_ROWS if is_causal else height))
    depth = max(1, size // (height * width))
    for batch_slice in _slices(batch, max(1, depth // heads)):
        for head_slice in _slices(heads, min(depth, heads)):
            for rows in _slices(num_queries, height):
                seen = min(num_keys, rows.stop) if is_causal else num_keys
                for columns in _slices(seen, width):
                    first = max(rows.start, columns.start) if is_causal else rows.start
                    yield Tile(batch_slice, head_slice, slice(first, rows.stop), columns)


class _Weights:
    """Computes the weights a tile at a time; every pass goes through the same tiles and drops the
    same weights."""

    def __init__(self, query: Tensor, key: Tensor, logits: Logits) -> None:
        self.shape = torch.Size((*query.shape[:3], key.shape[2]))
        self.device = query.device
        # float32: bfloat16 keeps 8 bits of a logit near -log n, which is 3 % of the weight.
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.size = CPU_TILE if self.device.type == "cpu" else GPU_TILE
        self.scale, self.bias, self.is_causal = logits[:3]
        self.mask = None if logits.attn_mask is None else logits.attn_mask.expand(self.shape)
        self.slopes = None
        if logits.alibi_slopes is not None:
            self.slopes = logits.alibi_slopes.to(self.dtype).expand(self.shape[:2])
        self.keep = 1 - logits.dropout_p
        self.generator = torch.Generator(self.device).manual_seed(logits.seed)

    def tiles(self) -> Iterator[Tile]:
        return _tiles(self.shape, self.is_causal, self.size)

    def buffer(self) -> Tensor:
        """Room for any one of the tiles."""
        elements = min(self.size, self.shape.numel())
        return torch.empty(elements, dtype=self.dtype, device=self.device)

    def compute(self, tile: Tile, query: Tensor, key: Tensor, buffer: Tensor) -> Tensor:
        """σ(scale · query · keyᵀ + b) on one tile, written into `buffer`."""
        weights = _tile_in(buffer, query, key)
        mask = None
        if self.mask is not None:
            mask = self.mask[tile.batch, tile.heads, tile.rows, tile.columns].flatten(0, 1)
        if self.slopes is None:
            weights.fill_(self.bias)
        else:
            slopes = self.slopes[tile.batch, tile.heads].reshape(-1, 1, 1)
            torch.mul(self._distance(tile), -slopes, out=weights).add_(self.bias)
        if mask is not None and mask.dtype != torch.bool:
            weights.add_(mask)
        torch.baddbmm(weights, query, key.mT, alpha=self.scale, out=weights).sigmoid_()
        if mask is not None and mask.dtype == torch.bool:
            weights.masked_fill_(mask.logical_not(), 0.0)
        skew = tile.rows.start - tile.columns.start
        if self.is_causal and skew < key.shape[1] - 1:
            weights.tril_(skew)
        return weights

    def dropout(self, weights: Tensor, buffer: Tensor) -> Tensor:
        """What the weights of the next tile are multiplied by: 0, or 1 / (1 - p)."""
        factors = buffer[: weights.numel()].view(weights.shape)
        return factors.bernoulli_(self.keep, generator=self.generator).div_(self.keep)

    def _distance(self, tile: Tile) -> Tensor:
        shift = self.shape[3] - self.shape[2]
        rows, columns = (
            torch.arange(part.start, part.stop, dtype=self.dtype, device=self.device)
            for part in (tile.rows, tile.columns)
        )
        return (rows[:, None] + shift - columns).abs_()


def _tile_in(buffer: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The start of `buffer` in the shape of query · keyᵀ."""
    shape = torch.Size((*query.shape[:2], key.shape[1]))
    return buffer[: shape.numel()].view(shape)


class _BlockedSigmoidAttention(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, logits: Logits) -> Tensor:
        weights = _Weights(query, key, logits)
        tile_buffer = weights.buffer()
        factor_buffer = weights.buffer() if logits.dropout_p else tile_buffer
        out = query.new_zeros((*query.shape[:3], value.shape[3]), dtype=weights.dtype)
        for tile in weights.tiles():
            q = tile.queries(query).to(weights.dtype)
            k, v = (tile.keys(x).to(weights.dtype) for x in (key, value))
            p = weights.compute(tile, q, k, tile_buffer)
            if logits.dropout_p:
                p.mul_(weights.dropout(p, factor_buffer))
            tile.queries(out).baddbmm_(p, v)
        return out.to(query.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Logits], output: Tensor):
        *tensors, logits = inputs
        ctx.save_for_backward(*tensors)
        ctx.logits = logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        logits: Logits = ctx.logits
        weights = _Weights(query, key, logits)
        tile_buffer, grad_buffer = weights.buffer(), weights.buffer()
        factor_buffer = weights.buffer() if logits.dropout_p else tile_buffer
        grad_query, grad_key, grad_value = (
            torch.zeros(x.shape, dtype=weights.dtype, device=x.device) for x in (query, key, value)
        )
        for tile in weights.tiles():
            q, do = (tile.queries(x).to(weights.dtype) for x in (query, grad_out))
            k, v = (tile.keys(x).to(weights.dtype) for x in (key, value))
            p = weights.compute(tile, q, k, tile_buffer)
            dp = torch.bmm(do, v.mT, out=_tile_in(grad_buffer, q, k))
            if logits.dropout_p:
                factors = weights.dropout(p, factor_buffer)
                dp.mul_(factors)
                tile.keys(grad_value).baddbmm_(factors.mul_(p).mT, do)
            else:
                tile.keys(grad_value).baddbmm_(p.mT, do)
            ds = torch.ops.aten.sigmoid_backward.grad_input(dp, p, grad_input=dp)
            tile.queries(grad_query).baddbmm_(ds, k, alpha=logits.scale)
            tile.keys(grad_key).baddbmm_(ds.mT, q, alpha=logits.scale)
        grads = (g.to(query.dtype) for g in (grad_query, grad_key, grad_value))
        return *grads, None


@torch.compiler.disable
def blocked_sigmoid_attention(query: Tensor, key: Tensor, value: Tensor, logits: Logits) -> Tensor:
    """Sigmoid attention on (batch, heads, length, dim) of one dtype, with as many heads of keys as
    of queries; differentiable once, in query, key and value."""
    return _BlockedSigmoidAttention.apply(query, key, value, logits)
