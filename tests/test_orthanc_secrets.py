"""What opens a DICOMweb service, and whom a search is for, is in no output, file or message."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import export
from tests.orthanc import BearerCheck, Orthanc, front_of, orthanc
from tests.serving.models import write_run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.emulator, pytest.mark.timeout(600)]

PASSWORD = "canary-Pa55word-of-the-viewer"
TOKEN = "canary.t0ken.of-a-service"
USER = "canary-viewer"
SECRETS = (
    *(PASSWORD, TOKEN, "canary-wrong"),
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
)
VARIABLES = ("USERNAME", "PASSWORD", "TOKEN", "TOKEN_FILE")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One patient's series, whose name is to be told nobody."""
    root: Path = tmp_path_factory.mktemp("images")
    config = PhantomConfig(
        patients=2, test_patients=1, seed=5, matrix=(20, 22), slices=(4, 5), trouble_rate=0
    )
    write_cohort(config, root, workers=1)
    for path in (root / "train").rglob("*.dcm"):
        named = pydicom.dcmread(path)
        named.PatientID = f"canary{named.PatientID}"
        named.save_as(path)
    return root / "train"


@pytest.fixture(scope="module")
def server(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), users={USER: PASSWORD}) as running:
        running.store(sorted(images.rglob("*.dcm")))
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("model")
    spec = PreprocessSpec(
        modalities=("FLAIR", "T1w", "T1wCE", "T2w"), shape=(8, 8, 8), fov_mm=(240.0, 240.0, 160.0)
    )
    write_run(root / "run", spec=spec.to_json(), schema=spec.schema, modalities=("T1wCE", "FLAIR"))
    export.main(["--runs", str(root / "run"), "--output", str(root / "model")])
    return root / "model"


