"""PhyLL: physical layers trained by local losses from two forward passes, without a derivative.

    z = P_k(h),   u = [z, h],   a = W_k u + b_k,   g_k = cos(|a|, t_k)
    L_k = mean softplus(−θ (g_k(x⁺) − g_k(x⁻))),   next h = a
    predict(x) = argmax_c Σ_k g_k(x with label c)

x⁺ is a row with its label written into it, x⁻ the same row with a wrong one. P_k is a physical
system of which nothing is known but what it answers; t_k is a random direction that is never
trained. Each layer takes some steps of Adam on its own loss, and nothing flows back to the layer
before. Momeni, Rahmani, Malléjac, del Hougne and Fleury, "Backpropagation-free Training of Deep
Physical Neural Networks", Science 382, 2023, arXiv 2304.11042. The paper compares activations of
positive and negative rows in general terms; the fixed direction is that of the authors' code.

A batch costs one reading of the physics a layer, for both rows together, and for each inner step
two matrix products: the gradient of the loss in a is known in closed form, and Adam is that of
`heterodox.learning.linear_adam`. The physics is in
`heterodox.learning.physical_layers` and `physical_twin`, the baselines that know or model its
derivative are in `heterodox.learning.physics_aware`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.learning.linear_adam import LinearAdam
from heterodox.learning.physical_layers import (
    BlackBox,
    MultimodeFiber,
    PhysicalLayer,
    ProgrammableCavity,
    ScatteringCavity,
)
from heterodox.learning.physical_stack import ACTIVATIONS, Activation, PhysicalStack, check_labels
from heterodox.learning.physical_twin import DigitalTwin, fit_twin
from heterodox.learning.physics_aware import PhysicsAwareNetwork

__all__ = [
    "BlackBox",
    "DigitalTwin",
    "MultimodeFiber",
    "PhysicalLayer",
    "PhysicalNetwork",
    "PhysicsAwareNetwork",
    "ProgrammableCavity",
    "ScatteringCavity",
    "cosine_goodness",
    "fit_twin",
    "local_contrast_loss",
    "overlay_label",
    "wrong_labels",
]

# Of the cosine, and added to the length of a target before it divides: those of the authors' code.
EPS, TARGET_EPS = 1e-6, 1e-4


def overlay_label(
    x: Float[Tensor, "batch features"], label: Int[Tensor, "batch"] | int, num_classes: int
) -> Float[Tensor, "batch features"]:
    """x with its first `num_classes` numbers set to 0, and the one of the label to max |x|.

    The maximum is over the batch, the overwritten numbers included.

    Args:
        label: one a row, or one for all.

    Raises:
        ValueError: there are fewer features than classes, fewer than two classes, a label is out of
            range, or their number is not that of the rows.

    Example:
        >>> overlay_label(torch.tensor([[5.0, 6.0, -7.0]]), torch.tensor([1]), 2)
        tensor([[ 0.,  7., -7.]])
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
    if x.ndim != 2 or x.shape[1] < num_classes:
        raise ValueError(
            f"x: shape {tuple(x.shape)} given, (batch, features) with at least "
            f"num_classes = {num_classes} features expected"
        )
    if isinstance(label, int):
        if not 0 <= label < num_classes:
            raise ValueError(f"label: {label} given, 0 to {num_classes - 1} expected")
        label = torch.full((len(x),), label, device=x.device)
    if label.shape != x.shape[:1]:
        raise ValueError(f"label: shape {tuple(label.shape)} given, ({len(x)},) expected")
    check_labels("label", label, num_classes)
    return _overlaid(x, label.long(), num_classes, _largest(x))


def _overlaid(x: Tensor, label: Tensor, num_classes: int, largest: Tensor) -> Tensor:
    marked = torch.zeros_like(x[:, :num_classes]).scatter(
        1, label[:, None], largest.expand(len(x), 1)
    )
    return torch.cat([marked, x[:, num_classes:]], dim=1)


def _largest(x: Tensor) -> Tensor:
    return x.abs().max() if x.numel() else x.new_zeros(())


def wrong_labels(
    label: Int[Tensor, "batch"], num_classes: int, generator: torch.Generator
) -> Int[Tensor, "batch"]:
    """For each label another one, uniform over the others: (y + r) mod C, r from 1 to C − 1.

    Example:
        >>> wrong_labels(torch.tensor([0, 1, 1]), 2, torch.Generator())
        tensor([1, 0, 0])
    """
    device = generator.device
    shift = torch.randint(1, num_classes, label.shape, generator=generator, device=device)
    return (label + shift.to(label.device)) % num_classes


