"""Networks in Keras 3, `keras.ops` only: stored volume in, logits or a value out.

    stored integers (batch, row, column, slice, channel)
      → Standardise: each channel over its foreground, float32, in the graph
      → a network of the registry: features (batch, n)
      → what else is known of the patient, as columns beside them
      → Dense(outputs): float32 logits (batch, outputs), whatever the precision policy

Sigmoid and softmax are outside: losses take logits, and serving calibrates before it squashes. Of
values the last layer is standardised; a layer behind it gives them in the label's unit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.network import NetworkConfig
from trainer.config.user_code import is_reference
from trainer.networks.blocks import Layout, Parts
from trainer.networks.compiled import keep_optimizer
from trainer.networks.densenet import densenet121
from trainer.networks.efficientnet import efficientnet
from trainer.networks.foreign import own_logit
from trainer.networks.graph import calls
from trainer.networks.layers import BatchToSequence, ChannelsToBatch, SlicesToBatch
from trainer.networks.resnet import resnet, se_resnet50
from trainer.networks.seed_cnn import seed_cnn
from trainer.networks.slices import slice_cnn, slice_efficientnet_b0
from trainer.networks.tasks.head import logit
from trainer.networks.tasks.layers import Covariates, Value
from trainer.networks.weights import start_weights
from trainer.networks.weights.encoder_weights import load_encoder_weights

_SMALLEST_STD = 1e-4  # of the mean: below it a foreground counts as constant (float32 rounding)


@keras.saving.register_keras_serializable("voxelbeam")
class Standardise(layers.Layer):
    """Gives each channel zero mean and unit deviation over its foreground (voxels > 0).

    Background stays exactly 0; so does a channel without foreground or with a constant one.
    Statistics are float32 and two-pass, whatever the stored dtype or the precision policy, and
    belong to one volume: nothing is learnt, nothing leaks from patient to patient.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, volume: Any) -> Any:
        """(batch, row, column, slice, channel), any numeric dtype → the same shape, float32."""
        values = ops.cast(volume, "float32")
        foreground = ops.cast(values > 0, "float32")
        count = ops.maximum(_spatial_sum(foreground), 1.0)
        mean = _spatial_sum(values * foreground) / count
        centred = (values - mean) * foreground
        variance = _spatial_sum(ops.square(centred)) / count
        floor = ops.maximum(_SMALLEST_STD * mean, keras.config.epsilon() ** 2)
        return centred / ops.maximum(ops.sqrt(variance), floor)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def _spatial_sum(values: Any) -> Any:
    """Sum over row, column and slice, kept as axes of 1.

    One axis after the other: TensorFlow adds all voxels of a volume into one float32 in turn,
    which is off by 1e-4 and more for a million of them.
    """
    for axis in (3, 2, 1):
        values = ops.sum(values, axis=axis, keepdims=True)
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """An entry of the registry.

    Attributes:
      features: standardised volume → features (batch, n).
      smallest: least voxels (rows, columns, slices). Where convolutions keep the size, any grid
        could be built; the least is then the one on which all halvings but the last still halve.
    """

    features: Callable[[Any, Parts], Any]
    smallest: tuple[int, int, int]


_NETWORKS = {
    "seed_cnn": _Network(features=seed_cnn, smallest=(10, 10, 10)),
    "resnet10": _Network(features=resnet((1, 1, 1, 1)), smallest=(5, 5, 5)),
    "resnet18": _Network(features=resnet((2, 2, 2, 2)), smallest=(5, 5, 5)),
    "resnet34": _Network(features=resnet((3, 4, 6, 3)), smallest=(5, 5, 5)),
    "resnet50": _Network(features=resnet((3, 4, 6, 3), bottleneck=True), smallest=(5, 5, 5)),
    "se_resnet50": _Network(features=se_resnet50, smallest=(9, 9, 9)),
    "densenet121": _Network(features=densenet121, smallest=(9, 9, 9)),
    **{
        f"efficientnet_b{size}": _Network(features=efficientnet(size), smallest=(9, 9, 9))
        for size in range(8)
    },
    "slice_cnn": _Network(features=slice_cnn, smallest=(5, 5, 1)),
    "slice_efficientnet_b0": _Network(features=slice_efficientnet_b0, smallest=(9, 9, 1)),
}


