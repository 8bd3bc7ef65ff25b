"""Which voxels a network's answer for one volume came from, and whether the map means anything.

What is explained is one number: a logit, of a class among several the logit of that class against
the rest, log(p / (1 - p)), or a value. What else is known of the patient stays as it is.

Two methods, both on the network behind its `standardise` layer, in float32, in inference mode:

* Integrated gradients (Sundararajan et al. 2017): the voxel's value times the mean gradient on the
  straight way from a baseline to the volume. The baseline is 0 everywhere after standardisation:
  the mean of the foreground, and what the network gets for a modality that is not there. The
  attributions sum to logit(volume) − logit(baseline) ("completeness"); the gap is measured. Where
  the volume is background it equals the baseline, so background gets exactly 0.
* Grad-CAM (Selvaraju et al. 2017): the last feature map weighed by its channels' mean gradients. As
  coarse as that map; modalities that are joined before it cannot be told apart.

The check is Adebayo et al. 2018: a map that stays as it is when the weights are drawn anew shows
the image, not what the network has learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.common.terminal import bar
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from trainer.explain.attribution import MAP_METHODS, Attribution, Floats, mean_of
from trainer.explain.cases import Chosen, Explained, read_chosen
from trainer.explain.feature_map import last_feature_map
from trainer.networks.tasks.layers import statistics_of
from trainer.training.run_files import Run

_FIRST_STEPS, _MOST_STEPS = 16, 432  # 16, 48, 144, 432: each keeps the points of the one before
_BATCH_VOXELS = 1 << 19  # values of volumes that go through a network at a time


class Explainer:
    """Attributions of one network; its gradient is traced once.

    Args:
      model: of `explainable` or `randomised`.
      method: one of `MAP_METHODS`.
      target: what the network answers.
    """

    def __init__(self, model: keras.Model, method: str, target: Target = PLAIN) -> None:
        assert method in MAP_METHODS
        self._integrates = method == "integrated_gradients"
        self._standardise = model.get_layer("standardise")
        self._task = target.task
        self._takes = len(model.inputs) - 1  # covariates beside the volume
        inputs = [self._standardise.output, *model.inputs[1:]]
        start = inputs if self._takes else inputs[0]
        self._trunk = keras.Model(start, model.output)
        # Of one among several, and kept beside the volume: arguments, so that all share one trace.
        self._output = tf.constant(0)
        self._known = tf.zeros((1, 0))
        if not self._integrates:
            self._map = last_feature_map(model)
            self._both = keras.Model(start, [self._map.tensor, model.output])
            return
        known = model.inputs[1].shape[1] if self._takes else 0
        signature = (
            *(tf.TensorSpec((1, *model.inputs[0].shape[1:])), tf.TensorSpec((None,))),
            *(tf.TensorSpec((1, known)), tf.TensorSpec((), tf.int32)),
        )
        self._gradients = tf.function(
            self._summed_gradients, input_signature=signature
        ).get_concrete_function()

    def __call__(
        self, volume: npt.NDArray[Any], known: Sequence[float] = (), *, output: int = 0
    ) -> Attribution:
        """The attribution of one answer.

        Args:
          volume: (row, column, slice, channel), as stored.
          known: the patient's covariates that the network takes, as stored.
          output: which class or finding is explained; 0 of a network with one answer.
        """
        given = tf.cast(self._standardise(volume[None]), tf.float32)
        self._output = tf.constant(output)
        self._known = tf.constant([list(known)], tf.float32, shape=(1, len(known)))
        return self._integrated(given) if self._integrates else self._cam(given)

    def _inputs(self, points: tf.Tensor, known: tf.Tensor) -> Any:
        """What the network behind `standardise` takes, for (n, row, column, slice, channel)."""
        if not self._takes:
            return points
        return [points, tf.repeat(known, tf.shape(points)[0], axis=0)]

    def _explained(self, answers: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        """Of answers (n, outputs) the one number each that is explained, (n, 1)."""
        if self._task in ("binary", "regression"):
            return answers
        own = tf.gather(answers, [output], axis=1)
        if self._task == "multilabel":
            return own
        is_own = tf.range(tf.shape(answers)[1]) == output
        others = tf.where(is_own, answers.dtype.min, answers)
        return own - tf.reduce_logsumexp(others, axis=1, keepdims=True)

    def _attribution(self, **found: Any) -> Attribution:
        return Attribution(**found, one_sided=self._task in ("multiclass", "regression"))

    def _integrated(self, given: tf.Tensor) -> Attribution:
        """Integrated gradients from the baseline 0 to (1, row, column, slice, channel) float32.

        The midpoint rule, with three times the points until the attributions add up.
        """
        size = max(1, min(16, _BATCH_VOXELS // math.prod(given.shape[1:])))

        def total(places: Floats) -> Floats:
            summed = np.zeros(given.shape[1:])
            for at in range(0, len(places), size):
                part = tf.constant(places[at : at + size], tf.float32)
                summed += self._gradients(given, part, self._known, self._output).numpy()
            return summed

        def answer(x: tf.Tensor) -> float:
            answers = self._trunk(self._inputs(x, self._known), training=False)
            return float(self._explained(answers, self._output)[0, 0])

        logit, baseline = answer(given), answer(tf.zeros_like(given))
        volume = given[0].numpy().astype(np.float64)
        steps = _FIRST_STEPS
        summed = total((np.arange(steps) + 0.5) / steps)
        while True:
            values = volume * summed / steps
            found = self._attribution(values=values, logit=logit, baseline=baseline, steps=steps)
            if found.complete or steps >= _MOST_STEPS:
                return found
            new = (np.arange(steps)[:, None] + np.array([1, 5]) / 6).ravel() / steps
            summed, steps = summed + total(new), 3 * steps

    def _summed_gradients(
        self, given: tf.Tensor, places: tf.Tensor, known: tf.Tensor, output: tf.Tensor
    ) -> tf.Tensor:
        """The logit's gradients at parts (n,) of the way to a volume, added up."""
        points = given * tf.reshape(places, (-1, 1, 1, 1, 1))
        with tf.GradientTape() as tape:
            tape.watch(points)
            answers = self._trunk(self._inputs(points, known), training=False)
            logits = self._explained(answers, output)
        return tf.reduce_sum(tape.gradient(logits, points), axis=0)

    def _cam(self, given: tf.Tensor) -> Attribution:
        """Grad-CAM of (1, row, column, slice, channel) float32, before its ReLU.

        Slices or modalities that the network folds into its batch each get a map of their own.
        """
        with tf.GradientTape() as tape:
            tape.watch(given)
            features, answers = self._both(self._inputs(given, self._known), training=False)
            logit = self._explained(answers, self._output)
        gradient = tape.gradient(logit, features).numpy().astype(np.float64)
        features = features.numpy().astype(np.float64)
        positions = tuple(range(1, features.ndim - 1))
        weights = gradient.mean(axis=positions, keepdims=True)
        cam = (features * weights).sum(axis=-1)  # (folded, row, column[, slice])
        shape, starts, strides = tuple(given.shape[1:4]), self._map.starts, self._map.strides
        if features.ndim == 4:  # every slice for itself
            cam = np.moveaxis(cam.reshape(-1, shape[2], *cam.shape[1:]), 1, -1)
            starts, strides = (*starts, 0.0), (*strides, 1.0)
        cam = np.moveaxis(cam, 0, -1)
        if cam.shape[-1] not in (1, given.shape[-1]):
            raise UsageError(
                f"--method gradcam: the last feature map has {cam.shape[-1]} parts a volume, not "
                f"1 or its {given.shape[-1]} modalities; integrated_gradients needs none"
            )
        for axis, length in enumerate(shape):
            cam = _stretched(cam, axis, length, starts[axis], strides[axis])
        return self._attribution(values=cam, logit=float(logit[0, 0]))


