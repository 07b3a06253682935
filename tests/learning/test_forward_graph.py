"""ForwardGNN against its methods written out with plain convolutions and whole graphs."""

import copy
import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.learning.graphs import PlainConv, cliques

from heterodox.data import load_graph, split_nodes
from heterodox.learning.forward_graph import (
    METHODS,
    ForwardGNN,
    add_virtual_nodes,
    append_labels,
    single_forward_logits,
    wrong_labels,
)
from heterodox.training.seeding import seeded

HAS_PYG = importlib.util.find_spec("torch_geometric") is not None
needs_pyg = pytest.mark.skipif(not HAS_PYG, reason="needs torch-geometric")
CONVS = [PlainConv, *(pytest.param(name, marks=needs_pyg) for name in ("gcn", "sage", "gat"))]
FEW = {"epochs": 4, "lr": 0.01, "val_every": 100}


def network(method="sf", conv=PlainConv, classes=2, layers=3, **options):
    with seeded(1):
        model = ForwardGNN(5, 8, classes, num_layers=layers, conv=conv, method=method, **options)
    return model.double()


def unit(h):
    return h / (h.norm(dim=1, keepdim=True) + 1e-8)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=5e-4)


def drawn(data, classes, seed=0):
    """Features of class nodes, and wrong labels, in the order in which `fit` draws them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(classes, data.x.shape[1], generator=generator).double()
    return features, wrong_labels(data.y, classes, None, generator=generator), generator


def assert_same_weights(model, layers):
    for a, b in zip(model.layers.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("conv", CONVS)
def test_single_forward_trains_each_layer_on_its_own_logits(conv):
    data, model = cliques(3), network("sf", conv, 3, temperature=0.7)
    layers = copy.deepcopy(model.layers)
    model.fit(data, **FEW)
    features, _, _ = drawn(data, 3)
    x, edges = add_virtual_nodes(
        data.x, data.edge_index, data.y, data.train_mask, 3, features=features
    )
    votes = 0
    for layer in layers:
        optimizer = adam(layer)
        for _ in range(4):
            logits = single_forward_logits(layer(x, edges), 3, temperature=0.7)
            loss = F.cross_entropy(logits[data.train_mask], data.y[data.train_mask])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        h = layer(x, edges).detach()
        votes = votes + single_forward_logits(h, 3, temperature=0.7).softmax(1)
        x = h
    assert_same_weights(model, layers)
    torch.testing.assert_close(model.predict_proba(data), votes / 3)
    assert torch.equal(model.predict(data), votes.argmax(1))


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("count", [None, 1])
@pytest.mark.parametrize("method", ["ff-label", "ff-virtual"])
def test_forward_forward_tells_true_labels_from_wrong_ones(conv, count, method):
    data, model = cliques(3), network(method, conv, 3, theta=1.5, num_negatives=count)
    layers = copy.deepcopy(model.layers)
    model.fit(data, **FEW)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, generator=generator).double()
    wrong = wrong_labels(data.y, 3, count, generator=generator)

    def view(labels, mask):
        if method == "ff-label":
            return append_labels(data.x, labels, mask, 3), data.edge_index
        return add_virtual_nodes(data.x, data.edge_index, labels, mask, 3, features=features)

    train = data.train_mask
    views = [view(labels, train) for labels in (data.y, *wrong)]
    known = torch.where(train, data.y, 0)
    everyone = torch.ones_like(train)
    asked = [view(torch.where(train, known, c), everyone) for c in range(3)]
    votes = torch.zeros(18, 3, dtype=torch.float64)
    for layer in layers:
        optimizer = adam(layer)
        for _ in range(4):
            goodness = [layer(*v)[: len(train)][train].square().sum(1) for v in views]
            loss = F.softplus(1.5 - goodness[0]).mean()
            loss = loss + torch.stack([F.softplus(g - 1.5).mean() for g in goodness[1:]]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for c, v in enumerate(asked):
            votes[:, c] += layer(*v)[:18].detach().square().mean(1)
        views, asked = (
            [(layer(x, edges).detach(), edges) for x, edges in group] for group in (views, asked)
        )
    assert_same_weights(model, layers)
    others = ~train
    expected = votes / votes.sum(1, keepdim=True)
    torch.testing.assert_close(model.predict_proba(data)[others], expected[others])
    assert torch.equal(model.predict(data)[train], data.y[train])


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("layers_count", [1, 2, 3, 4])
def test_top_to_input_alternates_even_and_odd_layers(conv, layers_count):
    data, model = cliques(3), network("sf-top-input", conv, 3, layers_count)
    layers = copy.deepcopy(model.layers)
    model.fit(data, **FEW)
    features, _, _ = drawn(data, 3)
    x, edges = add_virtual_nodes(
        data.x, data.edge_index, data.y, data.train_mask, 3, features=features
    )
    context = torch.full((21, 3), 1 / 3, dtype=torch.float64)
    context[:18][data.train_mask] = F.one_hot(data.y[data.train_mask], 3).double()
    context[18:] = torch.eye(3)
    context = unit(context)
    optimizers = [adam(layer) for layer in layers]

    def respond(j, states, above):
        below = unit(x) if j == 0 else states[j - 1]
        return layers[j].conv(torch.cat([below, above], 1), edges).relu()

    def above(j, states):
        return states[j + 1] if j + 1 < layers_count else context

    def started():
        states = []
        for j in range(layers_count):
            nothing = torch.zeros(21, 8 if j + 1 < layers_count else 3).double()
            states.append(unit(respond(j, states, nothing).detach()))
        return states

    states = started()
    for _ in range(4):
        for first in (0, 1):
            for j in range(first, layers_count, 2):
                h = respond(j, states, above(j, states))
                logits = single_forward_logits(h, 3)[data.train_mask]
                loss = F.cross_entropy(logits, data.y[data.train_mask])
                optimizers[j].zero_grad()
                loss.backward()
                optimizers[j].step()
                states[j] = unit(h.detach())
    assert_same_weights(model, layers)
    states, votes = started(), 0
    for step in range(10):
        for first in (0, 1):
            for j in range(first, layers_count, 2):
                h = respond(j, states, above(j, states)).detach()
                if step >= 2:
                    votes = votes + single_forward_logits(h, 3).softmax(1)
                states[j] = unit(h)
    torch.testing.assert_close(model.predict_proba(data), votes / (8 * layers_count))


@pytest.mark.parametrize("conv", CONVS)
def test_top_to_loss_averages_with_the_states_above_and_clips(conv):
    data, model = cliques(3), network("sf-top-loss", conv, 3)
    layers = copy.deepcopy(model.layers)
    model.fit(data, **FEW)
    features, _, _ = drawn(data, 3)
    x, edges = add_virtual_nodes(
        data.x, data.edge_index, data.y, data.train_mask, 3, features=features
    )
    optimizers = [adam(layer) for layer in layers]

    def upwards():
        hs, below = [], x
        for layer in layers:
            hs.append(layer(below, edges).detach())
            below = hs[-1]
        return hs

    states = [unit(h) for h in upwards()]
    largest = 0.0
    for _ in range(4):
        new = []
        for j, layer in enumerate(layers):
            h = layer(x if j == 0 else states[j - 1], edges)
            e = torch.stack([h, *states[j + 1 :]]).mean(0)
            logits = single_forward_logits(e, 3)[data.train_mask]
            optimizers[j].zero_grad()
            F.cross_entropy(logits, data.y[data.train_mask]).backward()
            norm = torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            largest = max(largest, float(norm))
            optimizers[j].step()
            new.append(unit(h.detach()))
        states = new
    assert_same_weights(model, layers)
    hs = upwards()
    states = [unit(h) for h in hs]
    votes = 0
    for j, h in enumerate(hs):
        e = torch.stack([h, *states[j + 1 :]]).mean(0)
        votes = votes + single_forward_logits(e, 3).softmax(1)
    torch.testing.assert_close(model.predict_proba(data), votes / 3)


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_passes_between_layers(method, monkeypatch):
    """Each backward pass gives gradients to the parameters of one layer only."""
    data, model = cliques(3), network(method, classes=3)
    data.x.requires_grad_()
    owner = {id(p): j for j, layer in enumerate(model.layers) for p in layer.parameters()}
    seen, backward = [], torch.Tensor.backward

    def watched(self, *arguments, **keywords):
        for parameter in model.parameters():
            parameter.grad = None
        backward(self, *arguments, **keywords)
        seen.append({owner[id(p)] for p in model.parameters() if p.grad is not None})

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    model.fit(data, epochs=2)
    assert all(len(layers) == 1 for layers in seen)
    assert set.union(*seen) == {0, 1, 2}
    assert data.x.grad is None and not model.predict_proba(data).requires_grad


ALL_METHODS = [(method, PlainConv) for method in METHODS]
ALL_CONVS = [
    *ALL_METHODS,
    *(pytest.param("sf", name, marks=needs_pyg) for name in ("gcn", "sage", "gat")),
]


@pytest.mark.parametrize(("method", "conv"), ALL_CONVS)
def test_cliques_are_told_apart(method, conv):
    data = cliques(2, 8)
    data.x = torch.eye(16, dtype=torch.float64)
    with seeded(0):
        model = ForwardGNN(16, 16, 2, num_layers=2, conv=conv, method=method).double()
    model.fit(data, epochs=100, lr=0.02)
    right = (model.predict(data) == data.y).double().mean().item()
    assert right == 1 if method.startswith("sf") else right >= 0.75


@pytest.mark.parametrize("method", METHODS)
def test_labels_may_be_any_integers(method):
    data, narrow = cliques(3), cliques(3)
    narrow.y = narrow.y.to(torch.int32)
    answers = []
    for given in (data, narrow):
        model = network(method, classes=3, layers=2)
        model.fit(given, epochs=3)
        answers.append(model.predict_proba(given))
    torch.testing.assert_close(*answers)


def test_training_in_float16_is_refused():
    data = cliques(2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x: torch.float16 given, .* expected"):
        network().half().fit(data, epochs=1)


@pytest.mark.parametrize("method", METHODS)
def test_labels_outside_of_training_do_not_matter(method):
    data = cliques(3)
    hidden = copy.copy(data)
    hidden.y = torch.where(data.train_mask, data.y, -1)
    del hidden.val_mask
    shuffled = copy.copy(hidden)
    shuffled.y = torch.where(data.train_mask, data.y, (data.y + 1) % 3)
    results = []
    for given in (hidden, shuffled):
        model = network(method, classes=3)
        model.fit(given, epochs=5)
        results.append(model.predict_proba(given))
        assert model.layers[0].conv.map.weight.isfinite().all()
    assert torch.equal(*results)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conv", CONVS)
def test_the_order_of_nodes_does_not_matter(method, conv):
    data, model = cliques(3), network(method, conv, 3)
    model.fit(data, epochs=2)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    turned = copy.copy(data)
    turned.x, turned.y, turned.train_mask = data.x[order], data.y[order], data.train_mask[order]
    turned.edge_index = place[data.edge_index]
    expected = model.predict_proba(data)[order]
    torch.testing.assert_close(model.predict_proba(turned), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_weights_are_put_back(method):
    data, model = cliques(3), network(method, classes=3, layers=2)
    history = model.fit(data, epochs=40, lr=0.05, patience=3, val_every=2)
    assert len(history) == (1 if "top" in method else 2)
    for layer in history:
        scores = dict(layer.validation)
        assert layer.best == max(scores.values()) == scores[layer.best_epoch]
        equal = [epoch for epoch, score in scores.items() if score == layer.best]
        assert layer.best_epoch == max(equal)
        assert len(layer.loss) == min(40, min(equal) + 2 * 3)
    again = network(method, classes=3, layers=2)
    if "top" in method:
        del data.val_mask
        again.fit(data, epochs=history[0].best_epoch, lr=0.05)
        assert_same_weights(model, again.layers)


def test_validation_of_a_later_layer_counts_the_votes_of_earlier_ones():
    data, model = cliques(3), network("sf", classes=3, layers=2)
    history = model.fit(data, epochs=6, lr=0.05)
    right = (model.predict(data) == data.y)[data.val_mask].double().mean()
    assert history[1].best == pytest.approx(right.item())


def test_without_validation_nodes_all_epochs_are_run():
    for data in (cliques(2), cliques(2)):
        data.val_mask = torch.zeros_like(data.train_mask)
        (history,) = network(layers=1).fit(data, epochs=7, patience=1)
        assert len(history.loss) == 7 and history.validation == [] and history.best_epoch == 7


def test_the_generator_decides_class_features_and_wrong_labels():
    data = cliques(3)
    for method, options in (("sf", {}), ("ff-label", {"num_negatives": 1})):
        results = []
        for seed in (1, 1, 2):
            model = network(method, classes=3, **options)
            model.fit(data, epochs=2, generator=torch.Generator().manual_seed(seed))
            results.append(model.predict_proba(data))
        assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("method", METHODS)
def test_the_global_generator_is_left_alone_and_runs_repeat(method):
    data, results = cliques(3), []
    before = torch.get_rng_state()
    for _ in range(2):
        model = network(method, classes=3)
        model.fit(data, epochs=2)
        results.append(model.predict_proba(data))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@pytest.mark.parametrize(("method", "conv"), ALL_CONVS)
def test_graphs_without_edges_and_isolated_nodes_are_classified_by_their_features(method, conv):
    data = cliques(2, 6)
    data.x = F.one_hot(data.y, 5).double() + 0.1 * data.x
    lonely = data.edge_index[:, (data.edge_index != 5).all(0)]
    for edges in (lonely, data.edge_index[:, :0]):
        data.edge_index = edges
        with seeded(2):
            model = ForwardGNN(5, 16, 2, num_layers=1, conv=conv, method=method).double()
        model.fit(data, epochs=100, lr=0.05)
        probabilities = model.predict_proba(data)
        assert probabilities.isfinite().all()
        right = (probabilities.argmax(1) == data.y).double().mean().item()
        assert right == 1 if method.startswith("sf") else right >= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_sum_to_1(method):
    data, model = cliques(3), network(method, classes=3)
    model.fit(data, epochs=1)
    data.x[4] = 0  # a node without features
    probabilities = model.predict_proba(data)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(18, dtype=torch.float64))
    assert (probabilities >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_carries_all_that_a_prediction_needs(method):
    data, model = cliques(3), network(method, classes=3)
    model.fit(data, epochs=2, generator=torch.Generator().manual_seed(9))
    other = network(method, classes=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.predict_proba(data), model.predict_proba(data))


def test_a_class_without_training_nodes_is_warned_about():
    data = cliques(2)
    with pytest.warns(UserWarning, match="class 2"):
        network("sf", classes=3).fit(data, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network("sf", classes=2).fit(data, epochs=1)


@needs_pyg
@pytest.mark.parametrize("method", METHODS)
def test_the_karate_club_is_learned_as_pyg_s_data(method):
    data = split_nodes(load_graph("karate-club"), torch.Generator().manual_seed(1)).to_pyg()
    with seeded(0):
        model = ForwardGNN(34, 32, 2, num_layers=2, method=method)
    model.fit(data, epochs=150, lr=0.01)
    right = (model.predict(data) == data.y)[data.test_mask].float().mean()
    assert right >= 0.7


def broken(**changes):
    data = cliques(2)
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def without(name):
    data = cliques(2)
    delattr(data, name)
    return data


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("in_channels", lambda: ForwardGNN(0, 8, 2, conv=PlainConv)),
        ("hidden_channels", lambda: ForwardGNN(5, 0, 2, conv=PlainConv)),
        ("hidden_channels", lambda: ForwardGNN(5, 6, 2, conv="gat")),
        ("num_classes", lambda: ForwardGNN(5, 8, 1, conv=PlainConv)),
        ("num_layers", lambda: network(layers=0)),
        ("conv", lambda: network(conv="chebyshev")),
        ("method", lambda: network("backpropagation")),
        ("theta", lambda: network(theta=float("nan"))),
        ("temperature", lambda: network(temperature=0.0)),
        ("num_negatives", lambda: network(num_negatives=2)),
        ("num_negatives", lambda: network(num_negatives=0)),
        ("epochs", lambda: network().fit(cliques(), epochs=0)),
        ("lr", lambda: network().fit(cliques(), lr=0.0)),
        ("weight_decay", lambda: network().fit(cliques(), weight_decay=-1.0)),
        ("patience", lambda: network().fit(cliques(), patience=0)),
        ("val_every", lambda: network().fit(cliques(), val_every=0)),
        ("data", lambda: network().fit(without("train_mask"))),
        ("data", lambda: network().fit(without("y"))),
        ("data", lambda: network().fit(broken(y=torch.full((12,), 2)))),
        ("data", lambda: network().fit(broken(y=torch.full((12,), -1)))),
        ("data", lambda: network().fit(broken(y=cliques().y[:5]))),
        ("data", lambda: network().fit(broken(y=cliques().y.double()))),
        ("data", lambda: network().fit(broken(train_mask=torch.zeros(12, dtype=torch.bool)))),
        ("data", lambda: network().fit(broken(train_mask=torch.ones(12)))),
        ("data", lambda: network().fit(broken(val_mask=torch.ones(11, dtype=torch.bool)))),
        ("x", lambda: network().fit(broken(x=torch.ones(12, 4).double()))),
        ("x", lambda: network().fit(broken(x=torch.full((12, 5), torch.nan).double()))),
        ("edge_index", lambda: network().fit(broken(edge_index=torch.tensor([[0], [12]])))),
        ("edge_index", lambda: network().predict(broken(edge_index=torch.tensor([0, 1])))),
        ("data", lambda: network().predict(without("train_mask"))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conv", CONVS)
def test_cuda_equals_the_cpu(method, conv):
    data, model = cliques(3), network(method, conv, 3)
    there = copy.deepcopy(model).cuda()
    model.fit(data, epochs=3)
    moved = copy.copy(data)
    for name, value in vars(data).items():
        setattr(moved, name, value.cuda())
    there.fit(moved, epochs=3)
    torch.testing.assert_close(there.predict_proba(moved).cpu(), model.predict_proba(data))
