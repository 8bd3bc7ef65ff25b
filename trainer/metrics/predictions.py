"""Predictions and labels, read from CSV files and joined by patient."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.csv_table import number, read_table, whole_number
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.run import EPOCH_CHOICES
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.auc import Floats
from trainer.metrics.logits import sigmoid
from trainer.metrics.wording import REASONS

IDS = ("BraTS21ID", "patient_id")
SCORES = ("MGMT_value", "logit", "probability")
KNOWN_CHOICES = (*EPOCH_CHOICES, "none")  # of epochs, in a predictions file; "none": no epochs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """One model's predictions, joined with labels; one entry a patient.

    Attributes:
      name: how the model is called in words.
      keys: ids without leading zeros, in order, (n,).
      labels: 0 or 1, (n,); of other targets as `data.targets.truth_of` has them.
      scores: logits (mean over seeds) or whatever the file ranks patients by, (n,); (n, outputs) of
        classes and findings, values (n,) of a regression.
      target: what labels say.
      probabilities: 0 .. 1, shaped as the scores; None where the scores are none.
      logits: of the probabilities, shaped so too; None with them.
      folds: (n,) the fold each was held out in, None where the file has none.
      seeds: seed → scores, shaped so too, NaN for patients without; empty where it has none.
      no_claim: reasons why these scores allow no claim (`wording.REASONS`).
      notes: what else to mind about these scores, a sentence each.
      without_label, without_prediction: keys of patients that only the other side has.
      relabelled: patients whose label in the labels file is not the predictions file's own.
    """

    name: str
    keys: tuple[str, ...]
    labels: npt.NDArray[Any]
    scores: Floats
    target: Target = PLAIN
    probabilities: Floats | None = None
    logits: Floats | None = None
    folds: npt.NDArray[np.int64] | None = None
    seeds: Mapping[int, Floats] = dataclasses.field(default_factory=dict)
    no_claim: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    without_label: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()

    @property
    def repeats(self) -> Floats:
        """Scores of each seed, (seeds, n[, outputs]), NaN for patients without; (1, …) of none."""
        return np.array(list(self.seeds.values()) or [self.scores])

    def common(self, other: Predictions) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Places of the patients that both have, in this one and in the other."""
        there = {key: place for place, key in enumerate(other.keys)}
        pairs = [(here, there[key]) for here, key in enumerate(self.keys) if key in there]
        mine, others = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        return mine, others


