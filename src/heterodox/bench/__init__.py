"""Benchmarks: time and peak memory of a slot's components, beside the default and peers.

`BENCHES` maps a slot to what makes its `Workload`; `COMPONENTS`, `PEERS` and `SIZES` say, for each
slot, what is compared and on which problems. The first component is the default.
"""

from typing import TYPE_CHECKING

from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.bench.run import Options, run_bench, write_bench
    from heterodox.bench.tables import benchmark_tables

BENCHES = Slot(
    "slot",
    {
        "attention": "heterodox.bench.attention:workload",
        "loss": "heterodox.bench.loss:workload",
        "optimizer": "heterodox.bench.optimizer:workload",
    },
)

COMPONENTS = {
    "attention": ATTENTION_FUNCTIONS,
    "loss": Slot(
        "loss",
        {
            "cross-entropy": "torch.nn.functional:cross_entropy",
            "stablemax": "heterodox.losses.stablemax:stablemax_cross_entropy",
            "stablemax-float32": "heterodox.bench.loss:stablemax_float32",
            "stablemax-compiled": "heterodox.bench.loss:stablemax_compiled",
            "stablemax-float32-compiled": "heterodox.bench.loss:stablemax_float32_compiled",
        },
    ),
    "optimizer": Slot(
        "optimizer",
        {
            "adamw": "heterodox.optim.slot:adamw",
            "perp-grad": "heterodox.optim.slot:perp_grad",
        },
    ),
}

PEERS = {
    "attention": Slot(
        "against",
        {
            "dense-softmax": "heterodox.bench.attention:dense_softmax",
            "x-transformers": "heterodox.bench.attention:x_transformers_softmax",
            "x-transformers-sigmoid": "heterodox.bench.attention:x_transformers_sigmoid",
        },
    ),
    "loss": Slot(
        "against", {"cross-entropy-compiled": "heterodox.bench.loss:cross_entropy_compiled"}
    ),
    "optimizer": Slot("against", {"perp-grad-loop": "heterodox.bench.optimizer:PerpGradLoop"}),
}

# Peers of other packages: name -> the module to import, all of them in heterodox[bench].
PACKAGES = {"x-transformers": "x_transformers", "x-transformers-sigmoid": "x_transformers"}

SIZES = {
    "attention": ("512", "2048", "8192"),
    "loss": ("4096x10", "4096x113", "1024x32000"),
    "optimizer": ("20x1000000", "mlp", "transformer"),
}

_EXPORTS = {
    "Options": "heterodox.bench.run",
    "benchmark_tables": "heterodox.bench.tables",
    "run_bench": "heterodox.bench.run",
    "write_bench": "heterodox.bench.run",
}

__all__ = [
    "BENCHES",
    "COMPONENTS",
    "PACKAGES",
    "PEERS",
    "SIZES",
    "Options",
    "benchmark_tables",
    "run_bench",
    "write_bench",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
