"""Pictures of a verdict: the interval of each effect beside its threshold, and learning curves."""

import math
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from heterodox.experiment.measurement import Curve
from heterodox.report.inline_svg import PALETTE, RC, inline_svg
from heterodox.report.load import ClaimResult, Effect, PaperResult
from heterodox.report.wording import MARKS, measured, number, wanted

WIDTH = 4.9  # inches; at this size text is as large as a page's captions
ROW = 0.92
PANEL = 2.2
INK, QUIET, RULE = PALETTE["plot-ink"], PALETTE["plot-quiet"], PALETTE["plot-rule"]
COLOURS = [PALETTE[f"plot-{i}"] for i in range(1, 7)]
DASHES = ["solid", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 3)), (0, (8, 3))]
FARTHEST = 1e100  # beyond it a number is drawn as infinite: differences of axis limits overflow
MOST_POINTS = 240


def interval_plot(claim: ClaimResult, name: str) -> str:
    """The effects of a claim as inline SVG; empty if there are none.

    Per effect: a ring for each seed, the mean as a diamond on the bar of its interval, the
    threshold as a dashed line, and the side on which the claim holds shaded.

    Args:
        claim: what to draw.
        name: prefix of the ids inside the picture; unique on the page.
    """
    if not claim.effects:
        return ""
    with matplotlib.rc_context(RC):
        rows = list(_rows(claim.effects))
        figure = Figure((WIDTH, ROW * len(rows)))
        for i, row in enumerate(rows):
            bottom = 1 - (i + 1) / len(rows)
            _draw_effect(_axes(figure, 0.03, bottom, 0.94, 1 / len(rows)), row)
    says = "Intervals. " + ". ".join(
        f"{measured(effect)}, {effect.verdict}" for effect in claim.effects
    )
    return inline_svg(figure, name, says)


def curve_plot(claim: ClaimResult, name: str) -> str:
    """The learning curves of a claim as inline SVG, a panel per curve; empty if there are none.

    Per arm: the mean over seeds as a line of its own colour and dashes, the seeds faintly behind.

    Args:
        claim: what to draw.
        name: prefix of the ids inside the picture; unique on the page.
    """
    arms = [arm for arm in claim.curves if any(claim.curves[arm].values())]
    panels = list(
        dict.fromkeys(
            curve for arm in arms for named in claim.curves[arm].values() for curve in named
        )
    )
    if not panels:
        return ""
    fits = max(map(len, panels)) <= 13 * (WIDTH / 2 - 0.7)
    columns = min(2 if fits else 1, len(panels))
    grid_rows = math.ceil(len(panels) / columns)
    names = [textwrap.shorten(arm, 48, placeholder="…") for arm in arms]
    legend_columns = max(1, min(len(arms), int(13 * WIDTH / (max(map(len, names)) + 7))))
    legend = 0.2 * math.ceil(len(arms) / legend_columns) + 0.02
    height = legend + PANEL * grid_rows
    with matplotlib.rc_context(RC):
        figure = Figure((WIDTH, height))
        for i, panel in enumerate(panels):
            line, column = divmod(i, columns)
            axes = figure.add_axes(
                (
                    column / columns + 0.52 / WIDTH,
                    (PANEL * (grid_rows - 1 - line) + 0.28) / height,
                    1 / columns - 0.72 / WIDTH,
                    (PANEL - 0.56) / height,
                )
            )
            lines = {
                arm: [named[panel] for named in claim.curves[arm].values() if named.get(panel)]
                for arm in arms
            }
            _draw_curves(axes, panel, lines)
        handles = [
            Line2D([], [], color=COLOURS[i % 6], linestyle=_dashes(i), linewidth=1.8, label=label)
            for i, label in enumerate(names)
        ]
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.01, 1.0),
            ncols=legend_columns,
            frameon=False,
            handlelength=3.2,
            labelcolor=INK,
            borderaxespad=0.0,
            borderpad=0.2,
        )
    says = f"Curves of {', '.join(panels)}. " + " ".join(_ends(claim, arms, panels))
    return inline_svg(figure, name, says)


