"""Charts of an evaluation as inline SVG, drawn with matplotlib from the object in metrics.json.

Colours are names that the page gives values to (`var(--ink)`), so that one drawing serves light
and dark; text stays text; each drawing carries its title and a description.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from beam_jobs.common.printable import printable
from trainer.metrics.tasks.measure import Measure, measure_named
from trainer.metrics.wording import auc_name, auc_text, interval_of, mark, score_of, title_of

# What matplotlib draws with, and what the page calls it.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--grid)",
    "#040404": "var(--positive)",
    "#050505": "var(--negative)",
    "#060606": "var(--third)",
    "#070707": "var(--fourth)",
    "#080808": "var(--fifth)",
    "#090909": "var(--sixth)",
    "#0a0a0a": "var(--paper)",
}
INK, MUTED, GRID, POSITIVE, NEGATIVE, *_MORE, PAPER = _COLOURS
# Lines of several models or folds: colour and dashes both tell them apart.
_LINES = (POSITIVE, NEGATIVE, *_MORE)
_DASHES: Any = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 2, 2)), (0, (1, 1)), (0, (9, 3)))
LINES = tuple(zip(_LINES, _DASHES, strict=True))
_WIDTH, _HEIGHT = 4.4, 3.5  # inches; the page scales them
_MOST_LINES = len(_LINES)  # more learning curves than that are drawn alike, with their median

Evaluation = Mapping[str, Any]


def roc(evaluation: Evaluation) -> str:
    """ROC curve, its band, and those of models it is compared with."""
    curve, others = evaluation["curves"]["roc"], evaluation["comparisons"]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        if band := curve["band"]:
            axes.fill_between(
                band["false_positive_rate"],
                band["low"],
                band["high"],
                color=POSITIVE,
                alpha=0.18,
                linewidth=0,
            )
        models = [
            (evaluation["name"], evaluation["no_claim"], curve),
            *(
                (one["name"], one["other_no_claim"], one["roc"])
                for one in others[: len(_LINES) - 1]
            ),
        ]
        for (name, no_claim, one), colour, dashes in zip(models, _LINES, _DASHES, strict=False):
            axes.plot(
                one["false_positive_rate"],
                one["sensitivity"],
                color=colour,
                linestyle=dashes,
                linewidth=1.8,
                label=f"{name} ({mark(no_claim)})" if no_claim else name,
            )
        if others:
            axes.legend(loc="lower right")
        axes.set(xlabel="1 − specificity", ylabel="sensitivity")
        unit_square(axes)

    description = f"ROC curve, {auc_name(evaluation['no_claim'])} {auc_text(evaluation)}"
    if curve["band"]:
        description += ", with a pointwise confidence band"
    return svg("roc", "ROC curve", description, draw, height=4.1)


def precision_recall(evaluation: Evaluation) -> str:
    """Precision over recall."""
    curve, average = evaluation["curves"]["precision_recall"], evaluation["average_precision"]

    def draw(axes: Axes) -> None:
        axes.axhline(average["at_random"], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        recall, precision = [0.0, *curve["recall"]], [1.0, *curve["precision"]]
        axes.step(recall, precision, color=POSITIVE, linewidth=1.8, where="pre")
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        unit_square(axes)

    description = f"precision over recall, average precision {average['value']:.2f}"
    return svg("precision-recall", "Precision and recall", description, draw, height=4.1)


def calibration(evaluation: Evaluation) -> str:
    """Observed share of positives over mean probability, with Wilson intervals if there are any."""
    bins = evaluation["calibration"]["bins"]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        predicted = [one["predicted"] for one in bins]
        observed = [one["observed"] for one in bins]
        for one in bins:
            if one["interval"]:
                axes.plot([one["predicted"]] * 2, one["interval"], color=POSITIVE, linewidth=1.1)
        axes.plot(
            predicted, observed, "o-", color=POSITIVE, markersize=4.5, linewidth=0.9, clip_on=False
        )
        axes.set(xlabel="mean predicted probability", ylabel="observed share of positives")
        unit_square(axes)

    description = f"observed against predicted in {len(bins)} bins"
    return svg("calibration", "Calibration", description, draw, height=4.1)


def histogram(evaluation: Evaluation) -> str:
    """Scores by class: positives up, negatives down."""
    counts = evaluation["histogram"]
    edges = np.array(counts["edges"])

    def draw(axes: Axes) -> None:
        most = max(1, *counts["positive"], *counts["negative"])
        for name, sign, colour in (("positive", 1, POSITIVE), ("negative", -1, NEGATIVE)):
            axes.bar(
                edges[:-1],
                sign * np.array(counts[name]),
                width=np.diff(edges) * 0.92,
                align="edge",
                color=colour,
                linewidth=0,
            )
            axes.annotate(
                name,
                (0.015, 0.97 if sign > 0 else 0.03),
                xycoords="axes fraction",
                va="top" if sign > 0 else "bottom",
                color=INK,
            )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylim(-1.2 * most, 1.2 * most)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        whole_numbers(axes.yaxis)
        axes.set(xlabel=f"predicted {counts['of']}", ylabel="patients")

    description = f"histogram of the {counts['of']}, positive patients up, negative ones down"
    return svg("histogram", "Scores by class", description, draw)


def chance(evaluation: Evaluation) -> str:
    """Scores of retrainings on permuted labels, with the run's own."""
    found, value = evaluation["permutations"], score_of(evaluation)
    title = title_of(evaluation)
    counts, edges = found["histogram"]["counts"], np.array(found["histogram"]["edges"])

    def draw(axes: Axes) -> None:
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges) * 0.92,
            align="edge",
            color=MUTED,
            alpha=0.6,
            linewidth=0,
        )
        axes.axvline(value, color=POSITIVE, linewidth=2)
        middle = (min(edges[0], value) + max(edges[-1], value)) / 2
        axes.annotate(
            f"this run: {auc_text(evaluation)}",
            (value, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if value > middle else 5, 0),
            textcoords="offset points",
            ha="right" if value > middle else "left",
            va="top",
            color=INK,
        )
        axes.set_ylim(0, 1.22 * max(counts))
        whole_numbers(axes.yaxis)
        axes.set(xlabel=f"{title} with permuted labels", ylabel="retrainings")

    description = (
        f"histogram of the {title}s of {found['count']:,} retrainings on permuted labels; this run "
        f"has {auc_text(evaluation)}"
    )
    return svg("chance", "What the recipe gives without signal", description, draw)


