"""What the `NORMS` slot builds: normalisation of the last dimension, with an eps of 1e-6."""

from torch import nn


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)


def rms_norm(dim: int) -> nn.RMSNorm:
    return nn.RMSNorm(dim, eps=1e-6)
