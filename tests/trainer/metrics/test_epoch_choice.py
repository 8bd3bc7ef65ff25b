"""Which epochs may be kept, and by whom they are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics.epoch_choice import candidate_epochs, crossfit


@pytest.mark.parametrize(
    ("epochs", "candidates"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (10, tuple(range(1, 11))),
        (15, (2, 3, 5, 6, 8, 9, 11, 12, 14, 15)),
        (100, tuple(range(10, 101, 10))),
    ],
)
def test_at_most_ten_epochs_are_candidates_and_the_last_is_one(
    epochs: int, candidates: tuple[int, ...]
) -> None:
    assert candidate_epochs(epochs) == candidates


def test_a_fold_s_epoch_is_that_of_the_least_mean_loss_over_the_others() -> None:
    losses = {0: [9.0, 1.0, 5.0], 3: [2.0, 4.0, 3.0], 4: [1.0, 8.0, 1.5]}
    assert crossfit(losses) == {0: 0, 3: 2, 4: 1}
    with_seeds = {
        fold: [np.add(values, 1), np.subtract(values, 1)] for fold, values in losses.items()
    }
    assert crossfit(with_seeds) == crossfit(losses)


def test_a_fold_s_own_patients_have_no_part_in_its_choice() -> None:
    rng = np.random.default_rng(0)
    losses = {fold: rng.uniform(size=(2, 10)) for fold in range(5)}
    chosen = crossfit(losses)
    for fold in losses:
        assert crossfit({**losses, fold: rng.uniform(size=(2, 10))})[fold] == chosen[fold]


def test_of_equal_candidates_the_earlier_is_chosen() -> None:
    assert crossfit({0: [1.0, 0.5, 0.5], 1: [0.5, 0.5, 1.0]}) == {0: 0, 1: 1}


def test_one_fold_has_no_other_to_choose_by() -> None:
    with pytest.raises(ValueError, match="1 fold"):
        crossfit({0: [1.0, 2.0]})
