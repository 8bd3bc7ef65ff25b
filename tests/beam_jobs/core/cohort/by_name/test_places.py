"""Whose a NIfTI file is: by the directories and names of public cohorts."""

import pytest

from beam_jobs.core.cohort.layout import (
    find_owners,
    is_nobody,
    patient_id_of,
    patient_of,
    patients_named,
)
from beam_jobs.core.nifti.names import NIFTI_1, is_nifti
from tests.beam_jobs.core.test_series import header

ALL = ("FLAIR", "T1w", "T1wCE", "T2w")


def owned(names, patient_from="", root="r"):
    """Each name below the input → the id of its patient, "" of nobody."""
    paths = [f"{root}/{name}" for name in names]
    owners = find_owners(paths, ALL, root=root, patient_from=patient_from)
    found = {}
    for name, path in zip(names, paths, strict=True):
        syntax = NIFTI_1 if is_nifti(path) else "1.2"
        one = header(0, path=path, transfer_syntax=syntax, patient_id="" if is_nifti(path) else "D")
        key = patient_of(one, owners.get(path.rpartition("/")[0]), patient_from)
        found[name] = "" if is_nobody(key) else patient_id_of(key)
    keys = patients_named(paths, owners)
    assert {patient_id_of(key) for key in keys} == set(found.values()) - {"", "D"}
    return found


