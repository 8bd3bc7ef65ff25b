"""A survey's rows as lines that fit a terminal, two for a series, under their patient."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from beam_jobs.common.printable import plural
from beam_jobs.core.reasons import Reason, Verdict
from beam_jobs.inventory.rows import SurveyRow

_INDENT = 9
_ONE_LINE = 150  # columns from which a series' particulars stand beside it, not below
_SEPARATOR = " · "
_NAME = 40  # columns of a name among others


class Line(NamedTuple):
    """A line of the listing, and how to show it: "bold", "dim" or ""."""

    text: str
    style: str = ""


def listing(rows: Sequence[SurveyRow], width: int, most: int) -> Iterator[Line]:
    """The lines of the rows, none wider than `width` columns.

    Args:
      rows: in the order of `survey_rows`.
      width: columns.
      most: series to show; a patient that was begun is shown whole up to twice as many.
    """
    shown = 0
    patients = [
        (patient, list(members))
        for patient, members in itertools.groupby(rows, key=lambda row: row.patient)
    ]
    columns = _columns([row for row in rows if row.is_series][: 2 * most], width)
    if any(row.is_series for row in rows):
        yield Line(_line(columns, "no.", "tag", "series", "is", "verdict", width), "dim")
    for number, (patient, members) in enumerate(patients):
        series = [row for row in members if row.is_series]
        if shown >= most and series:
            left = sum(row.is_series for _, rest in patients[number:] for row in rest)
            people = sum(bool(patient) for patient, _ in patients[number:])
            text = f"… {_count(left, 'more series')} of {_count(people, 'patient')}"
            yield Line(_fit(f"{text}; --output FILE has every row", width).rstrip())
            break
        files = sum(row.files for row in members)
        name = f"patient {patient}" if patient else "no patient"
        studies = len({row.study for row in series})
        head = _SEPARATOR.join(
            filter(
                None,
                (
                    f"{studies:,} studies" if patient and studies > 1 else "",
                    _count(len(series), "series") if series else "",
                    _count(files, "file"),
                ),
            )
        )
        # Counts stay in sight, however long a name is.
        name = _fit(name, min(cell_len(name), max(width - cell_len(head) - len(_SEPARATOR), 12)))
        yield Line(_fit(f"{name}{_SEPARATOR}{head}", width).rstrip(), "bold")
        for refusal in dict.fromkeys(row.refusal for row in members if row.refusal):
            yield Line(_fit(f"  refused: {refusal}", width).rstrip(), "red")
        for row in series[: 2 * most - shown]:
            yield from _series(row, columns, width)
        if len(series) > 2 * most - shown:
            cut = _count(len(series) - (2 * most - shown), "more series")
            yield Line(
                _fit(f"  … {cut} of this patient; --output FILE has every row", width).rstrip()
            )
        shown += len(series)
        yield from _files([row for row in members if not row.is_series], width)


def kinds(rows: Sequence[SurveyRow], most: int = 5) -> list[str]:
    """What the series that no rule knows are called, the most frequent first, and how many."""
    names: Counter[str] = Counter()
    for row in rows:
        if row.reason == Reason.UNKNOWN_MODALITY.value:
            other = (
                "" if row.file_name or row.dicom_modality == "MR" else f" ({row.dicom_modality})"
            )
            names[_fit(row.kind or "(no text)", _NAME).rstrip() + other] += 1
    ordered = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{name} {count}" for name, count in ordered]
    return texts[:most] + ([f"{len(texts) - most} other kinds"] if len(texts) > most else [])


class _Columns(NamedTuple):
    number: int
    tag: int
    name: int
    modality: int
    verdict: int
    particulars: int  # 0: on a line of their own


def _columns(rows: Sequence[SurveyRow], width: int) -> _Columns:
    def widest(texts: list[str], most: int) -> int:
        return min(max(map(cell_len, texts), default=0), most)

    number = max(widest([_number(row) for row in rows], 6), 3)
    tag = max(widest([row.dicom_modality for row in rows], 6), 3)
    modality = max(widest([row.modality for row in rows], 12), 2)
    verdict = widest(["verdict", *map(_verdict, rows)], 36)
    rest = width - (2 + number + 1 + tag + 1 + 1 + modality + 1 + verdict)
    name = max(widest([row.name or "(no text)" for row in rows], 64), 12)
    if width >= _ONE_LINE:
        name = min(name, rest // 2)
        return _Columns(number, tag, name, modality, verdict, rest - name - 2)
    return _Columns(number, tag, max(min(name, rest), 8), modality, verdict, 0)


def _series(row: SurveyRow, columns: _Columns, width: int) -> Iterator[Line]:
    line = _line(
        columns, _number(row), row.dicom_modality, row.name or "(no text)", row.modality,
        _verdict(row), width,
    )  # fmt: skip
    style = "red" if row.verdict == Verdict.REJECTED.value else ""
    if columns.particulars:
        line = _fit(line, width - columns.particulars - 2)
        yield Line(f"{line}  {_particulars(row, columns.particulars)}", style)
        return
    yield Line(line, style)
    yield Line(" " * _INDENT + _particulars(row, max(width - _INDENT, 20)), "dim")


def _line(
    columns: _Columns, number: str, tag: str, name: str, modality: str, verdict: str, width: int
) -> str:
    cells = (
        " " * max(columns.number - len(number), 0) + _fit(number, min(columns.number, len(number))),
        _fit(tag, columns.tag),
        _fit(name, columns.name),
        _fit(modality, columns.modality),
        _fit(verdict, columns.verdict),
    )
    return _fit("  " + " ".join(cells), width).rstrip()


def _particulars(row: SurveyRow, width: int) -> str:
    """Geometry, times, texts and path of a series, in at most `width` columns."""
    spacing = (row.row_spacing, row.column_spacing, row.slice_step)
    texts = [
        f"{row.plane} {row.obliquity:.0f}°" if row.obliquity else row.plane,
        f"{row.rows}×{row.columns}×{row.slices}" if row.slices else "",
        f"×{row.repetitions}" if (row.repetitions or 1) > 1 else "",
        _count(row.copies, "duplicate") if row.copies else "",
        f"{row.rejected} of {_count(row.files, 'file')} rejected"
        if row.rejected and row.verdict != Verdict.REJECTED.value
        else "",
        "×".join(f"{step:.3g}" for step in spacing if step is not None) + " mm"
        if row.slices
        else "",
        *dict.fromkeys(
            text for text in (row.protocol, row.sequence_name) if text and text != row.name
        ),
    ]
    left = _SEPARATOR.join(filter(None, texts))
    # A path's end tells most; it gets what is left, and half of the line at least.
    room = max(width - cell_len(left) - len(_SEPARATOR), width // 2)
    path = _fit_end(row.path, room)
    if not left:
        return path
    left = _fit(left, width - cell_len(path) - len(_SEPARATOR)).rstrip()
    return f"{left}{_SEPARATOR}{path}"


def _files(rows: Sequence[SurveyRow], width: int) -> Iterator[Line]:
    """A line for each reason why files are no series."""
    by_reason: dict[str, list[SurveyRow]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(row)
    for reason, members in sorted(by_reason.items()):
        files = sum(row.files for row in members)
        first = members[0]
        # Of files that are never opened no path tells which: there may be one beside every image.
        named = first.detail if reason == Reason.NOT_INPUT.value else first.path
        more = f", {named}" + (", …" if len(members) > 1 else "")
        text = f"{members[0].verdict}: {reason}{more}"
        yield Line(_fit(f"  {_count(files, 'file')} {text}", width).rstrip(), "dim")


def _number(row: SurveyRow) -> str:
    return "" if row.series_number is None else str(row.series_number)


def _verdict(row: SurveyRow) -> str:
    return row.verdict if not row.reason else f"{row.verdict}: {row.reason}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {plural(number, what)}"


def _fit(text: str, width: int) -> str:
    """The text in exactly `width` columns, cut with an ellipsis."""
    if cell_len(text) <= width:
        return text + " " * (width - cell_len(text))
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


def _fit_end(text: str, width: int) -> str:
    """The text in at most `width` columns, cut at its beginning."""
    if cell_len(text) <= width:
        return text
    end = text[-width:]
    while cell_len(end) > width - 1:
        end = end[1:]
    return f"…{end}"
