"""Headers as long and as deep as scanners write them; everything in them is made up.

What makes a real header hard to read fast is its shape, not its content: how many bytes and
elements come before the pixels, private groups and their creators, and sequences and items of
undefined length (PS3.5 7.5), some within others, that hold what also stands at the top, among it
UIDs and positions that change from slice to slice. The shapes are those of classic MR objects:

    GE       300 elements before the pixels, 11 KB
    Philips  280, 200 more in nested items, 10 KB
    UIH      190, 10 KB
    Siemens  130, 94 KB, of which the two CSA blocks are 90

Which elements a creator's block has, and in which representation, is pydicom's table.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydicom.datadict import private_dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

Vendor = Literal["", "GE", "Philips", "UIH", "Siemens"]
MakeUid = Callable[..., str]
VENDORS: tuple[Vendor, ...] = ("GE", "Philips", "UIH", "Siemens")


class _Imaging(NamedTuple):
    """How a vendor says what a weighting was made with."""

    image_type: str
    scanning_sequence: str
    sequence_variant: str
    acquisition: str
    sequence_name: str | None


_T1, _T2, _FLAIR = "T1", "T2", "FLAIR"
_MANUFACTURERS = {
    "GE": "GE MEDICAL SYSTEMS",
    "Philips": "Philips Medical Systems",
    "UIH": "UIH",
    "Siemens": "SIEMENS",
}
_IMAGING: dict[tuple[str, str], _Imaging] = {
    ("GE", _T1): _Imaging("OTHER", "GR", "SS\\SP\\SK", "3D", None),
    ("GE", _T2): _Imaging("OTHER", "SE", "SK", "2D", None),
    ("GE", _FLAIR): _Imaging("OTHER", "SE\\IR", "SK", "2D", None),
    ("Philips", _T1): _Imaging("M_FFE\\M\\FFE", "GR", "MP", "3D", None),
    ("Philips", _T2): _Imaging("M_SE\\M\\SE", "SE", "SK", "MS", None),
    ("Philips", _FLAIR): _Imaging("M_IR\\M\\IR", "IR", "SK", "MS", None),
    ("UIH", _T1): _Imaging("M\\NORM", "GR\\IR", "SP\\MP", "3D", "gre_fq"),
    ("UIH", _T2): _Imaging("M\\NORM", "SE", "SK", "2D", "fse"),
    ("UIH", _FLAIR): _Imaging("M\\NORM", "SE\\IR", "SK", "2D", "fse_ir"),
    ("Siemens", _T1): _Imaging("M\\ND\\NORM", "GR\\IR", "SK\\SP\\MP", "3D", "*tfl3d1_16ns"),
    ("Siemens", _T2): _Imaging("M\\ND\\NORM", "SE", "SK\\SP", "2D", "*tse2d1_19"),
    ("Siemens", _FLAIR): _Imaging("M\\ND\\NORM", "SE\\IR", "SK\\SP\\MP", "2D", "*tir2d1_16"),
}


class _Block(NamedTuple):
    """A private block (PS3.5 7.8.1), and how many of its creator's elements it has."""

    group: int
    block: int
    creator: str
    elements: int


