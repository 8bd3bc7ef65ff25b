"""Sampled slices decoded a second time, by DCMTK, and held against our own reader.

tensorflow-io wraps DCMTK and shares no code with our reader. What it makes of signs and of
rescaling is wrong (signed samples come shifted, rescaled ones rounded), so a copy of the data set
is decoded that has neither: what is compared is the bits of stored samples. A NIfTI file is read by
nibabel instead.
"""

from __future__ import annotations

import contextlib
import enum
import io
import itertools
import os
import random
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import FileMetaDataset

from beam_jobs.common.cli import CommandError, UsageError, log_level
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.convert.patient_plans import listing_of, plan_patients
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.layout import patient_id_of
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.nifti.names import NIFTI_2
from beam_jobs.core.nifti.stream import Content
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import RejectedError

# (frame, row, column, 1) of a DICOM file's bytes, empty where it cannot be decoded.
Decoder = Callable[[bytes], npt.NDArray[Any]]

_PIXELS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelData"),
)
# Decoders of these may round differently.
_LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000}
_LOSSY_DIFFERENCE = 1
_MOST_BITS = 16
_AHEAD_BYTES = 4 << 20


class Verdict(enum.Enum):
    """What two decoders make of one slice."""

    SAME = "the same"
    DIFFERS = "other samples"
    NOT_DECODABLE = "not decodable there"
    REFUSED = "refused by our own reader"


class Compared(NamedTuple):
    """One slice, and in how many pixels the decoders differ."""

    header: SliceHeader
    verdict: Verdict
    pixels: int = 0


