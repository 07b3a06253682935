"""Softmax attention and its gradients by polynomial features, without a (queries, keys) matrix.

With φ the monomials up to degree g and w their coefficients, softmax(q·k) is

    f_jl ≈ φ(q_j)·(w ∘ φ(k_l)) / D_j,   D_j = φ(q_j)·(w ∘ Σ_l φ(k_l)),

and all that the chain rule asks of f is in two tables, of the moments of keys and of queries. With
z the output, c the loss's gradient in it and r_j = c_j·z_j,

    M_ab = w ∘ Σ_l φ(k_l) [1, v_l]_a [1, k_l]_b
    N_ab = w ∘ Σ_j φ(q_j) [-r_j, c_j]_a [1, q_j]_b / D_j

    D_j [1, z_j]_a = φ(q_j)·M_a0,   dq_jb = Σ_a [-r_j, c_j]_a φ(q_j)·M_ab / D_j
    dv_la          = φ(k_l)·N_a0,   dk_lb = Σ_a [1, v_l]_a φ(k_l)·N_ab

which is the exact gradient with f replaced: Hu et al., arXiv 2406.03136, section 3 and appendix A.
It is not the derivative of the replaced f, whose degree would be lower in places.
Time O((queries + keys) · C(d + g, g) · d²), memory O(C(d + g, g) · d²) above inputs and gradients.
"""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from heterodox.layers.polynomial import Monomials, monomials_of

# Numbers in a block of features: enough for a product to be worth its call, and in cache.
BLOCK = 2**19
FEWEST, MOST = 256, 4096

Residual = Callable[[Tensor, slice], Tensor]
"""From the output at some queries, (groups, count, value_dim), to the loss's gradient in it."""


def output(query: Tensor, key: Tensor, value: Tensor, degree: int) -> Tensor:
    """Attention of inputs (groups, length, channels) whose logits are query·key.

    Raises:
        ValueError: the polynomial is not positive where an odd degree needs it to be.
    """
    query, key, value = _channels_first(query, key, value)
    monomials = monomials_of(query.shape[1], degree)
    moments = _moments(key, monomials, 1 + value.shape[1], lambda part: _and_one(value[..., part]))
    result = query.new_empty(query.shape[0], value.shape[1], query.shape[2])
    sums = []
    for part, features in _features(query, monomials):
        table = moments @ features
        torch.div(table[:, 1:], table[:, :1], out=result[..., part])
        sums.append(table[:, 0].min())
    _check_positive(sums, degree)
    return result.mT


def gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Residual,
    wanted: Collection[str],
    degree: int,
) -> dict[str, Tensor]:
    """The gradients in those of "query", "key" and "value" that are wanted.

    Raises:
        ValueError: as `output`.
    """
    query, key, value = _channels_first(query, key, value)
    monomials = monomials_of(query.shape[1], degree)
    found = {
        name: torch.empty_like(x)
        for name, x in {"query": query, "key": key, "value": value}.items()
        if name in wanted
    }
    turned = "key" in found or "value" in found
    one = query.new_ones(query.shape[0], 1, 1)
    rows = 1 + value.shape[1]
    of_keys = _moments(
        key,
        monomials,
        rows * (1 + key.shape[1] if "query" in found else 1),
        lambda part: _outer(
            _and_one(value[..., part]), _and_one(key[..., part]) if "query" in found else one
        ),
    )
    columns = 1 + query.shape[1] if "key" in found else 1
    of_queries = query.new_zeros(query.shape[0], rows * columns, monomials.count)
    sums = []
    for part, features in _features(query, monomials):
        table = (of_keys @ features).unflatten(1, (rows, -1))
        divisor = table[:, :1, 0]
        sums.append(divisor.min())
        z = table[:, 1:, 0] / divisor
        c = residual(z.mT, part).mT
        left = torch.cat([-(c * z).sum(1, keepdim=True), c], dim=1).div_(divisor)
        if "query" in found:
            torch.sum(left[:, :, None] * table[:, :, 1:], dim=1, out=found["query"][..., part])
        if turned:
            right = _and_one(query[..., part]) if "key" in found else one
            of_queries.baddbmm_(_outer(left, right), features.mT)
    _check_positive(sums, degree)
    if not turned:
        return {name: x.mT for name, x in found.items()}
    of_queries *= _coefficients(monomials, query)
    for part, features in _features(key, monomials):
        table = (of_queries @ features).unflatten(1, (rows, -1))
        if "value" in found:
            found["value"][..., part] = table[:, 1:, 0]
        if "key" in found:
            left = _and_one(value[..., part])
            torch.sum(left[:, :, None] * table[:, :, 1:], dim=1, out=found["key"][..., part])
    return {name: x.mT for name, x in found.items()}


def _moments(
    points: Tensor, monomials: Monomials, channels: int, payload: Callable[[slice], Tensor]
) -> Tensor:
    """w ∘ Σ payload φᵀ over all points: (groups, channels of the payload, features)."""
    total = points.new_zeros(points.shape[0], channels, monomials.count)
    for part, features in _features(points, monomials):
        total.baddbmm_(payload(part), features.mT)
    return total.mul_(_coefficients(monomials, points))


def _features(points: Tensor, monomials: Monomials) -> Iterator[tuple[slice, Tensor]]:
    """Monomials (groups, features, count), without coefficients, of one block of points after
    another, in one buffer: each is one product of two rows."""
    groups, _, length = points.shape
    block = min(max(BLOCK // (monomials.count * max(groups, 1)), FEWEST), MOST)
    buffer = points.new_ones(groups, monomials.count, min(block, length))
    for start in range(0, length, block):
        part = slice(start, min(start + block, length))
        x, features = points[..., part], buffer[..., : part.stop - start]
        below, end = 0, 1
        for blocks in monomials.blocks:
            first = end
            for stop, j in blocks:
                torch.mul(
                    features[:, below : below + stop],
                    x[:, j : j + 1],
                    out=features[:, end : end + stop],
                )
                end += stop
            below = first
        yield part, features


def _coefficients(monomials: Monomials, like: Tensor) -> Tensor:
    return torch.as_tensor(monomials.inverse_factorials, dtype=like.dtype, device=like.device)


def _channels_first(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.mT.contiguous() for x in inputs)


def _and_one(x: Tensor) -> Tensor:
    """[1, x] along the channels."""
    return torch.cat([torch.ones_like(x[:, :1]), x], dim=1)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return (left[:, :, None] * right[:, None]).flatten(1, 2)


def _check_positive(sums: list[Tensor], degree: int) -> None:
    """An even Taylor polynomial of exp is positive everywhere; an odd one is not."""
    if sums and not bool(torch.stack(sums).min() > 0):
        raise ValueError(
            f"degree: {degree} given, which makes a row of the softmax matrix sum to a number "
            "that is not positive; an even degree, or a tol, expected"
        )
