"""Run as a program: calls every specimen with shape types enforced, and prints what came of it.

It needs an interpreter of its own, because types can be enforced only as a module is imported.
"""

import json
from typing import Any

import torch
from jaxtyping import TypeCheckError, install_import_hook
from torch import Tensor

WRONG_KINDS = ("as it is", "another kind of number", "another rank")


def main() -> None:
    with install_import_hook("heterodox", "beartype.beartype"):
        from tests.contract.specimens import SPECIMENS

        # Lazy imports inside a call must find the hook as well.
        print(json.dumps({specimen.name: outcomes(specimen) for specimen in SPECIMENS}))


def outcomes(specimen: Any) -> dict[str, str]:
    from tests.contract.specimen import Draw

    draw = Draw(dtype=torch.float32)
    thing, inputs = specimen.build(draw), specimen.inputs(draw)
    tried = (inputs, tuple(map(other_kind, inputs)), tuple(x[None] for x in inputs))
    return {
        kind: outcome(specimen, thing, wrong)
        for kind, wrong in zip(WRONG_KINDS, tried, strict=True)
    }


def outcome(specimen: Any, thing: Any, inputs: tuple[Tensor, ...]) -> str:
    try:
        specimen.call(thing, *inputs)
    except TypeCheckError:
        return "refused by its type"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def other_kind(x: Tensor) -> Tensor:
    return x.long() if x.is_floating_point() else x.float()


if __name__ == "__main__":
    main()
