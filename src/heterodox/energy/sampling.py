"""One step of sampling for networks that are defined by an energy: spins, and one-hot states.

    spins ±1:   P(σ_i = 1) = ½ (1 + tanh(β h_i)),   h_i the local field, β the inverse temperature
    one-hot:    P(x_s = 1) = softmax(u)_s,          u the potentials of a variable's states

All units of a call are drawn at once: a sweep of Gibbs sampling where they are independent of each
other, such as a layer of a restricted machine, and Little's dynamics where they are not. The random
numbers come from the generator that is given.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sample_spins(
    field: Float[Tensor, "*shape"],
    beta: float,
    *,
    current: Float[Tensor, "*shape"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Spins −1 and 1, each at its own field.

    Args:
        field: h, any shape.
        beta: inverse temperature, at least 0; at 0 a fair coin. With `math.inf` a spin is the sign
            of its field.
        current: what a spin keeps without temperature where its field is exactly 0; needed there.
        generator: on the device of `field`; the global one by default. Without temperature nothing
            is drawn.

    Raises:
        ValueError: `beta` is negative or not a number, or infinite without `current`.

    Example:
        >>> field = torch.tensor([3.0, -2.0, 0.0])
        >>> sample_spins(field, math.inf, current=torch.tensor([-1.0, -1.0, -1.0]))
        tensor([ 1., -1., -1.])
        >>> generator = torch.Generator().manual_seed(0)
        >>> float(sample_spins(torch.full((10_000,), 0.5), 2.0, generator=generator).mean()) > 0.74
        True
    """
    check_beta(beta)
    if math.isinf(beta):
        if current is None:
            raise ValueError("current: None given without temperature, the present spins expected")
        return torch.where(field == 0, current, field.sign())
    # The comparison with a uniform number leaves no room for the precision of bfloat16.
    dtype = torch.promote_types(field.dtype, torch.float32)
    up = torch.sigmoid(2 * beta * field.to(dtype))
    uniform = torch.rand(field.shape, dtype=dtype, device=field.device, generator=generator)
    return (uniform < up).to(field.dtype).mul_(2).sub_(1)


def sample_states(
    logits: Float[Tensor, "*shape states"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape states"]:
    """One-hot states, drawn from the softmax of the last axis.

    Args:
        logits: the potentials of each variable's states.
        generator: on the device of `logits`; the global one by default.

    Raises:
        ValueError: there are no states.

    Example:
        >>> sample_states(torch.tensor([[0.0, 1e4], [1e4, 0.0]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: shape {tuple(logits.shape)} given, (..., states) expected")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    uniform = torch.rand(logits.shape, dtype=dtype, device=logits.device, generator=generator)
    # The largest of logits with Gumbel noise; a uniform 0 becomes the smallest number above it.
    noise = -(-uniform.clamp(min=torch.finfo(dtype).tiny).log()).log()
    chosen = (logits.to(dtype) + noise).argmax(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, chosen, 1.0)


def check_beta(beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f"beta: {beta} given, an inverse temperature of at least 0 expected")
