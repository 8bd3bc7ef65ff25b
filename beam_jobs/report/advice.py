"""What a person can do about each reason for which input was not used."""

from __future__ import annotations

from beam_jobs.core.reasons import Reason

ADVICE: dict[Reason, str] = {
    Reason.UNREADABLE_FILE: "Check permissions and the disk or store, then run again: only the "
    "shards concerned are converted.",
    Reason.NOT_DICOM: "Nothing, if it is a note or a thumbnail. If it should be an image, copy it "
    "again from its source.",
    Reason.CORRUPT_HEADER: "Copy the file again from its source; if it is damaged there, too, "
    "export it anew.",
    Reason.NO_PIXELS: "Nothing, if it is a report or a presentation state. If it should be an "
    "image, it was cut short: copy it again.",
    Reason.NOT_GREYSCALE: "Export the original grey images; colour maps and screen captures are "
    "no substitute.",
    Reason.NOT_AN_IMAGE_PLANE: "Export the series as classic images, one a file, or as an "
    "enhanced object with positions.",
    Reason.BURNED_IN_ANNOTATION: "Export without overlays. If the flag is wrong, have those who "
    "are responsible for the data correct it.",
    Reason.UNSUPPORTED_PIXELS: "Convert the file to uncompressed or JPEG 2000 Lossless, for "
    "instance with DCMTK or GDCM.",
    Reason.TRUNCATED_PIXELS: "The transfer broke off: copy the file again.",
    Reason.UNDECODABLE_PIXELS: "Copy the file again; if that does not help, decompress it with "
    "another tool and look at the image.",
    Reason.NOT_FINITE: "Write a copy with numbers in their place, 0 for what lies outside the head "
    "(numpy.nan_to_num on what nibabel reads).",
    Reason.SEVERAL_VOLUMES: "Write the volume that is meant to a file of its own (fslroi, or "
    "nibabel.four_to_three).",
    Reason.MOSAIC: "Export it again with the scanner's private elements, which anonymising often "
    "removes, or as classic or enhanced multi-frame images.",
    Reason.TOO_LARGE: "Look where the file came from. A sound one may be read when another tool "
    "has decompressed or unpacked it.",
    Reason.NO_PATIENT_ID: "Say who is a patient: --patient_from directory where each has a "
    "directory below the input, else --patient_from study; of NIfTI that lies side by side "
    "--patient_from file_name.",
    Reason.UNUSABLE_NAME: "Rename the file in UTF-8.",
    Reason.CONFLICTING_DUPLICATES: "Two different images stand at one place: keep the files of one "
    "reconstruction or repetition.",
    Reason.INCOMPLETE_REPETITION: "Nothing where other repetitions were used; else copy the series "
    "again.",
    Reason.TOO_FEW_SLICES: "Look whether the series was copied whole; a single image is no volume.",
    Reason.GAP_TOO_LARGE: "Slices are missing: copy the series again.",
    Reason.NOT_A_STACK: "Separate rotated or radial acquisitions; only parallel slices make a "
    "volume.",
    Reason.INVALID_GEOMETRY: "Export the series again with its positions, orientation and pixel "
    "spacing.",
    Reason.BLANK_SERIES: "Nothing can be learnt from it. Look whether the source has another copy "
    "that is not black.",
    Reason.MISSING_MODALITY: "Supply the modality, name it in --series_rules if it is there under "
    "another description, or leave it out of --require_modalities.",
    Reason.NO_USABLE_SERIES: "See the patient's series in series.csv: each says why it was not "
    "used.",
    Reason.AMBIGUOUS_PATIENT: "Give the patients ids that differ in more than leading zeros. Where "
    "directories of sessions were taken for patients: --patient_from directory.",
    Reason.MIXED_PATIENTS: "Sort the files: one directory must hold one person's images.",
    Reason.NOT_INPUT: "Nothing.",
    Reason.LOCALIZER: "Nothing.",
    Reason.DERIVED_IMAGE: "Nothing, unless the original series is missing: then export it.",
    Reason.EXACT_DUPLICATE: "Nothing; one copy was used.",
    Reason.UNKNOWN_MODALITY: "Nothing, unless it is a wanted modality under another description: "
    "then name it in --series_rules (`voxelbeam survey INPUT --write_rules FILE` begins one).",
    Reason.OTHER_CANDIDATE_PREFERRED: "Nothing, unless you want this one: --series_rules can tell "
    "the two apart.",
    Reason.PATIENT_REJECTED: "Solve what the patient was rejected for.",
}
