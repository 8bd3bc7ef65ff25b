"""For Python users: records as a tf.data.Dataset, and a run from a config."""

from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import read_json
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.manifest import read_manifest
from tests.datasets import write_dataset
from tests.trainer.search import toy_recipe
from trainer import api
from trainer.api import Run, TrainConfig, open_records, train
from trainer.search import child_process

CONFIG = {
    "network": "slice_cnn",
    "epochs": 1,
    "modalities": ["T1w"],
    "precision": "float32",
    "fold": 1,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("api") / "dataset"
    write_dataset(directory, patients=24, folds=2, unlabelled=3)
    return directory


def test_records_are_a_dataset_of_batches(dataset: Path) -> None:
    with open_records(dataset, folds=[0], modalities=["T1w", "FLAIR"]) as records:
        batches = list(records.training_batches(batch_size=5, seed=1, epochs=1))
    assert [batch["volume"].shape for batch in batches] == [(5, 12, 12, 10, 2)] * 2 + [
        (2, 12, 12, 10, 2)
    ]
    with open_records(str(dataset)) as records:
        assert records.count == 24  # those without a label are left out by default
    with open_records(dataset, folds=[None]) as records:
        assert records.count == 3


def test_a_modality_that_is_not_there_is_refused(dataset: Path) -> None:
    with pytest.raises(UsageError, match="unknown modality PET"):
        open_records(dataset, modalities=["PET"])


def test_a_config_or_its_json_gives_the_same_run(dataset: Path, tmp_path: Path) -> None:
    run = train(dataset, tmp_path / "run", CONFIG)
    assert isinstance(run, Run)
    assert (run.model, run.modalities) == ("slice_cnn", ("T1w",))
    assert 0 <= run.metrics["auc"] <= 1
    assert (tmp_path / "run" / "report.html").is_file()
    same = train(dataset, tmp_path / "run", TrainConfig.from_json(CONFIG))
    assert same is not None
    assert same.to_json() == run.to_json()
    with pytest.raises(ContractError, match="holds another run"):
        train(dataset, tmp_path / "run", {**CONFIG, "epochs": 2})


def test_scores_of_patients_on_whom_the_settings_were_searched_make_no_claim(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[tuple[str, ...]] = []
    searched_ids: list[set[str]] = []

    def toy(config: Any, _: Any, manifest: Any, folds: Any, places: Any, *__: Any, **more: Any):
        reasons.append(more["no_claim"])
        searched_ids.append(set(more["searched_ids"]))
        toy_recipe.train(places.run, config, manifest, folds)

    monkeypatch.setattr(api, "train_members", toy)
    monkeypatch.setattr(api, "_write_report", lambda *_: None)
    inner = [name for name, _, fold in read_manifest(dataset).patients if fold == 0]
    searched = {**CONFIG, "provenance": {"patients": inner, "trials": 20}}
    train(dataset, tmp_path / "outer", searched)  # CONFIG holds out fold 1
    train(dataset, tmp_path / "by hand", CONFIG)
    train(dataset, tmp_path / "same", {**searched, "fold": 0})
    train(dataset, tmp_path / "all", {**searched, "fold": None})
    assert reasons == [(), (), ("searched",), ("searched",)]
    known = {normalised_id(name) for name in inner}
    assert searched_ids == [known, set(), known, known]
    # Neither is the other's: a finished run does not lose its reason, nor whom its settings know.
    for place, fold in (("same", 0), ("outer", 1)):
        with pytest.raises(ContractError, match="provenance"):
            train(dataset, tmp_path / place, {**CONFIG, "fold": fold})
    with pytest.raises(UsageError, match="--processes must be at least 1: 0"):
        train(dataset, tmp_path / "none", CONFIG, processes=0)
    with pytest.raises(UsageError, match="would not search anew"):
        train(dataset, tmp_path / "same", {**searched, "fold": 0}, permutations=39)


def test_a_process_that_trains_the_run_is_told_whom_its_settings_know(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    class _StopError(Exception):
        pass

    def child(command: list[str], **_: Any) -> int:
        told.append(read_json(command[command.index("--hyperparameters") + 1]))
        raise _StopError

    monkeypatch.setattr(child_process, "run_to_end", child)
    inner = [name for name, _, fold in read_manifest(dataset).patients if fold == 0]
    searched = {**CONFIG, "provenance": {"patients": inner, "trials": 20}}
    for settings in (searched, CONFIG):  # fold 1 stood in no trial: its score may be tested
        with pytest.raises(_StopError):
            train(dataset, tmp_path / "run", settings, permutations=39)
    assert set(told[0]["provenance"]["patients"]) == {normalised_id(name) for name in inner}
    assert "provenance" not in told[1]


def test_an_outer_fold_is_neither_trained_on_nor_scored(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--outer_fold 1: the dataset has 2 folds, at least 3"):
        train(dataset, tmp_path / "run", {**CONFIG, "fold": None, "outer_fold": 1})
    with pytest.raises(UsageError, match="--fold 1 is the outer fold"):
        train(dataset, tmp_path / "run", {**CONFIG, "outer_fold": 1})