def build_model(
    network: NetworkConfig | str,
    shape: tuple[int, int, int],
    channels: int,
    input_dtype: str = "uint8",
    *,
    synchronized: bool = False,
    target: Target = PLAIN,
    covariates: Sequence[Covariate] = (),
) -> keras.Model:
    """Builds a network of the registry, or a user's own, with fresh weights.

    It computes under the current precision policy.

    Args:
      network: which one, with its options; a name alone takes the defaults.
      shape: (rows, columns, slices) of the grid.
      channels: modalities a volume has.
      input_dtype: the stored voxel type; volumes go in as they are stored.
      synchronized: take batch statistics over all replicas of a distributed step.
      target: what is answered.
      covariates: what else a patient is judged by, in the order of the second input.

    Returns:
      A functional model: (batch, row, column, slice, channel) → float32 (batch, outputs), logits
      or a value in the label's unit. With covariates its inputs are `[volume, covariates]`, the
      second (batch, covariates) float32 as in records, NaN where one is not known;
      `trainer.networks.tasks.statistics.set_statistics` gives it what they and values are
      standardised with. What follows the layer "standardise" (and "covariates") can be called on
      its own: `keras.Model(model.get_layer("standardise").output, model.output)`. Its
      attribute `started_from` says in a line what was taken of a file of weights; None without one.

    Raises:
      UsageError: an unknown name, a grid too small for the network, weights that do not fit,
        Keras set to channels first, or a user's own network that does not fit (`own_logit`).
    """
    config = NetworkConfig(name=network) if isinstance(network, str) else network
    own = is_reference(config.name)
    entry = None if own else _NETWORKS[config.name]
    if entry and any(length < least for length, least in zip(shape, entry.smallest, strict=True)):
        raise UsageError(
            f"{config.name} needs at least {_in_words(entry.smallest)}, "
            f"the dataset's grid is {'x'.join(map(str, shape))}"
        )
    if (order := keras.config.image_data_format()) != "channels_last":
        raise UsageError(
            f"Keras's image_data_format is {order}, of a module's set_image_data_format or of "
            "~/.keras/keras.json: volumes are channels_last"
        )
    config.require_files()
    volume = keras.Input((*shape, channels), dtype=input_dtype, name="volume")
    x = Standardise(name="standardise")(volume)
    start = None if config.weights is None else start_weights.read(config.weights)
    layout = Layout(padding=config.padding or "same")
    if start is not None:
        layout = start_weights.layout_of(start, config)
    parts = Parts(config=config, synchronized=synchronized, layout=layout)
    inputs, known = [volume], None
    if covariates:
        inputs.append(keras.Input((len(covariates),), dtype="float32", name="covariates"))
        counts = [len(one.categories) for one in covariates]
        known = Covariates(counts, name="known")(inputs[1])
    theirs = None
    if entry is None:
        answer, theirs = own_logit(x, parts, target=target, known=known)
    elif config.fusion == "late":
        # Joined end to end, not averaged: the logit can then weigh a modality's features by
        # which modality they are of, which is all that a shared network cannot know.
        x = entry.features(ChannelsToBatch(name="modalities")(x), parts)
        features = layers.Flatten(name="fused")(BatchToSequence(channels)(x))
        answer = logit(features, known, target.outputs)
    else:
        answer = logit(entry.features(x, parts), known, target.outputs)
    if target.task == "regression":
        answer = Value(name="value")(answer)
    name = config.name.rpartition(":")[2].replace(".", "_")
    model = keras.Model(inputs if covariates else volume, answer, name=name)
    if theirs is not None:
        keep_optimizer(theirs, model)
    if not own:
        model.started_from = None
    if config.encoder_weights is not None and config.encoder is not None:
        model.started_from = start_weights.load_encoder(model, config.encoder_weights)
    elif config.encoder_weights is not None:
        load_encoder_weights(model, config.encoder_weights)
        model.started_from = f"the encoder's of {config.encoder_weights}"
    if start is not None:
        model.started_from = start_weights.load(model, start, config)
    return model


def rebuilt_model(
    network: NetworkConfig,
    shape: tuple[int, int, int],
    channels: int,
    input_dtype: str,
    *,
    target: Target = PLAIN,
    covariates: Sequence[Covariate] = (),
) -> keras.Model:
    """`build_model` for a network whose weights are there already: none are read to start from.

    Raises:
      UsageError: as `build_model`.
    """
    started = dataclasses.replace(network, weights=None, encoder_weights=None)
    return build_model(started, shape, channels, input_dtype, target=target, covariates=covariates)


def _in_words(smallest: tuple[int, int, int]) -> str:
    if len(set(smallest)) == 1:
        return f"{smallest[0]} voxels along every axis"
    return f"{'x'.join(map(str, smallest))} voxels (rows, columns, slices)"


def activation_bytes(model: keras.Model, batch_size: int, precision: str, *, gpu: bool) -> int:
    """Estimates what a training step holds in memory, for a guard that must not try it out.

    Counted are every layer's output once (the backward pass needs most of them), two more of the
    largest (gradients on their way), and four float32 values a parameter: weight, gradient and
    Adam's two. Not counted are the libraries themselves and convolution workspaces. On a CPU the
    growth with the batch is held to a factor of 1.5 by tests/trainer/networks/test_networks.py.

    Args:
      model: of `build_model`, under whatever policy.
      batch_size: patients a step, on one device.
      precision: "float32", or a mixed policy, which on a GPU keeps activations in 2 bytes.
      gpu: whether it is one that works; without, convolutions hold float32 in every precision.
    """
    held, largest, items = 0, 0, batch_size
    for layer, inputs, outputs in calls(model):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        size = sum(math.prod(n or 1 for n in output.shape[1:]) for output in outputs)
        if isinstance(layer, (ChannelsToBatch, SlicesToBatch, BatchToSequence)):
            items = items * math.prod(inputs[0].shape[1:]) // size
        wide = precision == "float32" or not gpu or isinstance(layer, Standardise)
        bytes_ = items * size * (4 if wide else 2)
        held += bytes_
        largest = max(largest, bytes_)
    return held + 2 * largest + 16 * int(model.count_params())
