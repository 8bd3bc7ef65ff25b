"""Statistics of the training patients that a network holds: of values, and of covariates."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from trainer.data.targets import mean_and_deviation
from trainer.networks.tasks.layers import Covariates, Value


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
            layer.learnt.assign(np.ones(layer.columns))
            columns = keras.ops.convert_to_numpy(layer(covariates))
            layer.learnt.assign(np.ptp(columns, axis=0) > 0 if len(columns) else 1)


def begin_with(model: keras.Model, weights: npt.NDArray[Any], intercepts: npt.NDArray[Any]) -> None:
    """Gives the last layer coefficients of covariates: training begins with what these say.

    Args:
      model: of `build_model` with covariates; changed in place.
      weights: (columns of covariates, outputs).
      intercepts: (outputs,).
    """
    by_name = {layer.name: layer for layer in model.layers}
    last = by_name.get("of_covariates") or by_name.get("logits") or by_name["logit"]
    if last.kernel.shape[-1] != weights.shape[-1]:  # a logit a class of two, the second's against
        weights, intercepts = (np.concatenate([-one, one], -1) / 2 for one in (weights, intercepts))
    kernel = np.array(keras.ops.convert_to_numpy(last.kernel))  # to be written in
    kernel[-len(weights) :] = weights
    last.kernel.assign(kernel)
    if last.use_bias:
        last.bias.assign(intercepts)


def _numbers(covariates: npt.NDArray[Any], categories: tuple[int, ...]) -> npt.NDArray[Any]:
    """The covariates without those that are categories, which are not standardised."""
    return np.where(np.array(categories) == 0, covariates, np.nan)


def _assign(mean: Any, deviation: Any, values: npt.NDArray[Any] | None, name: str) -> None:
    if values is None:
        raise ValueError(f"the network needs the {name} of its training patients")
    for variable, value in zip((mean, deviation), mean_and_deviation(values), strict=True):
        variable.assign(value)
