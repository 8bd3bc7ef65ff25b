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
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from trainer.config.run import EPOCH_CHOICES
from trainer.config.run_layout import COVARIATE, OOF_NAME
from trainer.data.targets import truth_of
from trainer.metrics.auc import Floats
from trainer.metrics.logits import logit, sigmoid
from trainer.metrics.tasks.answers_table import (
    answer_columns,
    as_logits,
    label_of_texts,
    probabilities_of,
    target_of_columns,
)
from trainer.metrics.tasks.measure import measure_of
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
      low, high: of a regression's intervals, (n,), NaN where it has none; None without the columns.
      covariates: name → what is known of each patient, (n,) texts, "" unknown.
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
    low: Floats | None = None
    high: Floats | None = None
    covariates: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
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
        column_of(file, columns, names)
    return columns, [row for _, row in rows]


def read_predictions(
    file: files.StrPath,
    labels: Mapping[str, str | tuple[str, ...]] | None = None,
    *,
    id_columns: Sequence[str] = IDS,
    score_columns: Sequence[str] = SCORES,
    target: Target | None = None,
) -> Predictions:
    """Reads a submission or oof_predictions.csv of any task and joins it with labels.

    The task is what the columns say (`tasks.answers_table`). Where the file has a column `seed`, a
    patient may have a row for each; the score is the mean over them.

    Args:
      file: with an id and a score a row; fold, seed and label where it has them.
      labels: patient key → "0" or "1", a class's name, a value, or of findings a text each; "" for
        none. None takes the file's own columns.
      id_columns: names the id's column may have, the first that exists is taken.
      score_columns: likewise, of a binary score; `logit` is taken for a logit, others for a
        probability where all values lie in 0 .. 1.
      target: what the labels of the run say, where it is known: units, and names of two classes.

    Raises:
      UsageError: as `read_rows`, or no labels at all.
      ContractError: a patient twice for one seed, rows of one patient that disagree, a value that
        is no number, a label that is none of the task, a column fold that is empty for some
        patients, an epoch_choice or a reason in no_claim that is unknown, or no patient with both a
        prediction and a label.
    """
    columns, rows = read_rows(file, id_columns)
    one_label = labels is not None and any(isinstance(text, str) for text in labels.values())
    where = f"{file}: "
    target = target_of_columns(
        columns, score_columns, one_label=one_label, known=target, where=where
    )
    binary = target.task == "binary"
    id_column = column_of(file, columns, id_columns)
    if binary:
        answers: tuple[str, ...] = (column_of(file, columns, score_columns),)
    else:
        answers = answer_columns(target, columns)
    own_labels = target.label_columns
    if labels is None and not any(name in columns for name in own_labels):
        named = own_labels[0] if len(own_labels) == 1 else f"{own_labels[0]} ..."
        raise UsageError(f"{file}: no column {named}; --labels FILE is needed")
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

    def of_all(key: str, column: str) -> str:
        return _one(file, spelt[key], column, found[key].values())

    own = {key: tuple(of_all(key, name) for name in own_labels) for key in found}
    given = own if labels is None else {key: _texts(text) for key, text in labels.items()}
    known = {key: texts for key, texts in given.items() if any(texts)}
    keys = sorted(found.keys() & known.keys())
    if not keys:
        raise ContractError(
            f"{file}: no patient has both a prediction and a label: are the ids the same?"
        )
    every_seed = {seed for of_patient in found.values() for seed in of_patient}
    by_seed = {seed: np.full((len(keys), len(answers)), np.nan) for seed in sorted(every_seed)}
    for place, key in enumerate(keys):
        for seed, row in found[key].items():
            cells = ((column, row[column]) for column in answers)
            by_seed[seed][place] = [_number(file, spelt[key], *cell) for cell in cells]
    by_seed = {
        seed: table[:, 0] if binary else as_logits(target, answers[0], table, where=where)
        for seed, table in by_seed.items()
    }
    scores = np.nanmean(list(by_seed.values()), axis=0)
    logits, probabilities = None, None
    if not binary:
        probabilities = probabilities_of(target, scores)
        logits = None if probabilities is None else scores
    elif answers[0] == "logit":
        logits, probabilities = scores, sigmoid(scores)
    elif scores.min() >= 0 and scores.max() <= 1:
        logits, probabilities = logit(scores), scores
    seeds = {_whole(file, "seed", seed): by_seed[seed] for seed in every_seed if every_seed != {""}}
    folds = None
    if "fold" in columns:
        folds = np.array([_whole(file, "fold", of_all(key, "fold")) for key in keys])
    no_claim = _no_claim(file, columns, rows)
    notes = []
    if folds is not None and "epoch_choice" not in columns and not no_claim:
        title = measure_of(target).title
        notes.append(
            f"{files.name_of(file)} does not say how its epochs were chosen: if by the patients it "
            f"scores, its {title} is optimistic."
        )
    is_own = labels is None
    truth = {key: _label(file, spelt[key], target, known[key], own=is_own) for key in keys}

    def said(key: str) -> tuple[str, ...]:
        # Beside its answers a binary's label is 0 or 1, whatever its classes are called.
        return (str(truth[key]),) if binary and target.classes else known[key]

    limits = {
        name: np.array([_limit(file, spelt[key], name, of_all(key, name)) for key in keys])
        for name in ("low", "high")
        if target.task == "regression" and name in columns
    }
    return Predictions(
        name=_name(file),
        keys=tuple(keys),
        labels=truth_of(target, list(truth.values())),
        scores=scores,
        target=target,
        probabilities=probabilities,
        logits=logits,
        folds=folds,
        seeds=dict(sorted(seeds.items())),
        no_claim=no_claim,
        notes=tuple(notes),
        without_label=tuple(sorted(found.keys() - known.keys())),
        without_prediction=tuple(sorted(known.keys() - found.keys())),
        relabelled=tuple(key for key in keys if any(map(_differ, own[key], said(key)))),
        covariates={
            name.removeprefix(COVARIATE): tuple(of_all(key, name) for key in keys)
            for name in columns
            if name.startswith(COVARIATE)
        },
        **limits,
    )


def _texts(text: str | tuple[str, ...]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _label(
    file: files.StrPath, patient_id: str, target: Target, texts: Sequence[str], *, own: bool
) -> Label:
    try:
        return label_of_texts(target, texts, own=own)
    except ValueError as error:
        if target.is_plain and not own:
            hint = "of two names, the run says which is the positive one: --run RUN"
            raise ContractError(f"{file}: label of {_cut(patient_id)}: {error}; {hint}") from error
        raise ContractError(f"{file}: label of {_cut(patient_id)}: {error}") from error


def _limit(file: files.StrPath, patient_id: str, column: str, text: str) -> float:
    """A limit of a value's interval; NaN where it has none."""
    return _number(file, patient_id, column, text) if text else np.nan


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


def column_of(file: files.StrPath, found: Sequence[str], wanted: Sequence[str]) -> str:
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
    """Whether the file's own label is another one; none of its own does not differ."""
    if not one:
        return False
    try:
        return float(one) != float(other)
    except ValueError:
        return one != other
