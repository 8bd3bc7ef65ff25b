"""What a search may choose from, how a file narrows it, and what becomes of a choice."""

from __future__ import annotations

import itertools
import json

import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.run import TrainConfig
from trainer.config.search_space import SPACE, read_space, space_of

MODALITIES = ("FLAIR", "T1wCE")
SMALL = {
    "network": ["seed_cnn", "slice_cnn"],
    "width": [1, 0.5],
    "depth": 1,
    "dropout": None,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "batch_size": [8, 4],
    "augment": "none",
}


def test_the_size_of_a_space_counts_each_meaningful_combination_once():
    space = space_of(MODALITIES, SMALL)
    combinations = [json.dumps(one, sort_keys=True) for one in space.combinations()]
    # seed_cnn: 3 poolings; slice_cnn: 4 heads. Early, late, or one of two modalities alone.
    assert space.count() == (3 + 4) * 4 * 2 * 2
    assert len(combinations) == len(set(combinations)) == space.count()


def test_every_combination_makes_a_run_that_the_trainer_accepts():
    space = space_of(MODALITIES, {**SMALL, "depth": [1, 2]})
    runs = set()
    for values in space.combinations():
        assert space.complete(values) == values
        settings = space.settings(values)
        config = TrainConfig.from_json(settings).resolve(MODALITIES)
        runs.add(json.dumps(config.to_json()))
        assert ("head" in values) == (values["network"] == "slice_cnn") != ("pooling" in values)
        assert ("depth" in values) == (values["network"] == "slice_cnn")
        if values["fusion"] == "single":
            assert config.modalities == (values["modality"],)
        else:
            assert config.modalities == MODALITIES
            assert config.network.fusion == values["fusion"]
        assert (config.batch_size, config.network.width) == (values["batch_size"], values["width"])
    assert len(runs) == space.count()  # no two choices mean the same run


def test_each_value_of_the_whole_table_can_be_trained():
    space = space_of(MODALITIES)
    for choice in space.choices:
        for value in choice.values:
            values = next(v for v in _varied(space) if v.get(choice.name) == value)
            TrainConfig.from_json(space.settings(values))


def _varied(space):
    """Combinations in which every parent's value occurs with each child's."""
    names = {"network", "fusion"}
    for network, fusion in itertools.product(*(c.values for c in space.choices if c.name in names)):
        for place in range(5):
            values = {"network": network, "fusion": fusion}
            for choice in space.choices:
                if choice.name not in names and choice.is_active(values):
                    values[choice.name] = choice.values[min(place, len(choice.values) - 1)]
            yield values


def test_numbers_that_lost_precision_on_the_way_become_the_listed_ones():
    space = space_of(MODALITIES, {**SMALL, "learning_rate": [1e-4, 1e-3]})
    values = {**next(space.combinations()), "learning_rate": 9.999999747378752e-05}
    assert space.complete(values)["learning_rate"] == 1e-4


def test_one_modality_leaves_nothing_to_fuse():
    names = {choice.name: choice.values for choice in space_of(["T1w"]).choices}
    assert names["fusion"] == ("early",)
    assert "modality" not in names


@pytest.mark.parametrize(
    ("narrowed", "message"),
    [
        ({"rate": 1}, "unknown hyperparameter rate: known are network"),
        ({"network": "resnet99"}, "network: unknown 'resnet99'; known: seed_cnn"),
        ({"modality": ["T3"]}, "modality: unknown 'T3'; known: FLAIR, T1wCE"),
        ({"network": "seed_cnn", "head": "mean"}, "head is of no use: no network"),
        ({"network": None}, "network cannot be dropped"),
        ({"modality": None}, "modality cannot be dropped while fusion may be single"),
        ({"batch_size": [4, 2.5]}, "batch_size: 2.5 is not a number without a fraction"),
        ({"width": True}, "width: True is not a number"),
        ({"width": -1}, "--width must be a positive number"),
        ({"dropout": 1.0}, r"--dropout must lie in \[0, 1\)"),
        ({"pooling": []}, "pooling: an empty list"),
        ({"pooling": ["avg", "avg"]}, "pooling: a value stands twice"),
    ],
)
def test_a_file_that_requests_what_is_not_there_is_refused_by_name(narrowed, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_space(json.dumps(narrowed), MODALITIES, source="space.json")
    assert str(caught.value).startswith("--space space.json: ")
    assert "\n" not in str(caught.value)


def test_parents_stand_before_their_children():
    names = [choice.name for choice in SPACE]
    for choice in SPACE:
        if choice.parent:
            assert names.index(choice.parent) < names.index(choice.name)
