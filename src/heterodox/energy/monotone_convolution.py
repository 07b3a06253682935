"""The deep convolutional monotone Boltzmann machine: images, hidden maps and a label in one model.

    Φ z = S (blk(S z) − Aᵀ A S z),   S = min(√((1 − m) / ‖blk‖₂), 1) of each variable at each pixel

A is a lower triangle of convolutions A_ij from layer j to a row space for layer i, with stride
H_j / H_i and so much padding that every pixel meets every tap; Aᵀ is their transposed convolutions.
blk is the block of AᵀA on a variable's own states, a transposed convolution of ones. Feng, Winston
and Kolter, TMLR 2023, arXiv 2307.04990, section 5. Cost of a step: two sweeps of convolutions and
`prox_softmax`; blocks and S are found once for a solution.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from heterodox.energy.convolution_array import Layer, checked_layers, connections_of, own_blocks
from heterodox.energy.couplings import check_monotonicity, shrinking
from heterodox.energy.fixed_point import SolverInfo, check_solver
from heterodox.energy.mean_field import Observation, check_observed, mean_field
from heterodox.energy.proximal_operator import check_alpha

# Entries up to which steps may use Φ as a matrix.
LARGEST_MATRIX = 1024

Map = Float[Tensor, "batch _ _ _"]
Flag = Bool[Tensor, "batch _ _ _"] | Float[Tensor, "batch _ _ _"]


class Scaled(NamedTuple):
    """What follows from the weights alone."""

    weights: dict[str, Tensor]
    scales: list[Float[Tensor, "channels height width"]]
    blocks: list[Float[Tensor, "variables states states height width"]]  # S blk S

    @property
    def dtype(self) -> torch.dtype:
        return self.scales[0].dtype

    def detached(self) -> "Scaled":
        weights = {key: weight.detach() for key, weight in self.weights.items()}
        return Scaled(weights, [x.detach() for x in self.scales], [x.detach() for x in self.blocks])


class StateMaps:
    """The layout of flattened layers, one behind the other.

    Attributes:
        dim: the axis of a variable's states in what `split` returns.
        size: entries of all layers.
    """

    dim = 2

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.sizes = [channels * height * width for channels, height, width, _ in layers]
        self.size = sum(self.sizes)

    def by_layer(self, x: Shaped[Tensor, "batch size"]) -> list[Shaped[Tensor, "batch _ _ _"]]:
        """Maps as `MonotoneConvBoltzmannMachine` takes them."""
        parts = zip(x.split(self.sizes, dim=1), self.layers, strict=True)
        return [part.unflatten(1, layer[:3]) for part, layer in parts]

    def split(self, x: Shaped[Tensor, "batch size"]) -> list[Shaped[Tensor, "batch _ _ _ _"]]:
        """(batch, variables, states, height, width) of each layer."""
        parts = zip(self.by_layer(x), self.layers, strict=True)
        return [_by_state(part, layer[3]) for part, layer in parts]

    def join(self, parts: Sequence[Tensor]) -> Shaped[Tensor, "batch size"]:
        """The inverse of `split`."""
        return joined(parts)

    def uniform(self, like: Tensor) -> Float[Tensor, "size"]:
        """Every state of a variable alike, in the dtype and on the device of `like`."""
        parts = [
            like.new_full((size,), 1 / layer[3])
            for size, layer in zip(self.sizes, self.layers, strict=True)
        ]
        return torch.cat(parts)


class MonotoneConvBoltzmannMachine(nn.Module):
    """A Boltzmann machine of layers of maps, whose mean field always exists once.

    Layers are visible or hidden as one likes: what is observed is said in each call, layer by layer
    and variable by variable. `info` is that of the last solution.

    Args:
        layers: (channels, height, width, states) of each. Channels are variables x states; a label
            is a layer of size 1 x 1.
        kernels: row i has i + 1 sizes, of the convolutions from layers 0 to i to row space i; 0 is
            none. All sizes of a row are equal. Rows of a layer of size 1 x 1 take a kernel as large
            as the layer that it comes from, whatever number is given.
        monotonicity: m in (0, 1); 0.01 in the authors' training.
        alpha: largest step, in (0, 1]; 0.125 in the authors' code. A smaller one is taken where
            this does not surely converge.
        tolerance: of the relative change by a step, for the solution and its gradient.
        max_iter: steps at most; a solution that ends there warns, and `info` says so.

    Raises:
        ValueError: an argument is out of range, channels are no multiple of states, sizes of
            connected layers no multiples, or a kernel is above the diagonal.

    Example:
        >>> layers = [(2, 8, 8, 2), (6, 4, 4, 3), (10, 1, 1, 10)]  # pixels, hidden, label
        >>> machine = MonotoneConvBoltzmannMachine(layers, [[3], [3, 3], [0, 1, 1]])
        >>> image = torch.nn.functional.one_hot(torch.randint(2, (5, 8, 8))).movedim(-1, 1).float()
        >>> seen = torch.rand(5, 1, 8, 8) < 0.4
        >>> pixels, hidden, label = machine([image, None, None], [seen, None, None])
        >>> label.shape, torch.allclose(pixels.sum(1), torch.ones(5, 8, 8))
        (torch.Size([5, 10, 1, 1]), True)
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        kernels: Sequence[Sequence[int]],
        *,
        monotonicity: float = 0.1,
        alpha: float = 0.125,
        tolerance: float = 1e-3,
        max_iter: int = 50,
    ) -> None:
        super().__init__()
        check_monotonicity(monotonicity)
        check_alpha(alpha)
        check_solver("anderson", tolerance, max_iter)
        self.layers = checked_layers(layers)
        self.maps = StateMaps(self.layers)
        self.connections = connections_of(self.layers, kernels)
        self.monotonicity = monotonicity
        self.alpha = alpha
        self.tolerance = tolerance
        self.max_iter = max_iter
        self.info: SolverInfo | None = None
        self.weights = nn.ParameterDict()
        for c in self.connections:
            shape = (self.layers[c.row][0], self.layers[c.source][0], *c.kernel)
            self.weights[c.key] = nn.Parameter(torch.empty(shape))
            nn.init.kaiming_uniform_(self.weights[c.key], a=math.sqrt(5))  # as nn.Conv2d
        self.biases = nn.ParameterList()
        for channels, height, width, _ in self.layers:
            bias = torch.rand(channels, height, width)
            self.biases.append(nn.Parameter(bias / bias.norm()))

    def couple(self, q: list[Map]) -> list[Map]:
        """Φ q, layer by layer.

        Raises:
            ValueError: a map is not of its layer's shape.
        """
        self._check_maps("q", q)
        scaled = self._scaled()
        working = [x.to(scaled.dtype) for x in q]
        return [y.to(x.dtype) for x, y in zip(q, self._couple(working, scaled), strict=True)]

    def potentials(self, q: list[Map]) -> list[Map]:
        """u = Φ q + b: at the fixed point q is the softmax of u over the states of a variable."""
        return [y + b.to(y.dtype) for y, b in zip(self.couple(q), self.biases, strict=True)]

    def forward(
        self,
        observed: list[Map | None] | None = None,
        mask: list[Flag | None] | None = None,
    ) -> list[Map]:
        """The mean field of every layer, given what was observed; with its exact gradient.

        Args:
            observed: for each layer its states (batch, channels, height, width), one-hot or any
                distribution over the states of a variable, or None where nothing is known. What the
                mask hides may be anything. None: nothing is known at all, and the batch is 1.
            mask: for each layer where it was observed: a flag for every variable, (batch,
                variables, height, width), or for every channel. None: everywhere.

        Raises:
            ValueError: shapes disagree, or what was observed is no distribution.
        """
        observation = self._observation(observed, mask)
        with torch.autocast(self.biases[0].device.type, enabled=False):
            scaled = self._scaled()
            q, self.info = mean_field(
                self.maps,
                observation,
                joined([b.to(scaled.dtype)[None] for b in self.biases])[0],
                self._flat_couple(scaled, 0),
                self._flat_couple(scaled.detached(), observation.batch),
                alpha=self.alpha,
                tolerance=self.tolerance,
                max_iter=self.max_iter,
            )
        maps = self.maps.by_layer(q)
        return [z.to(b.dtype) for z, b in zip(maps, self.biases, strict=True)]

    def _flat_couple(self, scaled: Scaled, batch: int) -> Callable[[Tensor], Tensor]:
        """The product with Φ of flat vectors; by a matrix where a batch repays its making."""

        def couple(q: Tensor) -> Tensor:
            return joined(self._couple(self.maps.by_layer(q), scaled))

        size = self.maps.size
        if size > LARGEST_MATRIX or 8 * batch < size:
            return couple
        with torch.no_grad():
            phi = couple(torch.eye(size, dtype=scaled.dtype, device=self.biases[0].device))
        return lambda q: q @ phi

    def _scaled(self) -> Scaled:
        dtype = torch.promote_types(self.biases[0].dtype, torch.float32)
        weights = {key: weight.to(dtype) for key, weight in self.weights.items()}
        scales, blocks = [], []
        for i, (_, height, width, states) in enumerate(self.layers):
            block = own_blocks(i, self.layers, self.connections, weights)
            factor = shrinking(block.movedim((1, 2), (-2, -1)), self.monotonicity)
            repeats = height // block.shape[-2], width // block.shape[-1]
            scale = factor.repeat(1, *repeats).repeat_interleave(states, 0)
            scales.append(scale)
            blocks.append((block * factor[:, None, None] ** 2).repeat(1, 1, 1, *repeats))
        return Scaled(weights, scales, blocks)

    def _couple(self, q: list[Tensor], scaled: Scaled) -> list[Tensor]:
        z = [x * s for x, s in zip(q, scaled.scales, strict=True)]
        rows: dict[int, Tensor] = {}
        for c in self.connections:
            part = c.apply(z[c.source], scaled.weights[c.key])
            rows[c.row] = rows[c.row] + part if c.row in rows else part
        back: dict[int, Tensor] = {}
        for c in self.connections:
            part = c.adjoint(rows[c.row], scaled.weights[c.key])
            back[c.source] = back[c.source] + part if c.source in back else part
        return [
            _own(x, block) - back[i] * scale if i in back else torch.zeros_like(x)
            for i, (x, scale, block) in enumerate(zip(q, scaled.scales, scaled.blocks, strict=True))
        ]

    def _check_maps(self, name: str, maps: Sequence[Tensor | None]) -> None:
        if len(maps) != len(self.layers):
            raise ValueError(f"{name}: {len(maps)} maps given, {len(self.layers)} expected")
        batches = {len(x) for x in maps if x is not None and x.ndim}
        for x, layer in zip(maps, self.layers, strict=True):
            if x is not None and (x.ndim != 4 or x.shape[1:] != layer[:3] or len(batches) > 1):
                raise ValueError(
                    f"{name}: shape {tuple(x.shape)} given, ('batch', *{layer[:3]}) with one batch "
                    "for all layers expected"
                )

    def _observation(
        self, observed: list[Map | None] | None, mask: list[Flag | None] | None
    ) -> Observation:
        observed = [None] * len(self.layers) if observed is None else observed
        self._check_maps("observed", observed)
        mask = [None] * len(self.layers) if mask is None else mask
        if len(mask) != len(self.layers):
            raise ValueError(f"mask: {len(mask)} maps given, {len(self.layers)} expected")
        batch = next((len(x) for x in observed if x is not None), None)
        if batch is None:
            if any(m is not None for m in mask):
                raise ValueError("mask: given without values, something observed expected")
            return Observation()
        values, held = [], []
        for x, m, bias, (channels, height, width, states) in zip(
            observed, mask, self.biases, self.layers, strict=True
        ):
            dtype = torch.promote_types(bias.dtype, torch.float32)
            if x is None:
                if m is not None:
                    raise ValueError("mask: given for a layer without values, None expected")
                x = torch.zeros(batch, channels, height, width, dtype=dtype, device=bias.device)
                flags = torch.zeros_like(x, dtype=torch.bool)
            else:
                flags = _flags(m, x, states)
                check_observed(_by_state(x, states), _by_state(flags, states))
            values.append(x.to(dtype).flatten(1))
            held.append(flags.flatten(1))
        return Observation(torch.cat(values, 1), torch.cat(held, 1))


def joined(maps: Sequence[Tensor]) -> Float[Tensor, "batch size"]:
    return torch.cat([x.flatten(1) for x in maps], 1)


def _by_state(x: Tensor, states: int) -> Shaped[Tensor, "batch variables states height width"]:
    return x.unflatten(1, (-1, states))


def _own(x: Tensor, block: Tensor) -> Tensor:
    """What the variables' own blocks make of x."""
    return torch.einsum("vsthw,bvthw->bvshw", block, _by_state(x, block.shape[1])).flatten(1, 2)


def _flags(mask: Tensor | None, values: Tensor, states: int) -> Bool[Tensor, "batch _ _ _"]:
    """One flag for every channel."""
    batch, channels, height, width = values.shape
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    if mask.shape == (batch, channels // states, height, width):
        return (mask != 0).repeat_interleave(states, 1)
    if mask.shape != values.shape:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} given, {tuple(values.shape)} or one flag for each of "
            f"the {channels // states} variables of a pixel expected"
        )
    return mask != 0
