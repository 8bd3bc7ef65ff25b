"""What a model takes beside images: of DICOM from a CSV, the same answers as from records."""

import csv
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.core.manifest import read_manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, check_submission, export
from serving.api import load_model
from tests.commands import outcome
from tests.serving.models import write_run

SPEC = PreprocessSpec(modalities=("FLAIR", "T1wCE"), shape=(12, 12, 6), dtype="uint8")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_a_csv_beside_dicom_gives_the_answers_of_records_that_hold_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = tmp_path / "cohort"
    config = PhantomConfig(
        patients=12,
        test_patients=4,
        seed=3,
        matrix=(24, 28),
        slices=(8, 9),
        modalities=SPEC.modalities,
        task="multiclass",
        covariates=True,
    )
    write_cohort(config, cohort, workers=1)
    known = cohort / "covariates.csv"
    flags = ["--modalities", "FLAIR,T1wCE", "--shape", "12,12,6", "--quiet", "--folds", "2"]
    flags += ["--covariates", str(known), "--covariate_columns", "age,site", "--no_report"]
    for name, labels in (
        ("train", ["--labels", str(cohort / "train_labels.csv"), "--label_column", "lesion"]),
        ("test", []),
    ):
        argv = ["--input", cohort / name, "--output", tmp_path / name, *flags, *labels]
        assert dicom_to_tfrecord.main([*map(str, argv)]) == 0
    manifest = read_manifest(tmp_path / "train")
    write_run(
        tmp_path / "run",
        spec=SPEC.to_json(),
        schema=manifest.schema,
        modalities=SPEC.modalities,
        config={"covariates": ["age", "site"]},
    )
    model = tmp_path / "model"
    export.main(["--runs", str(tmp_path / "run"), "--output", str(model)])

    def predict(*argv: object) -> tuple[int, str, str]:
        given = ("--model", model, "--columns", "class,probability,spread,flags", *argv)
        return outcome(batch_predict.main, given, capsys, monkeypatch)

    code, _, err = predict("--input", cohort / "test", "--output", tmp_path / "no.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "takes age, site of each patient, which DICOM does not tell: --covariates CSV" in err
    code, _, err = predict("--input", tmp_path / "test", "--output", tmp_path / "no.csv",
                           "--covariates", known)  # fmt: skip
    assert code == 2
    assert "--covariates is for DICOM" in err

    assert predict("--input", tmp_path / "test", "--output", tmp_path / "a.csv")[0] == 0
    dicom = ("--input", cohort / "test", "--covariates", known, "--output")
    code, _, err = predict(*dicom, tmp_path / "b.csv")
    assert (code, err) == (0, "")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    table = load_model(model).predict(cohort / "test", covariates=known, id_column="BraTS21ID")
    assert table["class"].dtype == table["patient_id"].dtype
    assert table["class"].tolist() == [row["class"] for row in rows_of(tmp_path / "b.csv")]
    sample = ("--sample", cohort / "sample_submission.csv")
    checked = ["--ids", cohort / "sample_submission.csv"]
    assert predict(*dicom, tmp_path / "c.csv", *checked)[0] == 0
    argv = [tmp_path / "c.csv", *sample]
    code, out, _ = outcome(check_submission.main, argv, capsys, monkeypatch)
    assert code == 0, out

    # The same of whom nothing is known, or another site.
    first, second, *_ = (row.split(",")[0] for row in (tmp_path / "b.csv").read_text().split()[1:])
    (tmp_path / "few.csv").write_text(f"BraTS21ID,age,site\n{first},50,elsewhere\n{second},60,A\n")
    other = ("--input", cohort / "test", "--covariates", tmp_path / "few.csv", "--output")
    code, out, _ = predict(*other, tmp_path / "d.csv")
    assert code == 0
    assert "mind        site elsewhere of 1 patient: the model does not know it" in out
    rows = {row["BraTS21ID"]: row for row in rows_of(tmp_path / "d.csv")}
    assert rows[first]["flags"] == "missing_site"
    failed = rows_of(tmp_path / "d.failures.csv")
    assert {row["reason"] for row in failed} == {"missing_covariate"}
    assert failed[0]["detail"].startswith("site: not known")
    assert len(failed) >= 3
    (tmp_path / "less.csv").write_text(f"BraTS21ID,age\n{first},50\n")
    lacking = ("--input", cohort / "test", "--covariates", tmp_path / "less.csv")
    code, _, err = predict(*lacking, "--output", tmp_path / "e.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "no column site" in err
