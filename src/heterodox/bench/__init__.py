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
        "attention-svm": "heterodox.bench.attention_svm:workload",
        "attention-vision": "heterodox.bench.attention_vision:workload",
        "lora-gradient": "heterodox.bench.lora_gradient:workload",
        "loss": "heterodox.bench.loss:workload",
        "optimizer": "heterodox.bench.optimizer:workload",
    },
)

COMPONENTS = {
    "attention": ATTENTION_FUNCTIONS
    | Slot(
        "attention",
        {
            "delta": "heterodox.bench.attention:delta",
            "soft": "heterodox.bench.attention:soft",
            "soft++": "heterodox.bench.attention:soft_plus_plus",
        },
    ),
    "attention-svm": Slot("attention-svm", {"heterodox": "heterodox.bench.attention_svm:solve"}),
    "attention-vision": Slot(
        "attention-vision",
        {
            "softmax": "heterodox.bench.attention_vision:softmax",
            "soft": "heterodox.bench.attention_vision:soft",
            "soft++": "heterodox.bench.attention_vision:soft_plus_plus",
            "soft-cholesky": "heterodox.bench.attention_vision:soft_cholesky",
        },
    ),
    "lora-gradient": Slot(
        "lora-gradient",
        {
            "exact": "heterodox.bench.lora_gradient:exact",
            "polynomial": "heterodox.bench.lora_gradient:polynomial",
        },
    ),
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
            "fla-linear": "heterodox.bench.attention:fla_linear",
            "fla-delta": "heterodox.bench.attention:fla_delta",
            "fla-delta-recurrent": "heterodox.bench.attention:fla_delta_recurrent",
            "fla-delta-triton": "heterodox.bench.attention:fla_delta_triton",
        },
    ),
    "attention-svm": Slot(
        "against",
        {
            "cvxpy-clarabel": "heterodox.bench.attention_svm:cvxpy_clarabel",
            "cvxpy-scs": "heterodox.bench.attention_svm:cvxpy_scs",
        },
    ),
    "attention-vision": Slot(
        "against",
        {
            "dense-softmax": "heterodox.bench.attention_vision:dense",
            "nystrom-attention": "heterodox.bench.attention_vision:nystrom_attention",
            "nystrom-attention-residual": (
                "heterodox.bench.attention_vision:nystrom_attention_residual"
            ),
            "performer-pytorch": "heterodox.bench.attention_vision:performer_pytorch",
            "linformer": "heterodox.bench.attention_vision:linformer",
        },
    ),
    "lora-gradient": Slot(
        "against", {"sdpa-autograd": "heterodox.bench.lora_gradient:sdpa_autograd"}
    ),
    "loss": Slot(
        "against", {"cross-entropy-compiled": "heterodox.bench.loss:cross_entropy_compiled"}
    ),
    "optimizer": Slot("against", {"perp-grad-loop": "heterodox.bench.optimizer:PerpGradLoop"}),
}

# Peers of other packages: name -> the module to import, all of them in heterodox[bench].
PACKAGES = {
    "cvxpy-clarabel": "cvxpy",
    "cvxpy-scs": "cvxpy",
    "fla-delta": "fla",
    "fla-delta-recurrent": "fla",
    "fla-delta-triton": "fla",
    "fla-linear": "fla",
    "linformer": "linformer",
    "nystrom-attention": "nystrom_attention",
    "nystrom-attention-residual": "nystrom_attention",
    "performer-pytorch": "performer_pytorch",
    "x-transformers": "x_transformers",
    "x-transformers-sigmoid": "x_transformers",
}

SIZES = {
    "attention": ("256", "1024", "2048", "8192", "16384"),
    "attention-svm": ("6x8x10", "15x15x20"),
    "attention-vision": ("196", "784", "3136"),
    "lora-gradient": ("1024", "4096", "16384"),
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
