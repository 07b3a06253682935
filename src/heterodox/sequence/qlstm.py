"""The qLSTM: an LSTM whose gates see the input alone, so that it is linear in its state.

    h_i = λ_i ⊙ h_{i−1} + σ(g_i) ⊙ x_i,     y_i = W (gelu(z_i) ⊙ σ(o_i) ⊙ h_i)

with x a causal short convolution of a projection of the input, [f, g, o] linear in x, and z a
second projection. λ = σ(f), or in the variant proposed by "Understanding the differences in
Foundation Models", arXiv 2405.15731, the transition of S6, λ = σ(−f)^relu(α) with one
learned α. Layer and initialisation follow the authors' code. Time O(length · dim²), memory linear
in length; the recurrence is `linear_scan`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_layer_input
from heterodox.sequence.conversions import from_gated_rnn, qlstm_transition
from heterodox.sequence.scan import linear_scan
from heterodox.sequence.system import DynamicalSystem


class QLSTM(nn.Module):
    """A layer of the qLSTM.

    Args:
        dim: channels of input and output.
        expansion: the recurrence has expansion · dim channels of one state each; 2 in the authors'
            code.
        kernel_size: of the convolution before the gates; 4 in the authors' code.
        reversed_sigmoid: whether the transition is σ(−f)^relu(α), with α = 1 at first.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> layer = QLSTM(16, reversed_sigmoid=True)
        >>> layer(torch.randn(2, 10, 16)).shape
        torch.Size([2, 10, 16])
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 2,
        kernel_size: int = 4,
        reversed_sigmoid: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "expansion": expansion, "kernel_size": kernel_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        hidden = expansion * dim
        self.reversed_sigmoid = reversed_sigmoid
        self.input = nn.Linear(dim, 2 * hidden, bias=False)
        self.conv = nn.Conv1d(hidden, hidden, kernel_size, groups=hidden)
        self.gates = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, dim, bias=False)
        self.alpha = nn.Parameter(torch.ones(())) if reversed_sigmoid else None
        for layer in (self.input, self.gates, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        z, x = self._projected(x)
        transition, input_gate, output_gate = self._gates(x)
        state = linear_scan(transition, input_gate * x)
        return self.output(F.gelu(z) * output_gate * state)

    def recurrence(self, x: Float[Tensor, "batch length dim"]) -> DynamicalSystem:
        """The diagonal system inside, from the convolved channels to the gated states.

        Its transition and its memory are what tells the two variants apart.
        """
        return from_gated_rnn(*self._gates(self._projected(x)[1]))

    def dynamical_system(self, x: Float[Tensor, "batch length dim"]) -> DynamicalSystem:
        """The system that the layer is at `x`: its `run(x)` is the layer's output.

        The last kernel_size − 1 inputs, which the convolution looks back on, are part of the state,
        after the recurrence's own entries; they move on from step to step, which makes the
        transition a full matrix.
        """
        z, convolved = self._projected(x)
        transition, input_gate, output_gate = self._gates(convolved)
        batch, length, dim = x.shape
        hidden, taps = self.conv.in_channels, self.conv.kernel_size[0]
        project = self.input.weight[hidden:]
        # What the input of `lag` steps ago adds to the state now, (batch, length, hidden, dim).
        reads = [
            input_gate[..., None] * (self.conv.weight[:, 0, taps - 1 - lag, None] * project)
            for lag in range(taps)
        ]
        delays = (taps - 1) * dim
        rows = torch.cat((torch.diag_embed(transition), *reads[1:]), dim=-1)
        shift = torch.eye(hidden + delays, dtype=x.dtype, device=x.device).roll(dim, dims=0)
        shift = shift[hidden:].clone()
        shift[:dim] = 0  # here the present input comes in
        shift[:, :hidden] = 0
        enter = x.new_zeros(delays, dim)
        enter[:dim] = torch.eye(dim, dtype=x.dtype, device=x.device)[:delays]
        out = self.output.weight * (F.gelu(z) * output_gate)[..., None, :]
        bias = input_gate * torch.as_tensor(self.conv.bias)
        return DynamicalSystem(
            torch.cat((rows, shift.expand(batch, length, -1, -1)), dim=-2),
            torch.cat((reads[0], enter.expand(batch, length, -1, -1)), dim=-2),
            F.pad(out, (0, delays)),
            input_bias=F.pad(bias, (0, delays)),
        )

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and the convolved channels."""
        check_layer_input(x, self.input)
        z, x = self.input(x).chunk(2, dim=-1)
        if not x.shape[1]:  # nothing to slide a filter over
            return z, x
        return z, self.conv(F.pad(x.mT, (self.conv.kernel_size[0] - 1, 0))).mT

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """λ, σ(g) and σ(o)."""
        forget, enter, leave = self.gates(x).chunk(3, dim=-1)
        exponent = 1.0 if self.alpha is None else self.alpha
        transition = qlstm_transition(forget, self.reversed_sigmoid, exponent)
        return transition, torch.sigmoid(enter), torch.sigmoid(leave)

    def extra_repr(self) -> str:
        return f"reversed_sigmoid={self.reversed_sigmoid}"
