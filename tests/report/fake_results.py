"""Result files as the runner writes them, with made-up numbers."""

import json
import math
import random
from pathlib import Path
from typing import Any

SLOTS = ("attention", "loss", "layer", "learning rule", "optimizer", "probe", "sequence mixer")
ENVIRONMENT = {
    "heterodox": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "numpy": "2.3.1",
    "processor": "AMD EPYC 7B13",
    "cores": "2",
    "system": "Linux 6.1",
    "device": "cpu",
    "commit": "3fa9c2d",
}


def effect(label: str, differences: list[float], side: str, threshold: float) -> dict[str, Any]:
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1))
    half = 2.776 * spread / math.sqrt(len(differences))
    low, high = mean - half, mean + half
    inside = high < threshold if side == "below" else low > threshold
    outside = low > threshold if side == "below" else high < threshold
    return {
        "label": label,
        "per_seed": {str(seed): d for seed, d in enumerate(differences, 1)},
        "mean": mean,
        "low": low,
        "high": high,
        "side": side,
        "threshold": threshold,
        "method": f"95% t interval over {len(differences)} paired seeds",
        "verdict": "holds" if inside else "fails" if outside else "inconclusive",
    }


def claim(name: str, verdict: str = "holds", seeds: int = 5, points: int = 40) -> dict[str, Any]:
    """A claim with the given verdict: sigmoid against softmax, lower is better, margin 0.02."""
    chance = random.Random(name)
    gap, noise = {"holds": (0.004, 0.006), "fails": (0.11, 0.01), "inconclusive": (0.018, 0.03)}[
        verdict
    ]
    softmax = [1.62 + chance.gauss(0, 0.02) for _ in range(seeds)]
    sigmoid = [v + gap + noise * wave for v, wave in zip(softmax, _waves(seeds), strict=True)]
    values = {"softmax": softmax, "sigmoid": sigmoid}

    def curve(end: float) -> list[list[float]]:
        return [
            [100 * i, end + 2.6 * math.exp(-6 * i / points) + chance.gauss(0, 0.02)]
            for i in range(points + 1)
        ]

    difference = effect(
        "sigmoid − softmax",
        [b - a for a, b in zip(softmax, sigmoid, strict=True)],
        "below",
        0.02,
    )
    assert difference["verdict"] == verdict
    return {
        "name": name,
        "says": "Properly normalised sigmoid attention matches softmax in language modelling.",
        "reported": "Table 2: 1B parameters on RedPajama, validation loss 2.18 against 2.19",
        "metric": "validation loss [nats/char]",
        "better": "lower",
        "set_up": "A two-layer transformer of width 96 learns tiny Shakespeare for 600 steps "
        "of 16 sequences of characters; both arms share the block, the data order and the rate.",
        "differs": "10 000 times fewer parameters, characters instead of tokens.",
        "expects": "sigmoid no worse than softmax + 0.02",
        "arms": ["softmax", "sigmoid"],
        "verdict": verdict,
        "reason": f"sigmoid − softmax is {difference['mean']:.4g}, "
        f"interval {difference['low']:.4g} to {difference['high']:.4g}; "
        f"expected below 0.02 ({difference['method']})",
        "effects": [difference],
        "values": {
            arm: {str(seed): v for seed, v in enumerate(numbers, 1)}
            for arm, numbers in values.items()
        },
        "readings": {
            arm: {str(seed): {"loss at 8x": v + 0.3} for seed, v in enumerate(numbers, 1)}
            for arm, numbers in values.items()
        },
        "curves": {
            arm: {str(seed): {"validation loss": curve(v)} for seed, v in enumerate(numbers, 1)}
            for arm, numbers in values.items()
        },
        "failed": [],
        "seconds": 184.2,
    }


def _waves(count: int) -> list[float]:
    """Numbers around zero with a spread near one, the same every time."""
    return [1.3 * math.sin(2.4 * i + 1) for i in range(count)]


