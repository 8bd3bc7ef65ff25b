"""Rows of the table in which two datasets are compared."""

from __future__ import annotations

from typing import Any

from beam_jobs.core import drift
from beam_jobs.core.drift import Comparison

Row = dict[str, Any]


def new_row(group: str, name: str, ours: str, theirs: str, **more: Any) -> Row:
    """A row: whose, what, both sides, the difference, how it came out, whether it is marked."""
    cells = {"change": "", "test": "", "marked": False}
    return {"group": group, "name": name, "ours": ours, "theirs": theirs, **cells, **more}


def outcome(compared: Comparison | None, *, distance: str = "distance") -> Row:
    """The cells that say how a comparison came out."""
    if compared is None:
        return {}
    found = f"{distance} {compared.distance:.2f}"
    limit = f"limit {compared.limit:.2f}" if compared.limit < 1 else "too few"
    return {"test": f"{found}, {limit}", "marked": compared.drifted}


def share_row(group: str, name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> Row:
    """Two shares, each (part, whole), and their difference in points."""
    (k, n), (m, total) = ours, theirs
    row = new_row(
        group,
        name,
        f"{k} of {n}" + (f" ({100 * k / n:.0f} %)" if n else ""),
        f"{m} of {total}" + (f" ({100 * m / total:.0f} %)" if total else ""),
    )
    if n and total:
        compared = drift.compare_counts(
            group, name, {"yes": m, "no": total - m}, {"yes": k, "no": n - k}
        )
        row.update(change=f"{100 * (k / n - m / total):+.1f} points", **outcome(compared))
    return row
