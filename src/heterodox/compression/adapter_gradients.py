"""The gradients of low-rank adapters in the weights of attention, exact or in almost linear time.

    W = W* + α/r B A,   Z = softmax(β X_Q W_Q (X_K W_K)ᵀ) X_V W_V,   loss ½ ‖Z - Y‖²

With f the softmax matrix, c = Z - Y, p the gradient in the logits, Q' = β X_Q W_Q, K' = X_K W_K:

    G_Q = β X_Qᵀ p K',   G_K = X_Kᵀ pᵀ Q',   G_V = X_Vᵀ fᵀ c,   dA = α/r Bᵀ G,   dB = α/r G Aᵀ

Hu et al., "Computational Limits of Low-Rank Adaptation", arXiv 2406.03136: definition 2.3 and
section 3 for W_Q alone (C1), theorem A.1 for all three (C2).
Exact: time O(L² d), memory O(L). Polynomial of degree g: time O(L C(d + g, g) d²), for tiny d.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.compression import exact_softmax, factored_softmax
from heterodox.compression.certificate import certified, logit_bound
from heterodox.layers.polynomial import check_degree

METHODS = ("exact", "polynomial")
NAMES = {"q": "query", "k": "key", "v": "value"}

Adapter = tuple[Tensor, Tensor]
"""A (rank, columns) and B (rows, rank) of a weight (rows, columns)."""


@torch.no_grad()
def lora_gradients(
    c1: Float[Tensor, "queries rows"],
    c2: Float[Tensor, "keys columns"],
    c3: Float[Tensor, "keys value_dim"],
    target: Float[Tensor, "queries value_dim"],
    weight: Float[Tensor, "rows columns"],
    a: Float[Tensor, "rank columns"],
    b: Float[Tensor, "rows rank"],
    *,
    method: str = "exact",
    degree: int | None = None,
    tol: float | None = None,
) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
    """The case (C1), an adapter of W_Q alone: the gradients in A and B of

        ½ ‖softmax(C1 (W + B A) C2ᵀ) C3 - Y‖²

    "polynomial" is the same formula with the softmax matrix replaced by its low-rank approximation;
    neither method stores a (queries, keys) matrix. Half precision is computed in float32.

    Args:
        c1: α/r X_Q; any factor of the logits goes in here, too.
        c2: X_K W_K.
        c3: X_V W_V.
        target: Y.
        weight: r/α W*, the frozen part of W.
        a, b: the adapter.
        method: "exact" or "polynomial".
        degree: of the polynomial; even, or odd where every row keeps a positive sum.
        tol: largest relative error of the exponentials, from which an even degree follows by a
            proven bound on the logits; computed in float64 where float32 would round too much.
            One of `degree` and `tol` must be given for "polynomial", none for "exact".

    Returns:
        The gradients in `a` and in `b`. They are constants for autograd.

    Raises:
        ValueError: shapes, dtypes or devices disagree, the rank is 0, there are no keys, `method`
            is unknown, `degree` or `tol` is missing, superfluous or out of range, inputs are not
            finite, or the polynomial cannot be as good as asked for.

    Example:
        >>> c1, c2, c3, target = torch.rand(4, 1000, 3)
        >>> weight, a, b = torch.eye(3), torch.rand(2, 3), torch.zeros(3, 2)
        >>> grad_a, grad_b = lora_gradients(
        ...     c1, c2, c3, target, weight, a, b, method="polynomial", tol=1e-3
        ... )
        >>> grad_a.shape, grad_b.shape
        (torch.Size([2, 3]), torch.Size([3, 2]))
    """
    _check_method(method, degree, tol)
    _check("c1", c1, ("queries", "rows"), c1)
    _check("c2", c2, ("keys", "columns"), c1)
    _check("c3", c3, (c2.shape[0], "value_dim"), c1)
    _check("target", target, (c1.shape[0], c3.shape[1]), c1)
    _check("weight", weight, (c1.shape[1], c2.shape[1]), c1)
    _check_adapter("a", "b", (a, b), weight)
    _check_keys("c2", c2)
    kind = c1.dtype
    c1, c2, c3, target, weight, a, b = _widened(c1, c2, c3, target, weight, a, b)
    query = c1 @ (weight + b @ a)
    in_query = _gradients(query, c2, c3, target, {"query"}, method, degree, tol)["query"]
    in_weight = c1.mT @ in_query
    return (b.mT @ in_weight).to(kind), (in_weight @ a.mT).to(kind)


@torch.no_grad()
def full_lora_gradients(
    x_query: Float[Tensor, "queries query_dim"],
    x_key: Float[Tensor, "keys key_dim"],
    x_value: Float[Tensor, "keys value_dim"],
    target: Float[Tensor, "queries out"],
    weights: Mapping[str, Tensor],
    adapters: Mapping[str, Adapter],
    *,
    alpha: int | float = 1.0,
    beta: int | float = 1.0,
    method: str = "exact",
    degree: int | None = None,
    tol: float | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The case (C2), adapters of any of W_Q, W_K and W_V, of self- or cross-attention.

    Args:
        x_query, x_key, x_value: X_Q, X_K and X_V, the inputs of the projections.
        target: Y.
        weights: the frozen "q", "k" and "v", which stand to the right of their inputs: X W.
        adapters: (A, B) of any of "q", "k", "v"; an adapter adds alpha / rank · B A to its weight.
        alpha: α; 1 leaves 1 / rank.
        beta: β, the inverse temperature of the logits; 1 / √d in most transformers.
        method, degree, tol: as for `lora_gradients`.

    Returns:
        For every name in `adapters` the gradients in its A and its B.

    Raises:
        ValueError: as `lora_gradients`, or a name is not "q", "k" or "v".

    Example:
        >>> x, target = torch.rand(2, 1000, 3)
        >>> weights = {name: torch.eye(3) for name in "qkv"}
        >>> adapters = {name: (torch.rand(2, 3), torch.zeros(3, 2)) for name in "qv"}
        >>> found = full_lora_gradients(
        ...     x, x, x, target, weights, adapters, method="polynomial", tol=1e-3
        ... )
        >>> list(found)
        ['q', 'v']
    """
    _check_method(method, degree, tol)
    if set(weights) != set(NAMES):
        raise ValueError(f"weights: {', '.join(weights) or 'nothing'} given, q, k and v expected")
    if not set(adapters) <= set(NAMES):
        raise ValueError(f"adapters: {', '.join(adapters)} given, some of q, k and v expected")
    _check("x_query", x_query, ("queries", "query_dim"), x_query)
    _check("x_key", x_key, ("keys", "key_dim"), x_query)
    _check("x_value", x_value, (x_key.shape[0], "value_dim"), x_query)
    _check_keys("x_key", x_key)
    inputs = {"q": x_query, "k": x_key, "v": x_value}
    for name, x in inputs.items():
        columns = weights["q"].shape[-1] if name == "k" else "columns"
        _check("weights", weights[name], (x.shape[1], columns), x_query)
        if name in adapters:
            _check_adapter("adapters", "adapters", adapters[name], weights[name])
    _check("target", target, (x_query.shape[0], weights["v"].shape[1]), x_query)
    kind = x_query.dtype
    (target,) = _widened(target)
    inputs = dict(zip(inputs, _widened(*inputs.values()), strict=True))
    wide: dict[str, Tensor] = dict(zip(weights, _widened(*weights.values()), strict=True))
    low = {name: _widened(*pair) for name, pair in adapters.items()}
    for name, (a, b) in low.items():
        wide[name] = wide[name] + alpha / len(a) * b @ a
    query, key, value = (inputs[name] @ wide[name] for name in NAMES)
    wanted = {NAMES[name] for name in adapters}
    gradients = _gradients(beta * query, key, value, target, wanted, method, degree, tol)
    found = {}
    for name, (a, b) in low.items():
        in_weight = inputs[name].mT @ gradients[NAMES[name]] * (alpha / len(a))
        in_weight = beta * in_weight if name == "q" else in_weight
        found[name] = (b.mT @ in_weight).to(kind), (in_weight @ a.mT).to(kind)
    return found


