"""What lies in an output and is not ours: neither replaced nor deleted, not even through a link."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import own_json, require_own
from trainer import evaluate
from trainer.config.run_layout import METRICS_FORMAT, is_run_file
from trainer.explain.summary import map_name
from trainer.search.study import Study
from trainer.search.trial import disposable
from trainer.training.claim import claim

_REQUEST = {"config": {"epochs": 1}, "dataset_fingerprint": "0" * 64}
_OURS = (
    *("run.json", "metrics.json", "report.html", "oof_predictions.csv", "permutations.csv"),
    *("fold-0/network.keras", "fold-1-seed-3/.epoch-7.keras", "fold-1-seed-3/history.csv"),
    *("fold-0/result.json", "fold-0/state.npz", "fold-0/.state.npz", "permutations/0001.json"),
    *("logs/fold-0/events.out.tfevents.1.host.2.v2", "permutations/0002/fold-0/state.npz"),
    "fold-0/network.keras.0123456789ab.part",
    *("fold-0/network.weights.h5", "fold-0/.epoch-7.weights.h5", "fold-0/..epoch-7.weights.h5"),
)
_THEIRS = (
    *("notes.md", "fold-0/notes.md", "fold-notes/x", "logs/mine.txt", "logs/fold-0/mine"),
    *("fold-0/other.weights.h5", "fold-0/network.h5", "fold-0/.epoch-x.weights.h5"),
    *("permutations/mine.json", "fold-0/network.keras.bak", "fold-0/other.keras"),
)


def put(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("precious")


def names(directory: Path) -> set[str]:
    every = (path for path in directory.rglob("*") if not path.is_dir())
    return {str(path.relative_to(directory)) for path in every}


def test_a_runs_own_files_are_told_by_their_names() -> None:
    assert all(map(is_run_file, _OURS))
    assert not any(map(is_run_file, _THEIRS))


def test_an_overwritten_run_loses_its_own_files_alone(tmp_path: Path) -> None:
    claim(tmp_path / "run", _REQUEST, overwrite=False)
    put(tmp_path / "run", *_OURS, *_THEIRS)
    assert claim(tmp_path / "run", _REQUEST, overwrite=True) is False
    assert names(tmp_path / "run") == {"config.json", *_THEIRS}
    assert not (tmp_path / "run" / "fold-1-seed-3").exists()


@pytest.mark.parametrize("folder", ["fold-0", "logs", "permutations"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_is_not_written_through_a_link(tmp_path: Path, folder: str, overwrite: bool) -> None:
    put(tmp_path / "victim", "network.keras", "fold-0/network.keras", "0001.json")
    before = names(tmp_path / "victim")
    claim(tmp_path / "run", _REQUEST, overwrite=False)
    (tmp_path / "run" / folder).symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match=f"{folder}/ is a link"):
        claim(tmp_path / "run", _REQUEST, overwrite=overwrite)
    assert names(tmp_path / "victim") == before


@pytest.mark.parametrize("name", [".epoch-1.keras", ".state.npz", ".network.keras"])
def test_a_file_of_a_run_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    put(tmp_path, "victim", "run/fold-0/history.csv")
    claim(tmp_path / "other", _REQUEST, overwrite=False)
    (tmp_path / "other" / "config.json").rename(tmp_path / "run" / "config.json")
    (tmp_path / "run" / "fold-0" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match=f"fold-0/{name} is a link"):
        claim(tmp_path / "run", _REQUEST, overwrite=False)


def test_a_search_deletes_networks_of_its_own_alone() -> None:
    theirs = ["batch-8/mine.keras", "batch-8/fold-0/notes.md", "batch-mine/run.json", "x.keras"]
    ours = [
        "batch-8/fold-0/network.keras",
        "batch-8/config.json",
        "batch-9/fold-0/network.weights.h5",
    ]
    assert disposable([*theirs, *ours, "batch-9/run.json"]) == ours


@pytest.mark.parametrize("name", ["../../victim", "/victim", "..", "a/b", ""])
def test_a_trials_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    study = Study(str(tmp_path))
    for place in (study.trial, study.logs):
        with pytest.raises(ContractError, match="no plain name"):
            place(name)
    assert study.trial("07") == f"{tmp_path}/trials/07"


@pytest.mark.parametrize(
    "patient_id", ["../../victim/00005", ".hidden", "a/b", "x" * 400, "\x1b[2J", "~"]
)
def test_a_map_lies_in_the_output(patient_id: str) -> None:
    name = map_name(patient_id)
    assert "/" not in name
    assert not name.startswith((".", "~"))
    assert len(name) <= 200
    assert name.endswith(".nii.gz")


def test_an_evaluation_replaces_its_own_report_alone(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n % 2},{0.1 + 0.01 * n}\n" for n in range(12))
    table = tmp_path / "predictions.csv"
    table.write_text(f"patient_id,label,probability\n{rows}")
    argv = ["--predictions", str(table), "--output", str(tmp_path / "out")]
    put(tmp_path / "out", "report.html", "notes.md")
    with pytest.raises(UsageError, match=r"report\.html lies there, and this command did not"):
        evaluate.main(argv)
    assert names(tmp_path / "out") == {"report.html", "notes.md"}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({"format": METRICS_FORMAT}))
    assert evaluate.main(argv) == 0
    assert (tmp_path / "out" / "report.html").read_text() != "precious"
    assert (tmp_path / "out" / "notes.md").read_text() == "precious"
    assert evaluate.main(argv) == 0


def test_only_files_that_would_be_replaced_are_in_the_way(tmp_path: Path) -> None:
    put(tmp_path, "a", "b")
    require_own(tmp_path, ("a", "c"), {"a"}, flag="--output")
    with pytest.raises(UsageError, match=f"--output {tmp_path}: b lies there"):
        require_own(tmp_path, ("a", "b"), {"a"}, flag="--output")
    require_own(tmp_path / "nowhere", ("a",), (), flag="--output")
    assert own_json(tmp_path / "a", "x") is None
    assert own_json(tmp_path / "nowhere", "x") is None
