"""Turns training runs into one SavedModel: every member of every run, ensembled in the graph.

    serving_default   examples [batch] string (serialized tf.Examples)
                      -> patient_id [batch] string, probability, logit [batch] float32
    volumes           volumes [batch, row, column, slice, channel] in the stored dtype, all channels
                      -> probability, logit [batch] float32

The SavedModel loads with TensorFlow alone. It is verified against the Keras members before it
takes its name, so a MODEL that exists is a MODEL that answers as trained.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core import cli
from beam_jobs.core.record import ContractError, RecordSchema
from serving.bundle import CARD_NAME, CONTRACT_NAME, ENSEMBLE, Contract, load_bundle
from serving.model_card import model_card
from trainer.runs import Run

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

PROG = "python -m serving.export"

# Of a logit, relative where it is above 1: the written graph runs the very operations of the
# members, so that 0 is what was measured; the rest is for other kernels than this machine's.
TOLERANCE = 1e-6


def main(argv: Sequence[str]) -> int:
    """Loads the runs, exports, prints what was made."""
    args = _parse(argv)
    output = Path(args.output)
    _require_free(output, overwrite=args.overwrite)
    for path in args.runs:
        if not Path(path).is_dir():
            raise cli.UsageError(f"--runs: {path} is not a directory")
    runs = [Run.load(path) for path in args.runs]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the graph is the same; verify on the CPU's arithmetic
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # start-up chatter; errors still raise
    contract = contract_of(runs)
    difference = export(runs, contract, output)
    print(
        f"{output}: {len(contract.members)} members ({contract.ensemble}), "
        f"{', '.join(contract.modalities)}; logits within {difference:.1g} of Keras"
    )
    return cli.EXIT_OK


def contract_of(runs: Sequence[Run]) -> Contract:
    """The contract of the model that `runs` make together.

    Raises:
      ContractError: runs that do not take the same volumes; the message names each field.
    """
    import keras
    import tensorflow as tf

    first = runs[0]
    for run in runs[1:]:
        _require_same_volumes(first, run)
    names = _names([run.directory for run in runs])
    return Contract(
        schema=first.schema,
        spec=dict(first.spec),
        modalities=first.modalities,
        members=tuple(
            {
                "run": name,
                "model": run.model,
                "precision": run.precision,
                "fold": member.fold,
                "seed": member.seed,
                "best_epoch": member.best_epoch,
                "val_auc": member.val_auc,
            }
            for name, run in zip(names, runs, strict=True)
            for member in run.members
        ),
        ensemble=ENSEMBLE,
        temperature=1.0,
        prevalence=float(np.mean([run.prevalence for run in runs])),
        training=tuple(
            {
                "run": name,
                "dataset_fingerprint": run.dataset_fingerprint,
                "metrics": dict(run.metrics),
            }
            for name, run in zip(names, runs, strict=True)
        ),
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
    )


def export(runs: Sequence[Run], contract: Contract, output: Path) -> float:
    """Writes the model to `output`, which it replaces; whole and verified, or not at all.

    Returns:
      The largest difference found between its logits and Keras' own.

    Raises:
      ContractError: a member is missing or unreadable, or the export answers otherwise than Keras.
    """
    import tensorflow as tf

    members = [
        _in_float32(run.load_member(index), run.precision)
        for run in runs
        for index in range(len(run.members))
    ]
    module, signatures = _serving_module(members, contract)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        made = Path(directory) / output.name
        tf.saved_model.save(module, str(made), signatures=signatures)
        (made / CONTRACT_NAME).parent.mkdir(exist_ok=True)
        (made / CONTRACT_NAME).write_text(contract.dumps(), encoding="utf-8")
        (made / CARD_NAME).write_text(model_card(contract), encoding="utf-8")
        difference = _verify(made, members, contract)
        _replace(made, output, aside=Path(directory) / "replaced")
    return difference


def _require_free(output: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything but, when asked to, a model or an empty directory."""
    if not output.exists():
        return
    if not overwrite:
        raise cli.UsageError(f"{output} exists (--overwrite replaces it)")
    if not (output / CONTRACT_NAME).is_file() and not (
        output.is_dir() and not any(output.iterdir())
    ):
        raise cli.UsageError(f"{output} is not a model: it will not be replaced")


def _replace(made: Path, output: Path, *, aside: Path) -> None:
    """Gives `made` the name `output`; what stood there goes aside, or back should that fail."""
    if output.exists():
        output.rename(aside)
    try:
        made.rename(output)
    except OSError:
        if aside.exists():
            aside.rename(output)
        raise


def _require_same_volumes(first: Run, other: Run) -> None:
    ours, theirs = f"run {first.directory}", f"run {other.directory}"
    if first.spec != other.spec:
        fields = sorted(
            key for key in {*first.spec, *other.spec} if first.spec.get(key) != other.spec.get(key)
        )
        differing = "; ".join(
            f"spec.{key}: {first.spec.get(key)!r} in {ours}, {other.spec.get(key)!r} in {theirs}"
            for key in fields
        )
        raise ContractError(f"runs do not fit: {differing}")
    first.schema.require_equal(other.schema, ours=ours, theirs=theirs)
    if first.modalities != other.modalities:
        raise ContractError(
            f"runs do not fit: modalities: {list(first.modalities)} in {ours}, "
            f"{list(other.modalities)} in {theirs}"
        )


