"""Shards read whole, as cases with their affine, and held against the manifest; no TensorFlow."""

from __future__ import annotations

import hashlib
from io import BytesIO

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import Manifest, ShardEntry
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_records


def read_shard(data: files.StrPath, entry: ShardEntry, manifest: Manifest) -> list[PreparedCase]:
    """The cases of a shard, in its order.

    Args:
      data: the dataset's directory.
      entry: the shard, of the manifest's.
      manifest: the dataset's.

    Raises:
      ContractError: the shard or a record is not what the manifest says; the message names it.
      CommandError: a store refuses or fails.
    """
    path = files.join(data, entry.name)
    try:
        content = files.read(path, limit=entry.bytes)
    except files.TooLargeError as error:
        raise ContractError(
            f"{path}: holds more than {entry.bytes} bytes, which the manifest says"
        ) from error
    except FileNotFoundError as error:
        raise ContractError(f"{path}: the manifest lists this shard, it does not exist") from error
    if len(content) != entry.bytes:
        raise ContractError(f"{path}: {len(content)} bytes, the manifest says {entry.bytes}")
    try:
        cases = [decode_case(record, manifest.schema) for record in read_records(BytesIO(content))]
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    found = {(case.patient_id, case.label, case.fold) for case in cases}
    expected = {(patient.patient_id, patient.label, entry.fold) for patient in entry.patients}
    if found != expected or len(cases) != entry.count:
        odd = sorted({str(name) for name, _, _ in found ^ expected})
        raise ContractError(
            f"{path}: records and manifest differ in patients, labels or folds: "
            f"{', '.join(odd[:5]) or 'a patient stands twice'}"
        )
    if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise ContractError(f"{path}: sha256 {digest}, the manifest says {entry.sha256}")
    return cases
