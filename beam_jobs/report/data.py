"""What a dataset's report says, as plain JSON values: counted from manifest, tables and records.

manifest.json, series.csv, rejects.csv, records --`summarise`--> numbers --`report_page`--> HTML
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common import csv_table
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.convert.ours import REJECTS_NAME, SERIES_NAME
from beam_jobs.convert.series_table import REJECT_COLUMNS, SERIES_COLUMNS
from beam_jobs.core.manifest import TEST, Manifest, Place
from beam_jobs.core.reasons import SENTENCES, Reason, Verdict
from beam_jobs.report.advice import ADVICE
from beam_jobs.report.cases import LEVELS, CaseFacts

# Levels 1 to 255 of the stored range in groups of five.
INTENSITY_BINS = 51
_SLICE_BINS = 24
BLANK_EDGES = [float(edge) for edge in range(0, 101, 5)]  # blank slices of a series, per cent
_SUBJECTS = 5
# Numeric columns of series.csv that are shown as a distribution, and their units.
MEASURES = {
    "slices": "",
    "row_spacing": "mm",
    "slice_step": "mm",
    "thickness": "mm",
    "obliquity": "°",
    "field_strength": "T",
}
_LATER_COLUMNS = {"blank_slices"}  # that datasets of earlier versions lack


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DatasetFacts:
    """All that is known of a dataset without looking at its pictures.

    Attributes:
      manifest: its table of contents.
      series: rows of series.csv, None when there is no such file.
      rejects: rows of rejects.csv, None when there is no such file.
      cases: counts of each record, in shard order.
    """

    manifest: Manifest
    series: list[dict[str, str]] | None
    rejects: list[dict[str, str]] | None
    cases: list[CaseFacts]

    @functools.cached_property
    def places(self) -> dict[str, Place]:
        """Where each patient stands."""
        return {
            patient.patient_id: shard.place
            for shard in self.manifest.shards
            for patient in shard.patients
        }

    def used(self, modality: str) -> list[dict[str, str]]:
        """The rows of series.csv of the series that became channels of a modality."""
        return [
            row
            for row in self.series or []
            if row["verdict"] == Verdict.USED.value and row["modality"] == modality
        ]

    def measures(self, modality: str, column: str) -> list[float]:
        """A numeric column over the used series of a modality, where it is known."""
        return [float(row[column]) for row in self.used(modality) if row.get(column)]

    def blank_slices(self, modality: str) -> list[tuple[int, int]]:
        """(blank, all) slices of each used series of a modality, where the blank were counted."""
        return [
            (int(float(row["blank_slices"])), int(float(row["slices"])))
            for row in self.used(modality)
            if row.get("blank_slices") and int(float(row.get("slices") or 0))
        ]

    def blank_shares(self, modality: str) -> list[float]:
        """Per cent of the slices that are blank, of each series of `blank_slices`."""
        return [100 * blank / slices for blank, slices in self.blank_slices(modality)]


def read_table(
    directory: str,
    name: str,
    *,
    columns: Iterable[str],
    numbers: Iterable[str],
    whole: Collection[str],
) -> list[dict[str, str]] | None:
    """The rows of one of the dataset's CSV files, None when it is not there.

    Args:
      directory: the dataset.
      name: the file.
      columns: that it must have.
      numbers, whole: columns of numbers from 0 on, or nothing, if they are there; of whole ones.

    Raises:
      ContractError: it is not what a conversion writes; the message names the column.
    """
    try:
        rows = csv_table.read_own_table(files.join(directory, name), sorted(columns))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ContractError(f"{name}: {error}") from error
    for column in (*numbers, *whole):
        for line, row in rows:
            try:
                if column in whole:
                    csv_table.whole_number(row[column])
                else:
                    csv_table.number(row.get(column) or "0", least=0)
            except ValueError as error:
                raise ContractError(f"{name} line {line}: {column}: {error}") from error
    return [row for _, row in rows]


def gather(directory: str, manifest: Manifest, cases: list[CaseFacts]) -> DatasetFacts:
    """Puts a dataset's tables beside what its records hold."""
    return DatasetFacts(
        manifest=manifest,
        series=read_table(
            directory,
            SERIES_NAME,
            columns=set(SERIES_COLUMNS) - _LATER_COLUMNS,
            numbers=("blank_slices", *MEASURES),
            whole=("files",),
        ),
        rejects=read_table(
            directory, REJECTS_NAME, columns=REJECT_COLUMNS, numbers=(), whole=("files",)
        ),
        cases=cases,
    )


