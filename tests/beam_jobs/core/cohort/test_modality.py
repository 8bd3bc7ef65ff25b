"""Which modality a series is: MR alone, by names, by rules, by what its headers say."""

import time

import hypothesis
import hypothesis.strategies as st
import pytest

from beam_jobs.core.cohort.builtin_rules import BUILT_IN
from beam_jobs.core.cohort.layout import DirectoryOwner
from beam_jobs.core.cohort.modality import modality_by_rules, modality_of, why_unknown
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.cohort.test_real_headers import NUMBERS
from tests.beam_jobs.core.test_series import stack

WORDS = "T1 T2w FLAIR mprage post +C GD km T1-T4 dwi tof 3d sag *tfl3d1_16ns"

NOT_MR = [
    {"modality": "CT", "series_description": "T1-T4 SPINE", "contrast_agent": "ISOVUE300"},
    {"modality": "CT", "series_description": "HEAD T1 LEVEL", "contrast_agent": "Omnipaque"},
    {"modality": "CT", "series_description": "T1w"},
    {"modality": "ct", "series_description": "FLAIR"},
    {"modality": "PT", "series_description": "T1 MPRAGE"},
    {"modality": "US", "protocol_name": "T2W_TSE"},
    {"modality": "SC", "series_description": "t1_mprage_sag_KM"},
    {"modality": "RTDOSE", "series_description": "T1 POST"},
    {"modality": "OT", "series_description": "T2w"},
    {"modality": "NM", "echo_time": 9.0, "repetition_time": 500.0},
]


@pytest.mark.parametrize("header", NOT_MR, ids=lambda header: " ".join(map(str, header.values())))
@pytest.mark.parametrize("directory", [False, True], ids=["heap", "directory"])
def test_nothing_but_mr_is_a_built_in_modality(header, directory):
    (series,), _ = assemble(stack(**header))
    owner = DirectoryOwner(patient="dir:5", modality="T1w") if directory else None
    assert modality_of(series, owner, BUILT_IN) is None
    assert modality_of(series, owner, BUILT_IN, (ModalityRule(modality="T1w", text=".?"),)) is None
    said = why_unknown(series)
    assert said == f"Modality (0008,0060) is {header['modality'].upper()}, not MR" or (
        header["modality"] == "RTDOSE" and said == "Modality (0008,0060) is another one, not MR"
    )


def test_absent_modality_counts_as_mr_by_sop_class_alone():
    mr, ct = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
    shared = {"modality": "", "series_description": "t1_mprage"}
    for sop_class, found in ((mr, "T1w"), (ct, None), ("", None)):
        (series,), _ = assemble(stack(sop_class=sop_class, **shared))
        assert modality_by_rules(series, ()) == found
        # A directory's name is believed of what does not say that it is something else.
        owner = DirectoryOwner(patient="dir:5", modality="T1w")
        assert (modality_of(series, owner, BUILT_IN) == "T1w") is (sop_class != ct)


def test_plan_says_what_an_image_is_that_is_not_mr():
    plan = plan_patient("id:5", stack(modality="CT", series_description="HEAD T1 LEVEL"), BUILT_IN)
    (row,) = plan.rows
    assert (row.verdict, row.reason) == ("unused", "unknown_modality")
    assert row.detail == "Modality (0008,0060) is CT, not MR"
    (row,) = plan_patient("id:5", stack(modality="SECRET^NAME"), BUILT_IN).rows
    assert "SECRET" not in row.detail


def test_modality_of_ones_own_may_be_any_kind_of_image():
    (ct,), _ = assemble(stack(modality="CT", series_description="Kopf nativ"))
    (mr,), _ = assemble(stack(modality="MR", series_description="Kopf nativ"))
    rules = (ModalityRule(modality="plain", text="nativ", dicom_modality="ct"),)
    assert modality_of(ct, None, ("plain",), rules) == "plain"
    assert modality_of(mr, None, ("plain",), rules) is None
    assert modality_of(ct, DirectoryOwner(patient="dir:5", modality="CT"), ("CT",)) == "CT"
    (named,), _ = assemble(stack(modality="CT", series_description="CT"))
    assert modality_of(named, None, ("CT",)) == "CT"


@pytest.mark.parametrize("component", ["PHASE", "imaginary"])
def test_parts_of_a_complex_image_are_no_modality(component):
    (series,), _ = assemble(stack(series_description="T1 MPRAGE", complex_component=component))
    assert modality_by_rules(series, ()) is None


