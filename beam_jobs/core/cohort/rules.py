"""Which modality a series is, by what its headers say: rules as data, the first that fits decides.

The built-in rules know the four series of a glioma protocol. A cohort with other habits brings its
own (`--series_rules FILE`, a JSON list of objects with `ModalityRule`'s fields); they are tried
before the built-in ones and travel in the recipe, so that prediction chooses as training did.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.core.series import Series

Range = tuple[float | None, float | None]
_RANGES = ("echo_time", "repetition_time", "inversion_time", "field_strength", "slices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityRule:
    """One rule; every condition that is given must hold.

    Attributes:
      modality: what a series is that fits; None: it is no modality and is left unused.
      text: regular expression, searched without regard to case in SeriesDescription (0008,103E),
        ProtocolName (0018,1030) and SequenceName (0018,0024).
      contrast: whether ContrastBolusAgent (0018,0010) is filled.
      plane: "axial", "coronal" or "sagittal".
      echo_time, repetition_time, inversion_time: in ms, least and greatest, None for no bound.
      field_strength: in tesla, likewise.
      slices: number of slices, likewise.

    Raises:
      ValueError: no condition at all, an expression that does not compile, or a range that is
        none.
    """

    modality: str | None
    text: str | None = None
    contrast: bool | None = None
    plane: str | None = None
    echo_time: Range | None = None
    repetition_time: Range | None = None
    inversion_time: Range | None = None
    field_strength: Range | None = None
    slices: Range | None = None

    def __post_init__(self) -> None:
        given = dataclasses.asdict(self)
        given.pop("modality")
        if all(value is None for value in given.values()):
            raise ValueError("a rule needs a condition")
        if self.plane not in (None, "axial", "coronal", "sagittal"):
            raise ValueError(f"plane {self.plane!r} is none of axial, coronal, sagittal")
        for name in _RANGES:
            bounds = getattr(self, name)
            if bounds is None:
                continue
            numbers = [bound for bound in bounds if bound is not None]
            if len(bounds) != 2 or not all(isinstance(bound, (int, float)) for bound in numbers):
                raise ValueError(f"{name} must be [least, greatest], null for no bound")
            object.__setattr__(self, name, tuple(bounds))
        try:
            re.compile(self.text or "")
        except re.error as error:
            raise ValueError(f"text {self.text!r} is no regular expression: {error}") from error

    def fits(self, series: Series) -> bool:
        """Whether every condition holds; a value that is absent fits no range."""
        first = series.first
        if self.text is not None:
            texts = (first.series_description, first.protocol_name, first.sequence_name)
            if not any(re.search(self.text, text, re.IGNORECASE) for text in texts):
                return False
        if self.contrast is not None and self.contrast != bool(first.contrast_agent):
            return False
        if self.plane is not None and self.plane != series.geometry.plane:
            return False
        for name in _RANGES:
            bounds = getattr(self, name)
            value = len(series.headers) if name == "slices" else getattr(first, name)
            if bounds is not None and not _within(value, bounds):
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
        """Reads `to_json`'s object.

        Raises:
          ValueError: `modality` is missing, or a field is unknown or malformed.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if "modality" not in data or set(data) - names:
            raise ValueError(f"fields must be modality and conditions among {sorted(names)}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


def _within(value: float | None, bounds: Range) -> bool:
    low, high = bounds
    if value is None:
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def _words(*alternatives: str) -> str:
    """A pattern of whole words; digits, letters and "+" continue a word, "_" and "-" do not."""
    return rf"(?<![a-z0-9+])(?:{'|'.join(alternatives)})(?![a-z0-9+])"


_T1 = _words(
    r"t1w?(?:ce|gd|c)?",
    r"t1[_ -]?w?(?:se|tse|fse|ffe|gre|fl2d|fl3d|vibe|mpr|space|spgr)",
    "mprage",
    "mp2rage",
    "i?r?[- ]?f?spgr",
    "bravo",
    "tfl3?d?",
)
_T2 = _words(r"t2w?", r"t2[_ -]?w?(?:se|tse|fse|frfse|space|blade|propeller)")
_FLAIR = _words("t2[_ -]?flair", "flair", "dark[_ -]?fluid", "tirm")
_ENHANCED = _words(
    r"\+?gd",
    r"gad\w*",
    "post",
    r"post[_ -]?(?:gd|gad|con|contrast)",
    "contrast",
    r"(?:t1w?)?\+?(?:ce|gd)",
    r"\+c(?:on|ontrast)?",
    r"c\+",
    "enhanced",
    "km",
)
_PLAIN = _words("pre", "without", "w/?o", "non?", "unenhanced", "native", "nativ")


DEFAULT_RULES: tuple[ModalityRule, ...] = (
    # What looks like a modality by its words or times and is none.
    ModalityRule(
        modality=None,
        text=r"dwi|diff|dti|trace|perf|bold|fmri|scout|locali[sz]er|survey|smartbrain|subtr|"
        r"field.?map|t2.?(?:\*|star)|"
        + _words("adc", "e?adc", "dsc", "dce", "asl", "swi", "swan", "mip"),
    ),
    # T1-FLAIR is T1-weighted: the inversion shortens contrast, it does not make it T2.
    ModalityRule(modality="T1w", text=f"^(?=.*{_T1})(?=.*{_PLAIN})"),
    ModalityRule(modality="T1wCE", text=f"^(?=.*{_T1})(?=.*{_ENHANCED})"),
    ModalityRule(modality="T1wCE", text=_T1, contrast=True),
    ModalityRule(modality="T1w", text=_T1),
    ModalityRule(modality="FLAIR", text=_FLAIR),
    ModalityRule(modality="T2w", text=_T2),
)
# Tried where no description, protocol or sequence name is filled at all: echo, repetition and
# inversion times of spin and gradient echo.
TIME_RULES: tuple[ModalityRule, ...] = (
    ModalityRule(modality="FLAIR", inversion_time=(1500, None), echo_time=(60, None)),
    ModalityRule(modality="T2w", echo_time=(60, None), repetition_time=(1800, None)),
    ModalityRule(
        modality="T1wCE", echo_time=(None, 30), repetition_time=(None, 1200), contrast=True
    ),
    ModalityRule(modality="T1w", echo_time=(None, 30), repetition_time=(None, 1200)),
)


def known_modalities(rules: Sequence[ModalityRule]) -> set[str]:
    """Every modality that some rule gives."""
    return {rule.modality for rule in (*rules, *DEFAULT_RULES) if rule.modality}


def modality_by_rules(series: Series, rules: Sequence[ModalityRule]) -> str | None:
    """The modality of the first of `rules`, then of the built-in ones, that fits."""
    first = series.first
    silent = not (first.series_description or first.protocol_name or first.sequence_name)
    for rule in (*rules, *(TIME_RULES if silent else DEFAULT_RULES)):
        if rule.fits(series):
            return rule.modality
    return None


def read_rules(text: str, *, name: str) -> tuple[ModalityRule, ...]:
    """Reads a rules file.

    Args:
      text: JSON, a list of rules.
      name: what to call it in messages.

    Raises:
      UsageError: not JSON, not a list, or a rule that is none; the message counts from 1.
    """
    try:
        items = json.loads(text)
    except ValueError as error:
        raise UsageError(f"rules {name} are not JSON: {error}") from error
    if not isinstance(items, list):
        raise UsageError(f"rules {name} must be a JSON list of objects")
    rules = []
    for number, item in enumerate(items, start=1):
        try:
            rules.append(ModalityRule.from_json(dict(item)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"rules {name}, rule {number}: {error}") from error
    return tuple(rules)


def read_rules_file(path: files.StrPath | None) -> tuple[ModalityRule, ...]:
    """The rules of a file, none without one.

    Raises:
      UsageError: there is no such file, or it holds no rules.
      OSError: it cannot be read.
    """
    if path is None:
        return ()
    return read_rules(read_named(path, flag="--series_rules"), name=files.text(path))
