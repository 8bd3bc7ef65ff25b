"""series.csv and rejects.csv as text."""

from __future__ import annotations

from beam_jobs.convert.series_table import to_csv


def test_whole_numbers_stay_whole_beside_blanks_and_no_cell_is_a_formula() -> None:
    columns = ("a", "b", "c", "d", "e", "slices", "spacing", "whole")
    rows: list[dict[str, object]] = [
        {**dict.fromkeys(columns, ""), "a": "2", "slices": None, "spacing": None, "whole": None},
        {**dict.fromkeys(columns, ""), "a": "=1", "slices": 24, "spacing": 2.0, "whole": True},
    ]
    assert to_csv(columns, rows) == (
        "a,b,c,d,e,slices,spacing,whole\n2,,,,,,,\n'=1,,,,,24,2.0,True\n"
    )
    assert to_csv(columns, []) == "a,b,c,d,e,slices,spacing,whole\n"
