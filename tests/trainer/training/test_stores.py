"""A run in a store: as one on a disk, whatever moment it is killed at, or refused in one line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from tests.datasets import write_dataset
from tests.stores import Emulator, gs, s3
from trainer.config.run_layout import OOF_NAME
from trainer.task import main
from trainer.training.run_files import Run

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]

SETTINGS = (
    *("--cross_validate", "--modalities", "T1wCE", "--epochs", "2", "--epoch_choice", "crossfit"),
    *("--learning_rate", "1e-3"),
)
TIMES = ("step_seconds", "epoch_seconds", "input_wait")


@pytest.fixture(
    scope="module", params=[s3, pytest.param(gs, marks=pytest.mark.slow)], ids=["s3", "gs"]
)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with request.param() as running:
        yield running


@pytest.fixture
def store(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "RETRIES", 0)
    emulator.front.fault = lambda method, path: None
    return emulator


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=22, folds=2, shape=(10, 10, 10), signal=1.0)
    return directory


@pytest.fixture(scope="module")
def local(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("local") / "run"
    assert main(["--data", str(dataset), "--output_dir", str(directory), *SETTINGS]) == 0
    return directory


def _names(root: str | Path) -> set[str]:
    """Files of a run; what TensorBoard calls its own has a time in its name."""
    start = files.join(root, "")
    names = {entry.path.removeprefix(start) for entry in files.entries(root)}
    return {name if "events.out" not in name else "logs/events" for name in names}


def _history(root: str | Path) -> list[dict[str, str]]:
    rows = csv.DictReader(files.read_text(files.join(root, "fold-1", "history.csv")).splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def _require_same(run: str, local: Path) -> None:
    assert _names(run) == _names(local)
    assert _history(run) == _history(local)
    assert files.read(files.join(run, OOF_NAME)) == (local / OOF_NAME).read_bytes()
    assert Run.load(run).members == Run.load(local).members


@pytest.mark.slow
def test_a_run_in_a_store_is_the_run_on_a_disk(
    store: Emulator, dataset: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.upload(dataset, "dataset")
    run = store.path(f"whole-{store.scheme}", "run")
    argv = ["--data", store.path("dataset"), "--output_dir", run, *SETTINGS]
    assert main(argv) == 0
    assert f"run         {run}" in capsys.readouterr().out
    _require_same(run, local)
    assert main(argv) == 0
    assert f"{run} is this very run, finished already" in capsys.readouterr().out
    with pytest.raises(ContractError, match=rf"^{run} holds another run \(config.seed: 0 there, 1"):
        main([*argv, "--seed", "1"])
    assert main([*argv, "--overwrite", "--epochs", "1"]) == 0
    assert Run.load(run).config["epochs"] == 1
    assert len(_history(run)) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_cut_off_from_its_store_resumes_to_the_same_end(
    store: Emulator, dataset: Path, local: Path
) -> None:
    """After so many writes the store refuses all others, the lock's removal too: as a kill."""
    resumed = 0
    for allowed in range(3, 67, 4):
        run = store.path(f"cut-{store.scheme}-{allowed}", "run")
        argv = ["--data", str(dataset), "--output_dir", run, *SETTINGS]
        writes = 0

        def refuse(method: str, path: str, allowed: int = allowed) -> int | None:
            nonlocal writes
            writes += method in ("PUT", "POST", "DELETE")
            return 403 if writes > allowed else None

        store.front.fault = refuse
        try:
            assert main(argv) == 0
            break
        except CommandError as error:
            assert "access denied" in str(error)  # noqa: PT017 - which start ends well is not known
        store.front.fault = lambda method, path: None
        assert main(argv) == 0
        _require_same(run, local)
        resumed += 1
    assert resumed >= 10


def test_a_place_of_something_else_is_left_alone(store: Emulator, dataset: Path) -> None:
    store.put("thesis/chapter.tex", b"important")
    argv = ["--data", str(dataset), "--output_dir", store.path("thesis"), *SETTINGS]
    with pytest.raises(ValueError, match="not empty and not a run; choose another --output_dir"):
        main([*argv, "--overwrite"])
    assert files.names(store.path("thesis")) == ["chapter.tex"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("https://host/run", "https:// can be read, not written to"),
        ("hdfs://host/run", "cannot use hdfs://"),
        ("gs:/bucket/run", "a slash is missing"),
    ],
)
def test_a_place_that_makes_no_sense_is_wrong_usage(
    dataset: Path, place: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        main(["--data", str(dataset), "--output_dir", place, *SETTINGS])
    assert list(tmp_path.iterdir()) == []