_BLOCKS: dict[str, tuple[_Block, ...]] = {
    "GE": (
        _Block(0x0009, 0x10, "GEMS_IDEN_01", 9),
        _Block(0x0019, 0x10, "GEMS_ACQU_01", 80),
        _Block(0x0021, 0x10, "GEMS_RELA_01", 16),
        _Block(0x0023, 0x10, "GEMS_STDY_01", 3),
        _Block(0x0025, 0x10, "GEMS_SERS_01", 7),
        _Block(0x0027, 0x10, "GEMS_IMAG_01", 18),
        _Block(0x0029, 0x10, "GEMS_IMPS_01", 9),
        _Block(0x0043, 0x10, "GEMS_PARM_01", 64),
    ),
    "Philips": (
        _Block(0x2001, 0x10, "Philips Imaging DD 001", 44),
        _Block(0x2005, 0x10, "Philips MR Imaging DD 001", 70),
        _Block(0x2005, 0x11, "Philips MR Imaging DD 002", 4),
        _Block(0x2005, 0x12, "Philips MR Imaging DD 003", 3),
        _Block(0x2005, 0x13, "Philips MR Imaging DD 004", 24),
        _Block(0x2005, 0x14, "Philips MR Imaging DD 005", 32),
    ),
    "UIH": (_Block(0x0065, 0x10, "Image Private Header", 96),),
    "Siemens": (
        _Block(0x0019, 0x10, "SIEMENS MR HEADER", 14),
        _Block(0x0029, 0x10, "SIEMENS CSA HEADER", 6),
        _Block(0x0029, 0x11, "SIEMENS MEDCOM HEADER2", 1),
        _Block(0x0051, 0x10, "SIEMENS MR HEADER", 12),
    ),
}


def add_series_elements(dataset: Dataset, vendor: Vendor, modality: str, make_uid: MakeUid) -> None:
    """Makes a series' shared attributes look like a vendor's.

    Args:
        dataset: what all slices share; elements are added, and those that say how it was made are
            replaced.
        vendor: one of the four, not "".
        modality: a series' description; what begins with "T1", "T2" or "FLAIR" is that weighting.
        make_uid: a UID from any number of words, the same for the same words.
    """
    weighting = next((name for name in (_T2, _FLAIR) if modality.startswith(name)), _T1)
    imaging = _IMAGING[vendor, weighting]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", *imaging.image_type.split("\\")]
    dataset.ScanningSequence = imaging.scanning_sequence.split("\\")
    dataset.SequenceVariant = imaging.sequence_variant.split("\\")
    dataset.MRAcquisitionType = imaging.acquisition
    if imaging.sequence_name is not None:
        dataset.SequenceName = imaging.sequence_name
    dataset.Manufacturer = _MANUFACTURERS[vendor]
    _add_general(dataset)
    for sequence, items in (
        ("ReferencedPerformedProcedureStepSequence", [_reference(make_uid("step"))]),
        ("ProcedureCodeSequence", [_code("PHANTOM1", "Phantom of a head")]),
        ("RequestAttributesSequence", [_request()]),
    ):
        setattr(dataset, sequence, items)
    for block in _BLOCKS[vendor]:
        dataset.update(_elements(block))
    for tag, (vr, value) in _GIVEN[vendor].items():
        dataset.add_new(tag, vr, value)
    if vendor == "Philips":
        for tag in (0x2001105F, 0x20051083, 0x20051402):
            dataset.add_new(tag, "SQ", [_philips_item(make_uid("nested", f"{tag:08X}"))])
    leave_open(dataset)


def slice_elements(
    vendor: Vendor, index: int, position: Sequence[str], make_uid: MakeUid
) -> Dataset:
    """What changes from slice to slice, sequences of undefined length first of all.

    Args:
        vendor: one of the four, not "".
        index: the slice, from 0.
        position: its ImagePositionPatient, LPS mm.
        make_uid: as of `add_series_elements`.
    """
    dataset = Dataset()
    dataset.ReferencedImageSequence = [
        _reference(make_uid("localizer", str(index), str(number))) for number in range(3)
    ]
    if vendor == "GE":
        dataset.add_new(0x00271041, "FL", float(position[2]))
    elif vendor == "Philips":
        dataset.add_new(0x2001100A, "IS", str(index + 1))
        item = _philips_item(make_uid("frame", str(index)))
        # A nested position would be true too, but dcm2niix counts it as a second one.
        item.SliceLocation, item.InstanceNumber = position[2], index + 1
        dataset.add_new(0x2005140F, "SQ", [item])
    elif vendor == "UIH":
        (block,) = _BLOCKS[vendor]
        item = _elements(block._replace(elements=24))
        item.ImagePositionPatient = list(position)
        item.SOPInstanceUID = make_uid("frame", str(index))
        dataset.add_new(0x00651070, "SQ", [item])
    else:
        dataset.add_new(0x00191015, "FD", [float(value) for value in position])
        fields = _csa_filling(58) | {"ProtocolSliceNumber": (str(index),)}
        dataset.add_new(0x00291010, "OB", csa(fields))
    leave_open(dataset)
    return dataset


