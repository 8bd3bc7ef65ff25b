"""Tables of which a spreadsheet runs no stranger's text, and that read back as written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.common.csv_table import inert, is_formula, read_table, text_of, write_table

RUN = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '"=1+1', " =1+1", "'=1",
       "＝1+1", "-", "=cmd|' /C calc'!A0", "+49 89 1234", "-1_000", "\n\r-2,=3"]  # fmt: skip
INERT = ["", "T1w", "00000", "-1.5", "+2", "-1e-05", "1-2", "a=b", "'T1w'", "it's", "-.5"]


@pytest.mark.parametrize("text", RUN)
def test_a_formula_is_written_as_text(text: str) -> None:
    assert is_formula(text)
    assert inert(text) == f"'{text}"
    assert text_of(inert(text)) == text


@pytest.mark.parametrize("text", INERT)
def test_what_runs_nowhere_stays_what_it_is(text: str) -> None:
    assert not is_formula(text)
    assert inert(text) == text
    assert text_of(text) == text


@given(st.text(alphabet=st.sampled_from("'\"=+-@\t\r\n 1a.e") | st.characters(codec="utf-8")))
def test_every_text_reads_back(text: str) -> None:
    assert text_of(inert(text)) == text
    assert inert(text) == text or inert(text).startswith("'")
    assert not is_formula(inert(text)) or inert(text).startswith("'")


def test_numbers_are_no_formulas() -> None:
    assert inert(-1.5) == -1.5
    assert inert(None) is None


def test_a_table_of_ours_runs_nothing_and_reads_back(tmp_path: Path) -> None:
    rows = [[text, -0.25, 7] for text in (*RUN, *INERT)]
    write_table(tmp_path / "table.csv", ("name", "value", "count"), rows)
    text = (tmp_path / "table.csv").read_bytes().decode()
    with (tmp_path / "table.csv").open(newline="") as stream:
        raw = [line[0] for line in csv.reader(stream)]
    assert not any(cell[:1] in "=+-@\t\r\n" and cell[:1] for cell in raw if cell not in INERT)
    _, found = read_table(text, ("name",), ours=True)
    # `read_table` takes blanks at a field's ends off.
    assert [row["name"] for _, row in found] == [
        text_of(inert(text).strip()) for text, _, _ in rows
    ]
    assert {row["value"] for _, row in found} == {"-0.25"}


def test_a_strangers_table_is_read_as_it_stands() -> None:
    _, rows = read_table("id\n'=1+1\n", ("id",))
    assert rows == [(2, {"id": "'=1+1"})]