def load_decoder() -> Decoder:
    """DCMTK by tensorflow-io; imported here alone, for it takes seconds and runs on few versions.

    Raises:
      CommandError: it is not installed, or does not load with this TensorFlow.
    """
    quiet_tensorflow()
    try:
        import tensorflow as tf
        import tensorflow_io as tfio

        def decode(data: bytes) -> npt.NDArray[Any]:
            try:
                with _muted():
                    image = tfio.image.decode_dicom_image(data, on_error="strict", dtype=tf.uint16)
            except tf.errors.InvalidArgumentError:
                return np.empty(0, dtype=np.uint16)
            return np.asarray(image.numpy())

        decode(b"")  # only now are its native operations loaded
    except (ImportError, NotImplementedError) as error:
        raise CommandError(
            "the second decoder does not load: it needs tensorflow-io 0.37 with TensorFlow 2.16 "
            f"or 2.17 ({' '.join(str(error).split())[:200]})"
        ) from error
    return decode


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Nothing on stderr meanwhile: DCMTK complains there of what it also refuses."""
    if log_level() is not None:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def sample_slices(
    root: str,
    spec: PreprocessSpec,
    *,
    count: int,
    seed: int,
    patients: Collection[str] | None = None,
    patient_from: str = "",
) -> list[SliceHeader]:
    """Some slices of the series that a conversion chooses, in the order of their files.

    Args:
      root: directory or archive of DICOM files.
      spec: the recipe, which says what is chosen.
      count: at most so many.
      seed: same seed, same slices.
      patients: whose, by normalised ids; None where ids are hashes: everybody's.
      patient_from: who was a patient in the conversion.

    Raises:
      UsageError: no file, no series that the recipe could use, or none of these patients.
    """
    name = f"--against {files.told(root)}"
    found = listing_of(root, name=name).entries
    plans = plan_patients(
        found, spec.modalities, spec.series_rules, root=root, patient_from=patient_from
    ).patients
    usable = [plan for plan in plans if plan.refusal is None]
    theirs = [
        plan
        for plan in usable
        if patients is None or normalised_id(patient_id_of(plan.key)) in patients
    ]
    if usable and not theirs:
        raise UsageError(f"{name} holds none of the dataset's patients")
    slices = sorted(
        (header for plan in theirs for series in plan.series.values() for header in series.headers),
        key=lambda header: header.key,
    )
    if not slices:
        raise UsageError(f"{name} holds no series of {', '.join(spec.modalities)}")
    chosen = random.Random(seed).sample(range(len(slices)), min(count, len(slices)))
    return [slices[place] for place in sorted(chosen)]


def compare(slices: Sequence[SliceHeader], decode: Decoder) -> Iterator[Compared]:
    """Decodes each slice by both decoders.

    Args:
      slices: sorted by file; a file is read and decoded once.
      decode: the second decoder.
    """
    small = [
        files.Entry(header.path, header.file_size, header.modified)
        for header in slices
        if header.file_size <= _AHEAD_BYTES
    ]
    with files.fetched_ahead(dict.fromkeys(small), _AHEAD_BYTES):
        for path, group in itertools.groupby(slices, key=lambda header: header.path):
            headers = list(group)
            if headers[0].is_nifti:
                yield from _compare_nifti(headers)
                continue
            with files.open_bytes(path) as source:
                data = source.read_at(0, source.size)
            yield from _compare_file(data, headers, decode)


def _compare_nifti(headers: Sequence[SliceHeader]) -> Iterator[Compared]:
    try:
        ours = [item.samples.copy() for item in stored_slices(headers)]
    except RejectedError:
        yield from (Compared(header, Verdict.REFUSED) for header in headers)
        return
    theirs = _by_nibabel(headers[0])
    for header, samples in zip(headers, ours, strict=True):
        pixels = int((samples != theirs[..., header.frame].T).sum())
        yield Compared(header, Verdict.DIFFERS if pixels else Verdict.SAME, pixels)


def _by_nibabel(header: SliceHeader) -> npt.NDArray[Any]:
    """(i, j, k) stored voxels of a header's file, turned as its images are by nibabel's affine.

    No more of the file is inflated than they take.
    """
    import nibabel  # only here: a worker that converts does not pay for it

    with files.open_bytes(header.path) as source:
        data = Content(source, header.path).read(header.pixel_offset + (header.pixel_length or 0))
    second = header.transfer_syntax == NIFTI_2
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(data)
    stored: Any = image.dataobj
    voxels: npt.NDArray[Any] = np.asarray(stored.get_unscaled())
    columns, rows = (
        slice(None, None, -1 if axis @ direction < 0 else 1)
        for axis, direction in zip(
            (np.diag([-1.0, -1.0, 1.0]) @ image.affine[:3, :2]).T,  # RAS to LPS
            np.reshape(header.orientation, (2, 3)),
            strict=True,
        )
    )
    return voxels.reshape(voxels.shape[:3])[columns, rows]


def _compare_file(
    data: bytes, headers: Sequence[SliceHeader], decode: Decoder
) -> Iterator[Compared]:
    try:
        stored = stored_slices([header._replace(has_modality_lut=False) for header in headers])
        ours = [item.samples.copy() for item in stored]
    except RejectedError:
        yield from (Compared(header, Verdict.REFUSED) for header in headers)
        return
    frames = _tiles_of(_decoded(data, headers[0], decode), headers[0].tiles)
    for header, samples in zip(headers, ours, strict=True):
        if header.frame >= len(frames) or frames[header.frame].shape != samples.shape:
            yield Compared(header, Verdict.NOT_DECODABLE)
            continue
        pixels = _differing(samples, frames[header.frame], header)
        yield Compared(header, Verdict.DIFFERS if pixels else Verdict.SAME, pixels)


def _tiles_of(frames: npt.NDArray[Any], tiles: int) -> npt.NDArray[Any]:
    """A mosaic's tiles in place of its one frame.

    Args:
      frames: (frame, row, column).
      tiles: along one side, 0 for plain images.
    """
    count, rows, columns = frames.shape
    if not tiles or rows % tiles or columns % tiles:
        return frames
    cut = frames.reshape(count, tiles, rows // tiles, tiles, columns // tiles)
    return cut.swapaxes(2, 3).reshape(-1, rows // tiles, columns // tiles)


def _differing(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], header: SliceHeader) -> int:
    """How many pixels differ, as bits that are stored."""
    mask = (1 << (header.bits_stored or header.bits_allocated or _MOST_BITS)) - 1
    difference = np.abs((ours.astype(np.int64) & mask) - theirs.astype(np.int64))
    allowed = _LOSSY_DIFFERENCE if header.transfer_syntax in _LOSSY else 0
    return int((difference > allowed).sum())


def _decoded(data: bytes, header: SliceHeader, decode: Decoder) -> npt.NDArray[Any]:
    """(frame, row, column) by the second decoder; no frame where it cannot."""
    nothing: npt.NDArray[Any] = np.empty((0, 0, 0), dtype=np.uint16)
    if (header.bits_allocated or _MOST_BITS) > _MOST_BITS:  # comes back cut off, without an error
        return nothing
    try:
        found = decode(_as_unsigned(data, header))
    except Exception:  # whatever pydicom makes of a file that only our own reader can walk
        return nothing
    return found[..., 0] if found.ndim == 4 else nothing


def _as_unsigned(data: bytes, header: SliceHeader) -> bytes:
    """A file of nothing but the pixels, their stored bits as unsigned greyscale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        plain = pydicom.Dataset()
        for keyword in _PIXELS:
            if keyword in dataset:
                plain[keyword] = dataset[keyword]
        plain.PhotometricInterpretation = "MONOCHROME2"
        plain.PixelRepresentation = 0
        plain.SOPClassUID, plain.SOPInstanceUID = uid.MRImageStorage, uid.generate_uid()
        plain.file_meta = FileMetaDataset()
        plain.file_meta.TransferSyntaxUID = uid.UID(header.transfer_syntax)
        buffer = io.BytesIO()
        plain.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
