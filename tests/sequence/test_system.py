"""The representation itself: recurrence, kernel, memory and carried state agree."""

from dataclasses import fields

import pytest
import torch

from heterodox.sequence import DynamicalSystem

LENGTH = 7


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def draw_system(*batch, dense=False, biases=False, length=LENGTH, states=4, channels=3, outputs=2):
    square = (states, states) if dense else (states,)
    return DynamicalSystem(
        draw(*batch, length, *square, seed=1),
        draw(*batch, length, states, channels, seed=2),
        draw(*batch, length, outputs, states, seed=3),
        draw(*batch, length, outputs, channels, seed=4),
        draw(*batch, length, states, seed=5) if biases else None,
        draw(*batch, length, outputs, seed=6) if biases else None,
    )


def by_hand(system, inputs):
    """The definition, for one sequence and full matrices."""
    state, outputs = torch.zeros(system.state_size, dtype=torch.float64), []
    for i, u in enumerate(inputs):
        transition = system.transition[i]
        transition = transition if transition.ndim == 2 else torch.diag(transition)
        state = transition @ state + system.input_matrix[i] @ u
        if system.input_bias is not None:
            state = state + system.input_bias[i]
        output = system.output_matrix[i] @ state + system.feedthrough[i] @ u
        if system.output_bias is not None:
            output = output + system.output_bias[i]
        outputs.append(output)
    return torch.stack(outputs)


def piece(system, start, stop, batch_axes):
    def cut(x):
        return None if x is None else x.narrow(batch_axes, start, stop - start)

    return DynamicalSystem(*(cut(getattr(system, field.name)) for field in fields(system)))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_running_is_the_definition(dense, biases):
    system, inputs = draw_system(2, dense=dense, biases=biases), draw(2, LENGTH, 3)
    outputs = system.run(inputs)
    for b in range(2):
        alone = DynamicalSystem(
            *(
                None if (x := getattr(system, field.name)) is None else x[b]
                for field in fields(system)
            )
        )
        torch.testing.assert_close(outputs[b], by_hand(alone, inputs[b]))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_the_kernel_times_the_inputs_is_the_run(dense, batch):
    system, inputs = draw_system(*batch, dense=dense), draw(*batch, LENGTH, 3)
    kernel = system.kernel()
    assert kernel.shape == (*batch, LENGTH, LENGTH, 2, 3)
    outputs = torch.einsum("...ijoc,...jc->...io", kernel, inputs)
    torch.testing.assert_close(outputs, system.run(inputs))


def test_the_kernel_is_the_product_of_the_paper_and_zero_ahead():
    system = draw_system(dense=True)
    kernel = system.kernel()
    for i in range(LENGTH):
        for j in range(LENGTH):
            product = torch.eye(4, dtype=torch.float64)
            for t in range(j + 1, i + 1):
                product = system.transition[t] @ product
            expected = system.output_matrix[i] @ product @ system.input_matrix[j]
            expected = expected + system.feedthrough[i] * (i == j)
            torch.testing.assert_close(kernel[i, j], expected * (j <= i))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_two_pieces_with_the_carried_state_are_one_run(dense, batch):
    system, inputs = draw_system(*batch, dense=dense, biases=True), draw(*batch, LENGTH, 3)
    first, second = (piece(system, *ends, len(batch)) for ends in ((0, 3), (3, LENGTH)))
    begun, state = first.run(inputs[..., :3, :], return_state=True)
    finished, last = second.run(inputs[..., 3:, :], state, return_state=True)
    torch.testing.assert_close(torch.cat((begun, finished), -2), system.run(inputs))
    torch.testing.assert_close(last, system.states(inputs)[..., -1, :])


def test_memory_is_the_product_of_the_transitions_in_between():
    system = draw_system(2)
    memory = system.memory(5)
    assert memory.shape == (2, 6, 4)
    for j in range(6):
        product = system.transition[:, j + 1 : 6].prod(1).abs()
        torch.testing.assert_close(memory[:, j], product)


def test_memory_of_full_matrices_holds_singular_values():
    system = draw_system(dense=True)
    memory = system.memory(3)
    product = system.transition[3] @ system.transition[2]
    torch.testing.assert_close(memory[1], torch.linalg.svdvals(product))
    torch.testing.assert_close(memory[3], torch.ones(4, dtype=torch.float64))


def test_memory_of_a_diagonal_given_in_full_is_the_same_numbers():
    system = draw_system()
    full = DynamicalSystem(
        torch.diag_embed(system.transition), system.input_matrix, system.output_matrix
    )
    torch.testing.assert_close(full.memory(4), system.memory(4).sort(-1, descending=True).values)


@pytest.mark.parametrize("dense", [False, True])
def test_later_inputs_do_not_matter(dense):
    system, inputs = draw_system(dense=dense), draw(LENGTH, 3)
    changed = inputs.clone()
    changed[4:] = 9
    torch.testing.assert_close(system.run(changed)[:4], system.run(inputs)[:4])
    assert (system.run(changed)[4] != system.run(inputs)[4]).all()


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_through_a_run_match_finite_differences(dense):
    system, inputs = draw_system(dense=dense, biases=True, length=4), draw(4, 3)
    tensors = [getattr(system, field.name).requires_grad_() for field in fields(system)]
    assert torch.autograd.gradcheck(
        lambda u, *given: DynamicalSystem(*given).run(u), (inputs.requires_grad_(), *tensors)
    )


def test_no_positions_give_no_outputs():
    for dense in (False, True):
        system = draw_system(2, dense=dense, length=0)
        assert system.run(draw(2, 0, 3)).shape == (2, 0, 2)
        assert system.kernel().shape == (2, 0, 0, 2, 3)


def test_to_changes_the_dtype_of_everything():
    system = draw_system(biases=True).to(torch.float32)
    assert {getattr(system, field.name).dtype for field in fields(system)} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transition", {"transition": torch.zeros(LENGTH, 5)}),
        ("transition", {"transition": torch.zeros(LENGTH, 4, 3)}),
        ("input_matrix", {"input_matrix": torch.zeros(4, 3)}),
        ("output_matrix", {"output_matrix": torch.zeros(LENGTH, 2, 3)}),
        ("output_matrix", {"output_matrix": torch.zeros(4)}),
        ("feedthrough", {"feedthrough": torch.zeros(LENGTH, 3, 3)}),
        ("input_bias", {"input_bias": torch.zeros(LENGTH, 3)}),
        ("output_bias", {"output_bias": torch.zeros(2)}),
    ],
)
def test_matrices_that_do_not_fit_are_named(name, change):
    system = draw_system()
    given = {field.name: getattr(system, field.name) for field in fields(system)}
    with pytest.raises(ValueError, match=rf"^{name}: "):
        DynamicalSystem(**(given | change))


def test_bad_calls_are_named():
    system = draw_system()
    with pytest.raises(ValueError, match=r"^inputs: "):
        system.run(draw(LENGTH, 2))
    with pytest.raises(ValueError, match=r"^initial_state: "):
        system.run(draw(LENGTH, 3), draw(3))
    with pytest.raises(ValueError, match=r"^i: 7 given, a position below 7"):
        system.memory(LENGTH)
    with pytest.raises(ValueError, match=r"^return_state: "):
        draw_system(length=0).run(draw(0, 3), return_state=True)
