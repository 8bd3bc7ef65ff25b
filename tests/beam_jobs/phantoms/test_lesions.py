"""Lesions: what tells the two kinds apart, and what harder cohorts make of that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from beam_jobs.phantoms.anatomy import TISSUES, Head, Lesion
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.labels import best_auc, draw_appearance
from beam_jobs.phantoms.plan import CohortTruth, PhantomConfig, plan_cohort
from beam_jobs.phantoms.truth import read_truth
from tests.beam_jobs.phantoms.test_phantoms import SMALL, lesion_mask


@pytest.mark.parametrize("modality", TISSUES)
def test_ring_and_solid_lesions_differ_in_the_core_alone(modality: str) -> None:
    lesion = Lesion(kind="ring", centre=(-30.0, 10.0, 15.0), radius=18.0)
    ring, solid = Head(lesion=lesion), Head(lesion=replace(lesion, kind="solid"))
    points = np.array(lesion.centre) + np.array([[0.0, 0, 0], [15.0, 0, 0], [0, 0, 21.0]])
    in_ring, in_solid = ring.intensity(points, modality), solid.intensity(points, modality)
    assert abs(in_ring[0] - in_solid[0]) > 300  # core
    assert lesion_mask(in_ring[1:2], modality).all()
    assert lesion_mask(in_solid[:2], modality).all()
    assert in_ring[2] == in_solid[2]  # the tissue around it


def test_label_decides_appearance_and_nothing_else() -> None:
    patients = plan_cohort(PhantomConfig(patients=200, test_patients=0, seed=5)).patients
    radii: dict[int, list[float]] = {0: [], 1: []}
    for patient in patients:
        lesion = patient.head.lesion
        assert lesion is not None
        assert lesion.kind == ("ring" if patient.label else "solid")
        assert isinstance(patient.label, int)
        radii[patient.label].append(lesion.radius)
    assert abs(np.mean(radii[0]) - np.mean(radii[1])) < 4 * np.std(radii[0]) / np.sqrt(100)


def ring_shares(truth: CohortTruth) -> list[float]:
    lesions = [patient.head.lesion for patient in truth.patients]
    return [lesion.ring_share for lesion in lesions if lesion is not None]


def auc_of_reader(config: PhantomConfig) -> float:
    """The AUC of 4000 patients' ring shares, as their lesions are drawn."""
    labels = np.arange(4000) % 2
    rng = np.random.default_rng(0)
    drawn = (
        draw_appearance(label == 1, rng, difficulty=config.difficulty, no_signal=config.no_signal)
        for label in labels
    )
    shares = [mixture if kind == "solid" else 1 - mixture for kind, mixture in drawn]
    return float(roc_auc_score(labels, shares))


@pytest.mark.parametrize("difficulty", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_best_readers_auc_falls_with_difficulty_as_said(difficulty: float) -> None:
    config = PhantomConfig(patients=1, difficulty=difficulty)
    assert auc_of_reader(config) == pytest.approx(best_auc(difficulty), abs=0.02)


def test_difficulty_changes_the_lesions_brightness_and_nothing_else() -> None:
    plain, hard = (
        plan_cohort(replace(SMALL, patients=12, difficulty=difficulty)) for difficulty in (0, 0.6)
    )
    for one, other in zip(plain.patients, hard.patients, strict=True):
        assert one.head.lesion is not None
        assert other.head.lesion is not None
        assert replace(other.head.lesion, mixture=0.0) == one.head.lesion
        assert replace(other, head=one.head) == one
    assert len(set(ring_shares(hard))) > 10


@pytest.mark.parametrize("modality", TISSUES)
def test_a_mixed_lesion_lies_between_the_two_kinds(modality: str) -> None:
    ring = Lesion(kind="ring", centre=(-30.0, 10.0, 15.0), radius=18.0)
    points = np.array(ring.centre) + np.array([[0.0, 0, 0], [15.0, 0, 0]])
    ends = [Head(lesion=replace(ring, mixture=share)) for share in (0.0, 0.5, 1.0)]
    full, half, none = (head.intensity(points, modality) for head in ends)
    assert np.allclose(half, (full + none) / 2, rtol=1e-5)
    solid = Head(lesion=replace(ring, kind="solid")).intensity(points, modality)
    assert (none == solid).all()


def test_noisy_labels_are_written_and_true_ones_stand_in_the_truth(tmp_path: Path) -> None:
    config = replace(SMALL, patients=10, matrix=(16, 16), slices=(4, 4), label_noise=0.3)
    truth = write_cohort(config, tmp_path)
    assert read_truth(tmp_path) == truth
    written, true = (
        pd.read_csv(tmp_path / name).MGMT_value
        for name in ("train_labels.csv", "truth/train_labels.csv")
    )
    train = [patient for patient in truth.patients if patient.split == "train"]
    assert list(true) == [patient.label for patient in train]
    assert list(written != true) == [patient.flipped for patient in train]
    assert (written != true).sum() == 3
    hidden = pd.read_csv(tmp_path / "truth" / "test_labels.csv").MGMT_value
    assert list(hidden) == [p.label for p in truth.patients if p.split == "test"]


def test_without_signal_the_lesion_tells_nothing_of_the_label() -> None:
    config = replace(SMALL, no_signal=True)
    assert auc_of_reader(config) == pytest.approx(0.5, abs=0.03)
    silent, plain = (plan_cohort(replace(config, no_signal=value)) for value in (True, False))
    assert [one.label for one in silent.patients] == [one.label for one in plain.patients]
    assert set(ring_shares(silent)) == {0.0, 1.0}
