"""Writes DICOM objects of every encoding and kind, and holds a volume to dcm2niix's answer.

`beam_jobs.phantoms` writes what a scanner's MR series looks like; here the bytes themselves are the
subject: transfer syntaxes, bits, multi-frame functional groups, truncation.
"""

import base64
import io
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import gdcm
import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder
from rle.utils import encode_pixel_data as encode_rle

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.series import Series, assemble
from beam_jobs.core.volume import Volume, load_volume

HTJ2K_SYNTAXES = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
NATIVE_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
LOSSLESS_SYNTAXES = (
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
)
# Not below 32: OpenJPEG encodes with six resolutions.
ROWS, COLUMNS = 36, 40
CODESTREAM_SHAPE = (12, 16)


def recipe_image(
    bits: int, *, signed: bool = False, shape: tuple[int, int] = (ROWS, COLUMNS), turn: int = 0
) -> npt.NDArray[Any]:
    """An image over nearly the whole range of `bits`, unlike its mirror images, int64."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    values: npt.NDArray[Any] = (row * 371 + column * 11 + 101 + 5 * turn) % (1 << bits)
    if bits > 12:
        values = values * ((1 << bits) // 4096) % (1 << bits)
    return values - (1 << (bits - 1)) if signed else values


# Codestreams for which no permissively licensed encoder is at hand here. HTJ2K by OpenJPH 0.26
# (reversible, RPCL order); JPEG by libjpeg-turbo 3.1 (12 bits lossy: quality 90; lossless with the
# named predictor). All but the lossy ones hold `recipe_image` of `CODESTREAM_SHAPE`.
CODESTREAMS = {
    "htj2k_u8": (
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAUE"
        "BEAB/1wAEyBIUFBQUFBQUFBQUFBQSEhI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAP4AAf+TwCT8"
        "J3MAAMASwBLAEoDxAMd0APkAB3QAwgEHdADAE8ASwBMAVCIuAEK0AGkAwXQA0tUBAXQAwBaMAWhAFpAMzecF/Y1U"
        "KeD7AVv8ECM3AEEVVH3ccYFA+AK9/sgMlwADkA9IHHzD0OJ+/gCt/ggRlwDALoIBd/ALYL7v06jc/3+fon49PJ/f"
        "e0oCEa8EYBrMET+/GFRkNVAB/v4+/r8+/z//f/9//3/v7+/j7+Hv7+/v6/9j9/9n/3/fDJ9sDxJ/cn9yf3If8l/y"
        "AEQ0YaVyEQAAMYIQMp8Afr/f/3/v5+fvAEP6exAmEH4gmAAA/T8A/9k="
    ),
    "htj2k_u16": (
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUE"
        "BEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIwAAf+TwAAm"
        "DfUEB3QAAMAAE0AAEwCQ/AMHdAAUbQWHdADAABPAABOARBL5AoJ0APTS+wCCNADAABVQAAVoFi1a/KCCMgJ2AKf3"
        "9J7e0/vAc4G+tgDAACtgABbQXl5eXl5e54p6cYJ3AJ/RP6M/oz+jP6M/oz+jP6P6LWB79rWB7LoA/9k="
    ),
    "htj2k_i16": (
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUE"
        "BEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIwAAf+TwAAm"
        "DfUEB3QAAMAAE0AAEwCQ/AMHdAAUbQWHdADAABPAABOARBL5AoJ0APTS+wCCNADAABVQAAVoFi1a/KCCMgJ2AKf3"
        "9J7e0/vAc4G+tgDAACtgABbQXl5eXl5e54p6cYJ3AJ/RP6M/oz+jP6M/oz+jP6P6LWB79rWB7LoA/9k="
    ),
    "htj2k_lossy": (
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAAKf9SAAwAAgABAAUE"
        "BEAA/1wAIyKp5KnGqcapqKHUodShwZoHmgeaFpKBkoGS14peil6KFP9kABcAAU9wZW5KUEggVmVyIDAuMjYuMy7/"
        "kAAKAAAAAADeAAH/k8AAAnBHkvwGh3QAAMAABNAAAThy/gQHdACYQP4Gh3QAwAAKqAABOGEQBuiADgHCtAD3fu8A"
        "wjQAwAAWpAABbgDISASiVi3y5JGIWuQAz/8QAFmYALRbDml3OdBuOdBuOcTP4+f4OX7+Ak9zKUAxuADAAC24AAXe"
        "gEDg9UKjAeDrhUYDwNcLjf5YElfyV+IKwgt7APAID3jAAx7wgAc8YCAyM8NAyMwMA5GZCQORmRkGIjMTBiIzMwxE"
        "ZiYMRGbmHQWsCnTWsCm6QgGtEIBqMQH/2Q=="
    ),
    "jpeg_12_lossy": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4R"
        "DgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/wQALDAAMABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAACAkL/8QAIxAA"
        "AAMGBwAAAAAAAAAAAAAAAAcLCAwNIygqM0FGSVHY4//aAAgBAQAAPwDGkJtyy8ChPjSvmHWTbll4FCfGlfMSAJuK"
        "wCmhIsok/wDy2/20u24dRNxWAU0JFlEn/wCW3+2l23H/2Q=="
    ),
    "jpeg_12_predictor_4": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAMABABAREA/8QAGAABAQEBAQAAAAAAAAAAAAAAAAQJCwz/2gAIAQEA"
        "BAAA4MlddddddddddddddeuYAA1zAAGuYAA1zAAGuYAA1zAAGuYAA1zAAGuYAA1zAAHhcgAB/9k="
    ),
    "jpeg_16_predictor_7": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAMABABAREA/8QAFwABAQEBAAAAAAAAAAAAAAAADA8IDf/aAAgBAQAH"
        "AACDJ+sNYaw1hrDWGsNYaw1hrDWGsNYaw65gvwX4L8F+C/BfgvwX4L8F+C/BfgvwX4L8OuYL8F+C/BfgvwX4L8F+"
        "C/BfgvwX4L8F+C/DrmC/BfgvwX4L8F+C/BfgvwX4L8F+C/Bfgvw65gvwX4L8F+C/BfgvwX4L8F+C/BfgvwX4L8Ou"
        "YL8F+C/BfgvwX4L8F+C/BfgvwX4L8F+C/DrmC/BfgvwX4L8F+C/BfgvwX4L8F+C/Bfgvw65gvwX4L8F+C/BfgvwX"
        "4L8F+C/BfgvwX4L8OuYL8F+C/BfgvwX4L8F+C/BfgvwX4L8F+C/DrmC/BfgvwX4L8F+C/BfgvwX4L8F+C/Bfgvw6"
        "5gvwX4L8F+C/BfgvwX4L8F+C/BfgvwX4L8OuYQvvhffC++F98L74X3wvvhffC++F98L74X3wvvhffC+//9k="
    ),
}
# The lossy ones as their own encoder's library decodes them, little-endian words.
DECODED = {
    "jpeg_12_lossy": (
        "ZQBwAHsAhQCRAJsApgCyAL0AyADTAN0A6QD0AP8ACgHYAeMB7gH5AQUCDwIaAiUCMAI7AkYCUQJdAmcCcgJ9AksD"
        "VgNhA2sDdwOBA4wDmAOjA64DuQPDA88D2gPlA/ADvwTKBNUE3wTrBPUEAAUMBRcFIgUtBTcFQwVOBVkFZAUwBjsG"
        "RgZRBl0GZwZyBn0GiAaTBp4GqQa1Br8GygbVBqQHrwe6B8UH0QfbB+YH8Qf8BwcIEggdCCkIMwg+CEkIFwkiCS0J"
        "NwlDCU0JWAlkCW8JegmFCY8JmwmmCbEJvAmKCpUKoAqrCrcKwQrMCtcK4grtCvgKAwsPCxkLJAsvC/0LCAwTDB4M"
        "Kgw0DD8MSgxVDGAMawx1DIEMjAyXDKIMcA17DYYNkQ2dDacNsg29DcgN0w3eDegN9Q3/DQoOFQ7iDu4O+Q4DDw8P"
        "GQ8kDy8POg9FD1APWw9nD3EPfA+HD1cAYgBtAHgAhACOAJkApACvALoAxQDPANsA5gDxAPwA"
    ),
    "htj2k_lossy": (
        "UAb/BrAHYAgQCcAJbwofC9ALgAwwDeANkA5AD+8PoBCBHTAe4B6QH0Ag8CCgIVAiACOwI2AkECXAJXAmICfQJ7A0"
        "YDUQNsA2cDcgONA4gDkwOuA6kDtAPPA8oD1QPgA/4EuQTEBN8E2gTlBPAFCwUGBREFLAUnBTIFTQVIBVMFYQY8Bj"
        "cGQgZdBlgGYwZ+BnkGhAafBpoGpQawBssGxgbUF68Hqge1B8AH2wfWB+EH/Af3CAIIHQgYCCMIPgg5CEcZEgktCS"
        "gJMwlOCUkJVAlvCWoJdQmACZsJlgmhCbwJuhqFCpAKqwqmCrEKzArHCtIK7QroCvMLDgsJCxQLLwstG/gMAwweDB"
        "kMJAw/DDoMRQxQDGsMZgxxDIwMhwySDKANev12DYENnA2XDaH9vP23/cMN3g3ZDeQN/w35/gT+Ex7uDukO9A8PDw"
        "oPFQ8gDzsPNg9BD1wPVw9iD30PeA+GAFEAbABnAHIAjQCIAJMArgCpALQAzwDKANUA4AD7AP"
    ),
}


def codestream(name: str) -> bytes:
    return base64.b64decode("".join(CODESTREAMS[name]))


def decoded(name: str) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode("".join(DECODED[name])), "<u2").reshape(CODESTREAM_SHAPE)


def slice_header(path: str, height: float, **fields: Any) -> SliceHeader:
    """The header of an axial 2 x 2 image whose pixels nobody reads.

    Args:
      path: of its file.
      height: mm along the normal.
      fields: other values than these.
    """
    return SliceHeader(
        path=path,
        file_size=1,
        transfer_syntax="1.2.840.10008.1.2.1",
        pixel_offset=1,
        pixel_length=8,
        position=(0.0, 0.0, height),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=(1.0, 1.0),
        rows=2,
        columns=2,
        bits_allocated=16,
        bits_stored=16,
    )._replace(**fields)


def image_dataset(
    *,
    rows: int,
    columns: int,
    bits_allocated: int = 16,
    bits_stored: int | None = None,
    high_bit: int | None = None,
    signed: bool = False,
    photometric: str = "MONOCHROME2",
    sop_class: str = uid.MRImageStorage,
    series_uid: str = "1.2.826.0.1.3680043.8.498.1",
    **attributes: Any,
) -> Dataset:
    """A data set with all that an image needs but its pixels and its transfer syntax."""
    stored = bits_stored or bits_allocated
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid.generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = series_uid + ".1", series_uid
    dataset.FrameOfReferenceUID = series_uid + ".2"
    dataset.PatientID, dataset.PatientName = "00001", ""
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "120000", 3
    dataset.Modality = "CT" if "CT" in uid.UID(sop_class).name else "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored = bits_allocated, stored
    dataset.HighBit = stored - 1 if high_bit is None else high_bit
    dataset.PixelRepresentation = int(signed)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def encode_frame(samples: npt.NDArray[Any], syntax: str, dataset: Dataset) -> bytes:
    """One frame's codestream; lossless unless the syntax is lossy."""
    if syntax in HTJ2K_SYNTAXES:
        bits = dataset.BitsStored
        kept = recipe_image(bits, signed=samples.dtype.kind == "i", shape=CODESTREAM_SHAPE)
        if not np.array_equal(samples, kept):
            raise ValueError("HTJ2K frames are kept, not encoded: only recipe_image can be had")
        return codestream(f"htj2k_{samples.dtype.kind}{bits}")
    if syntax == uid.JPEGBaseline8Bit:
        stream = io.BytesIO()
        Image.fromarray(samples.astype(np.uint8)).save(stream, "JPEG", quality=95)
        return stream.getvalue()
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        return _encode_with_gdcm(samples, syntax, dataset)
    if syntax == uid.RLELossless:
        return encode_rle(
            samples.tobytes(),
            rows=dataset.Rows,
            columns=dataset.Columns,
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=dataset.BitsAllocated,
            byteorder="<",
        )
    options: dict[str, Any] = {"jls_error": 2} if syntax == uid.JPEGLSNearLossless else {}
    if syntax == uid.JPEG2000:
        options = {"j2k_cr": [4]}
    encoded = get_encoder(uid.UID(syntax)).encode(
        samples,
        rows=dataset.Rows,
        columns=dataset.Columns,
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=samples.dtype.itemsize * 8,
        bits_stored=dataset.BitsStored,
        pixel_representation=dataset.PixelRepresentation,
        photometric_interpretation="MONOCHROME2",
        **options,
    )
    return bytes(encoded)