def without_numbers(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim before any of its jobs ended well."""
    nothing: dict[str, Any] = {"effects": [], "values": {}, "readings": {}, "curves": {}}
    return claim | nothing | {"verdict": "inconclusive", "reason": "some arms have not been run"}


def diverging(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim after one run of sigmoid diverged."""
    tree = json.loads(json.dumps(claim))
    tree["values"]["sigmoid"]["2"] = "NaN"
    tree["values"]["sigmoid"]["3"] = "Infinity"
    tree["curves"]["sigmoid"]["2"]["validation loss"][20:] = [
        [100 * i, "NaN"] for i in range(20, 41)
    ]
    method = "no interval: some runs diverged (5 paired seeds)"
    tree["effects"][0] |= {"mean": "NaN", "low": "-Infinity", "high": "Infinity", "method": method}
    tree["effects"][0] |= {"verdict": "inconclusive"}
    tree["effects"][0]["per_seed"] |= {"2": "Infinity", "3": "Infinity"}
    return tree | {"verdict": "inconclusive", "reason": method}


def paper(
    identity: str,
    claims: list[dict[str, Any]],
    title: str = "Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    slot: str = "attention",
    scale: str = "laptop",
    kind: str = "paper",
) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": kind,
        "paper": {
            "id": identity,
            "title": title,
            "arxiv": "2409.04431" if kind == "paper" else "",
            "year": 2024,
            "slot": slot,
            "summary": "Replaces the softmax of attention by an element-wise sigmoid.",
        },
        "scale": scale,
        "written": "2026-11-25T19:00:00+00:00",
        "environment": ENVIRONMENT,
        "seconds": 600.0,
        "claims": claims,
    }


def gallery() -> list[dict[str, Any]]:
    """One result of every kind that a report has to show."""
    hostile = "<script>window.hacked = 1</script> & \"q\" 'a' $x_1 | *b* </style> σ"
    angry = claim("hostile", "holds") | {
        key: hostile
        for key in ("says", "reported", "set_up", "differs", "reason", "metric", "expects")
    }
    angry["arms"] = ["softmax", hostile]
    for key in ("values", "readings", "curves"):
        angry[key] = {"softmax": angry[key]["softmax"], hostile: angry[key]["sigmoid"]}
    angry["effects"][0]["label"] = hostile
    within = claim("within", "holds")
    within["effects"].append(
        effect("sigmoid − softmax", list(within["effects"][0]["per_seed"].values()), "above", -0.02)
    )
    failed = without_numbers(claim("broken_runs")) | {
        "reason": "2 runs broke, so nothing is concluded",
        "failed": [
            {"arm": "sigmoid", "seed": seed, "error": "RuntimeError: shape (2, 3) is invalid"}
            for seed in (1, 3)
        ],
    }
    return [
        paper(
            "sigmoid-attention",
            [
                claim("matches_softmax", "holds"),
                claim("large_norms", "fails"),
                claim("vision_parity", "inconclusive"),
                within,
            ],
        ),
        paper(
            "z-loss",
            [diverging(claim("diverging", "holds")), failed, without_numbers(claim("not_run"))],
            title="The Z-loss: a Shift and Scale Invariant Classification Loss",
            slot="loss",
        ),
        paper("sigmoid-attention", [claim("matches_softmax", "fails")], scale="smoke"),
        paper("hostile", [angry], title=hostile, slot="layer"),
        paper(
            "compare-language-3fa9c2",
            [claim("compare", "fails") | {"reported": ""}],
            title="language: attention softmax, sigmoid",
            kind="comparison",
        ),
    ]


def many(count: int = 57, claims: int = 4) -> list[dict[str, Any]]:
    """As many papers as the catalogue holds, with claims of every verdict."""
    verdicts = ("holds", "fails", "inconclusive", "holds")
    return [
        paper(
            f"paper-{i:02}",
            [claim(f"claim_{i}_{j}", verdicts[(i + j) % 4]) for j in range(claims)],
            title=f"Paper {i:02}: on the Unreasonable Effectiveness of Alternatives",
            slot=SLOTS[i % len(SLOTS)],
        )
        for i in range(count)
    ]


def write(out: Path, trees: list[dict[str, Any]]) -> Path:
    for tree in trees:
        path = out / tree["scale"] / f"{tree['paper']['id']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree), encoding="utf-8")
    return out
