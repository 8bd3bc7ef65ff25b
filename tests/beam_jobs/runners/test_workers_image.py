"""The package that Beam's workers install, put over what a worker's image has, and used there.

A worker's environment is one with `apache-beam[gcp]` alone, in the locked version. Its numpy,
protobuf and Google clients are newer than those that TensorFlow allows here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import uid

from beam_jobs import dicom_to_tfrecord
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests import azurite, stores
from tests.clusters import Command, beams_own, needs_proc, on, worker_pool
from tests.dataflow_stub import PROJECT, dataflow_stub, write_service_account
from tests.stores import Emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.emulator,
    pytest.mark.timeout(1200),  # an image's packages are installed first
    pytest.mark.filterwarnings("ignore"),  # Google's and moto's own
]
ROOT = Path(__file__).resolve().parents[3]
BEAM = importlib.metadata.version("apache-beam")
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
# What docs/how-to/dataflow.md says that a worker installs, in MB.
MOST_MB = 400
# Decoders that come in other versions there; of each kind of loss.
ENCODED: tuple[tuple[str, dict[str, Any]], ...] = (
    (uid.JPEG2000Lossless, {}),
    (uid.JPEG2000, {"j2k_cr": [5]}),
    (uid.JPEGLSNearLossless, {"jls_error": 2}),
    (uid.RLELossless, {}),
)


def plain_environment(**more: str) -> dict[str, str]:
    """This process' environment without what would show the worker another voxelbeam."""
    out = ("PYTHONPATH", "VOXELBEAM_REQUIRES", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in out} | more


