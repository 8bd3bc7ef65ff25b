"""report.html of a study: what was tried, what seems to matter, and how the best was come by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

from beam_jobs.common.files import interface as files
from beam_jobs.common.templating import render
from trainer.config.hyperparameter import LINEAR, Hyperparameter, Range, Value, text_of
from trainer.config.run_layout import REPORT_NAME
from trainer.config.search_space import Space
from trainer.metrics.tasks.measure import Measure, measure_named
from trainer.metrics.wording import score_of, summary_line, verdict
from trainer.reports import charts
from trainer.search.study import (
    FinishedTrial,
    best_of,
    caveat,
    optimistic,
    ranking,
)
from trainer.training.run_files import Run

_FEWEST = 20  # trials, or 3 a hyperparameter if that is more
_PARTS, _REPEATS, _SHUFFLES, _TREES = 5, 2, 10, 60
_LISTED = 8  # values of a range that are all written at its axis
_LEAST = 0.1  # of the variance; forests of this size predict a few hundredths of mere noise

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """What each hyperparameter is worth to a prediction of the objective.

    Attributes:
      worth: (name, share of the objective's variance lost by shuffling it, its spread over the
        held-out parts), the greatest first; empty where nothing can be said.
      predicted: share of the variance of held-out trials that the forest predicts; None where it
        was not tried.
      unknown: why nothing can be said, in words.
    """

    worth: tuple[tuple[str, float, float], ...] = ()
    predicted: float | None = None
    unknown: str = ""


def importance_of(space: Space, rows: Sequence[FinishedTrial], *, seed: int = 0) -> Importance:
    """Permutation importance of a random forest, on trials that it has not seen.

    Shuffled are all columns of a hyperparameter together; epochs, which rounds give, count as one.

    Source: L. Breiman, Machine Learning 45 (2001) 5-32, section 10.
    """
    scored = [row for row in rows if row.objective is not None]
    columns, owners, names = _columns(space, scored)
    fewest = max(_FEWEST, 3 * len(names))
    if len(scored) < fewest:
        return Importance(
            unknown=f"Too few trials to tell: {len(scored)} have an objective, {fewest} are needed."
        )
    goal = np.array([row.objective for row in scored], dtype=np.float64)
    if not goal.std() > 1e-9:
        return Importance(unknown="Nothing to tell: every trial has the same objective.")
    rng = np.random.default_rng(seed)
    lost = np.zeros((_REPEATS * _PARTS, len(names)))
    missed = np.zeros(_REPEATS * _PARTS)
    part = 0
    for repeat in range(_REPEATS):
        for learnt, held in KFold(_PARTS, shuffle=True, random_state=seed + repeat).split(columns):
            forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=seed + repeat)
            forest.fit(columns[learnt], goal[learnt])
            missed[part] = np.mean((forest.predict(columns[held]) - goal[held]) ** 2)
            # One call for all: a call has to visit every tree, however few rows it has.
            changed = np.repeat(columns[held][None], len(names) * _SHUFFLES, axis=0)
            for number, table in enumerate(changed):
                own = np.flatnonzero(owners == number // _SHUFFLES)
                table[:, own] = table[rng.permutation(held.size)][:, own]
            worse = forest.predict(changed.reshape(-1, columns.shape[1])).reshape(len(changed), -1)
            errors = np.mean((worse - goal[held]) ** 2, axis=1).reshape(len(names), _SHUFFLES)
            lost[part] = errors.mean(axis=1) - missed[part]
            part += 1
    predicted = float(1 - missed.mean() / goal.var())
    if predicted < _LEAST:
        return Importance(
            predicted=predicted,
            unknown="Nothing can be said: from their hyperparameters a forest predicts held-out "
            "trials hardly better than the mean of all trials does.",
        )
    shares = lost / goal.var()
    order = np.argsort(-shares.mean(axis=0))
    return Importance(
        worth=tuple(
            (names[i], float(shares[:, i].mean()), float(shares[:, i].std())) for i in order
        ),
        predicted=predicted,
    )


def _columns(
    space: Space, rows: Sequence[FinishedTrial]
) -> tuple[Floats, npt.NDArray[np.intp], tuple[str, ...]]:
    """Hyperparameters as numbers (rows, columns), whose a column is, and the names.

    Numbers are their place on the scale; names are one column a value; what a trial has no use for
    is -1, or no column of its own.
    """
    columns: list[list[float]] = []
    owners: list[int] = []
    names: list[str] = []
    for choice in space.searched:
        found = [_value(choice, row) for row in rows]
        if len(set(found)) < 2:
            continue
        if isinstance(choice.first, str):
            for value in choice.every():
                columns.append([float(one == value) for one in found])
                owners.append(len(names))
        else:
            columns.append([-1.0 if v is None else choice.share(v) for v in found])
            owners.append(len(names))
        names.append(choice.name)
    epochs = [float(row.config["epochs"]) for row in rows]
    if len(set(epochs)) > 1 and "epochs" not in names:
        columns.append(epochs)
        owners.append(len(names))
        names.append("epochs")
    table = np.array(columns, dtype=np.float64).reshape(len(columns), len(rows)).T
    return table, np.array(owners, dtype=np.intp), tuple(names)


def _value(choice: Hyperparameter, row: FinishedTrial) -> Value | None:
    """A trial's value; None where it has no use for the choice."""
    return row.values.get(choice.name) if choice.is_active(row.values) else None


