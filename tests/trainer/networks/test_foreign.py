"""Networks of a user's own code: what becomes of them, and what is refused."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from tests.trainer.networks.own_networks import HERE
from trainer.config.network import NetworkConfig
from trainer.networks.blocks import MOMENTUM
from trainer.networks.registry import build_model

GRID = (8, 9, 7)


def _built(name: str, *, channels: int = 2, **settings: Any) -> keras.Model:
    return build_model(NetworkConfig(name=f"{HERE}:{name}", **settings), GRID, channels)


def _answers(model: keras.Model, channels: int = 2) -> Any:
    volumes = np.random.default_rng(0).integers(0, 255, (3, *GRID, channels)).astype(np.uint8)
    found = np.asarray(model(volumes, training=False))
    assert (found.shape, str(found.dtype)) == ((3, 1), "float32")
    assert np.isfinite(found).all()
    return found


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("feature_map", 4017),
        ("squashed", 225),
        ("two_classes", 510),
        ("in_turn", 225),
        ("nested", 1097),
        ("Subclassed", 241),
    ],
)
def test_networks_of_every_form_answer_a_volume_with_a_logit(name: str, weights: int) -> None:
    model = _built(name)
    _answers(model)
    assert model.count_params() == weights
    assert model.get_layer("standardise").output.dtype == model.output.dtype == "float32"


def test_a_network_lies_flat_in_ours_and_names_that_collide_are_numbered() -> None:
    names = [layer.name for layer in _built("nested").layers]
    assert {"conv", "conv_1", "conv_2", "conv_3"} <= set(names)
    assert not any(isinstance(layer, keras.Model) for layer in _built("nested").layers)
    assert _built("squashed").get_layer("logit").output.shape == (None, 1)


def test_the_last_sigmoid_is_taken_off_and_its_layer_stays_as_it_was_requested() -> None:
    model = _built("squashed")
    assert model.get_layer("logit").bias.numpy() == [1.0]
    model.get_layer("logit").bias.assign([100.0])
    assert (_answers(model) > 50).all()


def test_two_classes_become_the_difference_of_their_logits() -> None:
    model = _built("two_classes")
    both = keras.Model(model.input, model.get_layer("logits").output)
    volumes = np.random.default_rng(0).integers(0, 255, (3, *GRID, 2)).astype(np.uint8)
    first, second = np.asarray(both(volumes)).T
    np.testing.assert_array_equal(_answers(model)[:, 0], second - first)


def test_a_models_rescaling_of_stored_values_is_left_out_and_one_of_volumes_stays() -> None:
    kinds = [[type(x) for x in _built(name).layers] for name in ("two_classes", "scaling")]
    assert [keras.layers.Rescaling in found for found in kinds] == [False, True]


def test_kerass_default_momentum_becomes_ours_and_a_chosen_one_stays() -> None:
    kind = keras.layers.BatchNormalization
    model = _built("feature_map")
    assert [x.momentum for x in model.layers if isinstance(x, kind)] == [MOMENTUM, 0.5]


def test_options_are_keyword_arguments() -> None:
    assert _built("feature_map", options={"growth": 4}).count_params() == 1145
    with pytest.raises(UsageError, match="own_networks:feature_map: no parameter dept; it has vol"):
        _built("feature_map", options={"dept": 4})


@pytest.mark.parametrize("name", ["feature_map", "squashed", "nested", "Subclassed"])
def test_late_fusion_shows_each_modality_to_the_same_network(name: str) -> None:
    model = _built(name, channels=3, fusion="late")
    _answers(model, 3)
    one = _built(name, channels=1)
    features = one.get_layer("logit").kernel.shape[0]
    assert model.count_params() == one.count_params() + 2 * features


def test_pooling_and_dropout_apply_where_they_can() -> None:
    _answers(_built("feature_map", pooling="attention"))
    kinds = [type(layer) for layer in _built("squashed", dropout=0.5).layers]
    assert kinds[-2] is keras.layers.Dropout
    own = _built("Subclassed", dropout=0.5)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in own.layers)
    assert [layer.drop.rate for layer in own.layers if hasattr(layer, "drop")] == [0.5]
    with pytest.raises(UsageError, match=r"--pooling max: gives \(None, 1\), no map"):
        _built("squashed", pooling="max")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("images", r"takes \(8, 9, 2\): \(row, column, slice, channel\) is \(8, 9, 7, 2\)"),
        ("other_grid", r"takes \(64, 64, 64, 1\): "),
        ("pair", "takes 2 inputs: one volume"),
        ("two_outputs", "gives a tuple of 2: one tensor is needed"),
        ("exits", r"fails on volumes 8x9x7x2: SystemExit: 3"),
        ("deep", r"fails on volumes 8x9x7x2: ValueError: Computed .* \(own_networks.py, line"),
        ("weightless", "gives a network without weights"),
        ("many_classes", "ends in 10 classes: 1, or 2 with a softmax"),
        ("other_batch", r"gives \(4, None\): \(batch, n\)"),
        ("nothing", r"gives NoneType: function\(volume, config\), "),
        ("half", "changes the precision from float32 to mixed_float16, by set_dtype_policy or"),
        ("one_parameter", r"takes \(volume\): function\(volume, config\), "),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^--model {HERE}:{name}: {said}") as raised:
        _built(name)
    assert "\n" not in str(raised.value)


def test_what_a_network_prints_and_where_it_goes_changes_no_output_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = os.getcwd()
    _built("elsewhere")
    assert capsys.readouterr() == ("", "made\n")
    assert os.getcwd() == before


def test_layers_that_outlive_a_fold_are_refused() -> None:
    _built("shared")
    with pytest.raises(UsageError, match=r"the same layer .* again: it must make new ones"):
        _built("shared")
