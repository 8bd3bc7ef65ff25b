"""Writes a SavedModel with its assets, verified against Keras before it takes its name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.common import terminal
from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import own_json
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.drift import Statistics
from beam_jobs.core.record import RecordSchema
from serving.model.canonical import canonicalise
from serving.model.card import model_card
from serving.model.cohort_statistics import STATISTICS_NAME
from serving.model.contract import CARD_NAME, CONTRACT_NAME, FORMAT, Contract
from serving.model.graph import serving_module
from serving.model.integrity import file_hashes, model_sha256
from serving.model.loaded_model import load_model
from serving.model.out_of_fold import combine
from serving.model.warmup import WARMUP_NAME, warmup_requests

if TYPE_CHECKING:
    import keras

# Of a logit, relative where it is above 1: the written graph runs the very operations of the
# members, so that 0 is what was measured; the rest is for other kernels than this machine's.
TOLERANCE = 1e-6
# What `serving.model.contract` says of a model's files, and what TensorFlow calls its own.
_MODEL_FILE = re.compile(
    r"saved_model\.pb|fingerprint\.pb|variables/variables\.(?:index|data-[0-9]{5}-of-[0-9]{5})|"
    + "|".join(map(re.escape, (CARD_NAME, CONTRACT_NAME, STATISTICS_NAME, WARMUP_NAME)))
)
# What stood under the name, in the hidden directory of an export, for a moment.
_REPLACED = "replaced"


class Written(NamedTuple):
    """What `write_model` wrote.

    Attributes:
      difference: the largest found between the model's logits and Keras' own.
      sha256: of the whole model (`integrity`): equal runs, equal bytes.
    """

    difference: float
    sha256: str


def write_model(
    members: Sequence[keras.Model],
    contract: Contract,
    output: files.StrPath,
    *,
    statistics: Statistics | None = None,
) -> Written:
    """Writes the model to `output`, which it replaces; whole and verified, or not at all.

    Args:
      members: networks that compute in float32, stored volume -> logit, in the contract's order.
      contract: what the model takes and answers.
      output: the directory to write, on a disk or in a store.
      statistics: of the training data, where they are known.

    Raises:
      ContractError: the written model answers otherwise than the members.
    """
    import tensorflow as tf

    module, signatures = serving_module(members, contract)
    output = files.text(output)
    beside = None if files.is_remote(output) else Path(output)
    put_back(output)
    with files.scratch("export", beside=beside) as directory:
        made = directory / "model"
        with files.refused(made if beside is None else beside):
            tf.saved_model.save(module, str(made), signatures=signatures)
            canonicalise(made)
        assets = {
            CARD_NAME: model_card(contract, statistics).encode(),
            **({} if statistics is None else {STATISTICS_NAME: statistics.dumps().encode()}),
            WARMUP_NAME: warmup_requests(contract.schema, covariates=len(contract.covariates)),
        }
        for name, data in assets.items():
            files.write(made / name, data)
        hashes = file_hashes(made)
        said = dataclasses.replace(contract, sha256=hashes).dumps().encode()
        files.write(made / CONTRACT_NAME, said)  # what has it is a model
        difference = _verify(made, members, contract)
        sha256 = model_sha256({**hashes, CONTRACT_NAME: hashlib.sha256(said).hexdigest()})
        if beside is None:
            _upload(made, output)
        else:
            _replace(made, beside, aside=directory / _REPLACED)
    return Written(difference, sha256)


def require_free(output: str, *, overwrite: bool) -> None:
    """Refuses to write over anything but, when requested, a model or an empty directory.

    A model that somebody put a file of their own into would be replaced with that file.

    Raises:
      UsageError: something else is there.
    """
    if not files.exists(output):
        return
    if not overwrite:
        raise UsageError(f"{output} exists (--overwrite replaces it)")
    # A directory of a store is what lies below it: never empty.
    local = not files.is_remote(output) and Path(output).is_dir()
    empty = local and not any(Path(output).iterdir())
    if not empty and own_json(files.join(output, CONTRACT_NAME), FORMAT) is None:
        raise UsageError(f"{output} is not a model: it will not be replaced")
    foreign = [name for name in files.tree(output) if not _MODEL_FILE.fullmatch(name)]
    if foreign:
        raise UsageError(
            f"{output} holds {shown(foreign[0])}, which is no file of a model: "
            "it will not be replaced"
        )


def put_back(output: files.StrPath) -> None:
    """Gives a model its name back that a killed export had put aside; what that made is lost."""
    if files.is_remote(output):
        return

    def rescue(left: Path) -> None:
        aside, place = left / _REPLACED, Path(output)
        if aside.exists() and not place.exists():
            aside.rename(place)

    files.remove_left(output, rescue)


def _replace(made: Path, output: Path, *, aside: Path) -> None:
    """Gives `made` the name `output`; what stood there goes aside, or back should that fail."""
    try:
        if output.exists():
            output.rename(aside)
        made.rename(output)
    except BaseException:  # Ctrl-C too
        if aside.exists() and not output.exists():
            aside.rename(output)
        raise


def _upload(made: Path, output: str) -> None:
    """Puts a model into a store, its contract last; a store renames nothing, so the old goes first.

    Between the two there is no contract, and so no model: whoever reads meanwhile is refused.
    """
    old = [entry.path for entry in files.entries(output)]
    files.delete([files.join(output, CONTRACT_NAME)])
    files.delete(old)
    files.Mirror(output.rstrip("/"), made).push()


def _verify(model: Path, members: Sequence[keras.Model], contract: Contract) -> float:
    """Largest difference between the written model's logits and those of the Keras members.

    Raises:
      ContractError: it is larger than `TOLERANCE`, or an answer is not a number.
    """
    import tensorflow as tf

    target, calibration = contract.target, contract.calibration
    volumes, known = _probe_volumes(contract.schema), _probe_covariates(contract)
    found, of_members = _logits(load_model(model).predict_volumes(volumes, known), target)
    chosen = volumes[..., list(contract.channels)]
    answers = np.zeros((len(members), len(volumes), target.outputs))
    of_keras = zip(answers, members, strict=True)
    for row, member in terminal.track(of_keras, "checking members", len(members)):
        compiled = tf.function(functools.partial(member, training=False))
        for place, volume in enumerate(chosen):
            one = volume[None]
            given = [one, known[place : place + 1]] if contract.covariates else one
            row[place] = np.asarray(compiled(given)).reshape(-1)
    answers = np.moveaxis(answers[..., 0] if target.outputs == 1 else answers, 0, 1)
    combined = np.array([combine(one, contract.ensemble, target) for one in answers])
    expected = calibration.apply(combined)
    difference = np.abs(found - expected)
    tolerance = TOLERANCE * max(1.0, calibration.steepness)
    # Not ">": a NaN must fail too.
    if not (difference <= tolerance * np.maximum(1.0, np.abs(expected))).all():
        raise ContractError(
            f"the exported model answers {found.tolist()} where Keras answers "
            f"{expected.tolist()}; nothing exported"
        )
    squashed = _squashed(calibration.apply(answers), target)
    scale = np.maximum(1.0, np.abs(squashed))
    if not (np.abs(of_members - squashed) <= tolerance * scale).all():
        raise ContractError("the exported members answer otherwise than Keras'; nothing exported")
    return float(difference.max())


def _logits(outputs: Sequence[npt.NDArray[Any]], target: Target) -> tuple[npt.NDArray[Any], ...]:
    """The logits or values, and the members' answers, of a model's outputs."""
    return (outputs[0 if target.task == "regression" else 1], outputs[-1])


def _squashed(logits: npt.NDArray[Any], target: Target) -> npt.NDArray[np.float64]:
    """Probabilities of logits; values as they are."""
    from scipy.special import expit, softmax

    if target.task == "regression":
        return logits
    squashed: npt.NDArray[np.float64] = (
        softmax(logits, axis=-1) if target.task == "multiclass" else expit(logits)
    )
    return squashed


def _probe_covariates(contract: Contract) -> npt.NDArray[np.float32]:
    """For each probe volume (4, covariates): numbers or categories, the last ones not known."""
    rng = np.random.default_rng(1)
    known = rng.integers(0, 2, (4, len(contract.covariates))).astype(np.float32)
    known[-1] = np.nan
    return known


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
