"""One UID, several volumes: kept apart by what headers tell for sure, never by sloppy headers."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from tests.dicom_files import slice_header

PLACES, STEP = 12, 3.0


def image(name: str, height: float, number: int | None, **elements) -> SliceHeader:
    given = {"modality": "MR", "sop_uid": f"1.{name}", "instance_number": number, **elements}
    return slice_header(name, height, **given)


def volumes(values, shift=0.0, *, jitter=0.0, restart=False, **elements):
    """A volume for each of the values, each `shift` mm above the last; named by its number."""
    rng = random.Random(1)
    return [
        image(
            f"{t}-{k:02}",
            STEP * k + shift * t + rng.uniform(-jitter, jitter),
            1 + k + (0 if restart else t * PLACES),
            **{**elements, **value},
        )
        for t, value in enumerate(values)
        for k in range(PLACES)
    ]


def made_of(stacks):
    """The volumes that the series' slices are of, and how many they are."""
    return [("".join(sorted({h.path[0] for h in s.headers})), len(s.headers)) for s in stacks]


APART: dict[str, list[dict[str, Any]]] = {
    "temporal position": [{"temporal_position": t} for t in (1, 2)],
    "direction": [{"b_value": 1e3, "diffusion_direction": (t, 0.0, 1.0)} for t in (0.1, 0.9)],
    "series number": [{"series_number": t} for t in (3, 4)],
    "image type": [{"image_type": ("ORIGINAL", "PRIMARY", "M", t)} for t in ("ND", "NORM")],
    "derived": [{"image_type": t} for t in (("ORIGINAL",), ("DERIVED", "SECONDARY", "MPR"))],
    "description": [{"series_description": t} for t in ("t1_se_tra", "t1_se_tra_KM")],
    "protocol": [{"protocol_name": t} for t in ("t1", "t2")],
    "contrast agent": [{"contrast_agent": t} for t in ("", "Gadovist")],
    "inversion time": [{"inversion_time": t} for t in (400.0, 800.0)],
    "flip angle": [{"flip_angle": t} for t in (5.0, 15.0)],
    "repetition time": [{"repetition_time": t} for t in (500.0, 3500.0)],
}


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.7, 1.0, 1.5, 2.0, STEP * PLACES, 200.0], ids=str)
@pytest.mark.parametrize("restart", [True, False], ids=["numbers restart", "numbers follow"])
@pytest.mark.parametrize("told_by", APART)
def test_images_of_two_acquisitions_never_share_a_volume(told_by, shift, restart):
    headers = volumes(APART[told_by], shift, restart=restart)
    if "sition" in told_by or "direction" in told_by:
        headers = headers if shift < STEP else []  # a repetition is imaged about where the last was
    stacks, rejections = assemble(headers)
    assert not rejections
    assert sorted(made_of(stacks)) == ([("0", PLACES), ("1", PLACES)] if headers else [])
    assert all(stack.geometry.spacing[2] == pytest.approx(STEP) for stack in stacks)


def test_of_one_uid_before_and_after_contrast_each_becomes_its_modality():
    headers = volumes(
        [
            {"series_description": "t1_se_tra"},
            {"series_description": "t1_se_tra_KM", "contrast_agent": "Gadovist"},
        ],
        1.0,
    )
    plan = plan_patient("1", headers, ["T1w", "T1wCE"])
    assert {m: made_of([s]) for m, s in plan.series.items()} == {
        "T1w": [("0", PLACES)],
        "T1wCE": [("1", PLACES)],
    }


@pytest.mark.parametrize("element", ["temporal_position", "acquisition_number"])
@pytest.mark.parametrize("jitter", [0.02, 0.05, 0.1])
def test_volumes_whose_positions_follow_the_head_are_all_kept(jitter, element):
    times = [{element: t + 1} for t in range(9)]
    stacks, rejections = assemble(volumes(times, 0.013, jitter=jitter))
    assert not rejections
    assert made_of(stacks) == [(str(t), PLACES) for t in range(9)]


