"""The layout that older notebooks read: `<split>/<modality>/<id>.npz` with one array, `arr_0`.

A shard's state lists the npz files that were made of it before the first of them is written: a file
that stands in no state is somebody else's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import Owner
from beam_jobs.convert.planning import Assignments
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import read_cases

SPLITS = ("train", "test")


def require_names(assignments: Assignments) -> Assignments:
    """Refuses ids that would be one file, before any is written; gives back what it was given.

    Raises:
      CommandError: names two of them.
    """
    files.file_names((one.patient_id for one in assignments.by_key.values()), ".npz")
    return assignments


def shard_names(output: str, shard: str, schema: RecordSchema) -> list[str]:
    """The npz files of a shard's records, by their paths below `output`."""
    cases = read_cases(files.join(output, shard), schema)
    return [name for case in cases for name in _names(case, schema).values()]


def explode_shard(output: str, shard: str, schema: RecordSchema, owner: Owner) -> None:
    """Writes a shard's present channels as npz files below `output`: those of `shard_names`.

    Args:
      output: the dataset's directory, where the shard lies.
      shard: its name.
      schema: what its records fit.
      owner: the job that writes.

    Raises:
      LostOutputError: the output is another job's by now.
    """
    for case in read_cases(files.join(output, shard), schema):
        for channel, name in _names(case, schema).items():
            path, payload = files.join(output, name), _payload(case, channel)
            if not _holds(path, payload):
                with owner.writing():
                    files.write(path, payload)


def _names(case: PreparedCase, schema: RecordSchema) -> dict[int, str]:
    """Channel to file, of the modalities that the patient has."""
    split = SPLITS[case.fold is None]
    name = files.file_name(case.patient_id, ".npz")
    return {
        channel: f"{split}/{files.file_name(modality)}/{name}"
        for channel, (modality, there) in enumerate(
            zip(schema.modalities, case.present, strict=True)
        )
        if there
    }


def _payload(case: PreparedCase, channel: int) -> bytes:
    """(row, column, slice) in the stored dtype."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.ascontiguousarray(case.volume[..., channel]))
    return buffer.getvalue()


def _holds(path: str, payload: bytes) -> bool:
    try:
        return files.read(path) == payload
    except FileNotFoundError:
        return False


def is_npz(name: str) -> bool:
    """Whether a path below an output is one that an npz file may have."""
    return name.startswith(tuple(f"{split}/" for split in SPLITS)) and name.endswith(".npz")


def of_earlier_version(entry: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What may have been made of a shard by a version that listed no npz files in its state.

    Args:
      entry: the shard's, as in its state or the manifest.

    Returns:
      As `split_and_file` gives them; a modality is any.
    """
    split = SPLITS[entry["fold"] is None]
    ids = [str(patient["patient_id"]) for patient in entry["patients"]]
    names = (name for one in ids for name in (f"{one}.npz", files.file_name(one, ".npz")))
    return {(split, name) for name in names}


def split_and_file(name: str) -> tuple[str, str]:
    """What a path is without its modality.

    >>> split_and_file("train/T1w/00005.npz")
    ('train', '00005.npz')
    """
    split, _, below = name.partition("/")
    return split, below.partition("/")[2]
