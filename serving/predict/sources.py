"""What batch prediction reads: a dataset, shards by pattern, or a DICOM directory."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
from collections.abc import Mapping, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import is_archive
from beam_jobs.core.cohort.target import Label
from beam_jobs.core.example import decode_case, features_of, only_value
from beam_jobs.core.manifest import MANIFEST_NAME, ShardEntry, read_manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import RecordSchema
from serving.model.contract import Contract
from serving.predict.covariates import NOTHING, Taken, of_records
from serving.predict.damaged_records import first_record
from serving.predict.submission import match_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the patients come from.

    Attributes:
      dicom: root of a DICOM directory or archive, None for records.
      dataset: a dataset's directory, None for shards by pattern and for DICOM.
      shards: paths of TFRecord shards.
      listed: path of a shard -> its place in the manifest; empty without one.
      expected: patients that the manifest names -> the shard's file name; empty without manifest.
      schema: of the cases.
      taken: how their covariates become the model's.
      labels: of a dataset whose labels say what the model's do: patient -> label, where known.
    """

    schema: RecordSchema
    taken: Taken = NOTHING
    labels: Mapping[str, Label] = dataclasses.field(default_factory=dict)
    dicom: str | None = None
    dataset: str | None = None
    shards: tuple[str, ...] = ()
    listed: Mapping[str, ShardEntry] = dataclasses.field(default_factory=dict)
    expected: Mapping[str, str] = dataclasses.field(default_factory=dict)


def is_pattern(path: str) -> bool:
    """Whether an input names shards rather than a directory (whose name may hold a bracket)."""
    named = path.endswith(".tfrecord") or _is_wild(path)
    return named and not files.is_dicomweb(path) and not files.is_dir(path)


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
      path: a directory with a manifest, a pattern of shards, or any other directory or archive.
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
    if files.is_dicomweb(path):
        path = files.trimmed(path)
    of_dicom = Source(dicom=path, schema=contract.volumes)
    if is_pattern(path):
        if id_policy != "keep":
            raise UsageError(
                f"--id_policy {id_policy} is for DICOM and for a dataset with its {MANIFEST_NAME}; "
                "records have their conversion's ids"
            )
        return _shards(path, contract, model=model)
    if is_archive(path) and files.stat(path) is not None:
        return of_dicom
    if files.is_dicomweb(path):
        if not files.holds_files(path):
            raise UsageError(f"--input: {files.told(path)} finds no series")
        return of_dicom
    if files.exists(files.join(path, MANIFEST_NAME)):
        return _dataset(path, contract, model=model, requested=requested, id_policy=id_policy)
    if not files.exists(path):
        raise UsageError(f"--input: {path} does not exist")
    if any(name.endswith(".tfrecord") for name in files.names(path)):
        raise ContractError(
            f"{path} holds shards but no {MANIFEST_NAME}: its conversion did not finish "
            "(the pattern DIR/*.tfrecord reads what is there)"
        )
    return of_dicom


def _shards(pattern: str, contract: Contract, *, model: str) -> Source:
    paths = matching(pattern)
    if not paths:
        found = f"no file matches {pattern}" if _is_wild(pattern) else f"{pattern} does not exist"
        raise UsageError(f"--input: {found}")
    schemas = {}
    for path in paths:
        with files.open_read(path) as stream:
            record = first_record(stream)
        if record is None:
            continue
        try:
            schema = schema_of_record(record, contract, beside=path)
            decode_case(record, schema)
        except (ValueError, IndexError) as error:
            raise ContractError(f"{path}: {error}") from error
        contract.require(schema, model=model, records=path)
        schemas[schema] = path
    if len(schemas) > 1:
        raise ContractError(
            f"{' and '.join(list(schemas.values())[:2])} are of datasets whose labels or "
            "covariates are not alike: predict one at a time"
        )
    schema = next(iter(schemas), contract.volumes)
    taken = of_records(contract, schema, model=model, records=pattern) if schemas else NOTHING
    return Source(shards=tuple(paths), schema=schema, taken=taken)


def schema_of_record(record: bytes, contract: Contract, *, beside: str = "") -> RecordSchema:
    """The schema of a serialized Example, whose volume is one that the model takes.

    A record of version 2 does not say what its labels and covariates mean: its dataset's manifest
    does, or else it is taken for one like those of training.

    Args:
      record: the Example.
      contract: the model's.
      beside: its shard, beside which a manifest is looked for; "" without one.

    Raises:
      ContractError: no Example, a damaged manifest, or a record of version 2 that nothing explains.
    """
    if only_value(features_of(record), "schema_version", "int64_list") != 2:
        return contract.volumes
    manifest = files.join(os.path.dirname(beside) or ".", MANIFEST_NAME) if beside else ""
    if manifest and files.stat(manifest) is not None:
        return read_manifest(os.path.dirname(beside) or ".").schema
    if contract.schema.version == 1:
        raise ContractError(
            f"a record of version 2 is told by its dataset's {MANIFEST_NAME}, which is not there"
        )
    return contract.schema


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
    listed = {
        files.join(path, shard.name): shard for shard in manifest.shards if shard.name in chosen
    }
    labels: dict[str, Label] = {}
    if manifest.schema.target == contract.target:
        patients = manifest.patients
        labels = {name: label for name, label, _ in patients if label is not None}
    return Source(
        dataset=path,
        shards=tuple(sorted(listed)),
        listed=listed,
        expected=expected,
        schema=manifest.schema,
        taken=of_records(contract, manifest.schema, model=model, records=f"dataset {path}"),
        labels=labels,
    )


def matching(pattern: str) -> list[str]:
    """The files that a pattern names, sorted: `*`, `?` and `[...]` stand for parts of a name.

    A directory that exists as it is written is no pattern: its name may hold a bracket.
    """
    if files.stat(pattern) is not None:
        return [pattern]
    if not files.is_remote(pattern):
        pattern = os.path.join(".", pattern)
    root, *rest = _PARTS.findall(pattern)
    while len(rest) > 1 and (not _is_wild(rest[0]) or files.is_dir(root + rest[0])):
        root += rest.pop(0)
    if len(rest) == 1:
        found = files.names(root)
    else:
        found = [entry.path.removeprefix(root) for entry in files.entries(root)]
    return sorted(root + name for name in found if _fits(name, "".join(rest)))


# A store with its bucket, or the first part of a local path; then every further part.
_PARTS = re.compile(r"\A\w+://[^/]*/|[^/]*/|[^/]+")


def _is_wild(part: str) -> bool:
    return any(letter in part for letter in "*?[")


def _fits(name: str, pattern: str) -> bool:
    """Whether a name fits part by part: no `*` goes beyond a slash."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def recipe_of(contract: Contract, *, model: str) -> PreprocessSpec:
    """The recipe from DICOM to a volume that the model takes.

    Raises:
      ContractError: it is another version's, or none; the message has the model's path.
    """
    try:
        return PreprocessSpec.from_json(contract.spec)
    except ContractError as error:
        raise ContractError(f"model {model} cannot predict from DICOM: {error}") from error
