"""What batch prediction reads: a dataset, shards by pattern, or a DICOM directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from apache_beam.io.filesystems import FileSystems

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files_before import filesystems
from beam_jobs.core.manifest import MANIFEST_NAME, read_manifest
from serving.model.contract import Contract
from serving.predict.damaged_records import require_fits
from serving.predict.submission import match_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the patients come from.

    Attributes:
      dicom: root of a DICOM directory, None for records.
      dataset: a dataset's directory, None for shards by pattern and for DICOM.
      shards: paths of TFRecord shards.
      digests: path of a shard -> (bytes, sha256 hex) that the manifest lists; empty without one.
      expected: patients that the manifest names -> the shard's file name; empty without manifest.
    """

    dicom: str | None = None
    dataset: str | None = None
    shards: tuple[str, ...] = ()
    digests: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    expected: Mapping[str, str] = dataclasses.field(default_factory=dict)


def is_pattern(path: str) -> bool:
    """Whether an input names shards rather than a directory (whose name may hold a bracket)."""
    shards = path.endswith(".tfrecord") or any(letter in path for letter in "*?[")
    return shards and not os.path.isdir(path)


def find_source(
    path: str,
    contract: Contract,
    *,
    model: str,
    requested: Sequence[str] | None = None,
    id_policy: str = "keep",
) -> Source:
    """What `path` is, with everything that can be checked before a job runs.

    Args:
      path: a directory with a manifest, a pattern of shards, or any other directory.
      contract: the model's; records that do not fit it are refused.
      model: the model's path, for messages.
      requested: requested ids, as the input has them; a dataset's shards that hold none of them are
        left out.
      id_policy: "hmac" where `requested` are hashes of the ids that were given.

    Raises:
      UsageError: nothing there, or `hmac` for records whose ids are not known to be hashes.
      ContractError: the records are of another schema, a manifest is damaged or empty, or an
        requested id is ambiguous.
    """
    if is_pattern(path):
        if id_policy != "keep":
            raise UsageError(
                f"--id_policy {id_policy} is for DICOM and for a dataset with its {MANIFEST_NAME}; "
                "records have their conversion's ids"
            )
        return _shards(path, contract)
    if filesystems.exists(filesystems.join(path, MANIFEST_NAME)):
        return _dataset(path, contract, model=model, requested=requested, id_policy=id_policy)
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
    path: str,
    contract: Contract,
    *,
    model: str,
    requested: Sequence[str] | None,
    id_policy: str,
) -> Source:
    manifest = read_manifest(path)
    contract.require(manifest.schema, model=model, records=f"dataset {path}")
    if id_policy == "hmac" and manifest.id_policy != "hmac":
        raise UsageError(f"--id_policy hmac: the ids of dataset {path} are not hashed")
    expected = {p.patient_id: shard.name for shard in manifest.shards for p in shard.patients}
    if not expected:
        raise ContractError(f"dataset {path} holds no patients")
    chosen = set(expected.values())
    if requested is not None:
        chosen = {expected[name] for name in match_ids(requested, expected).values()}
        if not chosen:
            hint = ""
            if manifest.id_policy == "hmac":
                hint = " (its ids are hashed: --id_policy hmac --id_key FILE finds them)"
                if id_policy == "hmac":
                    hint = " (is --id_key the key of its conversion?)"
            raise ContractError(
                f"dataset {path} holds none of the {len(requested)} requested ids{hint}"
            )
    digests = {
        filesystems.join(path, shard.name): (shard.bytes, shard.sha256)
        for shard in manifest.shards
        if shard.name in chosen
    }
    return Source(dataset=path, shards=tuple(sorted(digests)), digests=digests, expected=expected)


def _match(pattern: str) -> list[str]:
    return sorted(entry.path for entry in FileSystems.match([pattern])[0].metadata_list)
