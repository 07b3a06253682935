import sys

import numpy as np
import pytest
import torch

from heterodox.data import DataError, GraphData, load_graph, split_edges, split_nodes
from heterodox.data.graphs import _cora, _texas, both_directions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_karate_club_is_that_of_networkx():
    club = load_graph("karate-club")
    assert club.x.shape == (34, 34) and club.num_classes == 2 and club.edge_index.shape == (2, 156)
    assert club.y[0] == 0 and club.y[33] == 1
    assert [1, 0] in club.edge_index.T.tolist() and [0, 1] in club.edge_index.T.tolist()


@pytest.mark.parametrize(
    ("name", "nodes", "features", "edges", "classes"),
    [("cora", 2708, 1433, 5278, 7), ("texas", 183, 1703, 279, 5)],
)
def test_graphs_have_the_sizes_of_the_literature(name, nodes, features, edges, classes):
    try:
        graph = load_graph(name)
    except DataError as missing:
        pytest.skip(str(missing))
    assert graph.x.shape == (nodes, features) and graph.edge_index.shape == (2, 2 * edges)
    assert graph.num_classes == classes and graph.y.min() == 0
    rows = graph.x.sum(1)
    torch.testing.assert_close(rows[rows > 0], torch.ones_like(rows[rows > 0]))
    assert torch.equal(load_graph(name, normalize=False).x.unique(), torch.tensor([0.0, 1.0]))


def test_files_are_read_in_the_order_of_the_nodes(tmp_path):
    nodes = tmp_path / "out1_node_feature_label.txt"
    nodes.write_text("node_id\tfeature\tlabel\n1\t0,1\t2\n0\t1,1\t0\n2\t0,0\t1\n")
    edges = tmp_path / "out1_graph_edges.txt"
    edges.write_text("node_id\tnode_id\n0\t1\n1\t0\n2\t2\n2\t1\n")
    x, found, y = _texas({nodes.name: nodes, edges.name: edges})
    assert x.tolist() == [[1, 1], [0, 1], [0, 0]] and y.tolist() == [0, 2, 1]
    assert both_directions(found).T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    path = tmp_path / "cora.npz"
    np.savez(
        path,
        features_data=np.float32([2, 3]),
        features_indices=np.int32([1, 0]),
        features_indptr=np.int64([0, 1, 1, 2]),
        features_shape=np.int64([3, 2]),
        edge_index=np.int64([[0], [2]]),
        labels=np.int64([0, 1, 0]),
    )
    x, found, y = _cora({"cora.npz": path})
    assert x.tolist() == [[0, 2], [0, 0], [3, 0]]


def test_a_graph_becomes_pyg_s_data():
    pytest.importorskip("torch_geometric", reason="needs torch-geometric")
    split = split_nodes(load_graph("karate-club"), seeded())
    data = split.to_pyg()
    assert data.num_nodes == 34 and data.is_undirected()
    assert torch.equal(data.train_mask, split.train_mask)
    assert "train_mask" not in load_graph("karate-club").to_pyg()


def test_without_pyg_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(ImportError, match=r"heterodox\[graph\]"):
        load_graph("karate-club").to_pyg()


def test_nodes_are_split_into_parts_that_share_none():
    club = load_graph("karate-club")
    split = split_nodes(club, seeded(), (0.5, 0.25, 0.25))
    total = split.train_mask.int() + split.val_mask.int() + split.test_mask.int()
    assert (total == 1).all() and int(split.train_mask.sum()) == 18
    assert torch.equal(split.train_mask, split_nodes(club, seeded(), (0.5, 0.25, 0.25)).train_mask)
    assert not torch.equal(split.test_mask, split_nodes(club, seeded(1)).test_mask)


@pytest.mark.parametrize("seed", [0, 1])
def test_edges_are_split_into_pairs_that_messages_do_not_know(seed):
    club = load_graph("karate-club")
    edges = {tuple(edge) for edge in club.edge_index.T.tolist()}
    train, val, test = split_edges(club, seeded(seed))
    pairs, links = [], []
    for part in (train, val, test):
        assert torch.equal(part.edge_label.bincount(minlength=2).diff(), torch.zeros(1).long())
        for (u, v), linked in zip(
            part.edge_label_index.T.tolist(), part.edge_label.tolist(), strict=True
        ):
            assert ((u, v) in edges) == bool(linked)
            pairs.append((u, v))
            links += [(u, v)] * linked
    assert len(set(pairs)) == len(pairs) and len(links) == 78
    messages = [{tuple(e) for e in part.edge_index.T.tolist()} for part in (train, val, test)]
    assert messages[0] == messages[1] < messages[2] <= edges
    for part, known in ((val, messages[1]), (test, messages[2])):
        asked = {tuple(e) for e in part.edge_label_index.T.tolist()}
        assert not asked & known
    assert len(messages[0]) == 2 * 50 and len(messages[2]) == 2 * 62


def test_non_edges_are_uniform():
    empty = torch.tensor([[0, 1], [1, 0]])
    graph = GraphData("pair", torch.eye(5), empty, torch.zeros(5).long(), 1)
    from heterodox.data.graph_splits import _non_edges

    counts = torch.zeros(25)
    for seed in range(900):
        u, v = _non_edges(graph.edge_index[:, :1], 5, 3, seeded(seed))
        counts[5 * u + v] += 1
    drawn = counts[counts > 0]
    assert len(drawn) == 9 and counts[1] == 0
    assert (drawn / 300 - 1).abs().max() < 0.2


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("data", lambda: load_graph("karate")),
        ("shares", lambda: split_nodes(load_graph("karate-club"), seeded(), (0.5, 0.4, 0.2))),
        ("shares", lambda: split_nodes(load_graph("karate-club"), seeded(), (0.98, 0.01, 0.01))),
        ("shares", lambda: split_edges(load_graph("karate-club"), seeded(), (1.0, 0.0, 0.0))),
        (
            "graph",
            lambda: split_edges(
                GraphData(
                    "full",
                    torch.eye(4),
                    both_directions(torch.combinations(torch.arange(4)).T),
                    torch.zeros(4).long(),
                    1,
                ),
                seeded(),
            ),
        ),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()
