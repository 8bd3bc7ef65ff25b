"""Two datasets on one page: what differs is marked, and nothing else."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from beam_jobs.core import drift
from tests.beam_jobs.report.pages import (
    MODALITIES,
    make,
    table,
    without_blank_slices,
)
from tests.datasets import make_cases, make_schema, write_cases


def drift_rows(page: str, name: str) -> list[str]:
    """The rows of the comparison that have a name, cells in one line."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [re.sub(r"<[^>]+>", "|", row) for row in found if f"<td>{name}</td>" in row]


def with_more_series(dataset: Path, copy: Path) -> Path:
    """A copy whose series.csv lists every series three times: enough for a difference to count."""
    shutil.copytree(dataset, copy)
    header, *rows = (copy / "series.csv").read_text().splitlines()
    (copy / "series.csv").write_text("\n".join([header, *(3 * rows)]) + "\n")
    return copy


def test_comparison_with_a_dataset_without_counts_of_blank_slices_says_so(dataset, tmp_path):
    other = without_blank_slices(dataset, tmp_path / "old")
    page = make(dataset, "--against", str(other), "--output", str(tmp_path / "drift.html"))
    found = drift_rows(page, "blank slices a series")
    assert len(found) == len(MODALITIES)
    assert all("|counted|" in row and "|not recorded|" in row for row in found)


def test_comparison_marks_other_shares_of_blank_slices(dataset, tmp_path):
    dataset = with_more_series(dataset, tmp_path / "more")
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    rows = table(other, "series.csv")
    rows.loc[(rows.modality == "T1w") & (rows.verdict == "used"), "blank_slices"] = 0
    rows.to_csv(other / "series.csv", index=False)
    page = make(dataset, "--against", str(other), "--output", str(tmp_path / "drift.html"))
    (marked,) = re.findall(r'<tr class="mark">(.*?)</tr>', page, re.DOTALL)
    assert "T1w" in marked
    assert "blank slices a series" in marked
    assert "0 (0 to 0) %" in marked


def test_comparison_finds_what_was_changed_and_nothing_else(dataset, tmp_path):
    dataset = with_more_series(dataset, tmp_path / "more")
    other = shutil.copytree(dataset, tmp_path / "other")
    rows = list(csv.DictReader((other / "series.csv").read_text().splitlines()))
    ours = [int(row["slices"]) for row in rows if row["modality"] == "T1w" and row["slices"]]
    for row in rows:
        if row["modality"] == "T1w" and row["slices"]:
            row["slices"] = str(int(row["slices"]) * 5)
            row["blank_slices"] = str(int(row["blank_slices"] or 0) * 5)  # the same share
    with (other / "series.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    output = str(tmp_path / "drift.html")
    page = make(dataset, "--against", str(other), "--output", output)
    marked = re.findall(r'<tr class="mark">(.*?)</tr>', page, re.DOTALL)
    assert len(marked) == 1
    assert "T1w" in marked[0]
    assert "slices a series" in marked[0]
    expected = stats.ks_2samp(ours, [5 * count for count in ours])
    assert f"KS {expected.statistic:.2f}" in marked[0]
    assert "the same records, byte for byte" in page


def test_report_and_prediction_mark_the_same_differences(dataset, tmp_path):
    dataset = with_more_series(dataset, tmp_path / "more")
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    rows = table(other, "series.csv")
    used = (rows.verdict == "used") & (rows.modality == "FLAIR")
    for column, value in (("plane", "other"), ("slice_step", 9.0), ("field_strength", 7.0)):
        rows.loc[used, column] = value
    rows.to_csv(other / "series.csv", index=False)
    ours, theirs = (
        drift.of_series(csv.DictReader((path / "series.csv").read_text().splitlines()), MODALITIES)
        for path in (dataset, other)
    )
    found, _ = drift.compare(theirs, ours, MODALITIES)
    names = {
        "plane": "planes",
        "spacing": "spacing in plane",
        "step": "step between slices",
        "field_strength": "field strength",
    }
    expected = {(one.modality, names[one.what]) for one in found if one.drifted}
    page = make(dataset, "--against", str(other), "--output", str(tmp_path / "drift.html"))
    marked = re.findall(r'<tr class="mark"><th[^>]*>(.*?)</th><td>(.*?)</td>', page)
    assert set(marked) == expected
    assert len(expected) == 3


def test_a_handful_of_series_is_too_few_to_mark(dataset, tmp_path):
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    rows = table(other, "series.csv")
    rows["slices"] *= 5
    rows.to_csv(other / "series.csv", index=False)
    page = make(dataset, "--against", str(other), "--output", str(tmp_path / "drift.html"))
    assert '<tr class="mark">' not in page
    assert all("too few" in row for row in drift_rows(page, "slices a series"))


def test_comparison_shows_brighter_records_and_other_people(tmp_path):
    schema = make_schema()
    cases = make_cases(schema, patients=12)
    write_cases(tmp_path / "a", cases, schema, folds=3)
    for case in cases[:9]:
        case.volume[case.volume > 0] = np.minimum(case.volume[case.volume > 0] + 60.0, 255)
    write_cases(tmp_path / "b", cases[:9], schema, folds=3)
    page = make(tmp_path / "a", "--against", str(tmp_path / "b"))
    assert re.search(r"<b>9</b><span>patients in both", page)
    assert re.search(r"<b>3</b><span>only here", page)
    marked = re.findall(r'<tr class="mark">(.*?)</tr>', page, re.DOTALL)
    assert len(marked) == 4
    assert all("stored intensities" in row for row in marked)
    far = [float(re.findall(r"distance ([0-9.]+) %", row)[0]) for row in marked]
    assert all(distance == pytest.approx(100 * 60 / 255, abs=2) for distance in far)
