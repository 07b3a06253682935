"""Checks of what graph learners are given."""

import torch
from torch import Tensor

from heterodox.layers.graph_conv import GAT_HEADS, ConvFactory


def check_sizes(
    in_channels: int, hidden_channels: int, num_layers: int, conv: str | ConvFactory
) -> None:
    sizes = {"in_channels": in_channels, "hidden_channels": hidden_channels}
    for name, given in (sizes | {"num_layers": num_layers}).items():
        if given < 1:
            raise ValueError(f"{name}: {given} given, a positive number expected")
    if conv == "gat" and hidden_channels % GAT_HEADS:
        raise ValueError(
            f"hidden_channels: {hidden_channels} given, a multiple of the {GAT_HEADS} heads of "
            "'gat' expected"
        )


def check_features(x: Tensor, edge_index: Tensor, in_channels: int) -> None:
    check_graph(x, edge_index)
    if x.shape[1] != in_channels:
        raise ValueError(f"x: {x.shape[1]} features given, in_channels = {in_channels} expected")
    if not bool(x.isfinite().all()):
        raise ValueError("x: values that are NaN or infinite given, finite values expected")


def check_training_dtype(x: Tensor) -> None:
    if x.dtype == torch.float16:  # where the ε of Adam is 0
        raise ValueError("x: torch.float16 given, float32, float64 or bfloat16 expected to train")


def check_graph(x: Tensor, edge_index: Tensor) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(
            f"x: {x.dtype} of shape {tuple(x.shape)} given, floating-point (nodes, features) "
            "expected"
        )
    check_edges("edge_index", edge_index, len(x))


def check_edges(name: str, edges: Tensor, nodes: int) -> None:
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.is_floating_point():
        raise ValueError(
            f"{name}: {edges.dtype} of shape {tuple(edges.shape)} given, integers (2, edges) "
            "expected"
        )
    if edges.numel() and not edges.is_meta:
        low, high = (int(end) for end in edges.aminmax())
        if low < 0 or high >= nodes:
            raise ValueError(f"{name}: nodes {low} to {high} given, 0 to {nodes - 1} expected")


def check_labels(labels: Tensor, mask: Tensor, num_classes: int, nodes: int) -> None:
    """Labels outside of `mask` may be anything: they are not looked at."""
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes} given, a positive number expected")
    if labels.shape != (nodes,) or labels.is_floating_point():
        raise ValueError(
            f"labels: {labels.dtype} of shape {tuple(labels.shape)} given, integers ({nodes},) "
            "expected"
        )
    if mask.shape != (nodes,) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: {mask.dtype} of shape {tuple(mask.shape)} given, torch.bool ({nodes},) expected"
        )
    if labels.is_meta:
        return
    known = labels[mask]
    if known.numel():
        low, high = (int(end) for end in known.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels: {low} to {high} given, 0 to {num_classes - 1} expected where the mask is "
                "true"
            )
