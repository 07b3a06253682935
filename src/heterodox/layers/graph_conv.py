"""Graph convolutions of PyTorch Geometric by name."""

from collections.abc import Callable

from torch import nn

GRAPH_CONVS = ("gcn", "sage", "gat")
GAT_HEADS = 4

ConvFactory = Callable[[int, int], nn.Module]
"""`(in_channels, out_channels) -> Module`, called as `conv(x, edge_index)`."""


def graph_conv(conv: str | ConvFactory, in_channels: int, out_channels: int) -> nn.Module:
    """A graph convolution with the defaults of PyTorch Geometric.

    Args:
        conv: "gcn" (symmetric normalisation, self-loops), "sage" (mean of the neighbours beside the
            node itself), "gat" (4 heads side by side), or a factory.
        in_channels, out_channels: widths; for "gat", `out_channels` is a multiple of 4.

    Raises:
        ValueError: an unknown name, or a width that is not positive or not divided by the heads.
        ImportError: PyTorch Geometric is needed and not installed.

    Example:
        >>> graph_conv(lambda i, o: nn.Linear(i, o), 3, 4)
        Linear(in_features=3, out_features=4, bias=True)
    """
    if in_channels < 1:
        raise ValueError(f"in_channels: {in_channels} given, a positive number expected")
    if out_channels < 1:
        raise ValueError(f"out_channels: {out_channels} given, a positive number expected")
    if callable(conv):
        return conv(in_channels, out_channels)
    if conv not in GRAPH_CONVS:
        raise ValueError(
            f"conv: {conv!r} given, one of {', '.join(GRAPH_CONVS)} or a callable expected"
        )
    if conv == "gat" and out_channels % GAT_HEADS:
        raise ValueError(
            f"out_channels: {out_channels} given, a multiple of {GAT_HEADS} expected, the heads of "
            "'gat'"
        )
    try:
        from torch_geometric.nn import GATConv, GCNConv, SAGEConv
    except ImportError as error:
        raise ImportError(
            f'{conv}: PyTorch Geometric is needed, pip install "heterodox[graph]"'
        ) from error
    if conv == "gcn":
        return GCNConv(in_channels, out_channels)
    if conv == "sage":
        return SAGEConv(in_channels, out_channels)
    return GATConv(in_channels, out_channels // GAT_HEADS, heads=GAT_HEADS)
