"""Numbers as pages of evaluations show them, and the rows of their tables of epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.metrics.tasks.measure import measure_named
from trainer.metrics.wording import auc_text, interval_text, mark, number_apart, p_text
from trainer.reports.charts import member_name


def filters_of(evaluation: Mapping[str, Any]) -> dict[str, Callable[..., str]]:
    """What a page's template sends the numbers of an evaluation through."""
    return {
        "number": number,
        "share": share,
        "span": span,
        "p": lambda p: p_text(p, 1 - evaluation["level"]).replace(" ", "\N{NO-BREAK SPACE}"),
        "auc": auc_text,
        "interval": interval_text,
        "difference": difference,
        "mark": mark,
        "member": member_name,
    }


def number(value: float | None, digits: int = 2) -> str:
    """Two digits behind the point; a dash of nothing."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def difference(one: Mapping[str, Any]) -> str:
    """A comparison's difference and its interval, each on its side of 0."""
    values = (one["difference"], *one["difference_interval"])
    each = [number_apart(value, 0.0).replace("-", "\N{MINUS SIGN}") for value in values]
    return f"{each[0]} ({each[1]} to {each[2]})"


def share(value: float | None) -> str:
    """In whole percent; a dash of nothing."""
    return "–" if value is None else f"{100 * value:.0f} %"


def span(interval: Sequence[float] | None, digits: int = 2) -> str:
    """ "0.31 to 0.52"; a dash of nothing."""
    if interval is None:
        return "–"
    return f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def learnt(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a history: epochs, the last validation score and losses, and its optimistic epoch.

    That is the best one on the fold's own patients: shown, and nothing is chosen by it.
    """
    rows = []
    column = f"val_{measure_named(evaluation.get('measure', 'auc')).name}"
    for name, history in evaluation["learning_curves"].items():
        scores = [(value, epoch) for epoch, value in enumerate(history.get(column, ()), 1)]
        known = [one for one in scores if one[0] is not None]
        if known:
            optimistic, epoch = max(known, key=lambda one: (one[0], -one[1]))
            rows.append(
                {
                    "name": name,
                    "epochs": len(scores),
                    "optimistic": optimistic,
                    "optimistic_epoch": epoch,
                    "last": known[-1][0],
                    "loss": _last(history, "loss"),
                    "val_loss": _last(history, "val_loss"),
                }
            )
    return rows


def _last(history: dict[str, Any], column: str) -> float | None:
    """The last value that is one."""
    return next((value for value in reversed(history.get(column, ())) if value is not None), None)
