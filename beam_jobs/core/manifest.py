"""manifest.json: a dataset's table of contents; written last, so that it marks completion."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from beam_jobs.core.record import ContractError, RecordSchema

FORMAT = "voxelbeam-dataset"
MANIFEST_NAME = "manifest.json"


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(data: Any) -> str:
    """sha256 (hex) of the canonical JSON of `data`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


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
          ContractError: not a manifest, a field is missing, or it contradicts itself.
        """
        if data.get("format") != FORMAT:
            raise ContractError(f"format {data.get('format')!r} found, {FORMAT!r} required")
        try:
            manifest = cls(
                schema=RecordSchema.from_json(data["schema"]),
                spec=data["spec"],
                folds=data["folds"],
                seed=data["seed"],
                id_policy=data["id_policy"],
                counts=data["counts"],
                shards=tuple(
                    ShardEntry(
                        name=shard["name"],
                        fold=shard["fold"],
                        bytes=shard["bytes"],
                        sha256=shard["sha256"],
                        patients=tuple(
                            ShardPatient(patient_id=p["patient_id"], label=p["label"])
                            for p in shard["patients"]
                        ),
                    )
                    for shard in data["shards"]
                ),
            )
        except (KeyError, TypeError) as error:
            raise ContractError(f"manifest field missing or malformed: {error}") from error
        manifest.check()
        return manifest

    def dumps(self) -> str:
        """The text of manifest.json: same dataset, same text."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str) -> Manifest:
        """Reads `dumps`' text.

        Raises:
          ContractError: not JSON, or not a manifest.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ContractError(f"not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ContractError("not a JSON object")
        return cls.from_json(data)
