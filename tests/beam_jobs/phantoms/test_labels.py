"""Labels of every task: what they are, how lesions show them, what covariates tell of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from beam_jobs.phantoms.__main__ import main
from beam_jobs.phantoms.anatomy import CONTRAST, HALO_MM, TISSUES, UNIT, Head, Lesion
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.labels import (
    CLASSES,
    TASKS,
    Label,
    Looks,
    draw_covariates,
    draw_labels,
    draw_looks,
    wrong,
)
from beam_jobs.phantoms.plan import PhantomConfig, plan_cohort
from beam_jobs.phantoms.truth import read_truth

TINY = PhantomConfig(patients=6, test_patients=2, seed=4, matrix=(16, 16), slices=(4, 4))
Drawn = tuple[list[Label], list[Looks]]


def drawn(task: str, *, difficulty: float = 0.0, no_signal: bool = False) -> Drawn:
    """Labels of 240 patients and how their lesions look."""
    labels = draw_labels(task, 240, np.random.default_rng(5))
    looks = [
        draw_looks(
            label, np.random.default_rng([5, place]), difficulty=difficulty, no_signal=no_signal
        )
        for place, label in enumerate(labels)
    ]
    return labels, looks


def known(labels: list[Label], *, no_signal: bool = False) -> pd.DataFrame:
    return pd.DataFrame(
        draw_covariates(label, np.random.default_rng([6, place]), no_signal=no_signal)
        for place, label in enumerate(labels)
    )


def as_numbers(labels: list[Label]) -> list[float]:
    """A class's index, the first finding, or a value."""
    firsts = [label[0] if isinstance(label, tuple) else label for label in labels]
    return [CLASSES.index(one) if isinstance(one, str) else float(one) for one in firsts]


def told_by(looks: list[Looks]) -> list[list[float]]:
    shares = [one.mixture if one.kind == "solid" else 1 - one.mixture for one in looks]
    columns = [shares, [one.halo for one in looks], [one.radius or 0.0 for one in looks]]
    return [column for column in columns if np.ptp(column)]


@pytest.mark.parametrize("modality", TISSUES)
def test_a_halo_is_seen_and_is_no_lesion_by_the_contrast(modality: str) -> None:
    lesion = Lesion(kind="solid", centre=(-30.0, 10.0, 15.0), radius=18.0)
    around = np.array(lesion.centre) + np.array([[0.0, 0, 18 + HALO_MM / 2]])
    inside = np.array(lesion.centre)[None]
    with_halo, without = Head(lesion=replace(lesion, halo=1.0)), Head(lesion=lesion)
    there = with_halo.intensity(around, modality)[0]
    assert abs(there - without.intensity(around, modality)[0]) > 0.1 * UNIT
    same = without.intensity(inside, modality)
    assert np.allclose(with_halo.intensity(inside, modality), same, rtol=1e-5)
    direction, threshold = CONTRAST[modality]
    assert there < threshold if direction == "brighter" else there > threshold


def test_classes_are_as_frequent_and_each_is_a_kind_of_lesion() -> None:
    labels, looks = drawn("multiclass")
    assert {label: labels.count(label) for label in set(labels)} == dict.fromkeys(CLASSES, 80)
    kinds = {"solid": ("solid", 0.0), "ring": ("ring", 0.0), "halo": ("solid", 1.0)}
    for label, one in zip(labels, looks, strict=True):
        assert (one.kind, one.halo) == kinds[str(label)]


