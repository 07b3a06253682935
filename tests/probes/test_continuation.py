"""Continuations against loops that read everything again, and Hugging Face's own generation."""

import pytest
import torch
from torch import nn

from heterodox.models.transformer import DecoderLM
from heterodox.probes.continuation import (
    NoRepeatNgram,
    RepetitionPenalty,
    greedy,
    nucleus_mask,
    reader_of,
    sample,
)
from heterodox.training.seeding import seeded


@pytest.fixture(scope="module")
def decoder():
    with seeded(0):
        model = DecoderLM(13, width=16, layers=2, heads=2, length=16, init_std=0.5)
    return model.double().eval()


def contexts(batch=3, length=5, seed=0):
    return torch.randint(13, (batch, length), generator=torch.Generator().manual_seed(seed))


def greedy_by_reading_again(model, tokens, length, process=lambda tokens, logits: logits):
    start = tokens.shape[1]
    with torch.no_grad():
        for _ in range(length):
            logits = process(tokens, model(tokens)[:, -1])
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    return tokens[:, start:]


def test_greedy_with_a_cache_is_greedy_without(decoder):
    expected = greedy_by_reading_again(decoder, contexts(), 40)
    assert torch.equal(greedy(decoder, contexts(), 40), expected)
    assert torch.equal(greedy(lambda tokens: decoder(tokens), contexts(), 40), expected)


def test_a_row_does_not_depend_on_its_batch(decoder):
    together = greedy(decoder, contexts(), 20)
    for row, alone in zip(together, contexts(), strict=True):
        assert torch.equal(greedy(decoder, alone[None], 20)[0], row)


def test_a_decoder_without_a_cache_is_read_again():
    with seeded(0):
        model = DecoderLM(13, 16, 1, 2, 16, attention="sigmoid", init_std=0.5).double().eval()
    expected = greedy_by_reading_again(model, contexts(), 12)
    assert torch.equal(greedy(model, contexts(), 12), expected)


def hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=64, n_embd=16, n_layer=2, n_head=2, eos_token_id=None
    )
    with seeded(1):
        model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)
    return model.double().eval()


def test_greedy_is_that_of_hugging_face():
    model = hugging_face_model()
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    ones = torch.ones_like(contexts())
    expected = model.generate(contexts(), attention_mask=ones, **options)
    assert torch.equal(greedy(model, contexts(), 30), expected[:, 5:])


@pytest.mark.parametrize("start", [1, 5])
def test_a_model_of_hugging_face_without_a_cache_is_read_again(start):
    transformers = pytest.importorskip("transformers")
    config = transformers.OpenAIGPTConfig(
        vocab_size=13, n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    with seeded(1):
        model = transformers.OpenAIGPTLMHeadModel(config).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    expected = greedy_by_reading_again(lambda x: model(x).logits, contexts(length=start), 12)
    assert torch.equal(greedy(model, contexts(length=start), 12), expected)
    reader = reader_of(model)
    rows = torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        reader.next_logits(contexts())
        reader.reorder(rows)
        logits = reader.next_logits(rows[:, None])
        whole = model(torch.cat((contexts()[rows], rows[:, None]), dim=1)).logits[:, -1]
    torch.testing.assert_close(logits, whole)


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (RepetitionPenalty(1.7), {"repetition_penalty": 1.7}),
        (NoRepeatNgram(3), {"no_repeat_ngram_size": 3}),
        (NoRepeatNgram(2), {"no_repeat_ngram_size": 2}),
    ],
)
def test_processors_are_those_of_hugging_face(process, options):
    model = hugging_face_model()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    ones = torch.ones_like(contexts())
    expected = model.generate(contexts(), attention_mask=ones, **options)
    free = greedy(model, contexts(), 12)
    own = greedy(model, contexts(), 12, processors=[process])
    assert torch.equal(own, expected[:, 5:])
    assert not torch.equal(own, free)


def test_processors_apply_in_their_order():
    seen = []

    def note(name):
        def process(tokens, logits):
            seen.append((name, tokens.shape[1]))
            return logits

        return process

    greedy(lambda tokens: torch.zeros(*tokens.shape, 4), contexts(), 2, [note("a"), note("b")])
    assert seen == [("a", 5), ("b", 5), ("a", 6), ("b", 6)]


def test_no_repeat_allows_everything_where_it_would_forbid_everything():
    logits = torch.tensor([[0.0, 1.0]])
    assert torch.equal(NoRepeatNgram(1)(torch.tensor([[0, 1]]), logits), logits)


