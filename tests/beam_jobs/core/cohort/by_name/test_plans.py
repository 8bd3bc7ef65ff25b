"""What is made of a patient's NIfTI files: which modality each is, and which of several is used."""

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.ids import require_apart
from beam_jobs.core.cohort.layout import find_owners
from beam_jobs.core.cohort.patient_column import PatientColumn, read_columns
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.nifti.names import NIFTI_1
from tests.beam_jobs.core.test_series import stack

ALL = ("FLAIR", "T1w", "T1wCE", "T2w")


def nifti(name, slices=6, **changes):
    """Headers of a NIfTI file's slices."""
    headers = stack(
        range(slices), path=f"r/{name}", transfer_syntax=NIFTI_1, modality="", series_uid="",
        **changes,
    )  # fmt: skip
    return [header._replace(frame=number) for number, header in enumerate(headers)]


def plan(*series, rules=(), modalities=ALL):
    headers = [header for one in series for header in one]
    owners = find_owners([header.path for header in headers], modalities, root="r")
    return plan_patient("dir:r/P", headers, modalities, owners=owners, rules=rules)


def verdicts(made):
    """File → (modality, verdict or reason)."""
    return {row.path: (row.modality, row.reason or row.verdict) for row in made.rows}


def test_names_decide_and_masks_are_derived():
    made = plan(*map(nifti, ("P/P_t1ce.nii.gz", "P/P_flair.nii", "P/P_seg.nii.gz", "P/P_x.nii")))
    assert verdicts(made) == {
        "r/P/P_t1ce.nii.gz": ("T1wCE", "used"),
        "r/P/P_flair.nii": ("FLAIR", "used"),
        "r/P/P_seg.nii.gz": ("", "derived_image"),
        "r/P/P_x.nii": ("", "unknown_modality"),
    }
    assert {row.transfer_syntax for row in made.rows} == {"NIfTI-1"}
    assert not any("P" in row.detail for row in made.rows)  # names may be those of people


def test_a_directory_named_after_a_modality_decides_where_a_name_does_not_contradict():
    made = plan(*map(nifti, ("P/T1w/a.nii", "P/T1w/T2w_x.nii", "P/FLAIR/seg.nii", "P/t1c.nii")))
    assert verdicts(made) == {
        "r/P/T1w/a.nii": ("T1w", "used"),
        "r/P/T1w/T2w_x.nii": ("T2w", "used"),
        "r/P/FLAIR/seg.nii": ("", "derived_image"),
        "r/P/t1c.nii": ("T1wCE", "used"),
    }


def test_rules_by_file_name_come_before_the_name():
    rules = (
        ModalityRule(modality="FLAIR", file_name=r"_0000\.nii"),
        ModalityRule(modality=None, file_name=r"t1_bad"),
        ModalityRule(modality="T2w", file_name=r"^P_SEG"),
    )
    made = plan(*map(nifti, ("P/P_0000.nii", "P/t1_bad.nii", "P/P_seg.nii")), rules=rules)
    assert verdicts(made) == {
        "r/P/P_0000.nii": ("FLAIR", "used"),
        "r/P/t1_bad.nii": ("", "unknown_modality"),
        "r/P/P_seg.nii": ("T2w", "used"),
    }
    assert ModalityRule.from_json(rules[0].to_json()) == rules[0]
    with pytest.raises(ValueError, match="file_name is empty"):
        ModalityRule(modality="T1w", file_name="")


def test_file_names_of_dicom_are_searched_too():
    rules = (ModalityRule(modality="T2w", file_name="^series7"),)
    made = plan(stack(path="r/x/series7"), rules=rules)
    assert made.rows[0].modality == "T2w"


def test_the_first_of_two_sessions_is_used_and_the_other_listed():
    names = [f"sub-1/ses-{n}/anat/sub-1_ses-{n}_T1w.nii.gz" for n in (10, 2)]
    rows = plan(*map(nifti, names)).rows
    assert [row.path for row in rows] == [f"r/{names[1]}", f"r/{names[0]}"]
    assert rows[1].reason == "other_candidate_preferred"


def test_dicom_comes_before_nifti_of_as_many_slices():
    dicom = stack(series_description="t1 mprage", series_uid="9", pixel_spacing=(3.0, 3.0))
    assert plan(nifti("P/t1.nii"), dicom).rows[0].transfer_syntax != NIFTI_1
    assert plan(nifti("P/t1.nii", slices=9), dicom).rows[0].transfer_syntax == NIFTI_1


def test_a_mask_of_nobody_is_not_rejected():
    made = plan_patient("nobody:1/2", nifti("x_seg.nii") + nifti("x_t1.nii"), ALL)
    assert {row.reason for row in made.rows} == {"derived_image", "no_patient_id"}
    assert made.refusal is not None
    assert "file_name" in made.refusal[1]


def test_a_participants_table_of_bids_holds_labels():
    text = 'participant_id\tage\tgroup\nsub-01\t61\t"case, severe"\nsub-02\tn/a\tcontrol\n'
    table = read_columns(text, "ds/participants.TSV", ("participant_id",), ("age", "group"))
    assert list(table.rows) == [
        (2, "sub-01", ("61", '"case, severe"')),
        (3, "sub-02", ("n/a", "control")),
    ]
    with pytest.raises(UsageError, match="separated by commas"):
        read_columns(text, "participants.csv", ("participant_id",), ("age",))


def test_labels_may_have_the_bids_label_alone():
    assert PatientColumn(by_spelling={"01": 1, "sub-02": 0}).spelling_of("sub-01") == "01"
    assert PatientColumn(by_spelling={"1": 1}).spelling_of("sub-01") == "1"
    assert PatientColumn(by_spelling={"01": 1, "sub-01": 0}).spelling_of("sub-01") == "sub-01"
    assert PatientColumn(by_spelling={"01": 1}).spelling_of("sub-02") is None
    with pytest.raises(UsageError, match="ambiguous"):
        PatientColumn(by_spelling={"01": 1, "1": 1}).spelling_of("sub-01")
    with pytest.raises(UsageError, match="several patients"):
        require_apart(["1", "1"])
