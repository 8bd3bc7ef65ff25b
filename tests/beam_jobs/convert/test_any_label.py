"""Labels of every task and covariates, run as a user runs them: records, resume, privacy."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from beam_jobs import dicom_to_tfrecord, verify
from beam_jobs.api import open_dataset
from beam_jobs.common import cli
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig

CANARY = "Zebra"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients with a small series each; labels and covariates of all kinds of them."""
    root = tmp_path_factory.mktemp("any") / "phantoms"
    config = PhantomConfig(
        patients=12, test_patients=0, matrix=(16, 20), slices=(6, 8), modalities=("T1w",)
    )
    write_cohort(config, root)
    found = sorted(folder.name for folder in (root / "train").iterdir())
    for number, name in enumerate(found):  # under ids that would be found anywhere
        (root / "train" / name).rename(root / "train" / f"{CANARY}-{number}")
    numbers = range(12)
    pd.DataFrame(
        {
            "id": [f"{CANARY}-{n}" for n in numbers],
            "plain": [n % 2 for n in numbers],
            "grade": ["II" if n % 3 == 0 else "III" if n % 3 == 1 else "IV" for n in numbers],
            "edema": [None if n == 10 else n % 2 for n in numbers],
            "necrosis": [n // 2 % 2 for n in numbers],
            "volume": [n + 0.5 for n in numbers],
            "age": [None if n == 0 else 40 + n for n in numbers],
            "sex": ["MF"[n % 2] for n in numbers],
            "fold": [n // 6 for n in numbers],
        }
    ).to_csv(root / "all.csv", index=False)
    (root / "key").write_text("0123456789abcdef")
    return root


def convert(cohort: Path, output: Path, *more: str, labels: Path | None = None) -> int:
    table = str(labels or cohort / "all.csv")
    return dicom_to_tfrecord.main(
        [
            *("--input", str(cohort / "train"), "--output", str(output), "--shape", "8,8,6"),
            *("--labels", table, "--id_column", "id", "--modalities", "T1w", *more),
            *("--folds_csv", str(cohort / "all.csv"), "--no_report"),
        ]
    )


def known(table: str) -> tuple[str, ...]:
    return "--covariates", table, "--covariate_columns", "age,sex"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "first", "last"),
    [
        ("grade", {"label": "II"}, {"label": "III"}),
        ("edema,necrosis", {"label_edema": 0}, {"label_edema": pd.NA}),
        ("volume", {"label": 0.5}, {"label": 10.5}),
    ],
)
def test_labels_of_every_task_stand_in_records_tables_and_manifest(
    cohort: Path, tmp_path: Path, columns: str, first: dict[str, object], last: dict[str, object]
) -> None:
    flags = ("--label_column", columns, *known(str(cohort / "all.csv")))
    assert convert(cohort, tmp_path / "d", *flags, "--quiet") == cli.EXIT_OK
    opened = open_dataset(tmp_path / "d")
    table = opened.patients.set_index("patient_id")
    for name, expected in ((f"{CANARY}-0", first), (f"{CANARY}-10", last)):
        for column, value in expected.items():
            assert table.loc[name, column] is value or table.loc[name, column] == value
    cases = {case.patient_id: case for case in opened.cases()}
    assert math.isnan(cases[f"{CANARY}-0"].covariates[0])
    assert cases[f"{CANARY}-1"].covariates == (41.0, 0.0)
    assert opened.manifest.counts["covariates_unknown"] == {"age": 1, "sex": 0}
    assert verify.main([str(tmp_path / "d"), "--workers", "1"]) == cli.EXIT_OK


@pytest.mark.slow
def test_a_changed_label_or_covariate_converts_its_own_shard_again(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    flags = ("--label_column", "grade", *known(str(table)))
    rows = pd.read_csv(cohort / "all.csv", dtype=str)
    kept = []
    for patient, column, value in ((0, "grade", "II"), (4, "grade", "II"), (7, "age", "")):
        rows.loc[patient, column] = value
        rows.to_csv(table, index=False)
        capsys.readouterr()
        assert convert(cohort, tmp_path / "d", *flags, labels=table) == cli.EXIT_OK
        kept.append(next(line for line in capsys.readouterr().out.splitlines() if "kept" in line))
    assert [line.split(None, 1)[1] for line in kept] == [
        "0 kept, 12 converted", "11 kept, 1 converted", "11 kept, 1 converted",
    ]  # fmt: skip
    with pytest.raises(cli.UsageError, match=r"covariates\.categories\.sex: .* there, nothing req"):
        convert(cohort, tmp_path / "d", *flags, "--covariate_columns", "age")
    with pytest.raises(cli.UsageError, match=r"target\.task: 'multiclass' there, 'regression' req"):
        convert(cohort, tmp_path / "d", *flags, "--label_column", "volume")


@pytest.mark.slow
def test_no_id_is_written_or_said_under_hmac(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--label_column", "edema,necrosis", *known(str(cohort / "all.csv")))
    flags += ("--id_policy", "hmac", "--id_key", str(cohort / "key"))
    assert convert(cohort, tmp_path / "d", *flags) == cli.EXIT_OK
    said = "".join(capfd.readouterr())
    assert "fold 1      6 patients: 3 with edema, 4 with necrosis" in said
    assert CANARY not in said
    for path in (tmp_path / "d").rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


@pytest.mark.slow
def test_the_plan_tells_the_balance_and_writes_nothing(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns, said in (
        ("plain", "12 patients: 6 of label 0, 6 of label 1"),
        ("grade", "task: multiclass of 3 classes II, III, IV"),
        ("grade", "12 patients: 4 of class II, 4 of class III, 4 of class IV"),
        ("edema,necrosis", "12 patients: 6 with edema, 6 with necrosis; not known: edema of 1"),
        ("volume", "task: regression of volume; --task multiclass takes them as classes"),
        ("volume", "3 of 0.5 to 2.5, 3 of 2.5 to 5.5, 3 of 5.5 to 8.5, 3 of 8.5 to 11.5"),
    ):
        assert (
            convert(cohort, tmp_path / "d", "--label_column", columns, "--dry_run") == cli.EXIT_OK
        )
        assert said in capsys.readouterr().out
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_what_a_worker_finds_is_one_line(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels may be of more patients than the input has: what is found decides."""
    table = tmp_path / "t.csv"
    more = "".join(f"{n},,V,,,,,,\n" for n in range(100, 103))
    table.write_text((cohort / "all.csv").read_text() + more)
    flags = ("--label_column", "grade", "--processes", "2", "--quiet")
    with pytest.raises(cli.UsageError, match=r"^of the labelled patients found: class V has 0 pat"):
        convert(cohort, tmp_path / "d", *flags, labels=table)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "multiclass"), "--task needs --labels: it says what they are"),
        (("--classes", "a"), "--classes needs --labels"),
        (("--label_unit", "ml"), "--label_unit needs --labels"),
        (("--covariates", "c.csv"), "--covariates and --covariate_columns need each other"),
        (("--covariate_columns", "age"), "--covariates and --covariate_columns need each other"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(cli.UsageError, match=message):
        dicom_to_tfrecord.main(["--input", str(tmp_path), "--output", str(tmp_path / "d"), *flags])
