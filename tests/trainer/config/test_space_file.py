"""How a file narrows the table of a search, and adds to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from trainer import task
from trainer.config.augment import PRESETS, AugmentConfig
from trainer.config.hyperparameter import Choice, Condition, Range
from trainer.config.network import MODELS, NetworkConfig
from trainer.config.run import TrainConfig
from trainer.config.space_file import read_space, space_of
from trainer.config.space_table import ELSEWHERE, SETTINGS
from trainer.config.user_code import may_take

MODALITIES = ("FLAIR", "T1wCE")
ONE = {"network": "seed_cnn", "fusion": "early"}
OWN = "my_networks:vit"


def test_one_modality_leaves_nothing_to_fuse():
    names = {choice.name: choice.to_json() for choice in space_of(["T1w"]).choices}
    assert names["fusion"] == ["early"]
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
    names = [choice.name for choice in SETTINGS]
    for choice in SETTINGS:
        if choice.parent:
            assert names.index(choice.parent) < names.index(choice.name)


def test_every_setting_of_the_trainer_can_be_searched_or_says_why_not():
    """Flags of trainer.task under its headings, and what the config has beyond them."""
    text = task._parser().format_help()
    flags = set(re.findall(r"^  --(\w+)", text[text.index("\ndata:") :], re.MULTILINE))
    assert {"width", "ema", "epochs", "freeze", "stage_decay"} < flags
    names = {setting.name for setting in SETTINGS} | {*ELSEWHERE}
    assert flags <= names, flags - names
    told = TrainConfig().to_json()
    config = {*told, *told["network"], *told["optimizer"]} - {"network", "optimizer", "name"}
    assert config <= names, config - names


def test_what_hangs_on_the_network_is_what_the_network_takes():
    other: dict[str, Any] = {
        **{"depth": 2.0, "pooling": "max", "head": "lstm", "encoder": "a:b", "weights": "a.keras"},
        **{"encoder_weights": "a.keras", "padding": "symmetric", "width": 0.5, "dropout": 0.5},
    }
    hanging = [setting for setting in SETTINGS if setting.parent == "network"]
    assert {setting.name for setting in hanging} == {*other}
    for setting in hanging:
        taken = set()
        for name in (*MODELS, OWN):
            with contextlib.suppress(UsageError):
                NetworkConfig(name=name, **{setting.name: other[setting.name]})
                taken.add(name)
        assert taken == {*setting.when, *([OWN] if setting.when_own else [])}, setting.name


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.kind is not str and one.place])
def test_a_number_of_the_trainer_may_be_a_range(setting):
    low, high = (1, 3) if setting.kind is int else (0.25, 0.5)
    narrowed = {**ONE, "network": "resnet10", "schedule": ["cosine", "exponential"]}
    narrowed["augment"] = "none"
    space = space_of(MODALITIES, {**narrowed, setting.name: {"min": low, "max": high}})
    (choice,) = [one for one in space.searched if one.name == setting.name]
    assert isinstance(choice, Range)
    for value in (low, high):
        values = next(one for one in space.combinations(grid=True) if choice.is_active(one)) | {
            setting.name: value
        }
        told: Any = TrainConfig.from_json(space.settings(values)).to_json()
        for part in setting.place:
            told = told[part]
        assert told == value
        assert type(told) is setting.kind


@pytest.mark.parametrize(
    ("narrowed", "message"),
    [
        ({"width": {"min": 1}}, "width: a range needs max"),
        ({"width": {"min": 1, "max": None}}, "width: max must be a number: null"),
        ({"width": {"min": 1, "max": "2"}}, "width: max '2' is not a number"),
        ({"batch_size": {"min": 1, "max": 8.5}}, "max 8.5 is not a number without a fraction"),
        ({"batch_size": {"min": True, "max": 8}}, "min True is not a number"),
        ({"width": {"min": 1, "max": 1}}, "width: min 1 must be less than max 1"),
        ({"dropout": {"min": 0, "max": 0.5, "log": True}}, "min must be above 0 on a log scale: 0"),
        ({"width": {"min": 1, "max": 2, "log": 1}}, "width: log must be true or false: 1"),
        ({"width": {"min": 1, "max": 2, "step": 0}}, "width: step must be above 0: 0"),
        (
            {"width": {"min": 1, "max": 2, "step": 1, "log": True}},
            "step must be above 1, it is a factor on a log scale: 1",
        ),
        ({"width": {"min": 1, "max": 2, "step": 3}}, "a step of 3 leaves 1 alone below 2"),
        ({"width": {"min": 1, "max": 2, "by": 1}}, "min, max, step and log, not by"),
        ({"width": {"min": 1, "max": 2, "step": 5e-324}}, "width: step 4.94066e-324 is too small"),
        (
            {"width": {"min": -1e308, "max": 1e308}},
            "min -1e\\+308 and max 1e\\+308 are too far apart",
        ),
        ({"width": {"min": 1e-300, "max": 1e300, "log": True}}, "are too far apart"),
        ({"pooling": {"min": 1, "max": 2}}, "pooling: names have no range; list them"),
        ({"width": {"min": 1, "max": 99}}, "--width must be at most 16: 99"),
        ({"dropout": {"min": 0, "max": 1}}, r"--dropout must lie in \[0, 1\): 1"),
        ({"clip_norm": [None, 1.0]}, "clip_norm: None is not a number"),
        ({"loss": "focal"}, "loss: unknown 'focal'; known: cross_entropy"),
        ({"loss": ["a b:c"]}, "--loss 'a b:c': package.module:function is needed"),
        ({"seed": [1, 2]}, "seed cannot be searched: the search has a --seed of its own"),
        ({"model": "resnet10"}, "model cannot be searched: it is called network here"),
        ({"augment.flip": 1}, "unknown hyperparameter augment.flip"),
        ({"augment.gamma": {"min": -1, "max": 1}}, "augmentation gamma must be 0 or more: -1"),
        (
            {"augment": "medium", "augment.elastic_spacing_mm": {"min": 5, "max": 40}},
            "elastic_mm 4 would fold space: at most 2.0 with elastic_spacing_mm 5",
        ),
        (
            {"augment.elastic_spacing_mm": [40, 10], "augment.elastic_mm": {"min": 1, "max": 9}},
            "elastic_mm 9 would fold space: at most 4.0 with elastic_spacing_mm 10",
        ),
        ({"options.layers": 3}, "options.layers is of no use: no network of the space takes it"),
        ({"decay_steps": 9, "schedule": "cosine"}, "decay_steps is of no use: no schedule of"),
        ({"warmup_epochs": 3, "schedule": None}, "warmup_epochs is of no use: no schedule of"),
        ({"padding": "symmetric", "network": "slice_cnn"}, "padding is of no use: no network"),
    ],
)
def test_a_range_or_setting_that_cannot_be_is_refused_in_a_line(narrowed, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_space(json.dumps({**ONE, **narrowed}), MODALITIES, source="space.json")
    assert str(caught.value).startswith("--space space.json: ")
    assert "\n" not in str(caught.value)


def test_an_amount_of_augmentation_changes_the_preset_it_is_drawn_beside():
    amount = {"augment.rotation_deg": {"min": 5, "max": 90}}
    space = space_of(MODALITIES, {**ONE, **amount, "augment": ["light", "none"]})
    values = {**next(space.combinations(grid=True)), "augment.rotation_deg": 45.0}
    for name in ("light", "none"):
        found = TrainConfig.from_json(space.settings({**values, "augment": name})).augment
        assert found == dataclasses.replace(PRESETS[name], rotation_deg=45.0)
    space = space_of(MODALITIES, {**ONE, **amount, "augment": None})
    values = {**next(space.combinations(grid=True)), "augment.rotation_deg": 45.0}
    found = TrainConfig.from_json(space.settings(values)).augment
    assert found == AugmentConfig(rotation_deg=45.0)


def test_a_users_network_stands_among_ours_with_its_own_options():
    narrowed = {
        "network": [OWN, "slice_cnn"],
        **dict.fromkeys(("fusion", "width", "dropout", "learning_rate"), None),
        **{"fusion": "early", "augment": "none", "batch_size": 4, "schedule": "constant"},
        "depth": [1, 2],
        "options.layers": {"min": 1, "max": 4},
        "options.rate": {"min": 0.25, "max": 0.5, "step": 0.25},
        "options.norm": [True, False],
        "options.kind": "deep",
    }
    space = space_of(MODALITIES, narrowed)
    values = next(space.combinations(grid=True))
    assert values["network"] == OWN
    assert "depth" in values
    # What the file does not name it may not be able to be told.
    assert not {"pooling", "head", "width", "dropout"} & values.keys()
    config = TrainConfig.from_json(space.settings(values))
    assert config.network.options == {"layers": 1, "rate": 0.25, "norm": True, "kind": "deep"}
    assert type(config.network.options["layers"]) is int
    for other in space.combinations(grid=True):
        if other["network"] != OWN:
            assert not any(name.startswith("options.") for name in other)
            assert TrainConfig.from_json(space.settings(other)).network.options == {}
            break
    space = space_of(MODALITIES, {**ONE, "loss": ["my_loss:focal", "cross_entropy"]})
    losses = {TrainConfig.from_json(space.settings(v)).loss for v in space.combinations()}
    assert losses == {"my_loss:focal", "cross_entropy"}


def test_a_users_network_alone_is_searched_by_the_trainers_settings_and_what_is_named():
    space = space_of(("T1w",), {"network": OWN})
    searched = {choice.name for choice in space.searched}
    assert searched == {"learning_rate", "schedule", "batch_size", "augment"}
    assert "width" in space_of(("T1w",), {"network": OWN, "width": [0.5, 1]}).names
    both = space_of(("T1w",), {"network": [OWN, "seed_cnn"]})
    (width,) = [choice for choice in both.choices if choice.name == "width"]
    assert both.where(width) == "network is seed_cnn"
    # Beside ours alone it hangs on none, as in earlier versions.
    (width,) = [choice for choice in space_of(("T1w",)).choices if choice.name == "width"]
    assert width.conditions == ()


def test_an_option_counts_where_a_users_network_has_it(tmp_path, monkeypatch):
    (tmp_path / "two_nets.py").write_text(
        "def vit(volume, config, *, heads=2): ...\n"
        "def conv(volume, config, filters=8): ...\n"
        "def any(input_shape, **options): ...\n"
        "def build(hp): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"two_nets:{name}" for name in ("vit", "conv", "any", "build")]
    told = {"network": names, "options.heads": [2, 4], "options.filters": {"min": 4, "max": 8}}
    space = space_of(("T1w",), told, takes=may_take)
    heads, filters = (choice for choice in space.choices if choice.name.startswith("options."))
    assert heads.conditions[0].when == (names[0], names[2], names[3])
    assert filters.conditions[0].when == (names[1], names[2], names[3])
    with pytest.raises(UsageError, match=r"options.depth is of no use: no network of the space"):
        space_of(("T1w",), {"network": names[:2], "options.depth": 3}, takes=may_take)


HYPERMODEL = (
    Range(
        name="options.units/a.b",
        low=8,
        high=64,
        scale="log",
        kind=int,
        place=("network", "options", "units/a.b"),
    ),
    Choice(name="options.deep", values=(False, True), place=("network", "options", "deep")),
    Choice(
        name="options.more",
        values=(1, 2),
        place=("network", "options", "more"),
        conditions=(Condition(parent="options.deep", when=(True,)),),
    ),
)


def test_a_hypermodels_hyperparameters_are_the_space_beside_what_the_file_names():
    space = space_of(MODALITIES, network=OWN, own=HYPERMODEL)
    assert [choice.name for choice in space.searched] == [one.name for one in HYPERMODEL]
    values = next(space.combinations(grid=True))
    told = TrainConfig.from_json(space.settings(values)).network
    assert (told.name, told.options) == (
        OWN,
        {"units/a.b": values["options.units/a.b"], "deep": False},
    )
    narrowed = {
        "options.units/a.b": [16, 32],
        "options.more": None,
        "weight_decay": {"min": 1e-6, "max": 1e-2, "log": True},
        "fusion": ["early", "single"],
    }
    space = space_of(MODALITIES, narrowed, network=OWN, own=HYPERMODEL)
    names = ["fusion", "modality", "weight_decay", "options.units/a.b", "options.deep"]
    assert [choice.name for choice in space.searched] == names
    for wrong, message in (
        ({"network": "seed_cnn"}, f"network: it is {OWN}"),
        ({"options.other": 1}, "unknown hyperparameter options.other"),
        ({"options.deep": None}, "options.deep cannot be dropped"),
        ({"options.deep": 1}, "options.deep: 1 is not true or false"),
    ):
        with pytest.raises(UsageError, match=message):
            space_of(MODALITIES, wrong, network=OWN, own=HYPERMODEL)
