"""Specimens of `heterodox.learning.boosting`."""

from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor

BOOSTING = "heterodox.learning.boosting"
NUMPY = {
    "compile": "works with NumPy",
    "backward": "gives arrays, without gradients",
    "other device": "takes arrays",
    "shape types": "scikit-learn checks what an estimator is given",
}


def features_and_numbers(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(9, 3), draw.normal(9)


def features_and_labels(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(9, 3), torch.arange(9).to(draw.device) % 3


def scores(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(7), draw.normal(7)


def predicted(estimator: Any, x: Tensor, y: Tensor) -> Tensor:
    """Scores of the features that it was fitted to."""
    features, targets = x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
    fitted = estimator.fit(features, targets)
    output = getattr(fitted, "decision_function", fitted.predict)(features)
    return torch.from_numpy(output).to(x)


def residuals(loss: Any, y: Tensor, F: Tensor) -> Tensor:
    # NumPy has no bfloat16; what is no floating number is left as it is, to be refused.
    y, scores = (
        x.double() if x.is_floating_point() else x for x in (y.detach().sign(), F.detach())
    )
    return torch.from_numpy(loss.residual(y.cpu().numpy(), scores.cpu().numpy())).to(F)


def classified(c: Any, x: tuple[Tensor, ...], **options: Any) -> Any:
    return c(**options).fit(x[0].numpy(), x[1].numpy())


SPECIMENS = (
    Specimen(
        f"{BOOSTING}:BoostedNetworkRegressor",
        features_and_numbers,
        make=lambda c, d: c(4, max_iter=20, random_state=0),
        call=predicted,
        batch="none",
        graph_breaks="scikit-learn works with NumPy",
        tolerance={torch.float32: 1e-1, torch.bfloat16: 10.0},
        limits=NUMPY,
        bad=(
            ("n_hidden", lambda c, x: classified(c, x, n_hidden=1, hidden_per_step=2)),
            ("subsample", lambda c, x: classified(c, x, subsample=0.0)),
        ),
    ),
    Specimen(
        f"{BOOSTING}:BoostedNetworkClassifier",
        features_and_labels,
        make=lambda c, d: c(4, max_iter=20, random_state=0),
        call=predicted,
        batch="none",
        graph_breaks="scikit-learn works with NumPy",
        tolerance={torch.float32: 1e-1, torch.bfloat16: 10.0},
        limits=NUMPY,
        bad=(
            ("activation", lambda c, x: classified(c, x, activation="sine")),
            ("y", lambda c, x: c().fit(x[0].numpy(), 0 * x[1].numpy())),
        ),
    ),
    Specimen(
        f"{BOOSTING}:boosting_loss",
        scores,
        make=lambda c, d: c("binary"),
        call=residuals,
        batch="none",
        graph_breaks="works with NumPy",
        limits={name: NUMPY[name] for name in ("backward", "other device")},
        bad=(("kind", lambda c, x: c("hinge")),),
    ),
)
