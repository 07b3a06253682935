"""Layers whose weights learn only outside of the subspace that old inputs span.

    forward  z = W x;   backward  ∂L/∂x = Wᵀ g,   ∂L/∂W = g (x - x̂)ᵀ = (g xᵀ)(I - HᵀH)

with H the frozen rows of a `HebbianSubspace`. For any x in their span, W x then stays what it was
through every step of gradient descent. Projecting the finished gradient is the same as projecting
every input; what is cheaper is done, but for lateral neurons that spike, which are no linear map
and project inputs. For a convolution x are patches. In place of x a trace may be given, as online
training has it. Xiao et al., ICLR 2024, arXiv 2402.11984.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from heterodox.continual.hebbian_subspace import HebbianSubspace


class ProjectedWeight(Function):
    """The weight itself; backward, its gradient less the part in the span of H."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        flat = grad.flatten(1)
        return (flat - (flat @ rows.T) @ rows).view_as(grad), None


class LinearWithTrace(Function):
    """W x; backward, the weight's gradient has the trace where x would stand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trace: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(trace, weight)
        ctx.dtype = x.dtype
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        trace, weight = ctx.saved_tensors
        # Under autocast the gradient is in half precision, what was saved is not.
        flat = trace.reshape(-1, weight.shape[1]).to(grad.dtype)
        grad_weight = (grad.reshape(-1, len(weight)).T @ flat).to(weight.dtype)
        return (grad @ weight.to(grad.dtype)).to(ctx.dtype), None, grad_weight


class ProjectedLinear(nn.Linear):
    """A linear layer with a bank of subspace neurons; `OrthogonalProjection` switches it.

    Args:
        in_features, out_features, bias: as in `nn.Linear`; no bias, as in the paper. A bias is not
            projected: freeze it after the first task.
        subspace: the bank; by default an empty one of its own.

    Attributes:
        projecting: whether gradients are projected by the bank's frozen rows; False at first.
        learning: whether in training mode the bank learns from the inputs; False at first.

    Raises:
        ValueError: the bank is for another number of inputs.

    Example:
        >>> layer = ProjectedLinear(4, 2)
        >>> layer.subspace.add_frozen(torch.eye(4)[:1])
        >>> layer.projecting = True
        >>> layer(torch.ones(3, 4)).sum().backward()
        >>> layer.weight.grad[0]
        tensor([0., 3., 3., 3.])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        subspace: HebbianSubspace | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.subspace = _bank(subspace, in_features)
        self.projecting = self.learning = False

    def forward(
        self,
        x: Float[Tensor, "... in_features"],
        trace: Float[Tensor, "... in_features"] | None = None,
        *,
        learn_from: Float[Tensor, "... in_features"] | None = None,
    ) -> Float[Tensor, "... out_features"]:
        """W x, and the bias.

        Args:
            x: the inputs.
            trace: what stands for x in the weight's gradient (OTTT); it has no gradient itself.
            learn_from: what the bank learns from; by default x, and the trace if there is one. DSR
                gives it the weighted rate of x.

        Raises:
            ValueError: a wrong number of features, or a trace of another shape than x.
        """
        _check_input("x", x, self.in_features)
        _check_trace(x, trace)
        few = x.numel() < x.shape[-1] * self.out_features
        weight, rest = _projected(self, self.weight, x, trace, inputs_are_few=few)
        if self.learning and self.training:
            known = rest if trace is None and self.projecting else None
            _learn(self.subspace, x, trace, learn_from, known)
        if rest is None:
            return F.linear(x, weight, self.bias)
        z = LinearWithTrace.apply(x, rest.detach(), weight)
        return z if self.bias is None else z + self.bias


