"""One optimizer step on one batch, on every device that takes part.

    stored volumes → augmented (floats, stored units) → standardised → network → loss → gradients
                                                                                     ↓ summed
                                                     moving average of weights ← optimizer

What a restart needs is in `Trainee.variables`; all randomness follows from the seed and the step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.common.imports import without_notes
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.record import RecordSchema
from trainer.config.augment import PRESETS, AugmentConfig
from trainer.config.run import TrainConfig
from trainer.networks.augment import augment, mixup
from trainer.networks.compiled import own_optimizer
from trainer.networks.registry import build_model
from trainer.networks.stages import factors, prepared, stages_of
from trainer.networks.tasks.layers import statistics_of
from trainer.networks.tasks.statistics import set_statistics
from trainer.training.devices import uses_xla
from trainer.training.environment import Cluster
from trainer.training.kernels.fused import fused
from trainer.training.optimization import clips, make_optimizer
from trainer.training.tasks.objective import make_objective
from trainer.training.tasks.start import begin_from_covariates
from trainer.training.user_parts import Vary, own_augmentation, require_learnable


class FoldSetup(NamedTuple):
    """What a fold's training is made with, beside its config.

    Attributes:
      schema: of the records.
      voxel_mm: size of a voxel along (row, column, slice).
      precision: dtype policy, not "auto".
      steps_per_epoch: optimizer steps.
      weights: of the negative and the positive class in the loss, of a binary.
      seed: of weights, dropout and augmentation.
      target: what labels say.
      covariates: those that are learnt from, in the order of a batch's columns.
      targets: of the training patients, (n, outputs) as `data.targets.targets_of` has them; needed
        of all but a binary.
      known: their covariates, (n, covariates), NaN where one is not known; needed where there are.
    """

    schema: RecordSchema
    voxel_mm: tuple[float, float, float]
    precision: str
    steps_per_epoch: int
    weights: tuple[float, float]
    seed: int
    target: Target = PLAIN
    covariates: tuple[Covariate, ...] = ()
    targets: npt.NDArray[np.float32] | None = None
    known: npt.NDArray[np.float32] | None = None


class StepSeed(keras.random.SeedGenerator):
    """Draws that follow from a seed, the step and the replica alone: nothing to save or restore.

    Every draw within a step has a number of its own, given while the graph is made.
    """

    def __init__(self, seed: int) -> None:  # without a variable: not SeedGenerator's own
        self.seed = seed
        self.draws = 0
        self.place: Any = 0

    def at(self, step: Any, replica: Any, replicas: int) -> StepSeed:
        """Starts a step's draws."""
        self.draws = 0
        self.place = tf.cast(step, tf.int64) * replicas + tf.cast(replica, tf.int64)
        return self

    def next(self, ordered: bool = True) -> Any:
        """The seed of the next draw, (2,) uint32."""
        self.draws += 1
        number = (self.seed * 0x9E3779B1 + self.draws * 0x85EBCA6B) % 2**32
        return tf.stack([tf.constant(number, tf.uint32), tf.cast(self.place, tf.uint32)])


