"""From a PACS to a model's answers: a real Orthanc, spoken to by DICOMweb, beside a directory."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from beam_jobs.core.manifest import read_manifest
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import export
from tests.orthanc import Orthanc, front_of, orthanc
from tests.real_series import unpack_real_series
from tests.serving.models import write_run
from tests.stores import Front

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.emulator, pytest.mark.timeout(900)]

RECIPE = ("--shape", "16,16,12", "--folds", "2", "--no_report")
_RETRIEVED = re.compile(r"/studies/[0-9.]+/series/([0-9.]+)\Z")
_REFERENCE = ("series.csv", "rejects.csv")  # hold paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort:
    """What lies in the server, and the same as files.

    Attributes:
      layout: the cohort as it was made, <patient>/<modality>/*.dcm, and its labels beside it.
      heap: the same instances, the real series among them, in one directory under names without
        meaning.
      labels: the labels' file.
    """

    layout: Path
    heap: Path
    labels: Path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cohort")
    config = PhantomConfig(
        patients=8, test_patients=1, seed=5, matrix=(24, 28), slices=(6, 8), trouble_rate=0.1
    )
    write_cohort(config, root / "phantoms", workers=1)
    heap = root / "heap"
    heap.mkdir()
    made = sorted((root / "phantoms" / "train").rglob("*.dcm"))
    real = sorted(path for path in unpack_real_series(root / "real").rglob("*") if path.is_file())
    for number, path in enumerate([*made, *real]):
        shutil.copy(path, heap / f"{(number * 7919) % 100_003:06d}")
    return Cohort(
        layout=root / "phantoms" / "train",
        heap=heap,
        labels=root / "phantoms" / "train_labels.csv",
    )


@pytest.fixture(scope="module")
def server(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        running.store(sorted(cohort.heap.iterdir()))
        yield running


@pytest.fixture
def own_server(cohort: Cohort, tmp_path: Path) -> Iterator[Orthanc]:
    """A server for one test to damage: four patients' series."""
    with orthanc(tmp_path / "orthanc") as running:
        for patient in sorted(cohort.layout.iterdir())[:4]:
            running.store(sorted(patient.rglob("*.dcm")))
        yield running


@pytest.fixture(scope="module")
def by_directory(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the heap."""
    output: Path = tmp_path_factory.mktemp("directory") / "dataset"
    convert(str(cohort.heap), output, cohort, {})
    return output


_IMPATIENT = (
    "import runpy, sys; from beam_jobs.common.files import clients; clients.RETRY_S = 5.0; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def run(
    module: str,
    *argv: object,
    environment: dict[str, str],
    expected: int = 0,
    impatient: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A command as its user calls it, or one that waits for a server for seconds only."""
    start = ["-c", _IMPATIENT, module] if impatient else ["-m", module]
    done = subprocess.run(
        [sys.executable, *start, *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == expected, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done


def arguments(root: str, output: Path, cohort: Cohort, *more: object) -> list[str]:
    argv = ("--input", root, "--output", output, "--labels", cohort.labels, *RECIPE, *more)
    return list(map(str, argv))


def convert(
    root: str, output: Path, cohort: Cohort, environment: dict[str, str], *more: object
) -> str:
    argv = arguments(root, output, cohort, *more)
    said = run("beam_jobs.dicom_to_tfrecord", *argv, environment=environment).stdout
    return " ".join(said.split())


def spool(path: Path) -> dict[str, str]:
    return {"VOXELBEAM_SPOOL": str(path)}


def published(dataset: Path, *, tables: bool = False) -> dict[str, bytes]:
    """Shards and manifest; the tables too, which name paths."""
    return {
        path.name: path.read_bytes()
        for path in dataset.iterdir()
        if path.is_file() and (tables or path.name not in _REFERENCE)
    }


def rows(table: Path, *, without: str = "path") -> list[dict[str, str]]:
    found = list(csv.DictReader(io.StringIO(table.read_text())))
    return sorted(({**row, without: ""} for row in found), key=lambda row: sorted(row.items()))


def retrieved(front: Front) -> list[str]:
    """The series that were fetched whole, as often as they were."""
    found = (_RETRIEVED.search(request.path) for request in front.requests)
    return sorted(match[1] for match in found if match)


def complete(place: Path) -> dict[Path, int]:
    """The series in a spool that are complete, and when they became it."""
    return {path.parent: path.stat().st_mtime_ns for path in place.rglob("series.json")}


def test_a_dataset_of_a_service_is_that_of_a_directory(
    server: Orthanc, cohort: Cohort, by_directory: Path, tmp_path: Path
) -> None:
    said = convert(server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    assert published(tmp_path / "dataset") == published(by_directory)
    assert len([name for name in published(by_directory) if name.endswith(".tfrecord")]) > 4
    for name, column in (("series.csv", "path"), ("rejects.csv", "subject")):
        there, here = (
            rows(place / name, without=column) for place in (by_directory, tmp_path / "dataset")
        )
        assert here == there
    count = len(list(cohort.heap.iterdir()))
    assert re.search(rf"spool {tmp_path}/spool.*: {count} instances of \d+ series fetched", said)
    again = convert(server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    assert "nothing fetched" in again
    assert re.search(r"shards \d+ kept, 0 converted", again)


def test_a_search_converts_what_the_layout_has_of_it(
    server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    """The reference layout names modalities by directories, a service's by headers: the same."""
    patients = sorted(path.name for path in cohort.layout.iterdir())
    (tmp_path / "ids.txt").write_text("\n".join(patients) + "\n")
    root = f"{server.root}?PatientID=@{tmp_path / 'ids.txt'}"
    convert(root, tmp_path / "service", cohort, spool(tmp_path / "spool"))
    convert(str(cohort.layout), tmp_path / "layout", cohort, {})
    assert published(tmp_path / "service") == published(tmp_path / "layout")


def test_several_processes_fetch_each_series_once(
    server: Orthanc, cohort: Cohort, by_directory: Path, tmp_path: Path
) -> None:
    with front_of(server) as (front, root):
        more = ("--processes", 2, "--spool", tmp_path / "spool")
        convert(root, tmp_path / "dataset", cohort, spool(tmp_path / "other"), *more)
        fetched = retrieved(front)
        assert len(fetched) == len(set(fetched)) > 20
    assert len(complete(tmp_path / "spool")) == len(fetched)
    assert not (tmp_path / "other").exists()
    assert published(tmp_path / "dataset") == published(by_directory)


def test_a_survey_is_that_of_a_directory(server: Orthanc, cohort: Cohort, tmp_path: Path) -> None:
    tables = [tmp_path / "here.csv", tmp_path / "there.csv"]
    roots = (str(cohort.heap), server.root)
    for root, table in zip(roots, tables, strict=True):
        argv = (root, "--output", table)
        done = run("beam_jobs.survey", *argv, environment=spool(tmp_path / "spool"))
        assert done.stderr == ""
    here, there = (rows(table) for table in tables)
    assert here == there
    assert len(here) > 20


def test_verify_decodes_what_a_service_holds(
    server: Orthanc, by_directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow_io")
    argv = (by_directory, "--against", server.root, "--samples", 20)
    said = run("beam_jobs.verify", *argv, environment=spool(tmp_path / "spool")).stdout
    assert "20 the same" in said


def test_answers_are_those_of_a_directory(
    server: Orthanc, cohort: Cohort, by_directory: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(str(by_directory))
    write_run(
        tmp_path / "run",
        spec=dict(manifest.spec),
        schema=manifest.schema,
        modalities=("T1wCE", "FLAIR"),
    )
    export.main(["--runs", str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    tables = []
    for name, root in (("here", str(cohort.heap)), ("there", server.root)):
        table = tmp_path / f"{name}.csv"
        argv = ("--model", tmp_path / "model", "--input", root, "--output", table)
        run("serving.batch_predict", *argv, environment=spool(tmp_path / "spool"))
        tables.append(table.read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) > 8


def test_only_what_changed_is_fetched_again(
    own_server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    environment = spool(tmp_path / "spool")
    patient = sorted(cohort.layout.iterdir())[0]
    some = {path.name: sorted(path.glob("*.dcm")) for path in patient.iterdir()}
    (one, first), (other, second), *_ = sorted(some.items())
    headers = {name: pydicom.dcmread(paths[0]) for name, paths in some.items()}
    with front_of(own_server) as (front, root):

        def fetched(*more: str) -> set[str]:
            front.requests.clear()
            convert(root, tmp_path / "dataset", cohort, environment, *more)
            found = retrieved(front)
            assert len(found) == len(set(found))
            return set(found)

        everything = fetched()
        assert len(everything) > 12
        assert fetched() == set()
        own_server.delete("Instance", pydicom.dcmread(first[-1]).SOPInstanceUID)
        assert fetched() == {headers[one].SeriesInstanceUID}
        for path in second:
            changed = pydicom.dcmread(path)
            changed.SeriesDescription = f"{changed.SeriesDescription} again"
            changed.save_as(tmp_path / "changed.dcm")
            own_server.store([tmp_path / "changed.dcm"])
        assert fetched() == {headers[other].SeriesInstanceUID}
        own_server.store(first[-1:])
        assert fetched() == {headers[one].SeriesInstanceUID}
        assert fetched("--refetch") == everything
        own_server.delete("Series", headers[one].SeriesInstanceUID)
        assert fetched() == set()
    gone = [
        row for row in rows(tmp_path / "dataset" / "series.csv") if row["patient"] == patient.name
    ]
    assert one not in {row["modality"] for row in gone}


def test_an_unreadable_instance_is_one_reject(
    own_server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    path = sorted(sorted(cohort.layout.iterdir())[0].rglob("*.dcm"))[3]
    damaged = own_server.file_of(path.read_bytes())
    own_server.stop()  # it keeps in memory what came last
    os.truncate(damaged, 200)
    own_server.start()
    convert(own_server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    series = pydicom.dcmread(path).SeriesInstanceUID
    (reject,) = [
        row
        for row in rows(tmp_path / "dataset" / "rejects.csv", without="detail")
        if row["scope"] == "file"
    ]
    assert reject["reason"] == "unreadable_file"
    # The service counts it, and no answer of its says which one it is.
    assert reject["subject"].endswith(f"/series/{series}/instances/unlisted-1")
    seen = rows(tmp_path / "dataset" / "series.csv")
    stored = sum(1 for p in sorted(cohort.layout.iterdir())[:4] for _ in p.rglob("*.dcm"))
    assert sum(int(row["files"]) for row in seen) == stored - 1


def test_objects_that_are_no_images_are_counted_and_not_read(
    own_server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    image = pydicom.dcmread(next(iter(sorted(cohort.layout.rglob("*.dcm")))))
    del image.PixelData, image.Rows, image.Columns
    image.Modality, image.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.33"
    image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(tmp_path / "sr.dcm")
    own_server.store([tmp_path / "sr.dcm"])
    convert(own_server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    (row,) = [
        row
        for row in rows(tmp_path / "dataset" / "series.csv", without="patient")
        if row["reason"] == "not_input"
    ]
    assert (row["path"], row["files"], row["detail"]) == (".", "1", "1 SR")
    assert not list((tmp_path / "spool").rglob(str(image.SeriesInstanceUID)))


def when_some_is_there(place: Path, least: int, act: Callable[[], None]) -> threading.Thread:
    """Acts as soon as a spool holds so many series."""

    def wait() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if len(complete(place)) >= least:
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_job_outlasts_a_restart(own_server: Orthanc, cohort: Cohort, tmp_path: Path) -> None:
    """Killed amid the fetches and back after seconds: the job waits, and nothing is missing."""
    convert(own_server.root, tmp_path / "whole", cohort, spool(tmp_path / "other"))
    killed = []

    def restart() -> None:
        own_server.kill()
        killed.append(len(complete(tmp_path / "spool")))
        time.sleep(2)
        own_server.start()

    thread = when_some_is_there(tmp_path / "spool", 3, restart)
    convert(own_server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    thread.join()
    assert killed
    assert killed[0] < len(complete(tmp_path / "spool"))
    assert published(tmp_path / "dataset", tables=True) == published(
        tmp_path / "whole", tables=True
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_job_ends_and_the_same_command_goes_on(
    processes: int, own_server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    place = tmp_path / "spool"
    with front_of(own_server) as (front, root):
        front.delay = 0.2
        argv = arguments(root, tmp_path / "dataset", cohort, "--processes", processes)
        job = subprocess.Popen(
            [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *argv],
            cwd=ROOT,
            env={**os.environ, **spool(place)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        when_some_is_there(place, 3, lambda: os.killpg(job.pid, signal.SIGINT)).join()
        _, said = job.communicate(timeout=60)
        assert (job.returncode, said) == (
            130,
            "python -m beam_jobs.dicom_to_tfrecord: error: interrupted\n",
        )
        before = complete(place)
        front.delay = 0.0
        convert(root, tmp_path / "dataset", cohort, spool(place))
    after = complete(place)
    assert 3 <= len(before) < len(after)
    assert {path: after[path] for path in before} == before, "fetched again"


def test_a_server_that_stays_away_is_one_line_and_the_same_command_goes_on(
    own_server: Orthanc, cohort: Cohort, tmp_path: Path
) -> None:
    thread = when_some_is_there(tmp_path / "spool", 3, own_server.kill)
    argv = arguments(own_server.root, tmp_path / "dataset", cohort)
    done = run(
        "beam_jobs.dicom_to_tfrecord",
        *argv,
        environment=spool(tmp_path / "spool"),
        expected=1,
        impatient=True,
    )
    thread.join()
    *waited, last = done.stderr.strip().splitlines()
    assert last == (
        f"python -m beam_jobs.dicom_to_tfrecord: error: {own_server.root}: does not answer "
        "(connection refused); the same command resumes"
    )
    assert all("tried again in" in line for line in waited)
    before = complete(tmp_path / "spool")
    own_server.start()
    convert(own_server.root, tmp_path / "dataset", cohort, spool(tmp_path / "spool"))
    after = complete(tmp_path / "spool")
    assert 3 <= len(before) < len(after)
    assert {path: after[path] for path in before} == before, "fetched again"
    convert(own_server.root, tmp_path / "whole", cohort, spool(tmp_path / "other"))
    assert published(tmp_path / "dataset", tables=True) == published(
        tmp_path / "whole", tables=True
    )
