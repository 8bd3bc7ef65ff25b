"""The conversion's benchmark: limits over runs, and clocks that add up."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.core.geometry import VolumeGeometry
from beam_jobs.phantoms.anatomy import Head
from beam_jobs.phantoms.cohort import imaged
from beam_jobs.phantoms.series import SeriesSpec, write_series

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import _harness
import _stages
import _ways
import convert


def source(name: str, paths: tuple[str, ...] = (), vendor: str = "") -> _ways.Input:
    return _ways.Input(
        name=name,
        folder=Path(),
        paths=paths,
        matrix=(64, 64),
        shape=_ways.GRID,
        vendor=vendor,
        sorted_paths=paths,
        grid=VolumeGeometry(shape=_ways.GRID, affine=np.eye(4)),
    )


def a_run(seconds_of_ours: float) -> list[convert.Figures]:
    names = {_ways.BIG: "", _ways.NOISE: "", _ways.OBLIQUE: ""}
    names |= {_ways.SMALL: "", "GE-like": "GE"}
    return [
        convert.Figures(
            source=source(name, vendor=vendor),
            clocks={
                way: [_harness.Clock(seconds_of_ours if way == "ours" else 6.0, 0.0)] * 3
                for way in _ways.WAYS
            },
            peak_mb={"ours": 10.0},
            stages={},
        )
        for name, vendor in names.items()
    ]


def test_a_limit_is_judged_by_the_median_of_the_runs():
    limits = convert.over_runs([a_run(6.0), a_run(1.0), a_run(2.0)], "off")
    faster = {limit.figure: limit for limit in limits}
    found = faster["GE-like: times faster than SimpleITK from the same folder (huge pages off)"]
    assert found.value == pytest.approx(3.0)
    assert found.holds
    over_floor = next(limit for limit in limits if limit.at_most == 1.5)
    assert over_floor.value == pytest.approx(2.0 / 6.0)


def test_a_median_is_told_with_the_range_of_its_rounds(capsys):
    limit = _harness.Limit.of_median("job / loop", [1.2, 1.06, 1.05], at_most=1.08)
    assert _harness.conclude([limit], {}, None) == 0
    assert "job / loop: 1.06 (at most 1.08; 1.05 to 1.2 in 3 rounds)" in capsys.readouterr().out


def test_every_stage_has_its_clock_and_functions_are_put_back(tmp_path):
    spec = SeriesSpec(modality="T1w", rows=128, columns=128, slices=12)
    files = write_series(spec, tmp_path, imaged(Head(), "T1w", seed=(1, 0))).paths
    before = [getattr(owner, name) for owner, name, _ in _stages._CLOCKED]
    start = time.perf_counter()
    seconds = convert.stages(source("small", tuple(map(str, files))), rounds=1)
    whole = time.perf_counter() - start
    assert [getattr(owner, name) for owner, name, _ in _stages._CLOCKED] == before
    assert sum(seconds.values()) < whole
    assert all(seconds[name] > 0 for name in _stages.STAGES)
