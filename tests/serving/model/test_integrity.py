"""One sha256 for a model: equal runs, equal bytes; and what was changed since is never loaded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from serving import api, batch_predict, export
from serving.model.contract import CONTRACT_NAME
from serving.model.integrity import check_model, file_hashes, model_sha256
from serving.model.loaded_model import LoadedModel, load_model
from tests.commands import outcome

VARIABLES = "variables/variables.data-00000-of-00001"


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be tampered with."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def bytes_of(model: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(model)): path.read_bytes()
        for path in model.rglob("*")
        if path.is_file()
    }


def test_two_exports_of_one_run_have_the_same_bytes_whatever_their_process_and_places(
    run_directory: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "of another name"
    shutil.copytree(run_directory, elsewhere / "run-b")
    # Counters of this process have moved on since the first export; so do names in Keras.
    tf.function(lambda x: x + 1)(tf.constant(1))
    export.main(["--runs", str(elsewhere / "run-b"), "--output", str(elsewhere / "model")])
    assert bytes_of(elsewhere / "model") == bytes_of(model)
    assert f"sha256 {model_sha256(file_hashes(model))}" in capsys.readouterr().out


def test_a_model_says_nothing_of_where_its_runs_lay(model: Path, run_directory: Path) -> None:
    for name, data in bytes_of(model).items():
        assert str(run_directory.parent).encode() not in data, name


def test_the_sha256_is_what_the_documented_line_of_shell_prints(
    model: Path, loaded: LoadedModel
) -> None:
    line = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(line, shell=True, cwd=model, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == loaded.sha256 == api.load_model(model).sha256
    assert line in (Path(__file__).parents[3] / "docs/how-to/predict.md").read_text()


def swap(model: Path) -> None:
    data = bytearray((model / VARIABLES).read_bytes())
    data[100] ^= 1
    (model / VARIABLES).write_bytes(data)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (swap, f"{VARIABLES} was changed since the export"),
        (lambda model: (model / "saved_model.cpb").write_bytes(b"x"), "saved_model.cpb' is not of"),
        (lambda model: (model / "fingerprint.pb").unlink(), "fingerprint.pb is missing"),
        (lambda model: (model / "assets/MODEL_CARD.md").write_text("fine"), "MODEL_CARD.md was"),
    ],
)
def test_what_is_not_as_it_was_exported_is_refused_before_tensorflow_opens_it(
    copy: Path,
    tamper: Callable[[Path], object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("opened"))
    tamper(copy)
    for load in (load_model, api.load_model):
        with pytest.raises(ContractError, match=message) as refused:
            load(copy)
        assert "\n" not in str(refused.value)
        assert str(copy) in str(refused.value)


def test_batch_prediction_refuses_a_swapped_file_in_one_line(
    copy: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swap(copy)
    argv = ["--model", copy, "--input", dataset, "--output", tmp_path / "a.csv"]
    code, _, err = outcome(batch_predict.main, argv, capsys, monkeypatch)
    assert (code, err.count("\n")) == (1, 1)
    assert VARIABLES in err
    assert not (tmp_path / "a.csv").exists()


def test_another_model_than_the_required_one_is_refused_unread(
    copy: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.load_model(copy, require_sha256=loaded.sha256).sha256 == loaded.sha256
    (copy / CONTRACT_NAME).write_bytes(b"{" * 100_000)
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("read"))
    with pytest.raises(ContractError, match=f"{loaded.sha256} required: another model"):
        api.load_model(copy, require_sha256=loaded.sha256)


@pytest.mark.parametrize("text", ["abc", "A" * 64, "0" * 63 + "g"])
def test_a_required_sha256_that_is_none_is_wrong_usage(model: Path, text: str) -> None:
    with pytest.raises(cli.UsageError, match="64 digits"):
        check_model(model, sha256=text)


def without_list(model: Path) -> str:
    """Makes a model one of an earlier version; its sha256."""
    contract: dict[str, Any] = json.loads((model / CONTRACT_NAME).read_text())
    del contract["sha256"]
    (model / CONTRACT_NAME).write_text(json.dumps(contract))
    return model_sha256(file_hashes(model))


def test_a_model_of_an_earlier_version_is_pinned_too_and_noted(
    copy: Path, loaded: LoadedModel
) -> None:
    sha256 = without_list(copy)
    assert sha256 != loaded.sha256
    found = check_model(copy, sha256=sha256)
    assert "does not list its files" in found.note
    assert found.contract.schema == loaded.contract.schema
    assert check_model(loaded.path).note == ""


@pytest.mark.slow
def test_a_model_of_an_earlier_version_answers_as_before_with_a_note(
    copy: Path,
    dataset: Path,
    loaded: LoadedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sha256 = without_list(copy)
    flags = ["--require_sha256", sha256, "--model", copy, "--input", dataset]
    argv = [*flags, "--output", tmp_path / "a.csv"]
    code, out, err = outcome(batch_predict.main, argv, capsys, monkeypatch)
    assert code == 0, err
    assert f"sha256 {sha256}" in out
    assert "does not list its files" in out
    table = (tmp_path / "a.csv").read_bytes()
    other = ["--model", loaded.path, "--input", dataset, "--output", tmp_path / "b.csv"]
    code, out, _ = outcome(batch_predict.main, other, capsys, monkeypatch)
    assert (code, (tmp_path / "b.csv").read_bytes()) == (0, table)
    assert f"sha256 {loaded.sha256}" in out
    assert "does not list" not in out


@pytest.mark.slow
def test_seeds_of_hashing_and_numbers_of_threads_leave_an_export_its_bytes(
    model: Path, run_directory: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, tensorflow as tf\n"
        "tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))\n"
        "tf.config.threading.set_inter_op_parallelism_threads(int(sys.argv[1]))\n"
        "from serving import export\n"
        "export.main(sys.argv[2:])\n"
    )
    for seed in ("1", "2"):
        output = tmp_path / f"model-{seed}"
        argv = [seed, "--runs", str(run_directory), "--output", str(output)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code, *argv], env=environment, check=True)
        assert bytes_of(output) == bytes_of(model)
