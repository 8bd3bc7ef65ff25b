"""Copies of one image among slice headers: equal pixels at one place, whatever file they lie in.

Pixels are read only where headers coincide, each image's once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beam_jobs.core.dicom.near import Near
from beam_jobs.core.dicom.pixels import StoredSlice, stored_slices
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.reasons import RejectedError

# Positions of copies may have been written anew, with other decimals: by so much of a pixel.
_SAME_POSITION = 0.1
# JPEG baseline and extended, near-lossless JPEG-LS, JPEG 2000 and HTJ2K where they may be lossy.
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collapsed:
    """Images, their copies set apart.

    Attributes:
      kept: one image of each set of copies, in the order given; a native one where there is one,
        then that of the smallest path and frame.
      copies: the others.
      lossy: images that are there without loss, too.
      damaged: copies that are spared because their pixels cannot be read, and why not.
      contradicted: how many images say that they are another one (SOPInstanceUID, frame and place)
        and have other pixels.
    """

    kept: tuple[SliceHeader, ...]
    copies: tuple[SliceHeader, ...] = ()
    lossy: tuple[SliceHeader, ...] = ()
    damaged: tuple[tuple[SliceHeader, RejectedError], ...] = ()
    contradicted: int = 0


class Fingerprint(NamedTuple):
    """What an image's pixels are known by.

    Attributes:
      digest: equal for equal values, however they were encoded: lossless compression keeps it.
      blank: all pixels have one value, so that equality says little.
    """

    digest: bytes
    blank: bool


class Fingerprints:
    """Fingerprints of images, each read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Fingerprint | RejectedError] = {}

    def read(self, headers: Iterable[SliceHeader]) -> None:
        """Reads the images not known yet, file by file."""
        unknown = {header.key: header for header in headers if header.key not in self._known}
        wanted = [unknown[key] for key in sorted(unknown)]
        for _, images in itertools.groupby(wanted, key=lambda header: header.path):
            frames = list(images)
            try:
                for header, stored in zip(frames, stored_slices(frames), strict=True):
                    self._known[header.key] = _fingerprint(stored)
            except RejectedError as error:
                # A file that fails once is not opened again for its other frames.
                for header in frames:
                    self._known.setdefault(header.key, error)

    def of(self, header: SliceHeader) -> Fingerprint | RejectedError:
        """What was read of an image."""
        return self._known[header.key]


def _fingerprint(stored: StoredSlice) -> Fingerprint:
    kind = np.float64 if stored.samples.dtype.kind == "f" else np.int64
    samples = np.ascontiguousarray(stored.samples, dtype=kind)
    found = hashlib.blake2b(samples.data, digest_size=16)
    found.update(repr((stored.slope, stored.intercept)).encode())
    return Fingerprint(found.digest(), stored.blank)


def name_of(header: SliceHeader) -> Hashable:
    """What a stored copy of an image shares with it, before any pixel is read."""
    if header.sop_uid:
        return header.sop_uid, header.frame, header.instance_number
    return description_of(header), header.frame, header.instance_number


def description_of(header: SliceHeader) -> Hashable:
    """All that a header says but where the image lies, how it is encoded and what it is called."""
    return header._replace(
        path="", file_size=0, modified=0, transfer_syntax="", pixel_offset=0, pixel_length=None,
        frame=0, sop_uid="", instance_number=None,
    )  # fmt: skip


def collapse(
    images: Sequence[SliceHeader],
    keys: Sequence[Hashable],
    fingerprints: Fingerprints,
    *,
    named: bool = False,
    blank: bool = True,
) -> Collapsed:
    """Sets the copies among images apart.

    Args:
      images: of one stack, sorted.
      keys: of each image; images of different keys are never copies of each other.
      fingerprints: where pixels are read.
      named: whether equal keys say that two images are one, so that other pixels contradict, and
        a damaged one can be spared where another can be read.
      blank: whether blank images of several numbers (InstanceNumber) can be copies, too.
    """
    alike: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for image, key in zip(images, keys, strict=True):
        alike[key].append(image)
    several = [group for group in alike.values() if len(group) > 1]
    if not several:
        return Collapsed(kept=tuple(images))
    fingerprints.read(image for group in several for image in group)
    copies: set[tuple[str, int]] = set()
    lossy: set[tuple[str, int]] = set()
    damaged: dict[tuple[str, int], RejectedError] = {}
    contradicted = 0
    for group in several:
        sound = [image for image in group if isinstance(fingerprints.of(image), Fingerprint)]
        if named and len(sound) < len(group):
            for image in group if sound else group[1:]:
                found = fingerprints.of(image)
                if isinstance(found, RejectedError):
                    damaged[image.key] = found
        exact = [image for image in sound if image.transfer_syntax not in _LOSSY]
        if named and exact:
            lossy.update(image.key for image in sound if image.transfer_syntax in _LOSSY)
            sound = exact
        sets = list(_sets_of_copies(sound, fingerprints, named=named, blank=blank))
        copies.update(image.key for found in sets for image in found[1:])
        contradicted += len(sets) if named and len(sets) > 1 else 0

    def among(found: Container[tuple[str, int]]) -> tuple[SliceHeader, ...]:
        return tuple(image for image in images if image.key in found)

    return Collapsed(
        kept=tuple(
            image
            for image in images
            if not any(image.key in left for left in (copies, lossy, damaged))
        ),
        copies=among(copies),
        lossy=among(lossy),
        damaged=tuple((image, damaged[image.key]) for image in among(damaged)),
        contradicted=contradicted,
    )


def _sets_of_copies(
    images: Sequence[SliceHeader], fingerprints: Fingerprints, *, named: bool, blank: bool
) -> Iterator[list[SliceHeader]]:
    """Images of equal pixels and position, the one to keep first."""
    spacing = min((min(image.pixel_spacing, default=0.0) for image in images), default=0.0)
    near = Near(max(_SAME_POSITION * spacing, 1e-3))
    equal: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (not image.is_native, image.key)):
        found = fingerprints.of(image)
        doubt: Hashable = None
        if isinstance(found, Fingerprint) and found.blank and not named:
            doubt = (description_of(image), None if blank else image.instance_number)
        equal[found, doubt, near.number(image.position)].append(image)
    yield from equal.values()
