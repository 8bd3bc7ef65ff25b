"""What is a person's id, and what only stands where one was."""

from pathlib import Path

import pytest

from beam_jobs.core.cohort.ids import (
    PLACEHOLDERS,
    IdPolicy,
    is_placeholder,
    may_be_number_zero,
    study_id,
)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "***", "-", "?", "^", "^^^^", "...", "0", "000000", "0-0", "X", "xxxx", "X^X"),
        *("ANONYMOUS", "anonymous", "Anonymous", " ANON ", "ANON^", "Anonymized", "anonymisiert"),
        *("Anonymous^Patient", "PATIENT, ANONYMOUS", "N/A", "n.a.", "NULL", "(null)", "NONE"),
        *("UNKNOWN", "<unknown>", "DEIDENTIFIED", "De-Identified", "NoID", "no id", "[REMOVED]"),
        *("Patient", "Patient ID", "not available", "_ANON_", *sorted(PLACEHOLDERS)),
        *(
            "ANONYMISÉ",
            "anonymise\u0301",
            "ANÓNIMO",
            "Anônimo",
            "ＡＮＯＮ",
            "匿名",
            "Gelöscht",
            "supprimé",
        ),
        *("De-identified Patient", "DE IDENTIFIED PATIENT", "Unknown Female", "REMOVED BY CTP"),
        *("Anonymous Male 1959Y", "PHI removed", "Patient Name", "no value", "not known", "TEST"),
        *("ANON0", "ANON 000", "NA-0", "N/A 0000", "noid0", "Anonymous^Patient^0"),
    ],
)
def test_what_anonymisers_write_is_nobodys_id(text):
    assert is_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "5",
            "00005",
            "50",
            "500000",
            "0500",
            "05-00",
            "X1",
            "0X",
            "A",
            "AX",
            "ANON1",
            "ANON^007",
        ),
        *(
            "Patient 1",
            "UNKNOWN-0001",
            "sub-01",
            "NA12878",
            "IXI002",
            "999999",
            "-1",
            "X0",
            "ANON10",
            "ANON-100",
            "Patient 20",
            "de",
            "Male",
            "1959Y",
            "Female 064Y",
            "testa",
            "Ｐ１",
            "Nana",
            "Doe^John",
            "JD",
            "患者",
            "Ж",
        ),
    ],
)
def test_what_tells_people_apart_is_an_id(text):
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("00000", True),
        ("ANON000", True),
        ("NA-0", True),
        ("0", False),
        ("ANON", False),
        ("50", False),
    ],
)
def test_the_first_of_a_cohort_may_be_numbered_zero(text, first):
    assert may_be_number_zero(text) == first


def test_the_documentation_names_every_placeholder():
    pages = Path(__file__).resolve().parents[4] / "docs"
    text = (pages / "explanation" / "conversion.md").read_text()
    assert not [word for word in PLACEHOLDERS if f"`{word}`" not in text]


def test_a_studys_id_is_the_same_everywhere_and_not_the_uid():
    uid = "1.2.826.0.1.3680043.8.498.1234567890"
    assert study_id(uid) == "study-12215ccb59989d47"  # written into datasets: for ever
    assert study_id(uid) != study_id(f"{uid}1")
    one, other = (IdPolicy(key=key).apply(study_id(uid)) for key in (b"k" * 16, b"l" * 16))
    assert len({one, other, study_id(uid)}) == 3
