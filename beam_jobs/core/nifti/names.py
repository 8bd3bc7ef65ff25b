"""Which files are read as NIfTI: by their names alone, as every tool that writes them does."""

from __future__ import annotations

SUFFIXES = (".nii", ".nii.gz")
# What stands in `SliceHeader.transfer_syntax` of a NIfTI file's slices.
NIFTI_1, NIFTI_2 = "NIfTI-1", "NIfTI-2"


def is_nifti(path: str) -> bool:
    """Whether a path is named like a NIfTI file, in any case.

    >>> is_nifti("1/1_t1.NII.gz"), is_nifti("d/1.zip!/1_flair.nii"), is_nifti("1/1.dcm.gz")
    (True, True, False)
    """
    return path[-1:] in "iIzZ" and path.lower().endswith(SUFFIXES)
