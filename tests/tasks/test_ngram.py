import math
from dataclasses import replace

import pytest
import torch

from heterodox.data import load_text
from heterodox.losses.factored_spherical import FactoredSphericalLinear
from heterodox.losses.z_loss import ZLoss, spherical_squared_from_statistics
from heterodox.models.factored_output import FactoredOutput
from heterodox.models.ngram import NGramFeatures
from heterodox.tasks.ngram import SETTINGS, NGramSettings, top_errors, train

TINY = NGramSettings(
    steps=60, learning_rate=5.0, embedding=8, hidden=16, evaluations=3, evaluation_words=300
)
Z = ZLoss(0.1, 20.0).from_statistics


@pytest.fixture(scope="module")
def words():
    return load_text("python-docs").encode("word", vocabulary=300)


@pytest.mark.parametrize("loss", [None, Z])
def test_it_learns(words, loss):
    run = train(loss, text=words, settings=replace(TINY, steps=390))
    frequent = torch.arange(10)
    rate = 100 * (1 - torch.isin(words.validation, frequent).float().mean().item())
    assert run.errors(words.validation, (1, 10))[10] < rate - 5
    seconds = [time for time, _ in run.error_by_seconds]
    assert len(seconds) == 3 and 0 < seconds[0] < seconds[1] < seconds[2]


def test_a_vocabulary_of_thirty_thousand_words_is_trained_exactly():
    words = load_text("python-stdlib").encode("word", None)
    assert words.vocabulary_size >= 30_000
    run = train(Z, text=words, settings=replace(TINY, steps=3, evaluations=1, evaluation_words=50))
    output = run.model.output
    assert output.num_classes == words.vocabulary_size and int(output.counter) == 3
    assert output.check() < 1e-4
    twin = FactoredSphericalLinear(output.in_features, output.num_classes, 1.0)
    twin.load_state_dict(output.state_dict())
    assert torch.equal(twin.weight, output.weight)


def test_losses_start_from_the_same_weights_and_see_the_same_words(words):
    seen = {}

    class Spy:
        def __init__(self, name):
            self.name = name

        def __call__(self, target_output, total, square_total, classes):
            seen.setdefault(self.name, []).append(target_output.detach())
            return Z(target_output, total, square_total, classes)

    for name in ("first", "second"):
        train(Spy(name), text=words, settings=replace(TINY, steps=3))
    assert all(map(torch.equal, seen["first"], seen["second"]))


def test_the_factored_layer_learns_what_a_dense_one_would(words):
    """One step of each from the same start, in float32: the loss of the next is the same."""
    settings = replace(TINY, steps=1, learning_rate=0.01, decay=False)
    run = train(spherical_squared_from_statistics, text=words, settings=settings)
    outputs = run.model.output
    assert isinstance(outputs, FactoredSphericalLinear) and int(outputs.counter) == 1
    assert outputs.check() < 1e-5


def test_errors_are_those_of_every_word_with_a_context(words):
    run = train(None, text=words, settings=replace(TINY, steps=5))
    tokens = words.validation[:600]
    wrong = 0
    with torch.no_grad():
        for place in range(4, 600):
            outputs = run.model(tokens[place - 4 : place][None])[0]
            wrong += int(tokens[place]) not in outputs.topk(10).indices.tolist()
    assert run.errors(tokens, (10,))[10] == pytest.approx(100 * wrong / 596, abs=0.2)
    assert top_errors(run.model, tokens, 4, (1, 10))[10] == run.errors(tokens, (10,))[10]


def test_a_run_that_diverges_has_no_errors(words):
    run = train(Z, text=words, settings=replace(TINY, learning_rate=1e35))
    assert run.history.diverged
    assert math.isnan(run.errors(words.validation, (10,))[10])


def test_a_step_of_the_features_touches_the_words_of_the_batch_only():
    features = NGramFeatures(1000, 2, 4, 3)
    features(torch.tensor([[5, 7]])).sum().backward()
    assert features.embedding.weight.grad.is_sparse
    assert features.embedding.weight.grad.coalesce().indices().tolist() == [[5, 7]]


def test_features_are_the_formula():
    features = NGramFeatures(11, 2, 4, 3)
    words = torch.tensor([[5, 7], [1, 5]])
    joined = torch.cat([features.embedding.weight[words[:, i]] for i in range(2)], 1)
    expected = (joined @ features.hidden.weight.T + features.hidden.bias).tanh()
    torch.testing.assert_close(features(words), expected)


def test_a_factored_output_is_all_outputs_or_the_mean_loss():
    output = FactoredSphericalLinear(3, 11, 0.1)
    model = FactoredOutput(
        NGramFeatures(11, 2, 4, 3), output, ZLoss(0.1, 20.0, "none").from_statistics
    )
    words, target = torch.tensor([[5, 7], [1, 5]]), torch.tensor([3, 4])
    expected = ZLoss(0.1, 20.0)(model(words), target)
    torch.testing.assert_close(model(words, target), expected)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"^context: 0 given, .* expected"):
        NGramFeatures(11, 0, 4, 3)


def test_there_are_settings_for_every_scale():
    assert set(SETTINGS) == {"smoke", "laptop", "paper"}
