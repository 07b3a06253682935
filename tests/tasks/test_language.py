import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention.slot import sigmoid
from heterodox.data.text import TextData
from heterodox.experiment.scale import Scale
from heterodox.losses import LOSSES, ZLoss
from heterodox.models.factored_output import OUTPUTS, FactoredOutput
from heterodox.tasks.language import SETTINGS, LanguageSettings, check, train, window_loss

TINY = LanguageSettings(
    length=8,
    width=16,
    layers=1,
    heads=2,
    steps=30,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=3,
    evaluation_windows=2,
    evaluate_lengths=(1, 2, 4),
    evaluations=3,
)


def text(words=200):
    generator = torch.Generator().manual_seed(0)
    vocabulary = ["the ", "cat ", "sät ", "on ", "mat. "]
    order = torch.randint(len(vocabulary), (words,), generator=generator).tolist()
    whole = "".join(vocabulary[i] for i in order)
    border = int(0.7 * len(whole))
    return TextData("words", whole[:border], whole[border:], None, "0" * 64, "")


def test_it_learns():
    run = train(data=text(), settings=replace(TINY, steps=150))
    uniform = math.log(run.text.vocabulary_size)
    assert run.validation_loss < 0.6 * uniform
    assert [step for step, _ in run.history.evaluations["validation loss"]] == [50, 100, 150]


@pytest.mark.parametrize("length", [1, 8, 16, 21])
def test_the_loss_at_a_length_is_the_mean_over_every_position_of_every_window(length):
    run = train(data=text(), settings=replace(TINY, steps=2))
    tokens = run.text.validation[: 2 * 32 + 1]
    losses = []
    for start in range(0, len(tokens) - length, length):
        window = tokens[start : start + length + 1]
        logits = run.model(window[None, :-1])[0]
        losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
    assert run.loss_at(length) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_every_length_predicts_the_same_text():
    tokens = torch.arange(65)
    targets = {}

    class Recorder(torch.nn.Linear):
        def forward(self, x):
            return F.one_hot(x, 65).float()

    for length in (8, 16, 32, 64):
        seen = []
        window_loss(
            Recorder(1, 1),
            tokens,
            length,
            lambda logits, target, seen=seen: seen.append(target) or torch.zeros(()),
            tokens_at_once=16,
        )
        targets[length] = torch.cat(seen)
    assert all(torch.equal(t, torch.arange(1, 65)) for t in targets.values())


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, second, other = (
        train(data=text(), settings=TINY, seed=seed).measurement() for seed in (1, 1, 2)
    )
    assert first == second
    assert first.value != other.value


def test_arms_with_the_same_seed_see_the_same_windows_and_weights():
    seen = {}

    def spy(name):
        def loss(logits, target):
            seen.setdefault(name, []).append(target)
            return F.cross_entropy(logits, target)

        return loss

    for attention in ("softmax", "sigmoid"):
        train(data=text(), settings=TINY, attention=attention, loss=spy(attention), seed=3)
    assert all(map(torch.equal, seen["softmax"], seen["sigmoid"]))


def test_bytes_and_characters_are_compared_by_the_byte():
    run = train(data=text(), settings=TINY)
    encoded = run.text.validation[: 2 * 32 + 1][1:]
    size = len(run.text.decode(encoded).encode("utf-8"))
    assert size > len(encoded)  # the umlaut
    assert run.measurement().value == pytest.approx(run.validation_loss * len(encoded) / size)
    as_bytes = train(data=text(), settings=replace(TINY, tokens="byte"))
    assert as_bytes.measurement().value == as_bytes.validation_loss


def test_the_measurement_reads_losses_beyond_the_training_length():
    run = train(data=text(), settings=TINY, attention="sigmoid")
    measurement = run.measurement()
    per_byte = run.loss_at(32) / run.bytes_per_token
    assert measurement.readings["loss at 4x"] == pytest.approx(per_byte)
    rise = per_byte - measurement.value
    assert measurement.readings["rise at 4x"] == pytest.approx(rise)
    assert measurement.readings["attention norm"] == pytest.approx(run.attention_norms[0])
    assert measurement.from_json(measurement.to_json()) == measurement


def test_learned_positions_are_evaluated_at_the_training_length_only():
    run = train(data=text(), settings=TINY, position="learned")
    assert list(run.losses) == [1]


def test_slots_take_callables():
    run = train(
        data=text(),
        settings=TINY,
        attention=sigmoid,
        norm=torch.nn.LayerNorm,
        optimizer=lambda params, lr, weight_decay=0.0: torch.optim.SGD(params, lr=lr),
        schedule=lambda optimizer, total_steps, warmup_steps=0: torch.optim.lr_scheduler.ConstantLR(
            optimizer
        ),
    )
    assert type(run.model.blocks[0].attention).__name__ == "SigmoidAttention"


def test_a_loss_of_another_distribution_is_evaluated_in_that_distribution():
    run = train(data=text(), settings=replace(TINY, steps=2), loss="stablemax")
    tokens = run.text.validation[: 2 * 32 + 1]
    stablemax = LOSSES["stablemax"]
    assert run.validation_loss == pytest.approx(window_loss(run.model, tokens, 8, stablemax, 64))


