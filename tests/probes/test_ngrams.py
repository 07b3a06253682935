"""n-grams in a corpus against Python's sets and string search."""

import pytest
import torch

from heterodox.probes import ngrams
from heterodox.probes.ngrams import CitationBlocker, NgramIndex, longest_overlap, overlap_rate


def draw(*shape, high=4, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def grams_of(rows, n):
    return {tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}


def longest_by_search(row, corpus):
    """The longest part of `row` that stands in one sequence of the corpus."""
    return max(
        (n for n in range(1, len(row) + 1) if grams_of([row], n) & grams_of(corpus, n)),
        default=0,
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_the_share_of_grams_in_the_set_of_the_corpus(n, seed):
    tokens, corpus = draw(5, 12, seed=seed), draw(6, 9, seed=seed + 10)
    known = grams_of(corpus.tolist(), n)
    expected = []
    for row in tokens.tolist():
        own = [tuple(row[i : i + n]) in known for i in range(len(row) - n + 1)]
        expected.append(sum(own) / len(own))
    torch.testing.assert_close(overlap_rate(tokens, corpus, n), torch.tensor(expected))


def test_no_gram_spans_two_sequences_of_the_corpus():
    assert overlap_rate(torch.tensor([[2, 3]]), torch.tensor([[1, 2], [3, 4]]), 2).item() == 0
    assert longest_overlap(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2], [3, 4]])).item() == 2


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_overlap_is_the_longest_common_part(seed):
    tokens, corpus = draw(5, 17, high=3, seed=seed), draw(3, 11, high=3, seed=seed + 10)
    expected = [longest_by_search(row, corpus.tolist()) for row in tokens.tolist()]
    assert longest_overlap(tokens, corpus).tolist() == expected


def test_the_longest_overlap_of_a_copy_is_its_length_and_of_strangers_nothing():
    corpus = draw(3, 20, high=50)
    assert longest_overlap(corpus, corpus).tolist() == [20] * 3
    assert longest_overlap(corpus + 50, corpus).tolist() == [0] * 3
    padded = torch.cat((torch.full((3, 7), 99), corpus[:, :9]), dim=1)
    assert longest_overlap(padded, corpus).tolist() == [9] * 3


def test_sequences_of_the_corpus_may_differ_in_length():
    corpus = [torch.tensor([1, 2, 3, 4]), torch.tensor([7]), torch.tensor([], dtype=torch.int64)]
    tokens = torch.tensor([[2, 3, 4, 7], [7, 8, 9, 9]])
    assert longest_overlap(tokens, corpus).tolist() == [3, 1]
    torch.testing.assert_close(overlap_rate(tokens, corpus, 2), torch.tensor([2 / 3, 0.0]))


def test_an_empty_corpus_and_an_empty_batch_have_no_overlap():
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert overlap_rate(draw(2, 5), none, 2).tolist() == [0, 0]
    assert longest_overlap(draw(2, 5), none).tolist() == [0, 0]
    assert (
        longest_overlap(none, draw(2, 5)).shape == overlap_rate(none, draw(2, 5), 2).shape == (0,)
    )


def test_equal_hashes_are_told_apart(monkeypatch):
    """With a hash of one bit every query collides, and tables need a salt that separates them."""
    honest = ngrams._hash

    def coarse(rows, salt):
        # Distinct rows of the corpus collide until the salt is 3.
        return honest(rows, 0) if salt >= 3 else honest(rows, 0) % 2

    monkeypatch.setattr(ngrams, "_hash", coarse)
    index = NgramIndex(torch.tensor([[1, 2, 3, 4, 5]]), n=2)
    assert index.contains(torch.tensor([[1, 2], [4, 5], [2, 1], [5, 9]])).tolist() == [
        *(True, True),
        *(False, False),
    ]


def test_a_hit_needs_equal_tokens_and_not_only_an_equal_hash():
    index = NgramIndex(torch.tensor([[1, 2, 3]]), n=2)
    index._grams.hashes = ngrams._hash(torch.tensor([[8, 9], [2, 3]]), index._grams.salt)
    index._grams.hashes, index._grams.order = index._grams.hashes.sort()
    assert not index.contains(torch.tensor([[8, 9]])).item()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_blocker_forbids_exactly_what_completes_a_gram(n):
    corpus, prefix, vocabulary = draw(3, 8, seed=1), draw(6, 5, seed=2), 6
    known = grams_of(corpus.tolist(), n)
    expected = []
    for row in prefix.tolist():
        last = row[len(row) - n + 1 :] if n > 1 else []
        expected.append([(*last, v) in known for v in range(vocabulary)])
    blocked = CitationBlocker(corpus, n).blocked(prefix, vocabulary)
    assert blocked.tolist() == expected and blocked.any()


def test_generation_under_the_blocker_never_completes_a_gram_of_the_corpus():
    corpus = draw(4, 30, high=5, seed=3)
    process = CitationBlocker(corpus, n=3).logits_processor()
    generator = torch.Generator().manual_seed(0)
    tokens = draw(8, 2, high=7, seed=4)
    for _ in range(40):
        logits = process(tokens, torch.randn(8, 7, generator=generator))
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    # Two tokens, 5 and 6, are in no sequence, so that a choice is always left.
    assert overlap_rate(tokens, corpus, 3).max().item() == 0
    assert overlap_rate(tokens, corpus, 2).max().item() > 0


def test_where_everything_would_be_forbidden_everything_is_allowed():
    blocker = CitationBlocker(torch.tensor([[0, 0], [0, 1], [1, 0]]), n=2)
    blocked = blocker.blocked(torch.tensor([[0], [1]]), 2)
    assert blocked.tolist() == [[False, False], [True, False]]
    process = blocker.logits_processor()
    only = torch.tensor([[1.0, -torch.inf]])
    assert torch.equal(process(torch.tensor([[1]]), only), only)


def test_a_prefix_shorter_than_the_gram_blocks_nothing():
    blocker = CitationBlocker(torch.tensor([[1, 2, 3, 4, 5]]))
    assert not blocker.blocked(torch.tensor([[1, 2, 3]]), 6).any()
    assert blocker.blocked(torch.tensor([[1, 2, 3, 4]]), 6).tolist() == [[*[False] * 5, True]]


def test_hugging_face_generates_under_the_blocker():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    context = torch.tensor([[1, 2, 3]])
    free = model.generate(context, max_new_tokens=20, do_sample=False, pad_token_id=0)
    blocker = CitationBlocker(free, n=4)
    other = model.generate(
        context,
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
        logits_processor=transformers.LogitsProcessorList([blocker.logits_processor()]),
    )
    assert overlap_rate(other, free, 4).item() == 0


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("n", lambda x: NgramIndex(x, 0)),
        ("n", lambda x: CitationBlocker(x, n=0)),
        ("corpus", lambda x: NgramIndex(x.float(), 2)),
        ("corpus", lambda x: NgramIndex(x - 1, 2)),
        ("corpus", lambda x: NgramIndex(x[0], 2)),
        ("corpus", lambda x: NgramIndex([x], 2)),
        ("tokens", lambda x: overlap_rate(x[:, :1], x, 2)),
        ("tokens", lambda x: overlap_rate(x.double(), x, 2)),
        ("tokens", lambda x: longest_overlap(list(x), x)),
        ("vocab_size", lambda x: CitationBlocker(x, 2).blocked(x, 1)),
        ("prefix", lambda x: CitationBlocker(x, 2).blocked(x.float(), 9)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(torch.tensor([[0, 1, 2], [3, 2, 0]]))
