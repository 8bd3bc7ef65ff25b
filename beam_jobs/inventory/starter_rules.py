"""A file of series rules to begin with: one for each kind of series that no rule knows."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from beam_jobs.common.printable import counted
from beam_jobs.core.cohort.rules import UNDECIDED
from beam_jobs.core.reasons import Reason
from beam_jobs.inventory.rows import SurveyRow

_TIMES = ("echo_time", "repetition_time", "inversion_time")


def starter_rules(rows: Sequence[SurveyRow]) -> list[dict[str, Any]]:
    """A rule for each kind of series that no rule knows, the most frequent first.

    Its modality is "?": it is passed over, and travels nowhere, until somebody names one. Its
    comment tells of what it was made. Numbers of three digits and more stand for any such: they
    count series, or name people and days. A NIfTI file is known by the end of its name, which is
    not the patient's. Series whose directory decides what they are get none: no rule could.

    Args:
      rows: of a survey, with texts as headers have them: patterns are searched in these.
    """
    known = {
        text
        for row in rows
        if row.modality and not row.by_directory
        for text in (row.description, row.protocol, row.sequence_name)
    }

    @functools.cache
    def pattern_of(name: str) -> tuple[str, bool]:
        """A pattern of a series' name, and whether it finds a known series, too."""
        for pattern in (re.sub(r"\d{3,}", r"\\d{3,}", _escaped(name)), _escaped(name)):
            search = re.compile(f"^{pattern}$", re.IGNORECASE).search
            if not any(map(search, known)):
                return f"^{pattern}$", False
        return f"^{_escaped(name)}$", True

    known_files = {row.file_name for row in rows if row.modality and not row.by_directory}

    @functools.cache
    def file_pattern_of(kind: str, file_name: str) -> str:
        """A pattern of a NIfTI file's name that finds no known one, as far as there is any."""
        end = _escaped(kind)
        for pattern in (re.sub(r"\d{3,}", r"\\d{3,}", end), end) if not kind.isdigit() else (end,):
            pattern = rf"(?:^|[-_. ]){pattern}\.nii"
            search = re.compile(pattern, re.IGNORECASE).search
            if not any(map(search, known_files)):
                return pattern
        return f"^{_escaped(file_name)}$"

    kinds: dict[str, list[SurveyRow]] = {}
    for row in rows:
        if _is_unknown(row):
            rule: dict[str, Any] = {}
            ambiguous = False
            if row.file_name:
                rule["file_name"] = file_pattern_of(row.kind, row.file_name)
            elif row.name:
                rule["text"], ambiguous = pattern_of(row.name)
            if not row.name or ambiguous:
                rule |= _acquisition(row)
            if rule:  # else it would say no more than that the series is MR
                if row.dicom_modality:
                    rule = {"dicom_modality": row.dicom_modality, **rule}
                kinds.setdefault(json.dumps(rule), []).append(row)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    return [
        {"modality": UNDECIDED, **json.loads(rule), "comment": _comment(members)}
        for rule, members in ordered
    ]


def without_rule(rows: Sequence[SurveyRow]) -> int:
    """How many series no rule knows and none can be made of: they have neither text nor time."""
    return sum(_is_unknown(row) and not row.name and not _acquisition(row) for row in rows)


def to_json(rules: Sequence[dict[str, Any]]) -> str:
    """The rules as a file, one a line; what is not seen stands in JSON's escapes."""
    lines = ",\n".join(f"  {_as_json(rule)}" for rule in rules)
    return f"[\n{lines}\n]\n" if rules else "[]\n"


def _as_json(rule: dict[str, Any]) -> str:
    text = json.dumps(rule, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def _is_unknown(row: SurveyRow) -> bool:
    """Whether a rule could say what a series is, and none does; also of one that is nobody's."""
    asks = (Reason.UNKNOWN_MODALITY.value, Reason.NO_PATIENT_ID.value)
    is_told = row.modality or row.by_directory
    return row.reason in asks and row.slices is not None and not is_told


def _acquisition(row: SurveyRow) -> dict[str, Any]:
    """Conditions that the series' sequence and times meet, and few others."""
    rule: dict[str, Any] = {}
    if row.scanning_sequence:
        rule["scanning_sequence"] = f"^{_escaped(row.scanning_sequence)}$"
    for name in _TIMES:
        value = getattr(row, name)
        if value:
            rule[name] = [round(0.95 * value, 2), round(1.05 * value, 2)]
    return rule


def _escaped(text: str) -> str:
    """The text as a regular expression; blanks and hyphens stay readable."""
    return re.sub(r"[\\.*+?^$()\[\]{}|]", lambda found: f"\\{found[0]}", text)


def _comment(rows: Sequence[SurveyRow]) -> str:
    """How many there are, and what the first of them looks like."""
    first = rows[0]
    times = (
        f"{name} {getattr(first, field):g}"
        for name, field in (
            *(("TE", "echo_time"), ("TR", "repetition_time"), ("TI", "inversion_time")),
            ("flip angle", "flip_angle"),
        )
        if getattr(first, field) is not None
    )
    patients = len({row.patient for row in rows})
    parts = (
        f"{len(rows)} series of {counted(patients, 'patient')}",
        f"{first.plane} {first.rows}×{first.columns}×{first.slices}" if first.slices else "",
        " ".join(times),
        first.sequence_name if first.sequence_name != first.name else "",
    )
    return ", ".join(filter(None, parts))