def save_png(result: PaperResult, path: Path) -> None:
    """Draws the verdicts of `result` on white: each claim's sentence beside its decisive interval.

    Args:
        result: what was measured for one paper or comparison.
        path: the PNG file to write.
    """
    claims = [(claim, textwrap.wrap(claim.says, 46)) for claim in result.claims]
    heights = [max(1.02, 0.17 * len(lines) + 0.55) for _, lines in claims]
    width, title = 9.0, textwrap.wrap(result.paper.title, 84)
    head = 0.5 + 0.22 * len(title)
    height = head + sum(heights) + 0.1
    with matplotlib.rc_context(RC):
        figure = Figure((width, height), facecolor="white")
        top = height - 0.2
        write: dict[str, Any] = {"ha": "left", "va": "top", "color": INK}
        figure.text(0.025, top / height, "\n".join(title), weight="bold", size=11, **write)
        below = f"arXiv {result.paper.arxiv} · " if result.paper.arxiv else ""
        below += f"measured at {result.scale} scale"
        write["color"] = QUIET
        figure.text(0.025, (height - head + 0.18) / height, below, size=8.5, **write)
        top = height - head
        for (claim, lines), tall in zip(claims, heights, strict=True):
            rule = Line2D([0.025, 0.975], [top / height] * 2, color=RULE, linewidth=0.7)
            figure.add_artist(rule)
            verdict = f"{MARKS[claim.verdict]} {claim.verdict}"
            at = (top - 0.13) / height
            figure.text(0.025, at, verdict, weight="bold", **{**write, "color": INK})
            figure.text(0.025, at - 0.2 / height, "\n".join(lines), linespacing=1.3, **write)
            if claim.decisive:
                row = next(row for row in _rows(claim.effects) if claim.decisive in row)
                axes = _axes(figure, 0.47, (top - 0.1 - ROW) / height, 0.5, ROW / height)
                _draw_effect(axes, row)
            top -= tall
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def _rows(effects: list[Effect]) -> Iterator[list[Effect]]:
    """Effects in rows; the two bounds of one interval share theirs."""
    rows: dict[str, list[Effect]] = {}
    for effect in effects:
        rows.setdefault(repr((effect.per_seed, effect.mean, effect.low, effect.high)), []).append(
            effect
        )
    yield from rows.values()


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """The strip of one effect, with room for its label above and its ticks below."""
    return figure.add_axes((left, bottom + 0.27 * height, width, 0.46 * height))


def _draw_effect(axes: Axes, row: list[Effect]) -> None:
    effect = row[0]
    marks = [effect.mean, effect.low, effect.high, *effect.per_seed.values()]
    left, right = _scale_x(axes, [*marks, *(bound.threshold for bound in row)])
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    _bare(axes, ("left", "top", "right"))
    start = max([left, *(b.threshold for b in row if b.side == "above")])
    end = min([right, *(b.threshold for b in row if b.side == "below")])
    if start < end:
        axes.axvspan(start, end, color=PALETTE["plot-holds"], linewidth=0)
    for bound in row:
        if left <= bound.threshold <= right:
            axes.axvline(bound.threshold, color=QUIET, linewidth=1.0, linestyle=(0, (3, 2)))
    quiet: dict[str, Any] = {
        "color": QUIET,
        "size": 8.25,
        "transform": axes.transAxes,
        "va": "bottom",
    }
    holds = "holds " + " and ".join(wanted(bound) for bound in row)
    axes.text(1, 1.1, holds, ha="right", **quiet)
    label = " / ".join(dict.fromkeys(bound.label for bound in row))
    if lost := sum(map(math.isnan, effect.per_seed.values())):
        label += f" ({lost} of {len(effect.per_seed)} seeds NaN)"
    room = int(13 * axes.get_window_extent().width / axes.figure.dpi) - len(holds)
    label = textwrap.shorten(label, max(room, 12), placeholder="…")
    axes.text(0, 1.1, label, **{**quiet, "color": INK, "size": 9})

    def mark(value: float, height: float, inside: str, **look: Any) -> float:
        at = min(max(value, left), right)
        sign = inside if at == value else "<" if value < left else ">"
        axes.plot([at], [height], sign, clip_on=False, **look)
        return at

    ring: dict[str, Any] = {
        "color": COLOURS[0],
        "markersize": 5,
        "markerfacecolor": "none",
        "markeredgewidth": 1.0,
    }
    for value in effect.per_seed.values():
        if not math.isnan(value):
            mark(value, 0.28, "o", **ring)
    if not math.isnan(effect.low) and not math.isnan(effect.high):
        ends = [mark(end, 0.68, "|", color=INK, markersize=7) for end in (effect.low, effect.high)]
        axes.plot(ends, [0.68, 0.68], color=INK, linewidth=2, solid_capstyle="butt")
    if _drawable(effect.mean):
        mark(effect.mean, 0.68, "D", color=INK, markersize=6)


