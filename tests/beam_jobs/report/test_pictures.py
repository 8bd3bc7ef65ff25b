"""Pictures of cases: true proportions, and a size that the page can bear."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from beam_jobs.core.record import PreparedCase
from beam_jobs.report.cases import PicturePlan, as_levels, facts_of, pictures_of
from tests.datasets import make_schema


def thumbnail_of(case: PreparedCase) -> npt.NDArray[Any]:
    planes = as_levels(case)
    facts = facts_of(case, planes)
    plan = PicturePlan(reduce=1, step=1, budget=100_000)
    data = base64.b64decode(pictures_of(planes, facts, plan).thumbnail)
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


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
