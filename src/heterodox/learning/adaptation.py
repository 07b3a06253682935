"""What test-time adaptation changes in a network: its statistics, and which weights may move.

Normalisation with the statistics of the batch at hand in place of those of training, or with a
mixture of both (Schneider et al., 2020, arXiv 2006.16971: α · source + (1 − α) · batch), and the
gains and offsets of normalisation layers as the weights to adapt (Wang et al., "Tent", 2021,
arXiv 2006.10726).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

# Layers whose gain and offset modulate what they normalise.
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class MixedBatchNorm(nn.Module):
    """Batch normalisation with α times the source's mean and variance plus 1 − α times the batch's.

    Args:
        source: a trained layer, whose statistics, gain and offset are taken over.
        source_weight: α, in [0, 1].

    Raises:
        ValueError: `source` has kept no statistics.

    Example:
        >>> layer = MixedBatchNorm(nn.BatchNorm2d(3), 1.0)
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(layer(x), nn.BatchNorm2d(3).eval()(x))
        True
    """

    def __init__(self, source: _BatchNorm, source_weight: float) -> None:
        super().__init__()
        self.running_mean: Tensor
        self.running_var: Tensor
        if source.running_mean is None or source.running_var is None:
            raise ValueError(
                "source: a layer without running statistics given, one that has kept them expected"
            )
        self.source_weight = source_weight
        self.eps = source.eps
        self.weight, self.bias = source.weight, source.bias
        self.register_buffer("running_mean", source.running_mean.clone())
        self.register_buffer("running_var", source.running_var.clone())

    def forward(self, x: Float[Tensor, "batch channels *axes"]) -> Float[Tensor, "..."]:
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, axes, correction=0)
        mean = mean.to(self.running_mean).lerp(self.running_mean, self.source_weight)
        variance = variance.to(self.running_var).lerp(self.running_var, self.source_weight)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)


def use_batch_statistics(model: nn.Module, source_weight: float = 0.0) -> None:
    """Makes batch (and instance) normalisation use the current batch, in either mode, in place.

    Args:
        model: its layers forget their running statistics, or with a `source_weight` are replaced.
        source_weight: α, the share of the statistics of training, in [0, 1].

    Raises:
        ValueError: with a `source_weight`, a layer has kept no statistics.

    Example:
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> use_batch_statistics(norm)
        >>> norm(torch.tensor([[1.0], [3.0]])).round().flatten()
        tensor([-1.,  1.], grad_fn=<ViewBackward0>)
    """
    for name, layer in list(model.named_modules()):
        if source_weight and isinstance(layer, _BatchNorm):
            if layer.running_mean is None:
                raise ValueError(
                    f"source_weight: {source_weight} given, 0 expected, as the model's {name!r} "
                    "has kept no statistics"
                )
            if not name:
                raise ValueError("model: a single normalisation layer given, a network expected")
            replace(model, name, MixedBatchNorm(layer, source_weight))
        elif isinstance(layer, _NormBase):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def norm_parameters(model: nn.Module, after: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """Name -> gain or offset of the normalisation layers of `model`.

    Args:
        after: take the first layer only that is registered after this one.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        >>> list(norm_parameters(model))
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> list(norm_parameters(model, after=model[1]))
        ['2.weight', '2.bias']
    """
    found: dict[str, nn.Parameter] = {}
    passed = after is None
    for prefix, layer in model.named_modules():
        passed = passed or layer is after
        if passed and isinstance(layer, NORMS):
            for name, parameter in layer.named_parameters(prefix, recurse=False):
                found[name] = parameter
            if found and after is not None:
                break
    return found


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts `layer` where `model` has its submodule `name`.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.ReLU()))
        >>> replace(model, "0.0", nn.Tanh())
        >>> model[0][0]
        Tanh()
    """
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def refuse_single_values(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A forward pre-hook of batch normalisation: one value a channel is no sample.

    Raises:
        ValueError: a channel has one value in the whole batch, whose variance is 0.

    Example:
        >>> refuse_single_values(nn.BatchNorm2d(3), (torch.zeros(1, 3, 2, 2),))
    """
    x = inputs[0]
    if x.ndim > 1 and x.numel() == x.shape[1]:
        raise ValueError(
            f"x: a batch of one given, whose {x.shape[1]} channels have one value each before "
            f"{type(layer).__name__}; at least two examples expected for the statistics of a batch"
        )
