"""Whose file, which modality: directory names where they decide, else headers, else rules."""

import json

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.layout import find_owners, is_nobody, patient_id_of, patient_of
from beam_jobs.core.cohort.modality import modality_by_rules
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.rules import ModalityRule, read_rules
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.test_series import SAGITTAL, header, stack

ALL = ("FLAIR", "T1w", "T1wCE", "T2w")


def series_of(**header):
    (series,), _ = assemble(stack(**header))
    return series


def test_directory_named_after_a_modality_makes_its_parent_a_patient():
    paths = [
        "r/train/00005/T1w/a.dcm",
        "r/train/00005/flair/a.dcm",
        "r/train/00005/T2w/a.dcm",
        "r/train/00005/DWI/a.dcm",
        "r/train/00005/notes.txt",
        "r/heap/a.dcm",
        "r/T1w.dcm",
    ]
    owners = find_owners(paths, ("T1w", "FLAIR"))
    found = {name: (patient_id_of(p.patient), p.modality) for name, p in owners.items()}
    assert found == {
        "r/train/00005/T1w": ("00005", "T1w"),
        "r/train/00005/flair": ("00005", "FLAIR"),
        "r/train/00005/T2w": ("00005", ""),  # a default modality that is not wanted
        "r/train/00005/DWI": ("00005", ""),
        "r/train/00005": ("00005", ""),
    }


def test_modality_above_the_patients_is_no_layout():
    paths = ["r/T1w/00005/a.dcm", "r/T1w/00006/a.dcm", "r/FLAIR/00005/a.dcm"]
    assert find_owners(paths, ALL) == {}


def test_root_may_itself_be_the_patient_or_the_modality():
    (owner,) = find_owners(["c/00005/T1w/a"], ALL).values()
    assert (patient_id_of(owner.patient), owner.modality) == ("00005", "T1w")


def test_patient_id_may_hold_a_slash():
    one, other = (header(0.0, patient_id=name) for name in ("SITE0/007", "SITE1/007"))
    assert patient_id_of(patient_of(one, None)) == "SITE0/007"
    assert patient_of(one, None) != patient_of(other, None)


def test_file_of_nobody_has_no_patient():
    key = patient_of(header(0.0), None)
    assert is_nobody(key)
    assert patient_id_of(key) == ""


def test_directory_with_several_patients_is_refused():
    one = stack(series_uid="1", patient_id="A", series_description="T1w")
    other = stack(series_uid="2", patient_id="B", series_description="T2w")
    plan = plan_patient("dir:r/5", one + other, ALL)
    assert plan.refusal is not None
    assert plan.refusal[0] is Reason.MIXED_PATIENTS
    apart = [h._replace(path=f"T2w/{h.path}") for h in other]
    assert plan_patient("dir:r/5", one + apart, ALL).refusal is None


def described(text, **more):
    return {"series_description": text, **more}


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        (described("Ax T2 FLAIR fs"), "FLAIR"),
        (described("AX FLAIR"), "FLAIR"),
        (described("t2_tirm_tra_dark-fluid"), "FLAIR"),
        (described("Sag T1 FLAIR"), "T1w"),
        (described("T1 MPRAGE +C"), "T1wCE"),
        (described("AX T1 POST GD"), "T1wCE"),
        (described("MPRAGE GD"), "T1wCE"),
        (described("SPGR post gad"), "T1wCE"),
        (described("3D BRAVO +C"), "T1wCE"),
        (described("t1_mprage_sag_KM"), "T1wCE"),
        (described("T1w_ce"), "T1wCE"),
        (described("T1CE"), "T1wCE"),
        (described("t1_mprage_sag"), "T1w"),
        (described("t1_space_sag_p2_iso"), "T1w"),
        (described("T1_SE_reduced"), "T1w"),
        (described("AX T1 SLICE"), "T1w"),
        (described("AX T1 PRE CONTRAST"), "T1w"),
        (described("T1 without contrast"), "T1w"),
        (described("T1 non-contrast"), "T1w"),
        (described("T1 posterior fossa"), "T1w"),
        (described("t1_mprage_sag", contrast_agent="Gadovist"), "T1wCE"),
        (described("SAG 3D BRAVO"), "T1w"),
        (described("t2_tse_tra"), "T2w"),
        (described("T2W_TSE"), "T2w"),
        (described("T2* GRE"), None),
        (described("ep2d_diff_3scan_trace"), None),
        (described("ep2d_diff_trace", echo_time=90.0, repetition_time=6000.0), None),
        (described("DWI b1000", echo_time=100.0, repetition_time=6000.0), None),
        (described("Survey"), None),
        ({"protocol_name": "T2W_TSE"}, "T2w"),
        ({"echo_time": 100.0, "repetition_time": 9000.0, "inversion_time": 2500.0}, "FLAIR"),
        ({"echo_time": 100.0, "repetition_time": 4000.0}, "T2w"),
        ({"echo_time": 9.0, "repetition_time": 500.0}, "T1w"),
        ({"echo_time": 9.0, "repetition_time": 500.0, "contrast_agent": "x"}, "T1wCE"),
        ({}, None),
    ],
)
def test_headers_tell_the_modality(header, modality):
    assert modality_by_rules(series_of(**header), ()) == modality


