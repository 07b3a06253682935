"""Attention, state-space models and RNNs in one form, and the two mixers that follow from it.

    h_i = Λ_i h_{i−1} + B_i u_i,     y_i = C_i h_i + D_i u_i

Sieber, Amo Alonso, Didier, Zeilinger, Orvieto, "Understanding the differences in Foundation Models:
Attention, State Space Models, and Recurrent Neural Networks", NeurIPS 2024, arXiv 2405.15731. All
names of the paper in one place; each stands in a file of its own:

    system        `DynamicalSystem`
    conversions   `from_linear_attention` and its like
    comparison    `compare`
    normalized    `LinearAttention`, `NormalizedAttention`
    qlstm         `QLSTM`
"""

from heterodox.sequence.comparison import Comparison, SystemSummary, compare
from heterodox.sequence.conversions import (
    from_delta_rule,
    from_gated_rnn,
    from_linear_attention,
    from_normalized_attention,
    from_s6,
    from_softmax_attention,
    from_ssd,
    qlstm_transition,
    rg_lru_transition,
)
from heterodox.sequence.normalized import LinearAttention, NormalizedAttention
from heterodox.sequence.qlstm import QLSTM
from heterodox.sequence.system import DynamicalSystem

__all__ = [
    "QLSTM",
    "Comparison",
    "DynamicalSystem",
    "LinearAttention",
    "NormalizedAttention",
    "SystemSummary",
    "compare",
    "from_delta_rule",
    "from_gated_rnn",
    "from_linear_attention",
    "from_normalized_attention",
    "from_s6",
    "from_softmax_attention",
    "from_ssd",
    "qlstm_transition",
    "rg_lru_transition",
]
