"""The fast path of a layer against the convolutions of PyTorch Geometric."""

import importlib.util
import sys

import pytest
import torch
from tests.learning.graphs import PlainConv, cliques
from torch import nn

from heterodox.layers.graph_conv import graph_conv
from heterodox.learning.forward_forward import row_normalize
from heterodox.learning.local_graph_layer import LocalGraphLayer
from heterodox.training.seeding import seeded

HAS_PYG = importlib.util.find_spec("torch_geometric") is not None
needs_pyg = pytest.mark.skipif(not HAS_PYG, reason="needs torch-geometric")
CONVS = [PlainConv, *(pytest.param(name, marks=needs_pyg) for name in ("gcn", "sage", "gat"))]


def layer_of(conv, inputs, width=8):
    with seeded(0):
        layer = LocalGraphLayer(graph_conv(conv, inputs, width)).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return layer


def graphs():
    """Directed, repeated edges, loops, an isolated node, and one without any edge."""
    generator = torch.Generator().manual_seed(3)
    some = torch.randint(11, (2, 30), generator=generator)  # node 11 is isolated
    return some, torch.cat([some, some[:, :4]], 1), torch.zeros(2, 0).long()


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("edges", graphs())
def test_responses_to_prepared_inputs_are_those_of_the_convolution(conv, edges):
    layer, x = layer_of(conv, 6), torch.randn(12, 6, dtype=torch.float64)
    expected = layer(x, edges)
    torch.testing.assert_close(expected, layer.conv(row_normalize(x), edges).relu())
    n = row_normalize(x)
    whole = layer.on(edges).prepare(n)
    torch.testing.assert_close(layer.respond(whole), expected)
    rows = torch.tensor([3, 11, 0])
    torch.testing.assert_close(layer.respond(whole.at(rows)), expected[rows])
    apart = layer.on(edges).prepare(n[:, :2]).beside(layer.on(edges).prepare(n[:, 2:]))
    torch.testing.assert_close(layer.respond(apart), expected)
    torch.testing.assert_close(layer.respond(layer.on(edges).prepare(n[:, :2], n[:, 2:])), expected)


@pytest.mark.parametrize("conv", CONVS)
def test_views_go_through_at_once(conv):
    layer, edges = layer_of(conv, 6), graphs()
    shared = torch.randn(12, 4, dtype=torch.float64)
    own = torch.randn(3, 12, 2, dtype=torch.float64)
    rows = torch.tensor([5, 1])
    one_graph = layer.on(edges[0]).prepare(shared, own)
    responses = layer.respond(one_graph), layer.respond(one_graph.at(rows))
    many = layer.on(*edges).prepare(shared, own)
    same_features = layer.on(*edges).prepare(torch.cat([shared, own[0]], 1))
    for v in range(3):
        x = torch.cat([shared, own[v]], 1)
        expected = layer.conv(x, edges[0]).relu()
        torch.testing.assert_close(responses[0][v], expected)
        torch.testing.assert_close(responses[1][v], expected[rows])
        torch.testing.assert_close(layer.respond(many)[v], layer.conv(x, edges[v]).relu())
        x = torch.cat([shared, own[0]], 1)
        torch.testing.assert_close(layer.respond(same_features)[v], layer.conv(x, edges[v]).relu())


@pytest.mark.parametrize("conv", CONVS)
def test_gradients_reach_the_weights_and_nothing_else(conv):
    layer, edges = layer_of(conv, 6), graphs()[0]
    x = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    layer.respond(layer.on(edges).prepare(x)).sum().backward()
    fast = [parameter.grad.clone() for parameter in layer.parameters()]
    assert x.grad is None
    layer.zero_grad()
    layer.conv(x.detach(), edges).relu().sum().backward()
    for gradient, parameter in zip(fast, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@needs_pyg
@pytest.mark.parametrize("conv", ["gcn", "sage"])
def test_a_known_term_is_not_computed_again(conv):
    layer, edges = layer_of(conv, 6), graphs()[0]
    x = torch.randn(12, 6, dtype=torch.float64)
    expected = layer.conv(x, edges).relu()
    known = layer.term(layer.on(edges).prepare(x[:, :4]))
    rest = layer.on(edges).prepare(x[:, 4:])
    torch.testing.assert_close(layer.respond(rest, known, 4), expected)


@needs_pyg
@pytest.mark.parametrize("conv", ["gcn", "sage"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_propagated_in_single_precision(conv, dtype):
    layer, edges = layer_of(conv, 6), graphs()[0]
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    expected = layer.respond(layer.on(edges).prepare(x))
    h = layer.to(dtype).respond(layer.on(edges).prepare(x.to(dtype)))
    assert h.dtype == dtype
    torch.testing.assert_close(h.double(), expected, rtol=0.05, atol=0.1)


@needs_pyg
def test_unusual_settings_of_a_convolution_are_called_and_not_guessed():
    from torch_geometric.nn import GCNConv, SAGEConv

    class Custom(GCNConv):
        def forward(self, x, edge_index):
            return 2 * super().forward(x, edge_index)

    unusual = [
        Custom(6, 8),
        GCNConv(6, 8, normalize=False, add_self_loops=False),
        GCNConv(6, 8, flow="target_to_source"),
        SAGEConv(6, 8, aggr="max"),
        SAGEConv(6, 8, normalize=True),
        SAGEConv(6, 8, project=True),
        SAGEConv(6, 8, root_weight=False),
    ]
    usual = [
        GCNConv(6, 8, improved=True),
        GCNConv(6, 8, bias=False),
        GCNConv(6, 8, add_self_loops=False),
        SAGEConv(6, 8, bias=False),
    ]
    edges, x = graphs()[1], torch.randn(12, 6)
    for conv in (*unusual, *usual):
        layer = LocalGraphLayer(conv)
        assert layer.is_linear == (conv in usual)
        torch.testing.assert_close(
            layer.respond(layer.on(edges).prepare(row_normalize(x))), layer(x, edges)
        )


@needs_pyg
def test_convolutions_have_the_defaults_of_pyg():
    names = {name: str(graph_conv(name, 3, 8)) for name in ("gcn", "sage", "gat")}
    assert names == {
        "gcn": "GCNConv(3, 8)",
        "sage": "SAGEConv(3, 8, aggr=mean)",
        "gat": "GATConv(3, 2, heads=4)",
    }
    data = cliques()
    assert graph_conv("gat", 5, 8).double()(data.x, data.edge_index).shape == (12, 8)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("conv", lambda: graph_conv("cheb", 3, 8)),
        ("in_channels", lambda: graph_conv("gcn", 0, 8)),
        ("out_channels", lambda: graph_conv("gcn", 3, 0)),
        ("out_channels", lambda: graph_conv("gat", 3, 6)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


def test_without_pyg_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ImportError, match=r"heterodox\[graph\]"):
        graph_conv("gcn", 3, 8)
