"""manifest.json: a dataset's table of contents; written last, so that it marks completion."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    fingerprint,
    json_object,
    objects_of,
    require_kinds,
    shown,
)
from beam_jobs.common.files import interface as files
from beam_jobs.core.record import RecordSchema

FORMAT = "voxelbeam-dataset"
MANIFEST_NAME = "manifest.json"
# A name that leads nowhere else: the directory is joined with it.
SHARD_NAME = re.compile(r"(?:fold-(\d+)|unlabelled)-\d{5}-of-\d{5}\.tfrecord", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPatient:
    """One record's place in the table of contents: id and label (None when unknown)."""

    patient_id: str
    label: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard file.

    Attributes:
      name: file name inside the dataset directory.
      fold: the fold its patients belong to, None for patients without a label.
      bytes: file size.
      sha256: of the file, hex.
      patients: its records, in file order.
    """

    name: str
    fold: int | None
    bytes: int
    sha256: str
    patients: tuple[ShardPatient, ...]

    @property
    def count(self) -> int:
        """Records in the shard."""
        return len(self.patients)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset holds.

    Attributes:
      schema: the record contract of every shard.
      spec: the `PreprocessSpec` as JSON.
      folds: number of cross-validation folds.
      seed: seed of the fold assignment.
      id_policy: "keep" or "hmac".
      counts: files, series and patients seen and what became of them.
      shards: every shard, sorted by name.
    """

    schema: RecordSchema
    spec: Mapping[str, Any]
    folds: int
    seed: int
    id_policy: str
    counts: Mapping[str, Any]
    shards: tuple[ShardEntry, ...]

    @property
    def patients(self) -> list[tuple[str, int | None, int | None]]:
        """(patient_id, label, fold) of every record, in shard order."""
        return [
            (patient.patient_id, patient.label, shard.fold)
            for shard in self.shards
            for patient in shard.patients
        ]

    @property
    def dataset_fingerprint(self) -> str:
        """sha256 over schema and shards: equal datasets have equal fingerprints."""
        return fingerprint(
            {"schema": self.schema.to_json(), "shards": [s.sha256 for s in self.shards]}
        )

    @property
    def label_balance(self) -> dict[str, dict[str, int]]:
        """Per fold ("0", ..., "unlabelled"): records of each label."""
        balance: dict[str, Counter[str]] = {}
        for _, label, fold in self.patients:
            key = "unlabelled" if fold is None else str(fold)
            balance.setdefault(key, Counter())["none" if label is None else str(label)] += 1
        return {fold: dict(sorted(labels.items())) for fold, labels in sorted(balance.items())}

    def shards_of(self, folds: Iterable[int | None]) -> list[ShardEntry]:
        """The shards of the given folds (None: the unlabelled ones), in name order."""
        wanted = set(folds)
        return [shard for shard in self.shards if shard.fold in wanted]

    def check(self) -> None:
        """Refuses a manifest in which a patient stands twice.

        Raises:
          ContractError: names the patients.
        """
        seen = Counter(patient_id for patient_id, _, _ in self.patients)
        twice = sorted(patient_id for patient_id, count in seen.items() if count > 1)
        if twice:
            raise ContractError(f"patients in more than one record: {', '.join(twice[:10])}")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {
            "format": FORMAT,
            "schema": self.schema.to_json(),
            "spec": dict(self.spec),
            "spec_fingerprint": self.schema.spec_fingerprint,
            "dataset_fingerprint": self.dataset_fingerprint,
            "folds": self.folds,
            "seed": self.seed,
            "id_policy": self.id_policy,
            "counts": dict(self.counts),
            "label_balance": self.label_balance,
            "privacy": (
                "Only the schema's features leave the DICOM. Head images that are not defaced "
                "stay recognisable: this dataset is not anonymous."
            ),
            "shards": [
                {
                    "name": shard.name,
                    "fold": shard.fold,
                    "count": shard.count,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                    "patients": [
                        {"patient_id": p.patient_id, "label": p.label} for p in shard.patients
                    ],
                }
                for shard in self.shards
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Reads `to_json`'s object.

        Raises:
          ContractError: not a manifest, a field is missing or no value that it can have, or the
            manifest contradicts itself; the message names the field and what was found.
        """
        if data.get("format") != FORMAT:
            raise ContractError(f"format {data.get('format')!r} found, {FORMAT!r} required")
        fields = _Fields(data)
        folds = fields.integer("folds", least=1)
        manifest = cls(
            schema=RecordSchema.from_json(fields.mapping("schema")),
            spec=fields.mapping("spec"),
            folds=folds,
            seed=fields.integer("seed"),
            id_policy=fields.one_of("id_policy", ("keep", "hmac")),
            counts=_counts(fields, "counts"),
            shards=tuple(_shard(shard, folds) for shard in fields.objects("shards")),
        )
        if not manifest.shards:
            raise fields.error("shards", "at least one shard")
        names = Counter(shard.name for shard in manifest.shards)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ContractError(f"shards listed twice: {', '.join(twice[:10])}")
        manifest.check()
        for name, value in (
            ("dataset_fingerprint", manifest.dataset_fingerprint),
            ("spec_fingerprint", manifest.schema.spec_fingerprint),
            ("label_balance", manifest.label_balance),
        ):
            fields.require_equal(name, value)
        return manifest

    def dumps(self) -> str:
        """The text of manifest.json: same dataset, same text."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Manifest:
        """Reads `dumps`' text, or the bytes of a file.

        Raises:
          ContractError: not UTF-8, not JSON, or not a manifest.
        """
        return cls.from_json(json_object(text))


def read_manifest(directory: files.StrPath) -> Manifest:
    """The manifest of a dataset.

    Raises:
      UsageError: no such directory, or it holds no manifest: no dataset, or one whose conversion is
        not done.
      ContractError: the manifest is not valid; the message has the path.
    """
    path = files.join(directory, MANIFEST_NAME)
    try:
        return Manifest.loads(files.read(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        remote = files.is_remote(directory)
        if not remote and not files.is_dir(directory):
            raise UsageError(f"{directory}: no such directory") from error
        bucket = ", or there is no such bucket" if remote else ""
        raise UsageError(
            f"{directory}: no {MANIFEST_NAME}: no dataset, or its conversion is not done{bucket}"
        ) from error
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Fields:
    """An object of the JSON, asked for its members by type.

    Attributes:
      data: the object.
      where: its place, as messages name it: "shards[2].".
    """

    data: Mapping[str, Any]
    where: str = ""

    def error(self, name: str, required: str) -> ContractError:
        return ContractError(
            f"{self.where}{name}: {shown(self.data[name])} found, {required} required"
        )

    def get(self, name: str, kind: type | None = None) -> Any:
        if kind is not None:
            require_kinds(self.data, {name: kind}, where=self.where)
        elif name not in self.data:
            raise ContractError(f"{self.where}{name} is missing")
        return self.data[name]

    def integer(self, name: str, *, least: int | None = None) -> int:
        value = self.get(name, int)
        if least is not None and value < least:
            raise self.error(name, f"at least {least}")
        return int(value)

    def text(self, name: str) -> str:
        value = self.get(name, str)
        if not value or not _is_unicode(value):
            raise self.error(name, "text that can be written")
        return str(value)

    def matching(self, name: str, pattern: re.Pattern[str], required: str) -> re.Match[str]:
        if (match := pattern.fullmatch(self.get(name, str))) is None:
            raise self.error(name, required)
        return match

    def one_of(self, name: str, values: tuple[str, ...]) -> str:
        value = self.get(name)
        if value not in values:
            raise self.error(name, " or ".join(values))
        return str(value)

    def mapping(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = self.get(name, dict)
        return value

    def objects(self, name: str) -> list[_Fields]:
        return [
            _Fields(value, f"{self.where}{name}[{place}].")
            for place, value in enumerate(objects_of(self.data, name, where=self.where))
        ]

    def require_equal(self, name: str, value: object) -> None:
        """Refuses a member that tells what follows from others, but tells it differently."""
        if name in self.data and (
            self.data[name] != value or isinstance(self.data[name], bool | float)
        ):
            raise self.error(name, f"{value!r}, as the shards and the schema say,")


def _shard(fields: _Fields, folds: int) -> ShardEntry:
    name = fields.matching("name", SHARD_NAME, "a name like fold-0-00000-of-00001.tfrecord")
    fold = fields.get("fold")
    if fold is not None and not (_is_integer(fold) and 0 <= fold < folds):
        raise fields.error("fold", f"a fold from 0 to {folds - 1}, or null,")
    if name[1] != (None if fold is None else str(fold)):
        raise fields.error("fold", f"the fold in the name {name[0]}")
    shard = ShardEntry(
        name=name[0],
        fold=fold,
        bytes=fields.integer("bytes", least=0),
        sha256=fields.matching("sha256", _SHA256, "64 hexadecimal digits")[0],
        patients=tuple(_patient(patient) for patient in fields.objects("patients")),
    )
    fields.require_equal("count", shard.count)
    return shard


def _patient(fields: _Fields) -> ShardPatient:
    label = fields.get("label")
    if label is not None and not (_is_integer(label) and label in (0, 1)):
        raise fields.error("label", "0, 1 or null")
    return ShardPatient(patient_id=fields.text("patient_id"), label=label)


def _counts(fields: _Fields, name: str) -> Mapping[str, Any]:
    """Numbers of things, at any depth: none below 0."""
    counts = fields.mapping(name)
    inner = _Fields(counts, f"{fields.where}{name}.")
    for key, value in counts.items():
        if isinstance(value, dict):
            _counts(inner, key)
        else:
            inner.integer(key, least=0)
    return counts


def _is_integer(value: object) -> bool:
    """Whether a JSON value is a whole number; `true` is an int to Python."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    """Whether text can be written; JSON's escapes can spell halves of a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
