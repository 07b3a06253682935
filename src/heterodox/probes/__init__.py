"""Probes: what to measure while a network trains."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.probes.attention_svm import (
        AttentionPath,
        AttentionSVM,
        HeadProbe,
        InfeasibleError,
        direction_correlation,
        is_locally_optimal,
        probe_head,
        solve_attention_svm,
        solve_svm_equivalence,
        token_scores,
        train_one_layer_attention,
    )
    from heterodox.probes.grokking import (
        GrokkingMonitor,
        naive_loss_minimization,
        softmax_collapse,
    )

_EXPORTS = {
    "AttentionPath": "heterodox.probes.attention_svm",
    "AttentionSVM": "heterodox.probes.attention_svm",
    "GrokkingMonitor": "heterodox.probes.grokking",
    "HeadProbe": "heterodox.probes.attention_svm",
    "InfeasibleError": "heterodox.probes.attention_svm",
    "direction_correlation": "heterodox.probes.attention_svm",
    "is_locally_optimal": "heterodox.probes.attention_svm",
    "naive_loss_minimization": "heterodox.probes.grokking",
    "probe_head": "heterodox.probes.attention_svm",
    "softmax_collapse": "heterodox.probes.grokking",
    "solve_attention_svm": "heterodox.probes.attention_svm",
    "solve_svm_equivalence": "heterodox.probes.attention_svm",
    "token_scores": "heterodox.probes.attention_svm",
    "train_one_layer_attention": "heterodox.probes.attention_svm",
}

__all__ = [
    "AttentionPath",
    "AttentionSVM",
    "GrokkingMonitor",
    "HeadProbe",
    "InfeasibleError",
    "direction_correlation",
    "is_locally_optimal",
    "naive_loss_minimization",
    "probe_head",
    "softmax_collapse",
    "solve_attention_svm",
    "solve_svm_equivalence",
    "token_scores",
    "train_one_layer_attention",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
