"""Models, runs, records, ids and tables in object stores: the bytes of local ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.files import interface as files
from serving import batch_predict, check_submission, export
from serving.model.contract import CONTRACT_NAME
from tests.beam_jobs.common.conftest import emulator, root, store  # noqa: F401  fixtures
from tests.commands import outcome
from tests.serving.models import spec_of, write_run
from tests.stores import BUCKET, Emulator

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]

Command = Callable[..., tuple[int, str, str]]
ALL = "probability,logit,spread,flags"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return lambda main, *argv: outcome(main, argv, capsys, monkeypatch)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tests' dataset, so that an export knows what it was trained on."""
    directory = tmp_path_factory.mktemp("stores") / "run"
    manifest = json.loads((dataset / "manifest.json").read_text())
    fingerprint = manifest["dataset_fingerprint"]
    write_run(directory, spec=spec_of(), dataset_fingerprint=fingerprint)
    return directory


def upload(store: Emulator, root: str, directory: Path) -> str:  # noqa: F811
    """A directory in the store; its path."""
    name = f"{root.partition(f'{BUCKET}/')[2]}/{directory.name}"
    store.upload(directory, name)
    return store.path(name)


@pytest.mark.slow
def test_everything_in_a_store_gives_the_bytes_of_local_files(
    command: Command,
    store: Emulator,  # noqa: F811
    root: str,  # noqa: F811
    run: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    plain = ("--calibration", "none")
    here = ("--runs", run, "--data", dataset, "--output", tmp_path / "model", *plain)
    assert command(export.main, *here)[0] == 0
    data = upload(store, root, dataset)
    there = ("--runs", upload(store, root, run), "--data", data, "--output", f"{root}/model")
    assert command(export.main, *there, *plain) == (0, *ANY_TEXT)
    local = sorted(
        str(path.relative_to(tmp_path / "model"))
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    )
    prefix = root.partition(f"{BUCKET}/")[2]
    assert store.names(f"{prefix}/model") == local
    for name in local:
        assert files.read(f"{root}/model/{name}") == (tmp_path / "model" / name).read_bytes()

    ids = "BraTS21ID\n7\n00002\n999\n"
    (tmp_path / "ids.csv").write_text(ids)
    files.write_text(f"{root}/ids.csv", ids)
    shutil.copytree(dataset, tmp_path / "dataset")
    for place in (str(tmp_path), root):
        usual = ("--model", f"{place}/model", "--input", f"{place}/dataset")
        wanted = ("--ids", f"{place}/ids.csv", "--output", f"{place}/out/a.csv")
        assert command(batch_predict.main, *usual, *wanted) == (0, *ANY_TEXT)
        usual = ("--model", f"{place}/model", "--input", f"{place}/dataset/*-0000?-of-*.tfrecord")
        several = ("--output", f"{place}/out/b.jsonl", "--output_shards", 2, "--columns", ALL)
        assert command(batch_predict.main, *usual, *several) == (0, *ANY_TEXT)
        sample = ("--sample", f"{place}/ids.csv")
        assert command(check_submission.main, f"{place}/out/a.csv", *sample)[0] == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "a.skew.json" in written
    assert store.names(f"{prefix}/out") == written  # no rows are left either
    for name in written:
        assert files.read(f"{root}/out/{name}") == (tmp_path / "out" / name).read_bytes()


class _AnyText:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)


ANY_TEXT: tuple[Any, str] = (_AnyText(), "")


def test_a_models_contract_arrives_last_and_goes_first(
    command: Command,
    store: Emulator,  # noqa: F811
    root: str,  # noqa: F811
    run: Path,
    tmp_path: Path,
) -> None:
    flags = ("--runs", run, "--output", f"{root}/model")
    assert command(export.main, *flags)[0] == 0
    puts = [one.path for one in store.front.requests if one.method in ("PUT", "POST")]
    assert CONTRACT_NAME in puts[-1]
    code, _, err = command(export.main, *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err
    store.front.requests.clear()
    write_run(tmp_path / "other", seeds=(7,))
    other = ("--runs", tmp_path / "other", "--output", f"{root}/model", "--overwrite")
    assert command(export.main, *other)[0] == 0
    changes = [one for one in store.front.requests if one.method not in ("GET", "HEAD")]
    assert CONTRACT_NAME in changes[-1].path
    assert changes[-1].method == "PUT"
    first = next(n for n, one in enumerate(changes) if one.method == "PUT")
    assert all("variables" not in one.path for one in changes[: 1 if first else 0])
    assert len(json.loads(files.read(f"{root}/model/{CONTRACT_NAME}"))["members"]) == 1


@pytest.mark.parametrize(
    ("main", "argv", "message"),
    [
        (export.main, ("--runs", "{root}/no", "--output", "{root}/m"), "--runs: .* is not a dir"),
        (export.main, ("--runs", "{run}", "--output", "https://h/m"), "read, not written to"),
        (export.main, ("--runs", "{run}", "--output", "hdfs://h/m"), "cannot use hdfs://"),
        (export.main, ("--runs", "{run}", "--output", "{root}/m", "--data", "{root}/no"), "--data"),
        (
            batch_predict.main,
            ("--model", "{root}/no", "--input", "{root}/no", "--output", "{root}/a.csv"),
            "--model: .*/no does not exist",
        ),
        (
            batch_predict.main,
            ("--model", "{run}", "--input", "{run}", "--output", "http://h/a.csv"),
            "read, not written to",
        ),
        (
            batch_predict.main,
            ("--model", "{run}", "--input", "ftp://h/a", "--output", "a.csv"),
            "cannot use ftp://",
        ),
        (check_submission.main, ("{root}/no.csv", "--sample", "{root}/no.csv"), "does not exist"),
    ],
)
def test_a_place_that_makes_no_sense_is_wrong_usage(
    command: Command,
    root: str,  # noqa: F811
    run: Path,
    main: Callable[..., int],
    argv: tuple[str, ...],
    message: str,
) -> None:
    import re

    code, out, err = command(main, *(part.format(root=root, run=run) for part in argv))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


@pytest.mark.slow
def test_a_model_travels_once_to_all_worker_processes_of_a_machine(
    command: Command,
    store: Emulator,  # noqa: F811
    root: str,  # noqa: F811
    model: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    there = ("--model", upload(store, root, model), "--input", upload(store, root, dataset))
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    store.front.requests.clear()
    output = ("--output", tmp_path / "a.csv")
    assert command(batch_predict.main, *there, *output, *processes) == (0, *ANY_TEXT)
    read = [one for one in store.front.requests if "variables.data" in one.path]
    # By the command, which looks whether it is the model that was exported, and by its workers.
    assert len({one.path for one in read}) == 1
    assert len([one for one in read if one.method == "GET"]) == 2
