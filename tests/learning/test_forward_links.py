"""ForwardLinkPredictor against its methods written out with plain convolutions."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from tests.learning.graphs import PlainConv, links

from heterodox.data import load_graph, split_edges
from heterodox.learning.forward_graph import ForwardLinkPredictor
from heterodox.learning.forward_links import METHODS, area_under_curve
from heterodox.training.seeding import seeded

HAS_PYG = importlib.util.find_spec("torch_geometric") is not None
needs_pyg = pytest.mark.skipif(not HAS_PYG, reason="needs torch-geometric")
CONVS = [PlainConv, *(pytest.param(name, marks=needs_pyg) for name in ("gcn", "sage", "gat"))]


def predictor(method="sf", conv=PlainConv, layers=3, **options):
    with seeded(1):
        model = ForwardLinkPredictor(15, 8, num_layers=layers, conv=conv, method=method, **options)
    return model.double()


def unit(h):
    return h / (h.norm(dim=1, keepdim=True) + 1e-8)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=5e-4)


def judged(h, data, method, theta=2.0):
    """Loss and scores of one layer."""
    u, v = data.edge_label_index
    z = h[u] * h[v]
    if method == "ff":
        logits = z.square().sum(1) - theta
        linked = data.edge_label == 1
        loss = F.softplus(-logits[linked]).mean() + F.softplus(logits[~linked]).mean()
        return loss, logits.sigmoid().detach()
    logits = z.sum(1)
    loss = F.binary_cross_entropy(logits.sigmoid(), data.edge_label.double())
    return loss, logits.sigmoid().detach()


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("method", ["sf", "ff"])
def test_each_layer_learns_from_pairs_of_its_own_responses(conv, method):
    data, model = links(), predictor(method, conv, theta=1.0 if method == "ff" else 2.0)
    layers, x, scores = copy.deepcopy(model.layers), data.x, 0
    model.fit(data, epochs=4, lr=0.01)
    for layer in layers:
        optimizer = adam(layer)
        for _ in range(4):
            loss, _ = judged(layer(x, data.edge_index), data, method, 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = layer(x, data.edge_index).detach()
        scores = scores + judged(x, data, method, 1.0)[1] / 3
    for a, b in zip(model.layers.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(model.score(data), scores)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_top_to_input_has_nothing_above_the_last_layer(conv, count):
    data, model = links(), predictor("sf-top-input", conv, count)
    layers = copy.deepcopy(model.layers)
    model.fit(data, epochs=4, lr=0.01)
    optimizers = [adam(layer) for layer in layers]

    def respond(j, states, nothing=False):
        below = unit(data.x) if j == 0 else states[j - 1]
        parts = [below]
        if j + 1 < count:
            parts.append(torch.zeros(15, 8).double() if nothing else states[j + 1])
        return layers[j].conv(torch.cat(parts, 1), data.edge_index).relu()

    def started():
        states = []
        for j in range(count):
            states.append(unit(respond(j, states, nothing=True).detach()))
        return states

    def moved(states, each):
        for first in (0, 1):
            for j in range(first, count, 2):
                h = respond(j, states)
                each(j, h)
                states[j] = unit(h.detach())

    def learn(j, h):
        loss, _ = judged(h, data, "sf")
        optimizers[j].zero_grad()
        loss.backward()
        optimizers[j].step()

    states = started()
    for _ in range(4):
        moved(states, learn)
    for a, b in zip(model.layers.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    states, scores = started(), []
    for step in range(10):
        moved(states, lambda j, h, s=step: s >= 2 and scores.append(judged(h, data, "sf")[1]))
    torch.testing.assert_close(model.score(data), torch.stack(scores).mean(0))


@pytest.mark.parametrize("method", METHODS)
def test_cliques_are_linked_inside(method):
    data, model = links(), predictor(method, layers=2)
    model.fit(data, epochs=150, lr=0.02)
    scores = model.score(data)
    assert area_under_curve(scores, data.edge_label) > 0.95
    assert scores.min() >= 0 and scores.max() <= 1 and not scores.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_of_the_best_validation_area_are_put_back(method):
    data, val = links(), links()
    val.edge_label_index, val.edge_label = val.edge_label_index[:, ::2], val.edge_label[::2]
    model = predictor(method, layers=2)
    history = model.fit(data, val, epochs=30, lr=0.05, patience=4)
    assert len(history) == (1 if method == "sf-top-input" else 2)
    found = roc_auc_score(val.edge_label.numpy(), model.score(val).numpy())
    assert history[-1].best == pytest.approx(found)


def test_the_area_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=generator)
    for scores in (torch.rand(80, generator=generator), torch.randint(4, (80,)).float()):
        expected = roc_auc_score(labels.numpy(), scores.numpy())
        assert area_under_curve(scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_pairs_do_not_matter_for_scores(method):
    data, model = links(), predictor(method)
    model.fit(data, epochs=2)
    scores = model.score(data)
    data.edge_label = 1 - data.edge_label
    assert torch.equal(model.score(data), scores)
    del data.edge_label
    assert torch.equal(model.score(data), scores)
    data.edge_index = data.edge_index[:, :0]
    assert model.score(data).isfinite().all()


@needs_pyg
def test_pyg_s_random_link_split_is_understood():
    from torch_geometric.transforms import RandomLinkSplit

    with seeded(0):
        split = RandomLinkSplit(0.16, 0.2, is_undirected=True)
        train, val, test = split(load_graph("karate-club").to_pyg())
        model = ForwardLinkPredictor(34, 16, num_layers=2)
    model.fit(train, val, epochs=20)
    assert model.score(test).shape == test.edge_label.shape


@needs_pyg
@pytest.mark.parametrize("method", METHODS)
def test_links_of_the_karate_club_are_better_than_chance(method):
    train, val, test = split_edges(load_graph("karate-club"), torch.Generator().manual_seed(2))
    with seeded(0):
        model = ForwardLinkPredictor(34, 32, num_layers=2, method=method)
    model.fit(train, val, epochs=100, lr=0.01)
    assert area_under_curve(model.score(test), test.edge_label) > 0.5


def broken(**changes):
    data = links()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("method", lambda: predictor("sf-top-loss")),
        ("num_layers", lambda: predictor(layers=0)),
        ("hidden_channels", lambda: ForwardLinkPredictor(5, 6, conv="gat")),
        ("theta", lambda: predictor(theta=float("inf"))),
        ("epochs", lambda: predictor().fit(links(), epochs=-1)),
        ("train_data", lambda: predictor().fit(broken(edge_label=None))),
        ("val_data", lambda: predictor().fit(links(), broken(edge_label_index=None))),
        ("train_data", lambda: predictor().fit(broken(edge_label=torch.ones(12)))),
        ("train_data", lambda: predictor().fit(broken(edge_label=torch.arange(12)))),
        ("train_data", lambda: predictor().fit(broken(edge_label=torch.ones(3)))),
        (
            "edge_label_index",
            lambda: predictor().score(broken(edge_label_index=15 * torch.ones(2, 1).long())),
        ),
        ("x", lambda: predictor().score(broken(x=torch.ones(15, 3).double()))),
        ("data", lambda: predictor().score(broken(edge_index=None))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()
