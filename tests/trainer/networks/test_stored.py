"""A network's file is not believed to hold what it does not."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.config.unpacked import require_unpackable
from trainer.networks.stored import load_network, read_weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("network") / "network.keras"
    layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Dense(1)]
    keras.Sequential(layers).save(file)
    return file


def changed(saved: Path, file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose layers' configurations are changed."""
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(file, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "config.json":
                config = json.loads(data)
                for layer in config["config"]["layers"]:
                    change(layer["config"])
                data = json.dumps(config).encode()
            copy.writestr(name, data)
    return file


def test_layers_larger_than_the_stored_weights_are_never_made(saved: Path, tmp_path: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        config.update({"units": 10**12} if "units" in config else {})

    file = changed(saved, tmp_path / "n.keras", grow)
    with pytest.raises(ContractError, match=r"its layers ask for \d{12,} weights, it holds \d"):
        load_network(file)


def test_looking_at_a_network_changes_nothing_of_the_process(saved: Path) -> None:
    """Weights, seeds and names of what is built afterwards are those of a plain loading."""
    after = []
    for load in (load_network, keras.saving.load_model):
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        load(saved)
        layer = keras.layers.Dense(3)
        after.append(
            (random.random(), np.random.rand(), layer.name, np.array(layer(np.ones((1, 2)))))
        )
    assert after[0][:3] == after[1][:3]
    assert (after[0][3] == after[1][3]).all()


def test_weights_linked_to_another_file_are_refused(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "r+") as opened:
        del opened["layers"]
        opened["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/layers")
    file = tmp_path / "n.keras"
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(file, "w") as copy:
        copy.write(tmp_path / "model.weights.h5", "model.weights.h5")
        copy.writestr("config.json", archive.read("config.json"))
    with pytest.raises(ContractError, match="its arrays lie in other files"):
        load_network(file)


def test_an_hdf5_file_is_looked_into_that_is_an_archive_as_well(tmp_path: Path) -> None:
    file = tmp_path / "w.h5"
    with h5py.File(file, "w") as opened:
        opened["layers"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/layers")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x", "")
    with pytest.raises(ContractError, match="its arrays lie in other files"):
        require_unpackable(file)


def test_weights_beside_layers_that_draw_come_back(tmp_path: Path) -> None:
    def made() -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)]
        )

    before, again = made(), made()
    before.save_weights(tmp_path / "network.weights.h5")
    read_weights(again, tmp_path / "network.weights.h5")
    for one, other in zip(before.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
