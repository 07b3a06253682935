"""An output layer of any number of classes, trained exactly at a cost that does not grow with it.

A spherical loss sees the outputs o = W h of D classes only through o_c, Σ o and Σ o². With

    W = V U + 1 wᵀ,   Q = Wᵀ W,   W̄ = Wᵀ 1
    o_c = V_c · U h + w · h,   Σ o = W̄ · h,   Σ o² = hᵀ Q h

forward, backward and an exact step of stochastic gradient descent on all of W touch m rows of V and
matrices of d columns, for a minibatch of m. Vincent, de Brébisson and Bouthillier, "Efficient Exact
Gradient Update for training Deep Networks with Very Large Sparse Targets", NIPS 2015, arXiv
1412.7091. The step is in `heterodox.losses.factored_update`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from heterodox.losses.factored_update import Contraction, Factors, Record
from heterodox.losses.targets import check_indices, check_range

# Outside these eigenvalues of R a step is taken on W itself: U R could hardly be inverted.
LEAST_EIGENVALUE, MOST_EIGENVALUE = 0.1, 10.0

# log of how far U may be from orthogonal before it is stabilised out of turn, and at all.
FAR, NEAR = math.log(100), math.log(2)

STABILISATIONS_A_RENEWAL = 50
CLASSES_AT_ONCE = 2**16


class FactoredSphericalLinear(nn.Module):
    """A linear layer over very many classes, for spherical losses, with its own exact SGD.

    Its weight is no parameter: no optimizer sees it. `statistics` replaces the forward pass, the
    backward pass records what the update needs, and `step` makes it. One training step:

        statistics = layer.statistics(hidden, target)
        loss = ZLoss().from_statistics(*statistics, layer.num_classes)
        loss.backward()  # a mean or sum over the minibatch
        optimizer.step()  # the rest of the model
        layer.step()

    Args:
        in_features: d, width of the hidden rows.
        num_classes: D.
        learning_rate: of the layer's SGD; set the attribute of this name to follow a schedule.
        bias: whether each class has one, as the weight of a constant input 1.
        weight_decay: as in `torch.optim.SGD`.
        stabilize_every: steps after which U⁻¹ is computed anew, and U brought back towards an
            orthogonal matrix where it has left; 10 or 100 in the authors' code. Steps that
            contract much bring it forward.
        device, dtype: of the state; float32 or float64. Hidden rows in half precision are computed
            in it, also under autocast.

    The weight starts from N(0, 1/d), our choice: gradients of the Z-loss grow as the outputs
    shrink, so that the N(0, 0.001²) of the authors' example makes a huge first step.

    Raises:
        ValueError: a size below 1, a single class, a rate or decay that is negative or not finite,
            or a dtype that is not float32 or float64.

    Example:
        >>> from heterodox.losses import ZLoss
        >>> layer = FactoredSphericalLinear(16, 100_000, learning_rate=0.1)
        >>> hidden, target = torch.randn(8, 16, requires_grad=True), torch.randint(100_000, (8,))
        >>> loss = ZLoss(b=4.0).from_statistics(*layer.statistics(hidden, target), 100_000)
        >>> loss.backward()
        >>> layer.step()
        >>> layer.topk(hidden, 5).indices.shape
        torch.Size([8, 5])
    """

    V: Tensor
    U: Tensor
    w: Tensor
    Uinv: Tensor
    Q: Tensor
    wbar: Tensor
    counter: Tensor
    drift: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        learning_rate: float,
        bias: bool = False,
        weight_decay: float = 0.0,
        stabilize_every: int = 100,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "stabilize_every": stabilize_every}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
        for name, number in {"learning_rate": learning_rate, "weight_decay": weight_decay}.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: {number} given, a number from 0 on expected")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        _check_dtype(dtype)
        self.in_features, self.num_classes = in_features, num_classes
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.has_bias, self.stabilize_every = bias, stabilize_every
        self._records: list[Record] = []
        width = in_features + bias
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("V", torch.randn(num_classes, width, **new) / math.sqrt(in_features))
        self.register_buffer("U", torch.eye(width, **new))
        self.register_buffer("w", torch.zeros(width, **new))
        self.register_buffer("Uinv", torch.eye(width, **new))
        self.register_buffer("Q", torch.zeros(width, width, **new))
        self.register_buffer("wbar", torch.zeros(width, **new))
        # On the layer's device: both are read together with the guard of a step, at once.
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("drift", torch.zeros((), dtype=torch.float64, device=device))
        self._factors.renew_sums()

    @property
    def _factors(self) -> Factors:
        return Factors(self.V, self.U, self.w, self.Uinv, self.Q, self.wbar)

    @property
    def weight(self) -> Float[Tensor, "classes in_features"]:
        """W, computed from its factors: D x d numbers."""
        return self._whole()[:, : self.in_features]

    @property
    def bias(self) -> Float[Tensor, "classes"] | None:
        """The classes' biases, or None."""
        return self._whole()[:, -1] if self.has_bias else None

    def _whole(self) -> Tensor:
        return torch.addmm(self.w, self.V, self.U)

    @torch.no_grad()
    def load_weight(
        self,
        weight: Float[Tensor, "classes in_features"],
        bias: Float[Tensor, "classes"] | None = None,
    ) -> None:
        """Starts anew from a given W, and given biases, which are 0 if they are not given.

        Raises:
            ValueError: a shape is another, or biases are given to a layer without.

        Example:
            >>> linear = nn.Linear(16, 1000, bias=False)
            >>> layer = FactoredSphericalLinear(16, 1000, learning_rate=0.1)
            >>> layer.load_weight(linear.weight)
            >>> torch.equal(layer.weight, linear.weight)
            True
        """
        expected = (self.num_classes, self.in_features)
        if tuple(weight.shape) != expected:
            raise ValueError(f"weight: shape {tuple(weight.shape)} given, {expected} expected")
        if bias is not None and (not self.has_bias or bias.shape != expected[:1]):
            which = f"({self.num_classes},)" if self.has_bias else "none, as the layer has no bias,"
            raise ValueError(f"bias: shape {tuple(bias.shape)} given, {which} expected")
        self.zero_grad()
        self.V.zero_()
        self.V[:, : self.in_features] = weight
        if bias is not None:
            self.V[:, -1] = bias
        self.w.zero_()
        for matrix in (self.U, self.Uinv):
            matrix.zero_().fill_diagonal_(1)
        self.counter.zero_()
        self.drift.zero_()
        self._factors.renew_sums()

    def forward(
        self, hidden: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch classes"]:
        """All outputs, for evaluation: O(D d) a row. No update follows from their gradient."""
        with _without_autocast(self.V.device.type):
            x = self._with_constant(hidden)
            return (x @ self.U.mT) @ self.V.mT + (x @ self.w)[..., None]

    @torch.no_grad()
    def topk(self, hidden: Float[Tensor, "*batch in_features"], k: int) -> torch.return_types.topk:
        """The k largest outputs of each row and their classes, as `torch.topk` returns them; the
        outputs of all classes are never held at once.

        Raises:
            ValueError: `k` is not between 1 and the number of classes.
        """
        if not 1 <= k <= self.num_classes:
            raise ValueError(f"k: {k} given, 1 to {self.num_classes} expected")
        with _without_autocast(self.V.device.type):
            x = self._with_constant(hidden)
            turned = x @ self.U.mT
            values = turned.new_empty(*turned.shape[:-1], 0)
            indices = torch.empty_like(values, dtype=torch.long)
            for first in range(0, self.num_classes, CLASSES_AT_ONCE):
                outputs = turned @ self.V[first : first + CLASSES_AT_ONCE].mT
                found = outputs.topk(min(k, outputs.shape[-1]))
                values = torch.cat([values, found.values], -1)
                indices = torch.cat([indices, found.indices + first], -1)
                values, order = values.topk(min(k, values.shape[-1]))
                indices = indices.gather(-1, order)
            return torch.return_types.topk((values + (x @ self.w)[..., None], indices))

    @torch.compiler.disable
    def statistics(
        self, hidden: Float[Tensor, "*batch in_features"], target: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """o_c, Σ o and Σ o² of the outputs, in O(d²) a row.

        Their backward pass gives the gradient in `hidden`, and records what `step` needs. Several
        of them before one step count together. To leave out rows, leave them out of both.

        Raises:
            ValueError: the width or the shapes do not fit, targets are no class indices, or one is
                out of range (on a GPU, which is not waited for, torch's assertion fails).
        """
        x = self._with_constant(hidden)
        if target.shape != hidden.shape[:-1]:
            raise ValueError(
                f"target: shape {tuple(target.shape)} given, {tuple(hidden.shape[:-1])} expected"
            )
        check_indices(target)
        check_range(target, self.num_classes)
        # Frozen features need no gradient; the layer must still see the loss's.
        anchor = torch.empty(0, dtype=x.dtype, device=x.device, requires_grad=True)
        rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1).long()
        chosen, total, square = _Statistics.apply(rows, anchor, classes, self)
        return chosen.view(target.shape), total.view(target.shape), square.view(target.shape)

    @torch.no_grad()
    def step(self) -> None:
        """One step of SGD on W from what has been recorded; nothing without a record.

        It reads three numbers from the device, once, which tell whether the step is safe.

        Raises:
            FloatingPointError: a hidden value or a gradient is not finite. The weight stays as it
                was, and the record is dropped.
            ValueError: `weight_decay` is 1 / `learning_rate` or more.
        """
        if not self._records:
            return
        record = Record(*map(torch.cat, zip(*self._records, strict=True)))
        self.zero_grad()
        rate, keep = self.learning_rate, 1 - self.learning_rate * self.weight_decay
        if not keep > 0:
            raise ValueError(
                f"weight_decay: {self.weight_decay} given, below 1 / learning_rate = {1 / rate:g} "
                "expected"
            )
        seen = torch.stack([record.contraction_bound(rate), self.drift, self.counter])
        bound, drift, count = seen.tolist()
        if not math.isfinite(bound):
            raise FloatingPointError("step: a hidden value or a gradient is not finite")
        contraction = Contraction(record, rate, keep)
        least, most = keep - bound, keep + bound
        if bound > 0.1:  # the bound is a trace, and may be far above the largest eigenvalue
            least, most = contraction.extreme_eigenvalues()
        singular = least < LEAST_EIGENVALUE or most > MOST_EIGENVALUE
        factors, count = self._factors, int(count) + 1
        factors.descend(record, contraction, rate, refactor=singular)
        drift = 0.0 if singular else drift + max(-math.log(least), math.log(most))
        due = count % self.stabilize_every == 0
        if drift > FAR or (due and drift > NEAR):
            drift = factors.stabilise()
        elif due:
            factors.renew_inverse()
        if singular or count % (self.stabilize_every * STABILISATIONS_A_RENEWAL) == 0:
            factors.renew_sums()
        self.counter.fill_(count)
        self.drift.fill_(drift)

    def _load_from_state_dict(self, *args: Any) -> None:
        # A record belongs to the weight that it was made with.
        self._records.clear()
        super()._load_from_state_dict(*args)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops what has been recorded. An optimizer's `zero_grad` does not reach it."""
        self._records.clear()
        super().zero_grad(set_to_none)

    def follow(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Makes every step of `optimizer` one of the layer too; nobody has to call `step` then.

        A schedule of the optimizer's first group scales the layer's rate in proportion: its rate
        now belongs to the group's initial rate.

        Raises:
            ValueError: the group's initial rate is not positive.

        Example:
            >>> layer, model = FactoredSphericalLinear(4, 1000, 0.5), nn.Linear(4, 4)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> handle = layer.follow(optimizer)
            >>> layer.statistics(model(torch.randn(8, 4)), torch.arange(8))[0].sum().backward()
            >>> optimizer.step()
            >>> int(layer.counter)
            1
        """
        group = optimizer.param_groups[0]
        initial = group.get("initial_lr", group["lr"])
        if not initial > 0:
            raise ValueError(f"optimizer: a rate of {initial} given, a positive number expected")
        share = self.learning_rate / initial

        def step_too(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self.learning_rate = share * optimizer.param_groups[0]["lr"]
            self.step()

        return optimizer.register_step_post_hook(step_too)

    @torch.no_grad()
    def check(self) -> float:
        """How far U⁻¹, Q and W̄ have come from what V, U and w say: the largest error, each as a
        share of its largest number. In O(D d²).

        Example:
            >>> FactoredSphericalLinear(8, 1000, 0.1, dtype=torch.float64).check() < 1e-12
            True
        """
        eye = torch.eye(len(self.U), dtype=self.U.dtype, device=self.U.device)
        errors = [(self.Uinv @ self.U - eye).abs().max()]
        for kept, true in zip((self.Q, self.wbar), self._factors.sums(), strict=True):
            errors.append((kept - true).abs().max() / true.abs().max())
        return float(torch.stack(errors).max())

    def _with_constant(self, hidden: Tensor) -> Tensor:
        """Hidden rows in the layer's dtype, with the constant that stands for a bias."""
        _check_dtype(self.V.dtype)
        if hidden.dim() < 1 or hidden.shape[-1] != self.in_features:
            raise ValueError(
                f"hidden: shape {tuple(hidden.shape)} given, {('...', self.in_features)} expected"
            )
        x = hidden.to(self.V.dtype)
        return F.pad(x, (0, 1), value=1.0) if self.has_bias else x

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"learning_rate={self.learning_rate:g}, bias={self.has_bias}"
        )


class _Statistics(torch.autograd.Function):
    """o_c, Σ o, Σ o²; backward gives the gradient in the hidden rows and leaves a `Record`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, anchor: Tensor, target: Tensor, layer: FactoredSphericalLinear
    ) -> tuple[Tensor, Tensor, Tensor]:
        with _without_autocast(hidden.device.type):
            turned = hidden @ layer.Q
            row = torch.addmm(layer.w, layer.V[target], layer.U)
            ctx.save_for_backward(hidden, target, turned, row, layer.wbar)
            ctx.layer = layer
            chosen, square = (hidden * row).sum(-1), (hidden * turned).sum(-1)
            return chosen, hidden @ layer.wbar, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        target_grad, total_grad, square_grad = gradients
        # wbar changes with every step, so that torch refuses a backward pass that comes too late.
        hidden, target, turned, row, wbar = ctx.saved_tensors
        grad = 2 * square_grad[:, None] * turned + target_grad[:, None] * row
        grad.addr_(total_grad, wbar)
        ctx.layer._records.append(
            Record(hidden.detach(), target, row, target_grad, square_grad, total_grad)
        )
        return grad, None, None, None


def _without_autocast(device: str) -> torch.autocast:
    """Turns autocast off, also where there is none to turn off, as on "meta"."""
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device if known else "cpu", enabled=False)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: {dtype} given, torch.float32 or torch.float64 expected")
