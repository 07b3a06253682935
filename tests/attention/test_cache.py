"""Cached attention is the layer's own causal call, cut anywhere."""

import pytest
import torch

from heterodox.attention.cache import KeyValueCache, cached_softmax_attention
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.training.seeding import seeded


@pytest.mark.parametrize("position", ["rotary", "alibi", None])
@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True, "log_n": True}, {"window": 3}, {"window": 1, "log_n": True}],
    ids=str,
)
@pytest.mark.parametrize("cuts", [[11], [1] * 11, [4, 1, 1, 3, 2]], ids=len)
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(position, options, cuts):
    with seeded(0):
        layer = SoftmaxAttention(12, 3, position=position, **options).double()
        x = torch.randn(2, 11, 12, dtype=torch.float64)
    cache = KeyValueCache()
    parts = [cached_softmax_attention(layer, part, cache) for part in x.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x, is_causal=True))
    assert cache.length == 11


@torch.no_grad()
def test_rows_can_be_taken_again_left_out_and_turned_around():
    with seeded(0):
        layer = SoftmaxAttention(8, 2, position="rotary").double()
        x = torch.randn(3, 6, 8, dtype=torch.float64)
    rows = torch.tensor([2, 0, 0, 2])
    cache = KeyValueCache()
    cached_softmax_attention(layer, x[:, :5], cache)
    cache.reorder(rows)
    last = cached_softmax_attention(layer, x[rows, 5:], cache)
    torch.testing.assert_close(last, layer(x, is_causal=True)[rows, 5:])


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"^x: .*expected"):
        cached_softmax_attention(SoftmaxAttention(8, 2), torch.zeros(2, 3, 9), KeyValueCache())