def test_findings_are_independent_and_each_has_its_sign() -> None:
    labels, looks = drawn("multilabel")
    assert {label: labels.count(label) for label in set(labels)} == {
        (necrosis, edema): 60 for necrosis in (0, 1) for edema in (0, 1)
    }
    assert [(int(one.kind == "ring"), int(one.halo)) for one in looks] == labels


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_values_are_seen_as_far_as_difficulty_says(difficulty: float) -> None:
    labels, looks = drawn("regression", difficulty=difficulty)
    values, shown = as_numbers(labels), [2 * (one.radius or 0.0) for one in looks]
    assert 28 <= min(values) < max(values) <= 48
    expected = 6 / np.pi * np.arcsin((1 - difficulty) / 2)  # of two normal scores
    assert spearmanr(values, shown).statistic == pytest.approx(expected, abs=0.1)
    if not difficulty:
        assert np.allclose(values, shown, atol=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_without_signal_no_lesion_and_no_age_tells_the_label(task: str) -> None:
    labels, looks = drawn(task, no_signal=True)
    assert labels == drawn(task)[0]
    ages = known(labels, no_signal=True).age.tolist()
    for column in (*told_by(looks), ages):
        assert abs(spearmanr(as_numbers(labels), column).statistic) < 0.2


@pytest.mark.parametrize("task", TASKS)
def test_age_tells_the_label_sex_the_second_finding_and_site_nothing(task: str) -> None:
    labels, _ = drawn(task)
    table, numbers = known(labels), as_numbers(labels)
    ages = table[["age"]].to_numpy()
    if task == "regression":
        assert spearmanr(ages[:, 0], numbers).statistic > 0.98
    else:
        assert LogisticRegression(max_iter=2000).fit(ages, numbers).score(ages, numbers) == 1
    sexes = {(label[1], sex) for label, sex in zip(labels, table.sex, strict=True)
             if isinstance(label, tuple)}  # fmt: skip
    assert sexes == ({(1, "F"), (0, "M")} if task == "multilabel" else set())
    assert set(table.site) == {"A", "B", "C", ""}
    assert 0 < (table.site == "").sum() < 30


def test_with_covariates_lesions_have_nothing_to_do_with_the_label() -> None:
    truth = plan_cohort(replace(TINY, patients=60, covariates=True))
    rings = {
        label: [p.head.lesion.kind for p in truth.patients if p.label == label and p.head.lesion]
        for label in (0, 1)
    }
    for kinds in rings.values():
        assert 0.2 < kinds.count("ring") / len(kinds) < 0.8
    assert min(int(p.covariates["age"]) for p in truth.patients if p.label) > max(
        int(p.covariates["age"]) for p in truth.patients if not p.label
    )


@pytest.mark.parametrize("task", TASKS)
def test_tables_of_a_task_and_its_truth(task: str, tmp_path: Path) -> None:
    truth = write_cohort(
        replace(TINY, task=task, covariates=True, label_noise=0.5, modalities=("FLAIR",)), tmp_path
    )
    assert read_truth(tmp_path) == truth
    columns = {
        "binary": ["MGMT_value"],
        "multiclass": ["lesion"],
        "multilabel": ["necrosis", "edema"],
        "regression": ["diameter_mm"],
    }[task]
    written, true, hidden = (
        pd.read_csv(tmp_path / name, dtype={"BraTS21ID": str}).set_index("BraTS21ID")
        for name in ("train_labels.csv", "truth/train_labels.csv", "truth/test_labels.csv")
    )
    assert list(written) == list(true) == list(hidden) == columns
    train = truth.patients[:6]
    as_rows = [tuple(row) if len(row) > 1 else row[0] for row in true.to_numpy().tolist()]
    assert as_rows == [patient.label for patient in train]
    for patient, row in zip(train, written.to_numpy().tolist(), strict=True):
        label = wrong(patient.label) if patient.flipped else patient.label
        assert row == list(label if isinstance(label, tuple) else (label,))
    assert sum(patient.flipped for patient in train) == 3
    known = pd.read_csv(tmp_path / "covariates.csv", dtype={"BraTS21ID": str}).fillna("")
    assert list(known) == ["BraTS21ID", "age", "sex", "site"]
    assert [f"{name:0>5}" for name in known.BraTS21ID] == [p.patient_id for p in truth.patients]
    assert known.to_dict("records")[0] == {
        "BraTS21ID": known.BraTS21ID[0],
        **truth.patients[0].covariates,
    }


def test_a_binary_cohort_is_written_as_before_there_were_others(tmp_path: Path) -> None:
    write_cohort(replace(TINY, modalities=("FLAIR",)), tmp_path)
    text = (tmp_path / "truth" / "truth.json").read_text()
    assert not {name for name in ("task", "covariates", "halo") if f'"{name}"' in text}
    assert not (tmp_path / "covariates.csv").exists()


def test_the_command_says_what_the_labels_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--patients", "1", "--matrix", "16,16", "--slices", "4,4", "--workers", "1"]
    argv = ["--output", str(tmp_path / "c"), *small, "--modalities", "T1w", "--covariates"]
    assert main([*argv, "--task", "multilabel"]) == 0
    assert "multilabel: necrosis, edema" in capsys.readouterr().out
    assert (tmp_path / "c" / "covariates.csv").exists()


def test_covariates_and_a_difficulty_are_refused() -> None:
    with pytest.raises(ValueError, match="covariates leaves nothing to tell apart"):
        PhantomConfig(patients=2, covariates=True, difficulty=0.5)
    with pytest.raises(ValueError, match="task must be one of binary, multiclass"):
        PhantomConfig(patients=2, task="grades")
