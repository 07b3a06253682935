import math

import pytest
import torch

from heterodox.learning.forward_graph import (
    add_virtual_nodes,
    append_labels,
    link_logits,
    single_forward_logits,
    top_down_embedding,
    wrong_labels,
)


def graph():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    labels = torch.tensor([2, 0, -1, 0, 7])
    return x, edges, labels, torch.tensor([True, True, False, True, False])


def test_class_nodes_come_last_and_only_known_nodes_are_linked_to_them():
    x, edges, labels, mask = graph()
    all_x, all_edges = add_virtual_nodes(x, edges, labels, mask, 3)
    assert torch.equal(all_x[:5], x) and all_x.shape == (8, 3)
    assert torch.equal(all_edges[:, :4], edges)
    added = all_edges[:, 4:]
    assert added.T.tolist() == [[0, 7], [1, 5], [3, 5], [7, 0], [5, 1], [5, 3]]
    one_way = add_virtual_nodes(x, edges, labels, mask, 3, bidirectional=False)[1]
    assert torch.equal(one_way, all_edges[:, :7])
    nobody = add_virtual_nodes(x, edges, labels, torch.zeros_like(mask), 3)[1]
    assert torch.equal(nobody, edges)


def test_features_of_class_nodes_are_drawn_by_the_generator_or_given():
    x, edges, labels, mask = graph()
    drawn = [
        add_virtual_nodes(x, edges, labels, mask, 3, generator=torch.Generator().manual_seed(s))[0]
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    given = torch.ones(3, 3)
    assert torch.equal(add_virtual_nodes(x, edges, labels, mask, 3, features=given)[0][5:], given)
    many = add_virtual_nodes(torch.zeros(1, 20000), edges[:, :0], labels[:1], mask[:1], 3)[0][1:]
    assert many.mean().abs() < 0.02 and abs(many.std() - 1) < 0.02


@pytest.mark.parametrize(("unlabeled", "other"), [("uniform", 1 / 3), ("zero", 0.0)])
def test_labels_stand_beside_the_features(unlabeled, other):
    x, _, labels, mask = graph()
    both = append_labels(x, labels, mask, 3, unlabeled=unlabeled)
    assert torch.equal(both[:, :3], x)
    expected = [[0, 0, 1], [1, 0, 0], [other] * 3, [1, 0, 0], [other] * 3]
    torch.testing.assert_close(both[:, 3:], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_wrong_labels_are_never_true_and_differ_from_one_another(classes):
    labels = torch.randint(classes, (200,), generator=torch.Generator().manual_seed(0))
    for count in (None, *range(1, classes)):
        wrong = wrong_labels(labels, classes, count)
        assert wrong.shape == (classes - 1 if count is None else count, 200)
        assert (wrong != labels).all() and wrong.min() >= 0 and wrong.max() < classes
        assert all(len(set(column.tolist())) == len(wrong) for column in wrong.T)
        again = wrong_labels(labels, classes, count)
        assert torch.equal(wrong, again)
    if classes > 2:
        first, other = (
            wrong_labels(labels, classes, 1, generator=torch.Generator().manual_seed(s))
            for s in (1, 2)
        )
        assert not torch.equal(first, other)
        for c in range(1, classes):  # all wrong classes are equally likely
            share = ((first - labels) % classes == c).double().mean().item()
            assert share == pytest.approx(1 / (classes - 1), abs=0.12)


def test_single_forward_logits_are_inner_products_with_the_last_rows():
    h = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    logits = single_forward_logits(h, 2, temperature=0.5)
    expected = torch.stack([(h[:5] * h[5 + c]).sum(1) / 0.5 for c in range(2)], 1)
    torch.testing.assert_close(logits, expected)
    assert torch.autograd.gradcheck(lambda x: single_forward_logits(x, 2), h)


def test_a_top_down_embedding_is_a_mean_that_passes_gradients_to_the_output_only():
    output, above = torch.randn(3, 2, requires_grad=True), torch.randn(2, 3, 2, requires_grad=True)
    embedding = top_down_embedding(output, list(above))
    torch.testing.assert_close(embedding, (output + above.sum(0)) / 3)
    embedding.sum().backward()
    torch.testing.assert_close(output.grad, torch.full((3, 2), 1 / 3))
    assert above.grad is None
    assert torch.equal(top_down_embedding(output, []), output)


def test_link_logits_are_inner_products_of_pairs():
    h, pairs = torch.randn(4, 3), torch.tensor([[0, 2, 1], [3, 2, 0]])
    expected = torch.stack([h[u] @ h[v] for u, v in pairs.T.tolist()])
    torch.testing.assert_close(link_logits(h, pairs), expected)
    assert link_logits(h, pairs[:, :0]).shape == (0,)


X, EDGES, LABELS, MASK = graph()


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("labels", lambda: add_virtual_nodes(X, EDGES, LABELS, MASK, 2)),
        ("labels", lambda: add_virtual_nodes(X, EDGES, LABELS, ~MASK, 3)),
        ("labels", lambda: add_virtual_nodes(X, EDGES, LABELS[:4], MASK, 3)),
        ("mask", lambda: add_virtual_nodes(X, EDGES, LABELS, MASK.long(), 3)),
        ("edge_index", lambda: add_virtual_nodes(X, EDGES + 3, LABELS, MASK, 3)),
        ("edge_index", lambda: add_virtual_nodes(X, EDGES.float(), LABELS, MASK, 3)),
        ("x", lambda: add_virtual_nodes(X.long(), EDGES, LABELS, MASK, 3)),
        ("features", lambda: add_virtual_nodes(X, EDGES, LABELS, MASK, 3, features=X[:2])),
        ("num_classes", lambda: add_virtual_nodes(X, EDGES, LABELS, MASK, 0)),
        ("unlabeled", lambda: append_labels(X, LABELS, MASK, 3, unlabeled="ones")),
        ("labels", lambda: append_labels(X, LABELS, MASK, 1)),
        ("num_classes", lambda: wrong_labels(LABELS, 1)),
        ("count", lambda: wrong_labels(LABELS, 3, 3)),
        ("count", lambda: wrong_labels(LABELS, 3, 0)),
        ("num_classes", lambda: single_forward_logits(X, 6)),
        ("temperature", lambda: single_forward_logits(X, 2, temperature=math.nan)),
        ("above", lambda: top_down_embedding(X, [X[:1]])),
        ("pairs", lambda: link_logits(X, torch.tensor([[0], [5]]))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()