def cosine_goodness(
    h: Float[Tensor, "batch features"],
    target: Float[Tensor, "features"],
    *,
    activation: Activation = "abs",
    eps: float = EPS,
) -> Float[Tensor, "batch"]:
    """cos(f(h), target) of each row: it knows the direction of f(h), and nothing of its length.

    Args:
        h: what the linear layer gives, before f.
        target: t, a fixed direction; its length does not matter.
        activation: f: "abs" as for physical layers, "gelu" as for the authors' digital ones.
        eps: least length that is divided by; 1e-6 in the authors' code.

    Raises:
        ValueError: `target` has another number of features, `activation` is another, or `eps` is
            not positive.

    Example:
        >>> cosine_goodness(torch.tensor([[3.0, -4.0]]), torch.tensor([3.0, 4.0]))
        tensor([1.])
    """
    if target.shape != h.shape[1:]:
        raise ValueError(
            f"target: shape {tuple(target.shape)} given, {tuple(h.shape[1:])} expected"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} given, 'abs' or 'gelu' expected")
    if not eps > 0:
        raise ValueError(f"eps: {eps} given, a positive number expected")
    dtype = torch.promote_types(h.dtype, torch.float32)
    activated = h.to(dtype).abs() if activation == "abs" else F.gelu(h.to(dtype))
    return F.cosine_similarity(activated, target[None].to(dtype), dim=1, eps=eps).to(h.dtype)


def local_contrast_loss(
    good_pos: Float[Tensor, "batch"], good_neg: Float[Tensor, "batch"], *, theta: float = 4.0
) -> Float[Tensor, ""]:
    """mean softplus(−θ (g⁺ − g⁻)), for any size of the differences.

    Args:
        good_pos, good_neg: goodness of the same rows with the right and with a wrong label.
        theta: θ; 4 in the authors' acoustic, microwave and digital systems, 5 in the optical one.

    Raises:
        ValueError: shapes differ, there are no rows, or `theta` is not positive.

    Example:
        >>> local_contrast_loss(torch.ones(3), torch.ones(3))
        tensor(0.6931)
    """
    if good_neg.shape != good_pos.shape:
        raise ValueError(
            f"good_neg: shape {tuple(good_neg.shape)} given, {tuple(good_pos.shape)} expected"
        )
    if not good_pos.numel():
        raise ValueError("good_pos: no rows given, at least one expected")
    if not theta > 0:
        raise ValueError(f"theta: {theta} given, a positive number expected")
    return F.softplus(theta * (good_neg - good_pos)).mean()


def contrast_gradient(
    a: Float[Tensor, "both features"],
    target: Float[Tensor, "features"],
    theta: float,
    activation: Activation,
) -> tuple[Float[Tensor, ""], Float[Tensor, "both features"]]:
    """The loss of a layer, and its gradient in a, whose first half are the positive rows.

        ∂L/∂g± = ∓θ σ(θ (g⁻ − g⁺)) / batch,   ∂g/∂f = (t/‖t‖ − g f/‖f‖) / ‖f‖,   f = |a| or GELU(a)

    Example:
        >>> a = torch.tensor([[3.0, -4.0], [3.0, 4.0]])
        >>> loss, gradient = contrast_gradient(a, torch.tensor([0.0, 1.0]), 4.0, "abs")
        >>> loss, gradient
        (tensor(0.6931), tensor([[ 0.1920,  0.1440],
                [-0.1920,  0.1440]]))
    """
    f = a.abs() if activation == "abs" else F.gelu(a)
    length = torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp_(min=EPS)
    direction = f.div_(length)
    unit = target / torch.linalg.vector_norm(target)
    g = direction @ unit
    good_pos, good_neg = g.chunk(2)
    difference = (good_neg - good_pos).mul_(theta)
    slope = difference.sigmoid().mul_(theta / len(difference))
    weight = torch.cat([-slope, slope])[:, None].div_(length)
    gradient = torch.addcmul(unit, direction, g[:, None], value=-1).mul_(weight)
    if activation == "abs":
        gradient *= a.sign()
    else:
        gradient = torch.ops.aten.gelu_backward(gradient, a)
    return F.softplus(difference).mean(), gradient


