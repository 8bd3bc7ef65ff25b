"""Networks that start from a file of Keras: which arrays are taken, and which file is refused."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.config.network import NetworkConfig
from trainer.networks.blocks import Layout, Parts
from trainer.networks.registry import build_model
from trainer.networks.resnet import resnet
from trainer.networks.weights import start_weights
from trainer.networks.weights.keras_file import read_keras

GRID = (6, 5, 4)
OWN = NetworkConfig(name="some.module:function")


def _network(channels: int = 1, filters: int = 2, features: int = 3, head: int = 1) -> keras.Model:
    x = volume = keras.Input((*GRID, channels))
    x = keras.layers.BatchNormalization()(keras.layers.Conv3D(filters, 3)(x))
    x = keras.layers.Dense(features)(keras.layers.GlobalAveragePooling3D()(x))
    return keras.Model(volume, keras.layers.Dense(head, name="logit")(x), name="small")


def _loaded(model: keras.Model, file: Path) -> str:
    return start_weights.load(model, start_weights.read(str(file)), OWN)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """A small network, and where its files lie."""
    network, folder = _network(), tmp_path_factory.mktemp("donor")
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in network.weights])
    network.save(folder / "net.keras")
    network.save_weights(folder / "net.weights.h5")
    network.save(folder / "net.h5")
    return network, folder


@pytest.mark.parametrize("name", ["net.keras", "net.weights.h5", "net.h5"])
def test_a_network_starts_from_every_file_that_keras_writes_of_it(
    name: str, donor: tuple[keras.Model, Path]
) -> None:
    network, folder = donor
    started = _network()
    assert _loaded(started, folder / name) == f"10 of 10 arrays of {folder / name}"
    for found, expected in zip(started.weights, network.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_equal_channels_are_answered_as_the_one_channel_was(
    donor: tuple[keras.Model, Path],
) -> None:
    network, folder = donor
    started = _network(channels=3)
    assert "channels averaged, 1 to 3" in _loaded(started, folder / "net.keras")
    volume = np.random.default_rng(1).normal(size=(2, *GRID, 1))
    found = started(np.repeat(volume, 3, axis=-1))
    np.testing.assert_allclose(found, network(volume), rtol=1e-4)


def test_another_head_is_new_and_told(donor: tuple[keras.Model, Path]) -> None:
    network, folder = donor
    started = _network(head=2)
    told = _loaded(started, folder / "net.keras")
    assert told == f"8 of 10 arrays of {folder / 'net.keras'}; new: logit"
    np.testing.assert_array_equal(started.weights[0], network.weights[0])
    body = keras.Model(network.input, network.layers[-2].output)
    body.save_weights(folder / "body.weights.h5")
    assert _loaded(_network(), folder / "body.weights.h5").endswith("; new: logit")


@pytest.mark.slow
def test_a_network_of_other_answers_and_covariates_gives_its_body(tmp_path: Path) -> None:
    config = NetworkConfig(name="resnet10", width=0.125)
    asked: dict[str, Any] = {"target": TARGETS["regression"], "covariates": AGE_AND_SITE}
    build_model(config, (5, 5, 5), 1, **asked).save(tmp_path / "aged.keras")
    build_model(config, (5, 5, 5), 1).save(tmp_path / "plain.keras")
    for name, told in (
        ("aged", "; new: logit; not used: "),
        ("plain", "; new: known, logit, value"),
    ):
        started = dataclasses.replace(config, weights=str(tmp_path / f"{name}.keras"))
        model = build_model(started, (5, 5, 5), 1, **({} if name == "aged" else asked))
        assert told in model.started_from


def test_a_network_of_other_arrays_is_refused_by_the_first_that_differs(
    donor: tuple[keras.Model, Path],
) -> None:
    said = r"layers/conv3d/vars/0 is \(3, 3, 3, 1, 2\), small's .* takes \(3, 3, 3, 1, 4\)"
    with pytest.raises(UsageError, match=rf"^--weights: .*net.weights.h5: {said}$"):
        _loaded(_network(filters=4), donor[1] / "net.weights.h5")
    x = volume = keras.Input((*GRID, 1))
    for filters in (2, 3):
        x = keras.layers.BatchNormalization()(keras.layers.Conv3D(filters, 3, padding="same")(x))
    x = keras.layers.Dense(1, name="logit")(keras.layers.GlobalAveragePooling3D()(x))
    with pytest.raises(UsageError, match="holds no layers/conv3d_1/vars/0, which deep has"):
        _loaded(keras.Model(volume, x, name="deep"), donor[1] / "net.weights.h5")


def test_arrays_of_a_deeper_network_are_not_left_out_in_silence(
    donor: tuple[keras.Model, Path],
) -> None:
    x = volume = keras.Input((*GRID, 1))
    x = keras.layers.GlobalAveragePooling3D()(keras.layers.Conv3D(2, 3)(x))
    x = keras.layers.Dense(1, name="logit")(keras.layers.Dense(3)(x))
    with pytest.raises(UsageError, match="holds layers/batch_normalization/vars/0, which shallow"):
        _loaded(keras.Model(volume, x, name="shallow"), donor[1] / "net.weights.h5")


def test_a_network_within_another_one_is_found(tmp_path: Path) -> None:
    x = keras.Input((*GRID, 1))
    inner = keras.Model(x, keras.layers.BatchNormalization()(keras.layers.Conv3D(2, 3)(x)))
    x = keras.Input((*GRID, 1))
    outer = keras.Model(x, keras.layers.Dense(5)(inner(x)))
    outer.save_weights(tmp_path / "outer.weights.h5")
    taker = _network()
    told = _loaded(taker, tmp_path / "outer.weights.h5")
    assert told.startswith("6 of 10 arrays")
    assert "new: dense" in told
    assert "not used: layers/dense/vars/0" in told
    np.testing.assert_array_equal(taker.weights[0], inner.weights[0])


class Whole(keras.Model):  # type: ignore[misc]
    """A user's model with a `call` of its own, which stays whole in our graph."""

    def __init__(self, classes: int, filters: int = 2) -> None:
        super().__init__()
        self.stem = keras.layers.Conv3D(filters, 3)
        self.norm = keras.layers.BatchNormalization()
        self.head = keras.layers.Dense(classes)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.norm(self.stem(x), training=training)
        return self.head(keras.ops.mean(x, axis=(1, 2, 3)))


