"""Patients to explain: who they are, which members may explain them, and their volumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_shard
from trainer.config.run_layout import OOF_NAME
from trainer.explain.attribution import Attribution, Floats
from trainer.metrics.predictions import Predictions, read_predictions
from trainer.metrics.tasks.measure import log_odds
from trainer.training.run_files import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A patient to explain.

    Attributes:
      patient_id: as in the record.
      label: None when unknown.
      fold: None without a label.
      members: index in run.json of each network that explains it.
      oof: the run's own out-of-fold answers: their mean over seeds, (1,), or of several outputs
        each seed's, (seeds, outputs), NaN of a seed without it; None without a label.
      output: the class or finding to explain; None: the one that is predicted.
    """

    patient_id: str
    label: Label | None
    fold: int | None
    members: tuple[int, ...]
    oof: Floats | None = None
    output: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A patient with its map and that of the same networks with random weights.

    Attributes:
      chosen: the patient.
      case: its record; channels and covariates are the run's, in its order.
      found: the map.
      random: of random weights.
      output: the class or finding that is explained; 0 where there is one answer.
      predicted: the one that the members find most likely together; 0 likewise.
    """

    chosen: Chosen
    case: PreparedCase
    found: Attribution
    random: Attribution
    output: int = 0
    predicted: int = 0

    @property
    def head(self) -> npt.NDArray[np.bool_]:
        """(row, column, slice): foreground in any modality."""
        return np.asarray((self.case.volume > 0).any(axis=-1))


def output_of(target: Target, asked: Mapping[str, str | None]) -> int | None:
    """The class or finding that is asked for by its name; None where none is.

    Args:
      target: what labels say.
      asked: "class" and "label", each a name or None.

    Raises:
      UsageError: it is none of the target's, or labels have no such thing.
    """
    takes = {"multiclass": "class", "multilabel": "label"}.get(target.task)
    for flag, name in asked.items():
        if name is None:
            continue
        if flag != takes:
            instead = f" (--{takes} chooses here)" if takes else ": the map has both directions"
            raise UsageError(f"--{flag} {name}: labels are {target.task}{instead}")
        if name not in target.names:
            raise UsageError(f"--{flag} {name}: one of {', '.join(target.names)} is needed")
        return target.names.index(name)
    return None


def logit_of(target: Target, answers: Floats, output: int) -> Floats:
    """Of answers (n,) or (n, outputs) the number that is explained, (n,).

    That is a logit, of a class among several its logit against the rest, or a value.
    """
    if answers.ndim == 1:
        return answers
    if target.task == "multilabel":
        return answers[:, output]
    return log_odds(answers)[:, output]


def choose(
    trained: Run, manifest: Manifest, wanted: Sequence[str] | None, output: int | None = None
) -> list[Chosen]:
    """The patients to explain, with the members that may.

    Args:
      trained: the run.
      manifest: of its dataset.
      wanted: ids, with or without leading zeros. None: `_telling`.
      output: the class or finding to explain; None: of each patient the one that is predicted.

    Raises:
      UsageError: a patient that the dataset does not hold, or that every member trained on.
      ContractError: as `read_predictions`.
    """
    target = trained.target
    known = {patient_id: (label, fold) for patient_id, label, fold in manifest.patients}
    spelt = {normalised_id(patient_id): patient_id for patient_id in known}
    labels = {
        normalised_id(i): _in_text(target, label)
        for i, (label, _) in known.items()
        if label is not None
    }
    predictions = read_predictions(files.join(trained.directory, OOF_NAME), labels, target=target)
    places = {key: place for place, key in enumerate(predictions.keys)}
    own_answers = predictions.repeats
    if target.outputs == 1:  # whose mean is what is explained
        own_answers = predictions.scores[np.newaxis]
    own: dict[str, int | None] = {}
    if wanted is None:
        own = _telling(predictions, target, output)
        wanted = list(own)
    chosen = []
    for text in dict.fromkeys(wanted):
        patient_id = text if text in known else spelt.get(normalised_id(text), "")
        if patient_id not in known:
            raise UsageError(f"--patients {text}: not among the dataset's {len(known)} patients")
        label, fold = known[patient_id]
        members = tuple(
            number
            for number, member in enumerate(trained.members)
            if fold is None or member.fold == fold
        )
        if not members:
            held_out = ", ".join(map(str, sorted({member.fold for member in trained.members})))
            raise UsageError(
                f"--patients {text}: of fold {fold}, which every member of {trained.directory} "
                f"was trained on; held out there: fold {held_out}"
            )
        own_row = places.get(normalised_id(patient_id))
        chosen.append(
            Chosen(
                patient_id=patient_id,
                label=label,
                fold=fold,
                members=members,
                oof=None if fold is None or own_row is None else own_answers[:, own_row],
                output=own.get(text, output),
            )
        )
    return chosen


def _in_text(target: Target, label: Label) -> str | tuple[str, ...]:
    """A label as `read_predictions` takes it."""
    if isinstance(label, tuple):
        return tuple("" if one is None else str(one) for one in label)
    return str(label) if target.task == "regression" else target.names[int(label)]


def _telling(predictions: Predictions, target: Target, output: int | None) -> dict[str, int | None]:
    """Examples that tell most, each with the class or finding to explain.

    Of each class, of those predicted right and of those predicted wrong, the most confident one.
    Findings: of each finding among those who have it, or of one that was chosen among all of whom
    it is known, likewise. Values: of the lower and the upper half, the one that was met best, and
    the one that was missed most.
    """
    truth, answers = predictions.labels, predictions.scores
    best: dict[tuple[Any, bool, int | None], tuple[float, str]] = {}

    def offer(kind: Any, right: bool, of: int | None, confidence: float, key: str) -> None:
        group = (kind, right, of)
        if group not in best or confidence > best[group][0]:
            best[group] = (confidence, key)

    for place, key in enumerate(predictions.keys):
        answer = answers[place]
        if target.task == "multilabel":
            for of in range(target.outputs) if output is None else (output,):
                found, logit = truth[place, of], float(answer[of])
                if not np.isnan(found) and (found or output is not None):
                    offer(int(found), (logit > 0) == bool(found), of, abs(logit), key)
        elif target.task == "multiclass":
            predicted = int(answer.argmax())
            sure = float(logit_of(target, answer[np.newaxis], predicted)[0])
            offer(int(truth[place]), predicted == truth[place], output, sure, key)
        elif target.task == "regression":
            half = bool(truth[place] > np.median(truth))
            error = abs(float(answer - truth[place]))
            for met, value in ((True, -error), (False, error)):
                offer(half, met, output, value, key)
        else:
            label, logit = int(truth[place]), float(answer)
            offer(label, (logit > 0) == bool(label), output, abs(logit), key)
    chosen: dict[str, int | None] = {}
    for group in sorted(best, key=lambda k: (not k[1], -k[0], k[2] or 0)):
        chosen.setdefault(best[group][1], group[2])
    return chosen


def read_chosen(
    data: str,
    manifest: Manifest,
    chosen: Sequence[Chosen],
    *,
    modalities: Sequence[str],
    covariates: Sequence[str] = (),
) -> dict[str, PreparedCase]:
    """Some patients' records by id, of these modalities and covariates; their shards are verified.

    Raises:
      ContractError: shards or records are not what the manifest says.
      CommandError: a store refuses or fails.
    """
    wanted = {one.patient_id for one in chosen}
    channels = [manifest.schema.modalities.index(name) for name in modalities]
    known = [one.name for one in manifest.schema.covariates]
    return {
        case.patient_id: dataclasses.replace(
            case,
            volume=case.volume[..., channels],
            present=tuple(case.present[channel] for channel in channels),
            covariates=tuple(case.covariates[known.index(name)] for name in covariates),
        )
        for entry in manifest.shards_of({one.fold for one in chosen})
        if wanted & {patient.patient_id for patient in entry.patients}
        for case in read_shard(data, entry, manifest.schema)
        if case.patient_id in wanted
    }