@pytest.mark.parametrize("lost", [range(6, 18), range(3, 30), range(1, 36, 2), [20]], ids=str)
@pytest.mark.parametrize("told_by", ["temporal position", "direction"])
def test_of_repetitions_with_slices_lost_no_halves_are_put_together(told_by, lost):
    ((name, _),) = [i for i in APART[told_by][0].items() if i[0] != "b_value"]
    values = [{name: t + 1 if "temporal" in name else (float(t), 1.0, 0.0)} for t in range(3)]
    headers = [h for k, h in enumerate(volumes(values)) if k not in lost]
    stacks, rejections = assemble(headers)
    assert all(len(names) == 1 for names, _ in made_of(stacks))
    whole = [str(t) for t in range(3) if not set(lost) & set(range(t * 12, t * 12 + 12))]
    if whole:
        assert made_of(stacks) == [(t, PLACES) for t in whole]
        assert {r.reason for r in rejections} == {Reason.INCOMPLETE_REPETITION}


SLOPPY: dict[str, Callable[[int], dict[str, Any]]] = {
    "absent b": lambda k: {"b_value": (0.0, None)[k % 2]},
    "spacing": lambda k: {"pixel_spacing": (0.46875 - 1e-5 * (k % 2),) * 2},
    "echo time": lambda k: {"echo_time": 2.998 + 0.0005 * (k % 2)},
    "absent echo number": lambda k: {"echo_number": (1, None)[k % 2]},
    "gated repetition time": lambda k: {"repetition_time": 3000.0 + 37.0 * (k * 5 % 12)},
    "repetition time of packages": lambda k: {"repetition_time": (3000.0, 4100.0)[k % 2]},
    "two repetition times": lambda k: {"repetition_time": (500.0, 900.0)[k * k // 3 % 2]},
    "inversion time": lambda k: {"inversion_time": 2500.0 + k % 3},
    "scrubbed image type": lambda k: {"image_type": ("ORIGINAL", "PRIMARY", "MO"[k % 2])},
    "scrubbed description": lambda k: {"series_description": ("t1", "")[k // 6]},
    "description of each slice": lambda k: {"series_description": f"t1 slice {k}"},
    "temporal position of each slice": lambda k: {"temporal_position": k},
    "temporal positions in packages": lambda k: {"temporal_position": k // 2},
    "packages": lambda k: {"acquisition_number": k % 2, "acquisition_time": f"12{k % 2:02}00"},
}


@pytest.mark.parametrize("sloppy", SLOPPY)
def test_a_volume_with_sloppy_headers_stays_one(sloppy):
    headers = [
        image(f"0-{k:02}", STEP * k, k + 1, slice_thickness=STEP, **SLOPPY[sloppy](k))
        for k in range(PLACES)
    ]
    (stack,), rejections = assemble(headers)
    assert not rejections
    assert len(stack.headers) == PLACES


@pytest.mark.parametrize("seed", range(60))
def test_no_element_of_single_slices_takes_a_volume_apart(seed):
    """Values at random, from slice to slice: whatever they are, they are no other volume's."""
    rng = random.Random(seed)
    names = ["temporal_position", "series_number", "repetition_time", "flip_angle"]
    drawn = rng.sample(names, 2)
    headers = [
        image(f"0-{k:02}", STEP * k, k + 1, **{name: rng.choice([1, 3, 9, 27]) for name in drawn})
        for k in range(24)
    ]
    (stack,), _ = assemble(headers)
    assert len(stack.headers) == 24


@pytest.mark.parametrize("told_by", ["temporal position", "image type", "series number"])
def test_without_geometry_kinds_of_images_are_volumes_too(told_by):
    stacks, rejections = assemble(volumes(APART[told_by], position=(), orientation=()))
    assert not rejections
    assert made_of(stacks) == [("0", PLACES), ("1", PLACES)]
    assert not any(stack.geometry_known for stack in stacks)


def test_thousands_of_orientations_cost_no_quadratic_time():
    rng = np.random.default_rng(0)
    turned = [tuple(row) for row in rng.uniform(-3, 3, (9000, 6)).tolist()]
    headers = [image(f"{k}", float(k), k, orientation=turned[k]) for k in range(len(turned))]
    start = time.perf_counter()
    assert not assemble(headers)[0]
    assert time.perf_counter() - start < 20  # 2 minutes when each was compared with all others
