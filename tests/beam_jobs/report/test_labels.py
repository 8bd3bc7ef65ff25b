"""The page of datasets whose labels are not 0 and 1, and of covariates: the numbers it says."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Target, as_value
from beam_jobs.core.record import PreparedCase
from beam_jobs.report.labels import words
from tests.beam_jobs.report.pages import facts_in, make
from tests.beam_jobs.report.test_comparison import drift_rows
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases, make_schema, write_cases

NAMED = Target(task="binary", labels=("sex",), classes=("F", "M"))


def cases_of(
    target: Target, *, patients: int = 24, covariates: tuple[Covariate, ...] = ()
) -> list[PreparedCase]:
    schema = make_schema(shape=(8, 8, 4), modalities=("T1w",), target=target, covariates=covariates)
    return make_cases(schema, patients=patients, unlabelled=2)


def page_of(
    directory: Path,
    target: Target,
    *more: str,
    cases: list[PreparedCase] | None = None,
    covariates: tuple[Covariate, ...] = (),
) -> str:
    write(directory, target, cases=cases, covariates=covariates)
    return make(directory, *more)


def write(
    directory: Path,
    target: Target,
    *,
    cases: list[PreparedCase] | None = None,
    covariates: tuple[Covariate, ...] = (),
) -> None:
    schema = make_schema(shape=(8, 8, 4), modalities=("T1w",), target=target, covariates=covariates)
    cases = cases or cases_of(target, covariates=covariates)
    write_cases(directory, cases, schema, folds=3)


@pytest.mark.parametrize("target", [TARGETS["multiclass"], NAMED], ids=["three", "two"])
def test_classes_are_counted_by_name_and_fold(target: Target, tmp_path: Path) -> None:
    page = page_of(tmp_path / "d", target)
    facts = facts_in(page)
    cases = cases_of(target)
    assert facts["target"]["words"] == words(target)
    assert facts["target"]["unlabelled"] == 2
    assert [row["name"] for row in facts["target"]["rows"]] == list(target.classes)
    for index, row in enumerate(facts["target"]["rows"]):
        counts = Counter(case.fold for case in cases if case.label == index)
        assert row["all"] == [counts.total(), 24]
        assert [n for n, _ in row["places"]] == [*(counts[fold] for fold in range(3)), 0]
    said = {patient["id"]: patient["said"] for patient in facts["patients"]}
    assert said["00001"] == target.classes[1]
    assert f'<option value="1">{target.classes[1]}</option>' in page
    assert facts["cohort"]["labels"]["none"] == 2


def test_findings_are_counted_over_those_of_whom_they_are_known(tmp_path: Path) -> None:
    target = TARGETS["multilabel"]
    cases = cases_of(target)
    cases[3] = dataclasses.replace(cases[3], label=(None, 1))
    facts = facts_in(page_of(tmp_path / "d", target, cases=cases))
    first, second = facts["target"]["rows"]
    assert (first["all"], second["all"]) == ([11, 23], [12, 24])
    assert first["places"][0] == [3, 7]
    assert facts["patients"][3]["said"] == "necrosis"
    assert facts["patients"][0]["said"] == "none of them"


def test_values_have_their_spread_in_each_fold(tmp_path: Path) -> None:
    target = TARGETS["regression"]
    page = page_of(tmp_path / "d", target)
    found, cases = facts_in(page)["target"], cases_of(target)
    values = [float(str(case.label)) for case in cases if case.label is not None]
    assert found["all"]["median"] == pytest.approx(np.median(values))
    assert sum(found["counts"]) == 24
    of_fold = [float(str(case.label)) for case in cases if case.fold == 1]
    assert found["spreads"][1]["min"] == min(of_fold)
    assert found["spreads"][3] is None
    assert "Labels are values of volume in ml. 2 patients without one." in page


def test_covariates_are_told_with_who_lacks_them(tmp_path: Path) -> None:
    cases = cases_of(NAMED, covariates=AGE_AND_SITE)
    page = page_of(tmp_path / "d", NAMED, cases=cases, covariates=AGE_AND_SITE)
    age, site = facts_in(page)["covariates"]
    ages = [case.covariates[0] for case in cases if not math.isnan(case.covariates[0])]
    assert (age["known"], age["missing"]) == (23, 3)
    assert age["spread"]["median"] == pytest.approx(np.median(ages))
    sites = Counter(case.covariates[1] for case in cases)
    assert site["categories"] == {"A": sites[0.0], "B": sites[1.0]}
    assert facts_in(page)["patients"][6]["known"] == ""
    known = facts_in(page)["patients"][0]["known"]
    assert re.fullmatch(r"age [0-9.]+, site [AB]", known)


def test_a_category_is_told_as_it_is_called(tmp_path: Path) -> None:
    scanner = (Covariate(name="software", categories=("v1.0", "v1.1")),)
    case, *others = cases_of(NAMED, covariates=scanner)
    cases = [dataclasses.replace(case, covariates=(0.0,)), *others]
    page = page_of(tmp_path / "d", NAMED, cases=cases, covariates=scanner)
    assert facts_in(page)["patients"][0]["known"] == "software v1.0"


def test_a_plain_dataset_has_nothing_of_it(tmp_path: Path) -> None:
    facts = facts_in(page_of(tmp_path / "d", TARGETS["binary"]))
    assert not {"target", "covariates"} & set(facts)
    assert not {"said", "known"} & set(facts["patients"][0])
    assert facts["cohort"]["labels"] == {"0": 12, "1": 12, "none": 2}


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    hostile = "</script><script>alert('1')</script>\"é"
    target = Target(task="multilabel", labels=(hostile, "b"))
    site = (Covariate(name=hostile, categories=(hostile, "B")),)
    page = page_of(tmp_path / "d", target, covariates=site)
    assert "<script>alert" not in page
    assert facts_in(page)["target"]["rows"][0]["name"] == hostile


def test_comparison_of_classes_marks_another_mix(tmp_path: Path) -> None:
    target = TARGETS["multiclass"]
    cases = cases_of(target, patients=90)
    write(tmp_path / "a", target, cases=cases)
    others = [dataclasses.replace(case, label=case.label and 0) for case in cases]
    write(tmp_path / "b", target, cases=others)
    page = make(tmp_path / "a", "--against", str(tmp_path / "b"))
    (row,) = drift_rows(page, "patients of class 2")
    assert "30 of 90 (33 %)" in row
    assert "90 of 90 (100 %)" in row
    assert row.count("-66.7 points") == 1
    marked = re.findall(r'<tr class="mark">.*?<td>(.*?)</td>', page)
    assert marked == [f"patients of class {name}" for name in ("2", "3", "4")]
    assert re.search(r"<b>60</b><span>in both, with another label", page)


def test_comparison_of_values_and_covariates_is_a_test_of_their_distributions(
    tmp_path: Path,
) -> None:
    target = TARGETS["regression"]
    cases = cases_of(target, patients=60, covariates=AGE_AND_SITE)
    write(tmp_path / "a", target, cases=cases, covariates=AGE_AND_SITE)
    others = [
        dataclasses.replace(
            case,
            label=None if case.label is None else as_value(float(str(case.label)) + 8),
            covariates=(case.covariates[0] + 30,),
        )
        for case in cases
    ]
    write(tmp_path / "b", target, cases=others, covariates=AGE_AND_SITE[:1])
    page = make(tmp_path / "a", "--against", str(tmp_path / "b"))
    ours, theirs = (
        [float(str(case.label)) for case in side if case.label is not None]
        for side in (cases, others)
    )
    (row,) = drift_rows(page, "volume")
    assert f"KS {stats.ks_2samp(ours, theirs).statistic:.2f}" in row
    assert "-8 ml" in row
    (age,) = drift_rows(page, "age")
    assert "KS 1.00" in age
    (site,) = drift_rows(page, "site")
    assert "|recorded|" in site
    assert "|not recorded|" in site
    assert "|8 of 62 (13 %)|" in drift_rows(page, "patients without age")[0]


def test_comparison_of_other_labels_says_so_and_compares_none(tmp_path: Path) -> None:
    write(tmp_path / "a", TARGETS["multilabel"])
    write(tmp_path / "b", TARGETS["binary"])
    page = make(tmp_path / "a", "--against", str(tmp_path / "b"))
    assert "findings edema, necrosis</td>" in page
    assert ">0 or 1</td>" in page
    assert re.search(r"<b>0</b><span>in both, with another label", page)
    assert "patients with edema" not in page
    assert drift_rows(page, "patients without a label")
