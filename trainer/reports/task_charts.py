"""Charts of classes, findings and values, from the object in metrics.json; see `charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trainer.metrics.tasks.evaluation_words import TITLES, in_unit, number
from trainer.reports import charts
from trainer.reports.charts import INK, MUTED, NEGATIVE, POSITIVE, Evaluation, svg

DRAWN_MOST = 6  # classes or findings that lines tell apart
CELLS_MOST = 20  # classes whose confusion matrix is drawn
_BARS_MOST = 40  # classes or findings that a chart has rows for
_DASHED = (0, (4, 3))


def drawn(evaluation: Evaluation, name: str) -> list[Mapping[str, Any]]:
    """The classes or findings whose "roc" or "calibration" a chart shows, the first few."""
    return [part for part in evaluation["parts"] if part[name]][:DRAWN_MOST]


def roc(evaluation: Evaluation) -> str:
    """A ROC curve for each class against the rest, or each finding."""
    parts = drawn(evaluation, "roc")

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=_DASHED)
        for part, (colour, dashes) in zip(parts, charts.LINES, strict=False):
            axes.plot(
                part["roc"]["false_positive_rate"],
                part["roc"]["sensitivity"],
                color=colour,
                linestyle=dashes,
                linewidth=1.8,
                label=_cut(part["name"]),
            )
        axes.legend(loc="lower right")
        axes.set(xlabel="1 − specificity", ylabel="sensitivity")
        charts.unit_square(axes)

    told = ", ".join(f"{part['name']} AUC {part['auc']:.2f}" for part in parts)
    return svg("roc", "ROC curves", f"ROC curves: {told}", draw, height=4.1)


def areas(evaluation: Evaluation) -> str:
    """The AUC of each class against the rest, or each finding, with its interval."""
    parts = evaluation["parts"][:_BARS_MOST]

    def draw(axes: Axes) -> None:
        axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=_DASHED)
        for place, part in enumerate(parts):
            if part["auc"] is None:
                axes.text(0.52, place, "not measurable", color=MUTED, va="center")
                continue
            if part["interval"]:
                axes.plot(part["interval"], [place] * 2, color=POSITIVE, linewidth=1.4)
            axes.plot([part["auc"]], [place], "o", color=POSITIVE, markersize=5, clip_on=False)
        _rows(axes, [part["name"] for part in parts])
        axes.set_xlim(0, 1)
        axes.set(xlabel="AUC")

    description = f"AUC of {len(parts)} {'classes' if 'confusion' in evaluation else 'findings'}"
    return svg("areas", "AUC of each", description, draw, height=0.9 + 0.25 * len(parts))


def confusion(evaluation: Evaluation) -> str:
    """Counts of true classes (rows) and calls (columns), shaded by their share of the row."""
    counts = np.array(evaluation["confusion"])
    names = [_cut(part["name"], 12) for part in evaluation["parts"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(names)

    def draw(axes: Axes) -> None:
        for row, column in np.ndindex(*counts.shape):
            axes.fill_between(
                [column - 0.48, column + 0.48],
                row - 0.48,
                row + 0.48,
                color=POSITIVE if row == column else NEGATIVE,
                alpha=0.5 * float(shares[row, column]),
                linewidth=0,
            )
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                color=INK if counts[row, column] else MUTED,
                fontsize=10.5 if size <= 10 else 8,
            )
        turned = 90 if size > 6 or max(map(len, names)) > 36 / size else 0
        axes.set_xticks(range(size), names, rotation=turned)
        axes.set_yticks(range(size), names)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set(xlabel="called", ylabel="true class")

    right = int(np.trace(counts))
    description = f"confusion matrix of {size} classes; {right} of {counts.sum()} on the diagonal"
    return svg("confusion", "Confusion matrix", description, draw, height=4.1)


def figures(evaluation: Evaluation) -> str:
    """Shares called right and kappa: values, intervals, references, and labels dealt anew."""
    rows = bounded(evaluation)

    def draw(axes: Axes) -> None:
        for place, (_, one) in enumerate(rows):
            if dealt := one["by_chance_interval"]:
                axes.fill_between(
                    dealt, place - 0.28, place + 0.28, color=MUTED, alpha=0.25, linewidth=0
                )
            if one["interval"]:
                axes.plot(one["interval"], [place] * 2, color=POSITIVE, linewidth=1.6)
            axes.plot([one["reference"]] * 2, [place - 0.28, place + 0.28], color=MUTED)
            axes.plot([one["value"]], [place], "o", color=POSITIVE, markersize=6, clip_on=False)
        _rows(axes, [TITLES[name] for name, _ in rows])
        low = min(0.0, *(x for _, one in rows for x in (one["by_chance_interval"] or [0])))
        low = min(low, *(x for _, one in rows for x in (one["interval"] or [0])))
        axes.set_xlim(max(-1.0, low - 0.05 * (low < 0)), 1)

    told = ", ".join(f"{TITLES[name]} {number(one['value'])}" for name, one in rows)
    return svg("figures", "Figures", told, draw, height=0.9 + 0.5 * len(rows))


def bounded(evaluation: Evaluation) -> list[tuple[str, Mapping[str, Any]]]:
    """Figures of calls, 1 the best of all; none of values, whose errors have units."""
    if "agreement" in evaluation:
        return []
    figures = evaluation["figures"].items()
    return [(name, one) for name, one in figures if one["by_chance"] is not None]


def calibration(evaluation: Evaluation) -> str:
    """Observed share over mean probability of each class or finding; few with intervals."""
    parts = drawn(evaluation, "calibration")

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=_DASHED)
        for part, (colour, dashes) in zip(parts, charts.LINES, strict=False):
            bins = part["calibration"]["bins"]
            if len(parts) <= 3:
                for one in bins:
                    if one["interval"]:
                        axes.plot(
                            [one["predicted"]] * 2, one["interval"], color=colour, linewidth=0.9,
                            alpha=0.6,
                        )  # fmt: skip
            axes.plot(
                [one["predicted"] for one in bins],
                [one["observed"] for one in bins],
                "o",
                linestyle=dashes,
                color=colour,
                markersize=4.5,
                linewidth=1.1,
                clip_on=False,
                label=_cut(part["name"]),
            )
        axes.legend(loc="upper left")
        axes.set(xlabel="mean predicted probability", ylabel="observed share")
        charts.unit_square(axes)

    description = f"observed against predicted of {len(parts)}"
    return svg("calibration", "Calibration", description, draw, height=4.1)


def scatter(evaluation: Evaluation) -> str:
    """True values over predicted ones, the line of equality, and the conformal band."""
    predicted, truth = _points(evaluation)
    half = (evaluation["conformal"] or {}).get("half_width")
    ends = _ends([*predicted, *truth])

    def draw(axes: Axes) -> None:
        if half is not None:
            low, high = np.array(ends) - half, np.array(ends) + half
            axes.fill_between(ends, low, high, color=POSITIVE, alpha=0.13, linewidth=0)
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=_DASHED)
        _dots(axes, predicted, truth)
        if line := evaluation["line"]:
            across = [min(predicted), max(predicted)]
            axes.plot(
                across,
                [line["intercept"] + line["slope"] * x for x in across],
                color=NEGATIVE,
                linewidth=1.6,
            )
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set(xlabel=_axis(evaluation, "predicted"), ylabel=_axis(evaluation, "true"))

    description = f"true over predicted values of {len(truth)} patients"
    return svg("scatter", "True and predicted", description, draw, height=4.1)


def agreement(evaluation: Evaluation) -> str:
    """Bland and Altman's: difference over mean, with the bias and the limits of agreement."""
    predicted, truth = _points(evaluation)
    found = evaluation["agreement"]
    unit = evaluation["target"]["unit"]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=_DASHED)
        for name, colour in (("low", NEGATIVE), ("bias", POSITIVE), ("high", NEGATIVE)):
            if limits := found[f"{name}_interval"]:
                axes.axhspan(*limits, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(found[name], color=colour, linewidth=1.6)
        _dots(axes, (predicted + truth) / 2, predicted - truth)
        axes.set(
            xlabel=_axis(evaluation, "mean of true and predicted"),
            ylabel=_axis(evaluation, "predicted − true"),
        )

    description = (
        f"Bland-Altman plot: bias {in_unit(found['bias'], unit)}, limits of agreement "
        f"{number(found['low'])} to {number(found['high'])}"
    )
    return svg("agreement", "Agreement", description, draw, height=4.1)


def _points(evaluation: Evaluation) -> tuple[Any, Any]:
    points = evaluation["points"]
    return np.array(points["predicted"]), np.array(points["truth"])


def _dots(axes: Axes, x: Any, y: Any) -> None:
    few = len(x) < 300
    axes.plot(x, y, "o", color=INK, markersize=3.5 if few else 2, alpha=0.5 if few else 0.25,
              markeredgewidth=0)  # fmt: skip


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _axis(evaluation: Evaluation, text: str) -> str:
    unit = evaluation["target"]["unit"]
    return f"{text} ({_cut(unit)})" if unit else text


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_cut(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _cut(text: str, most: int = 24) -> str:
    """A name with room for it in a chart; the tables have it whole."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
