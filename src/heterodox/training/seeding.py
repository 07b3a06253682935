"""Randomness from PyTorch's global generators, seeded without disturbing the caller."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run, so that its streams of random numbers are unrelated.

    Example:
        >>> derived_seed(0, "order") != derived_seed(0, "dropout") != derived_seed(1, "dropout")
        True
    """
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU, started from `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside the `with` block, torch's generators of the CPU and of `device` start from `seed`;
    afterwards they are as they were before.

    `nn.Module` initialisation and `nn.Dropout` take no generator, so this is how they get a seed.

    Args:
        seed: not negative.
        device: a CUDA device to seed as well; other devices add nothing to the CPU.

    Raises:
        ValueError: `seed` is negative.

    Example:
        >>> with seeded(3):
        ...     first = torch.nn.Linear(2, 2).weight
        >>> with seeded(3):
        ...     second = torch.nn.Linear(2, 2).weight
        >>> torch.equal(first, second)
        True
    """
    if seed < 0:
        raise ValueError(f"seed: {seed} given, a number that is not negative expected")
    device = torch.device(device)
    cuda = device.type == "cuda"
    devices = [_index(device)] if cuda else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it would also seed every other GPU of the process.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[devices[0]].manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that `seeded` seeds."""
    state = {"cpu": torch.default_generator.get_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `random_state` returned; a part that the other device lacks is left alone."""
    torch.default_generator.set_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _index(device: torch.device) -> int:
    torch.cuda.init()
    return torch.cuda.current_device() if device.index is None else device.index
