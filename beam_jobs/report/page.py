"""A report's numbers and pictures as one HTML file that needs nothing else.

The page's script is the only one that may run in it and it may fetch nothing: its
Content-Security-Policy says so, and names the script by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any

from markupsafe import Markup

from beam_jobs.common import templating
from beam_jobs.core.manifest import Manifest
from beam_jobs.report.data import MEASURES

_PACKAGE = "beam_jobs.report"
_SPRITES_HERE = "<!-- sprites -->"
_COLUMNS = (
    ("row_spacing", "between rows"),
    ("slice_step", "between slices"),
    ("thickness", "slice thickness"),
    ("obliquity", "obliquity"),
)
_MOST_LISTED = 4


def render(
    summary: Mapping[str, Any],
    thumbnails: Sequence[str],
    privacy: str,
    against: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """The page before and after the place of its sprites.

    Args:
      summary: as `report_data.summarise` gives it; its patients have their "sprite" with them.
      thumbnails: base64 of each patient's, in the order of the summary's patients.
      privacy: the manifest's word on it.
      against: as `report_compare.compare` gives it, None without a comparison.
    """
    script = templating.source(_PACKAGE, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    channels = len(summary["recipe"]["modalities"])
    across, narrow = _across(channels, 4), _across(channels, 2)
    planes = _planes(summary["modalities"])
    page = templating.render(
        _PACKAGE,
        "report.html.j2",
        filters={
            "short": lambda value: f"{value:.3g}" if value < 1000 else f"{value:.0f}",
            "share": lambda part, whole: f"{100 * part / whole:.0f} %" if whole else "none",
            "megabytes": _megabytes,
            "component": lambda text: urllib.parse.quote(text, safe=""),
            "pretty": lambda value: json.dumps(value, indent=1, sort_keys=True),
        },
        functions={
            "listed": _listed,
            "most": _most,
            "band": band,
            "line": line,
            "span": _span,
            "plural": _plural,
            "top_of": _top_of,
        },
        **{
            "target": None,
            "covariates": [],
            **summary,
            "patients": _with(summary["patients"], thumbnails),
        },
        data=summary,
        against=against,
        privacy=privacy,
        css=Markup(templating.source(_PACKAGE, "report.css")),
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        sprites_here=Markup(_SPRITES_HERE),
        planes=planes,
        plane_parts=lambda modality: [
            (min(place, 4), modality["planes"].get(plane, 0)) for place, plane in enumerate(planes)
        ],
        columns=_COLUMNS,
        units=MEASURES,
        limits={column: _limits(summary["modalities"], column) for column, _ in _COLUMNS},
        ends=summary["patients"][0]["ends"],
        card_rem=max(11, 5.2 * channels),
        across=across,
        down=-(-channels // across),
        narrow_across=narrow,
        narrow_down=-(-channels // narrow),
    )
    before, after = page.split(_SPRITES_HERE)
    return before, after


def write(stream: IO[bytes], page: tuple[str, str], sprites: IO[bytes]) -> int:
    """Writes the page with its sprites, which are larger than one wants in memory; its size."""
    before, after = (text.encode() for text in page)
    stream.write(before)
    stream.flush()
    sprites.seek(0)
    shutil.copyfileobj(sprites, stream, 1 << 20)
    stream.write(after)
    return len(before) + sprites.tell() + len(after)


def sprite_element(place: int, sprite: str) -> bytes:
    """The element that holds a patient's sprite: data that no browser decodes unasked."""
    return f'<script type="text/plain" id="sprite-{place}">{sprite}</script>\n'.encode()


def privacy_of(manifest: Manifest) -> str:
    """What the manifest says of privacy."""
    return str(manifest.to_json()["privacy"])


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _with(patients: Sequence[Mapping[str, Any]], thumbnails: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**patient, "thumbnail": thumbnail}
        for patient, thumbnail in zip(patients, thumbnails, strict=True)
    ]


def _across(channels: int, most: int) -> int:
    """Channels in a row: as many rows as needed, evenly filled."""
    return -(-channels // -(-channels // most))


def _planes(modalities: Sequence[Mapping[str, Any]]) -> list[str]:
    """The planes there are, the most frequent first."""
    found: Counter[str] = Counter()
    for modality in modalities:
        found.update(modality["planes"])
    return [plane for plane, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _most(counts: Mapping[str, int]) -> str:
    """The most frequent values, and how many others there are."""
    listed = _listed(dict(list(counts.items())[:_MOST_LISTED]))
    more = len(counts) - _MOST_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def _span(edges: Sequence[float], place: int, *, percent: bool) -> str:
    """What a bin of whole slices, or of per cent of slices, holds."""
    if percent:
        return f"{edges[place]:g} to {edges[place + 1]:g} % blank"
    low, high = int(edges[place]), int(edges[place + 1]) - 1
    return f"{low} slices" if low == high else f"{low} to {high} slices"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 or noun == "series" else f"{noun}s"


def _limits(modalities: Sequence[Mapping[str, Any]], column: str) -> tuple[float, float]:
    """Common ends of a column's little boxes, so that modalities can be compared."""
    found = [m["measures"][column] for m in modalities if m["measures"][column]]
    if not found:
        return 0.0, 0.0
    return min(spread["min"] for spread in found), max(spread["max"] for spread in found)


def _top_of(intensity: Mapping[str, Any]) -> float:
    """The height of a panel of intensity curves.

    The ends of the range do not count: what is clipped to them would flatten all else.
    """
    return float(max([*intensity["high"][1:-1], 1e-6]) * 1.05)


def line(values: Sequence[float], width: float, height: float, top: float) -> str:
    """The path of a curve over equal bins, cut off at `top`."""
    step = width / len(values)
    points = (
        f"{(place + 0.5) * step:.1f} {height * (1 - min(value / top, 1)):.1f}"
        for place, value in enumerate(values)
    )
    return "M" + "L".join(points)


def band(
    low: Sequence[float], high: Sequence[float], width: float, height: float, top: float
) -> str:
    """The path of the area between two curves."""
    there, back = line(high, width, height, top), line(low, width, height, top)
    return f"{there}L{'L'.join(reversed(back[1:].split('L')))}Z"
