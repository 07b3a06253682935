"""Who takes part in a benchmark, found without importing what they stand for."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from heterodox.bench import BENCHES, COMPONENTS, PACKAGES, PEERS


def chosen_peers(slot: str, against: Sequence[str] | None) -> list[str]:
    """The peers named, or all whose package is installed.

    Raises:
        ValueError: no such slot, no such peer, or its package is not installed.

    Example:
        >>> chosen_peers("attention", ["dense-softmax"])
        ['dense-softmax']
    """
    BENCHES.where(slot)
    peers = PEERS[slot]
    if against is None:
        return [name for name in peers if _is_installed(name)]
    for name in against:
        peers.where(name)
        if not _is_installed(name):
            raise ValueError(
                f"against: {name!r} given, which needs a package that is not installed: "
                'pip install "heterodox[bench]"'
            )
    return list(dict.fromkeys(against))


def contestant(slot: str, name: str) -> Callable[..., Any]:
    """The function behind a component's or a peer's name."""
    return COMPONENTS[slot][name] if name in COMPONENTS[slot] else PEERS[slot][name]


def _is_installed(peer: str) -> bool:
    return peer not in PACKAGES or importlib.util.find_spec(PACKAGES[peer]) is not None
