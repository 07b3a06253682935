"""Test-time adaptation: a trained classifier fits itself to corrupted inputs while it classifies.

For every mini-batch x, online, without labels and without source data:

    1. w ← w + η Δw / max |Δw|      filters of the first layer, by the soft Hebbian rule
    2. θ ← Adam(θ, ∇_θ H)           modulator: gains and offsets; H = mean −Σ_c p_c log p_c
    3. logits of x with the new w and θ

Tang et al., "Neuro-Modulated Hebbian Learning for Fully Test-Time Adaptation", CVPR 2023, arXiv
2303.00914. The order of the steps is the paper's; learning rates and the form of the modulator are
reconstructions, as the authors' code could not be read. Steps 2 and 3 without step 1 are Tent (Wang
et al., 2021, arXiv 2006.10726), normalisation by the batch alone is BN adaptation (Schneider et
al., 2020, arXiv 2006.16971; Nado et al., 2020, arXiv 2006.10963).

Cost of a batch: source and BN one forward pass; Tent one forward and one backward pass; NHL two
convolutions of the first layer's size more, and a forward pass from the second layer on.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heterodox.learning.adaptation import (
    norm_parameters,
    refuse_single_values,
    replace,
    use_batch_statistics,
)
from heterodox.learning.hebbian import ChannelAffine
from heterodox.learning.hebbian_pass import HebbianPass, hebbian_name

MODULATORS = ("first", "norms", "insert")
PREDICTIONS = ("before", "after")


def softmax_entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch"]:
    """Entropy of softmax(logits) of each row [nats]. Half precision is computed in float32.

    Args:
        logits: finite; −∞ rules a class out.

    Raises:
        ValueError: there are no classes.

    Example:
        >>> softmax_entropy(torch.zeros(1, 2))
        tensor([0.6931])
    """
    if logits.shape[1] == 0:
        raise ValueError(f"logits: shape {tuple(logits.shape)} given, at least one class expected")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = z.log_softmax(1)
    # A class that is ruled out counts 0 · log 0 = 0.
    log_p = log_p.clamp(min=torch.finfo(z.dtype).min)
    return -(z.softmax(1) * log_p).sum(1).to(logits.dtype)


@dataclass(frozen=True)
class Method:
    """What is done with each batch. The classes below set it by their arguments, which see."""

    batch_statistics: bool = True
    source_weight: float = 0.0
    hebbian: bool = False
    hebbian_layer: str | nn.Module | None = None
    hebbian_lr: float = 0.0
    temperature: float = 1.0
    modulator: str | None = None
    modulator_lr: float = 1e-3
    steps: int = 1
    predict: str = "before"


METHODS = {
    "nhl": Method(hebbian=True, hebbian_lr=1e-3, modulator="norms", predict="after"),
    "tent": Method(modulator="norms"),
    "bn": Method(),
    "source": Method(batch_statistics=False),
}


class TestTimeAdapter(nn.Module):
    """A classifier that adapts to what it is asked about: `adapter(x)` in place of `model(x)`.

    It works on a copy of the classifier, in evaluation mode (dropout off) and with normalisation by
    the current batch; the classifier itself stays as it is. What it has learned persists from batch
    to batch until `reset()`. `state_dict()` holds all of it, the optimizer's state included. It
    adapts under `torch.no_grad()` and `torch.inference_mode()` too, and never tracks gradients
    outside.

    Args:
        model: a trained classifier that returns logits, or an object with `.logits`.
        method: "nhl", "tent", "bn" or "source" with its default settings; the classes
            `NeuroModulatedAdapter`, `TentAdapter`, `BatchNormAdapter` and `SourceOnly` have them as
            arguments.
        episodic: whether to forget before every batch.

    Raises:
        ValueError: an unknown method, or a model that lacks what the method adapts.

    Example:
        >>> features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> model = nn.Sequential(features, nn.Flatten(), nn.Linear(144, 3))
        >>> adapter = TestTimeAdapter(model, method="nhl")
        >>> adapter(torch.rand(10, 1, 8, 8)).shape
        torch.Size([10, 3])
        >>> adapter.reset()
    """

    __test__ = False  # a name that pytest would take for a test

    def __init__(
        self, model: nn.Module, *, method: str | Method = "nhl", episodic: bool = False
    ) -> None:
        super().__init__()
        if isinstance(method, str):
            if method not in METHODS:
                raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} expected")
            method = METHODS[method]
        name = hebbian_name(model, method.hebbian_layer) if method.hebbian else None
        self.method = dataclasses.replace(method, hebbian_layer=name)
        self.episodic = episodic
        _check_norms(model, self.method)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        if method.batch_statistics:
            use_batch_statistics(self.model, method.source_weight)
        modulator = self._modulator(name)
        for parameter in modulator.values():
            parameter.requires_grad_(True)
        self._optimizer: torch.optim.Adam | None = None
        if modulator:
            self._optimizer = torch.optim.Adam(modulator.values(), lr=method.modulator_lr)
        adapted = dict(modulator)
        if name is not None:
            adapted[f"{self._hebbian_name}.weight".removeprefix(".")] = (
                self._hebbian_layer.get_parameter("weight")
            )
        self._source = {key: parameter.detach().clone() for key, parameter in adapted.items()}

    def _modulator(self, name: str | None) -> dict[str, nn.Parameter]:
        """Name -> what the entropy trains; a `ChannelAffine` is put behind the Hebbian layer."""
        kind = self.method.modulator
        self._hebbian_name = name
        if kind is None:
            return {}
        if kind == "norms":
            return norm_parameters(self.model)
        layer = self._hebbian_layer
        if kind == "first":
            return norm_parameters(self.model, after=layer)
        axis = -1 if isinstance(layer, nn.Linear) else 1
        chain = nn.Sequential(layer, ChannelAffine(len(layer.weight), dim=axis).to(layer.weight))
        if name:
            replace(self.model, name, chain)
        else:
            self.model = chain
        self._hebbian_name = f"{name}.0".removeprefix(".")
        return dict(chain[1].named_parameters(f"{name}.1".removeprefix(".")))

    @property
    def _hebbian_layer(self) -> nn.Conv2d | nn.Linear:
        assert self._hebbian_name is not None
        layer = self.model.get_submodule(self._hebbian_name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        return layer

    def train(self, mode: bool = True) -> "TestTimeAdapter":
        """As for any module, but the copy of the classifier stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TestTimeAdapter":
        """`to`, `cuda`, `double`: what the optimizer has gathered goes along with the weights."""
        super()._apply(fn, recurse)
        if self._optimizer is not None:
            for kept in self._optimizer.state.values():
                for name, value in kept.items():
                    if name != "step":  # torch.optim keeps it on the CPU
                        kept[name] = fn(value)
        return self

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets everything: filters, modulator and optimizer are as they were at the start."""
        for name, value in self._source.items():
            self.model.get_parameter(name).copy_(value)
        if self._optimizer is not None:
            self._optimizer.state.clear()
            self._optimizer.zero_grad()

    def forward(self, x: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch classes"]:
        """Adapts to the batch x and returns its logits.

        Raises:
            ValueError: x is empty, or not finite where it would be learned from; a batch of one
                leaves a channel of batch normalisation with a single value; what adapts is in half
                precision: nothing is learned from x then. Or the model returns no logits (batch,
                classes).
        """
        if len(x) == 0:
            raise ValueError(f"x: shape {tuple(x.shape)} given, at least one example expected")
        for name in self._source:
            dtype = self.model.get_parameter(name).dtype
            if dtype.itemsize < 4:
                raise ValueError(
                    f"model: {name} in {dtype} given, float32 or float64 expected, since half "
                    "precision loses small steps; torch.autocast around a float32 model is fine"
                )
        # NaN would stay in the adapted weights for good. Asking waits for the device.
        if self._source and not x.is_meta and not bool(x.isfinite().all()):
            raise ValueError("x: values that are NaN or infinite given, finite values expected")
        with torch.inference_mode(False):
            if self.episodic:
                self.reset()
            x = x.clone() if x.is_inference() else x.detach()
            if len(x) == 1:
                self._refuse_single_values(x)
            return self._adapt(x).detach()

    def _adapt(self, x: Tensor) -> Tensor:
        method = self.method
        learns = self._optimizer is not None and method.modulator_lr > 0
        for _ in range(method.steps if learns or method.hebbian_lr else 1):
            first = None
            if method.hebbian_lr:
                first = HebbianPass(method.hebbian_lr, method.temperature)
            with torch.set_grad_enabled(learns), ExitStack() as stack:
                if first is not None:
                    stack.enter_context(first.at(self._hebbian_layer))
                logits = _logits(self.model(x))
            if learns:
                self._step(logits)
        if learns and method.predict == "after":
            with torch.no_grad(), ExitStack() as stack:
                if first is not None:
                    stack.enter_context(first.answering(self._hebbian_layer))
                logits = _logits(self.model(x))
        return logits

    def _step(self, logits: Tensor) -> None:
        assert self._optimizer is not None
        self._optimizer.zero_grad()
        softmax_entropy(logits).mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def _refuse_single_values(self, x: Tensor) -> None:
        """A trial pass, so that a batch which is refused has not been learned from."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        if not norms or not self.method.batch_statistics:
            return
        with ExitStack() as stack:
            for layer in norms:
                stack.callback(layer.register_forward_pre_hook(refuse_single_values).remove)
            self.model(x)

    def get_extra_state(self) -> dict[str, Any]:
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return {"source": self._source, "optimizer": optimizer}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._source = {name: tensor.clone() for name, tensor in state["source"].items()}
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])


