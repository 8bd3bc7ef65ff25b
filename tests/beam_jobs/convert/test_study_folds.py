"""Groups and given folds, run as a user runs them: manifest, summary, report, resume, privacy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from beam_jobs import dicom_to_tfrecord, verify
from beam_jobs.api import open_dataset
from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig

CANARY = "Zebra"
SITES = ["Charité", "Charité", "Mayo", "Mayo", "Bern", "Bern", "Oslo", ""]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients with a small series each, their sites, and folds with two test patients."""
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=8, test_patients=0, matrix=(16, 20), slices=(6, 8), modalities=("T1w",)
    )
    write_cohort(config, root)
    table = pd.read_csv(root / "train_labels.csv", dtype=str)
    ids = table.BraTS21ID.to_numpy()
    pd.DataFrame({"patient_id": ids, "site": SITES}).to_csv(root / "sites.csv", index=False)
    by_label = table.groupby("MGMT_value").cumcount().replace({2: "test", 3: "test"})
    pd.DataFrame({"patient_id": ids, "fold": by_label}).to_csv(root / "folds.csv", index=False)
    return root


def convert(cohort: Path, output: Path, *more: str) -> int:
    return dicom_to_tfrecord.main(
        [
            *("--input", str(cohort / "train"), "--output", str(output), "--shape", "8,8,6"),
            *("--labels", str(cohort / "train_labels.csv"), "--modalities", "T1w", *more),
        ]
    )


def by_sites(cohort: Path) -> tuple[str, ...]:
    return "--groups", str(cohort / "sites.csv"), "--group_column", "site", "--folds", "2"


@pytest.fixture(scope="module")
def named(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cohort under ids that would be found anywhere."""
    root = tmp_path_factory.mktemp("named")
    for patient in (cohort / "train").iterdir():
        shutil.copytree(patient, root / "train" / f"{CANARY}-{int(patient.name)}")
    for name in ("train_labels.csv", "sites.csv", "folds.csv"):
        first, *rows = (cohort / name).read_text().splitlines()
        lines = [first, *(f"{CANARY}-{row}" for row in rows)]
        (root / name).write_text("\n".join(lines) + "\n")
    (root / "key").write_text("0123456789abcdef")
    return root


def hashing(named: Path) -> tuple[str, ...]:
    return "--id_policy", "hmac", "--id_key", str(named / "key")


@pytest.fixture(scope="module")
def hashed(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By sites, with hashed ids."""
    output = tmp_path_factory.mktemp("hashed") / "d"
    assert convert(named, output, *by_sites(named), *hashing(named)) == cli.EXIT_OK
    return output


@pytest.fixture(scope="module")
def given(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("given") / "d"
    assert convert(cohort, output, "--folds_csv", str(cohort / "folds.csv")) == cli.EXIT_OK
    return output


def assert_unnamed(output: Path, said: str = "") -> None:
    """No id and no group stands in what a conversion wrote or said."""
    names = [CANARY.encode(), b"Charit", *(name.encode() for name in SITES if name)]
    for path in output.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(name in content + str(path).encode() for name in names), path
    assert not any(name in said.encode() for name in names)


def test_manifest_and_report_tell_groups_a_fold_and_no_file_names_one(hashed: Path) -> None:
    manifest = open_dataset(hashed).manifest
    assert manifest.fold_rule == "groups"
    decided = manifest.counts["folds"]
    assert sum(decided["groups"].values()) == 5
    assert decided["largest_group"] == 2
    assert decided["listed_without_patient"] == 0
    assert "no group in two" in (hashed / "report.html").read_text()
    assert_unnamed(hashed)


def test_given_folds_with_hashed_ids_name_nobody(
    named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--folds_csv", str(named / "folds.csv"))
    assert convert(named, tmp_path / "d", *options, *hashing(named)) == cli.EXIT_OK
    assert open_dataset(tmp_path / "d").manifest.label_balance["test"] == {"0": 2, "1": 2}
    assert_unnamed(tmp_path / "d", "".join(capfd.readouterr()))
    # Without hashes it would be found.
    assert convert(named, tmp_path / "clear", *options, "--quiet") == cli.EXIT_OK
    with pytest.raises(AssertionError, match=r"clear/"):
        assert_unnamed(tmp_path / "clear")


def test_a_rerun_keeps_every_shard_and_says_the_balance(
    cohort: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(cohort, given, "--folds_csv", str(cohort / "folds.csv")) == cli.EXIT_OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "shards 8 kept, 0 converted" in lines
    assert "fold 1 1 of label 0, 1 of label 1" in lines
    assert "test 2 of label 0, 2 of label 1" in lines


def test_test_patients_stand_in_shards_of_their_own_with_their_labels(given: Path) -> None:
    dataset = open_dataset(given)
    assert dataset.manifest.label_balance["test"] == {"0": 2, "1": 2}
    assert dataset.manifest.folds == 2
    cases = list(dataset.cases([None]))
    assert len(cases) == 4
    assert {case.fold for case in cases} == {None}
    assert {case.label for case in cases} == {0, 1}
    assert len(list(given.glob("test-*.tfrecord"))) == 4
    assert '<option value="test">' in (given / "report.html").read_text()
    assert verify.main([str(given), "--workers", "1"]) == cli.EXIT_OK


def test_other_groups_or_folds_make_another_dataset(
    cohort: Path, given: Path, tmp_path: Path
) -> None:
    other = tmp_path / "folds.csv"
    table = pd.read_csv(cohort / "folds.csv", dtype=str).replace({"fold": {"0": "1", "1": "0"}})
    table.iloc[::-1].to_csv(other, index=False)
    with pytest.raises(cli.UsageError, match=r"another dataset \(given: '\w{16}' there, '\w{16}'"):
        convert(cohort, given, "--folds_csv", str(other))
    with pytest.raises(cli.UsageError, match=r"given: .* there, nothing requested; groups: n"):
        convert(cohort, given, *by_sites(cohort))
    again = pd.read_csv(cohort / "folds.csv", dtype=str).iloc[::-1]
    again["patient_id"] = again["patient_id"].str.zfill(5)
    again.to_csv(other, index=False)  # the same folds in another order and spelling
    assert convert(cohort, given, "--folds_csv", str(other), "--quiet") == cli.EXIT_OK


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds_csv", "f.csv", "--folds", "3"), "--folds and --folds_csv exclude each other"),
        (("--folds_csv", "gone.csv"), "--folds_csv: gone.csv does not exist"),
        (("--groups", "gone.csv"), "--groups: gone.csv does not exist"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(
    cohort: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(cli.UsageError, match=message):
        convert(cohort, tmp_path / "d", *flags)


def test_folds_without_labels_are_wrong_usage(cohort: Path, tmp_path: Path) -> None:
    argv = ["--input", str(cohort / "train"), "--output", str(tmp_path / "d")]
    with pytest.raises(cli.UsageError, match="--groups needs --labels"):
        dicom_to_tfrecord.main([*argv, *by_sites(cohort)])


def test_a_manifest_whose_groups_cannot_be_is_refused(hashed: Path) -> None:
    data = json.loads((hashed / MANIFEST_NAME).read_text())
    data["counts"]["folds"]["groups"]["0"] = 99
    with pytest.raises(ContractError, match=r"fold 0 has \d patients of 99 groups"):
        Manifest.from_json(data)
    data["fold_rule"] = "dice"
    with pytest.raises(ContractError, match="fold_rule: 'dice' found"):
        Manifest.from_json(data)