def explain(
    trained: Run, data: str, manifest: Manifest, chosen: Sequence[Chosen], *, method: str
) -> list[Explained]:
    """The maps of some patients, in their order.

    Where it was not chosen what is explained, it is the class, or the finding, that the members
    which explain a patient find most likely together.

    Raises:
      ContractError: records or members are not what manifest and run.json say.
    """
    covariates = [one.name for one in trained.covariates]
    cases = read_chosen(
        data, manifest, chosen, modalities=trained.modalities, covariates=covariates
    )
    target, several = trained.target, trained.target.outputs > 1
    answers = _answers(trained, chosen, cases) if several else {}
    outputs = {
        one.patient_id: int(answers[one.patient_id].argmax())
        if one.output is None and several
        else one.output or 0
        for one in chosen
    }
    found: dict[str, list[Attribution]] = {one.patient_id: [] for one in chosen}
    random: dict[str, list[Attribution]] = {one.patient_id: [] for one in chosen}
    with bar("explaining", sum(len(one.members) for one in chosen)) as step:
        for place in range(len(trained.members)):
            mine = [one.patient_id for one in chosen if place in one.members]
            if not mine:
                continue
            network, random_network = _networks(trained, place)
            explain_one = Explainer(network, method, target)
            explain_random = Explainer(random_network, method, target)
            for patient_id in mine:
                case, output = cases[patient_id], outputs[patient_id]
                for maps, of_network in ((found, explain_one), (random, explain_random)):
                    maps[patient_id].append(of_network(case.volume, case.covariates, output=output))
                step()
    return [
        Explained(
            chosen=one,
            case=cases[one.patient_id],
            found=mean_of(found[one.patient_id]),
            random=mean_of(random[one.patient_id]),
            output=outputs[one.patient_id],
            predicted=int(answers[one.patient_id].argmax()) if several else 0,
        )
        for one in chosen
    ]


