"""The delta rule: linear attention that corrects what a key holds instead of adding to it.

    u_t = β_t (v_t - S_{t-1}ᵀ k_t),   S_t = S_{t-1} + k_t u_tᵀ,   o_t = s S_tᵀ q_t
        S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS
2024, arXiv 2406.06484, equations of section 2.2 and 3; S is the transpose of the paper's, and the
factor s = 1/√d_k is that of the authors' code. A step is one of gradient descent on
‖Sᵀk_t - v_t‖² / 2 at the rate β_t. With L = I + tril(b K Kᵀ, -1) and b = diag(β), the rows of a
chunk are T = L⁻¹ b, W = T K, U = T V (the UT transform), which need no recurrence:
`heterodox.attention.delta_chunks`. Time O(n (C d_k + d_k d_v + C d_v)) for n positions in chunks of
C; the state of a sequence of any length is d_k · d_v numbers a head.
"""

import importlib.util

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.attention.delta_chunks import chunked_delta_rule, in_chunks
from heterodox.autocast import without_autocast

CPU_CHUNK, GPU_CHUNK = 32, 64

Output = Float[Tensor, "batch heads length value_dim"]
State = Float[Tensor, "batch heads key_dim value_dim"]


def delta_rule(
    query: Float[Tensor, "batch heads length key_dim"],
    key: Float[Tensor, "batch heads length key_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    beta: Float[Tensor, "batch heads length"],
    initial_state: State | None = None,
    *,
    scale: float | None = None,
    chunk_size: int | None = None,
    return_state: bool = False,
) -> Output | tuple[Output, State]:
    """The delta rule in chunks, with its own backward pass.

    Query and key are taken as they are. With keys of length 1, the rule is stable for β in (0, 2);
    longer keys can make the state grow without bound. Half precision is computed in float32, and
    the state is float32. On a GPU with Triton, where keys have at most 128 channels, kernels do it.
    Differentiable once; `delta_rule_recurrent` is twice.

    Args:
        query, key, value: of each position, in order.
        beta: how much of what a key holds is replaced; 1 replaces it, 0 leaves it.
        initial_state: S before the first position; zeros by default.
        scale: s, what the output is multiplied by; 1/√key_dim by default, as in the authors' code.
        chunk_size: positions handled at once; changes speed and memory, not the result. By default
            32 on a CPU and 64 on a GPU; given, it is obeyed and no kernel is used.
        return_state: whether to return S after the last position as well.

    Raises:
        ValueError: shapes disagree, or `chunk_size` is not positive.

    Example:
        >>> q, k, v = torch.nn.functional.normalize(torch.randn(3, 2, 4, 10, 8), dim=-1)
        >>> beta = torch.rand(2, 4, 10)
        >>> start, state = delta_rule(*(x[:, :, :7] for x in (q, k, v, beta)), return_state=True)
        >>> end = delta_rule(*(x[:, :, 7:] for x in (q, k, v, beta)), state)
        >>> whole = delta_rule(q, k, v, beta)
        >>> torch.allclose(torch.cat((start, end), dim=2), whole, atol=1e-6)
        True
    """
    _check(query, key, value, beta, initial_state)
    if chunk_size is None and query.is_cuda and importlib.util.find_spec("triton"):
        from heterodox.attention import delta_triton

        if delta_triton.supports(query, key, value):
            output, state = delta_triton.triton_delta_rule(
                query, key, value, beta, _state(key, value, initial_state), _scale(query, scale)
            )
            return (output, state) if return_state else output
    if chunk_size is None:
        chunk_size = CPU_CHUNK if query.device.type == "cpu" else GPU_CHUNK
    if chunk_size < 1:
        raise ValueError(f"chunk_size: {chunk_size} given, a positive number expected")
    batch, heads, length, _ = query.shape
    size = max(1, min(chunk_size, length))
    padding = -length % size
    with without_autocast(query.device.type):
        *tensors, state = _promoted(query, key, value, beta, _state(key, value, initial_state))
        if padding:  # a key and a β of 0 leave the state alone
            tensors = [F.pad(x, (0, 0) * (x.ndim - 3) + (0, padding)) for x in tensors]
        output, state = chunked_delta_rule(
            *(in_chunks(x, size) for x in tensors),
            state.flatten(0, 1),
            _scale(query, scale),
        )
    output = output.movedim(0, 2).flatten(2, 3)[:, :, :length].to(value.dtype)
    return (output, state.unflatten(0, (batch, heads))) if return_state else output


def delta_rule_recurrent(
    query: Float[Tensor, "batch heads length key_dim"],
    key: Float[Tensor, "batch heads length key_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    beta: Float[Tensor, "batch heads length"],
    initial_state: State | None = None,
    *,
    scale: float | None = None,
    return_state: bool = False,
) -> Output | tuple[Output, State]:
    """`delta_rule` position by position, as its equations read: the reference.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> q, k, v = torch.nn.functional.normalize(torch.randn(3, 2, 4, 10, 8), dim=-1)
        >>> beta = torch.rand(2, 4, 10)
        >>> recurrent = delta_rule_recurrent(q, k, v, beta)
        >>> torch.allclose(recurrent, delta_rule(q, k, v, beta), atol=1e-6)
        True
    """
    _check(query, key, value, beta, initial_state)
    with without_autocast(query.device.type):
        *tensors, state = _promoted(query, key, value, beta, _state(key, value, initial_state))
        outputs = []
        for q, k, v, b in zip(*(x.unbind(2) for x in tensors), strict=True):
            output, state = _step(q, k, v, b, state, _scale(query, scale))
            outputs.append(output)
    stacked = torch.stack(outputs, dim=2) if outputs else torch.zeros_like(value)
    stacked = stacked.to(value.dtype)
    return (stacked, state) if return_state else stacked


def delta_rule_step(
    query: Float[Tensor, "batch heads key_dim"],
    key: Float[Tensor, "batch heads key_dim"],
    value: Float[Tensor, "batch heads value_dim"],
    beta: Float[Tensor, "batch heads"],
    state: State,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], State]:
    """One position of the delta rule, for decoding: the output, and the state after it.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> key, value = torch.eye(3)[:1, None], torch.tensor([[[5.0, 7.0]]])
        >>> state = torch.zeros(1, 1, 3, 2)
        >>> output, state = delta_rule_step(key, key, value, torch.ones(1, 1), state, scale=1.0)
        >>> output
        tensor([[[5., 7.]]])
    """
    if query.ndim != 3:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, key_dim) expected"
        )
    _check(query[:, :, None], key[:, :, None], value[:, :, None], beta[..., None], state, "state")
    with without_autocast(query.device.type):
        q, k, v, b, state = _promoted(query, key, value, beta, state)
        output, state = _step(q, k, v, b, state, _scale(query, scale))
    return output.to(value.dtype), state


