"""A user's augmentation and loss: called as promised, and refused in one line where they misfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from tests.datasets import make_schema
from trainer.config.run import TrainConfig
from trainer.training.environment import Cluster
from trainer.training.optimization import cross_entropy, weighted_loss
from trainer.training.step import FoldSetup, StepSeed, Trainee
from trainer.training.user_parts import Vary, own_augmentation, own_loss

Write = Callable[[str, str], Path]
SHAPE = (6, 5, 4, 2)
AUGMENT = """
import keras, numpy as np
from keras import ops

def noise(volume, seed, top, voxel_mm):
    drawn = keras.random.uniform(ops.shape(volume), seed=seed) * sum(voxel_mm)
    return ops.where(volume > 0, volume * drawn * top, 0)
class Mirror:
    def __call__(self, volume, seed):
        return ops.flip(volume, axis=2)
def shape(volume, seed): return volume[:, 1:]
def nan(volume, seed): return volume / 0
def background(volume, seed): return volume + 1
def unseeded(volume, seed): return volume * keras.random.uniform((1,), 0.5, 1)
def numpys(volume, seed): return volume * float(np.random.default_rng().uniform(0.5, 1))
def fails(volume, seed):
    return ops.reshape(volume, (7, 11))
def few(volume): return volume
def exits(volume, seed): raise SystemExit(0)
class Needs:
    def __init__(self, amount): ...
"""
LOSS = """
import keras
from keras import ops

def squared(label, logit): return (label - ops.sigmoid(logit)) ** 2
def flat(label, logit): return ops.squeeze(squared(label, logit), -1)
def asked(label, logit, from_logits=False):
    return keras.losses.binary_crossentropy(label, logit, from_logits=from_logits)
class Mine(keras.losses.Loss):
    def call(self, label, logit): return squared(label, logit)
