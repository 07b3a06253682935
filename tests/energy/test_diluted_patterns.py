"""Patterns and examples have the law that is written down, and what they say is estimated back."""

import math

import pytest
import torch

from heterodox.energy.diluted_patterns import (
    dataset_entropy,
    dataset_normalizer,
    estimate_normalizer,
    estimate_quality,
    examples_needed,
    sample_examples,
    sample_patterns,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dilution", [0.0, 0.3, 0.9])
def test_entries_are_blank_with_the_dilution_and_else_fair_signs(dilution):
    patterns = sample_patterns(2, 100_000, dilution, generator=generator())
    shares = [(patterns == value).double().mean().item() for value in (-1, 0, 1)]
    expected = [(1 - dilution) / 2, dilution, (1 - dilution) / 2]
    assert shares == pytest.approx(expected, abs=0.005)
    assert (patterns[0] * patterns[1]).mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_as_asked_and_the_entries_do_not_depend_on_it(dtype):
    patterns = sample_patterns(2, 100, 0.3, generator=generator(), dtype=dtype)
    assert patterns.dtype == dtype
    assert torch.equal(patterns.float(), sample_patterns(2, 100, 0.3, generator=generator()))


@pytest.mark.parametrize("quality", [0.2, 0.8])
def test_examples_agree_with_their_pattern_as_often_as_the_quality_says(quality):
    patterns = sample_patterns(3, 2000, 0.4, generator=generator())
    examples = sample_examples(patterns, 30, quality, generator=generator(1))
    assert examples.shape == (3, 30, 2000)
    blank = (patterns == 0)[:, None].expand_as(examples)
    assert (examples[blank] == 0).all() and (examples[~blank].abs() == 1).all()
    agreement = (examples * patterns[:, None])[~blank].mean()
    assert agreement.item() == pytest.approx(quality, abs=0.01)


def test_perfect_examples_are_copies():
    patterns = sample_patterns(2, 50, 0.4, generator=generator())
    assert torch.equal(sample_examples(patterns, 3, 1.0), patterns[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize(("count", "quality"), [(1, 0.3), (7, 0.3), (20, 0.8), (5, 1.0)])
def test_the_normaliser_is_the_second_moment_of_the_mean(count, quality):
    patterns = sample_patterns(1, 100_000, 0.0, generator=generator())
    examples = sample_examples(patterns, count, quality, generator=generator(1))
    normalizer = dataset_normalizer(count, quality)
    assert examples.mean(1).square().mean().item() == pytest.approx(normalizer, abs=0.01)
    assert normalizer == pytest.approx(quality**2 * (1 + dataset_entropy(count, quality)))


def test_quality_and_normaliser_are_estimated_from_the_examples():
    patterns = sample_patterns(3, 20_000, 0.5, generator=generator())
    examples = sample_examples(patterns, 12, 0.4, generator=generator(1))
    assert estimate_normalizer(examples) == pytest.approx(dataset_normalizer(12, 0.4), abs=0.005)
    assert estimate_quality(examples) == pytest.approx(0.4, abs=0.01)
    assert estimate_quality(sample_examples(patterns, 4, 1.0)) == pytest.approx(1.0)
    assert estimate_normalizer(examples[:, :1]) == 1.0


def test_examples_that_contradict_each_other_have_no_quality():
    examples = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    assert estimate_quality(examples) == 0.0


def test_the_threshold_is_where_the_entropy_is_one():
    assert [examples_needed(r) for r in (0.1, 0.2, 0.3)] == [99, 24, 11]
    for quality in (0.05, 0.37, 0.9):
        needed = examples_needed(quality)
        assert dataset_entropy(needed, quality) <= 1 + 1e-9
        assert needed == 1 or dataset_entropy(needed - 1, quality) > 1
    assert examples_needed(1.0) == 1
    assert examples_needed(0.1, confidence=1.0) == 198


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("num_patterns", lambda: sample_patterns(0, 5, 0.1)),
        ("size", lambda: sample_patterns(2, 0, 0.1)),
        ("dilution", lambda: sample_patterns(2, 5, 1.0)),
        ("dilution", lambda: sample_patterns(2, 5, -0.1)),
        ("dilution", lambda: sample_patterns(2, 5, math.nan)),
        ("patterns", lambda: sample_examples(torch.full((2, 3), 0.5), 2, 0.5)),
        ("patterns", lambda: sample_examples(torch.zeros(0, 3), 2, 0.5)),
        ("patterns", lambda: sample_examples(torch.full((2, 3), math.nan), 2, 0.5)),
        ("num_examples", lambda: sample_examples(torch.ones(2, 3), 0, 0.5)),
        ("quality", lambda: sample_examples(torch.ones(2, 3), 2, 0.0)),
        ("quality", lambda: sample_examples(torch.ones(2, 3), 2, 1.1)),
        ("num_examples", lambda: dataset_normalizer(0, 0.5)),
        ("quality", lambda: dataset_normalizer(2, -0.5)),
        ("num_examples", lambda: dataset_entropy(0, 0.5)),
        ("quality", lambda: dataset_entropy(2, 0.0)),
        ("quality", lambda: examples_needed(0.0)),
        ("confidence", lambda: examples_needed(0.5, 0.0)),
        ("examples", lambda: estimate_normalizer(torch.zeros(2, 3, 4))),
        ("examples", lambda: estimate_normalizer(torch.ones(2, 3))),
        ("examples", lambda: estimate_quality(torch.ones(2, 1, 4))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