def _encode_with_gdcm(samples: npt.NDArray[Any], syntax: str, dataset: Dataset) -> bytes:
    """GDCM encodes JPEG Lossless, by way of files."""
    plain = image_dataset(
        rows=dataset.Rows,
        columns=dataset.Columns,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.BitsStored,
        signed=bool(dataset.PixelRepresentation),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = save(plain, Path(folder) / "plain.dcm", uid.ExplicitVRLittleEndian, [samples])
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        writer = gdcm.ImageWriter()
        writer.SetFileName(folder + "/encoded.dcm")
        if not reader.Read():
            raise RuntimeError("GDCM cannot read what it shall encode")
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise RuntimeError(f"GDCM cannot encode {uid.UID(syntax).name}")
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not writer.Write():
            raise RuntimeError("GDCM cannot write")
        return codestreams_of(Path(folder) / "encoded.dcm")[0]


def save(
    dataset: Dataset, path: Path, syntax: str, frames: Sequence[npt.NDArray[Any] | bytes]
) -> Path:
    """Writes `dataset` with `frames`: stored samples to encode, or codestreams as they are."""
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    if uid.UID(syntax).is_compressed and syntax != uid.DeflatedExplicitVRLittleEndian:
        codestreams = [
            frame if isinstance(frame, bytes) else encode_frame(frame, syntax, dataset)
            for frame in frames
        ]
        dataset.PixelData = encapsulate(codestreams)
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
    else:
        order: Literal["<", ">"] = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        data = b"".join(
            frame
            if isinstance(frame, bytes)
            else frame.astype(frame.dtype.newbyteorder(order)).tobytes()
            for frame in frames
        )
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_slices(
    folder: Path,
    frames: Iterable[npt.NDArray[Any] | bytes],
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    change: Callable[[Dataset, int], object] = lambda dataset, index: None,
    **attributes: Any,
) -> list[Path]:
    """A classic axial series, one file a frame, 2 mm apart; `change` has the last word on each."""
    paths = []
    for index, frame in enumerate(frames):
        dataset = image_dataset(**{"rows": ROWS, "columns": COLUMNS, **attributes})
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [-20.0, -30.0, 10.0 + 2.0 * index]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.25], 2.0
        change(dataset, index)
        paths.append(save(dataset, folder / f"{index + 1:03}.dcm", syntax, [frame]))
    return paths


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: macro sequence keyword to the attributes of its single item."""
    result = Dataset()
    for keyword, attributes in sequences.items():
        item = Dataset()
        for name, value in attributes.items():
            setattr(item, name, value)
        setattr(result, keyword, [item])
    return result


def enhanced_dataset(
    frames: Sequence[Dataset], shared: Dataset | None = None, **attributes: Any
) -> Dataset:
    """An enhanced multi-frame data set (PS3.3 C.7.6.16) of the given per-frame groups."""
    dataset = image_dataset(
        **{
            "rows": ROWS,
            "columns": COLUMNS,
            "sop_class": uid.EnhancedMRImageStorage,
            "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
            **attributes,
        }
    )
    dataset.NumberOfFrames = len(frames)
    dataset.InstanceNumber = 1
    dataset.SharedFunctionalGroupsSequence = [
        shared
        or group(
            PixelMeasuresSequence={"PixelSpacing": [1.5, 1.25], "SliceThickness": 2.0},
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = list(frames)
    return dataset


def codestreams_of(path: Path) -> list[bytes]:
    """The frames of an encapsulated file."""
    dataset = pydicom.dcmread(path)
    return list(
        generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1)))
    )


def read_stacks(paths: Iterable[Path]) -> list[Series]:
    """The series in `paths`, of which nothing may be refused."""
    headers, unread = index_files(sorted(map(str, paths)))
    assert not unread, unread
    stacks, rejected = assemble(headers)
    assert not rejected, rejected
    return stacks


def read_volume(paths: Iterable[Path]) -> Volume:
    """The one volume in `paths`."""
    (series,) = read_stacks(paths)
    return load_volume(series)


def run_dcm2niix(folder: Path, scratch: Path) -> list[Any]:
    """dcm2niix's images of a folder, by file name."""
    import dcm2niix

    output = scratch / "oracle"
    output.mkdir()
    command = [
        dcm2niix.bin, "-b", "n", "-z", "n", "-f", "%s_%e_%p", "-o", str(output), str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return [nibabel.load(path) for path in sorted(output.glob("*.nii"))]


def assert_same_as_dcm2niix(folder: Path, volume: Volume, scratch: Path) -> None:
    """Every voxel the same value at the same millimetre, within 1e-3 mm."""
    (image,) = run_dcm2niix(folder, scratch)
    assert_same_as_nifti(image, volume)


def assert_same_as_nifti(image: Any, volume: Volume, frame: int | None = None) -> None:
    """Every voxel of a NIfTI image (of its 4th axis' `frame`) the same value at the same place."""
    theirs = np.asarray(image.dataobj)
    if frame is not None:
        theirs = theirs[..., frame]
    # Their qform keeps the direction cosines to float32; the sform is a product of rounded parts.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.get_qform()
    index = np.linalg.inv(volume.affine) @ affine
    signed = np.rint(index[:3, :3]).astype(int)
    assert (np.abs(signed).sum(axis=0) == 1).all()
    order = [int(np.argmax(np.abs(row))) for row in signed]
    turned = np.transpose(theirs, order)
    for axis, source in enumerate(order):
        if signed[axis, source] < 0:
            turned = np.flip(turned, axis)
    assert turned.shape == volume.array.shape
    np.testing.assert_allclose(turned, volume.array, rtol=1e-6, atol=1e-4)
    ends = [(0, n - 1) for n in theirs.shape]
    corners = np.array([[i, j, k, 1] for i in ends[0] for j in ends[1] for k in ends[2]])
    ours = volume.affine @ np.rint(index @ corners.T)
    np.testing.assert_allclose(ours[:3], (affine @ corners.T)[:3], atol=1e-3)