focal = keras.losses.BinaryFocalCrossentropy(from_logits=True)
probabilities = keras.losses.BinaryCrossentropy()
def mean(label, logit): return ops.mean(squared(label, logit))
def log(label, logit): return -ops.log(logit) * label - ops.log(1 - logit) * (1 - label)
def constant(label, logit): return label
def fails(label, logit): return label["x"]
"""


def _augmentation(name: str) -> Vary:
    return own_augmentation(
        f"own_aug:{name}",
        shape=SHAPE,
        voxel_mm=(1.0, 2.0, 3.0),
        top=255.0,
        seed=lambda: StepSeed(1).at(0, 0, 1),
    )


def test_an_augmentation_gets_stored_units_the_steps_seed_and_what_it_asks_for(
    user_module: Write,
) -> None:
    user_module("own_aug.py", AUGMENT)
    volume = np.zeros((3, *SHAPE), np.uint8)
    volume[:, 1:3] = 100
    vary = _augmentation("noise")
    found = np.asarray(vary(volume, seed=StepSeed(1).at(4, 0, 1)))
    drawn = keras.random.uniform(volume.shape, seed=StepSeed(1).at(4, 0, 1))
    np.testing.assert_allclose(found, volume * np.asarray(drawn) * 6 * 255, rtol=1e-5)


def test_an_augmentation_may_be_a_class(user_module: Write) -> None:
    user_module("own_aug.py", AUGMENT)
    volume = np.random.default_rng(0).integers(0, 255, (2, *SHAPE)).astype(np.uint8)
    found = _augmentation("Mirror")(volume, seed=StepSeed(1).at(0, 0, 1))
    np.testing.assert_array_equal(found, volume[:, :, ::-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "gives 2x5x5x4x2 for 2x6x5x4x2, the same is needed"),
        ("nan", "not finite"),
        ("background", "makes something of a volume of zeros"),
        ("unseeded", "without the seed that it is given"),
        ("numpys", "without the seed that it is given"),
        ("fails", r"it fails: ValueError: .*\(own_aug\.py, line 17\)$"),
        ("few", "it fails: TypeError: "),
        ("exits", "it fails: SystemExit: 0"),
        ("Needs", "it fails: TypeError: .*amount"),
    ],
)
def test_an_augmentation_that_misfits_is_refused_in_one_line(
    user_module: Write, name: str, message: str
) -> None:
    user_module("own_aug.py", AUGMENT)
    with pytest.raises(UsageError, match=message) as found:
        _augmentation(name)
    assert str(found.value).startswith(f"--augment own_aug:{name}: ")
    assert "\n" not in str(found.value)


LABEL = np.array([[0.0], [1.0], [1.0]], np.float32)
LOGIT = np.array([[0.5], [-2.0], [3.0]], np.float32)


@pytest.mark.parametrize("name", ["squared", "flat", "Mine"])
def test_a_loss_is_a_function_or_keras_own_form_and_gives_one_value_a_patient(
    user_module: Write, name: str
) -> None:
    user_module("own_loss.py", LOSS)
    found = own_loss(f"own_loss:{name}")(LABEL, LOGIT)
    np.testing.assert_allclose(found, (LABEL - 1 / (1 + np.exp(-LOGIT)))[:, 0] ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["keras.losses:binary_crossentropy", "keras.losses:BinaryCrossentropy", "own_loss:asked"],
)
def test_a_loss_that_can_take_logits_is_told_that_it_gets_them(
    user_module: Write, name: str
) -> None:
    user_module("own_loss.py", LOSS)
    np.testing.assert_allclose(own_loss(name)(LABEL, LOGIT), cross_entropy(LABEL, LOGIT), rtol=1e-6)


def test_class_weights_and_smoothing_apply_to_a_loss_of_ones_own(user_module: Write) -> None:
    user_module("own_loss.py", LOSS)
    settings: dict[str, Any] = {"smoothing": 0.2, "weights": (0.5, 1.5)}
    loss = own_loss("own_loss:squared")
    found = weighted_loss(LABEL, LOGIT, **settings, loss=loss)
    moved = LABEL * 0.8 + 0.1
    each = (moved - 1 / (1 + np.exp(-LOGIT)))[:, 0] ** 2
    np.testing.assert_allclose(found, np.array([0.5, 1.5, 1.5]) * each, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", "gives one number for 6 patients; one value each is needed"),
        ("log", "loss nan, slope .* at logit -30, label 0; it gets logits"),
        ("constant", "does not depend on the logit"),
        ("probabilities", "from_logits=True is needed"),
        ("fails", r"it fails: .*\(own_loss\.py, line 16\)$"),
    ],
)
def test_a_loss_that_misfits_is_refused_in_one_line(
    user_module: Write, name: str, message: str
) -> None:
    user_module("own_loss.py", LOSS)
    with pytest.raises(UsageError, match=message) as found:
        own_loss(f"own_loss:{name}")
    assert str(found.value).startswith(f"--loss own_loss:{name}: ")
    assert "\n" not in str(found.value)


@pytest.mark.slow  # traces a step
def test_a_step_learns_from_the_users_volumes_by_the_users_loss(user_module: Write) -> None:
    user_module("own_aug.py", AUGMENT)
    user_module("own_loss.py", LOSS)
    shape = (10, 10, 10)
    config = {
        "network": {"name": "seed_cnn", "width": 0.125, "dropout": 0.0},
        **{"modalities": ["T1w"], "batch_size": 2, "augment": "own_aug:Mirror"},
        "loss": "own_loss:squared",
    }
    keras.utils.set_random_seed(1)
    trainee = Trainee(
        TrainConfig.from_json(config),
        FoldSetup(
            schema=make_schema(shape=shape),
            voxel_mm=(1.0, 1.0, 1.0),
            precision="float32",
            steps_per_epoch=1,
            weights=(1.0, 1.0),
            seed=1,
        ),
        strategy=tf.distribute.get_strategy(),
        cluster=Cluster(),
    )
    volume = np.random.default_rng(0).integers(0, 255, (2, *shape, 1)).astype(np.uint8)
    label = np.array([[0.0], [1.0]], np.float32)
    batch = {"volume": tf.constant(volume), "label": tf.constant(label)}
    shown = trainee.augmented(batch["volume"], batch["label"], 0)
    np.testing.assert_array_equal(shown, volume[:, :, ::-1])
    logit = np.asarray(trainee.network(volume[:, :, ::-1], training=True))
    wanted = np.mean((label - 1 / (1 + np.exp(-logit))) ** 2)
    assert float(trainee.step(batch, 0, 2)) == pytest.approx(wanted, rel=1e-4)
