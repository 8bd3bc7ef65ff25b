"""Submission to Dataflow, against a stand-in endpoint: the job, and the package for its workers."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests.dataflow_stub import (
    PROJECT,
    REGION,
    DataflowStub,
    dataflow_stub,
    write_service_account,
)
from tests.stores import Emulator, gs_and_beams

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # Google's own
]
ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("beam_jobs", "trainer", "serving")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[tuple[Emulator, Emulator]]:
    """A gs:// with two patients and their labels, and one for what Beam stages."""
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=2, test_patients=1, seed=1, matrix=(24, 28), slices=(9, 11), trouble_rate=0.0
    )
    write_cohort(config, root)
    with gs_and_beams() as (running, beams):
        running.upload(root / "train", "cohort/train")
        running.put("cohort/labels.csv", (root / "train_labels.csv").read_bytes())
        yield running, beams


@pytest.fixture(scope="module")
def store(stores: tuple[Emulator, Emulator]) -> Emulator:
    return stores[0]


@pytest.fixture(scope="module")
def staging(stores: tuple[Emulator, Emulator]) -> Emulator:
    return stores[1]


def job_flags(store: Emulator) -> list[str]:
    return [
        *("--input", store.path("cohort/train"), "--labels", store.path("cohort/labels.csv")),
        *("--output", store.path("dataset"), "--runner=DataflowRunner", "--quiet"),
        *(f"--project={PROJECT}", f"--region={REGION}"),
        *(f"--temp_location={store.path('tmp')}", f"--staging_location={store.path('staging')}"),
    ]


def staged(staging: Emulator, name: str) -> bytes:
    (found,) = [path for path in staging.names("staging") if path.endswith(f"/{name}")]
    return staging.get(f"staging/{found}")


def transforms_of(pipeline_proto: bytes) -> set[str]:
    """The names of a staged pipeline's transforms."""
    from apache_beam.portability.api import beam_runner_api_pb2

    pipeline = beam_runner_api_pb2.Pipeline()
    pipeline.ParseFromString(pipeline_proto)
    return {transform.unique_name for transform in pipeline.components.transforms.values()}


STAGES = {"Headers", "Plan", "Assign", "Shards", "Refused", "Results", "Once", "Finish"}


