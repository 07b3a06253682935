"""The scan that every diagonal recurrence shares, in parts that run side by side.

    h_t = a_t ⊙ h_{t−1} + b_t

The sequence is cut into about √length chunks of about √length steps. All chunks run together from a
state of 0, and their decays are multiplied; then states pass from chunk to chunk; then all chunks
run together again, each from its own state. Nothing is divided by a product of decays, so that
decays near 0 do no harm. The gradient is the same scan from right to left:

    ∂b_t = ∂h_t + a_{t+1} ⊙ ∂b_{t+1},     ∂a_t = ∂b_t ⊙ h_{t−1},     ∂h_{−1} = a_0 ⊙ ∂b_0

Martin, Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", ICLR 2018, arXiv
1709.04057. Time O(length), in 3 √length steps of Python; memory of the result
and what is kept for the gradient: decays and states.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def linear_scan(
    decay: Float[Tensor, "*batch length #channels"],
    inputs: Float[Tensor, "*batch length channels"],
    initial_state: Float[Tensor, "*batch channels"] | None = None,
) -> Float[Tensor, "*batch length channels"]:
    """All states of h_t = decay_t · h_{t−1} + inputs_t along the last axis but one.

    Half precision is computed in float32. Derivatives of any order exist.

    Args:
        decay: a_t, of any size and sign; one channel serves all of them.
        inputs: b_t.
        initial_state: h_{−1}; None is 0.

    Returns:
        h_0, h_1, ... in the dtype of `inputs`; the last is what a following piece starts from.

    Raises:
        ValueError: shapes disagree, or there is no axis of time.

    Example:
        >>> decay = torch.full((4, 1), 0.5)
        >>> linear_scan(decay, torch.tensor([[8.0], [0.0], [0.0], [1.0]])).flatten()
        tensor([8., 4., 2., 2.])
    """
    if inputs.ndim < 2:
        raise ValueError(
            f"inputs: shape {tuple(inputs.shape)} given, (..., length, channels) expected"
        )
    if decay.shape[:-1] != inputs.shape[:-1] or decay.shape[-1] not in (1, inputs.shape[-1]):
        raise ValueError(
            f"decay: shape {tuple(decay.shape)} given, {tuple(inputs.shape)} of inputs or one "
            "channel expected"
        )
    state_shape = (*inputs.shape[:-2], inputs.shape[-1])
    if initial_state is not None and initial_state.shape != state_shape:
        raise ValueError(
            f"initial_state: shape {tuple(initial_state.shape)} given, {state_shape} expected"
        )
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    state = inputs.new_zeros(state_shape) if initial_state is None else initial_state
    decay = decay.to(dtype).expand(inputs.shape)
    return _states(decay, inputs.to(dtype), state.to(dtype)).to(inputs.dtype)


# Operators of their own, so that torch.compile takes each as a whole.
@torch.library.custom_op("heterodox::scan_states", mutates_args=())
def _states(decay: Tensor, inputs: Tensor, initial_state: Tensor) -> Tensor:
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    if inputs.numel():
        _run(decay, inputs, initial_state, states, reverse=False)
    return states


@torch.library.custom_op("heterodox::scan_adjoint", mutates_args=())
def _adjoint(decay: Tensor, gradient: Tensor) -> Tensor:
    """g_t = gradient_t + decay_{t+1} g_{t+1}."""
    result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    if gradient.numel():
        result[..., -1, :] = gradient[..., -1, :]
        if gradient.shape[-2] > 1:
            _run(
                decay[..., 1:, :],
                gradient[..., :-1, :],
                gradient[..., -1, :],
                result[..., :-1, :],
                reverse=True,
            )
    return result


def _run(decay: Tensor, inputs: Tensor, state: Tensor, states: Tensor, reverse: bool) -> None:
    """Fills `states`; `reverse` runs from the last position to the first."""
    steps = math.isqrt(inputs.shape[-2])
    (a, a_rest), (b, b_rest), (out, out_rest) = (
        _chunked(x, steps, reverse) for x in (decay, inputs, states)
    )
    # Each chunk alone, from a state of 0: what it adds, and what it leaves of the state before it.
    adds, keeps = b[0].clone(), a[0].clone()
    for a_t, b_t in zip(a[1:], b[1:], strict=True):
        torch.addcmul(b_t, a_t, adds, out=adds)
        keeps.mul_(a_t)
    before = torch.empty_like(adds)
    for chunk in reversed(range(before.shape[-2])) if reverse else range(before.shape[-2]):
        before[..., chunk, :] = state
        state = torch.addcmul(adds[..., chunk, :], keeps[..., chunk, :], state)
    for a_t, b_t, out_t in zip(a, b, out, strict=True):
        before = torch.addcmul(b_t, a_t, before, out=out_t)
    for a_t, b_t, out_t in zip(a_rest, b_rest, out_rest, strict=True):
        state = torch.addcmul(b_t, a_t, state, out=out_t)


def _chunked(x: Tensor, steps: int, reverse: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Views in the order of the scan: each step of all chunks, and the steps after the chunks."""
    length = x.shape[-2]
    rest = length % steps
    chunks = x[..., rest:, :] if reverse else x[..., : length - rest, :]
    after = x[..., :rest, :] if reverse else x[..., length - rest :, :]
    of_chunks = list(chunks.unflatten(-2, (-1, steps)).unbind(-2))
    of_rest = list(after.unbind(-2))
    return (of_chunks[::-1], of_rest[::-1]) if reverse else (of_chunks, of_rest)


def _shifted(states: Tensor, first: Tensor) -> Tensor:
    """What stood one position before."""
    return torch.cat((first.unsqueeze(-2), states[..., :-1, :]), dim=-2)


def _keep_for_states(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    decay, _, initial_state = inputs
    ctx.save_for_backward(decay, initial_state, output)


def _states_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    decay, initial_state, states = ctx.saved_tensors
    of_inputs = _adjoint(decay, gradient)
    of_decay = of_inputs * _shifted(states, initial_state)
    of_state = (decay[..., :1, :] * of_inputs[..., :1, :]).sum(-2)  # 0 for no positions
    return of_decay, of_inputs, of_state


def _keep_for_adjoint(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _adjoint_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    decay, result = ctx.saved_tensors
    zero = gradient.new_zeros(*gradient.shape[:-2], gradient.shape[-1])
    of_gradient = _states(decay, gradient, zero)
    return _shifted(of_gradient, zero) * result, of_gradient


def _like_second(*inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs[1], memory_format=torch.contiguous_format)


_states.register_fake(_like_second)
_adjoint.register_fake(_like_second)
_states.register_autograd(_states_backward, setup_context=_keep_for_states)
_adjoint.register_autograd(_adjoint_backward, setup_context=_keep_for_adjoint)