WORDS = replace(TINY, tokens="word", steps=60, output_rate=1.0)


@pytest.mark.parametrize("output", ["linear", *OUTPUTS])
def test_words_are_learned_by_every_output_layer(output):
    rate = {"spherical-squared": 0.05}.get(output, 1.0)
    run = train(data=text(), output=output, settings=replace(WORDS, output_rate=rate))
    assert run.text.vocabulary_size == 9
    readings = run.measurement().readings
    assert readings["top-1 error"] == run.top_error(1)
    assert run.validation_loss < math.log(9)
    assert isinstance(run.model, FactoredOutput) == (output != "linear")


def test_the_top_error_of_words_is_counted_over_the_validation_windows():
    run = train(data=text(), output="z-loss", settings=WORDS)
    tokens = run.text.validation[: 2 * 32 + 1]
    count = (len(tokens) - 1) // 8 * 8
    with torch.no_grad():
        outputs = run.model(tokens[:count].view(-1, 8)).flatten(0, 1)
    wrong = (outputs.argmax(1) != tokens[1 : count + 1]).float().mean().item()
    assert run.top_error(1) == pytest.approx(100 * wrong)


def test_a_factored_output_layer_follows_the_schedule_to_its_end():
    run = train(data=text(), output="z-loss", settings=WORDS)
    assert int(run.model.output.counter) == WORDS.steps
    assert run.model.output.learning_rate < 0.05 * WORDS.output_rate
    assert run.model.output.check() < 1e-4


def test_a_loss_from_statistics_may_be_given():
    run = train(data=text(), output=ZLoss(1.0, 2.0).from_statistics, settings=WORDS)
    assert run.nll.sharpness > 0


def test_the_vocabulary_can_be_limited():
    run = train(data=text(), settings=replace(WORDS, steps=2, vocabulary=2))
    assert run.text.vocabulary_size == 3


def test_an_interrupted_run_with_a_factored_output_resumes_to_the_same_model(tmp_path):
    expected = train(data=text(), output="z-loss", settings=WORDS)
    path = tmp_path / "run"
    calls = []

    def z_loss(*statistics):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return OUTPUTS["z-loss"](*statistics)

    with pytest.raises(KeyboardInterrupt):
        train(data=text(), output=z_loss, settings=WORDS, checkpoint=path)
    resumed = train(data=text(), output=z_loss, settings=WORDS, checkpoint=path)
    assert len(calls) == 40 + WORDS.steps - 36
    assert resumed.losses == expected.losses
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_run_that_diverges_measures_nan():
    run = train(data=text(), settings=replace(TINY, learning_rate=1e30, clip=None), norm="rms")
    assert math.isnan(run.measurement().value)
    assert run.history.diverged


def test_an_interrupted_run_resumes_to_the_same_model(tmp_path):
    expected = train(data=text(), settings=TINY)
    path = tmp_path / "run"
    calls = []

    def cross_entropy(logits, target):
        calls.append(1)
        if len(calls) == 20:  # the last checkpoint is of step 18
            raise KeyboardInterrupt
        return F.cross_entropy(logits, target)

    with pytest.raises(KeyboardInterrupt):
        train(data=text(), settings=TINY, loss=cross_entropy, checkpoint=path)
    resumed = train(data=text(), settings=TINY, loss=cross_entropy, checkpoint=path)
    assert len(calls) == 20 + 12
    assert resumed.losses == expected.losses
    with pytest.raises(ValueError, match=r"^checkpoint: .* of another run"):
        train(data=text(), settings=TINY, attention="sigmoid", checkpoint=path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention": "sofmax"}, "attention: 'sofmax' given"),
        ({"position": "absolute"}, "position: 'absolute' given"),
        ({"norm": "batch"}, "norm: 'batch' given"),
        ({"loss": "hinge"}, "loss: 'hinge' given"),
        ({"output": "softmax"}, "output: 'softmax' given, one of linear, z-loss"),
        ({"output": "z-loss", "loss": "z-loss"}, "loss: 'z-loss' given"),
        (
            {"output": "z-loss", "settings": replace(TINY, precision="16-mixed")},
            "precision: '16-mixed' given",
        ),
        (
            {"settings": replace(TINY, tokens="word"), "data": text(words=50)},
            "data: 'words' has 19 words",
        ),
        ({"optimizer": "lion"}, "optimizer: 'lion' given"),
        ({"schedule": "step"}, "schedule: 'step' given"),
        ({"settings": replace(TINY, heads=3)}, "heads: 3 given, a divisor of the width 16"),
        ({"settings": replace(TINY, heads=16)}, "heads: 16 given, an even width"),
        ({"data": text(words=20)}, "data: 'words' has"),
        ({"data": "no-such-text"}, "data: 'no-such-text' given"),
    ],
)
def test_bad_input_names_the_argument_before_any_work(change, message):
    arguments = {"data": text(), "settings": TINY, **change}
    for function in (check, train):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(**arguments)


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0),
        ("tokens", "line"),
        ("vocabulary", 5),
        ("output_rate", 0.0),
        ("evaluate_lengths", (2, 4)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        replace(TINY, **{name: value})


def test_there_are_settings_for_every_scale():
    assert set(SETTINGS) == set(Scale)
