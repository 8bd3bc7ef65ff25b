"""The state of an unfinished fold: all or nothing, this run's or refused."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.training.checkpoint import Progress, keep_best, load_state, save_state, settle_best


def _progress() -> Progress:
    history = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1 / 3}]
    return Progress(epoch=2, best_epoch=1, best=(0.75, -0.5), history=history, seconds=1.5)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    arrays = [np.float32([[1 / 3, np.nan]]), np.array(7, np.int64), np.uint32([1, 2**32 - 1])]
    save_state(tmp_path, _progress(), arrays, request="a")
    found = load_state(tmp_path, request="a")
    assert found is not None
    assert found[0] == _progress()
    for array, again in zip(arrays, found[1], strict=True):
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_without_a_state_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / ".state.npz").write_bytes(b"half of one")
    assert load_state(tmp_path, request="a") is None


def test_another_run_s_state_and_a_damaged_one_are_refused_by_their_path(tmp_path: Path) -> None:
    save_state(tmp_path, _progress(), [np.zeros(9)], request="a")
    with pytest.raises(ContractError, match=r"state\.npz: of another run"):
        load_state(tmp_path, request="b")
    whole = (tmp_path / "state.npz").read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "state.npz").write_bytes(damaged)
        with pytest.raises(ContractError, match=r"state\.npz: not a readable state"):
            load_state(tmp_path, request="a")


@pytest.mark.parametrize("killed", ["before the state", "after the state", "after the rename"])
def test_the_kept_network_is_the_one_the_state_speaks_of(tmp_path: Path, killed: str) -> None:
    """Epoch 1 was the best; a run is killed on its way to saying so of epoch 2."""

    def network(value: float) -> keras.Model:
        inputs = keras.Input((1,))
        made = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        made.set_weights([np.full((1, 1), value), np.zeros(1)])
        return made

    keep_best(tmp_path, network(1.0), 1)
    settle_best(tmp_path, 1)
    keep_best(tmp_path, network(2.0), 2)
    if killed == "after the rename":
        settle_best(tmp_path, 2)
    state = 1 if killed == "before the state" else 2
    settle_best(tmp_path, state)  # what the restart does
    kept = keras.saving.load_model(tmp_path / "best.keras")
    assert kept.get_weights()[0].item() == float(state)
    assert [file.name for file in tmp_path.iterdir()] == ["best.keras"]


def test_a_fold_ends_at_its_last_epoch_or_when_patience_does() -> None:
    def stopped(epoch: int, best_epoch: int) -> bool:
        return Progress(epoch=epoch, best_epoch=best_epoch).stopped(epochs=10, patience=3)

    assert [stopped(0, 0), stopped(4, 2), stopped(5, 2), stopped(10, 10)] == [
        False,
        False,
        True,
        True,
    ]