def _answers(
    trained: Run, chosen: Sequence[Chosen], cases: Mapping[str, PreparedCase]
) -> dict[str, Floats]:
    """Mean answers (outputs,) of the members that explain a patient."""
    each: dict[str, list[Floats]] = {one.patient_id: [] for one in chosen}
    for place in range(len(trained.members)):
        mine = [one.patient_id for one in chosen if place in one.members]
        network = explainable(trained.load_member(place)) if mine else None
        for patient_id in mine:
            assert network is not None
            given = [cases[patient_id].volume[None]]
            if trained.covariates:
                given.append(np.array([cases[patient_id].covariates], np.float32))
            answers = network(given if len(given) > 1 else given[0], training=False)
            each[patient_id].append(answers.numpy()[0].astype(np.float64))
    return {patient_id: np.mean(answers, axis=0) for patient_id, answers in each.items()}


def _networks(trained: Run, place: int) -> tuple[keras.Model, keras.Model]:
    """A member in float32, and one like it with weights drawn anew."""
    network = trained.load_member(place)
    if not trained.has_own_code:
        return explainable(network), randomised(network, seed=place)
    keras.utils.set_random_seed(place)
    return network, _with_statistics_of(network, trained.fresh_network())


def explainable(model: keras.Model) -> keras.Model:
    """The same network, all in float32: gradients of single voxels vanish in float16."""
    inputs = keras.layers.InputLayer
    if all(x.compute_dtype == "float32" for x in model.layers if not isinstance(x, inputs)):
        return model
    wide = _clone(model)
    wide.set_weights(model.get_weights())
    return wide


def randomised(model: keras.Model, seed: int) -> keras.Model:
    """A network of the same layers whose weights are those before training, of a given seed."""
    keras.utils.set_random_seed(seed)
    return _with_statistics_of(model, _clone(model))


def _with_statistics_of(model: keras.Model, random: keras.Model) -> keras.Model:
    """The second with the first's statistics of patients, which are no weights that are learnt."""
    for mine, theirs in zip(statistics_of(random), statistics_of(model), strict=True):
        mine.assign(theirs)
    return random


def _clone(model: keras.Model) -> keras.Model:
    """Fresh layers with fresh weights, in float32."""

    def in_float32(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    return keras.models.clone_model(model, clone_function=in_float32)


def _stretched(values: Floats, axis: int, length: int, start: float, stride: float) -> Floats:
    """Linear interpolation along an axis from points start + i · stride to 0 … length − 1."""
    count = values.shape[axis]
    points = start + stride * np.arange(count)
    weights = [np.interp(np.arange(length), points, row) for row in np.eye(count)]
    return np.moveaxis(np.tensordot(values, np.array(weights), axes=(axis, 0)), -1, axis)
