"""Predictions measured as their training run allows, and what its directory tells beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.common.contract_json import ContractError, require_kinds, require_that, shown
from beam_jobs.common.csv_table import number, read_table, whole_number
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.run_layout import (
    CONFIG_NAME,
    HISTORY_NAME,
    OOF_NAME,
    PERMUTATIONS_NAME,
    RUN_NAME,
)
from trainer.metrics.logits import sigmoid
from trainer.metrics.predictions import (
    KNOWN_CHOICES,
    Predictions,
    read_predictions,
    read_rows,
)
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.measure import measure_of, softmax
from trainer.metrics.wording import REASONS

_LISTS = ("modalities", "no_claim", "trained_ids", "searched_ids")
_TEXTS = ("model", "precision", "dataset_fingerprint", "epoch_choice")


def run_facts(run: files.StrPath) -> dict[str, Any] | None:
    """What run.json, or config.json of a run not finished, says; None without either.

    Raises:
      ContractError: a member of it is of another type, or unknown; the message names it.
    """
    for name in (RUN_NAME, CONFIG_NAME):
        path = files.join(run, name)
        if files.stat(path) is not None:
            found = read_json(path)
            config = {} if found.get("config") is None else found["config"]
            require_kinds({"config": config}, {"config": dict}, where=f"{files.text(path)}: ")
            _check(found, f"{files.text(path)}: ")
            _check(config, f"{files.text(path)}: config.")
            return {
                "model": found.get("model") or config.get("model"),
                "modalities": found.get("modalities") or config.get("modalities"),
                "permute_labels": bool(config.get("permute_labels")),
                "precision": found.get("precision"),
                "dataset_fingerprint": found.get("dataset_fingerprint"),
                "epoch_choice": found.get("epoch_choice") or config.get("epoch_choice"),
                "no_claim": _no_claim(found, config),
            }
    return None


def target_of_run(run: files.StrPath) -> Target | None:
    """What the labels of a run say, of its run.json; None where it has none that says it.

    Raises:
      ContractError: no target that there can be.
    """
    path = files.join(run, RUN_NAME)
    if files.stat(path) is None:
        return None
    schema = read_json(path).get("schema")
    if not isinstance(schema, Mapping) or not isinstance(schema.get("target"), Mapping):
        return None
    return Target.from_json(schema["target"], where=f"{files.text(path)}: schema.target.")


def _check(data: Mapping[str, Any], where: str) -> None:
    kinds = {**dict.fromkeys(_LISTS, list), **dict.fromkeys(_TEXTS, str)}
    there = {name: kind for name, kind in kinds.items() if data.get(name) is not None}
    require_kinds(data, there, where=where)
    for name in there.keys() & set(_LISTS):
        fits = all(isinstance(one, str) for one in data[name])
        require_that(fits, data, name, "a list of texts", where=where)
    fits = set(data.get("no_claim") or ()) <= REASONS.keys()
    require_that(fits, data, "no_claim", f"some of {', '.join(REASONS)}", where=where)
    fits = data.get("epoch_choice") in (None, *KNOWN_CHOICES)
    require_that(fits, data, "epoch_choice", f"one of {', '.join(KNOWN_CHOICES)}", where=where)


def _no_claim(found: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Why the run's out-of-fold scores allow no claim, in `REASONS`' order."""
    codes = set(found.get("no_claim") or ())
    if config.get("permute_labels"):
        codes.add("permuted")
    if "epoch_choice" not in found and "epoch_choice" not in config:
        codes.add("own_fold")
    return [code for code in REASONS if code in codes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """The estimate that an evaluation is about, and what its run adds.

    Attributes:
      predictions: as given, with their run's reasons why they allow no claim.
      estimate: `tasks.estimate.estimate_of_task`'s object of the predictions.
      null: scores of the run's retrainings on permuted labels, of its own out-of-fold predictions.
      out_of_fold: of a test set, the estimate of the run's own out-of-fold predictions; None
        without them.
      facts: `run_facts`; None without a run.
      notes: the predictions' own, and whether the run's retrainings are left out.
    """

    predictions: Predictions
    estimate: dict[str, Any]
    null: list[float]
    out_of_fold: dict[str, Any] | None
    facts: dict[str, Any] | None
    notes: tuple[str, ...]


def headline_of(
    predictions: Predictions,
    run: files.StrPath | None = None,
    level: float = 0.95,
    others: Sequence[Predictions] = (),
) -> Headline:
    """Measures predictions, as the run they come from allows.

    Predictions with folds are the run's own, out of fold. Without folds they are of a test set,
    whose patients no network of the run may have seen; without a run that vouches for that, they
    are not like with like beside another file that scores some of them out of fold.

    Args:
      predictions: of one model.
      run: directory of the training run that made them.
      level: of the interval.
      others: predictions that they are compared with.

    Raises:
      ContractError: no fold has both classes, the run was trained on patients of the test set or
        scored them out of fold, or does not say on whom it was trained; or predictions with folds
        are not the run's.
    """
    facts = run_facts(run) if run else None
    own = None
    if run and files.stat(files.join(run, OOF_NAME)) is not None:
        own = read_predictions(files.join(run, OOF_NAME), target=predictions.target)
    codes = set(predictions.no_claim)
    null: list[float] = []
    out_of_fold = None
    notes = list(predictions.notes)
    if predictions.folds is not None:
        codes.update(facts["no_claim"] if facts else ())
        if run and own:
            _check_own(predictions, own, run)
            null = read_null(run, predictions.target)
            if null and not _as_measured(predictions, own):
                null = []
                notes.append(
                    f"{PERMUTATIONS_NAME} of {run} is of other patients or labels than these, and "
                    "is left out."
                )
    else:
        codes.update({"permuted"} & set(facts["no_claim"] if facts else ()))
        if run:
            if not _checked_unseen(predictions, own, run).isdisjoint(predictions.keys):
                codes.add("searched")
        elif any(one.folds is not None and predictions.common(one)[0].size for one in others):
            codes.add("no_folds")
        if run and own:
            out_of_fold = headline_of(own, run, level).estimate
    no_claim = tuple(code for code in REASONS if code in codes)
    predictions = dataclasses.replace(predictions, no_claim=no_claim)
    try:
        estimate = estimate_of_task(
            predictions.target,
            predictions.labels,
            predictions.repeats,
            folds=predictions.folds,
            level=level,
            null=null or None,
            no_claim=no_claim,
        )
    except ValueError as error:
        raise ContractError(str(error)) from error
    return Headline(
        predictions=predictions,
        estimate=estimate,
        null=null,
        out_of_fold=out_of_fold,
        facts=facts,
        notes=tuple(notes),
    )


def decided(metrics: Mapping[str, Any], run: files.StrPath) -> dict[str, Any]:
    """A run's metrics, with its retrainings on permuted labels where there are any by now.

    Raises:
      ContractError: as `headline_of`.
    """
    if files.stat(files.join(run, PERMUTATIONS_NAME)) is None:
        return dict(metrics)
    own = read_predictions(files.join(run, OOF_NAME))
    return {**metrics, **headline_of(own, run).estimate}


def _as_measured(predictions: Predictions, own: Predictions) -> bool:
    """Whether patients and labels are all those that the run's retrainings were scored on."""
    is_float = own.labels.dtype.kind == "f"  # where unknown ones are NaN
    same = np.array_equal(predictions.labels, own.labels, equal_nan=is_float)
    return predictions.keys == own.keys and same


def _check_own(predictions: Predictions, own: Predictions, run: files.StrPath) -> None:
    mine, theirs = predictions.common(own)
    scores, there = predictions.repeats[:, mine], own.repeats[:, theirs]
    target = predictions.target
    if target.task == "binary":
        with np.errstate(invalid="ignore"):  # a seed may lack patients
            # The file's logits, or its probabilities.
            ways = [(scores, there), (scores, sigmoid(there))]
    elif target.task == "multiclass":
        with np.errstate(invalid="ignore"):
            ways = [(softmax(scores), softmax(there))]
    else:
        ways = [(scores, there)]
    least = 0 if target.task == "binary" else 1e-6  # of values of any size
    same = scores.shape == there.shape and any(
        np.allclose(one, known, rtol=least, atol=1e-9, equal_nan=True) for one, known in ways
    )
    if len(mine) < len(predictions.keys) or not same:
        raise ContractError(
            f"{run}: {OOF_NAME} there has other patients or scores than {predictions.name}: "
            "the run of other predictions?"
        )


def _checked_unseen(
    predictions: Predictions, own: Predictions | None, run: files.StrPath
) -> set[str]:
    """Refuses patients whom the run has seen; keys of those on whom its settings were searched."""
    asked = {*predictions.keys, *predictions.without_label}
    of_run = files.join(run, RUN_NAME)
    record = read_json(of_run) if files.stat(of_run) else {}
    trained = record.get("trained_ids")
    if trained is None:
        raise ContractError(
            f"{run} does not name the patients it was trained on (not finished, or of a version "
            f"before 0.3): whether {predictions.name} is a test set cannot be told"
        )
    for known, what in (
        (map(normalised_id, trained), f"networks of {run} were trained on"),
        (own.keys if own else (), f"{files.join(run, OOF_NAME)} scores, out of fold,"),
    ):
        if seen := sorted(asked.intersection(known)):
            more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
            raise ContractError(
                f"{predictions.name} is no test set: {what} {len(seen)} of its patients: "
                f"{', '.join(seen[:3])}{more}"
            )
    return set(map(normalised_id, record.get("searched_ids") or ()))


def read_null(run: files.StrPath, target: Target = PLAIN) -> list[float]:
    """Scores of a run's retrainings on permuted labels, in permutations.csv; [] where it is absent.

    Raises:
      ContractError: a value that is no score, or a permutation's number that is none or stands
        twice.
    """
    file = files.join(run, PERMUTATIONS_NAME)
    if files.stat(file) is None:
        return []
    measure = measure_of(target)
    column, least = measure.key, measure.least
    _, rows = read_rows(file, ("permutation",), (column,))
    found: list[float] = []
    numbers: set[int] = set()
    for row in rows:
        text = row["permutation"]
        try:
            place = whole_number(text)
        except ValueError:
            place = 0
        if place < 1 or place in numbers:
            raise ContractError(
                f"{file}: permutation {shown(text)}: a number from 1 on that stands once required"
            )
        numbers.add(place)
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not least <= value <= 1:
            found_there = f"{file}: {column} {shown(row[column])}"
            raise ContractError(f"{found_there}: a number in {least:g} .. 1 required")
        found.append(value)
    return found


def _number(cell: str) -> float | None:
    try:
        return number(cell)
    except ValueError:
        return None


def read_histories(run: files.StrPath) -> dict[str, dict[str, list[float | None]]]:
    """Learning curves of a run: name ("fold-0") → column → value an epoch.

    Columns that are no numbers are left out; a cell that is none, or not finite, is None.

    Raises:
      ContractError: a history.csv is no table; the message names it.
    """
    root = files.join(run, "")
    histories = {}
    for entry in files.entries(run):
        name, _, file = entry.path.removeprefix(root).rpartition("/")
        if file != HISTORY_NAME or not name.startswith("fold-"):
            continue
        try:
            columns, rows = read_table(files.read(entry.path), ())
        except ValueError as error:
            raise ContractError(f"{entry.path}: {error}") from error
        numbers = {column: [_number(row[column]) for _, row in rows] for column in columns}
        histories[name] = {
            column: values
            for column, values in numbers.items()
            if any(value is not None for value in values)
        }
    return histories
