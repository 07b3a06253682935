"""Transformers as support vector machines: what gradient descent makes of attention weights.

With a decreasing loss the norm of W grows without end and the softmax saturates; what is learned is
a direction, and the direction is that of a hard-margin SVM between tokens. Tarzanagh et al., 2023,
arXiv 2308.16898. Here are its parts:

- `heterodox.probes.attention_margins`: the SVM, for a selection of tokens, and its general form;
- `heterodox.probes.attention_paths`: one attention layer, trained as in the paper;
- `heterodox.probes.attention_head`: the same question, put to a head of a trained model;
- `heterodox.probes.attention_svm_solvers`: how the SVM is solved, with a certificate.
"""

from heterodox.probes.attention_head import HeadProbe, probe_head
from heterodox.probes.attention_margins import (
    AttentionSVM,
    direction_correlation,
    is_locally_optimal,
    solve_attention_svm,
    solve_svm_equivalence,
    token_scores,
)
from heterodox.probes.attention_paths import AttentionPath, train_one_layer_attention
from heterodox.probes.attention_svm_solvers import InfeasibleError

__all__ = [
    "AttentionPath",
    "AttentionSVM",
    "HeadProbe",
    "InfeasibleError",
    "direction_correlation",
    "is_locally_optimal",
    "probe_head",
    "solve_attention_svm",
    "solve_svm_equivalence",
    "token_scores",
    "train_one_layer_attention",
]
