"""Which networks are tried on another compiler or backend, and what they are given."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Target
from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.config.network import HEADS, MODELS, NetworkConfig
from trainer.networks.registry import _NETWORKS

Array = npt.NDArray[Any]

ROWS = 8
# As many operations as at full width, and a sixteenth of the weights: one process stays below 4 GB.
WIDTH = 0.25
# LLVM's part of compiling is most of it (EfficientNet B0: 60 s, without 10), and no other sum.
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_CPP_MIN_LOG_LEVEL": "3"}


class Case(NamedTuple):
    """What is trained: a network, on its smallest grid, for a task."""

    network: NetworkConfig
    task: str = "binary"
    covariates: tuple[Covariate, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, slices), with something to join: three slices, or a last map of two."""
        rows, columns, slices = _NETWORKS[self.network.name].smallest
        if self.network.pooling == "attention":
            return 4 * rows, columns, slices
        return rows, columns, max(slices, 3)

    @property
    def target(self) -> Target:
        return TARGETS[self.task]


def of(name: str, **settings: Any) -> NetworkConfig:
    """A narrow network without dropout."""
    return NetworkConfig(name=name, width=WIDTH, dropout=0.0, **settings)


CASES = {
    **{name: Case(of(name)) for name in MODELS},
    **{f"slice_cnn-{head}": Case(of("slice_cnn", head=head)) for head in HEADS[1:]},
    "resnet10-attention": Case(of("resnet10", pooling="attention")),
    "resnet10-late": Case(of("resnet10", fusion="late")),
    "resnet10-symmetric": Case(of("resnet10", padding="symmetric")),
    **{f"seed_cnn-{task}-covariates": Case(of("seed_cnn"), task, AGE_AND_SITE) for task in TARGETS},
}


def waves(shape: tuple[int, ...], seed: int) -> Array:
    """uint8 (ROWS, *shape, 2): a wave each, of another direction and length.

    Noise looks alike in every patient once it is averaged: what normalisation then subtracts is
    nearly all there is, and magnifies every rounding.
    """
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    along = rng.uniform(-1.5, 1.5, (ROWS, 2, 3))
    phases = np.einsum("rcsa,pma->prcsm", places, along) + rng.uniform(0, 6, (ROWS, 1, 1, 1, 2))
    volumes: Array = np.round(127.5 + 127.5 * np.sin(phases)).astype(np.uint8)
    return volumes


def steady(model: keras.Model) -> None:
    """Weights with which a deep network does not magnify rounding, and none is 0 or 1.

    A residual network as it is drawn does: each block adds a branch as large as what it is added
    to. Here branches are a tenth (P. Goyal et al., 2017, begin with 0).
    """
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        if len(weight.shape) == 1:
            weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            branch = next((one for one in map(_normed, _inputs(layer)) if one), None)
            if branch is not None:
                branch.gamma.assign(0.1 * branch.gamma)


def _inputs(layer: keras.layers.Layer) -> list[Any]:
    """The layers whose outputs a layer is given."""
    given = layer._inbound_nodes[0].input_tensors
    return [tensor._keras_history.operation for tensor in given]


def _normed(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """The normalisation that a branch ends in, behind which channels may be weighed."""
    while isinstance(layer, (keras.layers.Dropout, keras.layers.Multiply)):
        layer = _inputs(layer)[0]
    return layer if isinstance(layer, keras.layers.BatchNormalization) else None
