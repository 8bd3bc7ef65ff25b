"""The survey shows what the conversion would do, and touches nothing."""

import csv
import subprocess
import sys

import pytest

from beam_jobs import survey
from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from beam_jobs.core.reasons import SENTENCES, Reason
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.commands import outcome


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "train"
    for modality in ("T1w", "FLAIR"):
        spec = SeriesSpec(modality=modality, plane="coronal", rows=12, columns=14, slices=5)
        write_series(spec, root / "00005" / modality, lambda xyz: xyz[..., 0] ** 2)
    (root / "00005" / "notes.txt").write_text("hello")
    (root / "00005" / "T1w" / "broken.dcm").write_bytes(b"x" * 300)
    return root


def test_table_and_sums_are_printed_and_written(cohort, tmp_path, capsys):
    output = tmp_path / "series.csv"
    assert survey.main([str(cohort), "--output", str(output)]) == cli.EXIT_OK
    printed = capsys.readouterr().out
    assert "files       12 = 10 used + 0 unused by rule + 2 rejected" in printed
    assert f"not_dicom 2: {SENTENCES[Reason.NOT_DICOM]}" in " ".join(printed.split())
    rows = list(csv.DictReader(output.read_text().splitlines()))
    used = {row["modality"]: row for row in rows if row["verdict"] == "used"}
    assert set(used) == {"T1w", "FLAIR"}
    assert (used["T1w"]["plane"], used["T1w"]["slices"]) == ("coronal", "5")
    assert (used["T1w"]["rows"], used["T1w"]["columns"]) == ("12", "14")


def test_survey_costs_no_beam_and_no_tensorflow(cohort):
    code = (
        f"import sys; from beam_jobs.survey import main; main(['{cohort}', '--quiet']); "
        "print(sorted({'apache_beam', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere is not a directory"),
        (["EMPTY"], "holds no file"),
        (["COHORT", "--modalities", "T1w,Nonsense"], "unknown modality Nonsense"),
        (["COHORT", "--series_rules", "gone.json"], "--series_rules: gone.json does not exist"),
        (["COHORT", "--output", "NOTES/x.csv"], "notes.txt"),
        (["COHORT", "--output", "https://host/x.csv"], "can be read, not written to"),
        (["COHORT", "--output", "EMPTY"], "is no file's name"),
        (["COHORT", "--output", ""], "is no file's name"),
        (["COHORT", "--write_rules", "EMPTY"], "is no file's name"),
        (["COHORT", "--write_rules", "RULES"], "rules.json exists; name a new file"),
        (["COHORT", "--output", "x", "--write_rules", "./x"], "name the same file"),
        (["COHORT", "--output", "RULES", "--series_rules", "RULES"], "name the same file"),
        (["COHORT", "--series_rules", "MISSPELT"], "rule 1: gives 't1w'"),
    ],
)
def test_wrong_usage_is_one_clear_line(cohort, tmp_path, argv, message, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rules.json").write_text("[]")
    (tmp_path / "misspelt.json").write_text('[{"modality": "t1w", "text": "a"}]')
    names = {
        "RULES": str(tmp_path / "rules.json"),
        "MISSPELT": str(tmp_path / "misspelt.json"),
        "EMPTY": str(tmp_path / "empty"),
        "COHORT": str(cohort),
        "NOTES/x.csv": str(cohort / "00005" / "notes.txt" / "x.csv"),
    }
    given = [names.get(one, one) for one in argv]
    code, _, err = outcome(survey.main, given, capsys, monkeypatch)
    assert code in (cli.EXIT_USAGE, cli.EXIT_FAILURE)
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "rules.json").read_text() == "[]"


def test_named_pipe_and_dangling_link_are_refused_and_link_loops_end(cohort):
    import os

    os.mkfifo(cohort / "00005" / "pipe.dcm")
    (cohort / "00005" / "dangling.dcm").symlink_to("nowhere")
    (cohort / "00005" / "loop").symlink_to(cohort)
    rows = survey.survey(files.entries(cohort), ("T1w", "FLAIR"))
    unreadable = sorted(row.path for row in rows if row.reason == "unreadable_file")
    assert [path.rsplit("/", 1)[-1] for path in unreadable] == ["dangling.dcm", "pipe.dcm"]
    assert sum(row.files for row in rows) == 14
