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
        "adaptation": "heterodox.bench.adaptation:adapters",
        "attention": "heterodox.bench.attention:workload",
        "attention-svm": "heterodox.bench.attention_svm:workload",
        "attention-vision": "heterodox.bench.attention_vision:workload",
        "boosting": "heterodox.bench.boosting:workload",
        "continual": "heterodox.bench.continual:workload",
        "delays": "heterodox.bench.delays:workload",
        "generation": "heterodox.bench.generation:workload",
        "graph": "heterodox.bench.forward_graph:workload",
        "head": "heterodox.bench.head:workload",
        "hebbian-update": "heterodox.bench.adaptation:updates",
        "hopfield": "heterodox.bench.hopfield:workload",
        "label-noise": "heterodox.bench.label_noise:workload",
        "lora-gradient": "heterodox.bench.lora_gradient:workload",
        "loss": "heterodox.bench.loss:workload",
        "mean-field": "heterodox.bench.mean_field:workload",
        "optimizer": "heterodox.bench.optimizer:workload",
        "output-layer": "heterodox.bench.output_layer:workload",
        "physical": "heterodox.bench.physical:workload",
        "prox-softmax": "heterodox.bench.prox_softmax:workload",
        "regression-loss": "heterodox.bench.regression_loss:workload",
        "soft-labels": "heterodox.bench.soft_labels:workload",
        "spiking": "heterodox.bench.spiking:workload",
        "text-similarity": "heterodox.bench.text_similarity:workload",
    },
)

