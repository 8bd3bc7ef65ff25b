"""Predictions, labels and groups of patients, read from CSV files and joined by patient."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError, read_text
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.ids import normalised_id
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.roc_and_calibration import sigmoid

Floats = npt.NDArray[np.float64]

IDS = ("BraTS21ID", "patient_id")
SCORES = ("MGMT_value", "logit", "probability")
LABELS = ("MGMT_value",)
_FIELD_STRENGTHS = (0.2, 0.35, 0.5, 1.0, 1.5, 3.0, 7.0)  # tesla, as scanners are sold


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """One model's predictions, joined with labels; one entry a patient.

    Attributes:
      name: how the model is called in words.
      keys: ids without leading zeros, in order, (n,).
      labels: 0 or 1, (n,).
      scores: logits (mean over seeds) or whatever the file ranks patients by, (n,).
      probabilities: (n,), 0 .. 1; None where the scores are none.
      logits: (n,), of the probabilities; None with them.
      folds: (n,) the fold each was held out in, None where the file tells none.
      seeds: seed → scores (n,), NaN for patients without; empty where the file tells none.
      without_label, without_prediction: keys of patients that only the other side has.
      relabelled: patients whose label in the labels file is not the predictions file's own.
    """

    name: str
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    scores: Floats
    probabilities: Floats | None = None
    logits: Floats | None = None
    folds: npt.NDArray[np.int64] | None = None
    seeds: Mapping[int, Floats] = dataclasses.field(default_factory=dict)
    without_label: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()

    def common(self, other: Predictions) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Places of the patients that both have, in this one and in the other."""
        there = {key: place for place, key in enumerate(other.keys)}
        pairs = [(here, there[key]) for here, key in enumerate(self.keys) if key in there]
        mine, others = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        return mine, others


