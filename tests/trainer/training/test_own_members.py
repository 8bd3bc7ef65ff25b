"""Members whose layers a user's own code makes: their files hold weights alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.datasets import make_run, make_schema
from tests.trainer.networks.own_networks import HERE
from trainer.config.code_identity import identities
from trainer.config.run import TrainConfig
from trainer.networks.registry import build_model
from trainer.networks.stored import read_weights
from trainer.training.checkpoint import candidate, keep, save_network
from trainer.training.run_files import Member, Run

SHAPE = (8, 9, 7)
NAME = "network.weights.h5"


def _config(name: str, **settings: Any) -> TrainConfig:
    return TrainConfig.from_json({"network": {"name": f"{HERE}:{name}", **settings}})


def _run(directory: Path, config: TrainConfig) -> Run:
    spec = {"shape": list(SHAPE)}
    made = make_run(
        directory,
        schema=make_schema(shape=SHAPE, spec=spec),
        spec=spec,
        config=config.to_json(),
        dataset_fingerprint="a",
        modalities=("T1wCE", "T2w"),
        trained_on={"patients": 1, "positive": 1},
        trained_ids=("1",),
    )
    member = Member(fold=0, seed=1, path=f"fold-0/{NAME}", epoch=2, val_auc=0.7)
    return dataclasses.replace(made, members=(member,))


def _saved(directory: Path, config: TrainConfig) -> tuple[keras.Model, Path]:
    """A network with weights that no build gives, saved as a run's member."""
    model = build_model(config.network, SHAPE, 2)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    file = directory / "fold-0" / NAME
    file.parent.mkdir(parents=True)
    save_network(model, file)
    return model, file


@pytest.mark.parametrize("name", ["feature_map", "in_turn", "nested", "Subclassed", "Compiled"])
def test_a_member_of_layers_that_no_file_describes_comes_back(tmp_path: Path, name: str) -> None:
    model, file = _saved(tmp_path, _config(name))
    again = _run(tmp_path, _config(name)).load_member(0)
    volumes = np.random.default_rng(0).integers(0, 255, (2, *SHAPE, 2)).astype(np.uint8)
    np.testing.assert_array_equal(again(volumes), model(volumes))
    assert [path.name for path in file.parent.iterdir()] == [NAME]


def test_it_computes_in_float32_whatever_it_was_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.networks.foreign.has_gpu", lambda: True)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, _ = _saved(tmp_path, _config("feature_map"))
        again = _run(tmp_path, _config("feature_map")).load_member(0)
    finally:
        keras.config.set_dtype_policy("float32")
    kinds = [{layer.compute_dtype for layer in net.layers[1:]} for net in (model, again)]
    assert kinds == [{"float16", "float32"}, {"float32"}]


def test_equal_networks_are_equal_files(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        keras.utils.clear_session()  # as at a fold's start: names are numbered on
        files.append(_saved(tmp_path / name, _config("Subclassed"))[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_code_that_is_gone_is_named(tmp_path: Path) -> None:
    _saved(tmp_path, _config("feature_map"))
    gone = _run(tmp_path, TrainConfig.from_json({"network": {"name": "no_such:network"}}))
    with pytest.raises(ContractError, match=r"run\.json: --model no_such:network: no such module"):
        gone.load_member(0)


def test_code_that_was_changed_since_the_run_is_refused(tmp_path: Path) -> None:
    """The same shapes would fit, and answer otherwise."""
    _saved(tmp_path, _config("feature_map"))
    run = _run(tmp_path, _config("feature_map"))
    (now,) = identities([("--model", f"{HERE}:feature_map")])
    dataclasses.replace(run, code=(now,)).load_member(0)
    then = {**now, "sha256": "0" * 64}
    with pytest.raises(
        ContractError,
        match=r"run\.json: .*:feature_map is not what the run was begun with .* 0000",
    ):
        dataclasses.replace(run, code=(then,)).load_member(0)


@pytest.mark.parametrize("now", [{"options": {"growth": 4}}, {"pooling": "attention"}])
def test_code_that_makes_another_network_now_is_refused(
    tmp_path: Path, now: dict[str, Any]
) -> None:
    _saved(tmp_path, _config("feature_map"))
    with pytest.raises(ContractError, match=r"weights\.h5: .* numbers, the network takes"):
        _run(tmp_path, _config("feature_map", **now)).load_member(0)


def test_weights_that_a_file_would_lose_are_missed(tmp_path: Path) -> None:
    """Keras saves what it finds in attributes, lists and dicts."""

    class Hidden(keras.layers.Layer):  # type: ignore[misc]
        def build(self, input_shape: Any) -> None:
            self.kernel = self.add_weight(shape=(3, 3))

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, self.kernel)

        def save_own_variables(self, store: Any) -> None:
            pass

    given = keras.Input((3,))
    model = keras.Model(given, Hidden()(keras.layers.Dense(3)(given)))
    save_network(model, tmp_path / NAME)
    with pytest.raises(ContractError, match="it holds 12 numbers, the network takes 21"):
        read_weights(model, tmp_path / NAME)


def test_a_chosen_epochs_weights_become_the_member(tmp_path: Path) -> None:
    for epoch in (2, 4):
        candidate(tmp_path, epoch, name=NAME).write_bytes(bytes([epoch]))
    keep({tmp_path: 4}, lambda: None, name=NAME)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"\x04"