class Worker:
    """An environment like a worker's.

    Attributes:
      python: its interpreter.
      home: an empty directory, for this project's sources must not lie beside.
    """

    def __init__(self, root: Path) -> None:
        venv.create(root / "venv", with_pip=True)
        self.python = str(root / "venv" / "bin" / "python")
        self.home = root / "home"
        self.home.mkdir()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments], cwd=self.home, env=plain_environment(**environment),
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip

    def done(self, *arguments: str, **environment: str) -> str:
        """The standard output of what must succeed."""
        ended = self.run(*arguments, **environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def installed(self) -> dict[str, str]:
        """What pip lists: versions by name."""
        lines = self.done(*PIP, "list", "--format=freeze").splitlines()
        return dict(line.split("==") for line in lines)

    def megabytes(self) -> float:
        files = Path(self.python).parents[1].rglob("*")
        return sum(path.lstat().st_size for path in files if path.is_file()) / 1e6


def source_distribution(root: Path) -> Path:
    """What Beam would stage, made as Beam makes it."""
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, root)
    for name in ("beam_jobs", "trainer", "serving"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = plain_environment(VOXELBEAM_REQUIRES="conversion")
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", "dist"]
    subprocess.run(command, cwd=root, env=environment, check=True)
    (archive,) = (root / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    ended = worker.run(*PIP, "install", "--quiet", f"apache-beam[gcp]=={BEAM}")
    if ended.returncode:
        said = (ended.stderr.strip() or "pip failed").splitlines()[-1]
        pytest.skip(
            f"apache-beam[gcp] {BEAM} cannot be installed, is there a package index? {said}"
        )
    return worker


@pytest.fixture(scope="module")
def had(image: Worker) -> tuple[dict[str, str], float]:
    """What the image had, and its megabytes, before the package came over it."""
    return image.installed(), image.megabytes()


@pytest.fixture(scope="module")
def worker(image: Worker, had: object, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    archive = source_distribution(tmp_path_factory.mktemp("source"))
    image.done(*PIP, "install", "--quiet", str(archive))
    return image


def test_what_the_image_had_stays_as_it_was(had: tuple[dict[str, str], float], worker: Worker):
    has = worker.installed()
    assert {name: has.get(name) for name in had[0]} == had[0]
    assert "No broken requirements" in worker.done(*PIP, "check")
    assert {"voxelbeam", "pydicom", "obstore"} <= set(has)
    assert not {name for name in has if name.startswith(("tensorflow", "keras"))}


def test_package_is_as_small_as_the_documentation_says(
    had: tuple[dict[str, str], float], worker: Worker
):
    assert worker.megabytes() - had[1] < MOST_MB


_BEAMS_OWN = """
import sys
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
import beam_jobs.convert.job
FileSystems.set_options(PipelineOptions(["--project", sys.argv[2]]))
with FileSystems.open(sys.argv[1]) as file:
    print(type(FileSystems.get_filesystem(sys.argv[1])).__name__, file.read().decode())
"""


def test_beam_itself_reads_gs_there(worker: Worker, tmp_path: Path):
    with stores.gs_and_beams() as (store, beams), dataflow_stub() as stub:
        beams.put("said.txt", b"as it was put")
        # Without any account Beam would look for one for 20 s.
        write_service_account(tmp_path / "key.json", f"{stub.url}/token")
        environment = {
            **store.environment,
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        }
        said = worker.done("-c", _BEAMS_OWN, store.path("said.txt"), PROJECT, **environment)
    assert said.splitlines()[-1] == "GCSFileSystem as it was put"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, a series of each stored in another compression."""
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=4, test_patients=1, seed=5, matrix=(40, 44), slices=(6, 7), trouble_rate=0.0
    )
    write_cohort(config, root)
    patients = sorted((root / "train").iterdir())
    for patient, (syntax, options) in zip(patients, ENCODED, strict=True):
        for path in sorted((patient / "T1w").rglob("*.dcm")):
            dataset = pydicom.dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False, **options)
            dataset.save_as(path)
    return root


def arguments(train: str, labels: str, output: str) -> list[str]:
    asked = ("--shape", "16,16,8", "--modalities", "T1w,T2w", "--quiet")
    return ["--input", train, "--labels", labels, "--output", output, *asked]


@pytest.fixture(scope="module")
def here(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The published files of this environment's conversion."""
    output = tmp_path_factory.mktemp("here") / "dataset"
    paths = (cohort / "train", cohort / "train_labels.csv", output)
    assert dicom_to_tfrecord.main(arguments(*map(str, paths))) == 0
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.fixture(params=["gs", "s3", "az"])
def store(request: pytest.FixtureRequest, cohort: Path) -> Iterator[Emulator]:
    emulators = {"gs": stores.gs, "s3": stores.s3, "az": azurite.az}
    with contextlib.ExitStack() as stack:
        running: Emulator = stack.enter_context(emulators[request.param]())
        running.upload(cohort / "train", "cohort/train")
        running.put("cohort/labels.csv", (cohort / "train_labels.csv").read_bytes())
        yield running


def test_conversion_there_gives_the_bytes_of_a_conversion_here(
    worker: Worker, store: Emulator, here: dict[str, bytes]
):
    paths = map(store.path, ("cohort/train", "cohort/labels.csv", "dataset"))
    worker.done("-m", "beam_jobs.dicom_to_tfrecord", *arguments(*paths), **store.environment)
    names = [name for name in store.names("dataset") if "/" not in name]
    assert {name: store.get(f"dataset/{name}") for name in names} == here


@needs_proc
def test_job_sent_from_here_and_done_there_gives_the_same_bytes(
    worker: Worker, cohort: Path, here: dict[str, bytes], tmp_path: Path
):
    """What travels is pickled with numpy 1 and protobuf 4, and read with numpy 2 and protobuf 6."""
    output, servers = tmp_path / "dataset", tmp_path / "servers"
    words = arguments(*map(str, (cohort / "train", cohort / "train_labels.csv", output)))
    with beams_own(servers) as engine, worker_pool(servers, worker.python) as pool:
        command = [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", *words, *on(engine, pool)]
        done = Command(command, tmp_path / "tmp").end(300)
        used = pool.log.read_text()
    assert done.returncode == 0, done.stderr + used
    found = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert found == here
