"""Out-of-fold predictions: what calibrations are fitted on, each row proven to be one.

A run's `oof_predictions.csv` holds, for each patient, the answers of the members that did not see
the patient; `out_of_fold` refuses any other row.

task         label of a row                     answer of a row
-----------  ---------------------------------  -----------------------------------
binary       label, 0 or 1                      logit
multiclass   label, the name of a class         logit_<class> of each
multilabel   label_<name> of each, "" unknown   logit_<name> of each
regression   label                              value, in the label's unit
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.csv_table import number, read_table, whole_number
from beam_jobs.core.cohort.target import PLAIN, Label, Target

ENSEMBLES = ("logits", "probabilities")

Float = npt.NDArray[np.float64]


class Held(NamedTuple):
    """A patient of an out-of-fold table: label, fold, and answers of members that held it out."""

    label: Label
    fold: int
    answers: list[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions of members on patients whom these members did not see, sorted by patient.

    Attributes:
      patients: ids.
      labels: (n,), 0 or 1, a class's index or a value; of a multilabel (n, labels), NaN unknown.
      logits: one array a patient, of each member that held the patient out: (members,) logits or
        values, of classes and several labels (members, outputs) logits.
      target: what the labels say.
      folds: (n,) which each was held out in; of several runs, in the first that has the patient.
    """

    patients: tuple[str, ...]
    labels: npt.NDArray[Any]
    logits: tuple[Float, ...]
    target: Target = PLAIN
    folds: npt.NDArray[np.int64] | None = None

    def ensembled(self, ensemble: str) -> Float:
        """The members' answers combined as the graph does it, (n,) or (n, outputs)."""
        return np.array([combine(logits, ensemble, self.target) for logits in self.logits])


def out_of_fold(
    text: str,
    members: Collection[tuple[int, int]],
    *,
    source: str,
    folds: Mapping[str, int] | None = None,
    target: Target = PLAIN,
) -> dict[str, Held]:
    """The rows of one run's oof_predictions.csv, each proven to be out of fold.

    Args:
      text: the CSV.
      members: (fold, seed) of each of the run's members: the fold it did not see, and its seed.
      source: the file, for messages.
      folds: patient -> fold, as the dataset has it, where it is at hand.
      target: what the labels say.

    Returns:
      patient -> what the table says of it.

    Raises:
      ContractError: not such a table; a row of no member; a patient in two folds, in another fold
        than the dataset says, with two labels, or twice for one member.
    """
    labels = target.label_columns
    answers = target.columns("value" if target.task == "regression" else "logit")
    try:
        columns = ("patient_id", *labels, "fold", "seed", *answers)
        _, rows = read_table(text, columns, ours=True)
    except ValueError as error:
        raise ContractError(f"{source}: {error}") from error
    found: dict[str, Held] = {}
    fold_of: dict[str, int] = {}
    seen: set[tuple[str, int, int]] = set()
    for line, row in rows:
        where, patient = f"{source}, line {line}", row["patient_id"]
        who = shown(patient)[1:-1]
        try:
            label = _label(target, [row[name] for name in labels])
            fold, seed = (whole_number(row[name]) for name in ("fold", "seed"))
            given = [number(row[name]) for name in answers]
        except ValueError as error:
            raise ContractError(f"{where}: {error}") from error
        if (fold, seed) not in members:
            raise ContractError(
                f"{where}: patient {who} is of fold {fold}, seed {seed}, but no member of the "
                "run held out that fold with that seed: not out of fold"
            )
        if fold_of.setdefault(patient, fold) != fold:
            raise ContractError(
                f"{where}: patient {who} is of fold {fold} and of fold {fold_of[patient]}: "
                "one of the two members has seen the patient"
            )
        if folds is not None and folds.get(patient) != fold:
            raise ContractError(
                f"{where}: patient {who} is of fold {fold}, the dataset says "
                f"{folds.get(patient, 'nothing of such a patient')}: not out of fold"
            )
        if (patient, fold, seed) in seen:
            raise ContractError(f"{where}: patient {who} stands twice for seed {seed}")
        seen.add((patient, fold, seed))
        if found.setdefault(patient, Held(label, fold, [])).label != label:
            raise ContractError(f"{where}: patient {who} has two labels")
        found[patient].answers.append(given if target.outputs > 1 else given[0])
    return found


def pooled(tables: Sequence[Mapping[str, Held]], target: Target = PLAIN) -> OutOfFold:
    """The out-of-fold answers of several runs: a patient has those of every run that held it out.

    Raises:
      ContractError: runs disagree on a patient's label.
    """
    held: dict[str, Held] = {}
    for table in tables:
        for patient, (label, fold, values) in table.items():
            known = held.setdefault(patient, Held(label, fold, []))
            if known.label != label:
                raise ContractError(f"runs disagree on the label of patient {patient}")
            known.answers.extend(values)
    patients = tuple(sorted(held))
    kind = np.int64 if target.task in ("binary", "multiclass") else np.float64
    found = np.array([held[name].label for name in patients], dtype=kind)
    return OutOfFold(
        patients=patients,
        labels=found.reshape(-1, target.outputs) if target.task == "multilabel" else found,
        logits=tuple(np.array(held[name].answers) for name in patients),
        target=target,
        folds=np.array([held[name].fold for name in patients], dtype=np.int64),
    )


def combine(answers: Float, ensemble: str, target: Target = PLAIN) -> Any:
    """Members' answers as one: the mean of logits or values, or the logit of the mean probability.

    Args:
      answers: (members,) logits or values, or (members, outputs) logits.
      ensemble: one of `ENSEMBLES`; values are averaged whichever it is.
      target: of the answers; of classes the logits of a mean of probabilities are its logarithms.

    Returns:
      A float64, or (outputs,) of them.
    """
    if ensemble == "logits" or target.task == "regression":
        mean: Float = np.mean(answers, axis=0)
        return mean if answers.ndim > 1 else float(mean)
    if target.task == "multiclass":
        logs = answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)
        return np.logaddexp.reduce(logs, axis=0) - np.log(len(answers))
    # log(mean p) - log(mean (1 - p)): finite where a probability would round to 1.
    down, up = -np.logaddexp(0.0, -answers), -np.logaddexp(0.0, answers)
    logit = np.logaddexp.reduce(down, axis=0) - np.logaddexp.reduce(up, axis=0)
    return logit if answers.ndim > 1 else float(logit)


def _label(target: Target, cells: Sequence[str]) -> Label:
    """The label of a row's cells.

    Raises:
      ValueError: they hold none; the message has what was found.
    """
    if target.task == "multilabel":
        return tuple(None if cell == "" else _of_two(cell) for cell in cells)
    if target.task == "regression":
        return number(cells[0])
    if target.task == "binary":
        return _of_two(cells[0])
    if cells[0] not in target.classes:
        names = shown(", ".join(target.classes))[1:-1]
        raise ValueError(f"label {shown(cells[0])}: one of {names} required")
    return target.classes.index(cells[0])


def _of_two(cell: str) -> int:
    label = whole_number(cell)
    if label not in (0, 1):
        raise ValueError(f"label {label}: 0 or 1 required")
    return label
