"""Learning rules and recipes: training that is more than a loss and an optimizer."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.learning.boosting import (
        BoostedNetworkClassifier,
        BoostedNetworkRegressor,
        boosting_loss,
    )
    from heterodox.learning.cauchy_schwarz_regressor import CauchySchwarzBottleneckRegressor
    from heterodox.learning.early_learning_plus import MeanLogits, TrainedPair, train_elr_plus
    from heterodox.learning.forward_forward import forward_forward_loss, goodness, row_normalize
    from heterodox.learning.forward_graph import (
        ForwardGNN,
        ForwardLinkPredictor,
        LocalGraphLayer,
        add_virtual_nodes,
        append_labels,
        link_logits,
        single_forward_logits,
        top_down_embedding,
        wrong_labels,
    )
    from heterodox.learning.hebbian import (
        ChannelAffine,
        SoftHebbianConv2d,
        soft_hebbian_conv2d_update,
        soft_hebbian_update,
    )
    from heterodox.learning.hyperfitting import hyperfit
    from heterodox.learning.physical import (
        BlackBox,
        DigitalTwin,
        MultimodeFiber,
        PhysicalLayer,
        PhysicalNetwork,
        PhysicsAwareNetwork,
        ProgrammableCavity,
        ScatteringCavity,
        cosine_goodness,
        fit_twin,
        local_contrast_loss,
        overlay_label,
    )
    from heterodox.learning.test_time import (
        BatchNormAdapter,
        NeuroModulatedAdapter,
        SourceOnly,
        TentAdapter,
        TestTimeAdapter,
        softmax_entropy,
    )

_EXPORTS = {
    "BatchNormAdapter": "heterodox.learning.test_time",
    "BlackBox": "heterodox.learning.physical",
    "BoostedNetworkClassifier": "heterodox.learning.boosting",
    "BoostedNetworkRegressor": "heterodox.learning.boosting",
    "CauchySchwarzBottleneckRegressor": "heterodox.learning.cauchy_schwarz_regressor",
    "ChannelAffine": "heterodox.learning.hebbian",
    "DigitalTwin": "heterodox.learning.physical",
    "ForwardGNN": "heterodox.learning.forward_graph",
    "ForwardLinkPredictor": "heterodox.learning.forward_graph",
    "LocalGraphLayer": "heterodox.learning.forward_graph",
    "MeanLogits": "heterodox.learning.early_learning_plus",
    "MultimodeFiber": "heterodox.learning.physical",
    "NeuroModulatedAdapter": "heterodox.learning.test_time",
    "PhysicalLayer": "heterodox.learning.physical",
    "PhysicalNetwork": "heterodox.learning.physical",
    "PhysicsAwareNetwork": "heterodox.learning.physical",
    "ProgrammableCavity": "heterodox.learning.physical",
    "ScatteringCavity": "heterodox.learning.physical",
    "SoftHebbianConv2d": "heterodox.learning.hebbian",
    "SourceOnly": "heterodox.learning.test_time",
    "TentAdapter": "heterodox.learning.test_time",
    "TestTimeAdapter": "heterodox.learning.test_time",
    "TrainedPair": "heterodox.learning.early_learning_plus",
    "add_virtual_nodes": "heterodox.learning.forward_graph",
    "append_labels": "heterodox.learning.forward_graph",
    "boosting_loss": "heterodox.learning.boosting",
    "cosine_goodness": "heterodox.learning.physical",
    "fit_twin": "heterodox.learning.physical",
    "forward_forward_loss": "heterodox.learning.forward_forward",
    "goodness": "heterodox.learning.forward_forward",
    "hyperfit": "heterodox.learning.hyperfitting",
    "link_logits": "heterodox.learning.forward_graph",
    "local_contrast_loss": "heterodox.learning.physical",
    "overlay_label": "heterodox.learning.physical",
    "row_normalize": "heterodox.learning.forward_forward",
    "single_forward_logits": "heterodox.learning.forward_graph",
    "soft_hebbian_conv2d_update": "heterodox.learning.hebbian",
    "soft_hebbian_update": "heterodox.learning.hebbian",
    "softmax_entropy": "heterodox.learning.test_time",
    "top_down_embedding": "heterodox.learning.forward_graph",
    "train_elr_plus": "heterodox.learning.early_learning_plus",
    "wrong_labels": "heterodox.learning.forward_graph",
}

__all__ = [
    "BatchNormAdapter",
    "BlackBox",
    "BoostedNetworkClassifier",
    "BoostedNetworkRegressor",
    "CauchySchwarzBottleneckRegressor",
    "ChannelAffine",
    "DigitalTwin",
    "ForwardGNN",
    "ForwardLinkPredictor",
    "LocalGraphLayer",
    "MeanLogits",
    "MultimodeFiber",
    "NeuroModulatedAdapter",
    "PhysicalLayer",
    "PhysicalNetwork",
    "PhysicsAwareNetwork",
    "ProgrammableCavity",
    "ScatteringCavity",
    "SoftHebbianConv2d",
    "SourceOnly",
    "TentAdapter",
    "TestTimeAdapter",
    "TrainedPair",
    "add_virtual_nodes",
    "append_labels",
    "boosting_loss",
    "cosine_goodness",
    "fit_twin",
    "forward_forward_loss",
    "goodness",
    "hyperfit",
    "link_logits",
    "local_contrast_loss",
    "overlay_label",
    "row_normalize",
    "single_forward_logits",
    "soft_hebbian_conv2d_update",
    "soft_hebbian_update",
    "softmax_entropy",
    "top_down_embedding",
    "train_elr_plus",
    "wrong_labels",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
