"""What another TensorFlow has begun is refused in a line that names both and says what to do."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.config import stack
from trainer.config.stack import noted_stack, require_same_stack, tensorflow_version
from trainer.search import study
from trainer.training.claim import claim, require_this_run

REQUEST = {"config": {"epochs": 1}, "dataset_fingerprint": "0" * 64}
Here = Callable[[str], None]
PAIRS = [("2.17.1", "2.21.0"), ("2.21.0", "2.17.1"), ("2.21.1", "2.22.0.dev20261101")]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Sets the version of the TensorFlow that is here."""
    return lambda version: monkeypatch.setattr(stack, "tensorflow_version", lambda: version)


def train(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


@pytest.mark.parametrize("version", ["2.17.1", "2.17.2", "2.17.0"])
def test_what_2_17_begins_says_what_it_always_said(version: str, here: Here) -> None:
    here(version)
    assert noted_stack() == {}


def test_a_nightly_distribution_is_a_tensorflow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "tensorflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"tf_nightly": "2.22.0.dev20261101"}[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    brought = {"tensorflow": ["tf_nightly"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: brought)
    assert tensorflow_version() == "2.22.0.dev20261101"
    assert noted_stack() == {"tensorflow": "2.22.0.dev20261101"}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        tensorflow_version()


@pytest.mark.parametrize("version", [None, "", "x\n2.17", "two", ["2.17"], {}])
def test_a_version_that_is_none_is_refused(version: object, here: Here) -> None:
    here("2.17.1")
    with pytest.raises(ContractError, match=r"^run: tensorflow .*: a version required$"):
        require_same_stack({"tensorflow": version}, "run", otherwise="")


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_run_goes_on_with_its_own_tensorflow_alone(
    first: str, second: str, here: Here, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    here(first)
    assert not claim(run, REQUEST, overwrite=False)
    train(run, "fold-0/history.csv")
    before = (run / "config.json").read_bytes()
    here(second)
    one, two = (".".join(version.split(".")[:2]) for version in (first, second))
    said = (
        f"{run} was begun with TensorFlow {one}, this is {two}: go on in an environment with {one}"
        ", or begin it anew: --overwrite"
    )
    for refuse in (claim, lambda *given, overwrite: require_this_run(*given)):
        with pytest.raises(ContractError) as told:
            refuse(run, REQUEST, overwrite=False)
        assert str(told.value) == said
    assert (run / "config.json").read_bytes() == before
    here(first)
    assert not claim(run, REQUEST, overwrite=False)
    train(run, "run.json")
    here(second)
    assert claim(run, REQUEST, overwrite=False)  # read, not trained
    assert (run / "config.json").read_bytes() == before
    assert not claim(run, REQUEST, overwrite=True)
    train(run, "fold-0/history.csv")
    assert not claim(run, REQUEST, overwrite=False)


def test_a_run_of_which_nothing_was_trained_makes_room(here: Here, tmp_path: Path) -> None:
    here("2.21.0")
    claim(tmp_path, REQUEST, overwrite=False)
    here("2.17.1")
    claim(tmp_path, REQUEST, overwrite=False)
    train(tmp_path, "fold-0/history.csv")
    assert require_this_run(tmp_path, REQUEST)
    assert "tensorflow" not in json.loads((tmp_path / "config.json").read_text())


def test_another_run_is_told_before_another_tensorflow(here: Here, tmp_path: Path) -> None:
    here("2.21.0")
    claim(tmp_path, REQUEST, overwrite=False)
    train(tmp_path, "fold-0/history.csv")
    here("2.17.1")
    with pytest.raises(ContractError, match=r"\(config.epochs: 1 there, 2 requested\); --overwr"):
        claim(tmp_path, {**REQUEST, "config": {"epochs": 2}}, overwrite=False)


def begun(directory: Path, asked: dict[str, object] | None = None) -> None:
    with study.claimed(str(directory), asked or REQUEST, 3):
        pass


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_study_goes_on_with_its_own_tensorflow_alone(
    first: str, second: str, here: Here, tmp_path: Path
) -> None:
    here(second)
    begun(tmp_path)
    here(first)
    begun(tmp_path)  # no trial has begun
    train(tmp_path, "trials/0/request.json")
    here(second)
    one, two = (".".join(version.split(".")[:2]) for version in (first, second))
    said = f"^{tmp_path} was begun with TensorFlow {one}, this is {two}: .*another --output_dir$"
    with pytest.raises(ContractError, match=said):
        begun(tmp_path)
    with pytest.raises(ContractError, match=said):  # a worker that joins it
        study.settings_of(str(tmp_path))
    here(first)
    begun(tmp_path)
    assert study.settings_of(str(tmp_path)) == REQUEST


def test_a_study_that_is_done_is_read_with_any(here: Here, tmp_path: Path) -> None:
    here("2.21.0")
    asked = {**REQUEST, "outer_fold": 0}
    begun(tmp_path, asked)
    train(tmp_path, "trials/0/result.json")
    study.Study(str(tmp_path)).finish()
    here("2.17.1")
    with pytest.raises(ContractError, match=r"begun with TensorFlow 2\.21"):
        begun(tmp_path, asked)  # its outer fold is not scored yet
    told = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**told, "outer": {"auc": 0.5}}))
    begun(tmp_path, asked)
    assert json.loads((tmp_path / "study.json").read_text())["tensorflow"] == "2.21.0"


def test_a_nested_study_is_one_tensorflows(here: Here, tmp_path: Path) -> None:
    here("2.21.0")
    begun(tmp_path, {**REQUEST, "outer_fold": "all"})
    train(tmp_path, "outer-0/study.json")
    here("2.17.1")
    with pytest.raises(ContractError, match=r"begun with TensorFlow 2\.21"):
        begun(tmp_path, {**REQUEST, "outer_fold": "all"})
