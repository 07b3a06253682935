"""Spiking neurons, (time, batch, ...) in and out, and how each is trained.

- `LIF` by backpropagation through time with a surrogate gradient (`heterodox.layers.lif`,
  `heterodox.layers.surrogates`);
- `OnlineLIF` one step at a time, with a trace of its spikes (OTTT; `heterodox.layers.online_lif`);
- `DSRLIF` by the derivative of its weighted firing rate (DSR; `heterodox.layers.dsr_lif`).

The three are the training rules of Xiao et al., ICLR 2024, arXiv 2402.11984; `LIF` is also the
neuron of Hammouamri et al., ICLR 2024, arXiv 2306.17670.
"""

from heterodox.layers.dsr_lif import DSRLIF, weighted_rate
from heterodox.layers.lif import LIF
from heterodox.layers.online_lif import OnlineLIF
from heterodox.layers.surrogates import ATanSurrogate, SigmoidSurrogate, Surrogate

__all__ = [
    "DSRLIF",
    "LIF",
    "ATanSurrogate",
    "OnlineLIF",
    "SigmoidSurrogate",
    "Surrogate",
    "weighted_rate",
]
