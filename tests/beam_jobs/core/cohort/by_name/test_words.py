"""What names of NIfTI files say, by those of public cohorts."""

import pytest

from beam_jobs.core.cohort.by_name.words import parts_of, said_of, stem_of, subject_of

ALL = ("FLAIR", "T1w", "T1wCE", "T2w")
NAMES = {
    "FLAIR": (
        "BraTS2021_00000_flair", "BraTS-GLI-00000-000-t2f", "sub-01_ses-1_acq-3D_FLAIR",
        "001_T2_FLAIR", "ax_t2_flair_5", "UPENN-GBM-00001_11_FLAIR_unstripped",
    ),
    "T1w": (
        "Brats18_2013_2_1_t1", "BraTS-MET-00001-000-t1n", "sub-01_T1w", "sub-ct01_T1w",
        "sub-01_UNIT1", "IXI002-Guys-0828-T1", "3dt1", "T1_pre", "t1_mprage_sag_p2_iso_20110203_2",
        "ADNI_002_S_0295_MR_MPRAGE_br_raw_20110602125224646_127_S110476_I240811",
        "sub-01_space-MNI152NLin6Asym_desc-preproc_T1w", "7_AX_T1_FLAIR_20200101", "lesion_001_T1",
    ),
    "T1wCE": (
        "BraTS2021_00000_t1ce", "BraTS-GLI-00000-000-t1c", "sub-01_ce-gadolinium_run-1_T1w",
        "UCSF-PDGM-0004_T1c_bias", "TCGA-02-0006_1996.08.23_t1Gd", "CT1", "t1_post", "T1+C",
        "P1_T1wCE",
    ),
    "T2w": ("BraTS2021_00000_t2", "BraTS-GLI-00000-000-t2w", "sub-01_acq-tse_T2w", "t2_tse_tra"),
    "": (
        "sub-01_T1map", "sub-01_T2starw", "sub-01_inv-1_MP2RAGE", "sub-01_PDw", "t1_post_pre",
        "UCSF-PDGM-0004_ADC", "case_000_0000", "image", "sub-01_task-rest_bold", "T1_T2_ratio",
    ),
}  # fmt: skip


@pytest.mark.parametrize("modality", NAMES)
def test_cohorts_names_say_their_modality(modality):
    said = {name: said_of(f"r/x/{name}.nii.gz", ALL).modality for name in NAMES[modality]}
    assert said == dict.fromkeys(NAMES[modality], modality)


MASKS = (
    "BraTS2021_00000_seg", "BraTS-GLI-00000-000-seg", "sub-01_desc-brain_mask", "T1_brain_mask",
    "UCSF-PDGM-0004_tumor_segmentation", "sub-01_dseg", "TCGA-02-0006_GlistrBoost", "aparc+aseg",
    "P1_T1_lesion", "wmh", "sub-01_label-L_mask", "labels",
)  # fmt: skip


def test_masks_are_no_images_whatever_else_names_say():
    assert [name for name in MASKS if said_of(f"r/x/{name}.nii", ALL) != ("", True)] == []


def test_wanted_modalities_are_found_by_their_own_names():
    wanted = ("t1n", "t1c", "ADC", "T1")
    said = [said_of(f"r/P1_{name}.nii", wanted).modality for name in ("t1n", "T1C", "adc", "T1")]
    assert said == ["t1n", "t1c", "ADC", "T1"]
    assert said_of("r/P1_flair.nii", ("flair",)).modality == "flair"
    # A modality called T1 is neither a map of T1 times nor an enhanced image.
    assert said_of("r/P1_T1_map.nii", ("T1",)).modality == ""
    assert said_of("r/P1_T1_gd.nii", ("T1",)).modality == "T1wCE"


def test_a_patients_directory_in_a_name_says_nothing_of_the_image():
    assert said_of("r/CT-T2-007/CT-T2-007_T1w.nii.gz", ALL).modality == "T1w"
    assert said_of("r/T1/T1_flair.nii.gz", ALL).modality == "T1w"  # it may be of the image


def test_a_name_is_patient_and_image():
    assert parts_of("BraTS-GLI-00001-000-t1n")[:2] == ("BraTS-GLI-00001-000", "t1n")
    assert parts_of("case_07_0001") == ("case_07", "0001", "0001")  # nnU-Net's channel
    assert parts_of("sub-01_ses-2_ce-gd_T1w").subject == "sub-01"
    assert parts_of("T1_brain") == ("", "t1", "T1_brain")
    assert parts_of("0001") == ("0001", "", "")
    assert subject_of("r/007_CT.nii.gz", ("CT",)) == "007"
    assert subject_of("r/007_CT.nii.gz") == "007_CT"
    assert stem_of("d/1.zip!/1/1_t1.NII.GZ") == "1_t1"
