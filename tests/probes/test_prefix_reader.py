"""A cached utility gives what reading every prefix from its start gives."""

import pytest
import torch

from heterodox.models.transformer import DecoderLM
from heterodox.probes.decoding import beam_search, exact_map, greedy, sample
from heterodox.probes.prefix_reader import PrefixUtility
from heterodox.training.seeding import seeded

CONTEXT = torch.tensor([[3, 1, 4]])


@pytest.fixture(scope="module")
def model():
    with seeded(0):
        return DecoderLM(9, 16, 2, 2, 16, init_std=0.5).double().eval()


def read_again(model):
    def utility(prefix):
        tokens = torch.cat((CONTEXT.expand(len(prefix), -1), prefix), dim=1)
        with torch.no_grad():
            return model(tokens)[:, -1]

    return utility


@pytest.mark.parametrize(
    "rule",
    [
        lambda u: greedy(u, 8, 12),
        lambda u: beam_search(u, 4, 8, 12),
        lambda u: sample(u, 8, 12, count=5),
        lambda u: exact_map(u, 8, 5),
    ],
)
def test_every_rule_decides_as_without_a_cache(model, rule):
    cached, plain = rule(PrefixUtility.of(model, CONTEXT)), rule(read_again(model))
    if isinstance(cached, tuple):
        assert cached[0] == plain[0] and cached[1] == pytest.approx(plain[1])
    else:
        assert cached == plain


def test_prefixes_that_grow_are_read_once(model):
    lengths = []

    class Counting:
        def __init__(self):
            self.reader = model.incremental()

        def next_logits(self, tokens):
            lengths.append(tuple(tokens.shape))
            return self.reader.next_logits(tokens)

        def reorder(self, rows):
            self.reader.reorder(rows)

    beam_search(PrefixUtility(Counting, CONTEXT), 3, None, 5)
    assert lengths == [(1, 3), (3, 1), (3, 1), (3, 1), (3, 1)]


def test_prefixes_of_other_branches_are_read_from_the_start(model):
    utility, plain = PrefixUtility.of(model, CONTEXT), read_again(model)
    for prefix in ([[1, 2]], [[1, 2, 3], [1, 2, 0]], [[1, 2, 0, 5], [7, 7, 7, 7]], [[1]], [[1]]):
        tokens = torch.tensor(prefix)
        torch.testing.assert_close(utility(tokens), plain(tokens))


def test_bad_input_names_the_argument(model):
    for context in (CONTEXT[:, :0], CONTEXT.expand(2, -1), CONTEXT.float(), CONTEXT[0]):
        with pytest.raises(ValueError, match=r"^context: .*expected"):
            PrefixUtility.of(model, context)
