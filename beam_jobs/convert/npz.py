"""The layout that older notebooks read: `<split>/<modality>/<id>.npz` with one array, `arr_0`."""

from __future__ import annotations

import io

import numpy as np

from beam_jobs.common.files import interface as files
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import read_cases

SPLITS = ("train", "test")


def explode_shard(output: str, shard: str, schema: RecordSchema) -> None:
    """Writes a shard's present channels as npz files below `output`.

    Args:
      output: the dataset's directory, where the shard lies.
      shard: its name.
      schema: what its records fit.
    """
    for case in read_cases(files.join(output, shard), schema):
        for name, payload in _payloads(case, schema).items():
            path = files.join(output, name)
            if not _holds(path, payload):
                files.write(path, payload)


def npz_names(patient_id: str, fold: int | None, schema: RecordSchema) -> list[str]:
    """Every npz file that a patient may have: in "train" who has a fold, else in "test"."""
    split = SPLITS[fold is None]
    return [f"{split}/{modality}/{patient_id}.npz" for modality in schema.modalities]


def _payloads(case: PreparedCase, schema: RecordSchema) -> dict[str, bytes]:
    """Name to bytes: (row, column, slice) in the stored dtype; absent modalities have no file."""
    payloads = {}
    names = npz_names(case.patient_id, case.fold, schema)
    for channel, (name, there) in enumerate(zip(names, case.present, strict=True)):
        if there:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, np.ascontiguousarray(case.volume[..., channel]))
            payloads[name] = buffer.getvalue()
    return payloads


def _holds(path: str, payload: bytes) -> bool:
    try:
        return files.read(path, limit=len(payload)) == payload
    except (FileNotFoundError, files.TooLargeError):
        return False


def remove_strays(output: str, wanted: set[str]) -> None:
    """Deletes npz files of an earlier run that are of no patient any more."""
    for split in SPLITS:
        folder = files.join(output, split)
        found = [entry.path for entry in files.entries(folder)] if files.is_dir(folder) else []
        files.delete(
            path
            for path in found
            if (files.temporary_of(path) or path).endswith(".npz")
            and path.removeprefix(f"{output}/") not in wanted
        )
