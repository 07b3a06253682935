"""Back-propagation through physical layers: with the true derivative, a twin's, or both.

    ideal       z = P(h),      ∂z/∂h = P′(h)       the exact simulator is differentiated
    in-silico   z = twin(h),   ∂z/∂h = twin′(h)    trained on the twin, deployed on the physics
    aware       z = P(h),      ∂z/∂h = twin′(h)    physics forwards, twin backwards

These are the baselines of Momeni et al., "Backpropagation-free Training of Deep Physical Neural
Networks", 2023, arXiv 2304.11042; "aware" is the physics-aware training of Wright et al., 2022,
arXiv 2104.13386. The paper does not say how its baselines read out a class: here the loss is
cross-entropy, and the first numbers that the last layer gives are the logits, so that networks have
the same weights as in local learning. Each update reads or simulates every layer's physics once.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.learning.physical_stack import Activation, PhysicalStack, check_labels

Mode = Literal["ideal", "in-silico", "aware"]
MODES = ("ideal", "in-silico", "aware")


class PhysicsAwareNetwork(PhysicalStack):
    """The layers of `PhysicalNetwork`, trained from end to end by back-propagation.

    A prediction is always what the physics itself answers, whatever it was trained with.

    Args:
        physics, features, num_classes, physical_features, activation, skip, lr, generator: as for
            `PhysicalNetwork`. The numbers of x that would hold a label are set to 0.
        theta: has no part in cross-entropy; taken so that networks are built alike.
        twin: one model a layer, for "in-silico" and "aware": a module, or a `PhysicalLayer` with
            `simulate`.
        mode: "ideal" needs `simulate` of each physical layer.

    Raises:
        ValueError: as `PhysicalNetwork`; `mode` is another, or what it needs is missing.

    Example:
        >>> from heterodox.learning.physical_layers import ScatteringCavity
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.rand(60, 8, generator=g)
        >>> y = (x[:, 4:6].sum(1) > 1).long()
        >>> network = PhysicsAwareNetwork([ScatteringCavity(8, 10)], 8, 2, lr=1e-2, generator=g)
        >>> history = network.fit(x, y, epochs=10)
        >>> history.shape, bool((network.predict(x) == y).float().mean() > 0.85)
        (torch.Size([10]), True)
    """

    def __init__(
        self,
        physics: Sequence[nn.Module],
        features: int,
        num_classes: int,
        *,
        twin: Sequence[nn.Module] | None = None,
        mode: Mode = "ideal",
        physical_features: int | None = None,
        theta: float = 4.0,
        activation: Activation = "abs",
        skip: bool = True,
        lr: float = 5e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r} given, one of {', '.join(MODES)} expected")
        if mode == "ideal" and not all(hasattr(layer, "simulate") for layer in physics):
            raise ValueError("physics: a layer without simulate given, one with it expected")
        if mode != "ideal" and (twin is None or len(twin) != len(physics)):
            given = "none" if twin is None else len(twin)
            raise ValueError(f"twin: {given} given, {len(physics)} expected, one a layer")
        super().__init__(
            physics,
            features,
            num_classes,
            physical_features=physical_features,
            theta=theta,
            activation=activation,
            skip=skip,
            lr=lr,
            generator=generator,
        )
        self.optimizers = [
            torch.optim.Adam(layer.parameters(), lr=lr, fused=True) for layer in self.layers
        ]
        self.mode: Mode = mode
        self.twin = nn.ModuleList(twin or ())

    def step(
        self,
        x: Float[Tensor, "batch features"],
        y: Int[Tensor, "batch"],
        *,
        inner_steps: int = 10,
    ) -> Float[Tensor, ""]:
        """Updates all layers `inner_steps` times on one batch, and returns the mean loss.

        Raises:
            ValueError: shapes or labels do not fit, there are no rows, or `inner_steps` is not
                positive.
        """
        self._check_rows("x", x)
        if y.shape != x.shape[:1] or not len(y):
            expected = (max(len(x), 1),)
            raise ValueError(f"y: shape {tuple(y.shape)} given, {expected} expected")
        check_labels("y", y, self.num_classes)
        if inner_steps < 1:
            raise ValueError(f"inner_steps: {inner_steps} given, a positive number expected")
        return self.learn(self._as_weights(x), y, inner_steps, self.generator)

    def learn(
        self,
        x: Float[Tensor, "batch features"],
        y: Int[Tensor, "batch"],
        inner_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Updates all layers on one batch."""
        total = x.new_zeros(())
        for _ in range(inner_steps):
            loss = F.cross_entropy(self._logits(x, differentiable=True), y.long())
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            total += loss.detach()
        return total / max(inner_steps, 1)

    @torch.no_grad()
    def goodness(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """The logits that the network gives on the physics.

        Raises:
            ValueError: a row has not `features` numbers.
        """
        self._check_rows("x", x)
        return self._logits(x.to(next(self.layers.parameters()).dtype), differentiable=False)

    def _logits(self, x: Tensor, differentiable: bool) -> Tensor:
        h = torch.cat([torch.zeros_like(x[:, : self.num_classes]), x[:, self.num_classes :]], 1)
        for k, layer in enumerate(self.layers):
            u = self._differentiable_lift(k, h) if differentiable else self.lift(k, h)
            a = layer(u)
            h = self.passed_on(a)
        return a[:, : self.num_classes]

    def _differentiable_lift(self, k: int, h: Tensor) -> Tensor:
        if self.mode == "ideal":
            z = _differentiable(self.physics[k], h)
        else:
            z = _differentiable(self.twin[k], h)
            if z.shape != (len(h), self.sizes[k]):
                raise ValueError(
                    f"twin: shape {tuple(z.shape)} returned by number {k}, "
                    f"{(len(h), self.sizes[k])} expected"
                )
        if self.mode == "aware":
            with torch.no_grad():
                correction = self.physics[k](h) - z
            z = z + correction
        return torch.cat([z, h], dim=1) if self.skip else z


def _differentiable(layer: nn.Module, h: Tensor) -> Tensor:
    z: Tensor = layer.simulate(h) if hasattr(layer, "simulate") else layer(h)  # type: ignore[operator]
    return z