def test_job_graph_translates_to_a_template(store, staging, tmp_path, monkeypatch):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    template = tmp_path / "template.json"
    argv = [*job_flags(store), f"--template_location={template}", "--sdk_container_image=ours"]
    with dataflow_stub() as stub:
        # Without any account Beam would look for one for 20 s.
        write_service_account(tmp_path / "key.json", f"{stub.url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        with pytest.raises(cli.CommandError, match="is not finished") as found:
            dicom_to_tfrecord.main(argv)
    assert "\n" not in str(found.value)
    job = json.loads(template.read_text())
    assert job["environment"]["version"]["job_type"] == "FNAPI_BATCH"
    stages = transforms_of(staged(staging, "pipeline.pb"))
    assert stages >= STAGES
    assert {"Headers/Spread", "Plan/By patient", "Shards/Patients/By shard"} <= stages


def test_local_paths_are_refused_where_the_workers_are_elsewhere(store, tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    argv = job_flags(store)
    with pytest.raises(cli.UsageError, match=r"--input .* is on this machine"):
        dicom_to_tfrecord.main([*argv, "--input", str(tmp_path)])
    with pytest.raises(cli.UsageError, match=r"--output .* is on this machine"):
        dicom_to_tfrecord.main([*argv, "--output", str(tmp_path / "d")])


@pytest.fixture(scope="module")
def submitted(
    store, staging, tmp_path_factory
) -> Iterator[tuple[DataflowStub, subprocess.CompletedProcess[str]]]:
    """The command, run as a user runs it in a clone of the repository."""
    scratch = tmp_path_factory.mktemp("clone")
    clone = scratch / "clone"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, clone)
    for name in (*PACKAGES, "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, clone / name, ignore=ignore)
    for name in staging.names("staging"):
        staging.delete(f"staging/{name}")
    with dataflow_stub() as stub:
        write_service_account(scratch / "key.json", f"{stub.url}/token")
        environment = {
            **os.environ,
            **store.environment,
            "GOOGLE_APPLICATION_CREDENTIALS": str(scratch / "key.json"),
        }
        argv = [*job_flags(store), f"--dataflow_endpoint={stub.url}", "--setup_file=./setup.py"]
        done = subprocess.run(
            [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *argv],
            cwd=clone, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        yield stub, done


@pytest.mark.slow
def test_command_submits_the_job_and_waits_for_its_end(submitted, store):
    stub, done = submitted
    assert done.returncode == cli.EXIT_FAILURE, done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        f"the job ended, and {store.path('dataset')} is not finished; "
        "do its workers see it as it is here?"
    )
    assert "Traceback" not in done.stderr
    assert stub.tokens >= 1
    assert stub.polled >= 1
    assert ".state/lock" not in store.names("dataset")


@pytest.mark.slow
def test_job_names_the_container_the_package_and_our_stages(submitted, staging):
    stub, _ = submitted
    (job,) = stub.jobs
    (pool,) = job["environment"]["workerPools"]
    (image,) = pool["sdkHarnessContainerImages"]
    python = "{}.{}".format(*sys.version_info)
    assert image["containerImage"].endswith(f"beam_python{python}_sdk:2.77.0")
    packages = {package["name"]: package["location"] for package in pool["packages"]}
    assert packages["workflow.tar.gz"].startswith("storage.googleapis.com/voxelbeam-test/staging/")
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert (options["project"], options["region"]) == (PROJECT, REGION)
    assert transforms_of(staged(staging, "pipeline.pb")) >= STAGES
    # Nothing of the account but its place goes along.
    assert "PRIVATE KEY" not in json.dumps(job)


@pytest.mark.slow
def test_staged_package_holds_the_three_packages_and_no_tests(submitted, staging):
    with tarfile.open(fileobj=io.BytesIO(staged(staging, "workflow.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {name for name in names if name.endswith(".py")}
    assert {name.partition("/")[0] for name in modules} == {*PACKAGES, "setup.py"}
    assert "CONVERSION_ONLY" in names
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert str(path.relative_to(ROOT)) in names


@pytest.mark.slow
def test_staged_package_installs_and_imports_in_a_bare_environment(submitted, staging, tmp_path):
    """Offline: what it requires is lent by this environment, which has no voxelbeam to give."""
    archive = tmp_path / "workflow.tar.gz"
    archive.write_bytes(staged(staging, "workflow.tar.gz"))
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    python = str(bare / "bin" / "python")
    (site,) = (bare / "lib").glob("python*/site-packages")
    lent = tmp_path / "lent"
    lent.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "voxelbeam" not in path.name.lower() and not path.name.endswith((".pth", ".egg-link")):
            (lent / path.name).symlink_to(path)
    (site / "zz_lent.pth").write_text(f"{lent}\n")
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VOXELBEAM_REQUIRES")
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # Without --no-deps: pip finds every requirement met by what is lent, or fails.
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-index", "--no-build-isolation", str(archive))
    code = (
        "import importlib, pkgutil, sys, beam_jobs;"
        "names = [m.name for m in pkgutil.walk_packages(beam_jobs.__path__, 'beam_jobs.')];"
        "[importlib.import_module(name) for name in names];"
        "import trainer, serving;"
        "print(beam_jobs.dicom_to_tfrecord.__file__, len(names), 'tensorflow' in sys.modules)"
    )
    where, count, tensorflow = run(python, "-W", "ignore", "-c", code).split()
    assert Path(where).is_relative_to(site)
    assert int(count) > 30
    assert tensorflow == "False"
    helped = run(python, "-m", "beam_jobs.dicom_to_tfrecord", "--help")
    assert "--input" in helped


@pytest.mark.slow
@pytest.mark.parametrize("forbids", [False, True])
def test_ctrl_c_cancels_the_job_or_says_how_to(store, tmp_path, forbids):
    for name in store.names("dataset"):
        store.delete(f"dataset/{name}")
    with dataflow_stub() as stub:
        stub.endless, stub.forbids = True, forbids
        write_service_account(tmp_path / "key.json", f"{stub.url}/token")
        key = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *job_flags(store)),
                *(f"--dataflow_endpoint={stub.url}", "--sdk_container_image=ours"),
            ],
            env={**os.environ, **store.environment, **key},
            stderr=subprocess.PIPE, text=True,
            # A test runner started in the background ignores SIGINT, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while ".state/running.json" not in store.names("dataset"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.EXIT_INTERRUPTED
    assert stub.cancelled >= 1
    assert errors.count("\n") == 1, errors
    (job,) = stub.jobs
    assert job["name"].startswith("voxelbeam-convert-dataset-")
    left = store.names("dataset")
    assert ".state/lock" not in left
    assert (".state/running.json" in left) == forbids
    how = f"gcloud dataflow jobs cancel 2026-01-01_00_00_00-1 --project={PROJECT} --region={REGION}"
    assert (how in errors) == forbids
