"""saliency.html: slices with their maps, one page that needs nothing but itself and no script."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, colors
from PIL import Image

from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json
from beam_jobs.common.templating import render
from beam_jobs.core.foreground import percentiles
from trainer.explain.attribution import Floats
from trainer.explain.cases import Explained
from trainer.explain.summary import JSON_NAME, PAGE_NAME, label_text, map_name

# Perceptually uniform, and without the grey that pictures are made of.
COLOURS = "plasma"
_LEVELS = 64  # of the map in pictures: what an eye tells apart, in a small file
_OPAQUE = 0.9  # of the strongest voxels; weaker ones let the image through in proportion
_TOP = 99.5  # percentile of the head's strengths that gets the last colour
_SLICES = 5
_MARGIN = 2  # voxels around the head


def write_report(
    directory: files.StrPath, summary: Mapping[str, Any], explained: Sequence[Explained]
) -> None:
    """Writes numbers, maps and the page.

    The numbers come first, for they list the maps: what fails amid these can be run again.

    Args:
      directory: where to, local or in a store; made when it does not exist.
      summary: of `summarise`.
      explained: the patients, in the summary's order.
    """
    text = page(summary, explained)
    write_json(files.join(directory, JSON_NAME), summary)
    for one in explained:
        data = nifti(one.found.values, one.case.affine)
        files.write(files.join(directory, map_name(one.chosen.patient_id)), data)
    files.write_text(files.join(directory, PAGE_NAME), text)


def nifti(values: Floats, affine: Floats) -> bytes:
    """A map as a compressed NIfTI-1 file of float32; the same values give the same bytes.

    Args:
      values: (row, column, slice, channel), a volume a channel; a single one has no fourth axis.
      affine: 4x4, (row, column, slice, 1) of a voxel centre to patient LPS mm, as in a record. In
        the file it is turned to NIfTI's RAS, and the first axis is the row index: as volumes of the
        conversion are written.
    """
    flat = values[..., 0] if values.shape[-1] == 1 else values
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    image = nibabel.Nifti1Image(flat.astype(np.float32), ras)
    image.set_sform(ras, code="scanner")
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def page(summary: Mapping[str, Any], explained: Sequence[Explained]) -> str:
    """The page of the object in saliency.json and the maps it was made from."""
    return render(
        "trainer.reports",
        "saliency.html.j2",
        filters={"number": _number, "share": _share, "label": label_text},
        s=summary,
        patients=[
            {**numbers, **pictures(one, summary["method"], summary["modalities"])}
            for numbers, one in zip(summary["patients"], explained, strict=True)
        ],
        scale=_scale(),
    )


def pictures(one: Explained, method: str, modalities: Sequence[str]) -> dict[str, Any]:
    """A patient's pictures.

    Returns:
      "slices": the slice where the map is strongest and others around it, each with its "number"
        (from 1), a list "pictures" of "modality", "image" and "map" (data URLs, None for a modality
        that is not there); "random": the middle one with the map of random weights; "ratio": of a
        picture's width to its height; "ends": patient directions at its left, right, top, bottom.
    """
    case, head, strength = one.case, one.head, one.found.strength(method)
    of_random = one.random.strength(method)
    rows, columns = _box(head)
    middle = int(strength.sum(axis=(0, 1, 3)).argmax())
    windows = [_window(case.volume[..., channel]) for channel in range(len(modalities))]

    def slice_of(number: int, values: Floats) -> dict[str, Any]:
        top = _top(values, head)
        shown = []
        for channel, modality in enumerate(modalities):
            there = case.present[channel]
            own = values[..., min(channel, values.shape[-1] - 1)][rows, columns, number]
            plane = case.volume[rows, columns, number, channel]
            shown.append(
                {
                    "modality": modality,
                    "image": _grey(plane, *windows[channel]) if there else None,
                    "map": _coloured(own / top) if there else None,
                }
            )
        return {"number": number + 1, "pictures": shown}

    axes = case.affine[:3, :3]
    height, width = np.linalg.norm(axes[:, 0]), np.linalg.norm(axes[:, 1])
    across, down = columns.stop - columns.start, rows.stop - rows.start
    return {
        "slices": [slice_of(number, strength) for number in _around(middle, head)],
        "random": slice_of(middle, of_random),
        "middle": middle + 1,
        "of_slices": case.volume.shape[2],
        "ratio": round(float(across * width / (down * height)), 4),
        "ends": [_letter(side * axes[:, axis]) for axis in (1, 0) for side in (-1, 1)],
    }


def _around(middle: int, head: npt.NDArray[np.bool_]) -> list[int]:
    """Slices to show: spread over a third of those with head, the strongest always among them."""
    lit = np.flatnonzero(head.any(axis=(0, 1)))
    first, last = (int(lit[0]), int(lit[-1])) if lit.size else (middle, middle)
    step = max(1, round((last - first + 1) / 3 / (_SLICES - 1)))
    offsets = np.arange(_SLICES) - _SLICES // 2
    wanted = middle + step * offsets
    return [int(n) for n in wanted if n == middle or first <= n <= last]


def _box(head: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns that hold the head."""
    ranges = []
    for axis in (0, 1):
        lit = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        if not lit.size:
            lit = np.arange(head.shape[axis])
        low, high = max(0, int(lit[0]) - _MARGIN), int(lit[-1]) + 1 + _MARGIN
        ranges.append(slice(low, min(head.shape[axis], high)))
    return ranges[0], ranges[1]


def _window(volume: npt.NDArray[Any]) -> tuple[float, float]:
    """Black and white of a modality's pictures."""
    foreground = volume[volume > 0]
    if not foreground.size:
        return 0.0, 1.0
    # `np.percentile` of float16 rounds as each numpy likes.
    return 0.0, percentiles(foreground, (99.5, 99.5))[1]


def _top(strength: Floats, head: npt.NDArray[np.bool_]) -> float:
    """The strength that gets the last colour: nearly the strongest of the head, all modalities."""
    values = strength[head]
    found = float(np.percentile(values, _TOP)) if values.size else 0.0
    return found or float(strength.max()) or 1.0


def _grey(plane: npt.NDArray[Any], low: float, high: float) -> str:
    values = np.clip((plane.astype(np.float64) - low) / (high - low), 0, 1)
    image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return _url(image, "JPEG", quality=88)


def _coloured(values: Floats) -> str:
    """0 … 1 (and above) as colours that grow opaque with the value."""
    levels = np.rint(np.clip(values, 0, 1) * (_LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(levels, mode="P")
    places = np.linspace(0, 1, _LEVELS)
    palette = np.rint(colormaps[COLOURS](places)[:, :3] * 255).astype(np.uint8)
    image.putpalette(palette.tobytes())
    opacity = np.rint(places * _OPAQUE * 255).astype(np.uint8).tobytes()
    return _url(image, "PNG", transparency=opacity, optimize=True)


def _url(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _scale() -> str:
    """The colours as a CSS gradient, for the legend."""
    stops = [colors.to_hex(colormaps[COLOURS](place)) for place in np.linspace(0, 1, 9)]
    return f"linear-gradient(90deg, {', '.join(stops)})"


def _letter(direction: Floats) -> str:
    """Where a direction in patient LPS mostly leads: one of L R P A S I."""
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "SI")[axis][int(direction[axis] < 0)]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:.0f} %"
