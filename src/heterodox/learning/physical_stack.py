"""A stack of physical layers, each with a trainable linear layer behind it.

    z = P_k(h),   u = [z, h] or z,   a = W_k u + b_k,   next h = a, or GELU(a)

P_k is a black box; all that is trained are W and b. Momeni et al., "Backpropagation-free Training
of Deep Physical Neural Networks", 2023, arXiv 2304.11042. How they are trained is said by the
subclasses, in `heterodox.learning.physical` and `heterodox.learning.physics_aware`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.learning.physical_twin import linear
from heterodox.losses.targets import check_range
from heterodox.training.progress import report

Activation = Literal["abs", "gelu"]
ACTIVATIONS = ("abs", "gelu")


class PhysicalStack(nn.Module):
    """Layers, and training in batches; see `PhysicalNetwork` for the arguments.

    Subclasses define `learn`, what is done with a batch, and `goodness`, the scores of classes.

    Example:
        >>> stack = PhysicalStack([nn.Identity()], 6, 2, skip=False)
        >>> stack.layers[0].weight.shape
        torch.Size([6, 6])
    """

    def __init__(
        self,
        physics: Sequence[nn.Module],
        features: int,
        num_classes: int,
        *,
        physical_features: int | None = None,
        theta: float = 4.0,
        activation: Activation = "abs",
        skip: bool = True,
        lr: float = 5e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
        if features < num_classes:
            raise ValueError(
                f"features: {features} given, at least num_classes = {num_classes} expected, "
                "as the first ones hold the label"
            )
        for name, value in (("theta", theta), ("lr", lr)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value} given, a positive number expected")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: {activation!r} given, 'abs' or 'gelu' expected")
        sizes = _physical_sizes(physics, features, physical_features)
        self.features = features
        self.num_classes = num_classes
        self.theta = theta
        self.activation: Activation = activation
        self.skip = skip
        self.physics = nn.ModuleList(physics)
        self.sizes = sizes
        self.layers = nn.ModuleList(
            linear(size + features if skip else size, features, generator) for size in sizes
        )
        self.lr = lr
        # Continued from call to call: training an epoch at a time draws as training at once does.
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def lift(self, k: int, h: Float[Tensor, "batch features"]) -> Float[Tensor, "batch inputs"]:
        """u of layer k: what its physics reads, then h itself if there is a skip. No gradient.

        Raises:
            ValueError: the physics answers with another shape than was said.
        """
        with torch.no_grad():
            z = self.physics[k](h).detach()
        if z.shape != (len(h), self.sizes[k]):
            raise ValueError(
                f"physics: shape {tuple(z.shape)} returned by number {k}, "
                f"{(len(h), self.sizes[k])} expected"
            )
        return torch.cat([z, h], dim=1) if self.skip else z

    def passed_on(self, a: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """The next h."""
        return F.gelu(a) if self.activation == "gelu" else a

    def fit(
        self,
        x: Float[Tensor, "batch features"],
        y: Int[Tensor, "batch"],
        *,
        epochs: int,
        inner_steps: int = 10,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "epochs *losses"]:
        """Trains for some epochs, from where the last call ended.

        Args:
            x, y: rows and their labels, on the network's device. The first `num_classes` numbers of
                a row are overwritten.
            epochs: passes over all rows.
            inner_steps: updates of each layer a batch; 10 in the authors' acoustic system, 20 and
                25 in others.
            batch_size: None for all rows at once.
            generator: of the order and of what else is drawn; by default the network's own.

        Returns:
            The mean loss of each epoch; of `PhysicalNetwork` one a layer.

        Raises:
            ValueError: shapes or labels do not fit, there are no rows, values are not finite, or
                `epochs`, `inner_steps` or `batch_size` is not as expected.
        """
        self._check_rows("x", x)
        if y.shape != x.shape[:1]:
            raise ValueError(f"y: shape {tuple(y.shape)} given, ({len(x)},) expected")
        check_labels("y", y, self.num_classes)
        if not x.numel() or not x.isfinite().all():
            what = "values that are not finite" if x.numel() else "no rows"
            raise ValueError(f"x: {what} given, finite rows expected")
        for name, value in (
            ("epochs", epochs),
            ("batch_size", 1 if batch_size is None else batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name}: {value} given, a positive number expected")
        if inner_steps < 0:
            raise ValueError(f"inner_steps: {inner_steps} given, a number from 0 on expected")
        generator = self.generator if generator is None else generator
        x = self._as_weights(x)
        history = []
        for epoch in range(epochs):
            batches = [(x, y)]
            if batch_size is not None and batch_size < len(x):
                order = torch.randperm(len(x), generator=generator, device=generator.device)
                parts = order.to(x.device).split(batch_size)
                batches = [(x[part], y[part]) for part in parts]
            losses = [self.learn(*batch, inner_steps, generator) for batch in batches]
            history.append(torch.stack(losses).mean(0))
            report(epoch + 1, epochs)
        return torch.stack(history)

    def learn(
        self,
        x: Float[Tensor, "batch features"],
        y: Int[Tensor, "batch"],
        inner_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "*losses"]:
        """Trains on one batch, and returns its loss."""
        raise NotImplementedError

    def goodness(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """A score for each class."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """`goodness`."""
        return self.goodness(x)

    def predict(self, x: Float[Tensor, "batch features"]) -> Int[Tensor, "batch"]:
        """The class of the highest score.

        Raises:
            ValueError: a row has not `features` numbers.
        """
        return self.goodness(x).argmax(1)

    def _check_rows(self, name: str, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(
                f"{name}: shape {tuple(x.shape)} given, (batch, {self.features}) expected"
            )

    def _as_weights(self, x: Tensor) -> Tensor:
        """x in the dtype of the weights, for training.

        Raises:
            ValueError: weights in half precision, in which Adam's small steps are lost.
        """
        dtype = next(self.layers.parameters()).dtype
        if dtype.itemsize < 4:
            raise ValueError(f"x: weights of {dtype} given, float32 or float64 expected")
        return x.to(dtype)


def _physical_sizes(
    physics: Sequence[nn.Module], features: int, physical_features: int | None
) -> list[int]:
    """How many readings each layer's physics gives."""
    if not len(physics):
        raise ValueError("physics: no layers given, at least one expected")
    sizes = []
    for k, layer in enumerate(physics):
        inputs = getattr(layer, "in_features", features)
        if inputs != features:
            raise ValueError(
                f"physics: in_features = {inputs} of number {k} given, {features} expected"
            )
        size = getattr(layer, "out_features", None)
        if None not in (size, physical_features) and size != physical_features:
            raise ValueError(
                f"physics: out_features = {size} of number {k} given, "
                f"physical_features = {physical_features} expected"
            )
        sizes.append(next(n for n in (size, physical_features, features) if n is not None))
    return sizes


def check_labels(name: str, label: Tensor, num_classes: int) -> None:
    """Raises ValueError for labels that are no class indices; see `check_range` for a GPU.

    Example:
        >>> check_labels("y", torch.tensor([0, 2]), 3)
    """
    try:
        check_range(label, num_classes)
    except ValueError as error:
        raise ValueError(str(error).replace("target", name, 1)) from None
