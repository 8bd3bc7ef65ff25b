"""Names alone tell NIfTI files."""

import pytest

from beam_jobs.core.nifti.names import is_nifti


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1/1_t1.nii", True),
        ("1/1_t1.nii.gz", True),
        ("1/1_T1.NII.GZ", True),
        ("s3://bucket/d.zip!/1/1_t1.Nii", True),
        ("1/1.dcm", False),
        ("1/1.dcm.gz", False),
        ("1/1.hdr", False),
        ("1/nii", False),
        ("1/x.nii.gz.json", False),
        ("1/x.nii.gz/", False),
        ("", False),
    ],
)
def test_a_name_tells_nifti(path: str, expected: bool) -> None:
    assert is_nifti(path) is expected
