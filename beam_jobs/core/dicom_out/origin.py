"""Whose the images are that an answer was made of: patient and study; and UIDs of answers."""

from __future__ import annotations

import errno
import re
import uuid
import warnings
from datetime import date
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.reading import as_plain, limited, parse, unreadable
from beam_jobs.core.reasons import Reason, RejectedError

# What an object needs of its patient and study to be filed beside the images (PS3.3 C.7.1.1 and
# C.7.2.1), and nothing else that a header holds.
_IDENTITY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_CHARACTER_SET = "SpecificCharacterSet"
_SEXES = ("M", "F", "O")
_LAST_GROUP = 0x0020  # of `_IDENTITY`
UTF_8 = "ISO_IR 192"
_UID = re.compile(r"[0-9.]{1,64}")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "voxelbeam:dicom")


def read_origin(path: str) -> Dataset:
    """Whose an image is: patient and study, as an object that is filed beside it has them.

    The texts are of UTF-8, whatever the file's are; a file that is damaged there, and a value that
    is none of its attribute's, give empty ones, which the standard allows of all but the study.

    Args:
      path: of a DICOM file.

    Returns:
      PatientID, PatientName, PatientBirthDate, PatientSex, StudyInstanceUID, StudyID, StudyDate,
      StudyTime, AccessionNumber, ReferringPhysicianName (type 2: there and empty where the file
      lacks them) and SpecificCharacterSet; nothing else of the header.

    Raises:
      RejectedError: the file cannot be read, or says of no study.
    """
    try:
        with files.open_bytes(path) as opened:
            source = as_plain(opened, path)
            stream = limited(source)
            part10 = source.read_at(128, 4) == b"DICM"
            try:
                found = parse(stream, force=not part10, stop=lambda tag: tag >> 16 > _LAST_GROUP)
                origin = _identity(found)
            except OSError as error:
                if stream.left < 0:
                    raise OSError(errno.EFBIG, stream.refusal) from error
                raise
            except Exception as error:  # pydicom's errors on a damaged header are of any type
                detail = f"pydicom cannot parse the header ({type(error).__name__})"
                raise RejectedError(Reason.CORRUPT_HEADER, detail, path=path) from error
    except OSError as error:
        raise unreadable(error, path) from error
    if not is_uid(str(origin.StudyInstanceUID)):
        raise RejectedError(Reason.CORRUPT_HEADER, "no StudyInstanceUID (0020,000D)", path=path)
    return origin


def is_uid(text: str) -> bool:
    """Whether a text can be a UID (PS3.5 9.1), as far as objects need it to refer to others."""
    return _UID.fullmatch(text) is not None


def _identity(found: Dataset) -> Dataset:
    origin = Dataset()
    _put(origin, _CHARACTER_SET, UTF_8)
    for keyword in _IDENTITY:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = _usable(keyword, found.get(keyword))
                _put(origin, keyword, value)
        except Exception:  # pydicom's errors on a damaged value are of any type
            _put(origin, keyword, "")
    return origin


def _usable(keyword: str, value: Any) -> str:
    """A value as its attribute may have it, "" of what is none; dates are written in many ways."""
    if isinstance(value, MultiValue):  # a backslash stood in a text
        value = "\\".join(map(str, value))
    text = str(value or "").strip(" \0")
    kind = dictionary_VR(keyword)
    if text and kind == "DA":
        return date.strftime(DA(text), "%Y%m%d")
    if text and kind == "TM":
        return str(TM(text))
    if keyword == "PatientSex":
        return text if text in _SEXES else ""
    return text


def _put(dataset: Dataset, keyword: str, value: object) -> None:
    """Sets an element anew: data sets made of one another share their elements."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value)


def derived_uid(*parts: str) -> str:
    """A UID that follows from texts: a UUID by name (PS3.5 B.2, RFC 9562 5.5).

    Args:
      parts: what makes it one of its own; no other list of texts gives it.
    """
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
