"""Why input was not used: one stable code a reason, one sentence a code.

The codes are an interface (they stand in `rejects.csv`, counters and documentation): a code is
never renamed or given another meaning.
"""

from __future__ import annotations

import dataclasses
import enum


class Verdict(enum.StrEnum):
    """What became of an input file or series."""

    USED = "used"
    UNUSED = "unused"
    REJECTED = "rejected"


class Reason(enum.StrEnum):
    """Reason codes; `SENTENCES` explains each."""

    # Files.
    UNREADABLE_FILE = "unreadable_file"
    NOT_DICOM = "not_dicom"
    CORRUPT_HEADER = "corrupt_header"
    NO_PIXELS = "no_pixels"
    NOT_GREYSCALE = "not_greyscale"
    NOT_AN_IMAGE_PLANE = "not_an_image_plane"
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    TRUNCATED_PIXELS = "truncated_pixels"
    UNDECODABLE_PIXELS = "undecodable_pixels"
    NOT_FINITE = "not_finite"
    SEVERAL_VOLUMES = "several_volumes"
    MOSAIC = "mosaic"
    TOO_LARGE = "too_large"
    NO_PATIENT_ID = "no_patient_id"
    UNUSABLE_NAME = "unusable_name"
    # Series.
    CONFLICTING_DUPLICATES = "conflicting_duplicates"
    INCOMPLETE_REPETITION = "incomplete_repetition"
    TOO_FEW_SLICES = "too_few_slices"
    GAP_TOO_LARGE = "gap_too_large"
    NOT_A_STACK = "not_a_stack"
    INVALID_GEOMETRY = "invalid_geometry"
    BLANK_SERIES = "blank_series"
    # Patients.
    MISSING_MODALITY = "missing_modality"
    NO_USABLE_SERIES = "no_usable_series"
    AMBIGUOUS_PATIENT = "ambiguous_patient"
    MIXED_PATIENTS = "mixed_patients"
    # Unused by rule: nothing is wrong with the input.
    NOT_INPUT = "not_input"
    LOCALIZER = "localizer"
    DERIVED_IMAGE = "derived_image"
    EXACT_DUPLICATE = "exact_duplicate"
    UNKNOWN_MODALITY = "unknown_modality"
    OTHER_CANDIDATE_PREFERRED = "other_candidate_preferred"
    PATIENT_REJECTED = "patient_rejected"


SENTENCES: dict[Reason, str] = {
    Reason.UNREADABLE_FILE: "The file cannot be opened or read.",
    Reason.NOT_DICOM: "The file is not a DICOM Part 10 file, nor NIfTI where it is named so.",
    Reason.CORRUPT_HEADER: "The header cannot be parsed, or a needed value is malformed.",
    Reason.NO_PIXELS: "The object holds no pixel data.",
    Reason.NOT_GREYSCALE: "Colour or palette pixels are not an image modality's samples.",
    Reason.NOT_AN_IMAGE_PLANE: "Several frames without a position each cannot be put in space.",
    Reason.BURNED_IN_ANNOTATION: "BurnedInAnnotation says that text is part of the pixels.",
    Reason.UNSUPPORTED_PIXELS: "No decoder under a permissive licence reads this pixel encoding.",
    Reason.TRUNCATED_PIXELS: "There are fewer pixel bytes than rows, columns and bits require.",
    Reason.UNDECODABLE_PIXELS: "The pixel data cannot be decoded.",
    Reason.NOT_FINITE: "Voxels are NaN, infinite or beyond the range of float32.",
    Reason.SEVERAL_VOLUMES: "A NIfTI file of several volumes (4D) does not say which one is meant.",
    Reason.MOSAIC: "An image of tiles (mosaic, grid) does not say where its slices lie.",
    Reason.TOO_LARGE: "It is small and claims, or unpacks to, more than any image holds.",
    Reason.NO_PATIENT_ID: "Nothing says whose it is (a placeholder does not): see --patient_from.",
    Reason.UNUSABLE_NAME: "The file's name is not valid UTF-8.",
    Reason.CONFLICTING_DUPLICATES: "Different images claim one place; nothing tells them apart.",
    Reason.INCOMPLETE_REPETITION: "A repetition lacks places that other repetitions hold.",
    Reason.TOO_FEW_SLICES: "A volume needs at least two slices at different places.",
    Reason.GAP_TOO_LARGE: "Slices are missing over a gap too large to interpolate.",
    Reason.NOT_A_STACK: "The slices do not lie on one straight line.",
    Reason.INVALID_GEOMETRY: "Orientation, position or spacing is not that of an image plane.",
    Reason.BLANK_SERIES: "Every pixel of the series has the same value.",
    Reason.MISSING_MODALITY: "A modality named by --require_modalities is not there.",
    Reason.NO_USABLE_SERIES: "No series of the patient could be used.",
    Reason.AMBIGUOUS_PATIENT: "Several patients of the input would get the same id.",
    Reason.MIXED_PATIENTS: "The files of one directory of the patient carry several PatientIDs.",
    Reason.NOT_INPUT: "Hidden files, DICOMDIR, reports and what lies beside NIfTI are not read.",
    Reason.LOCALIZER: "A localizer (scout) is not a volume of the patient.",
    Reason.DERIVED_IMAGE: "A projection, reformat, screen save or mask is made of other images.",
    Reason.EXACT_DUPLICATE: "The same image stands in another file too.",
    Reason.UNKNOWN_MODALITY: "The series is none of the wanted modalities.",
    Reason.OTHER_CANDIDATE_PREFERRED: "Another series of the same modality was preferred.",
    Reason.PATIENT_REJECTED: "The patient was rejected, so this sound series was not used.",
}

UNUSED_BY_RULE = frozenset(
    {
        Reason.NOT_INPUT,
        Reason.LOCALIZER,
        Reason.DERIVED_IMAGE,
        Reason.EXACT_DUPLICATE,
        Reason.UNKNOWN_MODALITY,
        Reason.OTHER_CANDIDATE_PREFERRED,
        Reason.PATIENT_REJECTED,
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Files that will not be used, and why.

    Attributes:
      paths: the files that are refused; their number is what the accounting adds up.
      reason: the code.
      detail: what was required and what was found, one line, no header text.
      series_uid: of the files' series where it is known, else "".
    """

    paths: tuple[str, ...]
    reason: Reason
    detail: str
    series_uid: str = ""

    @property
    def verdict(self) -> Verdict:
        """UNUSED where a rule left sound input aside, else REJECTED."""
        return Verdict.UNUSED if self.reason in UNUSED_BY_RULE else Verdict.REJECTED


class RejectedError(ValueError):
    """Raised where input turns out to be unusable; carries the reason code.

    Attributes:
      reason: the code.
      path: the file that is refused, "" where it is a whole series.
    """

    def __init__(self, reason: Reason, detail: str, *, path: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_rejected, (self.reason, str(self), self.path))


def _rebuild_rejected(reason: Reason, detail: str, path: str) -> RejectedError:
    return RejectedError(reason, detail, path=path)
