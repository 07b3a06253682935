"""A sequence mixer as a linear time-varying system, whose matrices the inputs may decide on.

    h_i = Λ_i h_{i−1} + B_i u_i,     y_i = C_i h_i + D_i u_i,     h_{−1} = 0

or all at once, y_i = Σ_{j≤i} Φ_ij u_j with Φ_ij = C_i Λ_i ⋯ Λ_{j+1} B_j, and D_i added where i = j.
Sieber, Amo Alonso, Didier, Zeilinger, Orvieto, "Understanding the differences in Foundation Models:
Attention, State Space Models, and Recurrent Neural Networks", NeurIPS 2024, arXiv 2405.15731:
the dynamical systems framework, where Λ_i is diagonal. Time and memory
O(length · states · channels): made for looking into a mixer, not for training one.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.sequence.scan import linear_scan


@dataclass(frozen=True)
class DynamicalSystem:
    """Λ, B, C and D of every position; leading axes are batches and heads.

    Of a state with n entries for each channel, those of the first channel come first, then those of
    the second. The paper's Λ_i is diagonal and is given by its diagonal; a full matrix, which the
    delta rule and a convolution before a recurrence need, is our extension, and so are the two
    biases, without which a layer whose projections have biases is no such system.

    Args:
        transition: Λ, (..., length, states), or (..., length, states, states) where it is full.
        input_matrix: B.
        output_matrix: C.
        feedthrough: D; None is 0.
        input_bias: added to the state's update; None is 0.
        output_bias: added to the output; None is 0.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> decay, one = torch.full((4, 1), 0.5), torch.ones(4, 1, 1)
        >>> system = DynamicalSystem(decay, one, one)
        >>> system.run(torch.tensor([[8.0], [0.0], [0.0], [1.0]])).flatten()
        tensor([8., 4., 2., 2.])
        >>> system.memory(2).flatten()
        tensor([0.2500, 0.5000, 1.0000])
    """

    transition: Float[Tensor, "..."]
    input_matrix: Float[Tensor, "*batch length states channels"]
    output_matrix: Float[Tensor, "*batch length outputs states"]
    feedthrough: Float[Tensor, "*batch length outputs channels"] | None = None
    input_bias: Float[Tensor, "*batch length states"] | None = None
    output_bias: Float[Tensor, "*batch length outputs"] | None = None

    def __post_init__(self) -> None:
        if self.input_matrix.ndim < 3:
            raise ValueError(
                f"input_matrix: shape {tuple(self.input_matrix.shape)} given, "
                "(..., length, states, channels) expected"
            )
        *batch, states, channels = self.input_matrix.shape
        outputs = self.output_matrix.shape[-2] if self.output_matrix.ndim > 1 else "outputs"
        expected = {
            "transition": (*batch, states, states) if self.is_dense else (*batch, states),
            "output_matrix": (*batch, outputs, states),
            "feedthrough": (*batch, outputs, channels),
            "input_bias": (*batch, states),
            "output_bias": (*batch, outputs),
        }
        for name, shape in expected.items():
            given = getattr(self, name)
            if given is not None and given.shape != shape:
                raise ValueError(f"{name}: shape {tuple(given.shape)} given, {shape} expected")

    @property
    def state_size(self) -> int:
        return self.input_matrix.shape[-2]

    @property
    def length(self) -> int:
        return self.input_matrix.shape[-3]

    @property
    def is_dense(self) -> bool:
        """Whether Λ is given as full matrices."""
        return self.transition.ndim == self.input_matrix.ndim

    def states(
        self,
        inputs: Float[Tensor, "*batch length channels"],
        initial_state: Float[Tensor, "*batch states"] | None = None,
    ) -> Float[Tensor, "*batch length states"]:
        """h_0, h_1, ..., from h_{−1} = `initial_state`, by default 0.

        Raises:
            ValueError: `inputs` or `initial_state` have another shape.
        """
        shape = (*self.input_matrix.shape[:-2], self.input_matrix.shape[-1])
        if inputs.shape != shape:
            raise ValueError(f"inputs: shape {tuple(inputs.shape)} given, {shape} expected")
        state_shape = (*shape[:-2], self.state_size)
        if initial_state is not None and initial_state.shape != state_shape:
            raise ValueError(
                f"initial_state: shape {tuple(initial_state.shape)} given, {state_shape} expected"
            )
        driven = _apply(self.input_matrix, inputs)
        if self.input_bias is not None:
            driven = driven + self.input_bias
        if not self.is_dense:
            return linear_scan(self.transition, driven, initial_state)
        state = driven.new_zeros(state_shape) if initial_state is None else initial_state
        states = []
        for transition, update in zip(self.transition.unbind(-3), driven.unbind(-2), strict=True):
            state = _apply(transition, state) + update
            states.append(state)
        return torch.stack(states, dim=-2) if states else driven

    @overload
    def run(
        self,
        inputs: Float[Tensor, "*batch length channels"],
        initial_state: Float[Tensor, "*batch states"] | None = None,
        return_state: Literal[False] = False,
    ) -> Float[Tensor, "*batch length outputs"]: ...

    @overload
    def run(
        self,
        inputs: Float[Tensor, "*batch length channels"],
        initial_state: Float[Tensor, "*batch states"] | None = None,
        *,
        return_state: Literal[True],
    ) -> tuple[Float[Tensor, "*batch length outputs"], Float[Tensor, "*batch states"]]: ...

    def run(
        self,
        inputs: Float[Tensor, "*batch length channels"],
        initial_state: Float[Tensor, "*batch states"] | None = None,
        return_state: bool = False,
    ) -> (
        Float[Tensor, "*batch length outputs"]
        | tuple[Float[Tensor, "*batch length outputs"], Float[Tensor, "*batch states"]]
    ):
        """The outputs, and with `return_state` the last state, from which a next piece goes on.

        Raises:
            ValueError: as `states`; or `return_state` of no positions.
        """
        states = self.states(inputs, initial_state)
        outputs = _apply(self.output_matrix, states)
        if self.feedthrough is not None:
            outputs = outputs + _apply(self.feedthrough, inputs)
        if self.output_bias is not None:
            outputs = outputs + self.output_bias
        if not return_state:
            return outputs
        if not self.length:
            raise ValueError("return_state: True given, False expected for a length of 0")
        return outputs, states[..., -1, :]

    def kernel(self) -> Float[Tensor, "*batch length length outputs channels"]:
        """Φ, at [..., i, j, :, :] what position j puts into output i, and 0 for j > i.

        The outputs are `einsum("...ijoc,...jc->...io", kernel, inputs)`, biases apart.
        """
        rows = []
        carried = self.input_matrix[..., :0, :, :]  # Λ_i ⋯ Λ_{j+1} B_j for all j up to i
        for i in range(self.length):
            transition = self.transition.select(self.input_matrix.ndim - 3, i).unsqueeze(
                self.input_matrix.ndim - 3
            )
            moved = transition @ carried if self.is_dense else transition[..., None] * carried
            carried = torch.cat((moved, self.input_matrix[..., i : i + 1, :, :]), dim=-3)
            row = self.output_matrix[..., i : i + 1, :, :] @ carried
            if self.feedthrough is not None:
                row = torch.cat(
                    (row[..., :-1, :, :], row[..., -1:, :, :] + self.feedthrough[..., [i], :, :]),
                    dim=-3,
                )
            later = row.new_zeros(*row.shape[:-3], self.length - i - 1, *row.shape[-2:])
            rows.append(torch.cat((row, later), dim=-3))
        if not rows:
            *batch, outputs, _ = self.output_matrix.shape
            return self.input_matrix.new_zeros(*batch, 0, outputs, self.input_matrix.shape[-1])
        return torch.stack(rows, dim=-4)

    def memory(self, i: int) -> Float[Tensor, "*batch positions states"]:
        """|Λ_i ⋯ Λ_{j+1}| for j = 0, ..., i: what is left at i of each entry of the state at j.

        For full matrices, the singular values of the product, the largest first.

        Raises:
            ValueError: `i` is no position.
        """
        if not 0 <= i < self.length:
            raise ValueError(f"i: {i} given, a position below {self.length} expected")
        if not self.is_dense:
            later = self.transition[..., 1 : i + 1, :].abs().flip(-2)
            one = torch.ones_like(self.transition[..., :1, :])
            return torch.cat((one, later.cumprod(-2)), dim=-2).flip(-2)
        product = torch.eye(self.state_size).to(self.transition)
        products = [product.expand_as(self.transition[..., 0, :, :])]
        for j in range(i, 0, -1):
            products.append(products[-1] @ self.transition[..., j, :, :])
        return torch.linalg.svdvals(torch.stack(products[::-1], dim=-3))

    def to(self, *args: torch.dtype | torch.device | str) -> "DynamicalSystem":
        """The same system in another dtype or on another device, as `Tensor.to`."""
        moved: dict[str, Any] = {
            field.name: None if (x := getattr(self, field.name)) is None else x.to(*args)
            for field in fields(self)
        }
        return DynamicalSystem(**moved)


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
