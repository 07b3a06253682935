"""Sequence mixers other than attention, and the form in which all of them can be written."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.sequence.comparison import compare
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
    from heterodox.sequence.scan import linear_scan
    from heterodox.sequence.system import DynamicalSystem

_EXPORTS = {
    "DynamicalSystem": "heterodox.sequence.system",
    "LinearAttention": "heterodox.sequence.normalized",
    "NormalizedAttention": "heterodox.sequence.normalized",
    "QLSTM": "heterodox.sequence.qlstm",
    "compare": "heterodox.sequence.comparison",
    "from_delta_rule": "heterodox.sequence.conversions",
    "from_gated_rnn": "heterodox.sequence.conversions",
    "from_linear_attention": "heterodox.sequence.conversions",
    "from_normalized_attention": "heterodox.sequence.conversions",
    "from_s6": "heterodox.sequence.conversions",
    "from_softmax_attention": "heterodox.sequence.conversions",
    "from_ssd": "heterodox.sequence.conversions",
    "linear_scan": "heterodox.sequence.scan",
    "qlstm_transition": "heterodox.sequence.conversions",
    "rg_lru_transition": "heterodox.sequence.conversions",
}

__all__ = [
    "QLSTM",
    "DynamicalSystem",
    "LinearAttention",
    "NormalizedAttention",
    "compare",
    "from_delta_rule",
    "from_gated_rnn",
    "from_linear_attention",
    "from_normalized_attention",
    "from_s6",
    "from_softmax_attention",
    "from_ssd",
    "linear_scan",
    "qlstm_transition",
    "rg_lru_transition",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
