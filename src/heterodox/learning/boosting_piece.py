"""One piece of a boosted network: a few hidden units, fitted by least squares.

    f(x) = σ(x W + b) V + c,   minimise ½ mean ‖r - f‖² + (α / 2n) (‖W‖² + ‖V‖²)

by L-BFGS from uniform ±√(g / (fan_in + fan_out)), with g = 2 for the logistic function and 6 for
others: scikit-learn's convention for its multi-layer perceptrons, from which the authors build
their pieces. Value and gradient are one function of one flat vector, four products of matrices a
call, because with one to four units all else would be overhead.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

Activation = Literal["logistic", "tanh", "relu"]
ACTIVATIONS = ("logistic", "tanh", "relu")

# The most evaluations of the objective that scikit-learn allows L-BFGS.
EVALUATIONS = 15_000


class Piece(NamedTuple):
    """Weights and biases of the hidden units (W, b) and of the outputs (V, c)."""

    W: Float[np.ndarray, "features units"]
    b: Float[np.ndarray, "units"]
    V: Float[np.ndarray, "units outputs"]
    c: Float[np.ndarray, "outputs"]

    def predict(
        self, X: Float[np.ndarray, "samples features"], activation: Activation
    ) -> Float[np.ndarray, "samples outputs"]:
        return activate(X @ self.W + self.b, activation) @ self.V + self.c


def activate(x: Float[np.ndarray, "*shape"], activation: Activation) -> Float[np.ndarray, "*shape"]:
    if activation == "logistic":
        return expit(x)
    return np.tanh(x) if activation == "tanh" else np.maximum(x, 0)


def fit_piece(
    X: Float[np.ndarray, "samples features"],
    residual: Float[np.ndarray, "samples outputs"],
    units: int,
    activation: Activation,
    alpha: float,
    max_iter: int,
    random: np.random.RandomState,
) -> tuple[Piece, int]:
    """The piece, and the iterations that it took."""
    (samples, features), outputs = X.shape, residual.shape[1]
    gain = 2.0 if activation == "logistic" else 6.0
    hidden = np.sqrt(gain / (features + units))
    out = np.sqrt(gain / (units + outputs))
    sizes = ((features, units), (units,), (units, outputs), (outputs,))
    bounds = (hidden, hidden, out, out)
    start = [random.uniform(-w, w, s) for w, s in zip(bounds, sizes, strict=True)]
    ones = np.ones(samples)
    ends = [0, *np.cumsum([x.size for x in start])]

    def parts(flat: np.ndarray) -> Piece:
        """Views into a flat vector."""
        return Piece(*(flat[ends[i] : ends[i + 1]].reshape(sizes[i]) for i in range(4)))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W, b, V, c = parts(flat)
        h = X @ W
        h += b
        h = activate(h, activation)
        error = h @ V
        error += c
        error -= residual
        value = np.vdot(error, error) + alpha * (np.vdot(W, W) + np.vdot(V, V))
        delta = error @ V.T
        if activation == "logistic":
            delta *= h
            delta *= 1 - h
        elif activation == "tanh":
            delta *= 1 - np.square(h)
        else:
            delta *= h > 0
        gradient = alpha * flat
        of_W, of_b, of_V, of_c = parts(gradient)
        of_W += X.T @ delta
        of_b[:] = ones @ delta
        of_V += h.T @ error
        of_c[:] = ones @ error
        gradient /= samples
        return 0.5 * value / samples, gradient

    found = minimize(
        objective,
        np.concatenate([x.ravel() for x in start]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": EVALUATIONS, "gtol": 0.0},
    )
    return parts(found.x), int(found.nit)
