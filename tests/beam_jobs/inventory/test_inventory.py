"""A survey tells what lies in an input, in lines that fit and cannot harm a terminal."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from rich.cells import cell_len

from beam_jobs import survey
from beam_jobs.common.files import interface as files
from beam_jobs.convert.series_table import SERIES_COLUMNS, TableWriter
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.rules import read_rules, read_rules_file
from beam_jobs.inventory.listing import kinds, listing
from beam_jobs.inventory.rows import SURVEY_COLUMNS, SurveyRow, values_of
from beam_jobs.inventory.starter_rules import starter_rules, to_json
from beam_jobs.phantoms.series import SeriesSpec, write_series

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "T1 \x1b]0;owned\x07\x1b[2J \u202eevil\u200b\x9b31m [bold]x[/bold]"


def write(folder, uid, number=1, patient="P1", slices=4, **header):
    """A series of one UID; `header` is of every file."""
    spec = SeriesSpec(modality="X", rows=8, columns=8, slices=slices)
    paths = write_series(spec, folder, lambda xyz: xyz[..., 0] ** 2 + number, patient_id=patient)
    for path in paths.paths:
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SeriesInstanceUID, dataset.SeriesNumber = f"1.2.{uid}", number
        dataset.SOPInstanceUID = (
            f"1.2.{uid}.{dataset.InstanceNumber}.{header.get('AcquisitionNumber', 0)}"
        )
        dataset.SeriesDescription = ""
        for keyword, value in header.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return paths.paths


def rows_of(root, rules=()):
    return survey.survey(
        files.entries(root), ("FLAIR", "T1w", "T1wCE", "T2w"), rules, root=str(root)
    )


@pytest.fixture
def heap(tmp_path):
    root = tmp_path / "heap"
    paths = write(
        root / "a", 1, 2, SeriesDescription="t1_mprage", ProtocolName="t1_mprage_sag",
        SequenceName="*tfl3d1_16ns", EchoTime="2.9", RepetitionTime="2300", InversionTime="900",
    )  # fmt: skip
    for number, path in enumerate(paths[:3]):
        shutil.copy(path, root / f"copy-{number}.dcm")
    for time in range(3):
        write(root / f"b{time}", 2, 3, SeriesDescription="dyn 1001", AcquisitionNumber=time)
    write(root / "c", 3, 4, SeriesDescription="Ganz Kopf 4711", Modality="CT")
    (alone,) = write(root / "d", 4, 1, patient="P2", SeriesDescription="localizer", slices=1)
    shutil.copy(alone, root / "once-more.dcm")
    (root / "notes.txt").write_text("hello")
    return root


def test_a_series_is_one_row_with_its_repetitions_and_copies(heap):
    rows = rows_of(heap)
    assert [(row.patient, row.series_number, row.name) for row in rows] == [
        ("P1", 2, "t1_mprage"), ("P1", 3, "dyn 1001"), ("P1", 4, "Ganz Kopf 4711"),
        ("P2", 1, "localizer"), ("", None, ""),
    ]  # fmt: skip
    first, repeated, ct, alone, text = rows
    assert (first.files, first.used, first.copies, first.rejected) == (7, 4, 3, 0)
    assert (first.repetitions, first.other_reasons) == (1, "exact_duplicate")
    assert (first.protocol, first.sequence_name) == ("t1_mprage_sag", "*tfl3d1_16ns")
    assert (repeated.files, repeated.repetitions, repeated.slices) == (12, 3, 4)
    assert (ct.dicom_modality, ct.reason) == ("CT", "unknown_modality")
    assert ct.detail == "Modality (0008,0060) is CT, not MR"
    assert (alone.reason, alone.files, alone.rejected, alone.copies) == ("too_few_slices", 2, 1, 1)
    assert (text.reason, text.path) == ("not_dicom", "notes.txt")
    assert sum(row.files for row in rows) == 7 + 12 + 4 + 2 + 1


def test_table_and_csv_name_the_series(heap, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    survey.main([str(heap), "--output", str(tmp_path / "s.csv")])
    shown = capsys.readouterr().out
    for text in ("t1_mprage", "t1_mprage_sag", "*tfl3d1_16ns", "CT", "a/Image-1.dcm", "×3"):
        assert text in shown
    assert "patient P1 · 3 series · 23 files" in shown
    assert "files       26 = 4 used + 20 unused by rule + 2 rejected" in shown
    (row,) = [
        row
        for row in csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
        if row["description"] == "t1_mprage"
    ]
    assert (row["series_number"], row["dicom_modality"], row["copies"]) == ("2", "MR", "3")
    assert (row["echo_time"], row["inversion_time"], row["verdict"]) == ("2.9", "900.0", "used")


def test_what_a_survey_calls_series_is_no_column_of_a_dataset():
    texts = {"description", "protocol", "sequence_name", "contrast_agent", "manufacturer"}
    assert not texts & set(SERIES_COLUMNS)


def test_patient_that_the_conversion_refuses_is_not_used(tmp_path):
    for number, patient in enumerate("AB"):
        for path in write(tmp_path / patient, number, patient=patient):
            (tmp_path / "5" / "T1w").mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / "5" / "T1w" / f"{patient}-{path.name}")
    rows = [row for row in rows_of(tmp_path) if row.modality]
    assert {(row.verdict, row.reason) for row in rows} >= {("unused", "patient_rejected")}
    assert not sum(row.used for row in rows)


def test_patient_who_is_refused_is_told_why_and_not_among_the_used(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for number, patient in enumerate("ABC"):
        folder = tmp_path / ("own" if patient == "C" else "both") / patient
        write(
            folder, number, patient=patient, SeriesDescription="t1_mprage",
            EchoTime="2.9", RepetitionTime="2300", InversionTime="900",
        )  # fmt: skip
    survey.main([str(tmp_path), "--patient_from", "directory"])
    shown = capsys.readouterr().out
    why = "  refused: mixed_patients: 2 different PatientIDs in the directory"
    assert re.search(rf"^patient both .*\n{why}$", shown, re.M)
    assert "used        T1w 1, of 1 of 2 patients\n" in shown
    assert "reason      mixed_patients 1: " in shown
    assert all(cell_len(line) <= 80 for line in shown.split("\n"))


def test_an_id_of_many_studies_is_seen(tmp_path, capsys):
    """`999999` may be many people's; nothing else tells."""
    for number in range(3):
        write(tmp_path / str(number), number, patient="999999", StudyInstanceUID=f"1.9.{number}")
        write(tmp_path / f"other {number}", number + 9, patient="5", StudyInstanceUID="1.8")
    survey.main([str(tmp_path), "--output", str(tmp_path / "s.csv")])
    shown = capsys.readouterr().out
    assert "patient 999999 · 3 studies · 3 series · 12 files" in shown
    assert "patient 5 · 3 series · 12 files" in shown
    assert "1.9.0" not in (tmp_path / "s.csv").read_text()