def test_pulse_sequence_name_stands_in_for_an_absent_sequence_name():
    shared = {"repetition_time": 1800.0, "echo_time": 2.4, "inversion_time": 900.0}
    (series,), _ = assemble(stack(pulse_sequence_name="*tfl3d1_16ns", **shared))
    assert modality_by_rules(series, ()) == "T1w"
    assert ModalityRule(modality="a", text="^.tfl3d").fits(series)
    (series,), _ = assemble(stack(pulse_sequence_name="*fm2d2r", **shared))
    assert modality_by_rules(series, ()) is None


def test_rule_that_names_the_kind_of_image_may_call_it_what_it_likes():
    (ct,), _ = assemble(stack(modality="CT", series_description="plain"))
    rule = ModalityRule(modality="T1w", text="plain", dicom_modality="CT")
    assert modality_of(ct, None, BUILT_IN, (rule,)) == "T1w"


@pytest.mark.parametrize("agent", ["NONE", "no", "No contrast", "n/a", "0 ml", "-", "ohne KM", ""])
def test_agent_that_names_none_is_none(agent):
    (series,), _ = assemble(stack(series_description="AX T1", contrast_agent=agent))
    assert modality_by_rules(series, ()) == "T1w"


def test_unweighted_images_of_a_diffusion_series_are_no_t2():
    shared = {"scanning_sequence": ("SE",), "repetition_time": 5000.0, "echo_time": 90.0}
    headers = stack(b_value=0.0, **shared) + stack(b_value=1000.0, **shared)
    assert not plan_patient("id:5", headers, BUILT_IN).series
    assert plan_patient("id:5", stack(b_value=0.0, **shared), BUILT_IN).series
    rules = (ModalityRule(modality="b0", b_value=(0, 10)),)
    assert set(plan_patient("id:5", headers, ("b0",), rules=rules).series) == {"b0"}


def test_combined_echoes_are_preferred_to_each_of_them():
    shared = {"protocol_name": "MEMPRAGE_4e", "echo_time": 1.7}
    echo = stack(series_uid="1", series_description="MEMPRAGE_4e", **shared)
    combined = stack(series_uid="2", series_description="MEMPRAGE_4e_RMS", **shared)
    plan = plan_patient("id:5", echo + combined, BUILT_IN)
    assert plan.series["T1w"].first.series_uid == "2"


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    texts=st.lists(
        st.text(max_size=40)
        | st.lists(
            st.sampled_from(WORDS.split())
        ).map("_".join),
        min_size=3, max_size=3,
    ),
    times=st.lists(st.none() | st.floats(0, 20000), min_size=4, max_size=4),
    scanning=st.sampled_from([(), ("SE",), ("GR",), ("SE", "IR"), ("EP",), ("SE", "EP"), ("RM",)]),
    kind=st.sampled_from(["MR", "CT", "PT", ""]),
)  # fmt: skip
def test_whatever_headers_say_is_a_modality_or_none(texts, times, scanning, kind):
    names = ("series_description", "protocol_name", "sequence_name")
    header = dict(zip(names, texts, strict=True)) | dict(zip(NUMBERS, times, strict=True))
    (series,), _ = assemble(stack(range(3), modality=kind, scanning_sequence=scanning, **header))
    found = modality_by_rules(series, ())
    assert found in (*BUILT_IN, None)
    assert found is None or (kind == "MR" and "EP" not in scanning)


def test_texts_of_any_length_take_no_time():
    hostile = ("3d 2d fs " * 20 + "x1", "ir " * 30000, "t1" * 30000, "flair" * 20000 + "!")
    start = time.perf_counter()
    for text in hostile:
        (series,), _ = assemble(stack(series_description=text, protocol_name=text))
        modality_by_rules(series, ())
    assert time.perf_counter() - start < 2


def test_own_rules_overrule_a_description_that_is_a_modalitys_name_but_no_directory():
    (series,), _ = assemble(stack(series_description="CT", modality="CT", protocol_name="x"))
    wanted = (*BUILT_IN, "CT")
    assert modality_of(series, None, wanted) == "CT"
    none = ModalityRule(modality=None, dicom_modality="CT")
    other = ModalityRule(modality="T2w", dicom_modality="CT")
    assert modality_of(series, None, wanted, (none,)) is None
    assert modality_of(series, None, wanted, (other, none)) == "T2w"
    owner = DirectoryOwner(patient="dir:5", modality="CT")
    assert modality_of(series, owner, wanted, (none,)) == "CT"
