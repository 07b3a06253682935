"""Attention masks: additive masks that only say yes or no, read as boolean."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Methods whose logits a float mask can be added to; the others know only "may attend" or "may not".
ADDITIVE = frozenset({"softmax", "sigmoid"})


def as_boolean(
    attn_mask: Bool[Tensor, "*shape"] | Float[Tensor, "*shape"],
) -> Bool[Tensor, "*shape"] | Float[Tensor, "*shape"]:
    """A mask of only 0 and −inf as boolean, True where a query may attend; any other as it is.

    Frameworks write −inf also as the most negative finite number of the dtype, or as a sum of two
    of them. A mask that requires a gradient is a learned bias and stays as it is.

    Example:
        >>> as_boolean(torch.tensor([0.0, -torch.inf]))
        tensor([ True, False])
        >>> as_boolean(torch.tensor([0.0, -1.0]))
        tensor([ 0., -1.])
    """
    if attn_mask.dtype == torch.bool or attn_mask.requires_grad:
        return attn_mask
    allowed = attn_mask == 0
    forbidden = attn_mask <= torch.finfo(attn_mask.dtype).min / 2
    return allowed if bool((allowed | forbidden).all()) else attn_mask
