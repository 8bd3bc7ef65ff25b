"""What batch prediction reads: a dataset, shards by pattern, or a DICOM directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from apache_beam.io.filesystems import FileSystems

from beam_jobs import filesystems
from beam_jobs.core.cli import UsageError
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.core.record import ContractError
from serving.bundle import Contract
from serving.shards import require_fits
from serving.submission import match_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the patients come from.

    Attributes:
      dicom: root of a DICOM directory, None for records.
      shards: paths of TFRecord shards.
      expected: patients that the manifest names -> the shard's file name; empty without manifest.
    """

    dicom: str | None = None
    shards: tuple[str, ...] = ()
    expected: Mapping[str, str] = dataclasses.field(default_factory=dict)


def is_pattern(path: str) -> bool:
    """Whether an input names shards rather than a directory (whose name may hold a bracket)."""
    shards = path.endswith(".tfrecord") or any(letter in path for letter in "*?[")
    return shards and not os.path.isdir(path)


def find_source(
    path: str, contract: Contract, *, model: str, asked: Sequence[str] | None = None
) -> Source:
    """What `path` is, with everything that can be checked before a job runs.

    Args:
      path: a directory with a manifest, a pattern of shards, or any other directory.
      contract: the model's; records that do not fit it are refused.
      model: the model's path, for messages.
      asked: ids asked for; a dataset's shards that hold none of them are left out.

    Raises:
      UsageError: nothing there.
      ContractError: the records are of another schema, a manifest is damaged or empty, or an
        asked id is ambiguous.
    """
    if is_pattern(path):
        return _shards(path, contract)
    manifest = filesystems.join(path, MANIFEST_NAME)
    if filesystems.exists(manifest):
        return _dataset(path, manifest, contract, model=model, asked=asked)
    if not filesystems.exists(path):
        raise UsageError(f"--input: {path} does not exist")
    if _match(filesystems.join(path, "*.tfrecord")):
        raise ContractError(
            f"{path} holds shards but no {MANIFEST_NAME}: its conversion did not finish "
            "(the pattern DIR/*.tfrecord reads what is there)"
        )
    return Source(dicom=path)


def _shards(pattern: str, contract: Contract) -> Source:
    paths = _match(pattern)
    if not paths:
        raise UsageError(f"--input: no file matches {pattern}")
    for path in paths:
        with filesystems.open_read(path) as stream:
            require_fits(stream, path, contract.schema)
    return Source(shards=tuple(paths))


def _dataset(
    path: str, manifest_path: str, contract: Contract, *, model: str, asked: Sequence[str] | None
) -> Source:
    try:
        manifest = Manifest.loads(filesystems.read_text(manifest_path))
    except ValueError as error:  # ContractError, and bytes that are no text
        raise ContractError(f"{manifest_path}: {error}") from error
    contract.require(manifest.schema, model=model, records=f"dataset {path}")
    expected = {p.patient_id: shard.name for shard in manifest.shards for p in shard.patients}
    if not expected:
        raise ContractError(f"dataset {path} holds no patients")
    chosen = set(expected.values())
    if asked is not None:
        chosen = {expected[name] for name in match_ids(asked, expected).values()}
        if not chosen:
            raise ContractError(f"dataset {path} holds none of the {len(asked)} ids asked for")
    return Source(
        shards=tuple(filesystems.join(path, name) for name in sorted(chosen)), expected=expected
    )


def _match(pattern: str) -> list[str]:
    return sorted(entry.path for entry in FileSystems.match([pattern])[0].metadata_list)
