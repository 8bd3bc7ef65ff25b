"""Ranges in a search: as KerasTuner's own, drawn by every kind of search, and readable after it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tensorflow as tf
from keras_tuner.engine import hyperparameters as theirs
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from trainer.config.hyperparameter import Range
from trainer.config.search_space import Space
from trainer.config.space_file import space_of
from trainer.search.oracles.durable import ORACLE_NAME, Durable
from trainer.search.oracles.make_oracle import hyperparameters_of, make_oracle, plan_of
from trainer.search.trial import Request
from trainer.search.trial_process import _write_hparams

RANGES = {
    "network": ["seed_cnn", "my_networks:vit"],
    "fusion": "early",
    **dict.fromkeys(("dropout", "augment", "schedule", "pooling", "depth"), None),
    "width": {"min": 0.25, "max": 1, "step": 0.25},
    "batch_size": {"min": 2, "max": 16, "step": 2, "log": True},
    "learning_rate": {"min": 1e-5, "max": 1e-1, "log": True},
    "options.layers": {"min": 1, "max": 6},
    "options.norm": [False, True],
}
# A guided trial takes some tenths of a second.
KINDS = ["random", "grid", "hyperband", pytest.param("bayesian", marks=pytest.mark.slow)]


def _oracle(kind: str, space: Space, trials: int, directory: Path, seed: int = 0) -> Durable:
    oracle = make_oracle(kind, space, objective="val_auc", max_trials=trials, epochs=9, seed=seed)
    oracle.directory = str(directory)
    return oracle


def _score(values: dict[str, float]) -> float:
    """Greatest, 0.9, at a rate of 0.002 and a width of 0.75."""
    far = abs(math.log10(values["learning_rate"] / 0.002)) / 4 + abs(values["width"] - 0.75)
    return max(0.0, 0.9 - far / 2)


def _search(oracle: Durable, score=_score) -> list[Trial]:
    while True:
        trial = oracle.create_trial("tuner0")
        if trial.status == TrialStatus.STOPPED:
            return list(oracle.trials.values())
        oracle.update_trial(trial.trial_id, {"val_auc": score(trial.hyperparameters.values)})
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)


def test_a_range_steps_as_keras_tuner_does_and_does_not_miss_its_end():
    told = [
        (Range(name="x", low=1e-4, high=1e-1, step=10, scale="log"), theirs.Float),
        (Range(name="x", low=8, high=64, step=24, kind=int), theirs.Int),
        (Range(name="x", low=2, high=64, step=2, kind=int, scale="log"), theirs.Int),
        (Range(name="x", low=1, high=9, kind=int), theirs.Int),
    ]
    for one, kind in told:
        same = kind("x", one.low, one.high, step=one.step, sampling=one.scale)
        assert [*one.grid()] == pytest.approx([*same.values])
    tenths = Range(name="x", low=0.0, high=0.6, step=0.1)
    assert [*tenths.grid()] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_a_grid_takes_ten_even_points_of_a_range_without_a_step_as_keras_tuner_does():
    for scale in ("linear", "log", "reverse_log"):
        one = Range(name="x", low=1e-4, high=1e-1, scale=scale)
        same = theirs.Float("x", 1e-4, 1e-1, sampling=scale)
        assert [*one.grid()] == pytest.approx(sorted(same.values), rel=1e-5)
    few = Range(name="x", low=2, high=5, kind=int, scale="log")
    assert sorted(few.grid()) == sorted(theirs.Int("x", 2, 5, sampling="log").values)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_search_draws_values_of_the_space_none_twice(kind: str, tmp_path: Path):
    space = space_of(("T1w",), RANGES)
    trials = _search(_oracle(kind, space, 13, tmp_path))
    assert len(trials) == 13
    seen = set()
    for trial in trials:
        values = {k: v for k, v in trial.hyperparameters.values.items() if k[:6] != "tuner/"}
        full = space.complete(values)
        assert space.chosen(full) == values
        assert all(space.has(name, value) for name, value in values.items())
        assert ("options.layers" in values) == (values["network"] == "my_networks:vit")
        later = trial.hyperparameters.values.get("tuner/trial_id")
        seen.add((json.dumps(values, sort_keys=True), later))
    assert len(seen) == 13


@pytest.mark.parametrize("kind", KINDS)
def test_keras_tuner_reads_the_trials_that_were_saved(kind: str, tmp_path: Path):
    space = space_of(("T1w",), RANGES)
    _search(_oracle(kind, space, 5, tmp_path))
    data = json.loads((tmp_path / ORACLE_NAME).read_text())
    assert len(data["trials"]) == 5
    for state in data["trials"].values():
        trial = Trial.from_state(state)
        assert trial.score == state["score"] > 0
        found = trial.hyperparameters
        (rate,) = [hp for hp in found.space if hp.name == "learning_rate"]
        assert isinstance(rate, theirs.Float)
        assert (rate.min_value, rate.max_value, rate.sampling) == (1e-5, 1e-1, "log")
        assert 1e-5 <= found.get("learning_rate") <= 1e-1
        assert type(found.get("batch_size")) is int
        (layers,) = [hp for hp in found.space if hp.name == "options.layers"]
        assert found.is_active(layers) == (found.get("network") == "my_networks:vit")


def test_values_come_back_from_a_message_to_the_digit():
    """A worker's are in single precision on their way."""
    space = space_of(("T1w",), RANGES)
    found = hyperparameters_of(space)
    for place, values in enumerate(space.combinations(grid=True)):
        if place % 37 == 0:
            found.values = space.chosen(values)
            message = protos.get_proto().HyperParameters.FromString(
                found.to_proto().SerializeToString()
            )
            assert space.complete(theirs.HyperParameters.from_proto(message).values) == values