def write_report(
    directory: files.StrPath,
    request: Mapping[str, Any],
    space: Space,
    rows: Sequence[FinishedTrial],
    outer: Run | None = None,
) -> None:
    """Writes report.html.

    Args:
      directory: of the study.
      request: its settings.
      space: what could be chosen.
      rows: finished trials.
      outer: the run that scores the outer fold, where there is one.
    """
    text = page(files.name_of(directory), request, space, rows, outer)
    files.write_text(files.join(directory, REPORT_NAME), text)


def page(
    name: str,
    request: Mapping[str, Any],
    space: Space,
    rows: Sequence[FinishedTrial],
    outer: Run | None = None,
) -> str:
    """The page: needs nothing but itself, no script, no request."""
    filters: dict[str, Callable[..., str]] = {
        "number": lambda v, digits=3: "–" if v is None else f"{v:.{digits}f}",
        "value": lambda v: "–" if v is None else text_of(v),
    }
    leaders, importance = ranking(rows), importance_of(space, rows)
    scored = measure_named(request.get("objective", "val_auc").removeprefix("val_"))
    drawn = {
        "coordinates": coordinates(space, leaders, scored) if leaders else "",
        "so_far": so_far(rows, scored) if leaders else "",
        "importance": _bars(importance) if importance.worth else "",
    }
    return render(
        "trainer.reports",
        "study.html.j2",
        filters=filters,
        name=name,
        request=request,
        choices=space.choices,
        searched=list(dict.fromkeys(choice.name for choice in space.searched)),
        where=space.where,
        combinations=space.size_text(grid=request["tuner"] == "grid"),
        rows=rows,
        leaders=leaders,
        best=best_of(rows),
        caveat=caveat(rows, scored.title),
        title=scored.title,
        means=_mean_of(scored),
        optimistic=optimistic(rows),
        outer=None if outer is None else {**outer.metrics, "fold": outer.config["fold"]},
        outer_score=None if outer is None else score_of(outer.metrics),
        outer_text="" if outer is None else summary_line(outer.metrics),
        outer_verdict="" if outer is None else verdict(outer.metrics),
        importance=importance,
        scored=len(leaders),
        charts={key: Markup(svg) for key, svg in drawn.items()},
    )


def _mean_of(scored: Measure) -> str:
    """ "mean validation macro AUC": what an objective is, over folds and seeds."""
    return f"mean validation {scored.title.removeprefix('mean ')}"