def leave_open(dataset: Dataset) -> None:
    """Gives every sequence and item of a data set undefined length (PS3.5 7.5.1, 7.5.2)."""
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True


def csa(fields: Mapping[str, Sequence[str]]) -> bytes:
    """A Siemens CSA block of the second kind ("SV10"), as readers of it take it.

    Args:
        fields: name to its values; a field has at least six places, those left over empty.

    The layout is what nibabel's `csareader` and dcm2niix read: name (64 bytes), number of values,
    representation, type, number of places, a sync word; a place: four words and its text, padded
    to four bytes.
    """
    parts = [b"SV10\x04\x03\x02\x01", struct.pack("<2I", len(fields), 77)]
    for name, values in fields.items():
        places = max(6, len(values))
        head = struct.pack("<64si4s3i", name.encode(), len(values), b"LO", 6, places, 77)
        parts.append(head)
        for text in [*values, *[""] * (places - len(values))]:
            value = text.encode() + b"\0" if text else b""
            parts.append(struct.pack("<4i", len(value), len(value), 77, len(value)))
            parts.append(value + bytes(-len(value) % 4))
    return b"".join(parts)


def _csa_filling(count: int) -> dict[str, tuple[str, ...]]:
    return {f"PhantomField{number:02d}": (f"{number}.5",) for number in range(count)}


def _csa_series() -> bytes:
    """The series' block: mostly its protocol, a long text of `name = value` lines."""
    lines = [f"sPhantom.alFree[{number}]\t = \t{number * 7}" for number in range(2200)]
    text = "\n".join(["### ASCCONV BEGIN ###", *lines, "### ASCCONV END ###"])
    return csa(_csa_filling(60) | {"MrPhoenixProtocol": (text,)})


def _elements(block: _Block) -> Dataset:
    """A block's creator and the first of its elements, sequences and UIDs apart."""
    result = Dataset()
    result.add_new((block.group, block.block), "LO", block.creator)
    for offset in range(256):
        tag = block.group << 16 | block.block << 8 | offset
        vr = _representation(tag, block.creator)
        if vr not in ("", "SQ", "UN", "UI") and len(result) <= block.elements:
            result.add_new(tag, vr, _made_up(tag, vr))
    return result


def _representation(tag: int, creator: str) -> str:
    """As pydicom knows it, "" where the creator has no such element."""
    if creator == "Image Private Header":  # UIH's, of which pydicom has no table
        return ("DS", "FD", "IS", "LO", "SH", "CS")[tag % 6]
    try:
        return private_dictionary_VR(tag, creator).split(" or ")[0]
    except KeyError:
        return ""


# Blocks of bytes as long as real ones, and what readers take for a scale: it must be true.
_GIVEN: dict[str, dict[int, tuple[str, Any]]] = {
    "GE": {
        0x0025101B: ("OB", gzip.compress(random.Random(0).randbytes(1500), mtime=0)),
        0x00431028: ("OB", bytes(80)),
        0x00431029: ("OB", bytes(1500)),
        0x0043102A: ("OB", bytes(2000)),
    },
    "Philips": {0x2005100D: ("FL", 0.0), 0x2005100E: ("FL", 1.0)},
    "UIH": {0x00651060: ("UN", b"made up " * 580)},
    "Siemens": {0x00291020: ("OB", _csa_series())},
}
_NUMBERS = {"DS": "0.000000", "IS": "0", "FL": 0.0, "FD": 0.0}
_MOMENTS = {"DA": "20210101", "TM": "101112.000", "DT": "20210101101112"}


