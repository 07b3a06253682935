"""Soft Hebbian learning: filters compete for each patch, and move towards the patches they win.

    u_k = w_k · p,   y = softmax(u / τ),   Δw_k = Σ_{patches} y_k (p − u_k w_k)
    w_k ← w_k + η Δw_k / max |Δw|

It is local: neither labels nor gradients are needed. The decay holds the response u, not the winner
signal y, so that a filter that wins all patches stays at length 1 (Oja's rule). The rule is that of
SoftHebb (Moraitis et al., 2021, arXiv 2107.05747), one maximum over the layer included, as Tang et
al., "Neuro-Modulated Hebbian Learning for Fully Test-Time Adaptation", CVPR 2023, arXiv 2303.00914,
use it for the first layer of a trained network. Their code could not be read: that the rule is
taken over unchanged is a reconstruction.

Cost of an update: one convolution, and one as large for the sum over patches; patches are not
stored.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from heterodox.autocast import without_autocast

# Added to the largest change: a layer without any stays as it is.
EPS = 1e-30


@torch.no_grad()
def soft_hebbian_update(
    x: Float[Tensor, "batch inputs"],
    weight: Float[Tensor, "filters inputs"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "filters inputs"]:
    """Δw of a linear layer, summed over the batch and not yet normalised.

    Half precision is computed in float32.

    Args:
        x: inputs of the layer.
        weight: as in `nn.Linear`; a bias takes no part in the competition.
        temperature: τ of the competition; 1 as in SoftHebb. Near 0 the winner takes all.

    Raises:
        ValueError: the number of inputs differs, or `temperature` is not positive.

    Example:
        >>> x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])
        >>> soft_hebbian_update(x, weight)  # one filter: 1 · (p − 5 w)
        tensor([[0., 0.]])
    """
    _check_temperature(temperature)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)} given, (batch, {weight.shape[1]}) expected, "
            f"as weight has the shape {tuple(weight.shape)}"
        )
    dtype = torch.promote_types(weight.dtype, torch.float32)
    x, w = x.to(dtype), weight.to(dtype)
    with without_autocast(x.device.type):
        u = x @ w.T
        y = _competition(u, temperature)
        change = y.T @ x - (y * u).sum(0)[:, None] * w
    return change.to(weight.dtype)


@torch.no_grad()
def soft_hebbian_conv2d_update(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "filters channels kernel_height kernel_width"],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    temperature: float = 1.0,
) -> Float[Tensor, "filters channels kernel_height kernel_width"]:
    """Δw of a convolution: the sum of `soft_hebbian_update` over all patches, not yet normalised.

    Filters at one position compete; positions do not. The sum Σ y_k p over patches is the gradient
    of a convolution in its weight, with y in place of the gradient of the output.

    Args:
        x: inputs of the layer.
        weight, stride, padding, dilation: as for `torch.nn.functional.conv2d`; what is padded is 0.
        temperature: τ of the competition; 1 as in SoftHebb.

    Raises:
        ValueError: the channels differ (groups are not supported), the images are smaller than a
            filter, or `temperature` is not positive.

    Example:
        >>> x, weight = torch.rand(5, 3, 8, 8), torch.randn(16, 3, 3, 3)
        >>> soft_hebbian_conv2d_update(x, weight, padding=1).shape
        torch.Size([16, 3, 3, 3])
    """
    _check_temperature(temperature)
    stride, dilation = _pair(stride), _pair(dilation)
    left, right = _padding(weight, padding, dilation)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [s + a + b for s, a, b in zip(x.shape[2:], left, right, strict=True)]
    if x.shape[1] != weight.shape[1] or any(s < r for s, r in zip(sides, reach, strict=True)):
        raise ValueError(
            f"x: shape {tuple(x.shape)} given, (batch, {weight.shape[1]}, height, width) expected, "
            f"with padding at least {reach[0]} x {reach[1]}, as weight has the shape "
            f"{tuple(weight.shape)}"
        )
    dtype = torch.promote_types(weight.dtype, torch.float32)
    x, w = x.to(dtype), weight.to(dtype)
    if left != right:  # an even filter with padding "same"
        x, left = F.pad(x, (left[1], right[1], left[0], right[0])), (0, 0)
    with without_autocast(x.device.type):
        u = F.conv2d(x, w, None, stride, left, dilation)
        y = _competition(u, temperature)
        won = conv2d_weight(x, w.shape, y, stride, left, dilation)
        change = won - (y * u).sum((0, 2, 3))[:, None, None, None] * w
    return change.to(weight.dtype)


def hebbian_update(layer: nn.Module, x: Tensor, temperature: float = 1.0) -> Tensor:
    """Δw of an `nn.Conv2d` or `nn.Linear` for its inputs x, as the layer itself pads them.

    A linear layer takes inputs of any rank; everything before the last axis counts as the batch.

    Example:
        >>> hebbian_update(nn.Conv2d(3, 8, 3, stride=2), torch.rand(2, 3, 9, 9)).shape
        torch.Size([8, 3, 3, 3])
    """
    if isinstance(layer, nn.Linear):
        return soft_hebbian_update(x.flatten(0, -2), layer.weight, temperature=temperature)
    assert isinstance(layer, nn.Conv2d)
    padding: int | str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    return soft_hebbian_conv2d_update(
        x,
        layer.weight,
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        temperature=temperature,
    )


@torch.no_grad()
def apply_update_(weight: Float[Tensor, "..."], change: Float[Tensor, "..."], lr: float) -> Tensor:
    """w ← w + η Δw / max |Δw| in place: no weight moves by more than η. Returns the change.

    Example:
        >>> weight = torch.zeros(3)
        >>> apply_update_(weight, torch.tensor([1.0, -4.0, 2.0]), 0.1)
        tensor([ 0.0250, -0.1000,  0.0500])
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    change = change.to(dtype)
    step = lr * change / (change.abs().amax() + EPS)
    weight.add_(step.to(weight.dtype))
    return step