def summarise(facts: DatasetFacts) -> dict[str, Any]:
    """The report's numbers.

    Returns:
      JSON values: "cohort", "recipe", "modalities" (a list, in channel order), "missing",
      "rejects", "unused" and "patients".
    """
    manifest = facts.manifest
    schema = manifest.schema
    return {
        "cohort": _cohort(facts),
        "recipe": {
            "modalities": list(schema.modalities),
            "shape": list(schema.shape),
            "dtype": schema.dtype,
            "spacing": [round(step, 4) for step in facts.cases[0].spacing],
            "folds": manifest.folds,
            "fold_rule": manifest.fold_rule,
            "seed": manifest.seed,
            "id_policy": manifest.id_policy,
            "spec": dict(manifest.spec),
            "spec_fingerprint": schema.spec_fingerprint,
            "dataset_fingerprint": manifest.dataset_fingerprint,
        },
        "slice_edges": _slice_edges(facts),
        "blank_edges": BLANK_EDGES,
        "modalities": [
            _modality(facts, channel, name) for channel, name in enumerate(schema.modalities)
        ],
        "missing": _patterns(facts),
        "rejects": None if facts.rejects is None else _rejects(facts),
        "unused": None if facts.series is None else _unused(facts.series),
        "patients": [
            {
                "id": case.patient_id,
                "label": case.label,
                "fold": facts.places[case.patient_id],
                "present": [int(there) for there in case.present],
                "slice": case.slice,
                "blank": list(case.blank_slices),
                "spacing": [round(step, 4) for step in case.spacing],
                "ends": case.ends,
                "first_mm": round(case.first_mm, 2),
            }
            for case in facts.cases
        ],
    }


def _cohort(facts: DatasetFacts) -> dict[str, Any]:
    labels = Counter("none" if case.label is None else str(case.label) for case in facts.cases)
    folds = []
    groups = facts.manifest.counts.get("folds", {}).get("groups", {})
    for place in sorted(set(facts.places.values()), key=lambda n: (n is None, n == TEST, n)):
        members = [case for case in facts.cases if facts.places[case.patient_id] == place]
        positive = sum(case.label == 1 for case in members)
        labelled = sum(case.label is not None for case in members)
        folds.append(
            {
                "fold": place,
                "patients": len(members),
                "groups": groups.get(str(place)),
                "positive": positive,
                "negative": labelled - positive,
                "share": positive / labelled if labelled else None,
            }
        )
    counts = facts.manifest.counts
    modalities = facts.manifest.schema.modalities
    blank = [found for name in modalities for found in facts.blank_slices(name)]
    return {
        "patients": len(facts.cases),
        "labels": {label: labels[label] for label in ("0", "1", "none")},
        "folds": folds,
        "complete": sum(all(case.present) for case in facts.cases),
        "bytes": sum(shard.bytes for shard in facts.manifest.shards),
        "shards": len(facts.manifest.shards),
        "blank": _blank(blank),
        **{name: counts.get(name) for name in ("files", "series")},
    }


