"""For Python users: what the commands do, by functions that take any path."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import api, dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from beam_jobs.convert.in_process import prepare_cohort
from beam_jobs.convert.patient_plans import plan_patients
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("api") / "cohort"
    write_cohort(
        PhantomConfig(patients=5, test_patients=0, seed=5, matrix=(24, 30), slices=(6, 9)), root
    )
    (root / "train" / "notes.dcm").write_text("no image")
    return root


@pytest.fixture(scope="module")
def dataset(cohort: Path) -> Path:
    argv = ["--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")]
    argv += ["--output", str(cohort.parent / "d"), "--shape", "16,16,8", "--folds", "2", "--quiet"]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    return cohort.parent / "d"


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_text_or_path_objects(cohort: Path, kind: type) -> None:
    folder = next((cohort / "train").glob("*/T1wCE"))
    headers, unread = api.index_files([kind(path) for path in api.find_files(kind(folder))])
    assert not unread
    (series,), rejected = api.assemble(headers)
    assert not rejected
    volume = api.load_volume(series)
    assert volume.array.shape == series.geometry.shape


def test_a_file_that_is_no_image_comes_back_with_its_reason(cohort: Path) -> None:
    headers, (rejection,) = api.index_files([cohort / "train" / "notes.dcm"])
    assert not headers
    assert rejection.reason is api.Reason.NOT_DICOM


@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_not_taken_for_a_list_of_its_letters(cohort: Path, kind: type) -> None:
    with pytest.raises(TypeError, match=r"train: one path where several are required"):
        api.index_files(kind(cohort / "train"))


def test_a_dataset_has_its_records_and_its_tables(dataset: Path) -> None:
    opened = api.open_dataset(dataset)
    cases = list(opened.cases())
    assert [case.patient_id for case in cases] == opened.patients.patient_id.tolist()
    assert [case.label for case in cases] == opened.patients.label.tolist()
    assert len(opened) == len(cases) == 5
    assert {case.fold for case in opened.cases([1])} == {1}
    used = opened.series[opened.series.verdict == "used"]
    assert {*map(int, used.patient)} == {*map(int, opened.patients.patient_id)}
    assert (opened.rejects.reason == "not_dicom").sum() == 1


def test_a_fold_that_the_dataset_does_not_have_is_refused(dataset: Path) -> None:
    opened = api.open_dataset(dataset)
    with pytest.raises(cli.UsageError, match="no fold 2: the dataset has folds 0 to 1"):
        list(opened.cases(folds=[0, 2]))
    assert list(opened.cases(folds=[None])) == []


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(cli.UsageError, match=r"no manifest\.json"):
        api.open_dataset(tmp_path)


def test_patients_prepared_in_this_process_are_the_conversions(cohort: Path, dataset: Path) -> None:
    opened = api.open_dataset(dataset)
    spec = api.PreprocessSpec.from_json(opened.manifest.spec)
    root = str(cohort / "train")
    plans = plan_patients(files.entries(root), spec.modalities, spec.series_rules)
    tables = TableWriter(root=root, id_policy=IdPolicy())
    prepared = list(prepare_cohort(plans, spec, tables))
    found = {case.patient_id: case for case, _ in prepared if case is not None}
    assert len(found) == 5
    labelled = {int(patient_id): case for patient_id, case in found.items()}
    for case in opened.cases():
        same = labelled[int(case.patient_id)]
        np.testing.assert_array_equal(same.volume, case.volume)
        np.testing.assert_array_equal(same.affine.astype(np.float32), case.affine)
    reasons = sorted(row.reason for _, rejects in prepared for row in rejects)
    assert reasons == sorted(opened.rejects.reason)
    assert "not_dicom" in reasons


def test_the_api_costs_neither_beam_nor_tensorflow() -> None:
    code = (
        "import sys, beam_jobs.api; print({'apache_beam', 'tensorflow', 'keras'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
