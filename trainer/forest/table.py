"""A dataset as a table of features: a row a labelled patient; no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.terminal import bar
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_shard
from trainer.data.targets import truth_of
from trainer.forest.features import Floats, case_features, feature_names


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """The labelled patients of a dataset, one row each.

    Attributes:
      patient_ids: (n,), in shard order.
      folds: (n,).
      features: (n, features).
      names: of the features.
    """

    patient_ids: tuple[str, ...]
    folds: npt.NDArray[np.int64]
    features: Floats
    names: tuple[str, ...]

    def labels_from(self, labels: Mapping[str, Any], target: Target = PLAIN) -> npt.NDArray[Any]:
        """The patients' labels, (n,) or (n, labels), as `truth_of` has them."""
        return truth_of(target, [labels[name] for name in self.patient_ids])


def measure_features(
    data: str,
    manifest: Manifest,
    modalities: Sequence[str],
    covariates: Sequence[str] = (),
) -> FeatureTable:
    """Reads every labelled patient and measures its features.

    A covariate is a feature beside them: a number as it is, a category as a column of 0 and 1 for
    each of its values; NaN where it is not known.

    Args:
      data: the dataset's directory.
      manifest: the dataset's.
      modalities: whose features, of the dataset's.
      covariates: names, of the dataset's.

    Raises:
      ContractError: a shard or a record is not what the manifest says; the message names it.
    """
    channels = [manifest.schema.modalities.index(name) for name in modalities]
    places, known = _chosen(manifest, covariates)

    def features(case: PreparedCase) -> Floats:
        image = case_features(case.volume[..., channels], case.affine)
        return np.concatenate([image, *_columns(known, [case.covariates[at] for at in places])])

    names = [*feature_names(modalities)]
    for one in known:
        names += [one.name] if one.is_number else [f"{one.name}={text}" for text in one.categories]
    return _read(data, manifest, features, names)


def covariates_table(data: str, manifest: Manifest, covariates: Sequence[str]) -> FeatureTable:
    """The table of covariates alone, each a column as in a record; raises as `measure_features`."""
    places, _ = _chosen(manifest, covariates)

    def features(case: PreparedCase) -> Floats:
        return np.array([case.covariates[at] for at in places], np.float64)

    return _read(data, manifest, features, covariates)


def _chosen(manifest: Manifest, names: Sequence[str]) -> tuple[list[int], list[Covariate]]:
    """Places and covariates of these names in the dataset."""
    known = manifest.schema.covariates
    places = [[one.name for one in known].index(name) for name in names]
    return places, [known[at] for at in places]


def _columns(covariates: Sequence[Covariate], values: Sequence[float]) -> list[Floats]:
    return [
        np.array([value])
        if one.is_number
        else np.where(np.isnan(value), np.nan, np.arange(len(one.categories)) == value)
        for one, value in zip(covariates, values, strict=True)
    ]


def _read(
    data: str,
    manifest: Manifest,
    features_of: Callable[[PreparedCase], Floats],
    names: Sequence[str],
) -> FeatureTable:
    entries = manifest.shards_of(range(manifest.folds))
    ids, folds, rows = [], [], []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar("features", sum(entry.count for entry in entries)) as step,
    ):
        for entry in entries:
            cases = list(read_shard(data, entry, manifest.schema))
            for case, features in zip(cases, pool.map(features_of, cases), strict=True):
                ids.append(case.patient_id)
                folds.append(case.fold)
                rows.append(features)
                step()
    return FeatureTable(
        patient_ids=tuple(ids),
        folds=np.array(folds, dtype=np.int64),
        features=np.stack(rows),
        names=tuple(names),
    )