def commands(root: str, output: Path, model: Path) -> dict[str, list[str]]:
    """Every command that takes a search, the output's directory empty."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    return {
        "survey": ["beam_jobs.survey", root, "--output", str(output / "survey.csv")],
        "convert": [
            *("beam_jobs.dicom_to_tfrecord", "--input", root, "--shape", "8,8,8"),
            *("--output", str(output / "dataset")),
        ],
        "predict": [
            *("serving.batch_predict", "--model", str(model), "--input", root),
            *("--output", str(output / "submission.csv")),
        ],
        "doctor": ["trainer.doctor", root],
    }


def run(
    argv: list[str], environment: dict[str, str], place: Path, *, level: str = "debug"
) -> tuple[int, str]:
    """(exit code, all that a command says, at its most talkative)."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in {f"DICOMWEB_{one}" for one in VARIABLES}
    }
    done = subprocess.run(
        [sys.executable, "-m", *argv, "--log_level", level],
        cwd=ROOT,
        env={**clean, "VOXELBEAM_SPOOL": str(place), "NETRC": os.devnull, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout + done.stderr


def require_silent(said: str, *places: Path, secrets: tuple[str, ...] = SECRETS) -> None:
    for secret in secrets:
        assert secret not in said
        for place in places:
            for path in place.rglob("*"):
                assert secret not in str(path)
                if path.is_file():
                    assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("command", ["survey", "convert", "predict"])
@pytest.mark.parametrize("kind", ["basic", "netrc", "token", "token file"])
def test_credentials_open_a_service_and_are_told_nowhere(
    command: str, kind: str, server: Orthanc, model: Path, tmp_path: Path
) -> None:
    netrc, token = tmp_path / "netrc", tmp_path / "token"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    netrc.chmod(0o600)
    token.write_text(f"{TOKEN}\n")
    environment = {
        "basic": {"DICOMWEB_USERNAME": USER, "DICOMWEB_PASSWORD": PASSWORD},
        "netrc": {"NETRC": str(netrc)},
        "token": {"DICOMWEB_TOKEN": TOKEN},
        "token file": {"DICOMWEB_TOKEN_FILE": str(token)},
    }[kind]
    with front_of(server, Opened()) as (_, by_token):
        root = by_token if "token" in kind else server.root
        argv = commands(root, tmp_path / "output", model)[command]
        code, said = run(argv, environment, tmp_path / "spool")
    assert code == 0, said
    assert list((tmp_path / "spool").rglob("series.json"))
    require_silent(said, tmp_path / "output", tmp_path / "spool")


class Opened(BearerCheck):
    """A bearer's request, passed on as the user's whom the server knows."""

    def __init__(self) -> None:
        super().__init__(TOKEN)

    def request(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        refused = super().request(method, path, headers)
        headers["Authorization"] = (
            "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        )
        return refused


WRONG = {
    "nobody": {},
    "wrong password": {"DICOMWEB_USERNAME": USER, "DICOMWEB_PASSWORD": "canary-wrong"},
    "wrong token": {"DICOMWEB_TOKEN": "canary-wrong"},
    "no such file": {"DICOMWEB_TOKEN_FILE": "/nowhere/token"},
    "half a pair": {"DICOMWEB_USERNAME": USER},
}


@pytest.mark.parametrize("command", ["survey", "convert", "predict", "doctor"])
@pytest.mark.parametrize("kind", [*WRONG, "wrong path", "no service"])
def test_a_service_that_does_not_open_is_one_line(
    command: str, kind: str, server: Orthanc, model: Path, tmp_path: Path
) -> None:
    root = server.root
    environment = WRONG.get(kind, {"DICOMWEB_USERNAME": USER, "DICOMWEB_PASSWORD": PASSWORD})
    if kind == "wrong path":
        root = server.root.replace("dicom-web", "nothing-here")
    if kind == "no service":
        root = server.root.replace("/dicom-web", "/system")
    argv = commands(root, tmp_path / "output", model)[command]
    code, said = run(argv, environment, tmp_path / "spool")
    assert code not in (0, 8), said
    require_silent(said, tmp_path)
    assert "Traceback" not in said
    if command != "doctor":
        errors = [
            line for line in said.splitlines() if ": error: " in line or line.startswith("error: ")
        ]
        assert len(errors) == 1, said
        assert not list((tmp_path / "output").iterdir()), "something was written"


def test_an_address_with_a_password_is_refused_and_not_repeated(
    server: Orthanc, model: Path, tmp_path: Path
) -> None:
    root = server.root.replace("://", f"://{USER}:{PASSWORD}@")
    for argv in commands(root, tmp_path / "output", model).values():
        code, said = run(argv, {}, tmp_path / "spool")
        assert code != 0
        require_silent(said, tmp_path)
        assert "Traceback" not in said


def test_a_certificate_of_a_private_authority_is_one_that_is_named(
    server: Orthanc, tmp_path: Path
) -> None:
    pem = tmp_path / "server.pem"
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_text(pem.read_text() + (tmp_path / "key.pem").read_text())
    environment = {"DICOMWEB_USERNAME": USER, "DICOMWEB_PASSWORD": PASSWORD}
    with front_of(server, certificate=pem) as (_, root):
        argv = ["beam_jobs.survey", root]
        code, said = run(argv, environment, tmp_path / "spool", level="error")
        assert code == 1
        assert "not trusted (REQUESTS_CA_BUNDLE" in said
        assert len(said.splitlines()) == 1
        environment["REQUESTS_CA_BUNDLE"] = str(pem)
        code, said = run(argv, environment, tmp_path / "spool", level="error")
        assert code == 0, said


@pytest.mark.parametrize("command", ["convert", "predict"])
def test_hashed_ids_hold_for_the_search_too(
    command: str, server: Orthanc, images: Path, model: Path, tmp_path: Path
) -> None:
    """The terms, the service and UIDs get into nothing that is written or said."""
    (tmp_path / "key").write_bytes(b"a key of more than sixteen bytes")
    patient = f"canary{sorted(path.name for path in images.iterdir())[0]}"
    with front_of(server) as (front, root):
        argv = commands(f"{root}?PatientID={patient}", tmp_path / "output", model)[command]
        argv += ["--id_policy", "hmac", "--id_key", str(tmp_path / "key")]
        environment = {"DICOMWEB_USERNAME": USER, "DICOMWEB_PASSWORD": PASSWORD}
        # At the level of debugging, Beam shows what it holds in memory.
        code, said = run(argv, environment, tmp_path / "spool", level="info")
        assert code == 0, said
        assert any(patient in request.path for request in front.requests)
    written = tmp_path / "output"
    require_silent(said, written, secrets=(patient, *SECRETS))
    host = re.sub(r".*//|/.*", "", root)
    require_silent("", written, secrets=(host, "dicomweb+", "/instances/"))
    uid = pydicom.dcmread(next((images / patient.removeprefix("canary")).rglob("*.dcm")))
    require_silent(said, written, secrets=(uid.SeriesInstanceUID, uid.StudyInstanceUID))
