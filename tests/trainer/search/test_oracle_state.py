"""An oracle's saved state: taken up where it is one of the search's, refused by name where not."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import read_json, write_json
from tests.hostile.damage import damaged_json
from tests.trainer.search.searches import (  # noqa: F401
    FAKE,
    SPACE,
    argv_of,
    dataset,
    rows_of,
    starts,
    trials_started,
)
from trainer.config.search_space import Space
from trainer.config.space_file import space_of
from trainer.search.trial import REQUEST_NAME, RESULT_NAME
from trainer.tune import main

SEARCHED = {
    "network": "seed_cnn",
    "width": {"min": 0.5, "max": 1},
    "learning_rate": [1e-4, 1e-3],
    "freeze": {"min": 0, "max": 3},
}


def _oracle(kind: str, directory: Path, space: Space, max_trials: int = 4) -> Any:
    from trainer.search.oracles.make_oracle import make_oracle

    oracle = make_oracle(kind, space, objective="val_auc", max_trials=max_trials, epochs=9, seed=0)
    oracle.directory = str(directory)
    return oracle


def _run(oracle: Any, directory: Path, trials: int) -> None:
    """Ends so many trials."""
    from keras_tuner.engine.trial import TrialStatus

    for _ in range(trials):
        trial = oracle.create_trial("tuner0")
        place = directory / "trials" / trial.trial_id
        place.mkdir(parents=True, exist_ok=True)
        for name in (REQUEST_NAME, RESULT_NAME):
            (place / name).write_text("{}")
        oracle.update_trial(trial.trial_id, {"val_auc": 0.5})
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        ("hyperband", 199),
        pytest.param("hyperband", 3, marks=pytest.mark.slow),
        pytest.param("bayesian", 7, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_state_is_refused_by_name_or_searched_on(
    tmp_path: Path, kind: str, every: int
) -> None:
    space = space_of(("T1w",), SEARCHED)
    _run(_oracle(kind, tmp_path, space), tmp_path, 2)
    file = tmp_path / "oracle.json"
    sound = file.read_bytes()
    taken, refused = 0, []
    for what, content in damaged_json(sound, every):
        file.write_bytes(content)
        oracle = _oracle(kind, tmp_path, space)
        try:
            oracle.reload()
        except ContractError as error:
            refused.append((what, str(error)))
            continue
        _run(oracle, tmp_path, 1)
        json.loads(file.read_text())
        taken += 1
    for what, message in refused:
        assert message.startswith(f"{file}: "), what
        assert message.endswith("; delete it to go on from the results of the trials"), what
        assert len(message) < 600, what
    assert len(refused) > taken > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("width", value) for value in (0.4, 1, "0.5", 0.51234567, None, 1.5)),
        *(("freeze", value) for value in (4, 1.0, True, -1)),
        *(("depth", 1), ("learning_rate", 2e-4)),
    ],
)
def test_a_saved_value_that_no_range_has_is_refused_by_name(
    tmp_path: Path, name: str, value: Any
) -> None:
    space = space_of(("T1w",), SEARCHED)
    _run(_oracle("random", tmp_path, space), tmp_path, 1)
    file = tmp_path / "oracle.json"
    told = read_json(file)
    told["trials"]["0"]["hyperparameters"]["values"][name] = value
    write_json(file, told)
    with pytest.raises(
        ContractError, match=rf"values\.{name}: .* found, a choice of the space required"
    ):
        _oracle("random", tmp_path, space).reload()


def test_the_last_trial_of_a_search_counts_when_it_goes_on(tmp_path: Path) -> None:
    space = space_of(("T1w",), SEARCHED)
    _run(_oracle("bayesian", tmp_path, space, 2), tmp_path, 2)
    oracle = _oracle("bayesian", tmp_path, space, 4)
    oracle.reload()
    _run(oracle, tmp_path, 1)
    assert [t["status"] for t in read_json(tmp_path / "oracle.json")["trials"].values()] == [
        "COMPLETED"
    ] * 3


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["hyperband", "grid"])
def test_a_deleted_result_is_run_again_and_an_oracle_that_is_lost_goes_on_from_the_results(
    dataset: Path, tmp_path: Path, starts: Path, tuner: str
) -> None:
    study = tmp_path / "study"
    argv = argv_of(dataset, study, "--tuner", tuner, "--max_trials", "5")
    assert main(argv, command=FAKE) == 0
    before = rows_of(study)
    (study / "trials" / "1" / RESULT_NAME).unlink()
    assert main(argv, command=FAKE) == 0
    assert rows_of(study) == before
    assert trials_started(starts) == ["0", "1", "2", "3", "4", "1"]
    (study / "oracle.json").unlink()
    (study / "trials" / "2" / RESULT_NAME).unlink()
    assert main(argv, command=FAKE) == 0
    assert rows_of(study) == before
    assert trials_started(starts)[6:] == ["2"]


def test_a_result_of_other_hyperparameters_is_nobodys(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    study = tmp_path / "study"
    argv = argv_of(dataset, study, "--tuner", "grid", "--max_trials", "3")
    assert main(argv, command=FAKE) == 0
    (study / "oracle.json").unlink()
    (study / "trials" / "2" / RESULT_NAME).unlink()
    request = study / "trials" / "1" / REQUEST_NAME
    told = read_json(request)
    write_json(request, {**told, "values": {**told["values"], "batch_size": 16}})
    with pytest.raises(ContractError, match=r"1 holds another trial's result \(values.batch_size"):
        main(argv, command=FAKE)
    request.unlink()
    with pytest.raises(ContractError, match=r"request.json: no such file; put it back"):
        main(argv, command=FAKE)