LAYOUTS = {
    "BraTS": {
        "a/BraTS2021_00000/BraTS2021_00000_flair.nii.gz": "BraTS2021_00000",
        "a/BraTS2021_00000/BraTS2021_00000_seg.nii.gz": "BraTS2021_00000",
        "a/BraTS2021_00002/BraTS2021_00002_flair.nii.gz": "BraTS2021_00002",
        "HGG/Brats18_2013_2_1/Brats18_2013_2_1_t1.nii.gz": "Brats18_2013_2_1",
        "2023/BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz": "BraTS-GLI-00000-000",
    },
    "BIDS": {
        "sub-01/anat/sub-01_T1w.nii.gz": "sub-01",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz": "sub-02",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz": "sub-02",
    },
    "BIDS side by side": {
        "x/sub-01_T1w.nii.gz": "sub-01", "x/sub-02_T1w.nii.gz": "sub-02",
        "OAS3_MR_d0129/anat2/NIFTI/sub-OAS3_ses-d0129_T1w.nii.gz": "sub-OAS3",
    },
    "ADNI": {
        "002_S_0295/MPRAGE/2011-06-02_07_56_36.0/I240811/ADNI_002_S_0295_MR_S1_I240811.nii":
            "002_S_0295",
        "002_S_0295/MPRAGE/2012-05-10_07_56_36.0/I316542/ADNI_002_S_0295_MR_S2_I316542.nii":
            "002_S_0295",
        "002_S_0413/MPRAGE/2011-06-02_07_56_36.0/I240900/ADNI_002_S_0413_MR_S3_I240900.nii":
            "002_S_0413",
    },
    "sessions": {
        "Patient-001/week-000-1/CT1.nii.gz": "Patient-001",
        "Patient-001/week-044/CT1.nii.gz": "Patient-001",
        "Patient-002/2011-02-03/T1.nii.gz": "Patient-002",
        "7/orig/T1.nii.gz": "7", "8/pre/T1.nii.gz": "8", "8/post/T1.nii.gz": "8",
    },
    "named after whom and what": {
        **{f"P-0004_nifti/P-0004_{what}.nii.gz": "P-0004_nifti" for what in
           ("T1", "T1c", "T1c_bias", "T1_bias", "brain_segmentation", "tumor_segmentation",
            "DTI_eddy_L1", "DTI_eddy_L2", "DTI_eddy_L3", "DTI_eddy_FA", "ADC", "ASL", "SWI")},
        "1000001_20252_2_0/T1/T1.nii.gz": "1000001_20252_2_0",
        "1000001_20252_2_0/T1/T1_brain.nii.gz": "1000001_20252_2_0",
        "1000001_20252_2_0/T2_FLAIR/T2_FLAIR.nii.gz": "1000001_20252_2_0",
        "0051456/session_1/anat_1/mprage.nii.gz": "0051456",
    },
    "named after the cohort": {
        "BraTS2021/BraTS2021_00000_t1.nii.gz": "", "BraTS2021/BraTS2021_00002_t1.nii.gz": "",
        "B21_train/B21_01_t1.nii.gz": "", "B21_train/B21_02_t1.nii.gz": "",
    },
    "people without numbers": {f"images/{name}_t1.nii.gz": "" for name in "abcdefghijklmn"},
    "named after the timepoint": {
        "P-07/P-07-000-t1n.nii.gz": "P-07", "P-07/P-07-001-t1n.nii.gz": "P-07",
        "P-08/P-08_20200101_T1.nii.gz": "P-08", "P-08/P-08_20210202_T1.nii.gz": "P-08",
    },
    "a directory a scan": {
        "EGD-0001/1_T1/NIFTI/T1.nii.gz": "EGD-0001",
        "EGD-0001/2_T1GD/NIFTI/T1GD.nii.gz": "EGD-0001",
        "EGD-0002/1_T1/NIFTI/T1.nii.gz": "EGD-0002",
        "EGD-0002/5_MASK/NIFTI/MASK.nii.gz": "EGD-0002",
        "JD_MR1/scans/3-t1_mprage/resources/NIFTI/files/a.nii.gz": "JD_MR1",
        "JD_MR1/scans/14-t2_flair/resources/NIFTI/files/b.nii.gz": "JD_MR1",
    },
    "reference": {
        "00005/FLAIR/scan_301.nii.gz": "00005", "00005/T1w/scan_302.nii.gz": "00005",
        "00007/T2w/a.nii.gz": "00007", "00007/ADC/b.nii.gz": "00007", "00007/c.nii.gz": "00007",
    },
    "one by one": {
        "p1/t1_mprage_3.nii.gz": "p1", "p1/t1_mprage_9.nii.gz": "p1", "p1/5_flair.nii.gz": "p1",
        "p2/T1.nii.gz": "p2", "p2/T1_brain.nii.gz": "p2",
    },
    # What would make one person of a cohort.
    "a directory a modality": {
        "IXI-T1/IXI002-Guys-0828-T1.nii.gz": "", "IXI-T1/IXI012-HH-1211-T1.nii.gz": "",
        **{f"T1w/IXI{n}.nii.gz": "" for n in range(100, 105)},
    },
    "a directory named in the word of the image": {
        "T1/IXI002-Guys-T1.nii.gz": "", "T1/IXI012-HH-T1.nii.gz": "",
    },
    "a group named in names": {
        **{f"A1/A1_{n:03}_T1.nii.gz": "" for n in range(4)},
        "site1/site1_007_T1.nii.gz": "", "site1/site1_008_T1.nii.gz": "",
        **{f"g/M{n}/T1.nii.gz": f"M{n}" for n in range(1, 4)},
    },
    "names without numbers, and small ones": {
        **{f"controls/{name}_T1.nii.gz": "" for name in ("anna", "bert", "carl", "dora")},
        **{f"cases/{n}_T1.nii.gz": "" for n in range(1, 5)},
        **{f"T2w/{name}.nii.gz": "" for name in ("anna", "bert", "carl", "dora")},
    },
    "steps of one patient": {
        f"p/{name}.nii.gz": "p" for name in ("T1", "T1_brain", "T1_n4", "T1_reg", "T1_2", "b_T1")
    },
    "dates of one patient": {
        "P001/P001_20110203_T1.nii.gz": "P001", "P001/P001_20120304_T1.nii.gz": "P001",
        "P002/x/T1_P002.nii.gz": "P002",
    },
    "nnU-Net": {
        "imagesTr/case_000_0000.nii.gz": "", "imagesTr/case_000_0001.nii.gz": "",
        "imagesTr/case_001_0000.nii.gz": "",
    },
    "side by side": {"007_T1.nii.gz": "", "008_T1.nii.gz": ""},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_public_cohorts_say_who_is_the_patient(layout):
    assert owned(list(LAYOUTS[layout])) == LAYOUTS[layout]


def test_an_input_of_nifti_may_be_the_patient():
    of_one = ["P1_flair.nii.gz", "P1_t1.nii.gz", "P1_seg.nii.gz"]
    assert set(owned(of_one, root="d/P1").values()) == {"P1"}
    assert set(owned(["anat/sub-01_T1w.nii.gz"], root="d/sub-01").values()) == {"sub-01"}
    # Two of a word may be two people's.
    assert set(owned(["t1.nii.gz", "t1_x.nii.gz"], root="d/P1").values()) == {""}


def test_a_user_says_whose_nifti_files_are():
    flat = ["imagesTr/case_000_0000.nii.gz", "imagesTr/case_001_0000.nii.gz", "T1.nii.gz"]
    assert list(owned(flat, "file_name").values()) == ["case_000", "case_001", ""]
    by_site = ["T1/IXI002-Guys-T1.nii.gz", "T2/IXI002-Guys-T2.nii.gz"]
    assert list(owned(by_site, "file_name").values()) == ["IXI002-Guys"] * 2
    deep = ["A/x/b_1/t1.nii.gz", "A/y/t2.nii.gz", "t1.nii.gz"]
    assert list(owned(deep, "directory").values()) == ["A", "A", ""]
    assert set(owned(["sub-01/anat/sub-01_T1w.nii.gz"], "study").values()) == {""}


def test_dicom_beside_nifti_is_whose_it_was():
    names = ["00005/T1w/1.dcm", "00005/00005_flair.nii.gz", "heap/1.dcm", "heap/heap_t1.nii.gz"]
    assert list(owned(names).values()) == ["00005", "00005", "D", "heap"]
    without = [name for name in names if not is_nifti(name)]
    assert owned(without) == {name: owned(names)[name] for name in without}
    assert list(owned(names, "file_name").values()) == ["00005", "00005", "D", "heap"]
