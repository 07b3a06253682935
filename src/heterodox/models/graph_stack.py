"""Graph convolutions one after the other, for training by backpropagation."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.layers.graph_conv import ConvFactory, graph_conv


class GraphStack(nn.Module):
    """Convolutions with relu and dropout between them; the last one makes the outputs.

    Args:
        in_channels, hidden_channels, out_channels: widths.
        num_layers: convolutions in all, at least 1.
        conv: "gcn", "sage", or a factory; see `heterodox.layers.graph_conv`.
        dropout: probability with which an input of a convolution is dropped in training.

    Raises:
        ValueError: an unknown name, or a number out of range.

    Example:
        >>> class Same(nn.Linear):
        ...     def forward(self, x, edge_index):
        ...         return super().forward(x)
        >>> import torch
        >>> GraphStack(5, 16, 3, conv=Same)(torch.rand(4, 5), torch.zeros(2, 0).long()).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        conv: str | ConvFactory = "gcn",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: {num_layers} given, a positive number expected")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: {dropout} given, a number in [0, 1) expected")
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList(
            graph_conv(conv, widths[j], widths[j + 1]) for j in range(num_layers)
        )
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "nodes features"], edge_index: Int[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes outputs"]:
        for j, conv in enumerate(self.convs):
            x = F.relu(x) if j else x
            x = conv(F.dropout(x, self.dropout, self.training), edge_index)
        return x
