"""The benchmark of figures: a small run of it, and how it judges."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import figures

from beam_jobs.common.cli import UsageError


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [("classes", figures.EVEN), ("values", True)])
def test_rows_hold_every_figures_coverage(task, kind):
    without = figures.row_of(task, 60, 0.0, kind, 4, seed=1)
    told = figures.row_of(task, 60, 1.0, kind, 4, seed=1)
    named = "accuracy" if task == "classes" else "pearson"
    assert told[named]["expected"] > without[named]["expected"] + 0.1
    assert "outside" in without[named]
    assert "outside" not in told[named]
    assert all(0 <= one["covered"] <= 1 for one in told.values())


def test_too_few_repetitions_are_refused():
    with pytest.raises(UsageError, match="two or more"):
        figures.main(["--repetitions", "1"])


def test_a_figure_that_covers_too_seldom_misses_its_limit():
    good, bad = (list(figures._limits("mae", [covered], [0.05])) for covered in (0.95, 0.9))
    assert all(limit.holds for limit in good)
    assert [limit.holds for limit in bad] == [False, True]
