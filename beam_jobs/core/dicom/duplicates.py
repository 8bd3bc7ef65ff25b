"""Copies of one image among slice headers: equal pixels at one place, whatever file they lie in.

Pixels are read only where headers coincide, each image's once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beam_jobs.core.dicom.pixels import StoredSlice, stored_slices
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.reasons import RejectedError

# Positions of copies may have been written anew, with other decimals.
_SAME_POSITION_MM = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collapsed:
    """Images, their copies set apart.

    Attributes:
      kept: one image of each set of copies, in the order given; a native one where there is one,
        then that of the smallest path and frame.
      copies: the others.
      damaged: copies that are spared because their pixels cannot be read, and why not.
      contradicted: how many images say that they are another one (SOPInstanceUID, frame and place)
        and have other pixels.
    """

    kept: tuple[SliceHeader, ...]
    copies: tuple[SliceHeader, ...] = ()
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
        unknown = {
            (header.path, header.frame): header
            for header in headers
            if (header.path, header.frame) not in self._known
        }
        wanted = [unknown[key] for key in sorted(unknown)]
        while wanted:
            done = 0
            try:
                for header, stored in zip(wanted, stored_slices(wanted), strict=True):
                    self._known[header.path, header.frame] = _fingerprint(stored)
                    done += 1
            except RejectedError as error:
                # A file that fails once is not opened again for its other frames.
                path = wanted[done].path
                while done < len(wanted) and wanted[done].path == path:
                    self._known[path, wanted[done].frame] = error
                    done += 1
            wanted = wanted[done:]

    def of(self, header: SliceHeader) -> Fingerprint | RejectedError:
        """What was read of an image."""
        return self._known[header.path, header.frame]


def _fingerprint(stored: StoredSlice) -> Fingerprint:
    samples = np.ascontiguousarray(stored.samples, dtype=np.int64)
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
    fingerprints.read(image for group in several for image in group)
    copies: set[tuple[str, int]] = set()
    damaged: dict[tuple[str, int], RejectedError] = {}
    contradicted = 0
    for group in several:
        sound = [image for image in group if isinstance(fingerprints.of(image), Fingerprint)]
        if named and len(sound) < len(group):
            for image in group if sound else group[1:]:
                found = fingerprints.of(image)
                if isinstance(found, RejectedError):
                    damaged[image.path, image.frame] = found
        sets = list(_sets_of_copies(sound, fingerprints, blank=blank))
        copies.update((image.path, image.frame) for found in sets for image in found[1:])
        contradicted += len(sets) if named and len(sets) > 1 else 0
    return Collapsed(
        kept=tuple(
            image
            for image in images
            if (image.path, image.frame) not in copies and (image.path, image.frame) not in damaged
        ),
        copies=tuple(image for image in images if (image.path, image.frame) in copies),
        damaged=tuple(
            (image, damaged[image.path, image.frame])
            for image in images
            if (image.path, image.frame) in damaged
        ),
        contradicted=contradicted,
    )


def _sets_of_copies(
    images: Sequence[SliceHeader], fingerprints: Fingerprints, *, blank: bool
) -> Iterator[list[SliceHeader]]:
    """Images of equal pixels and position, the one to keep first."""
    equal: dict[Hashable, list[SliceHeader]] = defaultdict(list)
    for image in images:
        found = fingerprints.of(image)
        doubtful = isinstance(found, Fingerprint) and found.blank and not blank
        equal[found, image.instance_number if doubtful else None].append(image)
    for group in equal.values():
        left = sorted(group, key=lambda image: (not image.is_native, image.path, image.frame))
        while left:
            first = left[0]
            here = [image for image in left if _same_position(first, image)]
            yield here
            left = [image for image in left if not _same_position(first, image)]


def _same_position(one: SliceHeader, other: SliceHeader) -> bool:
    return len(one.position) == len(other.position) and all(
        abs(here - there) <= _SAME_POSITION_MM
        for here, there in zip(one.position, other.position, strict=True)
    )
