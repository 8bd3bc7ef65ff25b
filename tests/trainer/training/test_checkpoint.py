"""The state of an unfinished fold: all or nothing, this run's or refused."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.training.checkpoint import Checkpoint, FoldState, load_state, save_state


def _state() -> FoldState:
    history = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1 / 3}]
    return FoldState(epoch=2, best_epoch=1, best=(0.75, -0.5), history=history, seconds=1.5)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    arrays: list[npt.NDArray[Any]] = [
        np.array([[1 / 3, np.nan]], np.float32),
        np.array(7, np.int64),
        np.array([1, 2**32 - 1], np.uint32),
    ]
    save_state(tmp_path, _state(), arrays, request="a")
    found = load_state(tmp_path, request="a")
    assert found is not None
    assert found[0] == _state()
    for array, again in zip(arrays, found[1], strict=True):
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_without_a_state_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / ".state.npz").write_bytes(b"half of one")
    assert load_state(tmp_path, request="a") is None


def test_another_run_s_state_and_a_damaged_one_are_refused_by_their_path(tmp_path: Path) -> None:
    save_state(tmp_path, _state(), [np.zeros(9)], request="a")
    with pytest.raises(ContractError, match=r"state\.npz: of another run"):
        load_state(tmp_path, request="b")
    whole = (tmp_path / "state.npz").read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "state.npz").write_bytes(damaged)
        with pytest.raises(ContractError, match=r"state\.npz: not a readable state"):
            load_state(tmp_path, request="a")


@pytest.mark.parametrize("push", range(6))
def test_the_kept_network_is_the_one_the_state_speaks_of(tmp_path: Path, push: int) -> None:
    """Epochs 1 and 2 are each the best so far; a run is killed in one of its pushes.

    What is found after it, on the disk or in the store that was pushed to, is one of these.
    """

    class Killed(BaseException):
        pass

    def network(value: float) -> keras.Model:
        inputs = keras.Input((1,))
        made = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        made.set_weights([np.full((1, 1), value), np.zeros(1)])
        return made

    pushed: list[Path] = []

    def pushes() -> None:
        pushed.append(shutil.copytree(tmp_path / "run", tmp_path / str(len(pushed))))
        if len(pushed) > push:
            raise Killed

    def checkpoint(directory: Path, push: Callable[[], None]) -> Checkpoint:
        return Checkpoint(directory=directory, state_directory=directory, request="a", push=push)

    (tmp_path / "run").mkdir()
    saving = checkpoint(tmp_path / "run", pushes)
    with contextlib.suppress(Killed):
        for epoch in (1, 2, 3):
            best = min(epoch, 2)
            saving.save(FoldState(epoch=epoch, best_epoch=best), [], network(float(epoch)))
    for left in (tmp_path / "run", *pushed):
        found = checkpoint(left, lambda: None).load()
        assert found is not None
        kept = keras.saving.load_model(left / "best.keras")
        assert kept.get_weights()[0].item() == float(found[0].best_epoch)
        assert sorted(file.name for file in left.iterdir()) == ["best.keras", "state.npz"]


def test_a_network_that_no_state_speaks_of_is_removed(tmp_path: Path) -> None:
    """The run was killed between the two."""
    (tmp_path / ".best-1.keras").write_bytes(b"whatever")
    checkpoint = Checkpoint(
        directory=tmp_path, state_directory=tmp_path, request="a", push=lambda: None
    )
    assert checkpoint.load() is None
    assert list(tmp_path.iterdir()) == []


def test_a_fold_ends_at_its_last_epoch_or_when_patience_does() -> None:
    def stopped(epoch: int, best_epoch: int) -> bool:
        return FoldState(epoch=epoch, best_epoch=best_epoch).stopped(epochs=10, patience=3)

    assert [stopped(0, 0), stopped(4, 2), stopped(5, 2), stopped(10, 10)] == [
        False,
        False,
        True,
        True,
    ]
