"""Statistics of the training patients that a network holds: of values, and of covariates."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.networks.tasks.layers import Covariates, Value

_SMALLEST = 1e-6  # of the mean: what float32 cannot tell from a constant


def set_statistics(
    model: keras.Model,
    targets: npt.NDArray[Any] | None = None,
    covariates: npt.NDArray[Any] | None = None,
) -> None:
    """Gives a network what its layers standardise with; of training patients alone.

    Args:
      model: of `build_model`; changed in place.
      targets: (n, outputs) values in the label's unit, NaN unknown; needed by a regression alone.
      covariates: (n, covariates) as in records, NaN unknown; needed where a model takes some.

    Raises:
      ValueError: the model needs an array that is not given.
    """
    for layer in model.layers:
        if isinstance(layer, Value):
            _assign(layer.offset, layer.scale, targets, "targets")
        elif isinstance(layer, Covariates):
            given = None if covariates is None else _numbers(covariates, layer.categories)
            _assign(layer.mean, layer.deviation, given, "covariates")


def _numbers(covariates: npt.NDArray[Any], categories: tuple[int, ...]) -> npt.NDArray[Any]:
    """The covariates without those that are categories, which are not standardised."""
    return np.where(np.array(categories) == 0, covariates, np.nan)


def _assign(mean: Any, deviation: Any, values: npt.NDArray[Any] | None, name: str) -> None:
    if values is None:
        raise ValueError(f"the network needs the {name} of its training patients")
    for variable, value in zip((mean, deviation), mean_and_deviation(values), strict=True):
        variable.assign(value)


def mean_and_deviation(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation (of the patients themselves: divided by n) of each column.

    0 and 1 of a column of which nothing is known; 1 in place of the deviation of a constant one.

    Args:
      values: (n, columns), NaN unknown.
    """
    wide = np.asarray(values, np.float64)
    known = np.isfinite(wide)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, wide, 0.0).sum(axis=0) / count
    centred = np.where(known, wide - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    constant = deviation <= _SMALLEST * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)