def _names(directories: Sequence[Path]) -> list[str]:
    """Short distinct names: the directories' own, numbered where two have the same."""
    names = [directory.resolve().name for directory in directories]
    return [
        name if names.count(name) == 1 else f"{name}#{index + 1}"
        for index, name in enumerate(names)
    ]


def _in_float32(model: keras.Model, precision: str) -> keras.Model:
    """A member that computes in float32, whatever the policy it was trained under."""
    if precision == "float32":
        return model
    import keras

    def clone(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

    inputs = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _serving_module(
    members: Sequence[keras.Model], contract: Contract
) -> tuple[tf.Module, dict[str, Any]]:
    """The variables and the two functions of the SavedModel."""
    import tensorflow as tf

    schema = contract.schema
    stored = tf.as_dtype(schema.dtype)
    all_channels = contract.channels == tuple(range(len(schema.modalities)))

    def answer(volume: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = volume if all_channels else tf.gather(volume, contract.channels, axis=-1)
        logits = [
            tf.reshape(tf.cast(member(chosen[None], training=False), tf.float32), [])
            for member in members
        ]
        logit = tf.add_n(logits) / (len(logits) * contract.temperature)
        return tf.sigmoid(logit), logit

    def answers(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        # One volume at a time: kernels split a batch by its size, and so round differently (1e-8
        # measured). A patient's answer must not hang on who else is in the batch; on a CPU this
        # is no slower, a volume keeps all cores busy.
        scalar = tf.TensorSpec([], tf.float32)
        probability, logit = tf.map_fn(
            answer, volumes, fn_output_signature=(scalar, scalar), parallel_iterations=1
        )
        return {"probability": probability, "logit": logit}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def from_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(
            examples, {"volume": one, "patient_id": one, "spec_fingerprint": one}
        )
        tf.debugging.assert_equal(
            parsed["spec_fingerprint"],
            tf.constant(schema.spec_fingerprint),
            message="records do not fit: spec_fingerprint differs from the model's",
        )
        raw = tf.io.decode_raw(parsed["volume"], stored)
        volumes = tf.reshape(raw, (-1, *schema.volume_shape))
        return {"patient_id": parsed["patient_id"], **answers(volumes)}

    @tf.function(
        input_signature=[tf.TensorSpec([None, *schema.volume_shape], stored, name="volumes")]
    )
    def from_volumes(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answers(volumes)

    module = tf.Module()
    # The variables alone, not the Keras objects: nothing of Keras is needed to load them.
    module.weights = [variable.value for member in members for variable in member.variables]
    return module, {"serving_default": from_examples, "volumes": from_volumes}


def _verify(model: Path, members: Sequence[keras.Model], contract: Contract) -> float:
    """Largest difference between the written model's logits and those of the Keras members.

    Raises:
      ContractError: it is larger than `TOLERANCE`, or an answer is not a number.
    """
    import tensorflow as tf

    volumes = _probe_volumes(contract.schema)
    _, logit = load_bundle(model).predict_volumes(volumes)
    chosen = volumes[..., list(contract.channels)]
    answers = np.zeros((len(members), len(volumes)))
    for row, member in zip(answers, members, strict=True):
        compiled = tf.function(functools.partial(member, training=False))
        row[:] = [np.asarray(compiled(volume[None])).item() for volume in chosen]
    expected = answers.mean(axis=0) / contract.temperature
    difference = np.abs(logit - expected)
    # Not ">": a NaN must fail too.
    if not (difference <= TOLERANCE * np.maximum(1.0, np.abs(expected))).all():
        raise ContractError(
            f"the exported model answers {logit.tolist()} where Keras answers "
            f"{expected.tolist()}; nothing exported"
        )
    return float(difference.max())


def _probe_volumes(schema: RecordSchema) -> npt.NDArray[Any]:
    """Four volumes in the stored dtype: two heads of noise, a channel missing, all blank."""
    rng = np.random.default_rng(0)
    top = 1.0 if schema.dtype == "float16" else float(np.iinfo(schema.dtype).max)
    volumes = rng.uniform(0.0, top, (4, *schema.volume_shape))
    volumes[:, : schema.shape[0] // 4] = 0.0
    volumes[1] *= 0.5
    volumes[2, ..., 0] = 0.0
    volumes[3] = 0.0
    return volumes.astype(schema.dtype)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=PROG,
        description="Turns training runs into one verified SavedModel with its contract and card.",
        examples=(
            f"  {PROG} --runs run --output model\n"
            f"  {PROG} --runs run-seed0 run-seed1 --output model --overwrite"
        ),
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="training runs")
    parser.add_argument("--output", required=True, metavar="MODEL", help="directory to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing MODEL once the new one stands"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
