"""KerasTuner's hypermodels: their hyperparameters are found, and their models built as they say."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner as kt
import pytest

from beam_jobs.common.cli import UsageError
from tests.datasets import TARGETS
from tests.trainer.networks import own_hypermodels
from tests.trainer.networks.own_hypermodels import (
    SHAPE,
    NeedsMore,
    OwnFit,
    OwnStep,
    Subclass,
    both,
    flat,
    scoped,
)
from trainer.config.hyperparameter import Choice, Condition, Hyperparameter, Range
from trainer.networks import hypermodel
from trainer.networks.compiled import own_optimizer
from trainer.networks.hypermodel import build, discover, is_hypermodel


def found_of(function: Any) -> dict[str, Hyperparameter]:
    """Hyperparameters by KerasTuner's name."""
    return {one.place[-1]: one for one in discover("m:f", function, SHAPE).hyperparameters}


def when(parent: str, *values: Any) -> Condition:
    return Condition(parent=f"options.{parent}", when=values)


def test_hyperparameters_of_nested_scopes_are_found_with_their_conditions() -> None:
    found = found_of(scoped)
    assert found["kind"] == Choice(
        name="options.kind", place=("network", "options", "kind"), values=("flat", "conv")
    )
    assert found["units"] == Range(
        name="options.units",
        place=("network", "options", "units"),
        conditions=(when("kind", "flat"),),
        low=4,
        high=32,
        scale="log",
        kind=int,
    )
    assert found["size"].conditions == (when("kind", "conv"), when("pool", "max"))
    assert found["filters"].conditions == (when("kind", "conv"),)
    assert found["head/rate"].place == ("network", "options", "head/rate")
    assert found["head/rate"].conditions == ()
    assert list(found["version"].every()) == [2]
    names = list(found)
    assert names.index("kind") < names.index("pool") < names.index("size")


def test_what_a_loop_asks_for_is_known_with_the_numbers_of_its_layers() -> None:
    def loop(hp: Any) -> keras.Model:
        for i in range(hp.Int("layers", 1, 4)):
            hp.Int(f"units_{i}", 8, 64, step=8)
        hp.Float("lr", 1e-4, 1e-2, sampling="log")
        return keras.Model()

    found = found_of(loop)
    assert set(found) == {"layers", "lr", *(f"units_{i}" for i in range(4))}
    assert found["units_0"].conditions == ()
    assert found["units_1"].conditions == (when("layers", 2, 3, 4),)
    assert found["units_3"].conditions == (when("layers", 4),)


def test_what_two_switches_ask_for_together_is_found() -> None:
    assert found_of(both)["units"].conditions == (when("wide", True), when("deep", True))


def test_a_condition_that_does_not_explain_every_build_is_none() -> None:
    def either(hp: Any) -> keras.Model:
        wide, deep = hp.Boolean("wide"), hp.Boolean("deep")
        if wide or deep:
            hp.Int("units", 2, 4)
        return keras.Model()

    assert found_of(either)["units"].conditions == ()


def test_the_same_in_two_scopes_is_one_and_another_of_its_name_is_refused() -> None:
    def twice(hp: Any, most: int = 8) -> keras.Model:
        hp.Choice("kind", ["a", "b", "c"])
        for kind, high in (("a", 8), ("b", most)):
            hp.Int("units", 2, high, parent_name="kind", parent_values=[kind])
        return keras.Model()

    assert found_of(twice)["units"].conditions == (when("kind", "a", "b"),)
    with pytest.raises(UsageError, match="two hyperparameters units with other values"):
        found_of(lambda hp: twice(hp, 16))


def test_every_kind_of_value_is_built_with_as_it_was_chosen() -> None:
    seen: dict[str, Any] = {}

    def every(hp: Any) -> keras.Model:
        seen["int"] = hp.Int("int", 1, 9)
        seen["log"] = hp.Float("log", 1e-5, 1e-1, sampling="log")
        seen["step"] = hp.Float("step", 0, 1, step=0.2)
        seen["yes"] = hp.Boolean("yes")
        seen["whole"] = hp.Choice("whole", [1, 2])
        seen["part"] = hp.Choice("part", [0.5, 1.0], default=1.0)
        seen["name"] = hp.Choice("name", ["a", "b"])
        seen["fixed"] = hp.Fixed("fixed", "f")
        return keras.Model()

    build("m:f", every, {}, SHAPE)
    assert (seen["part"], seen["step"], seen["yes"]) == (1.0, 0.0, False)  # KerasTuner's defaults
    found, rng = found_of(every), random.Random(0)
    for _ in range(5):
        chosen = {name: one.at(rng.random()) for name, one in found.items()}
        build("m:f", every, chosen, SHAPE)
        assert seen == chosen
        assert [type(v) for v in seen.values()] == [type(chosen[name]) for name in seen]


@pytest.mark.parametrize("function", [Subclass, own_hypermodels.instance])
def test_a_class_gets_the_shape_and_an_instance_is_taken_as_it_is(function: Any) -> None:
    assert is_hypermodel(function)
    model = build("m:f", function, {"units": 6}, SHAPE)
    assert model.input_shape == (None, *SHAPE)
    assert model.layers[1].units == 6
    assert not model.compiled
    assert isinstance(own_optimizer(model), keras.optimizers.Adam)


def test_functions_of_other_forms_are_no_hypermodels() -> None:
    def network(volume: Any, config: Any) -> Any: ...
    def made(input_shape: Any, classes: int = 1) -> Any: ...

    assert not any(map(is_hypermodel, (network, made, keras.Sequential, 1)))
    assert is_hypermodel(flat)


