"""What a model's training data looked like: the counts of a dataset, kept with the model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from beam_jobs.common import terminal
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_own_table
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.drift import NONE, Key, Statistics, of_case, of_series
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.tfrecord import read_shard

# What labels are counted under, beside the modalities.
LABELS = "labels"
_TENTHS = 10
STATISTICS_NAME = "assets/training_statistics.json"
SERIES_NAME = "series.csv"
# Columns of series.csv that are looked at.
_SERIES = ("patient", "modality", "verdict", "plane", "row_spacing", "column_spacing") + (
    "slice_step",
    "field_strength",
)


def of_series_table(dataset: str, modalities: Iterable[str], patients: set[str]) -> Statistics:
    """The series of some patients in a dataset's series.csv; `NONE` where it has no such table.

    Raises:
      ContractError: the table lacks a column.
    """
    path = files.join(dataset, SERIES_NAME)
    if not files.exists(path):
        return NONE
    try:
        rows = read_own_table(path, _SERIES)
    except ValueError as error:
        raise ContractError(f"{path}: {error}") from error
    # Records have the labels' spelling of an id, the table has the input's.
    wanted = {normalised_id(name) for name in patients}
    return of_series(
        (row for _, row in rows if normalised_id(row["patient"]) in wanted), modalities
    )


def of_dataset(path: str, manifest: Manifest, folds: Collection[int]) -> Statistics:
    """The patients of a dataset's folds: those that a model of it was trained on.

    Raises:
      ContractError: a shard is not the one that the manifest lists.
    """
    patients = {name for name, _, fold in manifest.patients if fold in folds}
    labels = [one for _, one, fold in manifest.patients if fold in folds and one is not None]
    found = of_labels(manifest.schema.target, labels)
    found += of_series_table(path, manifest.schema.modalities, patients)
    shards = [shard for shard in manifest.shards if shard.fold in folds]
    for shard in terminal.track(shards, "reading records", len(shards)):
        for case in read_shard(path, shard, manifest.schema):
            found += of_case(case, manifest.schema)
    return dataclasses.replace(found, dataset_fingerprint=manifest.dataset_fingerprint)


def of_labels(
    target: Target, labels: Sequence[Label], *, cuts: Sequence[float] | None = None
) -> Statistics:
    """How often each class, finding or tenth of the values stands in labels.

    Nothing of labels that are 0 and 1, and no more: their counts stand in a model's card.

    Args:
      target: what the labels say.
      labels: of patients.
      cuts: between the tenths of values, rising; None takes these labels' own.
    """
    if target.is_plain or not labels:
        return NONE
    counts: Counter[Key] = Counter()
    if target.task == "regression":
        values = np.array(labels, np.float64)
        edges = np.quantile(values, np.arange(1, _TENTHS) / _TENTHS) if cuts is None else cuts
        bins = [*map(repr, sorted({float(edge) for edge in edges})), repr(float("inf"))]
        places = np.searchsorted([float(one) for one in bins[:-1]], values)
        counts.update((LABELS, target.labels[0], bins[place]) for place in places)
    elif target.task == "multilabel":
        for label in labels:
            assert isinstance(label, tuple)
            for name, one in zip(target.labels, label, strict=True):
                if one is not None:
                    counts[LABELS, name, "yes" if one else "no"] += 1
    else:
        counts.update((LABELS, target.labels[0], target.text(label)) for label in labels)
    return Statistics(patients=0, counts=counts)


def cuts_of(target: Target, training: Statistics) -> list[float] | None:
    """The cuts between the tenths of the values that a model was trained on; None of others."""
    if target.task != "regression":
        return None
    found = sorted(map(float, training.bins(LABELS, target.labels[0])))
    return [cut for cut in found if np.isfinite(cut)]
