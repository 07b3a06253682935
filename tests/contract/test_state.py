"""State: what modules and optimizers save and load."""

import copy
import io
from collections.abc import Sequence

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from tests.contract.specimen import Draw, Specimen
from tests.contract.specimens import SPECIMENS
from tests.contract.test_contract import forward
from torch import Tensor, nn
from torch.optim import Optimizer


def specimens_of(base: type, made: bool = True) -> pytest.MarkDecorator:
    def belongs(specimen: Specimen) -> bool:
        if made:
            return isinstance(specimen.build(Draw()), base)
        component = specimen.resolve()
        return isinstance(component, type) and issubclass(component, base)

    chosen = [pytest.param(s, id=s.name) for s in SPECIMENS if belongs(s)]
    return pytest.mark.parametrize("specimen", chosen)


def saved_and_loaded(state: object) -> object:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@specimens_of(nn.Module)
def test_a_modules_state_makes_another_its_equal(specimen):
    draw = Draw()
    module, other = specimen.build(draw, seed=1), specimen.build(draw, seed=2)
    inputs = specimen.inputs(draw)
    expected = forward(specimen, module, inputs)
    if module.state_dict() and list(module.parameters()):
        assert not torch.equal(forward(specimen, other, inputs), expected)
    other.load_state_dict(saved_and_loaded(module.state_dict()))
    assert torch.equal(forward(specimen, other, inputs), expected)


@specimens_of(PyTorchModelHubMixin)
def test_a_shared_model_comes_back_equal(specimen, tmp_path):
    draw = Draw(dtype=torch.float32)
    model, inputs = specimen.build(draw), specimen.inputs(draw)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = specimen.resolve().from_pretrained(tmp_path).eval()
    assert torch.equal(forward(specimen, loaded, inputs), forward(specimen, model, inputs))


def step(optimizer: Optimizer, parameters: Sequence[Tensor], times: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(times):
        for parameter in parameters:
            numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = numbers.to(parameter)
        optimizer.step()


def parameters_like(others: Sequence[Tensor]) -> list[Tensor]:
    return [nn.Parameter(x.detach().clone()) for x in others]


@specimens_of(Optimizer, made=False)
@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_an_optimizer_resumes_from_its_state(specimen, copied):
    draw = Draw()
    make = specimen.build(draw)
    parameters = [nn.Parameter(x) for x in specimen.inputs(draw)]
    optimizer = make(parameters)
    step(optimizer, parameters, 3)
    resumed_parameters = parameters_like(parameters)
    resumed = make(resumed_parameters)
    resumed.load_state_dict(copied(optimizer.state_dict()))
    step(optimizer, parameters, 2)
    step(resumed, resumed_parameters, 2)
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed_parameters, strict=True))


@specimens_of(Optimizer, made=False)
def test_an_optimizer_leaves_what_has_no_gradient(specimen):
    parameters = [nn.Parameter(x) for x in specimen.inputs(Draw())]
    before = parameters_like(parameters)
    optimizer = specimen.build(Draw())(parameters)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


@specimens_of(Optimizer, made=False)
def test_an_optimizer_keeps_the_gradient_and_returns_the_closures_loss(specimen):
    weight, gradient = specimen.inputs(Draw())
    parameter = nn.Parameter(weight)
    parameter.grad = gradient.clone()
    optimizer = specimen.build(Draw())([parameter])
    assert optimizer.step(lambda: 3.5) == 3.5
    assert torch.equal(parameter.grad, gradient)


@specimens_of(Optimizer, made=False)
def test_a_schedule_drives_an_optimizer(specimen):
    weight, gradient = specimen.inputs(Draw())
    parameter = nn.Parameter(weight.clone())
    optimizer = specimen.build(Draw())([parameter])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 1.0)
    parameter.grad = gradient
    optimizer.step()
    schedule.step()
    before = parameter.detach().clone()
    assert not torch.equal(before, weight)
    optimizer.step()
    assert torch.equal(parameter, before)