class SourceOnly(TestTimeAdapter):
    """No adaptation: the classifier as it was trained, in evaluation mode.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> x = torch.randn(2, 4)
        >>> torch.equal(SourceOnly(model)(x), model(x))
        True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, method="source")


class BatchNormAdapter(TestTimeAdapter):
    """Batch normalisation with the statistics of the current batch; nothing is learned.

    Args:
        model: see `TestTimeAdapter`; has batch normalisation.
        source_weight: share of the statistics of training, in [0, 1]; 0 as Tent has it.

    Raises:
        ValueError: the model has no batch normalisation, or `source_weight` is out of range or
            above 0 while a layer has kept no statistics.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        >>> BatchNormAdapter(model)(torch.randn(10, 4)).mean(0).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, model: nn.Module, *, source_weight: float = 0.0) -> None:
        if not 0 <= source_weight <= 1:
            raise ValueError(f"source_weight: {source_weight} given, a share in [0, 1] expected")
        super().__init__(model, method=Method(source_weight=source_weight))


class TentAdapter(TestTimeAdapter):
    """Tent: gains and offsets of all normalisation layers minimise the entropy of the predictions.

    Args:
        model: see `TestTimeAdapter`; has normalisation layers with gain and offset.
        lr: of Adam with β = (0.9, 0.999); 1e-3 as in Tent for CIFAR-10-C.
        steps: on each batch.
        predict: logits of "before" the last step, as Tent does, or of "after" it, for one forward
            pass more.
        episodic: whether to forget before every batch.

    Raises:
        ValueError: an argument is out of range, or the model has no such layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> TentAdapter(model, lr=0.01)(torch.randn(10, 4)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        steps: int = 1,
        predict: str = "before",
        episodic: bool = False,
    ) -> None:
        _check(steps, predict, lr=lr)
        method = Method(modulator="norms", modulator_lr=lr, steps=steps, predict=predict)
        super().__init__(model, method=method, episodic=episodic)


class NeuroModulatedAdapter(TestTimeAdapter):
    """Neuro-modulated Hebbian learning (NHL): equations 1 to 3 above.

    Args:
        model: see `TestTimeAdapter`.
        hebbian_layer: an `nn.Conv2d` without groups or an `nn.Linear` of `model`, or its name; by
            default the first that is registered.
        hebbian_lr: η, the largest change of a filter's weight on a batch; 1e-3, a reconstruction. 0
            leaves the filters alone, which with `modulator="norms"` is Tent.
        modulator: what minimises the entropy. "norms": gains and offsets of all normalisation
            layers; "first": those of the first normalisation layer that is registered after the
            Hebbian layer; "insert": a `ChannelAffine` right after it, for networks without
            normalisation, which would cancel it.
        modulator_lr: of Adam with β = (0.9, 0.999); 1e-3, a reconstruction. 0 leaves the modulator
            alone, without its cost.
        temperature: τ of the competition between filters; 1, a reconstruction.
        steps: on each batch, each a Hebbian and a modulator step.
        predict: logits of "after" the last modulator step, as in the paper, or of "before" it.
        episodic: whether to forget before every batch.

    Raises:
        ValueError: an argument is out of range or unknown; `hebbian_layer` is no such layer of the
            model; or there is no normalisation layer for the modulator.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> adapter = NeuroModulatedAdapter(model, hebbian_lr=1e-3, modulator="insert")
        >>> adapter(torch.rand(10, 1, 8, 8)).shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hebbian_layer: str | nn.Module | None = None,
        hebbian_lr: float = 1e-3,
        modulator: str = "norms",
        modulator_lr: float = 1e-3,
        temperature: float = 1.0,
        steps: int = 1,
        predict: str = "after",
        episodic: bool = False,
    ) -> None:
        _check(steps, predict, hebbian_lr=hebbian_lr, modulator_lr=modulator_lr)
        if modulator not in MODULATORS:
            raise ValueError(
                f"modulator: {modulator!r} given, one of {', '.join(MODULATORS)} expected"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: {temperature} given, a positive number expected")
        method = Method(
            hebbian=True,
            hebbian_layer=hebbian_layer,
            hebbian_lr=hebbian_lr,
            temperature=temperature,
            modulator=modulator,
            modulator_lr=modulator_lr,
            steps=steps,
            predict=predict,
        )
        super().__init__(model, method=method, episodic=episodic)


def _check(steps: int, predict: str, **rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise ValueError(f"{name}: {rate} given, a number that is not negative expected")
    if steps < 1:
        raise ValueError(f"steps: {steps} given, a positive number expected")
    if predict not in PREDICTIONS:
        raise ValueError(f"predict: {predict!r} given, 'before' or 'after' expected")


def _check_norms(model: nn.Module, method: Method) -> None:
    if method.modulator == "norms" and not norm_parameters(model):
        if method.hebbian:
            raise ValueError(
                "modulator: 'norms' given, 'insert' expected for a model without normalisation "
                "layers"
            )
        raise ValueError(
            "model: no normalisation layer with gain and offset given, at least one expected"
        )
    if method.modulator == "first":
        assert isinstance(method.hebbian_layer, str)
        if not norm_parameters(model, after=model.get_submodule(method.hebbian_layer)):
            raise ValueError(
                "modulator: 'first' given, 'insert' expected for a model without normalisation "
                f"layers after {method.hebbian_layer!r}"
            )
    only_statistics = method.batch_statistics and method.modulator is None
    if only_statistics and not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ValueError("model: no batch normalisation given, at least one layer expected")


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: {given} given as output, logits (batch, classes) expected")
    return logits
