"""Conversions whose input, labels and output lie in a store, against emulators over sockets."""

import dataclasses
import os
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from beam_jobs import dicom_to_tfrecord, survey, verify
from beam_jobs.common import cli
from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from beam_jobs.convert.ours import REPORT_NAME
from beam_jobs.core.dicom.headers import read_headers
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from beam_jobs.phantoms import __main__ as phantoms
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.phantoms.truth import read_truth
from beam_jobs.report import __main__ as report
from tests import stores
from tests.dicom_files import enhanced_dataset, group, save
from tests.stores import BUCKET, Emulator, Request

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # Google's and moto's own
]
ROOT = Path(__file__).resolve().parents[3]
SHAPE = ("--shape", "16,16,8", "--modalities", "T1w,T2w")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=3, test_patients=1, seed=5, matrix=(24, 28), slices=(6, 7), trouble_rate=0.0
    )
    write_cohort(config, root)
    for unused in [*(root / "train").glob("*/FLAIR"), *(root / "train").glob("*/T1wCE")]:
        shutil.rmtree(unused)  # few files, for an emulator is no store
    patient = sorted((root / "train").iterdir())[0]
    (patient / "T2w" / "notes.txt").write_text("not an image")
    (patient / "T2w" / ".hidden").write_text("not looked at")
    return root


@pytest.fixture(scope="module")
def local(cohort, tmp_path_factory) -> dict[str, bytes]:
    """The published files of the local conversion."""
    output = tmp_path_factory.mktemp("local") / "dataset"
    argv = ["--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")]
    assert dicom_to_tfrecord.main([*argv, "--output", str(output), *SHAPE, "--quiet"]) == 0
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.fixture(scope="module", params=[pytest.param("gs", marks=pytest.mark.slow), "s3"])
def emulator(request, cohort):
    with getattr(stores, request.param)() as running:
        running.upload(cohort / "train", "cohort/train")
        running.put("cohort/labels.csv", (cohort / "train_labels.csv").read_bytes())
        yield running


