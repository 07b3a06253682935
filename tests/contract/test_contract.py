"""The contract: what every component must do, tried on every specimen of `specimens.py`."""

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.contract.specimen import CHECKS, Draw, Specimen
from tests.contract.specimens import SPECIMENS
from torch import Tensor, nn
from torch.func import functional_call

from heterodox.training.seeding import seeded

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

draws = st.builds(
    Draw,
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 6),
    head_dim=st.sampled_from([4, 6, 8]),
    seed=st.integers(0, 2**31),
)
# Derandomised: a gate that every change passes must not fail by chance.
few = settings(
    max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


def tries(*checks: str) -> pytest.MarkDecorator:
    """Runs a test on every specimen; where a limit is stated, the test must fail."""
    assert set(checks) <= set(CHECKS)
    parameters = []
    for specimen in SPECIMENS:
        reasons = [specimen.limits[check] for check in checks if check in specimen.limits]
        marks = [pytest.mark.xfail(reason=reasons[0], strict=True)] if reasons else []
        parameters.append(pytest.param(specimen, id=specimen.name, marks=marks))
    return pytest.mark.parametrize("specimen", parameters)


def floating(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in tensors if x.is_floating_point()]


def parameters_of(thing: Any) -> list[Tensor]:
    return list(thing.parameters()) if isinstance(thing, nn.Module) else []


def require_gradients(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)


def forward(specimen: Specimen, thing: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return specimen.call(thing, *inputs)


def forward_backward(
    run: Callable[..., Tensor], thing: Any, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The output, and the gradients of its weighted sum in inputs and parameters, if it has any."""
    inputs = require_gradients(inputs)
    output = run(*inputs)
    if not output.requires_grad:
        return (output,)
    # Weights that differ, so that a swap of elements is no symmetry of the sum.
    numbers = torch.arange(output.numel(), device=output.device)
    weights = (1 + numbers % 3).to(output.dtype).view(output.shape)
    sources = floating(inputs) + parameters_of(thing)
    gradients = torch.autograd.grad((output * weights).sum(), sources, materialize_grads=True)
    return output.detach(), *gradients


def both_ways(specimen: Specimen, thing: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return forward_backward(lambda *x: specimen.call(thing, *x), thing, inputs)


def assert_near(actual: Tensor, expected: Tensor, error: float, least: float = 1e-3) -> None:
    """Equal up to `error` of the largest number that is expected, or of `least`."""
    assert actual.shape == expected.shape
    actual, expected = actual.double().cpu(), expected.double().cpu()
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=error * max(largest, least))


@pytest.mark.parametrize("device", DEVICES)
@tries("float64")
@few
@given(draw=draws)
def test_forward_and_backward_run_in_float64(specimen, device, draw):
    check_dtype(specimen, replace(draw, device=device, dtype=torch.float64))


@pytest.mark.parametrize("device", DEVICES)
@tries("float32")
@few
@given(draw=draws)
def test_float32_is_close_to_float64(specimen, device, draw):
    check_dtype(specimen, replace(draw, device=device, dtype=torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@tries("bfloat16")
@few
@given(draw=draws)
def test_bfloat16_is_close_to_float64(specimen, device, draw):
    check_dtype(specimen, replace(draw, device=device, dtype=torch.bfloat16))


def check_dtype(specimen: Specimen, draw: Draw) -> None:
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    results = both_ways(specimen, thing, inputs)
    output, error = results[0], specimen.error_in(draw.dtype)
    assert output.dtype == (specimen.returns or draw.dtype)
    assert output.device.type == draw.device
    # The same numbers in float64 on the CPU, so that only the arithmetic differs.
    exact = copy.deepcopy(thing)
    exact = exact.to("cpu", torch.float64) if isinstance(exact, nn.Module) else exact
    expected = both_ways(
        specimen,
        exact,
        tuple(x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs),
    )
    assert len(results) == len(expected)
    # A gradient that is exactly zero is, in floating point, small beside the others.
    largest = max(x.abs().max().item() for x in expected)
    for actual, reference in zip(results, expected, strict=True):
        assert actual.isfinite().all()
        assert_near(actual, reference, error, least=0.05 * largest)


class Called(nn.Module):
    """A component as its specimen calls it, so that its parameters can be replaced."""

    def __init__(self, thing: Any, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.thing, self.call = thing, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.thing, *inputs)


@tries("backward")
def test_gradients_match_finite_differences(specimen):
    """Also the sign that float64 is computed in float64: differences of less would be noise."""
    draw = Draw(batch=2, length=4)
    thing, inputs = specimen.build(draw), require_gradients(specimen.inputs(draw))
    called = Called(thing, specimen.call)
    parameters = dict(called.named_parameters())

    def call(*tensors: Tensor) -> Tensor:
        values = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return functional_call(called, values, tensors[: len(inputs)])

    assert call(*inputs, *parameters.values()).requires_grad
    assert torch.autograd.gradcheck(call, (*inputs, *parameters.values()), fast_mode=True)


def test_there_is_a_cuda_device_to_run_the_contract_on():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device: the contract ran on the CPU only")


@tries("other device")
def test_no_tensor_is_made_on_another_device_than_the_inputs(specimen):
    # "meta" has shapes and no numbers, and refuses to meet a tensor of the CPU.
    draw = Draw(dtype=torch.float32)
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    thing = thing.to("meta") if isinstance(thing, nn.Module) else thing
    output = both_ways(specimen, thing, tuple(x.to("meta") for x in inputs))[0]
    assert output.device.type == "meta"


@tries("non-contiguous")
@few
@given(draw=draws)
def test_strides_do_not_matter(specimen, draw):
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    expected = both_ways(specimen, thing, inputs)
    for strided in (with_gaps, with_axes_turned):
        for actual, reference in zip(
            both_ways(specimen, thing, tuple(map(strided, inputs))), expected, strict=True
        ):
            assert_near(actual, reference, 1e-10)


def with_gaps(x: Tensor) -> Tensor:
    """The same numbers, every second element of a tensor whose others must not be read."""
    junk = torch.full_like(x, torch.nan) if x.is_floating_point() else torch.ones_like(x)
    return torch.stack((x, junk), dim=-1)[..., 0]


def with_axes_turned(x: Tensor) -> Tensor:
    """The same numbers, the last axis outermost in memory."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1) if x.ndim > 1 else x


@tries("empty batch")
def test_an_empty_batch_gives_nothing(specimen):
    if specimen.batch == "none":
        pytest.skip("has no batch")
    full, empty = Draw(), Draw(batch=0)
    expected = forward(specimen, specimen.build(full), specimen.inputs(full)).shape
    thing, inputs = specimen.build(empty), specimen.inputs(empty)
    output, *gradients = both_ways(specimen, thing, inputs)
    if specimen.batch == "reduced":
        assert output.shape == expected
        return
    assert output.shape == (0, *expected[1:])
    for gradient in gradients:
        assert not gradient.any()


@tries("rows")
@few
@given(draw=draws)
def test_a_row_does_not_depend_on_its_batch(specimen, draw):
    if specimen.batch != "axis":
        pytest.skip("the batch is reduced" if specimen.batch == "reduced" else "has no batch")
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    together = forward(specimen, thing, inputs)
    assert len(together) == draw.batch
    for row in range(draw.batch):
        alone = forward(specimen, thing, tuple(x[row : row + 1] for x in inputs))
        assert_near(alone, together[row : row + 1], 1e-10)


@tries("inputs")
@few
@given(draw=draws)
def test_inputs_are_not_changed(specimen, draw):
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    inputs = require_gradients(inputs)
    versions = [x._version for x in inputs]
    specimen.call(thing, *inputs)
    both_ways(specimen, thing, inputs)
    assert [x._version for x in inputs] == versions
    for x, expected in zip(inputs, specimen.inputs(replace(draw)), strict=True):
        assert torch.equal(x, expected)


@tries("global generators")
def test_calls_leave_the_global_generators_alone(specimen, request):
    """A call does, for a module in eval mode. Construction draws from torch's generator, as every
    `nn.Module` does, and from no other."""
    draw = Draw()
    # beartype itself, which picks the items that it looks at, draws from Python's generator.
    checking_types = bool(request.config.getoption("--jaxtyping-packages"))
    before = numpy_and_python(checking_types)
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    torch_before = torch.get_rng_state()
    both_ways(specimen, thing, inputs)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert numpy_and_python(checking_types) == before


def numpy_and_python(numpy_only: bool) -> tuple[Any, ...]:
    state = np.random.get_state(legacy=False)
    return pickle.dumps(state), None if numpy_only else random.getstate()


@tries("deterministic")
def test_the_same_seed_gives_the_same_bits(specimen):
    draw = Draw(dtype=torch.float32)
    first, second = (
        both_ways(specimen, specimen.build(draw), specimen.inputs(replace(draw))) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@tries("copies")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal_and_independent(specimen, duplicate):
    draw = Draw()
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    twin = duplicate(thing)
    expected = forward(specimen, thing, inputs)
    assert torch.equal(forward(specimen, twin, inputs), expected)
    for parameter in parameters_of(twin):
        parameter.data.mul_(-2)
    assert torch.equal(forward(specimen, thing, inputs), expected)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@tries("compile")
def test_compiled_equals_eager(specimen, fresh_compiler):
    draw = Draw()
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    compiled = torch.compile(
        lambda *x: specimen.call(thing, *x),
        backend="aot_eager",
        fullgraph=not specimen.graph_breaks,
    )
    expected = both_ways(specimen, thing, inputs)
    for actual, reference in zip(forward_backward(compiled, thing, inputs), expected, strict=True):
        assert_near(actual, reference, 1e-10)


def test_limits_are_stated_for_known_checks_with_a_reason():
    for specimen in SPECIMENS:
        assert set(specimen.limits) <= set(CHECKS), specimen.name
        assert all(len(reason) > 10 for reason in specimen.limits.values()), specimen.name
    names = [specimen.name for specimen in SPECIMENS]
    assert len(set(names)) == len(names)


def test_dropout_repeats_under_a_seed():
    from heterodox.attention import ATTENTION

    for name in ATTENTION:
        layer = ATTENTION[name](8, 2, sequence_length=4, position=None)
        if not hasattr(layer, "dropout"):
            continue
        layer.dropout = 0.5
        x = torch.randn(2, 4, 8)
        outputs = []
        for seed in (1, 1, 2):
            with seeded(seed):
                outputs.append(layer(x, is_causal=True))
        assert torch.equal(outputs[0], outputs[1]), name
        assert not torch.equal(outputs[0], outputs[2]), name
