"""Probes: what to measure while a network trains."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.probes.adversarial import fgsm, pgd
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
    from heterodox.probes.decoding import (
        beam_search,
        exact_map,
        minimum_bayes_risk,
        sequence_log_probability,
    )
    from heterodox.probes.generation import (
        CitationBlocker,
        longest_overlap,
        nucleus_mask,
        overlap_rate,
        predictive_entropy,
        repetition_rate,
        self_bleu,
        type_token_ratio,
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
    "fgsm": "heterodox.probes.adversarial",
    "pgd": "heterodox.probes.adversarial",
    "direction_correlation": "heterodox.probes.attention_svm",
    "is_locally_optimal": "heterodox.probes.attention_svm",
    "naive_loss_minimization": "heterodox.probes.grokking",
    "probe_head": "heterodox.probes.attention_svm",
    "softmax_collapse": "heterodox.probes.grokking",
    "solve_attention_svm": "heterodox.probes.attention_svm",
    "solve_svm_equivalence": "heterodox.probes.attention_svm",
    "token_scores": "heterodox.probes.attention_svm",
    "train_one_layer_attention": "heterodox.probes.attention_svm",
    "CitationBlocker": "heterodox.probes.generation",
    "beam_search": "heterodox.probes.decoding",
    "exact_map": "heterodox.probes.decoding",
    "longest_overlap": "heterodox.probes.generation",
    "minimum_bayes_risk": "heterodox.probes.decoding",
    "nucleus_mask": "heterodox.probes.generation",
    "overlap_rate": "heterodox.probes.generation",
    "predictive_entropy": "heterodox.probes.generation",
    "repetition_rate": "heterodox.probes.generation",
    "self_bleu": "heterodox.probes.generation",
    "sequence_log_probability": "heterodox.probes.decoding",
    "type_token_ratio": "heterodox.probes.generation",
}

__all__ = [
    "AttentionPath",
    "AttentionSVM",
    "CitationBlocker",
    "GrokkingMonitor",
    "HeadProbe",
    "InfeasibleError",
    "beam_search",
    "direction_correlation",
    "exact_map",
    "fgsm",
    "is_locally_optimal",
    "longest_overlap",
    "minimum_bayes_risk",
    "naive_loss_minimization",
    "nucleus_mask",
    "overlap_rate",
    "pgd",
    "predictive_entropy",
    "probe_head",
    "repetition_rate",
    "self_bleu",
    "sequence_log_probability",
    "softmax_collapse",
    "solve_attention_svm",
    "solve_svm_equivalence",
    "token_scores",
    "train_one_layer_attention",
    "type_token_ratio",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