def _step(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    held = (key[..., None, :] @ state).squeeze(-2)
    correction = beta[..., None] * (value - held)
    state = state + key[..., None] * correction[..., None, :]
    # The output is read after the write.
    return (scale * query[..., None, :] @ state).squeeze(-2), state


def wy_representation(
    key: Float[Tensor, "*batch chunk key_dim"],
    value: Float[Tensor, "*batch chunk value_dim"],
    beta: Float[Tensor, "*batch chunk"],
) -> tuple[Float[Tensor, "*batch chunk key_dim"], Float[Tensor, "*batch chunk value_dim"]]:
    """W and U of a chunk: (I - β_C k_C k_Cᵀ) ... (I - β_1 k_1 k_1ᵀ) = I - Kᵀ W, and from a state of
    zeros the chunk ends with the state Kᵀ U.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> key, value, beta = torch.randn(4, 8), torch.randn(4, 3), torch.rand(4)
        >>> w, u = wy_representation(key, value, beta)
        >>> product = torch.eye(8)
        >>> for k, b in zip(key, beta):
        ...     product = (torch.eye(8) - b * torch.outer(k, k)) @ product
        >>> torch.allclose(torch.eye(8) - key.T @ w, product, atol=1e-4)
        True
    """
    if key.ndim < 2:
        raise ValueError(f"key: shape {tuple(key.shape)} given, (..., chunk, key_dim) expected")
    if value.shape[:-1] != key.shape[:-1] or value.ndim != key.ndim:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, {(*key.shape[:-1], 'value_dim')} expected"
        )
    if beta.shape != key.shape[:-1]:
        raise ValueError(f"beta: shape {tuple(beta.shape)} given, {tuple(key.shape[:-1])} expected")
    with without_autocast(key.device.type):
        key_, value_, beta_ = _promoted(key, value, beta)
        w, u = _triangular_solve(key_, beta_, torch.cat((key_, value_), dim=-1)).split(
            (key.shape[-1], value.shape[-1]), dim=-1
        )
    return w.to(key.dtype), u.to(value.dtype)


