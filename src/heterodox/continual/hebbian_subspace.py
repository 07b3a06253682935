"""Neurons beside a layer that learn, by Hebbian rules, the subspace of what the layer is given.

    y = H x,   x̂ = Hᵀ y                                     all rows of H, old and new
    ΔH = y (x - x̂)ᵀ, mean over the batch, clipped;   V ← 0.9 V + 0.1 ΔH;   H ← H + lr V

The first part of ΔH is Hebbian, the second, through the neurons' feedback, anti-Hebbian: Oja's rule
for a subspace. Rows of earlier tasks are frozen and keep their part of x̂, so that new rows learn
what the old ones leave. Xiao, Meng, Zhang, He, Lin, "Hebbian Learning based Orthogonal Projection
for Continual Learning of Spiking Neural Networks", ICLR 2024, arXiv 2402.11984.

Time O(iterations · batch · in · new units + batch · in · old units) for a batch.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.autocast import without_autocast

Quantization = tuple[int | float, int]
"""Scale and levels of lateral spiking neurons: y is one of 2 · levels + 1 numbers up to ± scale."""


@torch.no_grad()
def hebbian_subspace_update(
    weight: Float[Tensor, "units in_features"],
    x: Float[Tensor, "batch in_features"],
    *,
    lr: float,
    velocity: Float[Tensor, "units in_features"] | None = None,
    momentum: float = 0.9,
    num_frozen: int = 0,
    clamp: float = 10.0,
    quantization: Quantization | None = None,
) -> tuple[Float[Tensor, "units in_features"], Float[Tensor, "units in_features"]]:
    """One iteration of the rule: the new H and the new V. Frozen rows of both stay as they are.

    Args:
        weight: H, one row a neuron.
        x: what the layer is given.
        lr: 0.01 in the paper, 0.001 for images that enter a network.
        velocity: V; None is zeros.
        momentum: share of V that is kept; 0 makes V the ΔH of this batch.
        num_frozen: how many rows, the first ones, do not learn.
        clamp: largest absolute entry of ΔH.
        quantization: see `project`.

    Raises:
        ValueError: shapes that do not fit; a rate, `clamp` or a part of `quantization` that is not
            positive; `momentum` outside of [0, 1); more frozen rows than there are.

    Example:
        >>> x = torch.tensor([[2.0, 0.0]])
        >>> weight = torch.tensor([[0.6, 0.6]])
        >>> for _ in range(50):
        ...     weight, _ = hebbian_subspace_update(weight, x, lr=0.1, momentum=0.0)
        >>> [round(h, 3) for h in weight[0].tolist()]  # the direction of x, of length 1
        [1.0, 0.0]
    """
    _check_bank(weight, x, quantization)
    if x.ndim != 2:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (batch, {weight.shape[1]}) expected")
    check_rule(lr, momentum, clamp)
    if velocity is None:
        velocity = torch.zeros_like(weight)
    elif velocity.shape != weight.shape:
        raise ValueError(
            f"velocity: shape {tuple(velocity.shape)} given, {tuple(weight.shape)} expected"
        )
    if not 0 <= num_frozen <= len(weight):
        raise ValueError(f"num_frozen: {num_frozen} given, 0 to {len(weight)} expected")
    if len(x) == 0 or num_frozen == len(weight):
        return weight.clone(), velocity.clone()
    old, new = weight[:num_frozen], weight[num_frozen:]
    rest = x - _respond(x, old, quantization) @ old
    new, moving = _step(new, x, rest, velocity[num_frozen:], lr, momentum, clamp, quantization)
    return torch.cat((old, new)), torch.cat((velocity[:num_frozen], moving))


def project(
    x: Float[Tensor, "... in_features"],
    weight: Float[Tensor, "units in_features"],
    *,
    quantization: Quantization | None = None,
) -> Float[Tensor, "... in_features"]:
    """x̂ = Hᵀ H x, the part of x that the neurons give back.

    Args:
        x: any number of axes before the features.
        weight: H, one row a neuron; orthonormal rows make it a projection.
        quantization: (scale, levels) for lateral neurons that spike: y is rounded to a multiple of
            scale / levels and kept within ± scale. The paper has (20, 1000), and 20 with down to
            40 levels.

    Raises:
        ValueError: shapes that do not fit, or a part of `quantization` that is not positive.

    Example:
        >>> project(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
        tensor([3., 0.])
    """
    _check_bank(weight, x, quantization)
    return _respond(x, weight, quantization) @ weight


def project_out(
    x: Float[Tensor, "... in_features"],
    weight: Float[Tensor, "units in_features"],
    *,
    quantization: Quantization | None = None,
) -> Float[Tensor, "... in_features"]:
    """x - x̂, the part of x that is left; arguments and errors as for `project`.

    Example:
        >>> project_out(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
        tensor([0., 4.])
    """
    return x - project(x, weight, quantization=quantization)


class HebbianSubspace(nn.Module):
    """A bank of subspace neurons of a layer with `in_features` inputs; rows are added task by task.

    Before a task `grow` adds neurons, during it `learn` is called with what the layer is given, and
    after it `freeze` keeps what they have learned. Nothing here has a gradient. The state dict
    holds the bank at the size it has, and loads into a bank of any size.

    Args:
        in_features: inputs of the layer; for a convolution channels times kernel size.
        lr: see `hebbian_subspace_update`.
        momentum, clamp, quantization: see `hebbian_subspace_update`.
        iterations: times that the rule is applied to each batch; 5 in the authors' code.

    Raises:
        ValueError: a number that is out of range.

    Example:
        >>> bank = HebbianSubspace(6)
        >>> bank.grow(2, generator=torch.Generator().manual_seed(0))
        >>> bank.learn(torch.randn(32, 6))
        >>> bank.freeze()
        >>> bank.num_units, bank.num_frozen, bank.project(torch.randn(3, 6)).shape
        (2, 2, torch.Size([3, 6]))
    """

    weight: Tensor
    velocity: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        iterations: int = 5,
        clamp: float = 10.0,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1:
            raise ValueError(f"in_features: {in_features} given, at least 1 expected")
        if iterations < 1:
            raise ValueError(f"iterations: {iterations} given, at least 1 expected")
        check_rule(lr, momentum, clamp)
        check_quantization(quantization)
        self.in_features = in_features
        self.lr, self.momentum, self.clamp = lr, momentum, clamp
        self.iterations = iterations
        self.quantization = quantization
        self.num_frozen = 0
        self.register_buffer("weight", torch.zeros(0, in_features))
        self.register_buffer("velocity", torch.zeros(0, in_features))

    @property
    def num_units(self) -> int:
        """How many neurons there are, frozen ones included."""
        return len(self.weight)

    @property
    def frozen(self) -> Float[Tensor, "frozen in_features"]:
        """The rows of earlier tasks."""
        return self.weight[: self.num_frozen]

    def grow(self, units: int, *, generator: torch.Generator | None = None) -> None:
        """Adds neurons for a new task, with weights that are orthonormal among themselves.

        Args:
            units: how many; 0 adds none.
            generator: of the CPU; None is torch's own.

        Raises:
            ValueError: `units` is negative, or there would be more neurons than inputs, so that
                rows could not stay independent; or earlier neurons are not frozen yet.
        """
        if self.num_frozen < self.num_units:
            raise ValueError(
                f"units: {units} given while {self.num_units - self.num_frozen} neurons still "
                "learn, freeze() before grow() expected"
            )
        if not 0 <= units <= self.in_features - self.num_units:
            raise ValueError(
                f"units: {units} given, 0 to {self.in_features - self.num_units} expected, for at "
                f"most {self.in_features} neurons"
            )
        if units == 0:
            return
        new = torch.empty(units, self.in_features, dtype=torch.float64)
        nn.init.orthogonal_(new, generator=generator)
        self.weight = torch.cat((self.weight, new.to(self.weight)))
        self.velocity = torch.cat((self.velocity, torch.zeros_like(new).to(self.velocity)))

    def freeze(self) -> None:
        """Keeps all neurons as they are from now on."""
        self.num_frozen = self.num_units

    @torch.no_grad()
    def add_frozen(self, rows: Float[Tensor, "rows in_features"]) -> None:
        """Adds rows that something else has found, such as `gradient_projection_basis`.

        Raises:
            ValueError: their size is not that of the inputs, there would be more rows than inputs,
                or neurons still learn.
        """
        if rows.ndim != 2 or rows.shape[1] != self.in_features:
            raise ValueError(
                f"rows: shape {tuple(rows.shape)} given, (rows, {self.in_features}) expected"
            )
        if self.num_frozen < self.num_units or self.num_units + len(rows) > self.in_features:
            raise ValueError(
                f"rows: {len(rows)} given with {self.num_units} neurons, {self.num_frozen} of them "
                f"frozen; all frozen, and at most {self.in_features} in all expected"
            )
        self.weight = torch.cat((self.weight, rows.to(self.weight)))
        self.velocity = torch.cat((self.velocity, torch.zeros_like(rows).to(self.velocity)))
        self.freeze()

    @torch.no_grad()
    def learn(
        self,
        x: Float[Tensor, "... in_features"],
        *,
        rest: Float[Tensor, "... in_features"] | None = None,
    ) -> None:
        """Applies the rule `iterations` times to what the layer is given.

        Args:
            x: what the layer is given.
            rest: `project_out(x)`, if it is known already.

        Raises:
            ValueError: `x` has another number of features.
        """
        _check_bank(self.weight, x, self.quantization)
        if self.num_frozen == self.num_units or x.numel() == 0:
            return
        x = x.detach().reshape(-1, self.in_features).to(self.weight)
        old, new = self.weight[: self.num_frozen], self.weight[self.num_frozen :]
        moving = self.velocity[self.num_frozen :]
        # What the frozen rows leave is the same in every iteration.
        if rest is not None:
            rest = rest.detach().reshape(-1, self.in_features).to(self.weight)
        with without_autocast(x.device.type):
            if rest is None:
                rest = x - _respond(x, old, self.quantization) @ old if len(old) else x
            for _ in range(self.iterations):
                new, moving = _step(
                    new, x, rest, moving, self.lr, self.momentum, self.clamp, self.quantization
                )
        # Not in place: a backward pass that is to come may still need the frozen rows.
        self.weight = torch.cat((old, new))
        self.velocity = torch.cat((self.velocity[: self.num_frozen], moving))

    def project(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... in_features"]:
        """x̂ by the frozen neurons; see the function `project`."""
        return project(x, self.frozen, quantization=self.quantization)

    def project_out(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... in_features"]:
        """x - x̂ by the frozen neurons; see the function `project_out`."""
        return project_out(x, self.frozen, quantization=self.quantization)

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... in_features"]:
        """As `project_out`."""
        return self.project_out(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"num_frozen": self.num_frozen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.num_frozen = state["num_frozen"]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("weight", "velocity"):
            saved = state_dict.get(f"{prefix}{name}")
            if saved is not None and saved.ndim == 2 and saved.shape[1] == self.in_features:
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, units={self.num_units}, frozen={self.num_frozen}, "
            f"lr={self.lr:g}, quantization={self.quantization}"
        )


def _respond(x: Tensor, weight: Tensor, quantization: Quantization | None) -> Tensor:
    """y, of exact or of spiking neurons."""
    y = x @ weight.T
    if quantization is None:
        return y
    scale, levels = quantization
    return (y.clamp(-scale, scale) * (levels / scale)).round() * (scale / levels)


def _step(
    new: Tensor,
    x: Tensor,
    rest: Tensor,
    velocity: Tensor,
    lr: float,
    momentum: float,
    clamp: float,
    quantization: Quantization | None,
) -> tuple[Tensor, Tensor]:
    """The rule for the rows that learn; `rest` is x less what frozen rows give back."""
    y = _respond(x, new, quantization)
    delta = (y.T @ torch.addmm(rest, y, new, alpha=-1)).div_(len(x)).clamp_(-clamp, clamp)
    velocity = torch.lerp(delta, velocity, momentum)
    return torch.add(new, velocity, alpha=lr), velocity


def _check_bank(weight: Tensor, x: Tensor, quantization: Quantization | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight: shape {tuple(weight.shape)} given, (units, features) expected")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (..., {weight.shape[1]}) expected")
    check_quantization(quantization)


def check_quantization(quantization: Quantization | None) -> None:
    """The ValueError of a scale or a number of levels that is not positive."""
    if quantization is None:
        return
    if len(quantization) != 2 or not all(0 < part < math.inf for part in quantization):
        raise ValueError(
            f"quantization: {quantization} given, None or a positive scale and number of levels "
            "expected"
        )


def check_rule(lr: float, momentum: float, clamp: float) -> None:
    """The ValueErrors of the rule's constants."""
    for name, given in (("lr", lr), ("clamp", clamp)):
        if not 0 < given < math.inf:
            raise ValueError(f"{name}: {given} given, a positive number expected")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum} given, a number in [0, 1) expected")
