"""A run's directory: finished or not, ours or not, this request's or another's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from tests.datasets import make_metrics, make_run, make_schema
from trainer.training.claim import claim
from trainer.training.run_files import Run

REQUEST: dict[str, Any] = {
    "config": {"seed": 1, "optimizer": {"learning_rate": 0.1}},
    "dataset_fingerprint": "a",
}

SPEC = {"shape": [1, 2, 3]}


def _run(directory: Path) -> Run:
    return make_run(
        directory,
        schema=make_schema(spec=SPEC),
        spec=SPEC,
        config=REQUEST["config"],
        dataset_fingerprint="a",
        modalities=("T1wCE",),
        trained_on={"patients": 80, "positive": 40},
        trained_ids=tuple(map(str, range(80))),
    )


def test_a_run_comes_back_from_its_directory(tmp_path: Path) -> None:
    _run(tmp_path).save()
    assert Run.load(tmp_path) == _run(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_missing_unfinished_or_foreign_run_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=rf"{tmp_path}.*not a run"):
        Run.load(tmp_path)
    claim(tmp_path / "run", REQUEST, overwrite=False)
    with pytest.raises(ContractError, match="did not finish"):
        Run.load(tmp_path / "run")
    for text in ("{}", "[]", "no JSON", '{"format": "voxelbeam-run"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ContractError, match=r"run\.json"):
            Run.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": None}, "spec: None found, an object required"),
        ({"members": {}}, "members: {} found, a list of at least 1 required"),
        ({"members": ["a"]}, r"members\[0\]: 'a' found"),
        ({"members": [{"fold": "0"}]}, r"members\[0\]\.fold: '0' found"),
        ({"modalities": "T1w"}, "modalities: 'T1w' found"),
        ({"trained_on": {"patients": 80}}, r"trained_on\.positive is missing"),
        ({"trained_on": {"patients": 0, "positive": 0}}, "trained_on: .* found"),
        ({"trained_ids": ["0", "1"]}, "trained_ids: 2 found, those of 80 patients required"),
        ({"searched_ids": "1"}, "searched_ids: '1' found, a list required"),
        ({"metrics": {}}, r"metrics\.auc is missing"),
        ({"metrics": {**make_metrics([(0, 1)]), "folds": [{}]}}, r"folds\[0\]\.auc is missing"),
        ({"no_claim": [1]}, r"no_claim\[0\]: 1 found"),
        ({"code": [{"function": 1}]}, r"code\[0\]\.function: 1 found"),
        ({"weights": [{}]}, r"weights\[0\]\.setting is missing"),
    ],
)
def test_a_run_with_a_malformed_field_is_refused_by_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _run(tmp_path).save()
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ContractError, match=message):
        Run.load(tmp_path)


def test_a_run_of_before_0_3_is_refused_for_what_it_was(tmp_path: Path) -> None:
    """Every epoch of it was chosen on the patients it was scored on."""
    _run(tmp_path).save()
    old = json.loads((tmp_path / "run.json").read_text())
    for name in ("epoch_choice", "no_claim", "trained_on", "trained_ids"):
        del old[name]
    old["members"][0]["best_epoch"] = old["members"][0].pop("epoch")
    (tmp_path / "run.json").write_text(json.dumps({**old, "prevalence": 0.5}))
    with pytest.raises(ContractError, match=r"run\.json: of a version before 0\.3.*train it again"):
        Run.load(tmp_path)


def test_a_run_of_random_bytes_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ContractError, match=r"run\.json: not UTF-8 text"):
        Run.load(tmp_path)


def test_a_member_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"fold-0/network\.keras"):
        _run(tmp_path).load_member(0)


@pytest.mark.parametrize("path", ["../../victim.keras", "/victim.keras", "fold-0/../../x", ""])
def test_a_members_path_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    data = _run(tmp_path).to_json()
    data["members"][0] = {**data["members"][0], "path": path}
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match="no plain name"):
        Run.load(tmp_path)


def test_a_run_of_another_request_is_refused_with_both_values(tmp_path: Path) -> None:
    claim(tmp_path, REQUEST, overwrite=False)
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "history.csv").touch()  # it has begun to train
    other = {"config": {"seed": 1, "optimizer": {"learning_rate": 0.2}}, "dataset_fingerprint": "b"}
    with pytest.raises(ContractError) as caught:
        claim(tmp_path, other, overwrite=False)
    assert "config.optimizer.learning_rate: 0.1 there, 0.2 requested" in str(caught.value)
    assert "dataset_fingerprint: 'a' there, 'b' requested" in str(caught.value)
    assert claim(tmp_path, other, overwrite=True) is False
    assert json.loads((tmp_path / "config.json").read_text())["dataset_fingerprint"] == "b"


def test_a_run_that_failed_before_it_trained_makes_room_for_another(tmp_path: Path) -> None:
    """As one of a network that does not fit, whose name is then corrected."""
    claim(tmp_path, REQUEST, overwrite=False)
    other = {**REQUEST, "dataset_fingerprint": "b"}
    assert claim(tmp_path, other, overwrite=False) is False
    assert json.loads((tmp_path / "config.json").read_text())["dataset_fingerprint"] == "b"


def test_runs_are_kept_finished_or_not_until_they_are_replaced(tmp_path: Path) -> None:
    claim(tmp_path, REQUEST, overwrite=False)
    left = tmp_path / "fold-0" / "network.keras"
    left.parent.mkdir()
    left.touch()
    assert claim(tmp_path, REQUEST, overwrite=False) is False
    assert left.exists()
    (tmp_path / ".lock").touch()
    _run(tmp_path).save()
    assert claim(tmp_path, REQUEST, overwrite=False) is True
    assert claim(tmp_path, REQUEST, overwrite=True) is False
    assert not (tmp_path / "run.json").exists()
    assert not left.exists()


def test_what_a_kill_leaves_before_the_first_file_is_no_foreign_directory(tmp_path: Path) -> None:
    for name in (".lock", "config.json.0123456789ab.part"):
        (tmp_path / name).touch()
    assert claim(tmp_path, REQUEST, overwrite=False) is False


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not a run"):
        claim(tmp_path, REQUEST, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


CODE = [{"function": "net:f", "sha256": "a" * 64}]
WEIGHTS = [{"setting": "weights", "file": "start.keras", "sha256": "b" * 64}]


def test_a_run_tells_what_it_is_made_of_where_that_is_not_ours_alone(tmp_path: Path) -> None:
    _run(tmp_path).save()
    assert not {"code", "weights"} & json.loads((tmp_path / "run.json").read_text()).keys()
    own = dataclasses.replace(_run(tmp_path), code=tuple(CODE), weights=tuple(WEIGHTS))
    own.save()
    assert Run.load(tmp_path) == own


def test_a_run_is_not_resumed_with_other_code_than_it_was_begun_with(tmp_path: Path) -> None:
    claim(tmp_path, {**REQUEST, "code": CODE}, overwrite=False)
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "history.csv").write_text("")
    changed = {**REQUEST, "code": [{**CODE[0], "sha256": "b" * 64}]}
    with pytest.raises(ContractError, match=r"code\.net:f\.sha256: 'aaa.*bbb.*--overwrite"):
        claim(tmp_path, changed, overwrite=False)


@pytest.mark.parametrize("code", [5, [1], [{}], {"net:f": 1}, None])
def test_a_strangers_request_with_strange_code_is_another_run(tmp_path: Path, code: Any) -> None:
    """Also one whose code was taken out."""
    there = REQUEST if code is None else {**REQUEST, "code": code}
    claim(tmp_path, there, overwrite=False)
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "history.csv").write_text("")
    with pytest.raises(ContractError, match=r"holds another run \(code"):
        claim(tmp_path, {**REQUEST, "code": CODE}, overwrite=False)
