"""A search in a DICOMweb service as an input of the commands, as far as no service is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb import service
from beam_jobs.common.files.dicomweb.flags import Spool
from beam_jobs.convert.patient_plans import listing_of, require_known
from beam_jobs.convert.transforms import Input, _chunks, unpack
from beam_jobs.core.cohort.layout import find_owners
from beam_jobs.runners.engines import require_reachable
from serving.predict.sources import is_pattern
from trainer.machine import stores

SERVICE = "dicomweb+https://pacs.example/dicom-web"
ROOT = f"{SERVICE}?PatientName=Doe"


def instances(series: Sequence[int], each: int) -> list[files.Entry]:
    """Entries in the order of their paths, as a listing has them."""
    return [
        files.Entry(f"{SERVICE}/studies/1.2/series/1.{number}/instances/1.{number}.{at}", None, 7)
        for number in series
        for at in range(each)
    ]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(service.SPOOL_VARIABLE, "")  # so that it is put back, however it is set
    monkeypatch.delenv(service.SPOOL_VARIABLE)


def of_service(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    for name, answer in answers.items():
        monkeypatch.setattr(service, name, lambda *_, _answer=answer: _answer)


def test_a_series_is_one_worker_s(monkeypatch: pytest.MonkeyPatch) -> None:
    of_service(monkeypatch, listing=files.Listing(instances((3, 4), 200), {"SR": 2}))
    left_out, *chunks = list(_chunks(Input(root=ROOT, modalities=("T1w",))))
    assert left_out.value == {"SR": 2}
    assert [len(unpack(chunk).files) for chunk in chunks] == [200, 200]
    assert unpack(chunks[0]).files[0].stamp == 7


def test_no_directory_of_a_service_says_whose_a_file_is() -> None:
    paths = [entry.path for entry in instances((1, 2), 3)]
    for modalities in (("T1w",), ("instances", "series")):
        assert find_owners(paths, modalities, root=ROOT) == {}
        assert find_owners(paths, modalities, root=ROOT, patient_from="study") == {}


@pytest.mark.parametrize("patient_from", ["directory", "file_name"])
def test_patients_by_names_of_files_are_refused(patient_from: str) -> None:
    with pytest.raises(UsageError, match=f"--patient_from {patient_from}: a DICOMweb service"):
        require_known(("T1w",), (), (), root=ROOT, patient_from=patient_from)


def test_a_modality_that_no_rule_gives_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(UsageError, match="unknown modality PET: no rule gives it"):
        require_known(("T1w", "PET"), (), (), root=ROOT)


def test_a_search_without_images_names_what_it_found_and_no_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_service(monkeypatch, listing=files.Listing([], {"SR": 2, "SEG": 1}))
    with pytest.raises(UsageError) as error:
        listing_of(ROOT, name=f"--input {files.told(ROOT)}")
    assert str(error.value) == (
        f"--input {SERVICE}?... finds no images but 3 that are never read (SEG, SR)"
    )


def test_flags_of_the_spool_are_for_a_service_alone() -> None:
    for flags in ({"directory": "spool"}, {"refetch": True}):
        with pytest.raises(UsageError, match="is for a DICOMweb input"):
            Spool("cohort", **flags)
    for directory in ("", "s3://bucket/spool", SERVICE):
        with pytest.raises(UsageError, match="no directory of this machine"):
            Spool(ROOT, directory=directory)
    assert service.SPOOL_VARIABLE not in os.environ
    assert Spool("cohort").flags == ()
    assert Spool(ROOT, directory="spool", refetch=True).flags == ("--spool", "--refetch")
    assert os.environ[service.SPOOL_VARIABLE] == os.path.abspath("spool")


def test_a_command_says_where_the_spool_is_and_what_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(service, "forget", forgotten.append)
    of_service(monkeypatch, spool_directory="/spool", fetched_since=(2, 7, 3_400_000))
    spool = Spool(ROOT, refetch=True)
    spool.begin()
    spool.tell()
    assert forgotten == [ROOT]
    of_service(monkeypatch, fetched_since=(0, 0, 0))
    again = Spool(ROOT)
    again.begin()
    again.tell()
    Spool("cohort").tell()
    assert forgotten == [ROOT]
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "spool /spool: 7 instances of 2 series fetched (3.4 MB)",
        "spool /spool: nothing fetched, all was there",
    ]


def test_what_is_of_this_machine_does_not_go_to_workers_elsewhere() -> None:
    elsewhere = PipelineOptions(["--runner=FlinkRunner", "--flink_master=flink:8081"])
    here = PipelineOptions(["--runner=FnApiRunner"])
    paths = {"--input": f"{SERVICE}?PatientID=@ids.txt", "--output": "gs://bucket/dataset"}
    require_reachable(here, paths, shared_disk=False, spool=("--spool",))
    with pytest.raises(UsageError, match="takes ids from a file of this machine"):
        require_reachable(elsewhere, paths, shared_disk=False)
    require_reachable(elsewhere, paths, shared_disk=True)
    paths["--input"] = ROOT
    require_reachable(elsewhere, paths, shared_disk=False)
    with pytest.raises(UsageError, match="--refetch is about this machine"):
        require_reachable(elsewhere, paths, shared_disk=True, spool=("--refetch",))


def test_a_search_is_no_pattern_of_shards() -> None:
    assert not is_pattern(f"{SERVICE}?SeriesDescription=*T1*.tfrecord")


def test_the_doctor_looks_at_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "hurry", lambda seconds: None)
    of_service(monkeypatch, holds_files=True)
    assert stores.look(ROOT) == "series there"
    of_service(monkeypatch, holds_files=False)
    assert stores.look(ROOT) == "answers, and finds no series"
