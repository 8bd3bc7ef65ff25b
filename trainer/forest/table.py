"""A dataset as a table of features: a row a labelled patient; no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from beam_jobs.common.terminal import bar
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_shard
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

    def labels_from(self, labels: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """The patients' labels, 0 or 1, (n,)."""
        return np.array([labels[name] for name in self.patient_ids], dtype=np.int64)


def measure_features(data: str, manifest: Manifest, modalities: Sequence[str]) -> FeatureTable:
    """Reads every labelled patient and measures its features.

    Args:
      data: the dataset's directory.
      manifest: the dataset's.
      modalities: whose features, of the dataset's.

    Raises:
      ContractError: a shard or a record is not what the manifest says; the message names it.
    """
    channels = [manifest.schema.modalities.index(name) for name in modalities]
    entries = manifest.shards_of(range(manifest.folds))
    ids, folds, rows = [], [], []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar("features", sum(entry.count for entry in entries)) as step,
    ):
        for entry in entries:
            cases = list(read_shard(data, entry, manifest.schema))
            measured = pool.map(lambda case: _measured(case, channels), cases)
            for case, features in zip(cases, measured, strict=True):
                ids.append(case.patient_id)
                folds.append(case.fold)
                rows.append(features)
                step()
    return FeatureTable(
        patient_ids=tuple(ids),
        folds=np.array(folds, dtype=np.int64),
        features=np.stack(rows),
        names=tuple(feature_names(modalities)),
    )


def _measured(case: PreparedCase, channels: Sequence[int]) -> Floats:
    return case_features(case.volume[..., channels], case.affine)