def _scale_x(axes: Axes, values: list[float]) -> tuple[float, float]:
    """Sets limits that show every finite value with room at both ends, and their ticks."""
    finite = [value for value in values if _drawable(value)] or [0.0]
    low, high = min(finite), max(finite)
    if low > 0 and high / low > 100:
        margin = (high / low) ** 0.08
        left, right = low / margin, high * margin
        _log(axes, "x")
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        left, right = low - margin, high + margin
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_xlim(left, right)
    axes.tick_params(axis="x", length=2.5, width=0.7, color=RULE, labelcolor=QUIET, labelsize=8)
    axes.xaxis.get_offset_text().set(color=QUIET, size=8)
    return left, right


def _draw_curves(axes: Axes, title: str, lines: dict[str, list[Curve]]) -> None:
    title = textwrap.shorten(title, int(13 * WIDTH) - 10, placeholder="…")
    axes.set_title(title, size=9, color=INK, loc="left", pad=5)
    _bare(axes, ("top", "right"))
    axes.tick_params(length=2.5, width=0.7, color=RULE, labelcolor=QUIET, labelsize=8, which="both")
    points = [point for curves in lines.values() for curve in curves for point in curve]
    xs = sorted({x for x, y in points if _drawable(x) and _drawable(y)})
    ys = [y for x, y in points if _drawable(x) and _drawable(y)]
    if not ys:
        axes.text(0.5, 0.5, "no finite points", color=QUIET, ha="center", transform=axes.transAxes)
        return
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
        axis.get_offset_text().set(color=QUIET, size=8)
    # Abscissae that grow by a factor (lengths, widths) are read on a logarithmic axis.
    if (
        len(xs) > 2
        and xs[0] > 0
        and xs[-1] / xs[0] >= 16
        and xs[-1] - xs[-2] >= 4 * (xs[1] - xs[0])
    ):
        _log(axes, "x")
    if min(ys) > 0 and max(ys) / min(ys) > 30:
        _log(axes, "y")
    for i, curves in enumerate(lines.values()):
        colour = COLOURS[i % 6]
        drawn = [_thinned(curve) for curve in curves]
        for x, y in drawn if len(drawn) > 1 else []:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
        if drawn:
            x, y = _mean_line(drawn)
            mark = "o" if len(x) <= 8 else None
            axes.plot(
                x, y, color=colour, linewidth=1.8, linestyle=_dashes(i), marker=mark, markersize=3.5
            )


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """A curve in order of x, with at most `MOST_POINTS` points; undrawable ones are gaps."""
    points = np.array(sorted(curve, key=lambda point: point[0]), dtype=float).reshape(-1, 2)
    points[~(np.abs(points) < FARTHEST)] = np.nan
    points = points[~np.isnan(points[:, 0])]
    if len(points) > MOST_POINTS:
        points = points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
    return points[:, 0], points[:, 1]


def _mean_line(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of curves where all of them are defined, read between their points."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return np.empty(0), np.empty(0)
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    heights = [np.interp(grid, x, y) for x, y in curves]
    return grid, np.mean(heights, axis=0) if len(grid) else grid


def _ends(claim: ClaimResult, arms: list[str], panels: list[str]) -> Iterator[str]:
    for panel in panels:
        for arm in arms:
            lasts = [
                named[panel][-1][1] for named in claim.curves[arm].values() if named.get(panel)
            ]
            if lasts:
                yield f"{panel} of {arm} ends at {number(math.fsum(lasts) / len(lasts))}."


def _dashes(i: int) -> Any:
    return DASHES[(i + i // 6) % 6]  # a seventh arm has the first colour, with other dashes


def _log(axes: Axes, which: str) -> None:
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def _bare(axes: Axes, hidden: Iterable[str]) -> None:
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set(color=RULE, linewidth=0.7, visible=side not in hidden)


def _drawable(value: float) -> bool:
    return abs(value) < FARTHEST