@pytest.fixture(autouse=True)
def store(emulator: Emulator, monkeypatch) -> Emulator:
    """The emulator, found by this process; without yesterday's requests, faults and delays."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "RETRIES", 3)
    emulator.front.fault = lambda method, path: None
    emulator.front.requests.clear()
    return emulator


def convert(store: Emulator, output: str, *more: str) -> int:
    argv = ["--input", store.path("cohort/train"), "--labels", store.path("cohort/labels.csv")]
    return dicom_to_tfrecord.main([*argv, "--output", store.path(output), *SHAPE, *more])


def published(store: Emulator, output: str) -> dict[str, bytes]:
    names = [name for name in store.names(output) if "/" not in name]
    return {name: store.get(f"{output}/{name}") for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """A finished dataset in the store, and what its conversion requested of the store."""

    name: str
    requests: tuple[Request, ...]


@pytest.fixture(scope="module")
def dataset(emulator) -> Converted:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        emulator.front.requests.clear()
        assert convert(emulator, "shared", "--quiet") == cli.EXIT_OK
    return Converted(name="shared", requests=tuple(emulator.front.requests))


def test_dataset_in_a_store_is_the_local_one_byte_for_byte(store, dataset, local):
    assert published(store, dataset.name) == local
    states = [name for name in store.names(dataset.name) if "/" in name]
    shards = {name for name in local if name.endswith(".tfrecord")}
    assert len(shards) == 3
    assert set(states) == {".state/job.json", *(f".state/{name}.json" for name in shards)}


def test_each_input_is_requested_once_for_its_header_and_once_for_its_pixels(dataset, cohort):
    images = {str(path.relative_to(cohort)) for path in (cohort / "train").rglob("*.dcm")}
    requested = Counter(
        (request.method, request.path.partition("/cohort/")[2].partition("?")[0])
        for request in dataset.requests
        if "/cohort/train/" in request.path
    )
    assert {name for _, name in requested if name.endswith(".dcm")} == images
    assert {method for method, _ in requested} == {"GET"}
    assert {requested["GET", name] for name in images} == {2}
    assert requested["GET", next(name for _, name in requested if name.endswith("notes.txt"))] == 1
    assert not any(name.endswith(".hidden") for _, name in requested)


def test_header_of_a_large_object_does_not_cost_the_object(store, cohort):
    image = next((cohort / "train").rglob("*.dcm")).read_bytes()
    padding = b"\xfc\xff\xfc\xffOB\0\0" + (3_000_000).to_bytes(4, "little") + bytes(3_000_000)
    image += padding[:12]
    store.put("large/train/a.dcm", image + padding[12:])
    (entry,) = files.entries(store.path("large"))
    store.front.requests.clear()
    with files.fetched_ahead([entry], files.HEAD_BYTES):
        (header,) = read_headers(entry.path)
    assert (header.file_size, header.modified) == (len(image) + 3_000_000, entry.stamp)
    assert sum(request.sent for request in store.front.requests) < 2 * files.HEAD_BYTES
    store.front.requests.clear()
    with files.open_bytes(entry.path) as source:
        assert source.read_at(len(image) + 1_000_000, 500_000) == bytes(500_000)
    (request,) = store.front.requests
    assert request.sent == 500_000


@pytest.mark.slow
def test_lock_refuses_a_second_job_and_once_broken_every_shard_is_kept(
    store, dataset, local, capsys
):
    files.write(store.path(dataset.name, ".state/lock"), b"process 1 on elsewhere")
    with pytest.raises(cli.CommandError, match=r"another job is writing .*process 1.*--break_lock"):
        convert(store, dataset.name, "--quiet")
    assert published(store, dataset.name) == local
    store.front.requests.clear()
    assert convert(store, dataset.name, "--break_lock") == cli.EXIT_OK
    assert "3 kept, 0 converted" in capsys.readouterr().out
    assert published(store, dataset.name) == local
    written = [r.path for r in store.front.requests if r.method in ("PUT", "POST")]
    assert not [path for path in written if ".tfrecord" in path]
    assert ".state/lock" not in store.names(dataset.name)


def test_pixels_of_a_multi_frame_object_are_not_fetched_with_its_header(store, tmp_path):
    rng = np.random.default_rng(0)
    groups = [
        group(PlanePositionSequence={"ImagePositionPatient": [0.0, 0.0, 2.0 * number]})
        for number in range(6)
    ]
    frames = [rng.integers(0, 1000, (400, 400), dtype=np.uint16) for _ in groups]
    dataset = enhanced_dataset(groups, rows=400, columns=400)
    path = save(dataset, tmp_path / "a.dcm", uid.ExplicitVRLittleEndian, frames)
    store.put("frames/a.dcm", path.read_bytes())
    store.front.requests.clear()
    found = read_headers(store.path("frames/a.dcm"))
    assert sum(request.sent for request in store.front.requests) < 400_000 < path.stat().st_size
    expected = read_headers(str(path))
    assert [header._replace(path="", modified=0) for header in found] == [
        header._replace(path="", modified=0) for header in expected
    ]
    ((one,), _), ((other,), _) = assemble(found), assemble(expected)
    assert np.array_equal(load_volume(one).array, load_volume(other).array)


@pytest.mark.slow
def test_object_that_changed_is_noticed_though_its_size_is_the_same(store, dataset, cohort, capsys):
    victim = sorted((cohort / "train").rglob("*.dcm"))[0]
    name = f"cohort/{victim.relative_to(cohort)}"
    data = victim.read_bytes()
    try:
        store.put(name, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        assert convert(store, dataset.name) == cli.EXIT_OK
        assert "2 kept, 1 converted" in capsys.readouterr().out
    finally:
        store.put(name, data)
    assert convert(store, dataset.name) == cli.EXIT_OK
    printed = capsys.readouterr().out
    assert "2 kept, 1 converted" in printed
    assert "inputs changed" in printed


def test_verify_reads_the_store(store, dataset, capsys):
    assert verify.main([store.path(dataset.name), "--workers", "1"]) == cli.EXIT_OK
    printed = capsys.readouterr().out
    assert " 3 records in " in printed
    assert "all as the manifest says" in printed


@pytest.mark.slow
def test_damaged_shard_is_found_and_converted_again(store, dataset, local, capsys):
    shard = next(name for name in sorted(local) if name.endswith(".tfrecord"))
    damaged = bytearray(local[shard])
    damaged[300] ^= 1
    store.put(f"{dataset.name}/{shard}", bytes(damaged))
    with pytest.raises(cli.CommandError, match="faults"):
        verify.main([store.path(dataset.name), "--workers", "1"])
    assert f"{shard}: sha256 " in capsys.readouterr().err
    assert convert(store, dataset.name) == cli.EXIT_OK
    assert f"{shard}: file damaged" in capsys.readouterr().out
    assert published(store, dataset.name) == local


@pytest.mark.slow
def test_store_that_stumbles_is_tried_again(store, local):
    requested = Counter[tuple[str, str]]()

    def stumble(method: str, path: str) -> int | None:
        requested[method, path] += 1
        chosen = zlib.crc32(f"{method} {path}".encode()) % 7 == 0
        return 503 if chosen and requested[method, path] == 1 else None

    store.front.fault = stumble
    assert convert(store, "stumbled", "--quiet") == cli.EXIT_OK
    assert published(store, "stumbled") == local
    assert any(request.status == 503 for request in store.front.requests)


def test_store_that_stays_down_is_one_line_and_no_rejected_files(store, monkeypatch):
    monkeypatch.setattr(clients, "RETRIES", 1)
    store.front.fault = lambda method, path: 503 if "/T1w/" in path and method == "GET" else None
    with pytest.raises(cli.CommandError, match=r"T1w/\S+: the store answered 503 \(Serv") as found:
        convert(store, "down", "--quiet")
    assert "\n" not in str(found.value)
    refused = [request for request in store.front.requests if request.status == 503]
    tries = Counter(request.path for request in refused)
    assert max(tries.values()) > 1
    assert not {"manifest.json", "rejects.csv", ".state/lock"} & set(store.names("down"))


def test_no_permission_is_one_line_at_once(store):
    store.front.fault = lambda method, path: 403 if "/T1w/" in path else None
    said = r"T1w/\S+: access denied \(403\); the same command resumes$"
    with pytest.raises(cli.CommandError, match=said):
        convert(store, "denied", "--quiet")
    store.front.fault = lambda method, path: 403
    store.front.requests.clear()
    with pytest.raises(cli.CommandError, match=r"access denied \(403\)$"):
        convert(store, "denied", "--quiet")
    assert len(store.front.requests) == 1


@pytest.mark.parametrize(
    ("flag", "value", "error", "message"),
    [
        ("--input", "{scheme}://no-such-bucket/a", cli.CommandError, "bucket .* does not exist"),
        ("--output", "{scheme}://no-such-bucket/a", cli.CommandError, "bucket .* does not exist"),
        ("--labels", "{scheme}://no-such-bucket/a.csv", cli.UsageError, "does not exist"),
        ("--input", "{scheme}://{bucket}/nothing", cli.UsageError, "holds no file"),
        ("--labels", "{scheme}://{bucket}/gone.csv", cli.UsageError, "does not exist"),
        ("--output", "{scheme}://{bucket}/cohort/train/x", cli.UsageError, "lies inside --input"),
        ("--output", "ftp://{bucket}/x", cli.UsageError, "cannot use ftp://; known: "),
        ("--output", "https://host/x", cli.UsageError, "can be read, not written to"),
    ],
)
def test_what_cannot_be_is_one_line(store, flag, value, error, message):
    with pytest.raises(error, match=message) as found:
        convert(store, "unused", flag, value.format(scheme=store.scheme, bucket=BUCKET), "--quiet")
    assert "\n" not in str(found.value)
    assert not store.names("unused")


def test_survey_and_report_of_a_store_are_those_of_a_disk(
    store, dataset, cohort, tmp_path, monkeypatch, capsys
):
    argv = ["--modalities", "T1w,T2w", "--output"]
    assert survey.main([str(cohort / "train"), *argv, str(tmp_path / "a.csv")]) == cli.EXIT_OK
    here = capsys.readouterr().out
    assert survey.main([store.path("cohort/train"), *argv, store.path("b.csv")]) == cli.EXIT_OK
    assert capsys.readouterr().out.splitlines()[:-1] == here.splitlines()[:-1]
    assert store.get("b.csv") == (tmp_path / "a.csv").read_bytes()
    (tmp_path / "d").mkdir()
    for name, data in published(store, dataset.name).items():
        (tmp_path / "d" / name).write_bytes(data)
    assert report.main([str(tmp_path / "d"), "--workers", "1"]) == cli.EXIT_OK
    argv = [store.path(dataset.name), "--workers", "1", "--output", store.path("r.html")]
    assert report.main(argv) == cli.EXIT_OK
    assert store.get("r.html") == (tmp_path / "d" / "report.html").read_bytes()


def test_phantoms_in_a_store_are_those_of_a_disk_and_written_once(store, tmp_path):
    argv = ["--patients", "1", "--test_patients", "0", "--matrix", "16,18", "--slices", "8,9"]
    argv += ["--workers", "1", "--quiet", "--output"]
    assert phantoms.main([*argv, str(tmp_path / "c")]) == cli.EXIT_OK
    assert phantoms.main([*argv, store.path("phantoms")]) == cli.EXIT_OK
    local = {
        path.relative_to(tmp_path / "c").as_posix(): path.read_bytes()
        for path in (tmp_path / "c").rglob("*")
        if path.is_file()
    }
    assert {name: store.get(f"phantoms/{name}") for name in store.names("phantoms")} == local
    assert read_truth(store.path("phantoms")) == read_truth(tmp_path / "c")
    with pytest.raises(cli.UsageError, match="must be absent or an empty directory"):
        phantoms.main([*argv, store.path("phantoms")])


def run_module(store: Emulator, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT, env=os.environ | store.environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.slow
def test_nothing_is_copied_to_the_local_disk(store, local):
    """The process may not write a file beyond 2 KB; progress is a byte an element.

    The report's pictures do wait on the local disk until the page is written.
    """
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048));"
        "sys.dont_write_bytecode = True;"
        "from beam_jobs.dicom_to_tfrecord import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["--input", store.path("cohort/train"), "--labels", store.path("cohort/labels.csv")]
    command = [
        sys.executable,
        "-c",
        code,
        *argv,
        "--output",
        store.path("streamed"),
        *SHAPE,
        "--no_report",
    ]
    environment = os.environ | store.environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = published(store, "streamed")
    assert found == {name: data for name, data in local.items() if name != REPORT_NAME}


@pytest.mark.slow
def test_commands_end_with_their_codes_and_one_line(store):
    argv = ["--labels", store.path("cohort/labels.csv"), "--output", store.path("commands")]
    module = "beam_jobs.dicom_to_tfrecord"
    missing = f"{store.scheme}://no-such-bucket/a"
    for where, code in ((missing, 1), (store.path("nothing"), 2)):
        done = run_module(store, module, "--input", where, *argv)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    done = run_module(store, module, "--input", store.path("cohort/train"), *argv, *SHAPE)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_module(store, "beam_jobs.verify", store.path("commands"), "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_worker_processes_find_the_store_by_options_alone(store, local, monkeypatch):
    argv = ["--input", store.path("cohort/train"), "--labels", store.path("cohort/labels.csv")]
    argv += ["--output", store.path("processes"), "--processes", "2", *SHAPE]
    environment = dict(os.environ)
    if store.scheme == "s3":
        argv += [
            *("--s3_endpoint_url", environment.pop("AWS_ENDPOINT_URL")),
            *("--s3_access_key_id", environment.pop("AWS_ACCESS_KEY_ID")),
            *("--s3_secret_access_key", environment.pop("AWS_SECRET_ACCESS_KEY")),
            *("--s3_region_name", environment.pop("AWS_DEFAULT_REGION")),
        ]
    command = [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert published(store, "processes") == local
