"""Two datasets held against each other: what drifted, with numbers.

What both have is counted and compared as prediction compares its patients with those of training
(`beam_jobs.core.drift`): one rule, one limit for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.core import drift
from beam_jobs.core.drift import Comparison, Statistics
from beam_jobs.report.data import MEASURES, DatasetFacts
from beam_jobs.report.labels import covariate_rows, label_rows, number_rows, words
from beam_jobs.report.rows import Row, new_row, outcome, share_row

_MEASURES = {
    "slices": "slices a series",
    "spacing": "spacing in plane",
    "slice_step": "step between slices",
    "thickness": "slice thickness",
    "obliquity": "obliquity",
    "field_strength": "field strength",
    "blank_share": "blank slices a series",
}
_UNITS = {**MEASURES, "spacing": "mm", "blank_share": "%"}
# What of them a model's statistics hold, and under which name.
_COUNTED = {"spacing": "spacing", "slice_step": "step", "field_strength": "field_strength"}


def compare(ours: DatasetFacts, theirs: DatasetFacts) -> dict[str, Any]:
    """What differs between a dataset and another.

    Returns:
      JSON values: "same" (equal fingerprints), "recipe" (fields that differ), "patients" and
      "drift" (rows of group, name, ours, theirs, change and whether it is marked).
    """
    here, there = ours.manifest, theirs.manifest
    spec, other = {**here.spec, **_of(here)}, {**there.spec, **_of(there)}
    return {
        "same": here.dataset_fingerprint == there.dataset_fingerprint,
        "fingerprint": there.dataset_fingerprint,
        "recipe": [
            {"name": name, "ours": _shown(spec.get(name)), "theirs": _shown(other.get(name))}
            for name in sorted({*spec, *other})
            if spec.get(name) != other.get(name)
        ],
        "patients": _patients(ours, theirs),
        "drift": [
            *label_rows(ours, theirs),
            *covariate_rows(ours, theirs),
            *_modalities(ours, theirs),
            *_reasons(ours, theirs),
        ],
    }


def _of(manifest: Any) -> dict[str, Any]:
    fields = {"folds": manifest.folds, "seed": manifest.seed, "id_policy": manifest.id_policy}
    return {**fields, "labels": words(manifest.schema.target)}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _patients(ours: DatasetFacts, theirs: DatasetFacts) -> dict[str, Any]:
    """Who is in both, in one, and in both with another label, fold or channels.

    Ids are compared as written: a kept id and its hash are two people here.
    """
    here = {case.patient_id: case for case in ours.cases}
    there = {case.patient_id: case for case in theirs.cases}
    both = sorted(here.keys() & there.keys())
    channels = ours.manifest.schema.modalities, theirs.manifest.schema.modalities
    # Where labels say other things, none can be the same.
    said = ours.manifest.schema.target == theirs.manifest.schema.target

    def has(case: Any, names: Sequence[str]) -> set[str]:
        return {name for name, flag in zip(names, case.present, strict=True) if flag}

    return {
        "both": len(both),
        "only_ours": sorted(here.keys() - there.keys()),
        "only_theirs": sorted(there.keys() - here.keys()),
        "other_label": [name for name in both if said and here[name].label != there[name].label],
        "other_fold": [name for name in both if here[name].fold != there[name].fold],
        "other_channels": [
            name for name in both if has(here[name], channels[0]) != has(there[name], channels[1])
        ],
    }


def _statistics(facts: DatasetFacts) -> Statistics:
    """The dataset as a model's statistics count it."""
    modalities = facts.manifest.schema.modalities
    total = drift.of_series(facts.series or [], modalities)
    for case in facts.cases:
        voxels = case.levels * (np.arange(case.levels.shape[1]) > 0)
        channels = zip(modalities, case.present, voxels, strict=True)
        total += drift.of_levels({name: row if there else None for name, there, row in channels})
    return total


def _modalities(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    channels = theirs.manifest.schema.modalities
    common = [name for name in ours.manifest.schema.modalities if name in channels]
    found, _ = drift.compare(_statistics(theirs), _statistics(ours), common)
    rows = []
    for name in common:
        compared = {one.what: one for one in found if one.modality == name}
        rows.append(
            share_row(name, "patients who have it", _having(ours, name), _having(theirs, name))
        )
        if "plane" in compared:
            rows.append(_planes(name, ours, theirs, compared["plane"]))
        for column in _MEASURES:
            rows += _measure(
                name,
                column,
                _measured(ours, name, column),
                _measured(theirs, name, column),
                compared.get(_COUNTED.get(column, "")),
            )
        if quantiles := [one for what, one in compared.items() if what.startswith("intensity")]:
            rows.append(_intensities(name, quantiles))
    return rows


def _having(facts: DatasetFacts, modality: str) -> tuple[int, int]:
    channel = facts.manifest.schema.modalities.index(modality)
    return sum(case.present[channel] for case in facts.cases), len(facts.cases)


def _planes(name: str, ours: DatasetFacts, theirs: DatasetFacts, compared: Comparison) -> Row:
    def mix(facts: DatasetFacts) -> str:
        planes = Counter(row["plane"] or "unknown" for row in facts.used(name))
        return ", ".join(f"{plane} {count}" for plane, count in sorted(planes.items()))

    change = f"{100 * compared.distance:.1f} points"
    return new_row(name, "planes", mix(ours), mix(theirs), change=change, **outcome(compared))


def _measured(facts: DatasetFacts, modality: str, column: str) -> list[float]:
    """A measure of each used series of a modality, where it is known."""
    if column == "blank_share":
        return facts.blank_shares(modality)
    if column == "spacing":
        return [found for row in facts.used(modality) if (found := drift.spacing_of(row))]
    return facts.measures(modality, column)


def _measure(
    group: str,
    column: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    compared: Comparison | None,
) -> list[Row]:
    if column == "blank_share" and bool(ours) != bool(theirs):
        # Earlier versions did not count them.
        known = {True: "counted", False: "not recorded"}
        return [new_row(group, _MEASURES[column], known[bool(ours)], known[bool(theirs)])]
    return number_rows(
        _MEASURES[column],
        group,
        _UNITS[column],
        ours,
        theirs,
        compared=compared if column in _COUNTED else None,
        distance="distance" if column == "field_strength" else "KS",
    )


def _intensities(name: str, quantiles: Sequence[Comparison]) -> Row:
    """The quantile of the stored foreground values that lies furthest beyond its limit."""
    worst = max(quantiles, key=lambda one: one.distance / one.limit)
    quantile = worst.what.removeprefix("intensity q").lstrip("0")
    here, there = (100 * side["mean"] for side in (worst.found, worst.training))
    return new_row(
        name,
        "stored intensities",
        f"{quantile} % quantile at {here:.1f} % of the range",
        f"{quantile} % quantile at {there:.1f} % (SD {100 * worst.training['sd']:.1f} %)",
        change=f"{here - there:+.1f} %",
        test=f"distance {100 * worst.distance:.1f} %, limit {100 * worst.limit:.1f} %",
        marked=worst.drifted,
    )


def _reasons(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    def counts(facts: DatasetFacts) -> Mapping[str, int]:
        return Counter(row["reason"] for row in facts.rejects or [])

    here, there = counts(ours), counts(theirs)
    return [
        new_row(
            "rejects",
            reason,
            str(here.get(reason, 0)),
            str(there.get(reason, 0)),
            change=f"{here.get(reason, 0) - there.get(reason, 0):+d}",
            marked=(reason in here) != (reason in there),
        )
        for reason in sorted({*here, *there})
    ]