def test_own_rules_come_before_the_built_in_ones():
    rules = read_rules(
        json.dumps(
            [
                {"modality": None, "text": "motion"},
                {"modality": "T1w", "text": "^VIBE", "plane": "axial", "slices": [3, None]},
                {"modality": "T2w", "echo_time": [70, 90], "contrast": False},
            ]
        ),
        name="rules.json",
    )
    assert modality_by_rules(series_of(series_description="T1 motion"), rules) is None
    assert modality_by_rules(series_of(series_description="vibe cor"), rules) == "T1w"
    assert modality_by_rules(series_of(echo_time=80.0), rules) == "T2w"
    assert modality_by_rules(series_of(echo_time=80.0, contrast_agent="x"), rules) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "must be a JSON list"),
        ('[{"modality": "T1w"}]', "rule 1: a rule needs a condition"),
        ('[{"modality": "T1w", "text": "("}]', "no regular expression"),
        ('[{"modality": "T1w", "tex": "a"}]', "rule 1: fields must be"),
        ('[{"text": "a"}]', "rule 1: fields must be"),
        ('[{"modality": "T1w", "echo_time": [1]}]', "least, greatest"),
        ('[{"modality": "T1w", "plane": "upright"}]', "upright"),
        ("[3]", "rule 1"),
        ('[{"modality": "?", "txt": "a"}]', "rule 1: fields must be"),
        ('[{"modality": "T1w", "dicom_modality": 3}]', "dicom_modality must be text"),
        ('[{"modality": "T1w", "image_type": "["}]', "image_type .* no regular expression"),
        ('[{"modality": "T1w", "contrast": "yes"}]', "contrast must be true or false"),
        ('[{"modality": "T1w", "flip_angle": 3}]', "flip_angle must be .least, greatest"),
        ("[" * 100_000, "nested deeper than 64"),
        ("[null]", "rule 1: a rule is an object"),
        ('["abc"]', "rule 1: a rule is an object"),
        ('[[["modality", "T1w"], ["text", "a"]]]', "rule 1: a rule is an object"),
        ('[{"modality": "T1w", "text": "a", "text": "b"}]', "'text' twice"),
        ('[{"modality": "T1w", "text": ""}]', "text is empty"),
        ('[{"modality": "T1w", "slices": [5, 2]}]', "nothing lies between 5 and 2"),
        ('[{"modality": "T1w", "slices": [NaN, 2]}]', "slices.0.: NaN found"),
        ('[{"modality": "T1w", "slices": [true, null]}]', "least, greatest"),
        ('[{"modality": "T1w", "slices": ["1", null]}]', "least, greatest"),
        ('[{"modality": "t1w", "text": "a"}]', "rule 1: gives 't1w', which is neither"),
        ('[{"modality": " ", "text": "a"}]', "rule 1: gives ' ', which is neither"),
        ('[{"modality": "??", "text": "a"}]', "rule 1: gives '??', which is neither"),
    ],
)
def test_bad_rules_are_one_clear_line(text, message):
    with pytest.raises(UsageError, match=message.replace("?", "[?]")):
        read_rules(text, name="rules.json", modalities=("FLAIR", "T1w"))


def test_rules_with_a_byte_order_mark_or_of_ones_own_modality_are_read():
    text = '\ufeff[{"modality": "CT", "dicom_modality": "CT"}, {"modality": null, "text": "a"}]'
    assert len(read_rules(text, name="rules.json", modalities=("T1w", "CT"))) == 2


def test_rules_travel_in_the_spec_and_change_its_fingerprint():
    rule = ModalityRule(modality="T1w", text="vibe", slices=(3, None))
    spec = PreprocessSpec(series_rules=(rule,))
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.fingerprint != PreprocessSpec().fingerprint
    # Rules of older versions lack the conditions that came later; comments do not travel.
    old = [
        {"modality": "T1w", "text": "vibe", "slices": [3, None], "comment": "seen on 3 patients"}
    ]
    assert PreprocessSpec.from_json({**spec.to_json(), "series_rules": old}) == spec
    broken = {**spec.to_json(), "series_rules": [{"modality": "T1w"}]}
    with pytest.raises(ContractError, match="series_rules"):
        PreprocessSpec.from_json(broken)


def test_best_candidate_is_used_and_the_others_say_why():
    few = stack(range(4), series_uid="1", series_description="T1w")
    many = stack(range(9), series_uid="2", series_description="T1w")
    plan = plan_patient("id:5", few + many, ALL)
    assert len(plan.series["T1w"].headers) == 9
    rows = {row.slices: (row.verdict, row.reason) for row in plan.rows}
    assert rows == {9: ("used", ""), 4: ("unused", "other_candidate_preferred")}


def test_plan_does_not_depend_on_the_order_of_files():
    headers = [
        *stack(range(6), series_uid="1", series_description="T1w"),
        *stack(range(6), series_uid="2", series_description="T1w"),
        *stack(range(5), series_uid="3", series_description="t2_tse"),
    ]
    one = plan_patient("id:5", headers, ALL)
    other = plan_patient("id:5", reversed(headers), ALL)
    assert one.rows == other.rows
    assert {m: s.paths for m, s in one.series.items()} == {
        m: s.paths for m, s in other.series.items()
    }


def test_other_frame_of_reference_is_said():
    one = stack(series_uid="1", series_description="T1w", frame_of_reference="1.1")
    other = stack(series_uid="2", series_description="T2 tse", frame_of_reference="1.2")
    plan = plan_patient("id:5", one + other, ALL)
    assert {row.modality: row.frame_of_reference for row in plan.rows} == {"T1w": 1, "T2w": 2}


def test_every_file_is_counted_once():
    used = stack(range(6), series_uid="1", series_description="T1w")
    other = stack(range(4), series_uid="2", series_description="adc map")
    lone = stack([0], series_uid="3", orientation=SAGITTAL)
    plan = plan_patient("id:5", used + other + lone, ALL)
    assert sum(row.files for row in plan.rows) == 11
    assert {row.verdict: row.files for row in plan.rows} == {
        "used": 6, "unused": 4, "rejected": 1
    }  # fmt: skip