class PhysicalNetwork(PhysicalStack):
    """A stack of physical layers, trained layer by layer without a derivative of the physics.

    Args:
        physics: one a layer; a `PhysicalLayer`, or any module from (batch, features) to (batch,
            physical features). Nothing of it is used but its answers. `nn.Identity()` is a network
            without physics.
        features: numbers a row of x and of every h, the label's included.
        num_classes: C, at least 2.
        physical_features: readings a row, where `physics` has no `out_features`; `features` by
            default.
        theta: θ of the loss.
        activation: "abs", or "gelu", which is also passed on: the authors' digital variant.
        skip: whether h goes around the physics; true for sound and microwaves, false for light.
        lr: of Adam, one optimizer a layer; 5e-4 in the authors' acoustic system.
        generator: of weights, targets, wrong labels and order. By default weights and targets come
            from torch's own, and the rest from one that starts at 0.

    Attributes:
        layers: the linear layers, initialised as torch does.
        targets: t, one row a layer, drawn once; a buffer.
        optimizers: one a layer. They are no part of the state dict.

    Raises:
        ValueError: sizes do not fit, or a number is not as expected.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.rand(60, 8, generator=g)
        >>> y = (x[:, 4:6].sum(1) > 1).long()
        >>> cavities = [ScatteringCavity(8, 10, seed=k) for k in range(2)]
        >>> network = PhysicalNetwork(cavities, 8, 2, lr=5e-3, generator=g)
        >>> history = network.fit(x, y, epochs=20)
        >>> history.shape, bool((network.predict(x) == y).float().mean() > 0.85)
        (torch.Size([20, 2]), True)
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
        self.optimizers = [LinearAdam(layer, lr) for layer in self.layers]  # type: ignore[arg-type]
        targets = torch.randn(len(self.layers), features, generator=generator)
        targets /= targets.norm(dim=1, keepdim=True) + TARGET_EPS
        self.targets: Tensor
        self.register_buffer("targets", targets)

    @torch.no_grad()
    def step(
        self,
        x_pos: Float[Tensor, "batch features"],
        x_neg: Float[Tensor, "batch features"],
        *,
        inner_steps: int = 10,
    ) -> Float[Tensor, "layers"]:
        """Trains every layer on one batch, from the first to the last.

        The physics is read once a layer. Activations are computed again with the new weights before
        they go on.

        Args:
            x_pos, x_neg: rows with the right label, and the same rows with a wrong one.
            inner_steps: updates of each layer; with 0 nothing changes.

        Returns:
            The mean loss of each layer over its inner steps; with 0 steps its loss.

        Raises:
            ValueError: shapes do not fit, there are no rows, or `inner_steps` is negative.
        """
        self._check_rows("x_pos", x_pos)
        if x_neg.shape != x_pos.shape or not len(x_pos):
            expected = (max(len(x_pos), 1), self.features)
            raise ValueError(f"x_neg: shape {tuple(x_neg.shape)} given, {expected} expected")
        if inner_steps < 0:
            raise ValueError(f"inner_steps: {inner_steps} given, a number from 0 on expected")
        h = self._as_weights(torch.cat([x_pos, x_neg]))
        losses = []
        for k, (layer, optimizer) in enumerate(zip(self.layers, self.optimizers, strict=True)):
            u = self.lift(k, h)
            with_ones = F.pad(u, (0, 1), value=1.0)
            total = u.new_zeros(())
            for _ in range(inner_steps):
                loss, gradient = self.local_gradient(k, layer(u))
                optimizer.step(gradient, with_ones)
                total += loss
            a = layer(u)
            losses.append(total / inner_steps if inner_steps else self.local_gradient(k, a)[0])
            h = self.passed_on(a)
        return torch.stack(losses)

    def local_gradient(
        self, k: int, a: Float[Tensor, "both features"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "both features"]]:
        """The loss of layer k and its gradient in a; the first half of the rows is positive."""
        return contrast_gradient(a, self.targets[k], self.theta, self.activation)

    def learn(
        self,
        x: Float[Tensor, "batch features"],
        y: Int[Tensor, "batch"],
        inner_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "layers"]:
        """Draws a wrong label for each row, and trains on the pairs."""
        largest, y = _largest(x), y.long()
        wrong = wrong_labels(y, self.num_classes, generator)
        pairs = (_overlaid(x, label, self.num_classes, largest) for label in (y, wrong))
        return self.step(*pairs, inner_steps=inner_steps)

    @torch.no_grad()
    def layer_goodness(
        self, x: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "layers batch classes"]:
        """g_k of every row with every label, all of them read at once.

        The label's mark is the largest number of the batch: rows read together share it.

        Raises:
            ValueError: a row has not `features` numbers.
        """
        self._check_rows("x", x)
        rows, classes = len(x), self.num_classes
        x = x.to(next(self.layers.parameters()).dtype)
        label = torch.arange(classes, device=x.device).repeat(rows)
        h = _overlaid(x.repeat_interleave(classes, 0), label, classes, _largest(x))
        goods = []
        for k, layer in enumerate(self.layers):
            a = layer(self.lift(k, h))
            goods.append(self.layer_score(k, a).view(rows, classes))
            h = self.passed_on(a)
        return torch.stack(goods)

    def layer_score(self, k: int, a: Float[Tensor, "rows features"]) -> Float[Tensor, "rows"]:
        """g of layer k."""
        return cosine_goodness(a, self.targets[k], activation=self.activation)

    def goodness(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Σ_k g_k of every row with every label.

        Raises:
            ValueError: a row has not `features` numbers.
        """
        return self.layer_goodness(x).sum(0)