@pytest.mark.slow
def test_guided_trials_come_closer_to_the_best_of_a_range_than_random_ones(tmp_path: Path):
    narrowed = {**RANGES, "network": "seed_cnn", "options.layers": None, "options.norm": None}
    narrowed |= {"width": {"min": 0.25, "max": 1}, "batch_size": 4}
    space = space_of(("T1w",), narrowed)
    best = {}
    for kind in ("random", "bayesian"):
        trials = _search(_oracle(kind, space, 18, tmp_path / kind))
        best[kind] = max(trial.score for trial in trials)
    assert best["bayesian"] > 0.88 > best["random"]


@pytest.mark.parametrize("kind", [*KINDS[:2], KINDS[3]])
def test_a_space_that_is_tried_whole_ends_its_search(kind: str, tmp_path: Path):
    narrowed = {**RANGES, "network": "seed_cnn", "learning_rate": 1e-3, "width": None}
    narrowed |= {"options.layers": None, "options.norm": None}
    space = space_of(("T1w",), narrowed)
    trials = _search(_oracle(kind, space, 30, tmp_path), lambda values: 0.5)
    found = sorted(trial.hyperparameters.values["batch_size"] for trial in trials)
    assert found == [2, 4, 8, 16]


def test_a_grid_says_what_its_first_combinations_leave_out(tmp_path: Path):
    oracle = _oracle("grid", space_of(("T1w",), RANGES), 20, tmp_path)
    told = "the first 20 combinations, which vary learning_rate, batch_size alone"
    assert plan_of(oracle) == [told]


def test_tensorboards_hparams_are_the_values_of_the_trial(tmp_path: Path):
    values = {"learning_rate": 0.000123457, "batch_size": 4, "options.norm": True, "network": "a:b"}
    request = Request(
        trial="07",
        values=values,
        config={"batch_size": 4},
        data="data",
        dataset_fingerprint="f",
        folds=(0,),
        cache="none",
        memory=None,
        logs=str(tmp_path),
    )
    _write_hparams(tmp_path, request, {"objective": 0.75, "epochs": 9}, "val_auc")
    events = EventAccumulator(str(tmp_path)).Reload()
    told = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(told).session_start_info
    found = {name: getattr(v, v.WhichOneof("kind")) for name, v in started.hparams.items()}
    assert found == values
    assert found["options.norm"] is True
    (tensor,) = events.Tensors("objective/val_auc")
    assert (tensor.step, tf.make_ndarray(tensor.tensor_proto)) == (9, 0.75)