def _made_up(tag: int, vr: str) -> Any:
    """A value of a representation, of a usual length."""
    if vr in _NUMBERS:
        return _NUMBERS[vr]
    if vr in _MOMENTS:
        return _MOMENTS[vr]
    if vr in ("SS", "US", "SL", "UL", "SV", "UV"):
        return 0
    if vr in ("OB", "OW", "OF", "OD"):
        return f"{tag:08X}".encode() * 2
    return tag if vr == "AT" else f"PHANTOM {tag:08X}"


def _add_general(dataset: Dataset) -> None:
    """Elements of the standard's groups that every scanner writes around the image's own."""
    for keyword, value in (
        ("SpecificCharacterSet", "ISO_IR 100"),
        ("InstanceCreationDate", "20210101"),
        ("InstanceCreationTime", "101112"),
        ("SeriesDate", "20210101"),
        ("AcquisitionDate", "20210101"),
        ("ContentDate", "20210101"),
        ("StudyTime", "101112"),
        ("SeriesTime", "101212"),
        ("AcquisitionTime", "101312"),
        ("ContentTime", "101312"),
        ("AccessionNumber", "0001"),
        ("InstitutionAddress", "Phantom Street 1, Phantom Town"),
        ("ReferringPhysicianName", "Phantom^Physician"),
        ("StationName", "PHANTOM1"),
        ("StudyDescription", "HEAD"),
        ("OperatorsName", "Phantom^Operator"),
        ("ManufacturerModelName", "Phantom Scanner"),
        ("PatientBirthDate", "19500101"),
        ("PatientSex", "O"),
        ("PatientAge", "071Y"),
        ("PatientWeight", "70"),
        ("BodyPartExamined", "HEAD"),
        ("ScanOptions", "FS"),
        ("NumberOfAverages", "1"),
        ("ImagingFrequency", "127.7"),
        ("ImagedNucleus", "1H"),
        ("EchoNumbers", "1"),
        ("EchoTrainLength", "16"),
        ("PercentSampling", "100"),
        ("PercentPhaseFieldOfView", "100"),
        ("PixelBandwidth", "200"),
        ("DeviceSerialNumber", "00001"),
        ("SoftwareVersions", "phantom"),
        ("ProtocolName", dataset.SeriesDescription),
        ("ReceiveCoilName", "HEAD"),
        ("TransmitCoilName", "BODY"),
        ("InPlanePhaseEncodingDirection", "ROW"),
        ("FlipAngle", "90"),
        ("VariableFlipAngleFlag", "N"),
        ("SAR", "0.5"),
        ("PatientPosition", "HFS"),
        ("StudyID", "1"),
        ("AcquisitionNumber", "1"),
        ("PositionReferenceIndicator", "NA"),
        ("PerformedProcedureStepStartDate", "20210101"),
        ("PerformedProcedureStepStartTime", "101112"),
        ("PerformedProcedureStepID", "1"),
        ("PerformedProcedureStepDescription", "HEAD"),
    ):
        setattr(dataset, keyword, value)


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, uid
    item.PurposeOfReferenceCodeSequence = [_code("121311", "Localizer")]
    return item


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _request() -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "1", "1"
    item.ScheduledProcedureStepDescription = "HEAD"
    item.ScheduledProtocolCodeSequence = [_code("PHANTOM1", "Phantom of a head")]
    return item


def _philips_item(uid: str) -> Dataset:
    """What Philips nests in its private sequences: standard and private elements of an image."""
    item = _elements(_Block(0x2005, 0x10, "Philips MR Imaging DD 001", 30))
    item.ReferencedImageSequence = [_reference(uid)]
    item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, uid
    item.ContentDate, item.ContentTime = "20210101", "101312"
    item.SeriesDescription = "nested"
    item.ImageType = ["DERIVED", "SECONDARY"]
    item.EchoTime = "1"
    return item