COMPONENTS = {
    "adaptation": Slot(
        "adaptation",
        {
            "tent": "heterodox.learning.test_time:TentAdapter",
            "bn": "heterodox.learning.test_time:BatchNormAdapter",
            "nhl": "heterodox.learning.test_time:NeuroModulatedAdapter",
            "nhl-before": "heterodox.bench.adaptation:nhl_before",
        },
    ),
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
    "boosting": Slot(
        "boosting",
        {
            "boosted-network": "heterodox.bench.boosting:boosted",
            "boosted-classifier": "heterodox.bench.boosting:boosted_classifier",
        },
    ),
    "continual": Slot(
        "continual",
        {
            "sgd": "heterodox.bench.continual:plain",
            "hlop": "heterodox.bench.continual:projected",
        },
    ),
    "delays": Slot(
        "delays",
        {
            "linear": "heterodox.bench.delays:linear",
            "delayed": "heterodox.bench.delays:delayed",
        },
    ),
    "generation": Slot(
        "generation",
        {
            "whole-sequence": "heterodox.bench.generation:whole_sequence",
            "cached": "heterodox.bench.generation:cached",
        },
    ),
    "graph": Slot(
        "graph",
        {
            "bp": "heterodox.bench.forward_graph:backpropagation",
            "sf": "heterodox.bench.forward_graph:single_forward",
            "ff-label": "heterodox.bench.forward_graph:forward_forward_labels",
            "ff-virtual": "heterodox.bench.forward_graph:forward_forward_virtual",
        },
    ),
    "head": Slot(
        "head",
        {
            "linear": "heterodox.bench.head:linear",
            "fourier": "heterodox.bench.head:fourier",
        },
    ),
    "hebbian-update": Slot(
        "hebbian-update",
        {
            "unfolded": "heterodox.bench.adaptation:unfolded",
            "convolutions": "heterodox.learning.hebbian:soft_hebbian_conv2d_update",
        },
    ),
    "hopfield": Slot(
        "hopfield",
        {
            "dense": "heterodox.bench.hopfield:dense",
            "factors": "heterodox.bench.hopfield:by_factors",
        },
    ),
    "label-noise": Slot(
        "label-noise",
        {
            "cross-entropy": "heterodox.bench.label_noise:cross_entropy",
            "elr": "heterodox.losses.early_learning:EarlyLearningLoss",
            "elr-float16": "heterodox.bench.label_noise:elr_float16",
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
    "mean-field": Slot(
        "mean-field",
        {
            "unrolled": "heterodox.bench.mean_field:unrolled",
            "implicit": "heterodox.bench.mean_field:implicit",
        },
    ),
    "optimizer": Slot(
        "optimizer",
        {
            "adamw": "heterodox.optim.slot:adamw",
            "perp-grad": "heterodox.optim.slot:perp_grad",
        },
    ),
    "output-layer": Slot(
        "output-layer",
        {
            "linear": "heterodox.bench.output_layer:linear",
            "factored-z-loss": "heterodox.bench.output_layer:factored_z_loss",
        },
    ),
    "physical": Slot(
        "physical",
        {
            "autograd-loop": "heterodox.bench.physical:autograd_loop",
            "closed-form": "heterodox.bench.physical:closed_form",
        },
    ),
    "prox-softmax": Slot(
        "prox-softmax",
        {
            "nested": "heterodox.bench.prox_softmax:nested",
            "prox-softmax": "heterodox.energy.proximal_operator:prox_softmax",
            "softmax": "heterodox.bench.prox_softmax:softmax",
        },
    ),
    "regression-loss": Slot(
        "regression-loss",
        {
            "one-matrix-for-each-use": "heterodox.bench.regression_loss:one_matrix_for_each_use",
            "shared": "heterodox.bench.regression_loss:shared",
            "shared-16-blocks": "heterodox.bench.regression_loss:shared_small_blocks",
            "mse": "heterodox.bench.regression_loss:mse",
            "mse-and-hsic": "heterodox.bench.regression_loss:mse_and_hsic",
        },
    ),
    "soft-labels": Slot(
        "soft-labels",
        {
            "dense": "heterodox.bench.soft_labels:dense",
            "compressed": "heterodox.bench.soft_labels:compressed",
            "dense-weighted": "heterodox.bench.soft_labels:dense_weighted",
        },
    ),
    "spiking": Slot(
        "spiking",
        {
            "loop": "heterodox.bench.spiking:loop",
            "lif": "heterodox.bench.spiking:lif",
        },
    ),
    "text-similarity": Slot(
        "text-similarity",
        {
            "pair-by-pair": "heterodox.bench.text_similarity:pair_by_pair",
            "at-once": "heterodox.bench.text_similarity:at_once",
        },
    ),
}

PEERS = {
    "adaptation": Slot("against", {"tent-by-hand": "heterodox.bench.adaptation:TentByHand"}),
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
    "boosting": Slot(
        "against",
        {
            "gbnn": "heterodox.bench.boosting:gbnn",
            "mlp": "heterodox.bench.boosting:mlp",
            "mlp-classifier": "heterodox.bench.boosting:mlp_classifier",
            "boosted-trees": "heterodox.bench.boosting:boosted_trees",
        },
    ),
    "continual": Slot("against", {}),
    "delays": Slot("against", {"dcls": "heterodox.bench.delays:DCLS"}),
    "generation": Slot(
        "against",
        {"transformers-generate": "heterodox.bench.generation:transformers_generate"},
    ),
    "graph": Slot(
        "against",
        {
            "sf-plain": "heterodox.bench.forward_graph:single_forward_plain",
            "ff-label-loop": "heterodox.bench.forward_graph:forward_forward_loop",
        },
    ),
    "head": Slot("against", {"fourier-every-wave": "heterodox.bench.head:EveryWave"}),
    "hebbian-update": Slot("against", {}),
    "hopfield": Slot("against", {"hopfieldnetwork": "heterodox.bench.hopfield:hopfieldnetwork"}),
    "label-noise": Slot(
        "against", {"elr-list-of-indices": "heterodox.bench.label_noise:ListOfIndices"}
    ),
    "lora-gradient": Slot(
        "against", {"sdpa-autograd": "heterodox.bench.lora_gradient:sdpa_autograd"}
    ),
    "loss": Slot(
        "against", {"cross-entropy-compiled": "heterodox.bench.loss:cross_entropy_compiled"}
    ),
    "mean-field": Slot(
        "against", {"torchdeq-anderson": "heterodox.bench.mean_field:torchdeq_anderson"}
    ),
    "optimizer": Slot("against", {"perp-grad-loop": "heterodox.bench.optimizer:PerpGradLoop"}),
    "output-layer": Slot(
        "against",
        {
            "adaptive-softmax": "heterodox.bench.output_layer:adaptive_softmax",
            "sampled-softmax-100": "heterodox.bench.output_layer:sampled_softmax_100",
            "sampled-softmax-1000": "heterodox.bench.output_layer:sampled_softmax_1000",
        },
    ),
    "physical": Slot("against", {}),
    "prox-softmax": Slot("against", {}),
    "regression-loss": Slot(
        "against", {"geomloss-mmd": "heterodox.bench.regression_loss:geomloss_mmd"}
    ),
    "soft-labels": Slot(
        "against", {"sum-of-products": "heterodox.bench.soft_labels:sum_of_products"}
    ),
    "spiking": Slot("against", {"snntorch": "heterodox.bench.spiking:snntorch_leaky"}),
    "text-similarity": Slot("against", {"nltk": "heterodox.bench.text_similarity:nltk"}),
}

# Peers of other packages: name -> the module to import, all of them in heterodox[bench].
PACKAGES = {
    "cvxpy-clarabel": "cvxpy",
    "cvxpy-scs": "cvxpy",
    "dcls": "DCLS",
    "fla-delta": "fla",
    "fla-delta-recurrent": "fla",
    "fla-delta-triton": "fla",
    "fla-linear": "fla",
    "geomloss-mmd": "geomloss",
    "gbnn": "gbnn",
    "hopfieldnetwork": "hopfieldnetwork",
    "linformer": "linformer",
    "nltk": "nltk",
    "nystrom-attention": "nystrom_attention",
    "nystrom-attention-residual": "nystrom_attention",
    "performer-pytorch": "performer_pytorch",
    "snntorch": "snntorch",
    "transformers-generate": "transformers",
    "torchdeq-anderson": "torchdeq",
    "x-transformers": "x_transformers",
    "x-transformers-sigmoid": "x_transformers",
}

SIZES = {
    "adaptation": ("50", "200"),
    "attention": ("256", "1024", "2048", "8192", "16384"),
    "attention-svm": ("6x8x10", "15x15x20"),
    "attention-vision": ("196", "784", "3136"),
    "boosting": ("40", "200"),
    "continual": ("64x784x200", "64x784x800"),
    "delays": ("60x128x64x64x15", "100x128x140x256x25"),
    "generation": ("1x96", "32x96"),
    "graph": ("karate-club-2", "cora-2", "cora-4"),
    "head": ("512x32x50x12", "512x64x256x32", "64x384x4096x550", "512x384x4096x550"),
    "hebbian-update": ("200x3x32x16", "200x16x32x32"),
    "hopfield": ("1000x60x8", "4000x60x8", "16000x60x8"),
    "label-noise": ("128x10", "128x100"),
    "lora-gradient": ("1024", "4096", "16384"),
    "loss": ("4096x10", "4096x113", "1024x32000"),
    "mean-field": ("16", "128"),
    "optimizer": ("20x1000000", "mlp", "transformer"),
    "output-layer": ("2000x128", "20000x128", "200000x128", "800000x128"),
    "physical": ("206x20x7", "1000x74x10"),
    "prox-softmax": ("128x4x8x8", "128x20x28x28"),
    "regression-loss": ("128", "512", "1024", "4096"),
    "soft-labels": ("4096x10", "1024x1000", "256x10000"),
    "spiking": ("100x128x64", "100x128x256"),
    "text-similarity": ("30x48", "128x96"),
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
