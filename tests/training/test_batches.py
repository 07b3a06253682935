import pytest
import torch

from heterodox.training.batches import Indexed, RandomWindows, Shuffled


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_windows_are_pieces_of_the_text_and_targets_come_one_later():
    text = torch.randint(50, (200,), generator=generator(), dtype=torch.uint8)
    windows = RandomWindows(text, 7, 16, generator())
    everywhere = text.unfold(0, 8, 1)
    inputs, targets = next(windows)
    assert inputs.dtype == targets.dtype == torch.int64
    for row in torch.cat([inputs, targets[:, -1:]], dim=1):
        assert (everywhere == row).all(dim=1).any()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_every_place_of_the_text_is_drawn_the_last_one_included():
    windows = RandomWindows(torch.arange(6), 2, 100, generator())
    inputs, _ = next(windows)
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3}


def test_an_epoch_holds_every_example_once_and_the_next_has_another_order():
    x = torch.arange(12)
    batches = Shuffled((x, x * 10), 4, generator())
    epochs = []
    for _ in range(2):
        drawn = [next(batches) for _ in range(len(batches))]
        assert all(torch.equal(b, a * 10) for a, b in drawn)
        epochs.append(torch.cat([a for a, _ in drawn]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == x.tolist()
    assert epochs[0] != epochs[1]


def test_an_incomplete_last_batch_is_left_out():
    batches = Shuffled((torch.arange(10),), 4, generator())
    assert len(batches) == 2
    assert all(len(next(batches)[0]) == 4 for _ in range(7))


@pytest.mark.parametrize("drawn", [0, 3, 5, 6, 7])
@pytest.mark.parametrize(
    "build",
    [
        lambda g: RandomWindows(torch.arange(50), 4, 3, g),
        lambda g: Shuffled((torch.arange(15),), 3, g),
    ],
)
def test_a_restored_state_goes_on_exactly(build, drawn):
    original = build(generator())
    for _ in range(drawn):
        next(original)
    state = original.state_dict()
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    expected = [next(original) for _ in range(12)]
    restored = build(generator(99))
    restored.load_state_dict(state)
    for a, b in zip(expected, (next(restored) for _ in range(12)), strict=True):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: RandomWindows(torch.arange(5), 5, 1, generator()), "tokens: 5"),
        (lambda: RandomWindows(torch.arange(5), 0, 1, generator()), "length: 0"),
        (lambda: RandomWindows(torch.arange(5), 2, 0, generator()), "batch_size: 0"),
        (lambda: Shuffled((), 1, generator()), "tensors: none"),
        (lambda: Shuffled((torch.ones(3), torch.ones(4)), 1, generator()), "tensors: lengths"),
        (lambda: Shuffled((torch.ones(3),), 4, generator()), "batch_size: 4"),
    ],
)
def test_bad_input_names_the_argument(build, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        build()


def test_indices_lead_back_to_their_examples_in_any_order_of_loading():
    x, y = torch.randn(10, 2, generator=generator()), torch.arange(10)
    data = Indexed(torch.utils.data.TensorDataset(x, y))
    assert len(data) == 10
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=generator())
    seen = []
    for images, labels, index in loader:
        assert torch.equal(images, x[index]) and torch.equal(labels, y[index])
        seen.extend(index.tolist())
    assert sorted(seen) == list(range(10)) != seen
