"""For Python users: series, volumes and datasets, without a command line.

    from beam_jobs.api import assemble, find_files, index_files, load_volume, open_dataset

    headers, unread = index_files(find_files("heap"))
    series, rejected = assemble(headers)
    load_volume(series[0]).save_nifti("series.nii.gz")

    dataset = open_dataset("dataset")
    dataset.series.groupby("modality").slices.median()
    for case in dataset.cases():
        print(case.patient_id, case.volume.shape, case.label)

Paths are text or `os.PathLike`: local, `gs://`, `s3://`, `az://`, `https://` (to read), also of
zip and tar archives; `dicomweb+https://host/path?Modality=MR` is a search in a DICOMweb service.
Files named `.nii` and `.nii.gz` are read as NIfTI, all others as DICOM.
Nothing here imports Beam or TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Hashable, Iterable, Iterator

import pandas as pd

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import text_of
from beam_jobs.common.files import interface as files
from beam_jobs.common.version import __version__
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.manifest import Manifest, read_manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Reason, Rejection
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.series import Series, assemble
from beam_jobs.core.tfrecord import read_shard
from beam_jobs.core.volume import Volume, load_volume

__all__ = [
    "ContractError",
    "Dataset",
    "Manifest",
    "PreparedCase",
    "PreprocessSpec",
    "Reason",
    "RecordSchema",
    "Rejection",
    "Series",
    "SliceHeader",
    "Volume",
    "__version__",
    "assemble",
    "find_files",
    "index_files",
    "load_volume",
    "open_dataset",
]


def find_files(root: files.StrPath) -> list[str]:
    """Every file below a directory or in an archive that may be DICOM or NIfTI, in path order.

    In a DICOMweb service: the instances of the series that a search finds.

    Raises:
      NotADirectoryError: `root` is none.
      CommandError: a store refuses or fails.
    """
    return [entry.path for entry in files.entries(root)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A finished conversion.

    Attributes:
      path: its directory, local or in a store.
      manifest: contract, recipe, folds, shards and their patients.
    """

    path: str
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.manifest.patients)

    @property
    def patients(self) -> pd.DataFrame:
        """One row a record in shard order: patient_id, label and fold (<NA> where unknown).

        The label is 0 or 1, the name of a class, or a value; of several findings there is a column
        `label_<name>` each, of 0 and 1.
        """
        target = self.manifest.schema.target
        table = pd.DataFrame(self.manifest.patients, columns=["patient_id", "label", "fold"])
        table = table.astype({"patient_id": str, "fold": "Int64"})
        labels = table.pop("label")
        if target.task == "multilabel":
            unknown = (None,) * len(target.labels)
            rows = [label if isinstance(label, tuple) else unknown for label in labels]
            found = pd.DataFrame(rows, columns=list(target.label_columns), dtype="Int64")
        elif target.classes:
            names = [None if pd.isna(label) else target.classes[int(label)] for label in labels]
            found = pd.DataFrame({"label": pd.array(names, "string")})
        else:
            kind = "Float64" if target.task == "regression" else "Int64"
            found = labels.to_frame().astype({"label": kind})
        return pd.concat([table[["patient_id"]], found, table[["fold"]]], axis=1)

    @functools.cached_property
    def series(self) -> pd.DataFrame:
        """series.csv: one row a series seen, used or not; ids are text."""
        return self._table("series.csv")

    @functools.cached_property
    def rejects(self) -> pd.DataFrame:
        """rejects.csv: every file, series and patient refused, with its reason code."""
        return self._table("rejects.csv")

    def cases(self, folds: Iterable[int | None] | None = None) -> Iterator[PreparedCase]:
        """The records, one at a time, in shard order; each is checked against the manifest.

        That a shard's hash is the manifest's is known behind its last record.

        Args:
          folds: those to read (None among them: test patients and those without a label); None
            reads all.

        Raises:
          UsageError: there is no such fold.
          ContractError: a shard or a record is not what the manifest says.
        """
        chosen = self.manifest.shards if folds is None else self.manifest.shards_of(folds)
        for shard in chosen:
            yield from read_shard(self.path, shard, self.manifest.schema)

    def _table(self, name: str) -> pd.DataFrame:
        text = files.read(files.join(self.path, name), limit=files.TABLE_BYTES)
        kept: dict[Hashable, type[str]] = {
            "patient": str,
            "subject": str,
            "path": str,
            "detail": str,
            "reason": str,
        }
        table = pd.read_csv(io.BytesIO(text), dtype=kept, keep_default_na=False, na_values=[""])
        for column in kept:
            if column in table:
                table[column] = table[column].fillna("").map(text_of)
        return table


def open_dataset(path: files.StrPath) -> Dataset:
    """Opens what a conversion wrote, by its manifest; records are read when they are iterated over.

    Raises:
      UsageError: there is no such directory, or it holds no manifest.
      ContractError: the manifest is not valid.
    """
    return Dataset(path=files.trimmed(path), manifest=read_manifest(path))
