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

Row = dict[str, Any]


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
        "drift": [*_labels(ours, theirs), *_modalities(ours, theirs), *_reasons(ours, theirs)],
    }


def _of(manifest: Any) -> dict[str, Any]:
    return {"folds": manifest.folds, "seed": manifest.seed, "id_policy": manifest.id_policy}


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

    def has(case: Any, names: Sequence[str]) -> set[str]:
        return {name for name, flag in zip(names, case.present, strict=True) if flag}

    return {
        "both": len(both),
        "only_ours": sorted(here.keys() - there.keys()),
        "only_theirs": sorted(there.keys() - here.keys()),
        "other_label": [name for name in both if here[name].label != there[name].label],
        "other_fold": [name for name in both if here[name].fold != there[name].fold],
        "other_channels": [
            name for name in both if has(here[name], channels[0]) != has(there[name], channels[1])
        ],
    }


def _row(group: str, name: str, ours: str, theirs: str, **more: Any) -> Row:
    cells = {"change": "", "test": "", "marked": False}
    return {"group": group, "name": name, "ours": ours, "theirs": theirs, **cells, **more}


def _tested(compared: Comparison | None, *, distance: str = "distance") -> Row:
    """The cells that say how a comparison came out."""
    if compared is None:
        return {}
    found = f"{distance} {compared.distance:.2f}"
    limit = f"limit {compared.limit:.2f}" if compared.limit < 1 else "too few"
    return {"test": f"{found}, {limit}", "marked": compared.drifted}


def _share(group: str, name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> Row:
    """Two shares, each (part, whole), and their difference in points."""
    (k, n), (m, total) = ours, theirs
    row = _row(
        group,
        name,
        f"{k} of {n}" + (f" ({100 * k / n:.0f} %)" if n else ""),
        f"{m} of {total}" + (f" ({100 * m / total:.0f} %)" if total else ""),
    )
    if n and total:
        compared = drift.compare_counts(
            group, name, {"yes": m, "no": total - m}, {"yes": k, "no": n - k}
        )
        row.update(change=f"{100 * (k / n - m / total):+.1f} points", **_tested(compared))
    return row


def _labels(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    def positive(facts: DatasetFacts) -> tuple[int, int]:
        labels = [case.label for case in facts.cases if case.label is not None]
        return sum(label == 1 for label in labels), len(labels)

    def unlabelled(facts: DatasetFacts) -> tuple[int, int]:
        return sum(case.label is None for case in facts.cases), len(facts.cases)

    return [
        _share("labels", "patients of label 1", positive(ours), positive(theirs)),
        _share("labels", "patients without a label", unlabelled(ours), unlabelled(theirs)),
    ]


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
            _share(name, "patients who have it", _having(ours, name), _having(theirs, name))
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
    return _row(name, "planes", mix(ours), mix(theirs), change=change, **_tested(compared))


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
        return [_row(group, _MEASURES[column], known[bool(ours)], known[bool(theirs)])]
    if not ours or not theirs:
        return []
    if column not in _COUNTED:
        compared = drift.compare_counts(
            group, column, Counter(map(_bin, theirs)), Counter(map(_bin, ours)), ordered=True
        )
    unit = _UNITS[column]

    def shown(values: Sequence[float]) -> str:
        spread = f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
        return f"{spread} {unit}".rstrip()

    return [
        _row(
            group,
            _MEASURES[column],
            shown(ours),
            shown(theirs),
            change=f"{float(np.median(ours) - np.median(theirs)):+.3g} {unit}".rstrip(),
            **_tested(compared, distance="distance" if column == "field_strength" else "KS"),
        )
    ]


def _bin(value: float) -> str:
    """A bin of its own for all that a reader of the page would call different."""
    return f"{value:.4g}"


def _intensities(name: str, quantiles: Sequence[Comparison]) -> Row:
    """The quantile of the stored foreground values that lies furthest beyond its limit."""
    worst = max(quantiles, key=lambda one: one.distance / one.limit)
    quantile = worst.what.removeprefix("intensity q").lstrip("0")
    here, there = (100 * side["mean"] for side in (worst.found, worst.training))
    return _row(
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
        _row(
            "rejects",
            reason,
            str(here.get(reason, 0)),
            str(there.get(reason, 0)),
            change=f"{here.get(reason, 0) - there.get(reason, 0):+d}",
            marked=(reason in here) != (reason in there),
        )
        for reason in sorted({*here, *there})
    ]
