"""PerpGrad (⊥Grad): gradients without their component along the weights.

    g⊥ = g − (w·g / w·w) w,   g' = g⊥ |g| / |g⊥|       for every parameter tensor w by itself

Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697,
section 5; the rescaling to |g| comes from the authors' code. A step along w only scales the logits
of a homogeneous network: it lowers the cross-entropy of a fitted training set and teaches nothing.
Cost: four reductions, one axpy and one scaling a tensor; one temporary the size of the gradients.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer


def project_orthogonal(
    weight: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    rescale: bool = True,
    eps: float = 1e-30,
) -> Float[Tensor, "*shape"]:
    """The part of `gradient` orthogonal to `weight`, both taken as flat vectors, at the old length.

    A zero weight leaves the gradient as it is. A gradient parallel to the weight gives zeros: what
    the subtraction leaves there is rounding (a length of at most 1e-6 |g| in float32, 8 units of
    the dtype's precision in general), which rescaling would blow up to |g|; the authors' code has
    no such guard. float16 and bfloat16 are computed in float32. A vector shorter than about 1e-19
    counts as zero in float32, where its squared length underflows.

    Args:
        weight: any shape.
        gradient: the shape of `weight`.
        rescale: whether the result gets the length of `gradient`, as in the authors' code.
        eps: added to denominators; 1e-30 in the authors' code.

    Raises:
        ValueError: the shapes differ, or `gradient` is sparse or complex.

    Example:
        >>> project_orthogonal(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([0., 5.])
    """
    if gradient.shape != weight.shape:
        raise ValueError(
            f"gradient: shape {tuple(gradient.shape)} given, "
            f"the weight's {tuple(weight.shape)} expected"
        )
    _check(gradient)
    working = torch.promote_types(gradient.dtype, torch.float32)
    w, g = weight.to(working), gradient.to(working)
    perpendicular = g - (w * g).sum() / ((w * w).sum() + eps) * w
    old, new = (g * g).sum().sqrt(), (perpendicular * perpendicular).sum().sqrt()
    return (perpendicular * _factor(old, new, rescale, eps)).to(gradient.dtype)


def _shared(attribute: str) -> Any:
    """A property that is the base optimizer's attribute, also after that one is reassigned."""
    return property(
        lambda self: getattr(self.base_optimizer, attribute),
        lambda self, value: setattr(self.base_optimizer, attribute, value),
    )


class PerpGrad(Optimizer):
    """Runs another optimizer on gradients made orthogonal to the weights, tensor by tensor.

    It shares `param_groups`, `state`, `defaults` and the state dict with `base_optimizer`, so that
    schedulers, `GradScaler` and checkpoints are used on the wrapper as on the optimizer inside; a
    checkpoint of either loads into the other. `.grad` is exchanged only while the base steps:
    before and after `step()` it holds what backpropagation (and clipping) left there.

    The base's weight decay acts after the projection, so it still shrinks the weights. Biases are
    projected like any tensor, tensors of one element are not: orthogonal to one number is only
    zero (the authors' code freezes them). With `rescale=True` a step never gets shorter as training
    converges: let the learning rate decay. Adam's `eps` (default 1e-8) freezes late training before
    anything else does; the authors use 1e-25 to 1e-30 in float32.

    Args:
        base_optimizer: any optimizer with dense real gradients whose `step()` needs no closure
            (not `LBFGS`).
        rescale: whether projected gradients are stretched to their old length.
        eps: added to denominators; 1e-30 in the authors' code.

    Raises:
        ValueError: `base_optimizer` is no optimizer, `eps` is not positive, or, in `step`, a
            gradient is sparse or complex.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = PerpGrad(torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0))
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> schedule.step()
    """

    base_optimizer: Optimizer
    rescale: bool
    eps: float
    param_groups = _shared("param_groups")
    state = _shared("state")
    defaults = _shared("defaults")

    def __init__(self, base_optimizer: Optimizer, rescale: bool = True, eps: float = 1e-30) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise ValueError(
                f"base_optimizer: {type(base_optimizer).__name__} given, "
                "a torch.optim.Optimizer expected"
            )
        if not eps > 0:
            raise ValueError(f"eps: {eps} given, a positive number expected")
        # Optimizer.__init__ would make groups and state of its own; this makes all the rest.
        self.__setstate__({"base_optimizer": base_optimizer, "rescale": rescale, "eps": eps})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer on the projected gradients.

        `closure` is called once, before the projection, so that the gradients it makes are the ones
        that are projected. Returns what it returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        originals = [
            (parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.numel() > 1
        ]
        for _, gradient in originals:
            _check(gradient)
        try:
            # The base gets copies and .grad its own tensor back, which may be a view of a bucket.
            self._exchange_gradients(originals)
            self.base_optimizer.step()
        finally:
            for parameter, gradient in originals:
                parameter.grad = gradient
        return loss

    @torch.no_grad()
    def _exchange_gradients(self, originals: list[tuple[Tensor, Tensor]]) -> None:
        if not originals:
            return
        pairs: Any = [list(tensors) for tensors in zip(*originals, strict=True)]
        groups: Any = self._group_tensors_by_device_and_dtype(pairs)
        for (weights, group_gradients), _ in groups.values():
            projected = _project_all(weights, group_gradients, self.rescale, self.eps)
            for parameter, gradient in zip(weights, projected, strict=True):
                parameter.grad = gradient

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's; `rescale` and `eps` are arguments, not state."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base_optimizer.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "base_optimizer": self.base_optimizer,
            "rescale": self.rescale,
            "eps": self.eps,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for hooks in _STATE_DICT_HOOKS:
            setattr(self, hooks, getattr(self.base_optimizer, hooks))


_BLOCK = 2**17

_STATE_DICT_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def _project_all(
    weights: list[Tensor], gradients: list[Tensor], rescale: bool, eps: float
) -> list[Tensor]:
    """`project_orthogonal` of every pair; all of one device and dtype, nothing waits for it."""
    if gradients[0].device.type == "cpu":
        return [_project_cached(*wg, rescale, eps) for wg in zip(weights, gradients, strict=True)]
    dtype = gradients[0].dtype
    ws = [w.to(torch.promote_types(dtype, torch.float32)) for w in weights]
    gs = [g.to(torch.promote_types(dtype, torch.float32)) for g in gradients]
    dots = torch.stack([_dot(w, g) for w, g in zip(ws, gs, strict=True)])
    along = dots / (_lengths(ws).square() + eps)
    perpendicular = torch._foreach_addcmul(gs, ws, (-along).unbind())
    factor = _factor(_lengths(gs), _lengths(perpendicular), rescale, eps)
    torch._foreach_mul_(perpendicular, factor.unbind())
    return [p.to(dtype) for p in perpendicular]


def _project_cached(weight: Tensor, gradient: Tensor, rescale: bool, eps: float) -> Tensor:
    """`project_orthogonal` on a CPU: one tensor at a time stays in the cache from pass to pass, and
    reading a number waits for nothing."""
    working = torch.promote_types(gradient.dtype, torch.float32)
    w, g = weight.to(working), gradient.to(working)
    along = _dot(w, g).item() / (_dot(w, w).item() + eps)
    perpendicular = torch.sub(g, w, alpha=along)
    old, new = math.sqrt(_dot(g, g).item()), math.sqrt(_dot(perpendicular, perpendicular).item())
    if new <= 8 * torch.finfo(working).eps * old:
        perpendicular.zero_()
    elif rescale:
        perpendicular.mul_(old / (new + eps))
    return perpendicular.to(gradient.dtype)


def _lengths(tensors: Sequence[Tensor]) -> Float[Tensor, "tensors"]:
    return torch.stack(torch._foreach_norm(list(tensors)))


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    a, b = a.reshape(-1), b.reshape(-1)
    if a.device.type != "cpu" or len(a) <= _BLOCK:
        return torch.dot(a, b)
    # On a CPU one long float32 sum loses digits (a norm even more): at 1e7 elements 1e-4 of it.
    return torch.stack(
        [torch.dot(*ab) for ab in zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)]
    ).sum()


def _factor(old: Tensor, new: Tensor, rescale: bool, eps: float) -> Tensor:
    """What brings a vector of length `new` to length `old`; 0 where `new` is rounding noise."""
    factor = old / (new + eps) if rescale else torch.ones_like(old)
    return factor.masked_fill(new <= 8 * torch.finfo(old.dtype).eps * old, 0.0)


def _check(gradient: Tensor) -> None:
    if gradient.layout is not torch.strided:
        raise ValueError(f"gradient: {gradient.layout} given, a dense one expected")
    if gradient.is_complex():
        raise ValueError(f"gradient: {gradient.dtype} given, a real one expected")
