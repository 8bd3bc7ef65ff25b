"""Rules to begin with for NIfTI files whose names no rule knows."""

import re

import pytest

from beam_jobs.core.cohort.rules import ModalityRule, file_name
from beam_jobs.inventory.listing import kinds
from beam_jobs.inventory.rows import SurveyRow
from beam_jobs.inventory.starter_rules import starter_rules


def row(patient, name, modality=""):
    return SurveyRow(
        patient=patient, modality=modality, verdict="unused", slices=20, files=1, detail="",
        reason="" if modality else "unknown_modality", path=f"{patient}/{name}", file_name=name,
    )  # fmt: skip


COHORT = [
    *(row(f"P{n}", f"P{n}_scanA.nii.gz") for n in (7, 12)),
    *(row(f"c_{n}", f"c_{n}_0000.nii.gz") for n in (1, 2, 3)),
    row("sub-1", "sub-1_ses-2_run-1_T1map.nii"),
    row("9", "9_T1.nii.gz", "T1w"),
]


def test_a_rule_is_of_what_names_have_in_common():
    rules = starter_rules(COHORT)
    assert [rule["file_name"] for rule in rules] == [
        r"(?:^|[-_. ])0000\.nii", r"(?:^|[-_. ])scanA\.nii", r"(?:^|[-_. ])T1map\.nii",
    ]  # fmt: skip
    assert all(rule["modality"] == "?" and "dicom_modality" not in rule for rule in rules)
    assert kinds(COHORT) == ["0000 3", "scanA 2", "T1map 1"]


@pytest.mark.parametrize("name", ["P7_T1.nii", "P7_T1_b.nii"])
def test_a_rule_finds_no_file_that_is_known(name):
    known, unknown = row("P7", "P7_x_T1.nii.gz", "T1w"), row("P7", name)
    (rule,) = starter_rules([known, unknown])
    del rule["comment"]
    found = re.compile(ModalityRule(**{**rule, "modality": "T2w"}).file_name or "", re.IGNORECASE)
    assert found.search(file_name(unknown.path))
    assert not found.search(file_name(known.path))
