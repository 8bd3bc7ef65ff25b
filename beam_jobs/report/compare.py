"""Two datasets held against each other: what drifted, with numbers.

Distributions over series are compared by the two-sample Kolmogorov-Smirnov statistic (the largest
difference of the two cumulative shares), shares and counts by their difference, intensities by the
first Wasserstein distance in per cent of the stored range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.report.data import INTENSITY_BINS, MEASURES, DatasetFacts, densities

# A difference is marked where chance alone would show it in fewer than one comparison of a hundred.
_P = 0.01
# Intensities are marked from this distance on: with many voxels every difference is significant.
_INTENSITY_DRIFT = 2.0
_NAMES = {
    "slices": "slices a series",
    "row_spacing": "spacing between rows",
    "slice_step": "step between slices",
    "thickness": "slice thickness",
    "obliquity": "obliquity",
    "field_strength": "field strength",
    "blank_share": "blank slices a series",
}

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


def _share(
    group: str, name: str, ours: tuple[int, int], theirs: tuple[int, int], counted: str
) -> Row:
    """Two shares, each (part, whole), their difference in points and its two-sided p.

    The p is Fisher's exact test's.
    """
    from scipy.stats import fisher_exact

    (k, n), (m, total) = ours, theirs
    p = float(fisher_exact([[k, n - k], [m, total - m]])[1]) if n and total else 1.0
    return {
        "group": group,
        "name": name,
        "ours": f"{k} of {n}" + (f" ({100 * k / n:.0f} %)" if n else ""),
        "theirs": f"{m} of {total}" + (f" ({100 * m / total:.0f} %)" if total else ""),
        "change": f"{100 * (k / n - m / total):+.1f} points" if n and total else "",
        "test": f"p {_p(p)}" if n and total else "",
        "marked": p < _P,
        "of": counted,
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _labels(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    def positive(facts: DatasetFacts) -> tuple[int, int]:
        labels = [case.label for case in facts.cases if case.label is not None]
        return sum(labels), len(labels)

    def unlabelled(facts: DatasetFacts) -> tuple[int, int]:
        return sum(case.label is None for case in facts.cases), len(facts.cases)

    return [
        _share("labels", "patients of label 1", positive(ours), positive(theirs), "labelled"),
        _share("labels", "patients without a label", unlabelled(ours), unlabelled(theirs), "all"),
    ]


def _modalities(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    rows = []
    channels = theirs.manifest.schema.modalities
    for channel, name in enumerate(ours.manifest.schema.modalities):
        if name not in channels:
            continue
        other = channels.index(name)
        here = [case for case in ours.cases if case.present[channel]]
        there = [case for case in theirs.cases if case.present[other]]
        rows.append(
            _share(
                name,
                "patients who have it",
                (len(here), len(ours.cases)),
                (len(there), len(theirs.cases)),
                "all",
            )
        )
        rows += _planes(name, ours, theirs)
        for column, unit in MEASURES.items():
            rows += _distribution(
                name, column, unit, ours.measures(name, column), theirs.measures(name, column)
            )
        rows += _blank(name, ours.blank_shares(name), theirs.blank_shares(name))
        if here and there:
            rows.append(_intensities(name, (here, channel), (there, other)))
    return rows


def _planes(name: str, ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    here = Counter(row["plane"] for row in ours.used(name))
    there = Counter(row["plane"] for row in theirs.used(name))
    if not here or not there:
        return []
    return [
        _share(
            name,
            f"{plane} series",
            (here[plane], here.total()),
            (there[plane], there.total()),
            "series",
        )
        for plane in sorted({*here, *there})
    ]


def _distribution(
    group: str, column: str, unit: str, ours: Sequence[float], theirs: Sequence[float]
) -> list[Row]:
    if not ours or not theirs:
        return []
    from scipy.stats import ks_2samp

    found = ks_2samp(ours, theirs)

    def told(values: Sequence[float]) -> str:
        spread = f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
        return f"{spread} {unit}".rstrip()

    return [
        {
            "group": group,
            "name": _NAMES[column],
            "ours": told(ours),
            "theirs": told(theirs),
            "change": f"{float(np.median(ours) - np.median(theirs)):+.3g} {unit}".rstrip(),
            "test": f"KS {found.statistic:.2f}, p {_p(float(found.pvalue))}",
            "marked": bool(found.pvalue < _P),
            "of": "median (least to most)",
        }
    ]


def _blank(group: str, ours: Sequence[float], theirs: Sequence[float]) -> list[Row]:
    """The shares of blank slices as scanned; earlier versions did not count them."""
    if bool(ours) == bool(theirs):
        return _distribution(group, "blank_share", "%", ours, theirs)
    told = {True: "counted", False: "not recorded"}
    return [
        {
            "group": group,
            "name": _NAMES["blank_share"],
            "ours": told[bool(ours)],
            "theirs": told[bool(theirs)],
            "change": "",
            "test": "",
            "marked": False,
            "of": "",
        }
    ]


def _intensities(name: str, ours: tuple[Any, int], theirs: tuple[Any, int]) -> Row:
    """How far the mean distributions of the stored foreground values lie apart."""
    here, there = densities(*ours).mean(axis=0), densities(*theirs).mean(axis=0)
    # The distance of two histograms on one axis is the area between their cumulative shares.
    distance = 100 * float(np.abs(np.cumsum(here - there)).sum()) / INTENSITY_BINS
    centres = (np.arange(INTENSITY_BINS) + 0.5) / INTENSITY_BINS
    middle = [100 * float(shares @ centres) for shares in (here, there)]
    return {
        "group": name,
        "name": "stored intensities",
        "ours": f"mean {middle[0]:.1f} % of the range",
        "theirs": f"mean {middle[1]:.1f} % of the range",
        "change": f"{middle[0] - middle[1]:+.1f} %",
        "test": f"distance {distance:.1f} %",
        "marked": distance >= _INTENSITY_DRIFT,
        "of": "foreground",
    }


def _reasons(ours: DatasetFacts, theirs: DatasetFacts) -> list[Row]:
    def counts(facts: DatasetFacts) -> Mapping[str, int]:
        return Counter(row["reason"] for row in facts.rejects or [])

    here, there = counts(ours), counts(theirs)
    return [
        {
            "group": "rejects",
            "name": reason,
            "ours": str(here.get(reason, 0)),
            "theirs": str(there.get(reason, 0)),
            "change": f"{here.get(reason, 0) - there.get(reason, 0):+d}",
            "test": "",
            "marked": (reason in here) != (reason in there),
            "of": "rows of rejects.csv",
        }
        for reason in sorted({*here, *there})
    ]
