"""Learnable synaptic delays (Hammouamri et al., ICLR 2024, arXiv 2306.17670).

- `heterodox.layers.delayed_synapses`: kernels of delays, the convolution over time, the layer;
- `heterodox.layers.delayed_network`: the paper's spiking network, its loss and its schedule.
"""

from heterodox.layers.delayed_network import DelayedSNN, sigma_at, summed_softmax
from heterodox.layers.delayed_synapses import (
    DelayedLinear,
    delay_kernel,
    delayed_linear,
    hard_delay_kernel,
)

__all__ = [
    "DelayedLinear",
    "DelayedSNN",
    "delay_kernel",
    "delayed_linear",
    "hard_delay_kernel",
    "sigma_at",
    "summed_softmax",
]
