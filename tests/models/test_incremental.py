"""Reading a sequence piece by piece with a decoder gives what one forward pass gives."""

import pytest
import torch

from heterodox.models.incremental import IncrementalDecoder
from heterodox.models.transformer import DecoderLM
from heterodox.training.seeding import seeded


def decoder(**options):
    with seeded(0):
        return DecoderLM(11, 16, 2, 2, 12, init_std=0.3, **options).double().eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "learned"},
        {"position": "alibi", "mlp": "none"},
        {"position": "none", "mlp": "swiglu", "tie_embeddings": False},
        {"hybrid_norm": True, "layer_scale": 0.5, "attention": "softmax-qk-log-n"},
        {"attention": ["softmax-window", "softmax"]},
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_after_each_piece_are_those_of_the_whole(options):
    model = decoder(**options)
    tokens = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)
    assert model.has_cache
    reader, read = model.incremental(), 0
    for count in (4, 1, 1, 3, 1, 2):
        piece = tokens[:, read : read + count]
        read += count
        torch.testing.assert_close(reader.next_logits(piece), expected[:, read - 1])
    assert reader.length == 12


@torch.no_grad()
def test_rows_can_be_reordered_between_pieces():
    model = decoder()
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([1, 1, 0, 2])
    reader = model.incremental()
    reader.next_logits(tokens[:, :5])
    reader.reorder(rows)
    torch.testing.assert_close(reader.next_logits(tokens[rows, 5:]), model(tokens)[rows, -1])


@pytest.mark.parametrize("attention", ["sigmoid", "softplus", "deltanet", ["softmax", "sigmoid"]])
def test_a_layer_without_a_cache_is_named(attention):
    model = decoder(attention=attention)
    assert not model.has_cache
    with pytest.raises(ValueError, match=r"^model: \w+ in layer [01] given, .*expected"):
        IncrementalDecoder(model)


def test_learned_positions_end_and_nothing_is_no_piece():
    reader = decoder(position="learned").incremental()
    reader.next_logits(torch.zeros(1, 12, dtype=torch.int64))
    for tokens in (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^tokens: .*expected"):
            reader.next_logits(tokens)
