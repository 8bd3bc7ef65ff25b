"""The submission table: which patients, in which order and spelling, with which value.

Pure functions over text and rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_table
from beam_jobs.core.cohort.ids import IdPolicy, is_number, normalised_id
from serving.predict.reasons import Unpredicted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A patient (or an unnamed record) without a prediction, or a shard that cannot be trusted.

    Attributes:
      patient_id: as in the submission, but hashed where the input's ids are; empty for a shard,
        and where an unreadable record gave no name.
      reason: stable code.
      detail: what was found, for a person.
    """

    patient_id: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """What `compose` made.

    Attributes:
      rows: (id, answer) in the order they are written; an answer is a probability, one a class or
        finding, or a value.
      failures: one a row that holds the prior, one a record that could not be named, and one a
        shard that its manifest does not know.
      predicted: rows that hold a prediction.
      patients: the patient predicted for each row, as the input has it; "" without prediction.
      flags: for each row the reason why it has no prediction, or those of the patient's files and
        series that were refused.
      lacking: one a predicted row of whom a covariate is not known.
    """

    rows: tuple[tuple[str, tuple[float, ...]], ...]
    failures: tuple[Failure, ...]
    predicted: int
    patients: tuple[str, ...] = ()
    flags: tuple[tuple[str, ...], ...] = ()
    lacking: tuple[Failure, ...] = ()


def id_order(patient_id: str) -> tuple[int, int, str]:
    """Sort key: ids of digits by number, then all others by text."""
    if is_number(patient_id):
        return (0, int(patient_id), patient_id)
    return (1, 0, patient_id)


def read_ids(text: str, id_column: str, *, source: str) -> list[str]:
    """The ids of a sample submission (CSV text with a header), in its order and spelling.

    Raises:
      UsageError: not CSV, no such column, no rows, an empty id, or an id that stands twice.
    """
    try:
        _, rows = read_table(text, (id_column,))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    ids = [row[id_column] for _, row in rows]
    if not ids:
        raise UsageError(f"{source} has no ids")
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)
    if "" in ids or twice:
        found = f"ids twice: {some(twice)}" if twice else "an empty id"
        raise UsageError(f"{source}, column {id_column}: {found}")
    return ids


def input_ids(requested: Sequence[str], policy: IdPolicy, *, source: str) -> list[str]:
    """What the input calls the requested patients: the ids themselves, or their keyed hashes.

    Raises:
      UsageError: two spellings of one patient, which have one hash; named by their rows.
    """
    ids = [policy.apply(name) for name in requested]
    if policy.key is not None:
        first: dict[str, int] = {}
        for row, name in enumerate(ids, start=1):
            if first.setdefault(name, row) != row:
                raise UsageError(f"{source}: rows {first[name]} and {row} name one patient")
    return ids