class Trainee:
    """A network in training.

    Attributes:
      network: stored volumes (and covariates) → answers, as trained on.
      evaluated: the network that is validated and kept: `network` itself, or one of its own where
        weights are averaged or several devices hold copies.
      optimizer: with its state.
      replicas: devices that share a batch, over all hosts.
      rows: what there is to say of the start: weights, stages.
    """

    def __init__(
        self,
        config: TrainConfig,
        setup: FoldSetup,
        *,
        strategy: tf.distribute.Strategy,
        cluster: Cluster,
    ) -> None:
        assert config.modalities is not None
        self.config, self.setup, self.strategy = config, setup, strategy
        self.cluster = cluster
        self.replicas = strategy.num_replicas_in_sync
        if config.batch_size < self.replicas:
            raise UsageError(
                f"--batch_size {config.batch_size}: {self.replicas} devices share a batch"
            )
        schema = setup.schema
        build = functools.partial(
            build_model,
            *(config.network, schema.shape, len(config.modalities), schema.dtype),
            target=setup.target,
            covariates=setup.covariates,
        )
        with strategy.scope():
            self.network = build(synchronized=self.replicas > 1)
            set_statistics(self.network, setup.targets, setup.known)
            if setup.covariates:
                begin_from_covariates(self.network, setup.target, setup.targets, setup.known)
            decay = config.optimizer.stage_decay
            self.rows = prepared(self.network, frozen=config.freeze, decay=decay)
            self.optimizer = make_optimizer(
                config.optimizer,
                epochs=config.epochs,
                steps_per_epoch=setup.steps_per_epoch,
                precision=setup.precision,
                replicas=self.replicas,
                own=own_optimizer(self.network),
                factors=factors(self.network, decay) if decay != 1 else (),
            )
            self.optimizer.build(self.network.trainable_variables)
        self._standardise = self.network.get_layer("standardise")
        encoded = [self.network.get_layer("known")] if setup.covariates else []
        self._encode: Any = encoded[0] if encoded else None
        begins = [layer.output for layer in (self._standardise, *encoded)]
        ends, value = self.network.output, None
        if setup.target.task == "regression":  # learnt from before it is brought to its unit
            ends, value = (self.network.get_layer(name) for name in ("logit", "value"))
            ends = ends.output
        self._trunk = keras.Model(begins if encoded else begins[0], ends)
        self._seed, self._mixing = StepSeed(setup.seed), StepSeed(setup.seed + 1)
        self._top = 1.0 if schema.dtype == "float16" else float(np.iinfo(schema.dtype).max)
        self._amounts, self._vary = self._augmentation()
        self._objective = make_objective(
            config, setup.target, weights=setup.weights, targets=setup.targets, value=value
        )
        self.evaluated = self.network
        self._averages: list[tf.Variable] = []
        if config.optimizer.ema is not None or self.replicas > 1:
            self.evaluated = build()
            prepared(self.evaluated, frozen=config.freeze, decay=decay)
        if config.network.has_own_code:
            require_learnable(self.evaluated, config.network, self._top)
        if config.optimizer.ema is not None:
            self._averages = [
                tf.Variable(variable.numpy(), trainable=False)
                for variable in self._averaged_variables(self.network)
            ]
        # Functions within functions only where they must be: no gradient is summed across them.
        self._replica_step: Any = self._learn
        if uses_xla(config.xla, self.replicas):
            self._replica_step = tf.function(self._learn, jit_compile=True)
        self._met: set[Any] = set()
        self._step: Any = tf.function(self._everywhere, reduce_retracing=True)
        self._augment: Any = tf.function(self._augmented, reduce_retracing=True)
        self._average: Any = tf.function(self._move_averages)
        if self._averages:
            _trace(self._average, tf.constant(0.0))

    @property
    def variables(self) -> list[Any]:
        """Everything that a step changes: weights, dropout's seeds, optimizer, moving averages."""
        return [*self.network.variables, *self.optimizer.variables, *self._averages]

    def state(self) -> list[npt.NDArray[Any]]:
        """The values of `variables`."""
        return [np.asarray(variable.numpy()) for variable in self.variables]

    def restore(self, values: Sequence[npt.NDArray[Any]]) -> None:
        """Takes `state`'s values back.

        Raises:
          ValueError: they are those of another network.
        """
        variables = self.variables
        found, needed = [v.shape for v in values], [tuple(v.shape) for v in variables]
        if found != needed:
            raise ValueError(f"{len(found)} arrays of other shapes than the network's")
        if any(value.dtype.kind not in "biuf" for value in values):
            raise ValueError("arrays that are no numbers")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def share_state(self) -> None:
        """Gives all hosts the chief's values: only it has read the checkpoint."""
        for variable, value in zip(self.variables, self.from_chief(self.state()), strict=True):
            variable.assign(value)

    def from_chief(self, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The chief's values of arrays that every host passes: sums to which only it adds."""
        wide = [one.astype(np.int64) if one.dtype.kind in "iub" else one for one in values]
        mine = [tf.constant(one if self.cluster.is_chief else np.zeros_like(one)) for one in wide]

        def reduce() -> Any:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group == 0
            parts = [tf.where(first, one, tf.zeros_like(one)) for one in mine]
            return [context.all_reduce(tf.distribute.ReduceOp.SUM, one) for one in parts]

        everywhere = tf.function(lambda: self.strategy.run(reduce))
        _trace(everywhere)
        summed = [self.strategy.experimental_local_results(one)[0] for one in everywhere()]
        return [one.numpy().astype(value.dtype) for one, value in zip(summed, values, strict=True)]

    def step(self, batch: Mapping[str, tf.Tensor], number: int, rows: int) -> tf.Tensor:
        """Learns from a batch.

        Args:
          batch: this host's rows of "volume", as stored, of "label", float32 (rows, outputs), and
            of "covariates", float32 (rows, covariates), where there are.
          number: of the step since training began, from 0.
          rows: patients in the whole batch, over all hosts.

        Returns:
          The batch's mean loss, float32 scalar; on a GPU it is not computed yet.
        """
        names = ("volume", "label", *(["covariates"] if self._encode else []))
        parts = tuple(self._split(batch[name]) for name in names)
        # What is compiled is compiled when a batch of its size is first met.
        first = batch["label"].shape not in self._met
        self._met.add(batch["label"].shape)
        given = parts, tf.constant(number, tf.int64), tf.constant(float(rows))
        with without_notes() if first else contextlib.nullcontext():
            if first:
                _trace(self._step, *given)
            loss = self._step(*given)
        if self._averages:
            decay = min(self.config.optimizer.ema or 0.0, (1 + number) / (10 + number))
            self._average(tf.constant(decay, tf.float32))
        return loss

    def augmented(self, volume: tf.Tensor, label: tf.Tensor, number: int) -> tf.Tensor:
        """What the first replica would make of stored volumes in step `number`: for pictures."""
        given = volume, (label,), tf.constant(number, tf.int64), tf.constant(0)
        with without_notes():
            _trace(self._augment, *given)
            shown, _ = self._augment(*given)
        return shown

    def settle(self) -> keras.Model:
        """Brings `evaluated` up to date and returns it."""
        if self.evaluated is not self.network:
            for target, source in zip(
                self.evaluated.variables, self.network.variables, strict=True
            ):
                target.assign(source.numpy())
            for target, average in zip(
                self._averaged_variables(self.evaluated), self._averages, strict=False
            ):
                target.assign(average)
        return self.evaluated

    def _split(self, tensor: tf.Tensor) -> Any:
        """A host's rows, dealt out to its devices."""
        local = self.strategy.extended._num_replicas_in_sync // len(self.cluster.workers)
        if local == 1:
            if self.replicas == 1:
                return tensor
            return self.strategy.experimental_distribute_values_from_function(lambda _: tensor)
        rows = int(tensor.shape[0])

        def part(context: Any) -> tf.Tensor:
            place = context.replica_id_in_sync_group % local
            return tensor[rows * place // local : rows * (place + 1) // local]

        return self.strategy.experimental_distribute_values_from_function(part)

    def _everywhere(self, parts: Any, number: Any, rows: Any) -> Any:
        losses = self.strategy.run(self._augment_and_learn, (parts, number, rows))
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _augment_and_learn(self, parts: Any, number: Any, rows: Any) -> Any:
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        volume, label, *covariates = parts
        beside = self._objective.parts(label)
        if covariates:
            beside = (self._encode(*covariates), *beside)
        volume, beside = self._augmented(volume, beside, number, replica)
        with fused(self.network, self.optimizer):
            return self._replica_step(volume, beside, rows)

    def _augmentation(self) -> tuple[AugmentConfig, Vary]:
        """The amounts of ours, and what varies volumes: (volume, seed=) → float32."""
        asked, setup = self.config.augment, self.setup
        if isinstance(asked, str):
            shape = (*setup.schema.shape, len(self.config.modalities or ()))
            own = own_augmentation(
                asked,
                shape=shape,
                voxel_mm=setup.voxel_mm,
                top=self._top,
                seed=lambda: StepSeed(setup.seed).at(0, 0, 1),
            )
            return PRESETS["none"], own
        return asked, functools.partial(
            augment, config=asked, voxel_mm=setup.voxel_mm, top=self._top
        )

    def _augmented(self, volume: Any, beside: Any, number: Any, replica: Any) -> Any:
        """Volumes varied, and mixed with what is beside them: covariates' columns, labels."""
        config, shape = self._amounts, volume.shape
        varied = tf.function(
            lambda given, step, place: self._vary(
                given, seed=self._seed.at(step, place, self.replicas)
            ),
            jit_compile=config.resamples or None,  # more than twice as fast on a CPU
        )
        volume = varied(volume, number, replica)
        if config.mixup_alpha:
            volume, *beside = mixup(
                volume,
                *beside,
                alpha=config.mixup_alpha,
                seed=self._mixing.at(number, replica, self.replicas),
            )
        return tf.ensure_shape(volume, shape), tuple(beside)

    def _learn(self, volume: Any, beside: Any, rows: Any) -> Any:
        """One replica's share of the step; its loss adds up to the batch's mean over replicas."""
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            given, label = self._standardise(volume), beside
            if self._encode:
                given, label = [given, beside[0]], beside[1:]
            each = self._objective.loss(self._trunk(given, training=True), *label)
            loss = tf.reduce_sum(each) / rows
            if penalties := self._trunk.losses:  # regularisers of a user's own layers
                loss += tf.add_n(penalties) / self.replicas
            scaled = self.optimizer.scale_loss(loss)
        # Zero for what a user's own network makes and does not use.
        gradients = tape.gradient(
            scaled,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if self.replicas > 1 and (scales or clips(self.optimizer)):
            # Norm and finiteness are the sum's; the optimizer then sums these equal parts.
            context = tf.distribute.get_replica_context()
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / self.replicas for gradient in summed]
        self.optimizer.apply(gradients, variables)
        return loss

    def _averaged_variables(self, network: keras.Model) -> list[Any]:
        """Weights and BatchNormalization's statistics: an average of one without the other fits
        neither. Frozen stages have none, nor what is standardised with: the average of a number
        with itself is rounded."""
        frozen = stages_of(network)[: self.config.freeze] if self.config.freeze else []
        kept = {id(v) for stage in frozen for layer in stage for v in layer.variables}
        kept |= {id(v) for v in statistics_of(network)}
        return [v for v in network.variables if "float" in v.dtype and id(v) not in kept]

    def _move_averages(self, decay: tf.Tensor) -> None:
        for average, variable in zip(
            self._averages, self._averaged_variables(self.network), strict=True
        ):
            value = tf.cast(variable.value, tf.float32)
            average.assign(average * decay + value * (1.0 - decay))


def _trace(function: Any, *given: Any) -> None:
    """Makes a function's graph for arguments like these, without calling it.

    Each network of a process has graphs of its own, made once. TensorFlow counts calls that make
    one by the line of Python that they were made of, and warns at the fifth network.
    """
    function.get_concrete_function(*given)
