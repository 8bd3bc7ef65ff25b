"""What a cohort looks like, in counts that add up: training data, and patients asked about.

Per modality: patients without it, intensity quantiles of the foreground, planes, spacing within
slices and between them, field strengths. Every number is a whole number, so that parts can be
added in any order and give the same sum to the last bit; the size does not grow with the cohort.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from beam_jobs.common import terminal
from beam_jobs.common.contract_json import ContractError, json_object, require_kinds
from beam_jobs.common.csv_table import read_table
from beam_jobs.common.files_before import filesystems
from beam_jobs.convert.resume import digest
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import decode_case, read_records

FORMAT = "voxelbeam-statistics"
STATISTICS_NAME = "assets/training_statistics.json"
SERIES_NAME = "series.csv"
QUANTILES = (5, 25, 50, 75, 95)  # per cent, of the foreground
# Columns of series.csv that are looked at.
_SERIES = ("patient", "modality", "verdict", "plane", "row_spacing", "column_spacing") + (
    "slice_step",
    "field_strength",
)
# Spacings fall into bins of a ninth: eight to each doubling.
_BINS_PER_DOUBLING = 8
# Every other row and column tells the quantiles as well, for a quarter of the time.
_STRIDE = 2

Key = tuple[str, str, str]  # modality, what is counted, the bin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts over a cohort.

    Attributes:
      patients: how many were counted.
      counts: (modality, what, bin) -> count. What: "missing" (bins yes, no), "plane",
        "field_strength" (tesla), "spacing" and "step" (mm), over series; "intensity" (bins n, and
        for each quantile its sum and sum of squares over patients, in 256ths of the stored range).
      dataset_fingerprint: of the dataset counted; "" for other patients.
    """

    patients: int
    counts: Mapping[Key, int]
    dataset_fingerprint: str = ""

    def __add__(self, other: Statistics) -> Statistics:
        counts = Counter(self.counts)
        counts.update(other.counts)
        return Statistics(patients=self.patients + other.patients, counts=counts)

    def bins(self, modality: str, what: str) -> dict[str, int]:
        """The counts of one thing."""
        return {key[2]: n for key, n in self.counts.items() if key[:2] == (modality, what)}

    def dumps(self) -> str:
        """JSON text; `loads` takes it back."""
        nested: dict[str, dict[str, dict[str, int]]] = {}
        for (modality, what, name), count in sorted(self.counts.items()):
            nested.setdefault(modality, {}).setdefault(what, {})[name] = count
        data = {
            "format": FORMAT,
            "dataset_fingerprint": self.dataset_fingerprint,
            "patients": self.patients,
            "counts": nested,
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Statistics:
        """Reads `dumps`' text.

        Raises:
          ContractError: not such a text.
        """
        data = json_object(text)
        if data.get("format") != FORMAT:
            raise ContractError(f"format {data.get('format')!r} found, {FORMAT!r} required")
        require_kinds(data, {"patients": int, "counts": dict, "dataset_fingerprint": str})
        counts: dict[Key, int] = {}
        for modality, kinds in data["counts"].items():
            require_kinds({modality: kinds}, {modality: dict}, where="counts.")
            for what, bins in kinds.items():
                require_kinds({what: bins}, {what: dict}, where=f"counts.{modality}.")
                require_kinds(bins, dict.fromkeys(bins, int), where=f"counts.{modality}.{what}.")
                counts.update({(modality, what, name): n for name, n in bins.items()})
        return cls(
            patients=data["patients"],
            counts=counts,
            dataset_fingerprint=data["dataset_fingerprint"],
        )


NONE = Statistics(patients=0, counts={})


def of_case(case: PreparedCase, schema: RecordSchema) -> Statistics:
    """One patient's volume: which modalities are missing, how bright the others are."""
    counts: Counter[Key] = Counter()
    sampled = case.volume[::_STRIDE, ::_STRIDE]
    for channel, (modality, present) in enumerate(
        zip(schema.modalities, case.present, strict=True)
    ):
        counts[modality, "missing", "no" if present else "yes"] += 1
        if present and (levels := _quantiles(sampled[..., channel])):
            counts[modality, "intensity", "n"] += 1
            for quantile, level in zip(QUANTILES, levels, strict=True):
                counts[modality, "intensity", f"q{quantile:02d} sum"] += level
                counts[modality, "intensity", f"q{quantile:02d} squares"] += level**2
    return Statistics(patients=1, counts=counts)


def of_series(rows: Iterable[Mapping[str, Any]], modalities: Iterable[str]) -> Statistics:
    """Series used, as rows of series.csv (text or values): planes, spacings, field strengths."""
    counts: Counter[Key] = Counter()
    known = set(modalities)
    for row in rows:
        modality = str(row["modality"])
        if row["verdict"] != "used" or modality not in known:
            continue
        inside = [_number(row["row_spacing"]), _number(row["column_spacing"])]
        spacing = math.sqrt(inside[0] * inside[1]) if all(inside) else 0.0
        field = _number(row["field_strength"])
        counts[modality, "plane", str(row["plane"]) or "unknown"] += 1
        counts[modality, "spacing", _length_bin(spacing)] += 1
        counts[modality, "step", _length_bin(_number(row["slice_step"]))] += 1
        counts[modality, "field_strength", f"{field:.1f}" if field else "unknown"] += 1
    return Statistics(patients=0, counts=counts)


def of_series_table(dataset: str, modalities: Iterable[str], patients: set[str]) -> Statistics:
    """The series of some patients in a dataset's series.csv; `NONE` where it has no such table.

    Raises:
      ContractError: the table lacks a column.
    """
    path = filesystems.join(dataset, SERIES_NAME)
    if not filesystems.exists(path):
        return NONE
    try:
        _, rows = read_table(filesystems.read_text(path), _SERIES)
    except ValueError as error:
        raise ContractError(f"{path}: {error}") from error
    # Records have the labels' spelling of an id, the table has the input's.
    wanted = {normalised_id(name) for name in patients}
    return of_series(
        (row for _, row in rows if normalised_id(row["patient"]) in wanted), modalities
    )


def of_dataset(path: str, manifest: Manifest) -> Statistics:
    """The labelled patients of a dataset: what a model of it was trained on.

    Raises:
      ContractError: a shard is not the one that the manifest lists.
    """
    patients = {name for name, label, _ in manifest.patients if label is not None}
    found = of_series_table(path, manifest.schema.modalities, patients)
    shards = [shard for shard in manifest.shards if shard.fold is not None]
    for shard in terminal.track(shards, "reading records", len(shards)):
        file = filesystems.join(path, shard.name)
        if (size_and_sum := digest(file)) != (shard.bytes, shard.sha256):
            told = "{}: {} bytes, sha256 {}; the manifest lists {} bytes, sha256 {}"
            raise ContractError(told.format(file, *size_and_sum, shard.bytes, shard.sha256))
        with filesystems.open_read(file) as stream:
            for case in _cases(read_records(stream), manifest.schema):
                found += of_case(case, manifest.schema)
    return dataclasses.replace(found, dataset_fingerprint=manifest.dataset_fingerprint)


def _cases(records: Iterator[bytes], schema: RecordSchema) -> Iterator[PreparedCase]:
    for record in records:
        yield decode_case(record, schema)


def _quantiles(channel: Any) -> list[int]:
    """The foreground's `QUANTILES`, in 256ths of the stored range; none without foreground."""
    if channel.dtype == np.uint8:
        counts = np.bincount(channel.ravel(), minlength=256)
        counts[0] = 0
    else:
        inside = channel[channel > 0]
        levels = inside >> 8 if channel.dtype == np.uint16 else np.clip(inside * 255.0, 0, 255)
        counts = np.bincount(levels.astype(np.uint8), minlength=256)
    below = np.cumsum(counts)
    if not below[-1]:
        return []
    wanted = np.array(QUANTILES) / 100 * below[-1]
    return [int(level) for level in np.searchsorted(below, wanted)]


def _number(value: object) -> float:
    """A number of a row, 0 where it is unknown."""
    try:
        number = float(str(value))
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0


def _length_bin(length: float) -> str:
    """The bin's middle in mm."""
    if not length:
        return "unknown"
    return f"{2 ** (round(_BINS_PER_DOUBLING * math.log2(length)) / _BINS_PER_DOUBLING):.3g}"
