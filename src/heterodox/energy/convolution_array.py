"""A lower triangle of convolutions between layers of maps, with its transpose and its own blocks.

    row i:  Σ_j A_ij z_j,  j ≤ i,   stride H_j / H_i,  padding ⌈(stride (k − 2) + k) / 2⌉ ("full")

The row space of layer i has H_i + k − 1 pixels, so that every pixel of layer j meets every tap that
its place in the stride admits: the block of AᵀA on a variable's own states is the same at every
pixel, up to that place. Feng, Winston and Kolter, TMLR 2023, arXiv 2307.04990, section 5.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Layer = tuple[int, int, int, int]
"""(channels, height, width, states): variable v has the channels from v · states on."""

Pair = tuple[int, int]


class Connection(NamedTuple):
    """The convolution A_ij from layer j, `source`, to the row space of layer i, `row`."""

    row: int
    source: int
    kernel: Pair
    stride: Pair
    padding: Pair
    source_size: Pair
    row_size: Pair

    @property
    def key(self) -> str:
        return f"{self.row}_{self.source}"

    @property
    def dense(self) -> bool:
        """Whether the kernel is as large as the layer, each pixel with a tap of its own."""
        return self.kernel == self.source_size and self.padding == (0, 0)

    def apply(self, z: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(z, weight, stride=self.stride, padding=self.padding)

    def adjoint(self, rows: Tensor, weight: Tensor) -> Tensor:
        height, width = (
            n - ((r - 1) * s - 2 * p + k)
            for n, r, s, p, k in zip(
                self.source_size, self.row_size, self.stride, self.padding, self.kernel, strict=True
            )
        )
        return F.conv_transpose2d(
            rows, weight, None, self.stride, self.padding, output_padding=(height, width)
        )


def checked_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers as tuples; ValueError unless each has four positive numbers that fit."""
    if len(layers) == 0:
        raise ValueError("layers: none given, at least one expected")
    for layer in layers:
        if len(layer) != 4 or not all(isinstance(n, int) and n >= 1 for n in layer):
            raise ValueError(
                f"layers: {tuple(layer)} given, positive (channels, height, width, states) expected"
            )
        if layer[0] % layer[3]:
            raise ValueError(
                f"layers: {layer[0]} channels given, a multiple of the {layer[3]} states expected"
            )
    return tuple((c, h, w, s) for c, h, w, s in layers)


def connections_of(
    layers: Sequence[Layer], kernels: Sequence[Sequence[int]]
) -> tuple[Connection, ...]:
    """All A_ij whose kernel is not 0.

    Raises:
        ValueError: the kernels are no lower triangle, or sizes do not fit.
    """
    if len(kernels) != len(layers):
        raise ValueError(f"kernels: {len(kernels)} rows given, one for each layer expected")
    found = []
    for i, row in enumerate(kernels):
        if len(row) < i + 1 or any(row[i + 1 :]):
            raise ValueError(
                f"kernels: {list(row)} given for row {i}, {i + 1} sizes up to the diagonal expected"
            )
        if not all(isinstance(k, int) and k >= 0 for k in row):
            raise ValueError(f"kernels: {list(row)} given, sizes of at least 0 expected")
        size = layers[i][1:3]
        if size != (1, 1) and len({k for k in row if k}) > 1:
            raise ValueError(f"kernels: {list(row)} given for row {i}, one size in a row expected")
        found += [
            _dense(i, j, layers[j]) if size == (1, 1) else _strided(i, j, k, layers[j], size)
            for j, k in enumerate(row[: i + 1])
            if k
        ]
    return tuple(found)


def _dense(row: int, source: int, layer: Layer) -> Connection:
    size = layer[1:3]
    return Connection(row, source, size, (1, 1), (0, 0), size, (1, 1))


def _strided(row: int, source: int, k: int, layer: Layer, size: Pair) -> Connection:
    big = layer[1:3]
    if any(large % small for large, small in zip(big, size, strict=True)):
        raise ValueError(
            f"layers: {big} and {size} pixels given for connected layers {source} and {row}, "
            "multiples expected"
        )
    stride = big[0] // size[0], big[1] // size[1]
    padding = (_full(stride[0], k), _full(stride[1], k))
    return Connection(row, source, (k, k), stride, padding, big, (size[0] + k - 1, size[1] + k - 1))


def _full(stride: int, k: int) -> int:
    return math.ceil((stride * (k - 2) + k) / 2)


def own_blocks(
    layer: int,
    layers: Sequence[Layer],
    connections: Sequence[Connection],
    weights: Mapping[str, Tensor],
) -> Float[Tensor, "variables states states rows columns"]:
    """A_iᵀ A_i of every variable of a layer, at each pixel of one period.

    `rows` and `columns` divide the layer's height and width, where the blocks repeat themselves.
    """
    channels, height, width, states = layers[layer]
    variables = channels // states
    below = [c for c in connections if c.source == layer]
    like = next(iter(weights.values()))
    total = like.new_zeros(variables, states, states, height, width)
    for c in below:
        taps = weights[c.key].unflatten(1, (variables, states))
        products = torch.einsum("ovsyx,ovtyx->vstyx", taps, taps).flatten(0, 2)[None]
        ones = like.new_ones(1, 1, *c.row_size)
        total = total + c.adjoint(ones, products)[0].view_as(total)
    if any(c.dense for c in below):
        return total
    rows, columns = (math.lcm(1, *(c.stride[axis] for c in below)) for axis in (0, 1))
    return total[..., :rows, :columns]