class ProjectedConv2d(nn.Conv2d):
    """A convolution with a bank of subspace neurons, for patches of all channels.

    Args:
        as in `nn.Conv2d`, without bias by default; `groups` must be 1 and padding zeros.
        subspace: the bank, for in_channels · kernel height · kernel width inputs; by default an
            empty one of its own.

    Attributes:
        projecting, learning: as in `ProjectedLinear`.

    Raises:
        ValueError: `groups` is not 1, padding is not zeros, or the bank is for another size.

    Example:
        >>> layer = ProjectedConv2d(3, 8, 3, padding=1)
        >>> layer.subspace.in_features, layer(torch.zeros(2, 3, 5, 5)).shape
        (27, torch.Size([2, 8, 5, 5]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        subspace: HebbianSubspace | None = None,
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups: {groups} given, 1 expected")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: {padding_mode!r} given, 'zeros' expected")
        if isinstance(padding, str):
            raise ValueError(f"padding: {padding!r} given, numbers expected")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias
        )
        height, width = self.kernel_size
        self.subspace = _bank(subspace, in_channels * height * width)
        self.projecting = self.learning = False

    def forward(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        trace: Float[Tensor, "batch in_channels height width"] | None = None,
        *,
        learn_from: Float[Tensor, "other in_channels height width"] | None = None,
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The convolution; arguments and errors as for `ProjectedLinear`."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x: shape {tuple(x.shape)} given, (batch, {self.in_channels}, height, width) "
                "expected"
            )
        _check_trace(x, trace)
        if self.learning and self.training:
            patches = [None if y is None else self.patches(y) for y in (x, trace, learn_from)]
            _learn(self.subspace, patches[0], *patches[1:])  # type: ignore[arg-type]
        spiking = self.subspace.quantization is not None and self.projecting
        if trace is None and not spiking:
            weight, _ = _projected(self, self.weight, x, None, inputs_are_few=False)
            return self._conv_forward(x, weight, self.bias)
        patches_of_x = self.patches(x)
        given = None if trace is None else self.patches(trace)
        weight, given = _projected(
            self, self.weight.flatten(1), patches_of_x, given, inputs_are_few=False
        )
        assert given is not None
        z = LinearWithTrace.apply(patches_of_x, given.detach(), weight).transpose(1, 2)
        z = z if self.bias is None else z + self.bias[:, None]
        return z.unflatten(2, self._out_size(x))

    def patches(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch places features"]:
        """What the kernel sees, place by place; zeros of the padding included."""
        return F.unfold(
            x,
            self.kernel_size,
            dilation=self.dilation,
            padding=self.padding,  # type: ignore[arg-type]
            stride=self.stride,
        ).transpose(1, 2)

    def _out_size(self, x: Tensor) -> tuple[int, int]:
        assert not isinstance(self.padding, str)
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                x.shape[2:],
                self.padding,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )
        return height, width


def _projected(
    layer: ProjectedLinear | ProjectedConv2d,
    weight: Tensor,
    x: Tensor,
    trace: Tensor | None,
    *,
    inputs_are_few: bool,
) -> tuple[Tensor, Tensor | None]:
    """The weight and the trace with which a plain layer has the projected gradient."""
    subspace = layer.subspace
    if not layer.projecting or subspace.num_frozen == 0:
        return weight, trace
    if subspace.quantization is None and not inputs_are_few:
        return ProjectedWeight.apply(weight, subspace.frozen), trace
    with torch.no_grad():
        return weight, subspace.project_out(x if trace is None else trace)


def _learn(
    subspace: HebbianSubspace,
    x: Tensor,
    trace: Tensor | None,
    learn_from: Tensor | None,
    rest: Tensor | None = None,
) -> None:
    if learn_from is not None:
        subspace.learn(learn_from)
    elif trace is None:
        subspace.learn(x, rest=rest)
    else:
        subspace.learn(torch.cat([y.reshape(-1, x.shape[-1]) for y in (x, trace)]))


def _bank(subspace: HebbianSubspace | None, in_features: int) -> HebbianSubspace:
    if subspace is None:
        return HebbianSubspace(in_features)
    if subspace.in_features != in_features:
        raise ValueError(
            f"subspace: for {subspace.in_features} inputs given, for {in_features} expected"
        )
    return subspace


def _check_input(name: str, x: Tensor, in_features: int) -> None:
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{name}: shape {tuple(x.shape)} given, (..., {in_features}) expected")


def _check_trace(x: Tensor, trace: Tensor | None) -> None:
    if trace is not None and trace.shape != x.shape:
        raise ValueError(f"trace: shape {tuple(trace.shape)} given, x's {tuple(x.shape)} expected")
