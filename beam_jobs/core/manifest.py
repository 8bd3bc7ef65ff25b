"""manifest.json: a dataset's table of contents; written last, so that it marks completion."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    fingerprint,
    is_unicode,
    json_object,
    objects_of,
    require_kinds,
    require_that,
    shown,
)
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.balance import counts_of, quartiles
from beam_jobs.core.cohort.ids import PATIENT_FROM
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.record import RecordSchema

FORMAT = "voxelbeam-dataset"
MANIFEST_NAME = "manifest.json"
# A name that leads nowhere else: the directory is joined with it.
SHARD_NAME = re.compile(r"(?:fold-(\d+)|test|unlabelled)-\d{5}-of-\d{5}\.tfrecord", re.ASCII)
TEST: Literal["test"] = "test"
# Where a patient stands: in a fold, among test patients of no fold, or (None) without a label.
Place = int | Literal["test"] | None
# How folds came about: dealt patient by patient, whole groups at a time, or as a file gives them.
FOLD_RULES = ("patients", "groups", "given")
FOLDS_MOST = 10_000  # whoever reads a manifest loops over them
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPatient:
    """One record's place in the table of contents: id and label (None when unknown)."""

    patient_id: str
    label: Label | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard file.

    Attributes:
      name: file name inside the dataset directory.
      fold: the fold its patients belong to, None for test patients and those without a label.
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

    @property
    def place(self) -> Place:
        """Its fold, `TEST`, or None for patients without a label."""
        return TEST if self.name.startswith(f"{TEST}-") else self.fold

    def difference(self, size: int, sha256: str) -> str:
        """How a file differs from the shard that was written, for a message; "" where it is it."""
        if (size, sha256) == (self.bytes, self.sha256):
            return ""
        listed = f"the manifest lists {self.bytes} bytes, sha256 {self.sha256}"
        return f"{size} bytes, sha256 {sha256}; {listed}"


