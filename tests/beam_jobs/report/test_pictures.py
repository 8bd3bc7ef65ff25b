"""Pictures of cases: true proportions, and a size that the page can bear."""

import base64
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from beam_jobs.core.record import PreparedCase
from beam_jobs.report import cases
from beam_jobs.report.cases import PicturePlan, as_levels, facts_of, pictures_of
from tests.datasets import make_schema


def thumbnail_of(case: PreparedCase) -> npt.NDArray[Any]:
    planes = as_levels(case)
    facts = facts_of(case, planes)
    plan = PicturePlan(reduce=1, step=1, budget=100_000)
    data = base64.b64decode(pictures_of(planes, facts, plan).thumbnail)
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def pixels(picture: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(picture))).tobytes()


def ball(spacing: tuple[float, float, float]) -> PreparedCase:
    """A ball of 40 mm radius, brightest at the patient's front and left, on the canonical axes."""
    row, column, slice_ = spacing
    shape = tuple(round(120 / step) for step in spacing)
    axes = [np.arange(n) * step - 60 for n, step in zip(shape, spacing, strict=True)]
    y, x, z = np.meshgrid(*axes, indexing="ij")
    volume = np.where(x**2 + y**2 + z**2 < 40**2, 100.0, 0.0)
    volume[(x - 20) ** 2 + (y + 20) ** 2 + z**2 < 8**2] = 255
    affine = np.array([[0, column, 0, 0], [row, 0, 0, 0], [0, 0, slice_, 0], [0, 0, 0, 1.0]])
    return PreparedCase(
        patient_id="ball",
        volume=volume.astype(np.uint8)[..., None],
        affine=affine,
        present=(True,),
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (3.0, 1.0, 2.0), (1.0, 2.5, 4.0)])
def test_pictures_are_in_true_proportion_with_front_up_and_left_on_the_right(spacing):
    case = ball(spacing)
    picture = thumbnail_of(case)
    rows, columns = np.nonzero(picture > 60)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert width / height == pytest.approx(1, abs=0.06)
    spot = np.argwhere(picture > 200).mean(axis=0)
    assert spot[0] < picture.shape[0] / 2 - 10
    assert spot[1] > picture.shape[1] / 2 + 10
    facts = facts_of(case, as_levels(case))
    assert facts.ends == "RLAP"
    assert facts.spacing == spacing
    assert abs(facts.slice * spacing[2] - 60) < 12


@pytest.mark.parametrize("patients", [1, 60, 600])
@pytest.mark.parametrize("shape", [(128, 128, 32), (256, 256, 64)])
def test_pictures_stay_within_the_pages_budget(patients, shape):
    """Even noise, which no picture format likes, in all of the grid."""
    schema = make_schema(shape=shape)
    plan = PicturePlan.for_dataset(schema, patients)
    planes = np.random.default_rng(0).integers(0, 255, (4, shape[2], *shape[:2]), dtype=np.uint8)
    case = PreparedCase(
        patient_id="x",
        volume=np.zeros(schema.volume_shape, np.uint8),
        affine=np.eye(4),
        present=(True,) * 4,
    )
    pictures = pictures_of(planes, facts_of(case, planes), plan)
    spent = len(pictures.sprite) + 5_000
    assert spent * patients < 56e6


def test_pictures_of_a_usual_head_keep_the_grids_resolution_at_600_patients():
    plan = PicturePlan.for_dataset(make_schema(shape=(128, 128, 32)), 600)
    assert (plan.reduce, plan.step) == (1, 1)


def test_a_sprite_with_ample_room_is_encoded_once_and_as_a_trial_would_have_it(monkeypatch):
    case = ball((1.0, 1.0, 2.0))
    planes = as_levels(case)
    facts = facts_of(case, planes)
    qualities: list[int] = []
    encode = cases._jpeg

    def counted(picture: npt.NDArray[np.uint8], quality: int, **how: bool) -> bytes:
        qualities.append(quality)
        return encode(picture, quality, **how)

    monkeypatch.setattr(cases, "_jpeg", counted)
    plans = [PicturePlan(reduce=1, step=1, budget=1000 * 2**n) for n in range(10)]
    sprites = [pictures_of(planes, facts, plan).sprite for plan in plans]
    qualities.clear()
    pictures_of(planes, facts, plans[-1])
    assert qualities == [90, 70]  # the sprite, the thumbnail
    monkeypatch.setattr(cases, "_BITS_FOR_BEST", math.inf)
    tried = [pictures_of(planes, facts, plan).sprite for plan in plans]
    assert list(map(pixels, sprites)) == list(map(pixels, tried))
    assert len(set(sprites)) > 3


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(5, 7, 3, 2), (128, 96, 32, 4)])
def test_each_level_of_each_channel_is_counted(shape, zeros):
    draw = np.random.default_rng(1)
    volume = draw.integers(1, 256, shape, dtype=np.uint8) * (draw.random(shape) >= zeros)
    case = PreparedCase(patient_id="x", volume=volume, affine=np.eye(4), present=(True,) * shape[3])
    planes = as_levels(case)
    assert np.array_equal(planes, volume.transpose(3, 2, 0, 1))
    expected = [np.bincount(volume[..., n].ravel(), minlength=256) for n in range(shape[3])]
    assert np.array_equal(facts_of(case, planes).levels, expected)