def test_of_equal_logits_the_lowest_id_is_taken():
    tied = lambda tokens: torch.tensor([0.0, 1.0, 1.0]).expand(*tokens.shape, 3)  # noqa: E731
    assert greedy(tied, torch.tensor([[0]]), 3).tolist() == [[1, 1, 1]]


def test_the_model_is_in_evaluation_mode_and_then_as_it_was(decoder):
    modes = []

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout(0.5).eval()

        def forward(self, tokens):
            modes.append(self.training)
            return torch.zeros(*tokens.shape, 4)

    model = Noting()
    model.training = True
    greedy(model, contexts(), 2)
    assert modes == [False, False] and model.training and not model.inner.training


def test_nothing_to_add_gives_nothing(decoder):
    assert greedy(decoder, contexts(), 0).shape == (3, 0)
    assert greedy(decoder, contexts(batch=0), 4).shape == (0, 4)


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    probability = torch.tensor([0.1, 0.4, 0.2, 0.3])
    for p, size in ((0.3, 1), (0.41, 2), (0.69, 2), (0.75, 3), (0.95, 4)):
        kept = nucleus_mask(probability.log(), p)
        assert kept.sum() == size
        assert set(kept.nonzero()[:, 0].tolist()) == set([1, 3, 2, 0][:size])


def test_p_of_one_keeps_all_and_a_small_p_keeps_one():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)) * 20
    assert nucleus_mask(logits, 1.0).all()
    for p in (0.0, 1e-12):
        kept = nucleus_mask(logits, p)
        assert torch.equal(kept.nonzero()[:, 1], logits.argmax(-1))


def test_of_tied_tokens_the_nucleus_takes_those_with_lower_ids():
    assert nucleus_mask(torch.zeros(4), 0.5).tolist() == [True, True, False, False]


def test_excluded_tokens_are_never_in_the_nucleus():
    logits = torch.tensor([0.0, -torch.inf, 1.0])
    assert nucleus_mask(logits, 1.0).tolist() == [True, False, True]


def test_the_nucleus_in_half_precision_is_that_of_single():
    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(nucleus_mask(logits, 0.9), nucleus_mask(logits.float(), 0.9))


def test_samples_have_the_frequencies_of_the_renormalised_nucleus():
    probability = torch.tensor([0.1, 0.4, 0.2, 0.3])
    model = lambda tokens: (2 * probability.log()).expand(*tokens.shape, 4)  # noqa: E731
    tokens = sample(model, torch.zeros(200, 1, dtype=torch.int64), 100, 0.65, temperature=2.0)
    shares = tokens.flatten().bincount(minlength=4) / tokens.numel()
    torch.testing.assert_close(shares, torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=0.015, rtol=0)


def test_a_nucleus_of_nothing_is_greedy(decoder):
    assert torch.equal(sample(decoder, contexts(), 20, top_p=0.0), greedy(decoder, contexts(), 20))


def test_a_generator_decides_and_the_global_one_is_left_alone(decoder):
    before = torch.get_rng_state()
    one, same, other = (
        sample(decoder, contexts(), 20, 1.0, 1.0, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    default = sample(decoder, contexts(), 20)
    assert torch.equal(default, sample(decoder, contexts(), 20))
    assert torch.equal(torch.get_rng_state(), before)


def not_a_number(tokens):
    return torch.full((*tokens.shape, 4), torch.nan)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("context", lambda m, x: greedy(m, x[:, :0], 3)),
        ("context", lambda m, x: greedy(m, x.float(), 3)),
        ("context", lambda m, x: greedy(m, x[0], 3)),
        ("context", lambda m, x: greedy(m, x - 99, 3)),
        ("length", lambda m, x: greedy(m, x, -1)),
        ("model", lambda m, x: greedy(not_a_number, x, 3)),
        ("model", lambda m, x: sample(not_a_number, x, 3)),
        ("top_p", lambda m, x: sample(m, x, 3, top_p=1.5)),
        ("temperature", lambda m, x: sample(m, x, 3, temperature=0.0)),
        ("p", lambda m, x: nucleus_mask(torch.zeros(3), -0.1)),
        ("logits", lambda m, x: nucleus_mask(torch.tensor([torch.nan, 0.0]), 0.5)),
        ("logits", lambda m, x: nucleus_mask(x, 0.5)),
        ("penalty", lambda m, x: RepetitionPenalty(0.0)),
        ("n", lambda m, x: NoRepeatNgram(0)),
    ],
)
def test_bad_input_names_the_argument(decoder, name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(decoder, contexts())