def groups(evaluation: Evaluation) -> str:
    """The score of every group with its interval, under that of all patients."""
    scored = measure_named(evaluation.get("measure", "auc"))
    rows: list[tuple[str, Mapping[str, Any] | None]] = [("all patients", evaluation)]
    for group in evaluation["groups"]:
        rows.append((group["by"], None))
        rows += [(one["name"], one) for one in group["groups"]]

    def draw(axes: Axes) -> None:
        chance = scored.chance
        axes.axvline(chance, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for place, (_, one) in enumerate(rows):
            if one is None:
                continue
            if "not_measurable" in one:
                axes.text(chance + 0.02, place, one["not_measurable"], color=MUTED, va="center")
                continue
            whole = one is evaluation
            if limits := interval_of(one):
                axes.plot(limits, [place] * 2, color=POSITIVE, linewidth=2 if whole else 1.2)
            axes.plot(
                [score_of(one)], [place], "D" if whole else "o", color=POSITIVE, markersize=5,
                clip_on=False,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        for label, (_, one) in zip(axes.get_yticklabels(), rows, strict=True):
            if one is None:
                label.set_color(MUTED)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(scored.least, 1)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set(xlabel=scored.title)

    description = f"{scored.title} of {len(evaluation['groups'])} groupings of the patients"
    return svg(
        "groups", f"{scored.title} by group", description, draw, height=0.9 + 0.25 * len(rows)
    )


def learning(evaluation: Evaluation) -> list[str]:
    """Validation score and losses over epochs, one chart each; none where no history has them."""
    scored = measure_named(evaluation.get("measure", "auc"))
    curves = (
        (f"val_{scored.name}", f"validation {scored.title}", f"Validation {scored.title}"),
        ("loss", "training loss", "Training loss"),
        ("val_loss", "validation loss", "Validation loss"),
    )
    return [
        _learning(evaluation["learning_curves"], column, label, title, scored)
        for column, label, title in curves
        if any(column in history for history in evaluation["learning_curves"].values())
    ]


def _learning(
    histories: Mapping[str, Any], column: str, label: str, title: str, scored: Measure
) -> str:
    lines = {
        name: np.array([np.nan if v is None else v for v in history[column]])
        for name, history in histories.items()
        if column in history
    }
    many = len(lines) > _MOST_LINES

    def draw(axes: Axes) -> None:
        for place, (name, values) in enumerate(lines.items()):
            axes.plot(
                np.arange(1, values.size + 1),
                values,
                color=MUTED if many else _LINES[place],
                linestyle="-" if many else _DASHES[place],
                marker="o" if values.size == 1 else "",
                alpha=0.45 if many else 1,
                linewidth=0.9 if many else 1.3,
                label=member_name(name),
            )
        if many:
            longest = max(values.size for values in lines.values())
            padded = [
                np.pad(v, (0, longest - v.size), constant_values=np.nan) for v in lines.values()
            ]
            # Where half of the networks still train: after that, few stragglers would lead it.
            shared = np.sum(np.isfinite(padded), axis=0) >= len(lines) / 2
            axes.plot(
                np.arange(1, longest + 1)[shared],
                np.nanmedian(np.array(padded)[:, shared], axis=0),
                color=POSITIVE,
                linewidth=1.8,
                label="median",
            )
        if column == f"val_{scored.name}":
            axes.axhline(scored.chance, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_ylim(min(scored.chance - 0.1, *axes.get_ylim()), 1.0)
        if not many:
            axes.legend(loc="best")
        whole_numbers(axes.xaxis)
        axes.set(xlabel="epoch", ylabel=label)

    return svg(column.replace("_", "-"), title, f"{label} over epochs, {len(lines)} lines", draw)


def member_name(name: str) -> str:
    """ "fold 0, seed 1" of "fold-0-seed-1"."""
    return re.sub(r"-(seed)-", r", \1 ", name).replace("fold-", "fold ")


def unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def whole_numbers(axis: Axis) -> None:
    """Ticks an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator("auto", integer=True))


_STYLE: Any = {
    "text.parse_math": False,  # a file's name may hold dollars
    "text.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "voxelbeam",
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.6,
    "legend.framealpha": 0.85,
    "legend.facecolor": PAPER,
    "legend.edgecolor": GRID,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def svg(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Axes], None],
    *,
    height: float = _HEIGHT,
) -> str:
    """An <svg> element that stands by itself in a page.

    Args:
      name: unique in the page; prefixes every id.
      title, description: what a screen reader says.
      draw: fills the axes.
      height: inches, at a width of 4.4.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser has a font for it; the warning would have the letter itself.
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure: Figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(printable(stream.getvalue(), keep="\n\t"), name, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """matplotlib's file as an element: no prologue, no metadata, own ids, the page's colours."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"(font: (?:\w+ )?[\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", svg)
    for colour, called in _COLOURS.items():
        svg = svg.replace(colour, called)
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    head = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-told">{html.escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