def test_summary_fits_and_counts_stay_in_sight(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for number in range(6):
        name = f"unknown to every rule {number}"
        write(tmp_path / str(number), number, number, SeriesDescription=name, PatientID="患者" * 15)
    survey.main([str(tmp_path)])
    lines = capsys.readouterr().out.split("\n")
    assert all(cell_len(line) <= 60 for line in lines)
    assert any(line.endswith("… · 6 series · 24 files") for line in lines)


def test_patients_whom_the_cohort_makes_ambiguous_are_not_used(tmp_path):
    for number, patient in enumerate(("77", "00077", "78")):
        times = {"EchoTime": 98.0, "RepetitionTime": 4800.0}
        told = {"SeriesDescription": "t2_tse_tra", **times}
        write(tmp_path / str(number), number, patient=patient, **told)
    rows = {row.patient: row for row in rows_of(tmp_path)}
    for patient in ("77", "00077"):
        assert rows[patient].reason == "patient_rejected"
        assert rows[patient].detail.startswith("ambiguous_patient: 2 patients")
    assert rows["78"].verdict == "used"


def many(count):
    row = SurveyRow(
        patient="", series_number=7, description="頭部 " * 9, protocol="p" * 70,
        dicom_modality="MR",
        sequence_name="*tse", verdict="unused", reason="other_candidate_preferred", detail="",
        plane="axial", obliquity=12.0, rows=256, columns=256, slices=40, repetitions=12, files=9,
        path="a/" * 40 + "Image-1.dcm", row_spacing=0.9, column_spacing=0.9, slice_step=3.0,
    )  # fmt: skip
    for number in range(count):
        yield dataclasses.replace(
            row, patient=f"{number // 4:04}", series_number=10**number % 10**9
        )


@pytest.mark.parametrize("width", [40, 80, 100, 149, 150, 200])
def test_no_line_is_wider_than_the_terminal(width):
    lines = list(listing(list(many(40)), width, 100))
    assert len(lines) == 1 + 10 + 40 * (1 if width >= 150 else 2)
    assert all(cell_len(line.text) <= width for line in lines)
    series = [line.text for line in lines if "頭部" in line.text]
    assert all("…" in line for line in series if width <= 80)
    assert all("Image-1.dcm" in line.text for line in lines if "a/a" in line.text)


def test_thousands_of_series_end_in_a_line_that_says_where_the_rest_is():
    lines = [line.text for line in listing(list(many(8000)), 80, 100)]
    assert len(lines) < 300
    assert lines[-1] == "… 7,900 more series of 1,975 patients; --output FILE has every row"
    one = [dataclasses.replace(row, patient="1") for row in many(1000)]
    lines = [line.text for line in listing(one, 80, 100)]
    assert lines[-1] == "  … 800 more series of this patient; --output FILE has every row"


def test_unknown_kinds_are_counted_by_name():
    rows = [
        dataclasses.replace(row, reason="unknown_modality", description=name)
        for row, name in zip(many(4), ["dwi", "loc", "dwi", "x"], strict=True)
    ]
    assert kinds(rows, most=2) == ["dwi 2", "loc 1", "1 other kinds"]


# Rules to begin with.


def test_starter_rules_are_none_until_they_are_edited(heap, tmp_path, capsys):
    path = tmp_path / "rules.json"
    survey.main([str(heap), "--write_rules", str(path)])
    shown = capsys.readouterr().out
    assert f"rules       {path}: 2\n            each passed over until" in shown
    assert read_rules_file(str(path)) == ()  # so that nothing of it travels in a dataset
    data = json.loads(path.read_text())
    assert [rule["text"] for rule in data] == [r"^Ganz Kopf \d{3,}$", r"^dyn \d{3,}$"]
    assert data[1]["comment"].startswith("1 series of 1 patient, axial 8×8×4, TE 10")
    data[1]["modality"] = "T2w"
    path.write_text(json.dumps(data))
    rows = rows_of(heap, read_rules_file(str(path)))
    assert [row.name for row in rows if row.modality == "T2w"] == ["dyn 1001"]


ODD = [
    "a\xa0b",
    "a\tb",
    "line\nbreak",
    "x\x1b[2J",
    "\u202eevil",
    "soft\xadhyphen",
    r"a+b (c) 70% \d",
]


def test_starter_rules_find_the_series_that_they_were_made_of_whatever_it_is_called(tmp_path):
    for number, name in enumerate(ODD):
        write(tmp_path / "heap" / str(number), number, number, SeriesDescription=name)
    text = to_json(starter_rules(rows_of(tmp_path / "heap")))
    assert all(line.isprintable() for line in text.split("\n"))
    rules = read_rules(text.replace('"?"', '"T2w"'), name="r")
    assert {row.modality for row in rows_of(tmp_path / "heap", rules)} == {"T2w"}
    assert len(rules) == len(ODD)


def test_starter_rules_of_long_numbers_leave_short_ones_alone(tmp_path):
    for number, name in enumerate(["zzz 103", "zzz 104", "zzz 11", "zzz 12"]):
        write(tmp_path / str(number), number, number, SeriesDescription=name)
    found = {rule["text"]: rule["comment"][:8] for rule in starter_rules(rows_of(tmp_path))}
    assert found == {r"^zzz \d{3,}$": "2 series", "^zzz 11$": "1 series", "^zzz 12$": "1 series"}


def test_series_that_no_rule_can_be_made_of_are_counted(tmp_path, capsys):
    nothing = {"EchoTime": None, "RepetitionTime": None, "ScanningSequence": None}
    write(tmp_path / "heap" / "a", 1, **nothing)
    survey.main([str(tmp_path / "heap"), "--write_rules", str(tmp_path / "none.json")])
    assert "none can be made of 1 series without text and times" in capsys.readouterr().out
    # Neither somebody's id nor a Modality is needed for a rule.
    write(tmp_path / "heap" / "b", 2, patient="ANONYMOUS", SeriesDescription="nobody's")
    write(tmp_path / "heap" / "c", 3, SeriesDescription="what", Modality="", SOPClassUID="")
    rules = starter_rules(rows_of(tmp_path / "heap"))
    assert [(rule.get("dicom_modality"), rule["text"]) for rule in rules] == [
        ("MR", "^nobody's$"), (None, "^what$"),
    ]  # fmt: skip


def test_starter_rule_of_a_name_that_known_series_have_is_told_by_its_times(tmp_path):
    write(
        tmp_path / "heap" / "a",
        1,
        SeriesDescription="Series 301",
        EchoTime="10",
        RepetitionTime="500",
    )
    write(
        tmp_path / "heap" / "b",
        2,
        SeriesDescription="Series 302",
        EchoTime="40",
        RepetitionTime="500",
    )
    write(
        tmp_path / "heap" / "c",
        3,
        SeriesDescription="series 301",
        EchoTime="40",
        RepetitionTime="500",
    )
    heap = tmp_path / "heap"
    rows = rows_of(heap)
    found = {rule["text"]: rule.get("echo_time") for rule in starter_rules(rows)}
    assert found == {"^Series 302$": None, "^series 301$": [38.0, 42.0]}
    text = to_json(starter_rules(rows)).replace('"?"', '"T2w"')
    found = {row.description: row.modality for row in rows_of(heap, read_rules(text, name="r"))}
    assert found == {"Series 301": "T1w", "Series 302": "T2w", "series 301": "T2w"}


def test_no_starter_rules_where_directories_decide(tmp_path, capsys):
    write(tmp_path / "5" / "T1w", 1)
    write(tmp_path / "5" / "other", 2, SeriesDescription="SWI")
    survey.main([str(tmp_path), "--write_rules", str(tmp_path / "rules.json")])
    assert (tmp_path / "rules.json").read_text() == "[]\n"
    assert "directories decide" in capsys.readouterr().out


# Whatever headers say, a terminal shows it and obeys none of it.


def test_control_characters_reach_no_terminal(tmp_path):
    root = tmp_path / "heap"
    write(
        root / "a\x1b[31m", 1, SeriesDescription=HOSTILE, ProtocolName=f"p{HOSTILE}",
        SequenceName=f"s{HOSTILE}"[:16], PatientID=f"{HOSTILE}\nfiles 0 = 0", Modality="M\x1bR",
    )  # fmt: skip
    (root / "b\x1b[2J\r\u2066.txt").write_text("x")
    argv = [
        sys.executable,
        "-m",
        "beam_jobs.survey",
        str(root),
        "--output",
        str(tmp_path / "s.csv"),
    ]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    assert r"T1 \x1b]0;owned\x07\x1b[2J \u202eevil\u200b\x9b31m [bold]x[/bold]" in done.stdout
    assert done.stdout.count("\nfiles ") == 1
    assert all(line.isprintable() for line in (tmp_path / "s.csv").read_text().split("\n"))


def test_a_spreadsheet_computes_nothing_that_headers_say(tmp_path):
    row = SurveyRow(
        patient="-1", description='=HYPERLINK("http://x")', protocol="-2+3+cmd|' /C calc'!A0",
        sequence_name="*tse", manufacturer="@SUM(1)", contrast_agent="+C", verdict="unused",
        reason="", detail="", obliquity=-3.0, files=1, path="\uff1dx/=y",
    )  # fmt: skip
    values = dict(zip(SURVEY_COLUMNS, values_of([row])[0], strict=True))
    assert values["description"] == """'=HYPERLINK("http://x")"""
    quoted = ("description", "protocol", "manufacturer", "contrast_agent", "path")
    assert all(values[name] == f"'{getattr(row, name)}" for name in quoted)
    kept = ("patient", "sequence_name", "obliquity")
    assert all(values[name] == getattr(row, name) for name in kept)


def test_paths_in_tables_are_without_control_characters():
    tables = TableWriter(root="in", id_policy=IdPolicy())
    assert tables.path("in/a\x1b[2J/\u202eb\udcff.dcm") == r"a\x1b[2J/\u202eb\udcff.dcm"