def _typo(hp: Any) -> keras.Model:
    if hp.Boolean("deep"):
        hp.Int("units", 1, 2)
    return keras.Model()


def test_an_option_that_is_asked_for_elsewhere_is_taken_and_a_typo_is_not() -> None:
    build("m:f", _typo, {"deep": False, "units": 2}, SHAPE)
    with pytest.raises(UsageError, match=r"m:f has no hyperparameter unit: known are deep, units"):
        build("m:f", _typo, {"deep": False, "unit": 2}, SHAPE)


def _needs_mixed(hp: Any) -> keras.Model:
    keras.config.set_dtype_policy("mixed_bfloat16")
    return keras.Model()


def _fails(hp: Any) -> keras.Model:
    raise ValueError(f"no units {hp.Int('units', 1, 2)}\nand more")


ADAM: dict[str, Any] = {"optimizer": "adam"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            _fails,
            "m:f fails at units 1: ValueError: no units 1 and more .test_hyperm",
        ),
        (lambda hp: keras.layers.Dense(1), "returns Dense: a keras.Model is needed"),
        (lambda hp: OwnStep(), "OwnStep has a train_step of its own"),
        (OwnFit, "has a fit of its own"),
        (NeedsMore, "needs blocks: of a class only"),
        (_needs_mixed, "changes the precision from float32 to mixed_bfloat16"),
        (lambda hp: flat(hp, **ADAM, loss="mse"), "the loss mean_squared_error: binary_cross"),
        (lambda hp: flat(hp, **ADAM, loss=lambda y, p: p), r"the loss <lambda>: .* \(--loss"),
        (
            lambda hp: flat(hp, **ADAM, loss=keras.losses.BinaryCrossentropy(label_smoothing=0.1)),
            "label_smoothing 0.1: say --label_smoothing",
        ),
        (
            lambda hp: flat(hp, optimizer=keras.optimizers.SGD(use_ema=True)),
            r"averages weights \(use_ema\): say --ema",
        ),
        (
            lambda hp: flat(hp, optimizer=kt.HyperParameters),
            "fails at its defaults: ValueError: Could not interpret optimizer",
        ),
    ],
)
def test_what_cannot_be_searched_ends_in_one_line(
    function: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        build("m:f", function, {}, SHAPE)
    assert "\n" not in str(raised.value)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    "loss",
    [
        "binary_crossentropy",
        ["bce"],
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras.losses.binary_crossentropy,
        "sparse_categorical_crossentropy",  # of two classes: the same
    ],
)
def test_cross_entropy_under_any_of_its_names_is_ours(loss: Any) -> None:
    model = build("m:f", lambda hp: flat(hp, optimizer="sgd", loss=loss), {}, SHAPE)
    assert isinstance(own_optimizer(model), keras.optimizers.SGD)


@pytest.mark.parametrize(
    ("task", "loss", "needed"),
    [
        ("multiclass", "categorical_crossentropy", ""),
        ("multiclass", "sparse_categorical_crossentropy", ""),
        ("multiclass", "binary_crossentropy", "categorical_crossentropy"),
        ("multilabel", "binary_crossentropy", ""),
        ("multilabel", "categorical_crossentropy", "binary_crossentropy"),
        ("regression", keras.losses.Huber(), ""),
        ("regression", "mse", "huber"),
    ],
)
def test_a_compiled_loss_is_the_tasks(task: str, loss: Any, needed: str) -> None:
    target = TARGETS[task]

    def function(hp: Any) -> keras.Model:
        return flat(hp, target.outputs, optimizer="sgd", loss=loss)

    if not needed:
        assert own_optimizer(build("m:f", function, {}, SHAPE, target)) is not None
        return
    with pytest.raises(UsageError, match=f"compiled with the loss .*: {needed} is needed, or none"):
        build("m:f", function, {}, SHAPE, target)


def test_a_class_is_told_how_many_outputs_there_are() -> None:
    class Sized(kt.HyperModel):  # type: ignore[misc]
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.units = num_classes

        def build(self, hp: Any) -> keras.Model:
            hp.Choice("filters", [2, 4])
            return flat(hp, self.units, optimizer="sgd", loss="categorical_crossentropy")

    target = TARGETS["multiclass"]
    assert build("m:C", Sized, {}, SHAPE, target).output_shape == (None, 3)
    assert len(discover("m:C", Sized, SHAPE, target).hyperparameters) == 1


def test_an_optimizer_that_comes_twice_is_refused() -> None:
    shared = keras.optimizers.SGD()
    build("m:f", lambda hp: flat(hp, optimizer=shared), {}, SHAPE)
    with pytest.raises(UsageError, match="its optimizer must be made where the model is built"):
        build("m:f", lambda hp: flat(hp, optimizer=shared), {}, SHAPE)


def test_names_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypermodel, "_BUILDS_MOST", 30)

    def endless(hp: Any) -> keras.Model:
        hp.Int(f"x_{random.random()}", 1, 2)
        return keras.Model()

    with pytest.raises(UsageError, match="names that follow from chance cannot be searched"):
        discover("m:f", endless, SHAPE)


def test_a_build_that_fails_at_some_values_hides_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def partly(hp: Any) -> keras.Model:
        print("building")
        kind = hp.Choice("kind", ["a", "b", "c"])
        if kind == "b":
            raise RuntimeError("not b")
        if kind == "c":
            hp.Int("units", 1, 2)
        return keras.Model()

    assert found_of(partly)["units"].conditions == (when("kind", "c"),)
    assert capsys.readouterr() == ("", "building\n")  # once
