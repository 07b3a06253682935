"""A specimen: what the contract needs to know of a component in order to try it.

A specimen names a public component, makes something callable of it and the tensors it is called
with; every test of the contract then runs on every specimen. What a component is not meant to do is
said in `limits`, check by check, with the reason. The tests of limits still run and must fail, so
that a limit which no longer holds is noticed.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heterodox.training.seeding import seeded

CHECKS = {
    "float32": "forward and backward in float32 are close to those in float64",
    "float64": "forward and backward run in float64",
    "bfloat16": "forward and backward in bfloat16 are close to those in float64",
    "backward": "gradients in inputs and parameters match finite differences",
    "other device": "no tensor is made on another device than the inputs'",
    "non-contiguous": "strides do not matter",
    "empty batch": "a batch of nothing gives nothing, and gradients of zero",
    "rows": "a row's result does not depend on the other rows of its batch",
    "inputs": "inputs are not changed in place",
    "global generators": "torch's, NumPy's and Python's generators are left alone",
    "deterministic": "the same inputs and seed give the same bits",
    "compile": "torch.compile gives the same output and gradients, in one graph",
    "copies": "deepcopy and pickle give an independent equal",
    "shape types": "jaxtyping refuses a wrong kind of number and a wrong rank",
}


@dataclass(frozen=True)
class Draw:
    """Sizes of inputs, and the generator that their numbers come from."""

    batch: int = 3
    heads: int = 2
    length: int = 5
    head_dim: int = 4
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    def normal(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(self.device, self.dtype)

    def below(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def sequence(self) -> tuple[Tensor]:
        """(batch, length, width), what layers take."""
        return (self.normal(self.batch, self.length, self.width),)

    def heads_of(self, count: int) -> tuple[Tensor, ...]:
        """`count` tensors (batch, heads, length, head_dim), what attention functions take."""
        shape = (self.batch, self.heads, self.length, self.head_dim)
        return tuple(self.normal(*shape) for _ in range(count))


Bad = tuple[str, Callable[[Any, tuple[Tensor, ...]], Any]]
"""The argument that the ValueError must name, and a call `(component, inputs)` that raises it."""


def _itself(component: Any, draw: Draw) -> Any:
    return component


def _called(thing: Any, *inputs: Tensor) -> Any:
    return thing(*inputs)


@dataclass(frozen=True)
class Specimen:
    """A component and how to try it.

    Args:
        component: "module:Name", as in the catalogue.
        inputs: the tensors of a call, made from a `Draw`.
        make: what is called: by default the component, for a class an instance. Modules get the
            dtype and device of the draw, and parameters away from their initial values.
        call: how it is called with the inputs; must return one tensor.
        case: tells several specimens of one component apart.
        bad: calls that must raise a ValueError; see `Bad`.
        batch: "axis": axis 0 of every input and of the output; "reduced": the output has none;
            "none": nor have the inputs.
        returns: dtype of the output; None: that of the first floating input.
        tolerance: largest error in a dtype, as a share of the largest number of the exact result.
        graph_breaks: why torch.compile needs more than one graph; "" if it does not.
        limits: check of `CHECKS` -> why it is not met.
    """

    component: str
    inputs: Callable[[Draw], tuple[Tensor, ...]]
    make: Callable[[Any, Draw], Any] = _itself
    call: Callable[..., Tensor] = _called
    case: str = ""
    bad: tuple[Bad, ...] = ()
    batch: Literal["axis", "reduced", "none"] = "axis"
    returns: torch.dtype | None = None
    tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)
    graph_breaks: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        attribute = self.component.partition(":")[2]
        return f"{attribute}({self.case})" if self.case else attribute

    def resolve(self) -> Any:
        return pkgutil.resolve_name(self.component)

    def build(self, draw: Draw, seed: int = 1) -> Any:
        """What is called; modules in eval mode."""
        with seeded(seed):
            thing = self.make(self.resolve(), draw)
            if isinstance(thing, nn.Module):
                for parameter in thing.parameters():
                    parameter.data.add_(0.1 * torch.randn_like(parameter))
                thing.to(draw.device, draw.dtype).eval()
        return thing

    def error_in(self, dtype: torch.dtype) -> float:
        usual = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
        return self.tolerance.get(dtype, usual[dtype])