def digest(path: files.StrPath) -> tuple[int, str]:
    """(bytes, sha256 hex) of a file."""
    found, size = hashlib.sha256(), 0
    with files.open_read(path) as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
            size += len(chunk)
    return size, found.hexdigest()


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
      fold_rule: one of `FOLD_RULES`.
      patient_from: who was a patient of the input, where a user chose it (`ids.PATIENT_FROM`);
        it tells how to find the patients there again, and nothing of how a volume is made.
    """

    schema: RecordSchema
    spec: Mapping[str, Any]
    folds: int
    seed: int
    id_policy: str
    counts: Mapping[str, Any]
    shards: tuple[ShardEntry, ...]
    fold_rule: str = "patients"
    patient_from: str = ""

    @property
    def patients(self) -> list[tuple[str, Label | None, int | None]]:
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
        """Per fold ("0", ..., "test", "unlabelled"): records of each class, with each finding, or
        with values between the quartiles of all; and those without a label, "none"."""
        places: dict[str, list[Label | None]] = {}
        for shard in self.shards:
            key = "unlabelled" if shard.place is None else str(shard.place)
            places.setdefault(key, []).extend(patient.label for patient in shard.patients)
        target = self.schema.target
        edges: tuple[float, ...] = ()
        if target.task == "regression":
            edges = quartiles(label for labels in places.values() for label in labels)
        return {fold: counts_of(target, labels, edges) for fold, labels in sorted(places.items())}

    def shards_of(self, folds: Iterable[int | None]) -> list[ShardEntry]:
        """The shards of the given folds (None: those of no fold), in name order.

        Raises:
          UsageError: there is no such fold.
        """
        wanted = set(folds)
        known = range(self.folds)
        if unknown := [fold for fold in wanted if fold is not None and fold not in known]:
            raise UsageError(f"no fold {min(unknown)}: the dataset has folds 0 to {self.folds - 1}")
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

    def check_groups(self) -> None:
        """Refuses numbers of groups a fold that its patients cannot be of.

        Raises:
          ContractError: names the fold.
        """
        if self.fold_rule != "groups":
            return
        groups = self.counts.get("folds", {}).get("groups", {})
        sizes = Counter({shard.fold: 0 for shard in self.shards})
        for shard in self.shards:
            sizes[shard.fold] += shard.count
        for fold, patients in sizes.items():
            found = groups.get(str(fold), 0)
            if fold is not None and not 0 < found <= patients:
                raise ContractError(f"fold {fold} has {patients} patients of {found} groups")

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
            **({} if self.fold_rule == "patients" else {"fold_rule": self.fold_rule}),
            **({"patient_from": self.patient_from} if self.patient_from else {}),
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
                        {
                            "patient_id": p.patient_id,
                            "label": self.schema.target.label_to_json(p.label),
                        }
                        for p in shard.patients
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
            raise ContractError(f"format {shown(data.get('format'))} found, {FORMAT!r} required")
        require_kinds(data, _KINDS)
        folds = data["folds"]
        require_that(folds >= 1, data, "folds", "at least 1")
        require_that(folds <= FOLDS_MOST, data, "folds", f"at most {FOLDS_MOST}")
        require_that(data["id_policy"] in ("keep", "hmac"), data, "id_policy", "keep or hmac")
        require_that(len(data["shards"]) > 0, data, "shards", "at least one shard")
        _require_counts(data["counts"], "counts.")
        fold_rule = data.get("fold_rule", "patients")
        require_that(fold_rule in FOLD_RULES, data, "fold_rule", f"one of {', '.join(FOLD_RULES)}")
        patient_from = data.get("patient_from", "")
        require_that(
            patient_from in ("", *PATIENT_FROM),
            data,
            "patient_from",
            f"one of {', '.join(PATIENT_FROM)}",
        )
        schema = RecordSchema.from_json(data["schema"])
        manifest = cls(
            schema=schema,
            spec=data["spec"],
            folds=folds,
            seed=data["seed"],
            id_policy=data["id_policy"],
            counts=data["counts"],
            shards=tuple(
                _shard(shard, folds, f"shards[{number}].", schema.target)
                for number, shard in enumerate(objects_of(data, "shards"))
            ),
            fold_rule=fold_rule,
            patient_from=patient_from,
        )
        names = Counter(shard.name for shard in manifest.shards)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ContractError(f"shards listed twice: {', '.join(twice[:10])}")
        manifest.check()
        manifest.check_groups()
        manifest.schema.require_recipe(manifest.spec)
        for name, value in (
            ("dataset_fingerprint", manifest.dataset_fingerprint),
            ("spec_fingerprint", manifest.schema.spec_fingerprint),
            ("label_balance", manifest.label_balance),
        ):
            _require_same(value, data, name)
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


_KINDS: dict[str, Kind] = {
    "schema": dict,
    "spec": dict,
    "folds": int,
    "seed": int,
    "id_policy": str,
    "counts": dict,
    "shards": list,
}
_SHARD_KINDS: dict[str, Kind] = {
    "name": str,
    "fold": int | None,
    "bytes": int,
    "sha256": str,
    "patients": list,
}
_PATIENT_KINDS: dict[str, Kind] = {"patient_id": str}


def _shard(data: Mapping[str, Any], folds: int, where: str, target: Target) -> ShardEntry:
    require_kinds(data, _SHARD_KINDS, where=where)
    require = functools.partial(require_that, data=data, where=where)
    name, fold = SHARD_NAME.fullmatch(data["name"]), data["fold"]
    require(name is not None, name="name", required="a name like fold-0-00000-of-00001.tfrecord")
    in_range = fold is None or 0 <= fold < folds
    require(in_range, name="fold", required=f"a fold from 0 to {folds - 1}, or null,")
    in_name = name is not None and name[1] == (None if fold is None else str(fold))
    require(in_name, name="fold", required=f"the fold in the name {data['name']}")
    require(data["bytes"] >= 0, name="bytes", required="at least 0")
    is_hash = _SHA256.fullmatch(data["sha256"]) is not None
    require(is_hash, name="sha256", required="64 hexadecimal digits")
    shard = ShardEntry(
        name=data["name"],
        fold=fold,
        bytes=data["bytes"],
        sha256=data["sha256"],
        patients=tuple(
            _patient(patient, f"{where}patients[{number}].", target)
            for number, patient in enumerate(objects_of(data, "patients", where=where))
        ),
    )
    _require_same(shard.count, data, "count", where=where)
    return shard


def _patient(data: Mapping[str, Any], where: str, target: Target) -> ShardPatient:
    require_kinds(data, _PATIENT_KINDS, where=where)
    if "label" not in data:
        raise ContractError(f"{where}label is missing")
    patient_id = data["patient_id"]
    fits = patient_id != "" and is_unicode(patient_id)
    require_that(fits, data, "patient_id", "text that can be written", where=where)
    label = target.label_of_json(data["label"], where=where)
    return ShardPatient(patient_id=patient_id, label=label)


def _require_counts(data: Mapping[str, Any], where: str) -> None:
    """Refuses counts, at any depth, that are no whole numbers or below 0."""
    for name, value in data.items():
        if isinstance(value, dict):
            _require_counts(value, f"{where}{name}.")
        else:
            require_kinds(data, {name: int}, where=where)
            require_that(value >= 0, data, name, "at least 0", where=where)


def _require_same(value: object, data: Mapping[str, Any], name: str, *, where: str = "") -> None:
    """Refuses a member that says what follows from others, but says it differently."""
    if name in data:
        same = data[name] == value and not isinstance(data[name], bool | float)
        required = f"{value!r}, as the shards and the schema say,"
        require_that(same, data, name, required, where=where)