def read_column(file: Path, id_columns: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Patient key → text of a CSV's column; the first of the given names that exists is taken.

    The key is `normalised_id`: tools that read "00005" as a number write "5".

    Raises:
      UsageError: no such file, no UTF-8 text, no CSV, or none of the columns.
      ContractError: an id that stands twice, or two ids that differ in leading zeros only.
    """
    found, rows = _table(file)
    id_column = _column(file, found, id_columns)
    column = _column(file, found, columns)
    values: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for row in rows:
        patient_id = row[id_column]
        key = normalised_id(patient_id)
        if key in values:
            raise ContractError(f"{file}: ambiguous ids {spelt[key]!r} and {patient_id!r}")
        values[key], spelt[key] = row[column], patient_id
    return values


def read_predictions(
    file: Path,
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
      UsageError: as `read_column`, or no labels at all.
      ContractError: a patient twice for one seed, rows of one patient that disagree, a value that
        is no number, or no patient with both a prediction and a label.
    """
    columns, rows = _table(file)
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
            raise ContractError(f"{file}: ambiguous ids {spelt[key]!r} and {patient_id!r}")
        of_patient[seed] = row
    own = {key: _one(file, spelt[key], "label", of.values()) for key, of in found.items()}
    known = {key: text for key, text in (own if labels is None else labels).items() if text}
    keys = sorted(found.keys() & known.keys())
    if not keys:
        raise ContractError("no patient has both a prediction and a label: are the ids the same?")
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
        raise ContractError(f"label of {spelt[wrong]}: 0 or 1 required, {known[wrong]} found")
    seeds = {_whole(file, "seed", seed): by_seed[seed] for seed in every_seed if every_seed != {""}}
    folds = [_one(file, spelt[key], "fold", found[key].values()) for key in keys]
    return Predictions(
        name=_name(file),
        keys=tuple(keys),
        labels=truth.astype(np.int64),
        scores=scores,
        probabilities=probabilities,
        logits=logits,
        folds=(np.array([_whole(file, "fold", text) for text in folds]) if all(folds) else None),
        seeds=dict(sorted(seeds.items())),
        without_label=tuple(sorted(found.keys() - known.keys())),
        without_prediction=tuple(sorted(known.keys() - found.keys())),
        relabelled=tuple(key for key in keys if own[key] and _differ(own[key], known[key])),
    )


def _name(file: Path) -> str:
    """ "run-a" of run-a/oof_predictions.csv, "model-b" of model-b.csv."""
    return (file.resolve().parent.name if file.name == OOF_NAME else file.stem) or file.stem


def read_groups(
    file: Path, keys: Sequence[str], modalities: Sequence[str] | None = None
) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Groups of patients by what a dataset's series.csv says of their used series.

    Args:
      file: series.csv.
      keys: of the patients, (n,).
      modalities: those the model saw; None takes all.

    Returns:
      What is grouped by ("field strength", "plane of T1wCE") → group → which patients, (n,).
      Patients of whom nothing is known stand under "unknown".

    Raises:
      UsageError: as `read_column`.
      ContractError: none of the patients is in it.
    """
    columns, rows = _table(file)
    for name in ("patient", "modality", "verdict", "plane", "field_strength"):
        _column(file, columns, (name,))
    wanted = set(keys)
    seen: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        key = normalised_id(row["patient"])
        if key not in wanted or row["verdict"] != "used":
            continue
        if modalities is not None and row["modality"] not in modalities:
            continue
        for by, value in (
            ("field strength", _field_strength(row["field_strength"])),
            (f"plane of {row['modality'] or 'series'}", row["plane"]),
        ):
            of_patient = seen.setdefault(by, {}).setdefault(key, set())
            if value:
                of_patient.add(value)
    if not seen:
        raise ContractError(f"{file}: no used series of the predicted patients: another dataset's?")
    groups: dict[str, dict[str, npt.NDArray[np.bool_]]] = {}
    for by, values in sorted(seen.items()):
        told = [" and ".join(sorted(values.get(key, ()))) or "unknown" for key in keys]
        names = sorted(set(told) - {"unknown"}) + ["unknown"] * ("unknown" in told)
        groups[by] = {name: np.array([one == name for one in told]) for name in names}
    return groups


def _field_strength(text: str) -> str:
    """ "3 T" of "2.8936": the strength scanners are sold by, where one is within 10 %."""
    try:
        tesla = float(text)
    except ValueError:
        return ""
    if not math.isfinite(tesla) or tesla <= 0:
        return ""
    near = min(_FIELD_STRENGTHS, key=lambda sold: abs(sold - tesla))
    return f"{near if abs(near - tesla) <= 0.1 * near else tesla:.3g} T"


def read_histories(run: Path) -> dict[str, dict[str, list[float | None]]]:
    """Learning curves of a run: name ("fold-0") → column → value an epoch.

    Columns that are no numbers are left out; a cell that is none, or not finite, is None.
    """
    histories = {}
    for file in sorted(run.glob("fold-*/**/history.csv")):
        columns, rows = _table(file)
        curves = {name: [_finite(row[name]) for row in rows] for name in columns}
        name = file.parent.relative_to(run).as_posix()
        histories[name] = {
            column: values
            for column, values in curves.items()
            if any(v is not None for v in values)
        }
    return histories


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return {"True": 1.0, "False": 0.0}.get(text)
    return value if math.isfinite(value) else None


def _table(file: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV; cells stripped, missing ones empty."""
    reader = csv.DictReader(io.StringIO(read_text(file).removeprefix("\ufeff"), newline=""))
    try:
        columns = list(reader.fieldnames or [])
        rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from error
    return columns, rows


def _column(file: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    """The first of the wanted columns that exists."""
    for name in wanted:
        if name in found:
            return name
    told = ", ".join(found) or "none"
    raise UsageError(f"{file}: no column {' or '.join(wanted)}; it has {told}")


def _one(file: Path, patient_id: str, column: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """The value that all rows of a patient have in a column; "" where there is none."""
    values = sorted({row.get(column, "") for row in rows})
    if len(values) > 1:
        raise ContractError(f"{file}: {column} of {patient_id} is both {values[0]} and {values[1]}")
    return str(values[0])


def _number(file: Path, patient_id: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ContractError(f"{file}: {column} of {patient_id}: {text!r} is no finite number")
    return value


def _whole(file: Path, column: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ContractError(f"{file}: {column} {text!r} is no whole number") from error


def _differ(one: str, other: str) -> bool:
    try:
        return float(one) != float(other)
    except ValueError:
        return one != other