def delta_rule_attention_map(
    query: Float[Tensor, "batch heads length key_dim"],
    key: Float[Tensor, "batch heads length key_dim"],
    beta: Float[Tensor, "batch heads length"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads length length"]:
    """The weights A = s tril(Q Kᵀ) L⁻¹ b with which the outputs are A V, from a state of zeros.

    To look at: cubic in the length. Weights can be negative, and rows do not sum to 1.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> q, k, v = torch.nn.functional.normalize(torch.randn(3, 2, 4, 10, 8), dim=-1)
        >>> beta = torch.rand(2, 4, 10)
        >>> weights = delta_rule_attention_map(q, k, beta)
        >>> torch.allclose(weights @ v, delta_rule(q, k, v, beta), atol=1e-6)
        True
    """
    _check(query, key, key, beta, None)
    with without_autocast(query.device.type):
        query_, key_, beta_ = _promoted(query, key, beta)
        identity = torch.eye(key.shape[2], dtype=key_.dtype, device=key.device)
        inverse = _triangular_solve(key_, beta_, identity.expand(*key.shape[:3], -1))
        weights = _scale(query, scale) * (query_ @ key_.mT).tril() @ inverse
    return weights.to(query.dtype)


def _triangular_solve(key: Tensor, beta: Tensor, rows: Tensor) -> Tensor:
    """L⁻¹ b rows. The solver reads L below the diagonal and takes the diagonal to be ones."""
    scaled = beta[..., None]
    gram = scaled * (key @ key.mT)
    return torch.linalg.solve_triangular(gram, scaled * rows, upper=False, unitriangular=True)


def _promoted(*tensors: Tensor) -> list[Tensor]:
    """In one dtype of at least float32: the corrections of bfloat16 would not add up."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) for x in tensors]


def _state(key: Tensor, value: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state
    return key.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1])


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    state: Tensor | None,
    name_of_state: str = "initial_state",
) -> None:
    if query.ndim != 4:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, length, key_dim) expected"
        )
    if query.shape[-1] < 1:
        raise ValueError("query: key_dim 0 given, a positive number expected")
    batch, heads, length, key_dim = query.shape
    for name, x, expected in (
        ("key", key, (batch, heads, length, key_dim)),
        ("value", value, (batch, heads, length, "value_dim")),
        ("beta", beta, (batch, heads, length)),
    ):
        sizes = zip(x.shape, expected, strict=False)
        if x.ndim != len(expected) or any(n != e for n, e in sizes if e != "value_dim"):
            raise ValueError(
                f"{name}: shape {tuple(x.shape)} given, ({', '.join(map(str, expected))}) expected"
            )
    if state is not None and state.shape != (batch, heads, key_dim, value.shape[-1]):
        raise ValueError(
            f"{name_of_state}: shape {tuple(state.shape)} given, "
            f"{(batch, heads, key_dim, value.shape[-1])} expected"
        )