class SoftHebbianConv2d(nn.Conv2d):
    """A convolution that can also learn by itself from what it sees.

    Arguments are those of `nn.Conv2d`, without groups: all filters compete with each other. As a
    layer it is `nn.Conv2d`, so that it takes the same weights; its rule acts only when called.

    Raises:
        ValueError: `groups` is not 1.

    Example:
        >>> layer = SoftHebbianConv2d(1, 4, 3, padding=1, bias=False)
        >>> images = torch.rand(10, 1, 8, 8)
        >>> change = layer.hebbian_step_(images, lr=0.01)
        >>> 0 < change.item() < 0.1
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups: {groups} given, 1 expected, as all filters compete")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )

    @torch.no_grad()
    def hebbian_step_(
        self,
        x: Float[Tensor, "batch channels height width"],
        lr: float,
        *,
        temperature: float = 1.0,
    ) -> Float[Tensor, ""]:
        """One step of the rule on a batch, in place; the bias stays as it is.

        Args:
            x: inputs of the layer.
            lr: η, the largest change of a single weight.
            temperature: τ of the competition.

        Returns:
            ‖change‖ / ‖weight before‖, on the device of the weight.

        Raises:
            ValueError: `lr` is negative, `temperature` is not positive, or x does not fit, is empty
                or is not finite. The weight is then as it was.
        """
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr: {lr} given, a number that is not negative expected")
        if len(x) == 0:
            raise ValueError(f"x: shape {tuple(x.shape)} given, at least one image expected")
        change = hebbian_update(self, x, temperature)
        # NaN would stay in the weight for good. Asking waits for the device.
        if not change.is_meta and not bool(change.isfinite().all()):
            raise ValueError("x: values that are NaN or too large given, finite values expected")
        before = torch.linalg.vector_norm(self.weight)
        return torch.linalg.vector_norm(apply_update_(self.weight, change, lr)) / before


class ChannelAffine(nn.Module):
    """A gain and an offset for each channel, at first 1 and 0: a modulator of responses.

    Args:
        channels: their number.
        dim: the axis of the channels; 1 for images, −1 for tokens.

    Raises:
        ValueError: `channels` is not positive, or the input has another number of them.

    Example:
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.equal(ChannelAffine(3)(x), x)
        True
    """

    def __init__(self, channels: int, *, dim: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: {channels} given, a positive number expected")
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *axes"]:
        channels = len(self.weight)
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] != channels:
            raise ValueError(
                f"x: shape {tuple(x.shape)} given, {channels} channels on axis {self.dim} expected"
            )
        shape = [1] * x.ndim
        shape[self.dim] = channels
        return x * self.weight.view(shape) + self.bias.view(shape)


def _competition(u: Tensor, temperature: float) -> Tensor:
    """softmax(u / τ) over the filters, axis 1; the maximum goes first, since u / τ may overflow."""
    if u.numel() == 0:
        return u
    return ((u - u.amax(1, keepdim=True)) / temperature).softmax(1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


def _padding(
    weight: Tensor, padding: int | Sequence[int] | str, dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns that are added before and after."""
    if padding == "valid":
        padding = 0
    if not isinstance(padding, str):
        return _pair(padding), _pair(padding)
    if padding != "same":
        raise ValueError(f"padding: {padding!r} given, numbers, 'same' or 'valid' expected")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: {temperature} given, a positive number expected")
