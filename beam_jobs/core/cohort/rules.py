"""Rules that tell by a series' headers which modality it is: data, the first that fits decides.

The built-in rules (`cohort.builtin_rules`) know the four series of a glioma protocol. A cohort with
other habits brings its own (`--series_rules FILE`, a JSON list of objects with `ModalityRule`'s
fields); they are tried before the built-in ones and travel in the recipe, so that prediction
chooses as training did.
"""

from __future__ import annotations

import dataclasses
import math
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, json_value, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.series import Series

# Stands for the modality of a rule that `survey --write_rules` has begun and nobody has finished.
UNDECIDED = "?"
Range = tuple[float | None, float | None]
_RANGES = (
    *("echo_time", "repetition_time", "inversion_time", "flip_angle"),
    *("b_value", "field_strength", "slices"),
)
_PATTERNS = ("text", "file_name", "image_type", "scanning_sequence")
# What scanners and people write in ContrastBolusAgent where none was given.
_NO_AGENT = re.compile(
    r"\W*(?:(?:no|non|none|not given|nil|null|without|ohne|kein\w*|sans|n/?a|0+(?:[.,]0*)?) ?"
    r"(?:contrast|kontrast\w*|km|agent|iv|gd|ml|cc)?)?\W*",
    re.IGNORECASE,
)
# What an image is where Modality itself is absent (PS3.4 B.5); secondary captures may be anything.
_BY_CLASS = {
    f"1.2.840.10008.5.1.4.1.1.{last}": modality
    for modality, classes in {
        "MR": ("4", "4.1", "4.4"),
        "CT": ("2", "2.1", "2.2"),
        "PT": ("128", "128.1", "130"),
        "NM": ("20",),
        "US": ("6.1", "3.1"),
        "CR": ("1",),
        "DX": ("1.1",),
        "XA": ("12.1", "12.1.1", "13.1.1"),
        "RTDOSE": ("481.2",),
    }.items()
    for last in classes
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityRule:
    """One rule; every condition that is given must hold.

    Regular expressions are searched without regard to case.

    Attributes:
      modality: what a series is that fits; None: it is no modality and is left unused.
      dicom_modality: Modality (0008,0060), "MR" or "CT" for instance; without it a rule that gives
        one of the built-in modalities fits MR only, any other rule every kind of image.
      text: regular expression, searched in SeriesDescription (0008,103E), ProtocolName (0018,1030)
        and SequenceName (0018,0024) or PulseSequenceName (0018,9005).
      file_name: regular expression, searched in the name of the file (of the first slice's, where a
        series has several), without its directories.
      image_type: regular expression, searched in ImageType (0008,0008), values joined by "\\".
      scanning_sequence: likewise in ScanningSequence (0018,0020), "SE\\IR" for instance.
      contrast: whether ContrastBolusAgent (0018,0010) names an agent.
      plane: "axial", "coronal" or "sagittal".
      echo_time, repetition_time, inversion_time: in ms, least and greatest, None for no bound.
      flip_angle: in degrees, likewise.
      b_value: diffusion weighting in s/mm², likewise.
      field_strength: in tesla, likewise.
      slices: number of slices, likewise.

    Raises:
      ValueError: no condition at all, an expression that does not compile, or a range that is
        none.
    """

    modality: str | None
    dicom_modality: str | None = None
    text: str | None = None
    file_name: str | None = None
    image_type: str | None = None
    scanning_sequence: str | None = None
    contrast: bool | None = None
    plane: str | None = None
    echo_time: Range | None = None
    repetition_time: Range | None = None
    inversion_time: Range | None = None
    flip_angle: Range | None = None
    b_value: Range | None = None
    field_strength: Range | None = None
    slices: Range | None = None

    def __post_init__(self) -> None:
        given = dataclasses.asdict(self)
        given.pop("modality")
        if all(value is None for value in given.values()):
            raise ValueError("a rule needs a condition")
        for name in ("modality", "dicom_modality", *_PATTERNS):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} must be text")
        if not isinstance(self.contrast, bool | None):
            raise ValueError("contrast must be true or false")
        if self.plane not in (None, "axial", "coronal", "sagittal"):
            raise ValueError(f"plane {shown(self.plane)} is none of axial, coronal, sagittal")
        for name in _RANGES:
            bounds = getattr(self, name)
            if bounds is None:
                continue
            if not (
                isinstance(bounds, list | tuple)
                and len(bounds) == 2
                and all(map(_is_bound, bounds))
            ):
                raise ValueError(f"{name} must be [least, greatest], null for no bound")
            if None not in bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name}: nothing lies between {bounds[0]} and {bounds[1]}")
            object.__setattr__(self, name, tuple(bounds))
        for name in _PATTERNS:
            pattern = getattr(self, name)
            if pattern == "":
                raise ValueError(f"{name} is empty, which is found in every text")
            try:
                re.compile(pattern or "")
            except (re.error, RecursionError, OverflowError) as error:
                message = f"{name} {pattern[:80]!r} is no regular expression: {error}"
                raise ValueError(message) from error

    def fits(self, series: Series, texts: Sequence[str] | None = None) -> bool:
        """Whether every condition holds; a value that is absent fits no range.

        Args:
          series: the series.
          texts: what `text` is searched in, where it is not the header's three texts.
        """
        first = series.first
        if self.dicom_modality is not None and self.dicom_modality.upper() != dicom_modality(first):
            return False
        if texts is None:
            texts = (first.series_description, first.protocol_name, sequence_name(first))
        if self.text is not None and not any(map(_searcher(self.text), texts)):
            return False
        if self.file_name is not None and not _searcher(self.file_name)(file_name(first.path)):
            return False
        for name in ("image_type", "scanning_sequence"):
            pattern = getattr(self, name)
            if pattern is not None and not _searcher(pattern)("\\".join(getattr(first, name))):
                return False
        if self.contrast is not None and self.contrast != has_agent(first):
            return False
        if self.plane is not None and self.plane != series.geometry.plane:
            return False
        for name in _RANGES:
            bounds = getattr(self, name)
            if bounds is None:
                continue
            if not _within(
                len(series.headers) if name == "slices" else getattr(first, name), bounds
            ):
                return False
        return True

    def to_json(self) -> dict[str, Any]:
        """The given fields alone."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None or field.name == "modality"
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModalityRule:
        """Reads `to_json`'s object; a "comment" is for whoever edits the file, and is dropped.

        Raises:
          ValueError: `modality` is missing, or a field is unknown or malformed.
        """
        data = {key: value for key, value in data.items() if key != "comment"}
        names = {field.name for field in dataclasses.fields(cls)}
        if "modality" not in data or set(data) - names:
            raise ValueError(f"fields must be modality and conditions among {sorted(names)}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


def dicom_modality(header: SliceHeader) -> str:
    """Modality (0008,0060) in capitals, by SOP class where it is absent, "" where that is, too."""
    return header.modality.strip().upper() or _BY_CLASS.get(header.sop_class, "")


def file_name(path: str) -> str:
    """A file's name without its directories; of an archive's member, its own."""
    return posixpath.basename(files.logical(path))


def sequence_name(header: SliceHeader) -> str:
    """SequenceName (0018,0024), or what enhanced and newer Siemens objects have in its place."""
    return header.sequence_name or header.pulse_sequence_name


def has_agent(header: SliceHeader) -> bool:
    """Whether ContrastBolusAgent (0018,0010) names an agent; "none" and its like name none."""
    return not _NO_AGENT.fullmatch(header.contrast_agent)


def _is_bound(value: object) -> bool:
    return value is None or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -math.inf < value < math.inf
    )


def _searcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(pattern, re.IGNORECASE).search  # compiled once: `re` keeps the last 512


def _within(value: float | None, bounds: Range) -> bool:
    low, high = bounds
    if value is None:
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def read_rules(
    text: str, *, name: str, modalities: Collection[str] = ()
) -> tuple[ModalityRule, ...]:
    """Reads a rules file; rules whose modality is still "?" are none.

    Args:
      text: JSON, a list of rules; a byte order mark is passed over.
      name: what to call it in messages.
      modalities: all that a rule may give, spelt so; empty: whatever it says.

    Raises:
      UsageError: not JSON, not a list, or a rule that is none; the message counts from 1.
    """
    try:
        items = json_value(text.removeprefix("\ufeff"))
    except ContractError as error:
        raise UsageError(f"rules {name}: {error}") from error
    if not isinstance(items, list):
        raise UsageError(f"rules {name} must be a JSON list of objects")
    rules = []
    for number, item in enumerate(items, start=1):
        try:
            if not isinstance(item, dict):
                raise ValueError('a rule is an object, {"modality": ..., a condition: ...}')
            rule = ModalityRule.from_json(item)
            # One that is misspelt would leave out, without a word, every series that it fits.
            if modalities and rule.modality not in (None, UNDECIDED, *modalities):
                known = ", ".join(dict.fromkeys(modalities))
                raise ValueError(
                    f"gives {shown(rule.modality)}, which is neither one of --modalities "
                    f"nor built in ({known})"
                )
        except (TypeError, ValueError) as error:
            raise UsageError(f"rules {name}, rule {number}: {error}") from error
        if rule.modality != UNDECIDED:
            rules.append(rule)
    return tuple(rules)


def read_rules_file(
    path: files.StrPath | None, modalities: Collection[str] = ()
) -> tuple[ModalityRule, ...]:
    """The rules of a file, none without one.

    Args:
      path: of the file.
      modalities: as `read_rules` has it.

    Raises:
      UsageError: there is no such file, or it holds no rules.
      OSError: it cannot be read.
    """
    if path is None:
        return ()
    text = read_named(path, flag="--series_rules")
    return read_rules(text, name=files.text(path), modalities=modalities)
