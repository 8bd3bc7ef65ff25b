"""Patients to explain: who they are, which members may explain them, and their volumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import Label
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_shard
from trainer.config.run_layout import OOF_NAME
from trainer.explain.attribution import Attribution
from trainer.metrics.predictions import read_predictions
from trainer.training.run_files import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A patient to explain.

    Attributes:
      patient_id: as in the record.
      label: None when unknown.
      fold: None without a label.
      members: index in run.json of each network that explains it.
      oof_logit: the run's own out-of-fold prediction, mean over seeds; None without a label.
    """

    patient_id: str
    label: Label | None
    fold: int | None
    members: tuple[int, ...]
    oof_logit: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A patient with its map and that of the same networks with random weights.

    Attributes:
      chosen: the patient.
      case: its record; channels are the run's modalities, in its order.
      found: the map.
      random: of random weights.
    """

    chosen: Chosen
    case: PreparedCase
    found: Attribution
    random: Attribution

    @property
    def head(self) -> npt.NDArray[np.bool_]:
        """(row, column, slice): foreground in any modality."""
        head: npt.NDArray[np.bool_] = (self.case.volume > 0).any(axis=-1)
        return head


def choose(trained: Run, manifest: Manifest, wanted: Sequence[str] | None) -> list[Chosen]:
    """The patients to explain, with the members that may.

    Args:
      trained: the run.
      manifest: of its dataset.
      wanted: ids, with or without leading zeros. None: of each class, of those predicted right and
        of those predicted wrong, the one with the largest logit.

    Raises:
      UsageError: a patient that the dataset does not hold, or that every member trained on.
      ContractError: as `read_predictions`.
    """
    known = {patient_id: (label, fold) for patient_id, label, fold in manifest.patients}
    spelt = {normalised_id(patient_id): patient_id for patient_id in known}
    labels = {normalised_id(i): str(label) for i, (label, _) in known.items() if label is not None}
    predictions = read_predictions(files.join(trained.directory, OOF_NAME), labels)
    logits = dict(zip(predictions.keys, predictions.scores.tolist(), strict=True))
    if wanted is None:
        best: dict[tuple[int, bool], str] = {}
        for key, label in zip(predictions.keys, predictions.labels.tolist(), strict=True):
            kind = (label, (logits[key] > 0) == bool(label))
            if kind not in best or abs(logits[key]) > abs(logits[best[kind]]):
                best[kind] = key
        wanted = [best[kind] for kind in sorted(best, key=lambda k: (not k[1], -k[0]))]
    chosen = []
    for text in dict.fromkeys(wanted):
        patient_id = text if text in known else spelt.get(normalised_id(text), "")
        if patient_id not in known:
            raise UsageError(f"--patients {text}: not among the dataset's {len(known)} patients")
        label, fold = known[patient_id]
        members = tuple(
            place
            for place, member in enumerate(trained.members)
            if fold is None or member.fold == fold
        )
        if not members:
            held_out = ", ".join(map(str, sorted({member.fold for member in trained.members})))
            raise UsageError(
                f"--patients {text}: of fold {fold}, which every member of {trained.directory} "
                f"was trained on; held out there: fold {held_out}"
            )
        chosen.append(
            Chosen(
                patient_id=patient_id,
                label=label,
                fold=fold,
                members=members,
                oof_logit=None if fold is None else logits.get(normalised_id(patient_id)),
            )
        )
    return chosen


def read_chosen(
    data: str, manifest: Manifest, chosen: Sequence[Chosen], *, modalities: Sequence[str]
) -> dict[str, PreparedCase]:
    """Some patients' records by id, of these modalities; the shards that hold them are verified.

    Raises:
      ContractError: shards or records are not what the manifest says.
      CommandError: a store refuses or fails.
    """
    wanted = {one.patient_id for one in chosen}
    channels = [manifest.schema.modalities.index(name) for name in modalities]
    return {
        case.patient_id: dataclasses.replace(
            case,
            volume=case.volume[..., channels],
            present=tuple(case.present[channel] for channel in channels),
        )
        for entry in manifest.shards_of({one.fold for one in chosen})
        if wanted & {patient.patient_id for patient in entry.patients}
        for case in read_shard(data, entry, manifest.schema)
        if case.patient_id in wanted
    }
