import math
import subprocess
import sys

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.probes import GrokkingMonitor, naive_loss_minimization, softmax_collapse


@pytest.fixture
def fitted():
    """A small network with the gradients of its training set, and both sets of logits."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(20, 4, generator=generator)
    labels = torch.randint(3, (20,), generator=generator)
    logits = model(x)
    F.cross_entropy(logits[:12], labels[:12]).backward()
    return model, logits, labels


def test_a_gap_of_20_collapses_float32_and_not_float64():
    logits = torch.tensor([[0.0, -20.0]])
    assert softmax_collapse(logits) == 1
    assert softmax_collapse(logits, dtype=torch.float64) == 0
    assert softmax_collapse(logits.double()) == 0


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float16, 11), (torch.float32, 24), (torch.float64, 53)]
)
def test_collapse_starts_where_one_class_is_lost_in_the_sum(dtype, bits):
    gap = bits * math.log(2)
    for factor, expected in ((0.95, 0.0), (1.05, 1.0)):
        logits = torch.tensor([[3.0, 3.0 - factor * gap, -math.inf]], dtype=torch.float64)
        assert softmax_collapse(logits, dtype=dtype) == expected


def test_collapse_is_a_share_of_all_examples_whatever_their_dimensions():
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = 50.0
    logits[1, 2, 0] = 50.0
    logits[1, 1, 0] = 50.0
    collapse = softmax_collapse(logits)
    assert collapse.dtype == torch.float32 and collapse.shape == ()
    assert collapse.item() == pytest.approx(3 / 6)


def test_with_labels_only_examples_without_any_loss_count():
    logits = torch.tensor([[0.0, -20.0], [-20.0, 0.0], [0.0, -10.0], [0.0, -20.0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert softmax_collapse(logits) == 0.75
    assert softmax_collapse(logits, labels=labels) == 0.25
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert (losses == 0).float().mean() == softmax_collapse(logits, labels=labels)


def test_collapse_of_nothing_is_nan():
    assert softmax_collapse(torch.empty(0, 3)).isnan()


def test_the_cosine_is_that_of_the_concatenated_vectors(fitted):
    parameters = list(fitted[0].parameters())
    theta = torch.cat([p.detach().flatten() for p in parameters]).double()
    gradient = torch.cat([p.grad.flatten() for p in parameters]).double()
    cosine = -(theta @ gradient) / (theta.norm() * gradient.norm())
    torch.testing.assert_close(naive_loss_minimization(parameters), cosine.float())
    each = naive_loss_minimization(parameters, per_tensor=True)
    expected = [F.cosine_similarity(-p.grad.flatten(), p.detach().flatten(), 0) for p in parameters]
    torch.testing.assert_close(each, torch.stack(expected))


@pytest.mark.parametrize(("sign", "cosine"), [(-2.0, 1.0), (0.5, -1.0), (0.0, 0.0)])
def test_a_gradient_along_the_weights_is_recognised(sign, cosine):
    parameters = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 3))]
    for p in parameters:
        p.grad = sign * p.detach()
    assert naive_loss_minimization(parameters).item() == pytest.approx(cosine)


def test_gradients_too_small_for_float32_squares_still_have_a_direction():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), -1e-30)
    assert naive_loss_minimization([weight]).item() == pytest.approx(1.0)


def test_gradient_descent_on_a_fitted_homogeneous_network_scales_its_logits():
    # Separable data, no bias: the gradient's share along the weights is positive, Euler's identity.
    weight = nn.Parameter(10 * torch.eye(3))
    F.cross_entropy(torch.eye(3) @ weight, torch.arange(3)).backward()
    assert naive_loss_minimization([weight]) > 0.5


def test_parameters_without_gradient_are_left_out(fitted):
    parameters = list(fitted[0].parameters())
    both = [nn.Parameter(torch.ones(3)), *parameters]
    torch.testing.assert_close(naive_loss_minimization(both), naive_loss_minimization(parameters))
    with pytest.raises(ValueError, match=r"^parameters: "):
        naive_loss_minimization(both[:1])


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"^labels: "):
        softmax_collapse(torch.zeros(3, 2), labels=torch.zeros(2, dtype=torch.long))


def test_the_monitor_records_what_the_functions_say(fitted):
    model, logits, labels = fitted
    logits = logits.detach()
    monitor = GrokkingMonitor(dtype=torch.float16)
    for step in (0, 5):
        monitor.record(step, model.parameters(), logits[:12], labels[:12], logits[12:], labels[12:])
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    right = (logits.argmax(-1) == labels).float()
    expected = {
        "train_loss": F.cross_entropy(logits[:12], labels[:12]),
        "test_loss": F.cross_entropy(logits[12:], labels[12:]),
        "train_accuracy": right[:12].mean(),
        "test_accuracy": right[12:].mean(),
        "weight_norm": theta.norm(),
        "collapse": softmax_collapse(logits[:12], torch.float16),
        "collapse_on_label": softmax_collapse(logits[:12], torch.float16, labels[:12]),
        "alignment": naive_loss_minimization(model.parameters()),
    }
    assert monitor.history["step"] == [0, 5]
    assert monitor.history.keys() == {"step", *expected}
    for name, value in expected.items():
        assert monitor.history[name] == pytest.approx([value.item()] * 2, rel=1e-6), name
    assert 0 < expected["collapse"] < 1 or expected["collapse"] in (0, 1)


def test_the_monitor_takes_the_loss_that_is_trained_and_no_gradient(fitted):
    model, logits, labels = fitted
    model.zero_grad()
    monitor = GrokkingMonitor(loss=lambda z, y: F.cross_entropy(z, y, reduction="sum"))
    monitor.record(0, model.parameters(), logits[:12], labels[:12], logits[12:], labels[12:])
    expected = F.cross_entropy(logits[:12], labels[:12], reduction="sum").item()
    assert monitor.history["train_loss"] == pytest.approx([expected])
    assert math.isnan(monitor.history["alignment"][0])


def test_the_plot_shows_each_curve_over_the_steps(fitted):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, logits, labels = fitted
    monitor = GrokkingMonitor()
    for step in (0, 10):
        monitor.record(step, model.parameters(), logits[:12], labels[:12], logits[12:], labels[12:])
    figure, axes = plt.subplots()
    assert monitor.plot(axes) is axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert list(curves["test accuracy"].get_xdata()) == [0, 10]
    assert list(curves["test accuracy"].get_ydata()) == monitor.history["test_accuracy"]
    plt.close(figure)
    plt.close(monitor.plot().figure)


def test_importing_the_probes_does_not_import_matplotlib():
    code = "import sys, heterodox.probes.grokking; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