def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    target: Tensor,
    wanted: set[str],
    method: str,
    degree: int | None,
    tol: float | None,
) -> dict[str, Tensor]:
    """Of ½ ‖softmax(query keyᵀ) value - target‖² in what is wanted."""
    dtype = precision = query.dtype
    if method == "polynomial":
        bound = logit_bound(query, key)
        if not bound < float("inf"):
            raise ValueError(f"tol: logits up to {bound} given, finite ones expected")
        if tol is not None:
            degree, precision = certified(bound, tol, dtype)
    query, key, value, target = (x[None].to(precision) for x in (query, key, value, target))

    def residual(z: Tensor, part: slice) -> Tensor:
        return z - target[:, part]

    if degree is None:
        found = exact_softmax.gradients(query, key, value, residual, wanted)
    else:
        found = factored_softmax.gradients(query, key, value, residual, wanted, degree)
    return {name: x[0].to(dtype) for name, x in found.items()}


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def _check_method(method: str, degree: int | None, tol: float | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} expected")
    if method == "exact":
        for name, number in (("degree", degree), ("tol", tol)):
            if number is not None:
                raise ValueError(f"{name}: {number} given, None expected with method 'exact'")
    elif (degree is None) == (tol is None):
        given = "neither it nor tol" if degree is None else f"{degree} and tol {tol}"
        raise ValueError(f"degree: {given} given, one of degree and tol expected")
    if degree is not None:
        check_degree(degree)
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol: {tol} given, a number between 0 and 1 expected")


def _check(name: str, x: Tensor, shape: tuple[int | str, ...], like: Tensor) -> None:
    fits = x.ndim == len(shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(shape, x.shape, strict=True)
    )
    if not fits:
        expected = f"({', '.join(map(str, shape))})"
        raise ValueError(f"{name}: shape {tuple(x.shape)} given, {expected} expected")
    if not x.is_floating_point() or (x.dtype, x.device) != (like.dtype, like.device):
        raise ValueError(
            f"{name}: {x.dtype} on {x.device} given, floating numbers of one dtype on one device "
            "expected"
        )


def _check_adapter(name_a: str, name_b: str, adapter: Adapter, weight: Tensor) -> None:
    a, b = adapter
    _check(name_a, a, ("rank", weight.shape[1]), weight)
    if len(a) == 0:
        raise ValueError(f"{name_a}: rank 0 given, at least 1 expected")
    _check(name_b, b, (weight.shape[0], a.shape[0]), weight)


def _check_keys(name: str, x: Tensor) -> None:
    if x.shape[0] == 0:
        raise ValueError(f"{name}: no keys given, at least one expected")