def read_rows(
    file: files.StrPath, *wanted: Sequence[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV that the command line names; cells stripped.

    Args:
      file: the CSV.
      wanted: the columns that it must have, each by the names that it may have there.

    Raises:
      UsageError: no such file, no UTF-8 text, no CSV, rows of other lengths than its header, or
        none of a column's names.
    """
    try:
        columns, rows = read_table(read_named(file), (), ours=True)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    for names in wanted:
        _column(file, columns, names)
    return columns, [row for _, row in rows]


def read_column(
    file: files.StrPath, id_columns: Sequence[str], columns: Sequence[str]
) -> dict[str, str]:
    """Patient key → text of a CSV's column; the first of the given names that exists is taken.

    The key is `normalised_id`: tools that read "00005" as a number write "5".

    Raises:
      UsageError: as `read_rows`.
      ContractError: an id that stands twice, or two ids that differ in leading zeros only.
    """
    found, rows = read_rows(file, id_columns, columns)
    id_column = _column(file, found, id_columns)
    column = _column(file, found, columns)
    values: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for row in rows:
        patient_id = row[id_column]
        key = normalised_id(patient_id)
        if key in values:
            raise ContractError(
                f"{file}: ambiguous ids {shown(spelt[key])} and {shown(patient_id)}"
            )
        values[key], spelt[key] = row[column], patient_id
    return values


def read_predictions(
    file: files.StrPath,
    labels: Mapping[str, str] | None = None,
    *,
    id_columns: Sequence[str] = IDS,
    score_columns: Sequence[str] = SCORES,
) -> Predictions:
    """Reads submission.csv or oof_predictions.csv and joins it with labels.

    Where the file has a column `seed`, a patient may have a row for each; the score is the mean
    over them.

    Args:
      file: with an id and a score a row; fold, seed and label where it has them.
      labels: patient key → "0", "1" or "" (none); None takes the file's own column `label`.
      id_columns: names the id's column may have, the first that exists is taken.
      score_columns: likewise; `logit` is taken for a logit, others for a probability where all
        values lie in 0 .. 1.

    Raises:
      UsageError: as `read_rows`, or no labels at all.
      ContractError: a patient twice for one seed, rows of one patient that disagree, a value that
        is no number, a column fold that is empty for some patients, an epoch_choice or a reason in
        no_claim that is unknown, or no patient with both a prediction and a label.
    """
    columns, rows = read_rows(file, id_columns, score_columns)
    id_column = _column(file, columns, id_columns)
    score_column = _column(file, columns, score_columns)
    if labels is None and "label" not in columns:
        raise UsageError(f"{file}: no column label; --labels FILE is needed")
    # Patient → seed → row; a file without seeds has one seed.
    found: dict[str, dict[str, dict[str, str]]] = {}
    spelt: dict[str, str] = {}
    for row in rows:
        patient_id, seed = row[id_column], row.get("seed", "")
        key = normalised_id(patient_id)
        of_patient = found.setdefault(key, {})
        if seed in of_patient or spelt.setdefault(key, patient_id) != patient_id:
            raise ContractError(
                f"{file}: ambiguous ids {shown(spelt[key])} and {shown(patient_id)}"
            )
        of_patient[seed] = row
    own = {key: _one(file, spelt[key], "label", of.values()) for key, of in found.items()}
    known = {key: text for key, text in (own if labels is None else labels).items() if text}
    keys = sorted(found.keys() & known.keys())
    if not keys:
        raise ContractError(
            f"{file}: no patient has both a prediction and a label: are the ids the same?"
        )
    every_seed = {seed for of_patient in found.values() for seed in of_patient}
    by_seed = {seed: np.full(len(keys), np.nan) for seed in sorted(every_seed)}
    for place, key in enumerate(keys):
        for seed, row in found[key].items():
            by_seed[seed][place] = _number(file, spelt[key], score_column, row[score_column])
    scores = np.nanmean(list(by_seed.values()), axis=0)
    logits, probabilities = None, None
    if score_column == "logit":
        logits, probabilities = scores, sigmoid(scores)
    elif scores.min() >= 0 and scores.max() <= 1:
        clipped = np.clip(scores, 1e-15, 1 - 1e-15)
        logits, probabilities = np.log(clipped) - np.log1p(-clipped), scores
    truth = np.array([_number(file, spelt[key], "label", known[key]) for key in keys])
    if not np.isin(truth, (0, 1)).all():
        wrong = keys[int(np.argmin(np.isin(truth, (0, 1))))]
        raise ContractError(
            f"{file}: label of {_cut(spelt[wrong])}: 0 or 1 required, {_cut(known[wrong])} found"
        )
    seeds = {_whole(file, "seed", seed): by_seed[seed] for seed in every_seed if every_seed != {""}}
    folds = None
    if "fold" in columns:
        each = (_one(file, spelt[key], "fold", found[key].values()) for key in keys)
        folds = np.array([_whole(file, "fold", text) for text in each])
    no_claim = _no_claim(file, columns, rows)
    notes = []
    if folds is not None and "epoch_choice" not in columns and not no_claim:
        notes.append(
            f"{files.name_of(file)} does not say how its epochs were chosen: if by the patients it "
            "scores, its AUC is optimistic."
        )
    return Predictions(
        name=_name(file),
        keys=tuple(keys),
        labels=truth.astype(np.int64),
        scores=scores,
        probabilities=probabilities,
        logits=logits,
        folds=folds,
        seeds=dict(sorted(seeds.items())),
        no_claim=no_claim,
        notes=tuple(notes),
        without_label=tuple(sorted(found.keys() - known.keys())),
        without_prediction=tuple(sorted(known.keys() - found.keys())),
        relabelled=tuple(key for key in keys if own[key] and _differ(own[key], known[key])),
    )


def _no_claim(
    file: files.StrPath, columns: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> tuple[str, ...]:
    """Why a file's scores allow no claim, in `REASONS`' order.

    Files of versions before 0.3 do not say how their epochs were chosen: on the patients scored.
    """
    if {"fold", "seed", "logit"} <= set(columns) and "epoch_choice" not in columns:
        return ("own_fold",)
    if "epoch_choice" in columns:
        unknown_choices = {row["epoch_choice"] for row in rows} - set(KNOWN_CHOICES)
        if unknown_choices:
            raise ContractError(
                f"{file}: epoch_choice {shown(min(unknown_choices))}: one of "
                f"{', '.join(KNOWN_CHOICES)} required"
            )
    found = {code for row in rows for code in row.get("no_claim", "").split("+")} - {""}
    if unknown := found - set(REASONS):
        known = ", ".join(REASONS)
        raise ContractError(f"{file}: no_claim {shown(min(unknown))}: one of {known} required")
    return tuple(code for code in REASONS if code in found)


def _name(file: files.StrPath) -> str:
    """ "run-a" of run-a/oof_predictions.csv, "model-b" of model-b.csv."""
    name, directory = files.name_of(file), os.path.dirname(file)
    run = directory_name(directory) if name == OOF_NAME else ""
    return run or os.path.splitext(name)[0]


def directory_name(directory: files.StrPath) -> str:
    """The last part of a directory's path; of "." its own name."""
    if not files.is_remote(directory):
        directory = os.path.realpath(directory)
    return files.name_of(directory)


def _column(file: files.StrPath, found: Sequence[str], wanted: Sequence[str]) -> str:
    """The first of the wanted columns that exists."""
    for name in wanted:
        if name in found:
            return name
    there = shown(", ".join(found))[1:-1] if any(found) else "none"
    raise UsageError(f"{file}: no column {' or '.join(wanted)}; it has {there}")


def _one(
    file: files.StrPath, patient_id: str, column: str, rows: Iterable[Mapping[str, Any]]
) -> str:
    """The value that all rows of a patient have in a column; "" where there is none."""
    values = sorted({row.get(column, "") for row in rows})
    if len(values) > 1:
        both = f"{_cut(values[0])} and {_cut(values[1])}"
        raise ContractError(f"{file}: {column} of {_cut(patient_id)} is both {both}")
    return str(values[0])


def _cut(text: object) -> str:
    return shown(str(text))[1:-1]


def _number(file: files.StrPath, patient_id: str, column: str, text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise ContractError(
            f"{file}: {column} of {_cut(patient_id)}: {shown(text)} is no finite number"
        ) from error


def _whole(file: files.StrPath, column: str, text: str) -> int:
    try:
        return whole_number(text)
    except ValueError as error:
        raise ContractError(f"{file}: {column} {shown(text)} is no whole number") from error


def _differ(one: str, other: str) -> bool:
    try:
        return float(one) != float(other)
    except ValueError:
        return one != other
