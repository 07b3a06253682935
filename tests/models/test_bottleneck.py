import pytest
import torch

from heterodox.models.bottleneck import BottleneckMLP
from heterodox.training.seeding import seeded

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("noise", ["none", "fixed", "learned"])
def test_the_prediction_is_decoded_from_the_code_without_noise_in_evaluation(noise):
    model = BottleneckMLP(5, 2, hidden=8, bottleneck=3, noise=noise).eval()
    prediction, code = model(X, return_code=True)
    assert code.shape == (6, 6 if noise == "learned" else 3)
    torch.testing.assert_close(prediction, model.decoder(code[:, :3]))
    assert torch.equal(model(X), model(X))


@pytest.mark.parametrize("noise", ["fixed", "learned"])
def test_in_training_noise_has_the_deviation_that_is_stated(noise):
    model = BottleneckMLP(5, 1, hidden=8, bottleneck=2, noise=noise).train()
    model.decoder = torch.nn.Identity()
    deviation = torch.tensor([1.0, 1.0]) if noise == "fixed" else torch.tensor([0.5, 2.0])
    code = torch.cat([torch.zeros(2), 2 * deviation.log()]).expand(20000, 4)
    with seeded(0):
        drawn = model.decode(code if noise == "learned" else code[:, :2])
    torch.testing.assert_close(drawn.std(0), deviation, rtol=0.03, atol=0)


def test_without_noise_training_is_deterministic():
    model = BottleneckMLP(5, 1, hidden=8, bottleneck=2).train()
    assert torch.equal(model(X), model(X))


@pytest.mark.parametrize(
    ("argument", "given"),
    [("inputs", 0), ("outputs", 0), ("hidden", -1), ("bottleneck", 0), ("noise", "some")],
)
def test_bad_arguments_are_named(argument, given):
    sizes = {"inputs": 5, "outputs": 1, argument: given}
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        BottleneckMLP(**sizes)