def match_ids(requested: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Which known patient each requested id means: `5` is `00005`, the same spelling goes first.

    Returns:
      requested id -> known id, for those that are known.

    Raises:
      ContractError: a requested id means several patients, or several mean the same one.
    """
    by_spelling = set(known)
    by_number: dict[str, list[str]] = {}
    for name in sorted(by_spelling):
        by_number.setdefault(normalised_id(name), []).append(name)
    matches: dict[str, str] = {}
    for name in requested:
        candidates = [name] if name in by_spelling else by_number.get(normalised_id(name), [])
        if len(candidates) > 1:
            raise ContractError(f"id {name} is ambiguous: it may mean {some(candidates)}")
        if candidates:
            matches[name] = candidates[0]
    for patient, count in Counter(matches.values()).items():
        if count > 1:
            same = [name for name, match in matches.items() if match == patient]
            raise ContractError(f"ids {some(same)} all mean patient {patient}")
    return matches


def compose(
    *,
    predictions: Iterable[tuple[str, tuple[float, ...]]],
    rejects: Iterable[Mapping[str, str]],
    prior: tuple[float, ...],
    expected: Mapping[str, str] | None = None,
    requested: Sequence[str] | None = None,
    spelling: Sequence[str] | None = None,
    unknown: Mapping[str, Sequence[str]] | None = None,
) -> Submission:
    """Exactly one row a patient; who has no prediction gets the prior and a failure.

    Without `requested` these are all patients seen (predicted, rejected or expected), in
    `id_order`; with it the requested ids, in their order and spelling.

    Args:
      predictions: (patient_id, `Prediction.answer`).
      rejects: rows with `scope`, `subject`, `patient`, `reason`, `detail`; those that concern a
        patient with a prediction are passed over.
      prior: of the model's contract.
      expected: patients that must be there -> the file that should hold them.
      requested: ids of a sample submission, as the input has them (`input_ids`).
      spelling: what the rows call them; default `requested`.
      unknown: predicted patient -> covariates that are not known of it.

    Raises:
      ContractError: a patient has two predictions, or ids are ambiguous.
    """
    expected = expected or {}
    predictions = list(predictions)
    values = {name: answer for name, answer in predictions if all(map(math.isfinite, answer))}
    twice = sorted(name for name, n in Counter(name for name, _ in predictions).items() if n > 1)
    if twice:
        raise ContractError(f"patients in more than one record: {some(twice)}")
    reasons = {
        name: (str(Unpredicted.NOT_FINITE), f"the model answered {', '.join(map(str, answer))}")
        for name, answer in predictions
        if name not in values
    }
    unnamed: list[Failure] = []
    partly: dict[str, set[str]] = {}
    of_file: dict[str, tuple[str, str]] = {}
    # A patient's own verdict says more than that of one of its series or files.
    scopes = {"patient": 0, "record": 1, "shard": 1, "series": 2, "file": 3}
    for row in sorted(
        rejects,
        key=lambda row: (scopes.get(row["scope"], 4), row["subject"], row["reason"], row["detail"]),
    ):
        reason = (row["reason"], row["detail"])
        if row["patient"]:
            if row["patient"] not in values:
                reasons.setdefault(row["patient"], reason)
            partly.setdefault(row["patient"], set()).add(row["reason"])
        elif row["scope"] in ("record", "shard"):
            of_file.setdefault(row["subject"], reason)
            unnamed.append(Failure(patient_id="", reason=row["reason"], detail=row["detail"]))
    for name, file in expected.items():
        if name not in values:
            detail = f"the manifest names it in {file}, which lacks it"
            default = (str(Unpredicted.MISSING_RECORD), detail)
            reasons.setdefault(name, of_file.get(file, default))

    known = {*values, *reasons}
    if requested is None:
        answers = {name: name for name in sorted(known, key=id_order)}
    else:
        answers = match_ids(requested, known)
    absent = (str(Unpredicted.NOT_IN_INPUT), "no such patient in the input")
    rows, failures, flags = [], [], []
    names = list(answers) if requested is None else requested
    for name, shown in zip(names, spelling or names, strict=True):
        patient = answers.get(name, "")
        rows.append((shown, values.get(patient, prior)))
        flags.append(tuple(sorted(partly.get(patient, ()))))
        if patient not in values:
            code, detail = reasons.get(patient, absent)
            failures.append(Failure(patient_id=name, reason=code, detail=detail))
            flags[-1] = (code,)
    lacking = [
        Failure(
            patient_id=name,
            reason=str(Unpredicted.MISSING_COVARIATE),
            detail=f"{', '.join(unknown[patient])}: not known; predicted without",
        )
        for name in names
        if unknown and (patient := answers.get(name, "")) in values and unknown.get(patient)
    ]
    # Where a manifest names a damaged file's patients, their own lines report it; for a file that
    # can be read, but is not the manifest's, none may.
    reported = [f for f in unnamed if not expected or f.reason == Unpredicted.OTHER_SHARD]
    return Submission(
        rows=tuple(rows),
        failures=(*failures, *reported),
        predicted=sum(answers.get(name, "") in values for name in names),
        patients=tuple(name if (name := answers.get(n, "")) in values else "" for n in names),
        flags=tuple(flags),
        lacking=tuple(lacking),
    )


def some(names: Sequence[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
