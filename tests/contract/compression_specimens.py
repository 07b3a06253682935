"""Specimens of `heterodox.compression` and of the polynomial features that it stands on."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor, nn

from heterodox.attention.softmax import SoftmaxAttention

LOW_RANK = "heterodox.compression.low_rank"

CONSTANT = {"backward": "returns gradients, or norms, as constants for autograd"}
LOOKS = "looks at the numbers to prove a degree, or that rows are positive"
NEEDS_NUMBERS = {"other device": LOOKS}


def rows(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.length, draw.head_dim),)


def two_points(draw: Draw) -> tuple[Tensor, ...]:
    (query,) = draw.heads_of(1)
    key = draw.normal(draw.batch, draw.heads, draw.length + 2, draw.head_dim)
    return 0.3 * query, 0.3 * key


def small_heads(draw: Draw) -> tuple[Tensor, ...]:
    return tuple(0.3 * x for x in draw.heads_of(3))


def case_c1(draw: Draw) -> tuple[Tensor, ...]:
    """c1, c2, c3, target, weight, a and b, with small logits."""
    n, d = draw.length, draw.head_dim
    shapes = ((n, d), (n + 1, d), (n + 1, 3), (n, 3), (d, d), (2, d), (d, 2))
    return tuple(0.3 * draw.normal(*shape) for shape in shapes)


def flat(gradients: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in gradients])


def special(function: Any, *inputs: Tensor) -> Tensor:
    return flat(function(*inputs))


def general(function: Any, *inputs: Tensor) -> Tensor:
    c1, c2, _, target, weight, a, b = inputs
    weights: Mapping[str, Tensor] = {"q": weight, "k": weight.mT, "v": weight[:, :3]}
    found = function(c1, c2, c2, target, weights, {"q": (a, b), "k": (a, b)})
    return torch.cat([flat(found[name]) for name in "qk"])


def norms(function: Any, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
    found = function(x, {"q": query, "k": key}, {})
    return torch.tensor([found["query"], found["key"]], dtype=x.dtype, device=x.device)


class Audited(nn.Module):
    """A layer whose output is what the audit says of it."""

    def __init__(self, audit: Any, layer: nn.Module) -> None:
        super().__init__()
        self.audit, self.layer = audit, layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.audit(self.layer, x)
        return torch.tensor([head.query for head in found], dtype=x.dtype, device=x.device)


BAD_C1: tuple[Bad, ...] = (
    ("method", lambda c, x: c(*x, method="random")),
    ("degree", lambda c, x: c(*x, method="polynomial")),
    ("degree", lambda c, x: c(*x, method="polynomial", degree=-1)),
    ("tol", lambda c, x: c(*x, method="polynomial", tol=2.0)),
    ("c2", lambda c, x: c(x[0], x[1][0], *x[2:])),
    ("c3", lambda c, x: c(*x[:2], x[2][1:], *x[3:])),
    ("target", lambda c, x: c(*x[:3], x[3][1:], *x[4:])),
    ("weight", lambda c, x: c(*x[:4], x[4][1:], *x[5:])),
    ("a", lambda c, x: c(*x[:5], x[5][:0], x[6])),
    ("b", lambda c, x: c(*x[:6], x[6][1:])),
)

SPECIMENS = (
    Specimen(
        f"{LOW_RANK}:polynomial_features",
        lambda d: d.heads_of(1),
        make=lambda c, d: partial(c, degree=3),
        bad=(("degree", lambda c, x: c(*x, -1)), ("x", lambda c, x: c(x[0][0, 0, 0], 2))),
    ),
    Specimen(
        f"{LOW_RANK}:degree_for",
        Draw.sequence,
        call=lambda degree_for, x: x * degree_for(2.0, 1e-3),
        bad=(("bound", lambda c, x: c(-1.0, 0.1)), ("tol", lambda c, x: c(1.0, 2.0))),
        graph_breaks="counts in NumPy",
        limits={"shape types": "takes numbers, not tensors"},
    ),
    Specimen(
        f"{LOW_RANK}:low_rank_softmax",
        two_points,
        make=lambda c, d: partial(c, degree=4),
        call=lambda c, query, key: (factors := c(query, key)).left @ factors.right.mT,
        bad=(
            ("query", lambda c, x: c(x[0][0, 0, 0], x[1], 2)),
            ("key", lambda c, x: c(x[0], x[1][..., :1], 2)),
            ("degree", lambda c, x: c(*x, -2)),
        ),
        tolerance={torch.bfloat16: 0.1},  # the gradient is a small difference of large terms
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
    ),
    Specimen(
        f"{LOW_RANK}:lora_gradients",
        case_c1,
        call=special,
        batch="none",
        bad=BAD_C1,
        limits=CONSTANT,
    ),
    Specimen(
        f"{LOW_RANK}:lora_gradients",
        case_c1,
        make=lambda c, d: partial(c, method="polynomial", degree=4),
        call=special,
        case="polynomial",
        batch="none",
        graph_breaks=LOOKS,
        limits=CONSTANT | NEEDS_NUMBERS,
    ),
    Specimen(
        f"{LOW_RANK}:full_lora_gradients",
        case_c1,
        make=lambda c, d: partial(c, method="polynomial", tol=1e-12),
        call=general,
        batch="none",
        graph_breaks=LOOKS,
        limits=CONSTANT | NEEDS_NUMBERS,
    ),
    Specimen(
        f"{LOW_RANK}:low_rank_attention",
        small_heads,
        make=lambda c, d: partial(c, tol=1e-13),
        bad=(
            ("query", lambda c, x: c(x[0][0], x[1], x[2])),
            ("key", lambda c, x: c(x[0], x[1][..., :1], x[2])),
            ("value", lambda c, x: c(x[0], x[1], x[2].float())),
            ("tol", lambda c, x: c(*x, tol=0.0)),
            ("scale", lambda c, x: c(*x, scale=float("inf"))),
        ),
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
    ),
    Specimen(
        f"{LOW_RANK}:LoRALinear",
        Draw.sequence,
        make=lambda c, d: c(nn.Linear(d.width, 3), 2, alpha=3.0).requires_grad_(),
        bad=(
            ("base", lambda c, x: c(nn.Identity(), 1)),
            ("rank", lambda c, x: c(nn.Linear(2, 2), 0)),
            ("alpha", lambda c, x: c(nn.Linear(2, 2), 1, alpha=float("inf"))),
            ("dropout", lambda c, x: c(nn.Linear(2, 2), 1, dropout=1.0)),
            ("x", lambda c, x: c(nn.Linear(3, 2).double(), 1)(x[0])),
        ),
    ),
    Specimen(
        f"{LOW_RANK}:efficiency_norms",
        lambda d: (*rows(d), d.normal(d.head_dim, 3), d.normal(d.head_dim, 3)),
        call=norms,
        batch="none",
        bad=(
            ("x", lambda c, x: c(x[0][0], {"q": x[1], "k": x[2]}, {})),
            ("weights", lambda c, x: c(x[0], {"q": x[1]}, {})),
            ("adapters", lambda c, x: c(x[0], {"q": x[1], "k": x[2]}, {"q": (x[1], x[1])})),
        ),
        graph_breaks="returns plain numbers",
        limits=CONSTANT | {"other device": "returns plain numbers"},
    ),
    Specimen(
        f"{LOW_RANK}:audit",
        Draw.sequence,
        make=lambda c, d: Audited(c, SoftmaxAttention(d.width, d.heads)),
        batch="none",
        bad=(("model", lambda c, x: c(nn.Identity(), x[0])),),
        graph_breaks="watches a model by hooks and returns plain numbers",
        limits=CONSTANT | {"other device": "returns plain numbers"},
    ),
)
