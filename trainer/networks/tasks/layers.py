"""Layers of what is not a volume: a value in the label's unit, and what else is known of a patient.

Both hold statistics of the training patients as weights that no step changes
(`trainer.networks.tasks.statistics` sets them), so that they stand in a network's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from trainer.networks.layers import register


@register
class Value(layers.Layer):
    """Standardised values in the label's unit, float32 whatever the precision policy."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, input_shape: Any) -> None:
        shape = (input_shape[-1],)
        self.offset = self.add_weight(
            name="offset", shape=shape, initializer="zeros", trainable=False
        )
        self.scale = self.add_weight(name="scale", shape=shape, initializer="ones", trainable=False)

    def call(self, x: Any) -> Any:
        """(batch, n) → the same shape."""
        return x * self.scale + self.offset

    def standardised(self, value: Any) -> Any:
        """What `call` makes the values of."""
        return (value - self.offset) / self.scale

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
class Covariates(layers.Layer):
    """What is known of patients as columns, float32 whatever the precision policy.

    A number gives its standardised value, 0 where it is not known, and a mark that it is not; a
    category gives a column each, all 0 where none is known, and such a mark. A column that is the
    same for all training patients is 0 for everybody: its weight would stay as it was drawn, and a
    patient who differs would be answered by chance.

    Args:
      categories: how many each covariate has, in the order of the record; 0 of a number.
    """

    def __init__(self, categories: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.categories = tuple(categories)

    @property
    def columns(self) -> int:
        """How many columns it gives."""
        return sum((count or 1) + 1 for count in self.categories)

    def build(self, input_shape: Any) -> None:
        shape = (len(self.categories),)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros", trainable=False)
        self.deviation = self.add_weight(
            name="deviation", shape=shape, initializer="ones", trainable=False
        )
        self.learnt = self.add_weight(
            name="learnt", shape=(self.columns,), initializer="ones", trainable=False
        )

    def call(self, covariates: Any) -> Any:
        """(batch, covariates) as in records, NaN where one is not known → (batch, columns)."""
        covariates = ops.cast(covariates, "float32")
        known = ops.isfinite(covariates)
        whole = ops.where(known, covariates, ops.zeros_like(covariates))
        standardised = (whole - self.mean) / self.deviation
        columns = []
        for place, count in enumerate(self.categories):
            one = slice(place, place + 1)
            if count:
                found = ops.equal(whole[:, one], ops.arange(count, dtype="float32"))
                found = ops.logical_and(found, known[:, one])
                given = ops.any(found, axis=1, keepdims=True)
                values = ops.cast(found, "float32")
            else:
                given = known[:, one]
                values = ops.where(given, standardised[:, one], 0.0)
            columns += [values, 1.0 - ops.cast(given, "float32")]
        return ops.concatenate(columns, axis=1) * self.learnt

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], self.columns)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "categories": list(self.categories)}


def statistics_of(model: keras.Model) -> list[Any]:
    """The variables of a model that hold statistics of the training patients."""
    kinds = (Value, Covariates)
    return [v for layer in model.layers if isinstance(layer, kinds) for v in layer.variables]