def _slice_edges(facts: DatasetFacts) -> list[float]:
    """Common edges of the histograms of slices a series: whole numbers."""
    modalities = facts.manifest.schema.modalities
    slices = [count for name in modalities for count in facts.measures(name, "slices")]
    if not slices:
        return []
    low, high = int(min(slices)), int(max(slices)) + 1
    width = max(1, -(-(high - low) // _SLICE_BINS))
    bins = -(-(high - low) // width)
    return [float(low + width * n) for n in range(bins + 1)]


def _modality(facts: DatasetFacts, channel: int, name: str) -> dict[str, Any]:
    used = facts.used(name)
    edges = _slice_edges(facts)
    slices = facts.measures(name, "slices")
    there = [case for case in facts.cases if case.present[channel]]
    grid_slices = facts.manifest.schema.shape[2]
    blank = sum(case.blank_slices[channel] for case in there)
    return {
        "name": name,
        "patients": len(there),
        "series": len(used),
        "slices": np.histogram(slices, bins=edges)[0].tolist() if edges else [],
        "planes": _counts(row["plane"] for row in used),
        "matrix": _counts(f"{row['rows']} × {row['columns']}" for row in used if row.get("rows")),
        "field": _counts(
            f"{float(row['field_strength']):g} T" for row in used if row.get("field_strength")
        ),
        "syntax": _counts(row["transfer_syntax"] for row in used if row.get("transfer_syntax")),
        "uneven": sum(row.get("even_steps") == "False" for row in used),
        "geometry_unknown": sum(row.get("geometry_known") == "False" for row in used),
        "measures": {column: spread(facts.measures(name, column)) for column in MEASURES},
        "scanned_blank": _blank(facts.blank_slices(name)),
        "blank_slices": blank,
        "blank_share": blank / (len(there) * grid_slices) if there else None,
        "intensity": intensity(there, channel),
    }


def _blank(counts: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """How many slices are blank as scanned, of (blank, all) of each series; None of none."""
    if not counts:
        return None
    shares = [100 * blank / slices for blank, slices in counts]
    blank, slices = (sum(column) for column in zip(*counts, strict=True))
    return {
        "series": len(counts),
        "slices": slices,
        "blank": blank,
        "share": blank / slices,
        "without": sum(share == 0 for share in shares),
        "shares": np.histogram(shares, bins=BLANK_EDGES)[0].tolist(),
        "spread": spread(shares),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Counts, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Count, ends, quartiles and median; None of nothing."""
    if not values:
        return None
    low, lower, median, upper, high = np.percentile(values, (0, 25, 50, 75, 100)).tolist()
    return {
        "n": len(values),
        "min": low,
        "lower": lower,
        "median": median,
        "upper": upper,
        "max": high,
    }


def densities(cases: Sequence[CaseFacts], channel: int) -> npt.NDArray[np.float64]:
    """(case, bin) shares of a case's foreground voxels, level 0 left out, in `INTENSITY_BINS`."""
    levels = np.array([case.levels[channel][1:] for case in cases], dtype=np.float64)
    bins = levels.reshape(len(cases), INTENSITY_BINS, -1).sum(axis=2)
    return np.asarray(bins / np.maximum(bins.sum(axis=1, keepdims=True), 1))


def means(cases: Sequence[CaseFacts], channel: int) -> npt.NDArray[np.float64]:
    """Each case's mean foreground level as a share of the stored range."""
    counts = np.array([case.levels[channel] for case in cases], dtype=np.float64)
    counts[:, 0] = 0
    total = np.maximum(counts.sum(axis=1), 1)
    return np.asarray(counts @ np.arange(LEVELS) / total / (LEVELS - 1))


def intensity(cases: Sequence[CaseFacts], channel: int) -> dict[str, Any] | None:
    """How a channel's foreground intensities are spread over the stored range, patient by patient.

    Returns:
      Per bin the patients' median share and their 10th and 90th percentile; the spread of the
      patients' means; the share of foreground voxels at the top of the range. None of no patient.
    """
    if not cases:
        return None
    shares = densities(cases, channel)
    low, middle, high = np.percentile(shares, (10, 50, 90), axis=0)
    levels = np.sum([case.levels[channel] for case in cases], axis=0)
    return {
        "low": np.round(low, 5).tolist(),
        "median": np.round(middle, 5).tolist(),
        "high": np.round(high, 5).tolist(),
        "means": spread(means(cases, channel).tolist()),
        "at_top": float(levels[-1] / max(int(levels[1:].sum()), 1)),
    }


def _patterns(facts: DatasetFacts) -> list[dict[str, Any]]:
    """Which channels patients have, the most frequent combination first."""
    found = Counter(case.present for case in facts.cases)
    return [
        {"present": [int(there) for there in present], "patients": count}
        for present, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]


def _rejects(facts: DatasetFacts) -> list[dict[str, Any]]:
    """Reasons of rejects.csv, the most frequent first, each with what to do about it."""
    by_reason: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in facts.rejects or []:
        by_reason[row["reason"], row["scope"]].append(row)
    private = facts.manifest.id_policy != "keep"
    return [
        {
            "reason": reason,
            "scope": scope,
            "count": len(rows),
            "files": sum(int(row["files"]) for row in rows),
            **_explained(reason),
            "modalities": _counts(row["modality"] for row in rows if row["modality"]),
            "details": [row["detail"] for row in rows[:1]],
            # Paths may be people's names, and their tokens are of no use to a reader.
            "subjects": [] if private else sorted(row["subject"] for row in rows)[:_SUBJECTS],
            "patients": sorted({row["patient"] for row in rows} - {""})[:_SUBJECTS],
        }
        for (reason, scope), rows in sorted(
            by_reason.items(), key=lambda item: (-len(item[1]), item[0])
        )
    ]


def _unused(series: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Sound series that a rule left aside, by reason."""
    rows = [row for row in series if row["verdict"] == Verdict.UNUSED.value]
    return [
        {
            "reason": reason,
            "count": count,
            "files": sum(int(row["files"]) for row in rows if row["reason"] == reason),
            **_explained(reason),
        }
        for reason, count in _counts(row["reason"] for row in rows).items()
    ]


def _explained(code: str) -> dict[str, str]:
    """What a reason means and what to do about it; a later version's code stands alone."""
    if code not in {reason.value for reason in Reason}:
        return {"sentence": "", "advice": ""}
    return {"sentence": SENTENCES[Reason(code)], "advice": ADVICE[Reason(code)]}