def so_far(rows: Sequence[FinishedTrial], scored: Measure) -> str:
    """Objective of each trial in their order, and the best of those up to it."""
    finished = [row for row in rows if row.objective is not None]
    order = [int(row.trial) for row in finished]
    values = [row.objective for row in finished if row.objective is not None]

    def draw(axes: Axes) -> None:
        axes.plot(order, values, "o", color=charts.POSITIVE, markersize=4, label="trial")
        axes.step(
            order,
            np.maximum.accumulate(values),
            where="post",
            color=charts.NEGATIVE,
            linewidth=1.8,
            label="best so far",
        )
        axes.axhline(scored.chance, color=charts.MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        charts.whole_numbers(axes.xaxis)
        axes.set(xlabel="trial", ylabel=_mean_of(scored), ylim=(scored.least, 1.02))
        axes.legend(loc="lower right")

    description = f"objective of {len(finished)} trials; the best is {max(values):.2f}"
    return charts.svg("so-far", "Best so far", description, draw)


def coordinates(space: Space, leaders: Sequence[FinishedTrial], scored: Measure) -> str:
    """One line a trial through its values, one axis a hyperparameter; the best tenth stand out."""
    tried = [c for c in space.searched if len({_value(c, row) for row in leaders}) > 1]
    best = max(1, round(len(leaders) / 10))
    goals = np.array([row.objective for row in leaders], dtype=np.float64)
    low, high = float(goals.min()), float(goals.max())

    def height(choice: Hyperparameter, row: FinishedTrial) -> float:
        value = _value(choice, row)
        return -0.12 if value is None else choice.share(value)

    def draw(axes: Axes) -> None:
        axes.figure.set_size_inches(max(6.0, 1.25 * (len(tried) + 1)), 4.6)  # type: ignore[union-attr]
        for place, row in reversed(list(enumerate(leaders))):
            goal = (goals[place] - low) / (high - low) if high > low else 1.0
            # Trials of the same values are set apart a little, always alike.
            apart = 0.03 * (((int(row.trial) * 7) % 11) / 10 - 0.5)
            axes.plot(
                range(len(tried) + 1),
                [*(height(choice, row) + apart for choice in tried), goal],
                color=charts.NEGATIVE if place < best else charts.POSITIVE,
                linewidth=1.8 if place < best else 0.9,
                alpha=1 if place < best else 0.4,
            )
        for place, choice in enumerate(tried):
            axes.axvline(place, color=charts.MUTED, linewidth=0.8)
            for value in _ticks(choice):
                axes.text(
                    place + 0.04,
                    choice.share(value),
                    text_of(value),
                    color=charts.INK,
                    va="center",
                    fontsize=9,
                    bbox={"facecolor": charts.PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.8},
                )
        axes.axvline(len(tried), color=charts.MUTED, linewidth=0.8)
        for value, goal in ((low, 0.0), (high, 1.0)) if high > low else ((high, 1.0),):
            axes.text(len(tried) + 0.04, goal, f"{value:.2f}", color=charts.INK, va="center")
        axes.set_xticks(range(len(tried) + 1), [*map(_axis_name, tried), scored.title])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(tried) + 0.5)
        axes.set_ylim(-0.2, 1.08)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)

    description = f"{len(leaders)} trials, each a line through its values to its objective"
    return charts.svg("coordinates", "All trials", description, draw)


def _axis_name(choice: Hyperparameter) -> str:
    """In lines: names of parts are long, and axes stand close together."""
    scale = "" if not isinstance(choice, Range) or choice.scale == LINEAR else "\n(log)"
    return choice.name.replace(".", ".\n") + scale


def _ticks(choice: Hyperparameter) -> list[Value]:
    """Values to write at an axis: all of a few, of more its ends and round ones."""
    if not isinstance(choice, Range) or choice.size <= _LISTED:
        return list(choice.every())
    if choice.scale == LINEAR:
        between = MaxNLocator(4).tick_values(choice.low, choice.high)
    else:
        between = LogLocator().tick_values(choice.low, choice.high)
    ticks: list[Value] = [choice.low, choice.high]
    for tick in map(choice.kind, between):
        if all(abs(choice.share(tick) - choice.share(other)) > 0.08 for other in ticks):
            ticks.append(tick)
    return ticks


def _bars(importance: Importance) -> str:
    names = [name for name, _, _ in importance.worth]
    shares = [share for _, share, _ in importance.worth]
    spread = [sd for _, _, sd in importance.worth]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(names)), shares, color=charts.POSITIVE, linewidth=0)
        axes.errorbar(
            shares, range(len(names)), xerr=spread, fmt="none", ecolor=charts.INK, linewidth=1
        )
        axes.axvline(0, color=charts.INK, linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set(xlabel="share of the variance lost by shuffling")

    description = f"permutation importance of {len(names)} hyperparameters"
    return charts.svg(
        "importance", "What seems to matter", description, draw, height=1 + 0.27 * len(names)
    )
