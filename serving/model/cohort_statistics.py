"""What a model's training data looked like: the counts of a dataset, kept with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from beam_jobs.common import terminal
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_own_table
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.drift import NONE, Statistics, of_case, of_series
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.tfrecord import read_shard

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
    found = of_series_table(path, manifest.schema.modalities, patients)
    shards = [shard for shard in manifest.shards if shard.fold in folds]
    for shard in terminal.track(shards, "reading records", len(shards)):
        for case in read_shard(path, shard, manifest.schema):
            found += of_case(case, manifest.schema)
    return dataclasses.replace(found, dataset_fingerprint=manifest.dataset_fingerprint)
