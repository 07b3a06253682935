"""The forward-forward algorithm: each layer is excited by true examples and calm for false ones.

    G = Σ_k h_k²
    L = mean softplus(θ − G)  on positive examples,   mean softplus(G − θ)  on negative ones

The cross-entropy of σ(G − θ), the probability that an example is true (Hinton, "The Forward-Forward
Algorithm", 2022, arXiv 2212.13345, sections 2 and 3). A layer sees its input at unit length, so
that it cannot take over the goodness of the layer below. No gradient leaves a layer.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def row_normalize(
    x: Float[Tensor, "*batch features"], eps: float = 1e-8
) -> Float[Tensor, "*batch features"]:
    """x / (‖x‖₂ + ε) for each row; a row of zeros stays zero.

    Args:
        x: rows along the last axis.
        eps: added to the length; 1e-8 in the code of forward-forward for graphs.

    Raises:
        ValueError: `eps` is negative.

    Example:
        >>> row_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: {eps} given, a number that is not negative expected")
    # float32: in float16, ε is 0, and a row of zeros would be NaN.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / (length + eps)).to(x.dtype)


def goodness(h: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
    """G: the sum of squares of each row.

    Example:
        >>> goodness(torch.tensor([[1.0, 2.0]]))
        tensor([5.])
    """
    return h.square().sum(-1)


def forward_forward_loss(
    h: Float[Tensor, "*batch features"], positive: bool, *, theta: float = 2.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy of σ(G − θ) with the truth, of rows that are all true or all false.

    Args:
        h: responses of a layer.
        positive: whether the examples are true.
        theta: θ, the goodness at which both are equally likely; 2 as in Hinton's reference code.

    Raises:
        ValueError: `theta` is not finite, or there are no rows.

    Example:
        >>> h = torch.tensor([[1.0, 2.0]])  # goodness 5
        >>> forward_forward_loss(h, True), forward_forward_loss(h, False)
        (tensor(0.0486), tensor(3.0486))
    """
    if not math.isfinite(theta):
        raise ValueError(f"theta: {theta} given, a finite number expected")
    if h.numel() == 0:
        raise ValueError(f"h: shape {tuple(h.shape)} given, at least one response expected")
    logits = goodness(h) - theta
    return F.softplus(-logits if positive else logits).mean()
