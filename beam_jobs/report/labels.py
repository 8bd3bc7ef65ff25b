"""What a report says of labels that are not 0 and 1, and of what else is known of patients.

Of two datasets what both know is compared by the rule of all comparisons (`beam_jobs.core.drift`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from beam_jobs.core import drift
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.manifest import Place
from beam_jobs.report.cases import CaseFacts
from beam_jobs.report.data import DatasetFacts, spread
from beam_jobs.report.rows import Row, new_row, outcome, share_row

_BINS = 16


def with_labels(summary: dict[str, Any], facts: DatasetFacts) -> dict[str, Any]:
    """A report's numbers with what is to be said of labels and covariates, where there is more.

    Args:
      summary: as `data.summarise` gives it; it stays as it is where labels are 0 and 1 and no
        covariates are known.
      facts: the same dataset's.

    Returns:
      The numbers with "target" (`_target`) and "covariates" (`_covariates`), their patients with
      "said" and "known": label and covariates in words.
    """
    schema = facts.manifest.schema
    more: dict[str, Any] = {}
    if not schema.target.is_plain:
        folds = [
            {name: fold[name] for name in ("fold", "patients", "groups")}
            for fold in summary["cohort"]["folds"]
        ]
        more["target"] = _target(facts, [fold["fold"] for fold in folds])
        labels = Counter(schema.target.text(case.label) for case in facts.cases)
        cohort = {**summary["cohort"], "folds": folds}
        if schema.target.task == "regression":
            del cohort["labels"]
        else:
            cohort["labels"] = dict(sorted(labels.items()))
        more["cohort"] = cohort
    if schema.covariates:
        more["covariates"] = _covariates(facts)
    if more:
        more["patients"] = [
            {
                **patient,
                "said": schema.target.text(case.label),
                "known": _in_words(schema.covariates, case),
            }
            for patient, case in zip(summary["patients"], facts.cases, strict=True)
        ]
    return {**summary, **more}


def _target(facts: DatasetFacts, places: Sequence[Place]) -> dict[str, Any]:
    """What labels say, and how many patients have which, over all and in each place.

    Returns:
      JSON values: "task", "names", "unit", "words" and "unlabelled"; of classes and findings
      "rows" (name, and over "all" and in each of the "places" how many have it and of how many it
      is known); of values "all" and "spreads" of the places (or None), "counts" and "edges".
    """
    target = facts.manifest.schema.target
    by_place = [
        [case.label for case in facts.cases if facts.places[case.patient_id] == place]
        for place in places
    ]
    labels = [case.label for case in facts.cases]
    found: dict[str, Any] = {
        "task": target.task,
        "names": list(target.names),
        "unit": target.unit,
        "words": words(target),
        "unlabelled": sum(label is None for label in labels),
    }
    if target.task == "regression":
        values = [_values(members) for members in (labels, *by_place)]
        counts, edges = np.histogram(values[0], bins=_BINS)
        return {
            **found,
            "all": spread(values[0]),
            "spreads": [spread(one) for one in values[1:]],
            "counts": counts.tolist(),
            "edges": edges.tolist(),
        }
    rows = [
        {
            "name": name,
            "all": _having(target, place, labels),
            "places": [_having(target, place, members) for members in by_place],
        }
        for place, name in enumerate(target.names)
    ]
    return {**found, "rows": rows}


def words(target: Target) -> str:
    """What labels say, in a few words."""
    if target.is_plain:
        return "0 or 1"
    if target.task == "regression":
        return f"values of {target.labels[0]}" + (f" in {target.unit}" if target.unit else "")
    if target.task == "multilabel":
        return f"findings {', '.join(target.names)}"
    named = f" of {target.labels[0]}" if target.labels else ""
    return f"classes{named}: {', '.join(target.names)}"


def _covariates(facts: DatasetFacts) -> list[dict[str, Any]]:
    """What else is known: of each covariate its name, kind, how many know it, and what it is."""
    return [
        {
            "name": one.name,
            "known": len(values),
            "missing": len(facts.cases) - len(values),
            "spread": spread(values) if one.is_number else None,
            "categories": {} if one.is_number else _by_name(one, values),
        }
        for one, values in _known(facts)
    ]


def label_rows(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    """Labels of two datasets side by side; nothing but who has one where they say other things."""
    target, other = (facts.manifest.schema.target for facts in (ours, theirs))
    here, there = ([case.label for case in facts.cases] for facts in (ours, theirs))
    rows = []
    if target == other and target.task == "regression":
        rows += number_rows(target.labels[0], "labels", target.unit, _values(here), _values(there))
    elif target == other:
        names = ("1",) if target.is_plain else target.names
        for place, name in enumerate(names, start=target.is_plain):
            title = f"patients of class {name}"
            if target.is_plain or target.task == "multilabel":
                title = "patients of label 1" if target.is_plain else f"patients with {name}"
            sides = [_having(target, place, labels) for labels in (here, there)]
            rows.append(share_row("labels", title, *sides))
    without = [(sum(one is None for one in labels), len(labels)) for labels in (here, there)]
    return [*rows, share_row("labels", "patients without a label", *without)]


def covariate_rows(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    """Covariates of two datasets side by side; of those that one has the other says so."""
    here, there = (
        {one.name: (one, values) for one, values in _known(facts)} for facts in (ours, theirs)
    )
    rows = []
    for name in dict.fromkeys([*here, *there]):
        if name not in here or name not in there:
            texts = ["recorded" if name in side else "not recorded" for side in (here, there)]
            rows.append(new_row("covariates", name, *texts))
            continue
        (one, values), (other, others) = here[name], there[name]
        if one.is_number != other.is_number:
            texts = ["numbers" if side.is_number else "categories" for side in (one, other)]
            rows.append(new_row("covariates", name, *texts))
        elif one.is_number:
            rows += number_rows(name, "covariates", "", values, others)
        elif values and others:
            mixes = _by_name(one, values), _by_name(other, others)
            compared = drift.compare_counts("covariates", name, mixes[1], mixes[0])
            texts = [", ".join(f"{key} {n}" for key, n in mix.items()) for mix in mixes]
            change = f"{100 * compared.distance:.1f} points"
            rows.append(new_row("covariates", name, *texts, change=change, **outcome(compared)))
        sides = [
            (len(facts.cases) - len(known), len(facts.cases))
            for facts, known in ((ours, values), (theirs, others))
        ]
        rows.append(share_row("covariates", f"patients without {name}", *sides))
    return rows


def number_rows(
    name: str,
    group: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    compared: drift.Comparison | None = None,
    distance: str = "KS",
) -> list[Row]:
    """A row of two samples of numbers, none where one of them is empty.

    Args:
      name, group: of the row.
      unit: of the numbers.
      ours, theirs: the samples.
      compared: how they were compared, None to compare the distributions here.
      distance: what the comparison's distance is called.
    """
    if not ours or not theirs:
        return []
    if compared is None:
        compared = drift.compare_counts(
            group, name, Counter(map(_bin, theirs)), Counter(map(_bin, ours)), ordered=True
        )

    def shown(values: Sequence[float]) -> str:
        ends = f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
        return f"{ends} {unit}".rstrip()

    change = f"{float(np.median(ours) - np.median(theirs)):+.3g} {unit}".rstrip()
    cells = outcome(compared, distance=distance)
    return [new_row(group, name, shown(ours), shown(theirs), change=change, **cells)]


def _bin(value: float) -> str:
    """A bin of its own for all that a reader of the page would call different."""
    return f"{value:.4g}"


def _having(target: Target, place: int, labels: Sequence[Label | None]) -> tuple[int, int]:
    """How many have a class or a finding, and of how many it is known."""
    known = [label for label in labels if label is not None]
    if target.task == "multilabel":
        told = [label[place] for label in known if isinstance(label, tuple)]
        return sum(one == 1 for one in told), sum(one is not None for one in told)
    return sum(label == place for label in known), len(known)


def _values(labels: Sequence[Label | None]) -> list[float]:
    return [label for label in labels if isinstance(label, int | float)]


def _known(facts: DatasetFacts) -> list[tuple[Covariate, list[float]]]:
    """Each covariate with the numbers of those patients of whom it is known."""
    covariates = facts.manifest.schema.covariates
    columns: list[list[float]] = [[] for _ in covariates]
    for case in facts.cases:
        for column, value in zip(columns, case.covariates, strict=True):
            if not math.isnan(value):
                column.append(value)
    return list(zip(covariates, columns, strict=True))


def _by_name(one: Covariate, values: Sequence[float]) -> dict[str, int]:
    """Category → patients, those that no patient has too."""
    found = Counter(int(value) for value in values)
    return {name: found[index] for index, name in enumerate(one.categories)}


def _in_words(covariates: Sequence[Covariate], case: CaseFacts) -> str:
    """What is known of one patient: "age 51, site A"."""
    known = zip(covariates, case.covariates, strict=True)
    return ", ".join(
        f"{one.name} {one.text(value).removesuffix('.0') if one.is_number else one.text(value)}"
        for one, value in known
        if not math.isnan(value)
    )
