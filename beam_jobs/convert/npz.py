"""The layout that older notebooks read: `<split>/<modality>/<id>.npz` with one array, `arr_0`."""

from __future__ import annotations

import io

import numpy as np

from beam_jobs.common.files_before import filesystems
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import decode_case, read_records

SPLITS = ("train", "test")


def explode_shard(output: str, shard: str, schema: RecordSchema) -> None:
    """Writes a shard's present channels as npz files below `output`.

    Args:
      output: the dataset's directory, where the shard lies.
      shard: its name.
      schema: what its records fit.
    """
    with filesystems.open_read(filesystems.join(output, shard)) as stream:
        for data in read_records(stream):
            case = decode_case(data, schema)
            for name, payload in _files(case, schema).items():
                path = filesystems.join(output, name)
                if filesystems.exists(path) and _bytes(path) == payload:
                    continue
                with filesystems.open_write(f"{path}.part") as file:
                    file.write(payload)
                filesystems.replace(f"{path}.part", path)


def npz_names(patient_id: str, label: int | None, schema: RecordSchema) -> list[str]:
    """Every npz file that a patient may have."""
    split = SPLITS[label is None]
    return [f"{split}/{modality}/{patient_id}.npz" for modality in schema.modalities]


def _files(case: PreparedCase, schema: RecordSchema) -> dict[str, bytes]:
    """Name to bytes: (row, column, slice) in the stored dtype; absent modalities have no file."""
    files = {}
    names = npz_names(case.patient_id, case.label, schema)
    for channel, (name, there) in enumerate(zip(names, case.present, strict=True)):
        if there:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, np.ascontiguousarray(case.volume[..., channel]))
            files[name] = buffer.getvalue()
    return files


def _bytes(path: str) -> bytes:
    with filesystems.open_read(path) as stream:
        return stream.read()


def remove_strays(output: str, wanted: set[str]) -> None:
    """Deletes npz files of an earlier run that are of no patient any more."""
    for split in SPLITS:
        folder = filesystems.join(output, split)
        if filesystems.exists(folder):
            filesystems.delete(
                [
                    path
                    for path in filesystems.list_files(folder)
                    if path.endswith((".npz", ".npz.part"))
                    and path.removeprefix(f"{output}/") not in wanted
                ]
            )