def test_of_a_model_that_stays_whole_all_is_taken_but_another_head(tmp_path: Path) -> None:
    def network(filters: int = 2) -> keras.Model:
        volume = keras.Input((*GRID, 2))
        logit = keras.layers.Activation("linear", name="logit")(Whole(1, filters)(volume))
        return keras.Model(volume, logit, name="net")

    given = Whole(5)
    given(np.zeros((1, *GRID, 1), np.float32))
    given.compile("adam", "mse")
    given.fit(np.zeros((1, *GRID, 1)), np.zeros((1, 5)), verbose=0)
    file = tmp_path / "whole.weights.h5"
    given.save_weights(file)
    taker = network()
    told = _loaded(taker, file)
    assert told == f"6 of 8 arrays of {file}, channels averaged, 1 to 2; new: layers/whole/head"
    np.testing.assert_array_equal(taker.layers[1].norm.gamma, given.norm.gamma)
    with pytest.raises(UsageError, match=r"is \(2,\), net's layers/whole/.* takes \(4,\)"):
        _loaded(network(filters=4), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(padding="symmetric", epsilon=1e-5),
        Layout(padding="symmetric", edge=True, stem_stride=2, epsilon=1e-5),
        Layout(padding="symmetric", edge=True, stem_stride=2, stride_first=True, epsilon=1.001e-5),
    ],
)
def test_the_layout_of_a_network_of_ours_follows_from_its_file(
    layout: Layout, tmp_path: Path
) -> None:
    config = NetworkConfig(name="resnet50", width=0.03, depth=0.2)
    x = keras.Input((9, 9, 9, 1))
    parts = Parts(config=config, layout=layout)
    file = tmp_path / "net.keras"
    keras.Model(x, resnet((1, 1, 1, 1), bottleneck=True)(x, parts)).save(file)
    start = start_weights.read(str(file))
    assert start_weights.layout_of(start, config) == layout


def test_what_is_no_file_of_weights_is_refused_in_a_line(
    donor: tuple[keras.Model, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.h5").write_text("no weights")
    (tmp_path / "text.keras").write_text("no weights")
    nan = tmp_path / "nan.weights.h5"
    nan.write_bytes((donor[1] / "net.weights.h5").read_bytes())
    with h5py.File(nan, "r+") as opened:
        opened["layers/conv3d/vars/0"][0, 0, 0, 0, 0] = np.nan
    for file, said in (
        ("absent.h5", "is not a file"),
        ("text.h5", "not a file of Keras"),
        ("text.keras", "not a file of Keras"),
        ("nan.weights.h5", "layers/conv3d/vars/0 holds values that are no numbers"),
    ):
        with pytest.raises(UsageError, match=rf"^--weights: [^\n]*{file}[^\n]*{said}[^\n]*$"):
            _loaded(_network(), tmp_path / file)


def test_layers_of_a_stranger_are_not_made(donor: tuple[keras.Model, Path], tmp_path: Path) -> None:
    """Arrays alone are taken: a layer that carries code does nothing."""
    file = tmp_path / "net.keras"
    with (
        zipfile.ZipFile(donor[1] / "net.keras") as source,
        zipfile.ZipFile(file, "w") as changed,
    ):
        config = json.loads(source.read("config.json"))
        config["config"]["layers"].append({"class_name": "Lambda", "config": {"name": "evil"}})
        changed.writestr("config.json", json.dumps(config))
        changed.writestr("model.weights.h5", source.read("model.weights.h5"))
    assert len(read_keras(file, archive=True).arrays) == 10
    assert _loaded(_network(), file).startswith("10 of 10")
