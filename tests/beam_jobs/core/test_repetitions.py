"""Repetitions of one stack: told apart as dcm2niix does, kept where whole, never mixed."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason, Verdict
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    assert_same_as_nifti,
    enhanced_dataset,
    group,
    read_stacks,
    recipe_image,
    run_dcm2niix,
    save,
    slice_header,
    write_slices,
)

PLACES, TIMES = 6, 4
DIRECTIONS = [(1.0, 0.0, 0.0), (0.0, 0.6, 0.8), (0.0, -0.8, 0.6), (0.6, 0.8, 0.0)]


def images(count):
    return [recipe_image(12, turn=k).astype(np.uint16) for k in range(count)]


def private(number: int, creator: str, element: int, vr: str) -> Callable[[Dataset, object], None]:
    def put(dataset: Dataset, value: object) -> None:
        dataset.private_block(number, creator, create=True).add_new(element, vr, value)

    return put


def write_repetitions(folder, put, *, slice_by_slice=False, numbered=True, **attributes):
    """Classic files; `put(dataset, repetition, place)` says which repetition an image is of."""

    def change(dataset, index):
        repetition, place = divmod(index, PLACES)
        dataset.ImagePositionPatient = [-20.0, -30.0, 2.0 * place]
        # dcm2niix takes the slice that was numbered last for the stack's end.
        number = place * TIMES + repetition if slice_by_slice else index
        dataset.InstanceNumber = 1 + (number if numbered else place)
        put(dataset, repetition, place)

    return write_slices(folder, images(PLACES * TIMES), bits_stored=12, change=change, **attributes)


def assert_true_repetitions(stacks, order=range(TIMES)):
    """Every series holds the images of one repetition, in the order of time."""
    assert len(stacks) == len(order)
    for stack, repetition in zip(stacks, order, strict=True):
        expected = images(PLACES * TIMES)[repetition * PLACES : (repetition + 1) * PLACES]
        assert np.array_equal(load_volume(stack).array, np.stack(expected, axis=-1))


def gradient(dataset, t, _place):
    dataset.DiffusionBValue = 1000.0
    dataset.DiffusionGradientOrientation = list(DIRECTIONS[t])


def siemens(dataset, t, _place):
    private(0x0019, "SIEMENS MR HEADER", 0x0C, "IS")(dataset, "1000")
    private(0x0019, "SIEMENS MR HEADER", 0x0E, "FD")(dataset, list(DIRECTIONS[t]))


def ge(dataset, t, _place):
    for element, value in zip((0xBB, 0xBC, 0xBD), DIRECTIONS[t], strict=True):
        private(0x0019, "GEMS_ACQU_01", element, "DS")(dataset, f"{value:.6f}")


def philips(dataset, t, _place):
    private(0x2001, "Philips Imaging DD 001", 0x03, "FL")(dataset, 1000.0)
    for element, value in zip((0xB0, 0xB1, 0xB2), DIRECTIONS[t], strict=True):
        private(0x2005, "Philips MR Imaging DD 001", element, "FL")(dataset, value)


def philips_number(dataset, t, _place):
    private(0x2005, "Philips MR Imaging DD 005", 0x13, "IS")(dataset, str(t + 1))


def uih(dataset, t, _place):
    private(0x0065, "Image Private Header", 0x37, "FD")(dataset, list(DIRECTIONS[t]))


def averages_of_directions(dataset, t, _place):
    dataset.AcquisitionNumber = t // 2
    dataset.DiffusionGradientOrientation = list(DIRECTIONS[t % 2])


def acquired_at(dataset, t, place):
    dataset.AcquisitionTime = f"12{t:02}{place:02}.5"


# What tells repetitions apart where numbers only count slices.
TOLD_BY = {
    "standard direction": gradient,
    "Siemens' direction": siemens,
    "GE's direction": ge,
    "Philips' direction": philips,
    "Philips' gradient number": philips_number,
    "UIH's direction": uih,
    "two elements together": averages_of_directions,
    "time of each slice": acquired_at,
    "time of the volume": lambda d, t, k: setattr(d, "AcquisitionTime", f"1200{t:02}"),
    "trigger time of the volume": lambda d, t, k: setattr(d, "TriggerTime", 2000.0 * t),
    "trigger time of each slice": lambda d, t, k: setattr(d, "TriggerTime", 2000.0 * t + 90 * k),
    "sequence name": lambda d, t, k: setattr(d, "SequenceName", f"*ep_b1000#{t + 1}"),
    "image type": lambda d, t, k: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "WFIO"[t]]),
    "inversion time": lambda d, t, k: setattr(d, "InversionTime", 100.0 * (t + 1)),
    "flip angle": lambda d, t, k: setattr(d, "FlipAngle", 5.0 * (t + 1)),
}


@pytest.mark.parametrize("told_by", TOLD_BY)
def test_what_makers_write_tells_repetitions_apart(tmp_path, told_by):
    paths = write_repetitions(tmp_path, TOLD_BY[told_by], numbered=False)
    stacks = read_stacks(paths)
    first = [load_volume(stack).array[0, 0, 0] for stack in stacks]
    order = [int(value - images(1)[0][0, 0]) // (5 * PLACES) for value in first]
    assert sorted(order) == list(range(TIMES))
    assert_true_repetitions(stacks, order)


@pytest.mark.parametrize("slice_by_slice", [False, True], ids=["by time", "by slice"])
@pytest.mark.parametrize("maker", ["Philips Medical Systems", "GE MEDICAL SYSTEMS", "SIEMENS"])
def test_numbers_alone_tell_dynamics_apart_as_dcm2niix_does(tmp_path, maker, slice_by_slice):
    """Philips numbers dynamics slice by slice or volume by volume, others volume by volume."""
    folder = tmp_path / "s"

    def put(dataset, t, place):
        dataset.AcquisitionTime = "120000"

    paths = write_repetitions(folder, put, slice_by_slice=slice_by_slice, Manufacturer=maker)
    stacks = read_stacks(paths)
    assert_true_repetitions(stacks)
    if slice_by_slice:
        return  # dcm2niix goes by temporal positions here, and mixes without them
    (image,) = run_dcm2niix(folder, tmp_path)
    for t, stack in enumerate(stacks):
        assert_same_as_nifti(image, load_volume(stack), t)


def test_philips_dynamics_with_temporal_positions_are_those_of_dcm2niix(tmp_path):
    folder = tmp_path / "s"

    def put(dataset, t, place):
        dataset.TemporalPositionIdentifier = t + 1
        dataset.NumberOfTemporalPositions = TIMES

    paths = write_repetitions(
        folder, put, slice_by_slice=True, Manufacturer="Philips Medical Systems"
    )
    stacks = read_stacks(paths)
    assert_true_repetitions(stacks)
    (image,) = run_dcm2niix(folder, tmp_path)
    for t, stack in enumerate(stacks):
        assert_same_as_nifti(image, load_volume(stack), t)


INCOMPLETE: dict[str, dict[str, Any]] = {
    "acquisition number": {"put": lambda d, t, k: setattr(d, "AcquisitionNumber", t + 1)},
    "temporal position": {
        "put": lambda d, t, k: setattr(d, "TemporalPositionIdentifier", t + 1),
        "numbered": False,
    },
    "direction": {"put": gradient, "numbered": False},
    "numbers by time": {"put": lambda d, t, k: None},
    "numbers by slice": {"put": lambda d, t, k: None, "slice_by_slice": True},
}


@pytest.mark.parametrize("missing", [[8], [7, 8], [20, 23], [3, 8]], ids=str)
@pytest.mark.parametrize("told_by", INCOMPLETE)
def test_whole_repetitions_are_kept_when_others_are_incomplete(tmp_path, told_by, missing):
    paths = write_repetitions(tmp_path, **INCOMPLETE[told_by])
    headers, _ = index_files(str(p) for k, p in enumerate(paths) if k not in missing)
    stacks, (rejection,) = assemble(headers)
    broken = {k // PLACES for k in missing}
    assert_true_repetitions(stacks, [t for t in range(TIMES) if t not in broken])
    assert rejection.reason is Reason.INCOMPLETE_REPETITION
    assert rejection.verdict is Verdict.REJECTED
    assert len(rejection.paths) == len(broken) * PLACES - len(missing)
    assert f"{len(broken)} of {TIMES} repetitions" in rejection.detail


def test_when_no_repetition_is_whole_none_is_made(tmp_path):
    paths = write_repetitions(
        tmp_path, lambda dataset, t, place: setattr(dataset, "AcquisitionNumber", t)
    )
    headers, _ = index_files(str(p) for k, p in enumerate(paths) if k not in (1, 8, 15, 22))
    stacks, (rejection,) = assemble(headers)
    assert not stacks
    assert rejection.reason is Reason.INCOMPLETE_REPETITION
    assert len(rejection.paths) == len(headers)


def placed(numbers, places, **elements):
    """Headers of images at places; the elements are lists, one value an image."""
    return [
        slice_header(
            f"{index:03}",
            2.0 * place,
            sop_uid=f"1.{index}",
            instance_number=numbers[index],
            **{name: values[index] for name, values in elements.items()},
        )
        for index, place in enumerate(places)
    ]


def test_every_second_slice_twice_is_no_volume_twice():
    """Two interleaved halves, each imaged twice: no half is a repetition, two together are."""
    halves = [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6], [1, 3, 5, 7]]
    headers = placed(
        [1] * 16,
        [place for half in halves for place in half],
        # Which of them is a repetition's first is not certain: acquisitions before may be lost.
        acquisition_number=[number for number in range(4, 8) for _ in range(4)],
    )
    stacks, (rejection,) = assemble(headers)
    assert not stacks
    assert rejection.reason is Reason.INCOMPLETE_REPETITION
    timed = [header._replace(acquisition_time=f"12{k:04}") for k, header in enumerate(headers)]
    stacks, rejections = assemble(timed)
    assert not rejections
    assert [sorted(stack.paths) for stack in stacks] == [
        [header.path for header in headers[:8]],
        [header.path for header in headers[8:]],
    ]


def test_positions_of_repetitions_may_differ_by_rounding():
    rng = random.Random(1)
    headers = [
        h._replace(position=(0.0, 0.0, 2.0 * (k % 8) + rng.uniform(-0.005, 0.005)))
        for k, h in enumerate(placed(range(1, 41), [k % 8 for k in range(40)]))
    ]
    stacks, rejections = assemble(headers)
    assert not rejections
    assert [len(stack.headers) for stack in stacks] == [8] * 5
    assert all(stack.even for stack in stacks)


def test_stacks_side_by_side_are_volumes_of_their_own():
    """As of a spine imaged in two stations, each with slices at the same heights."""
    headers = placed([1] * 16, [*range(8), *range(8)])
    headers[8:] = [h._replace(position=(0.0, 240.0, h.position[2])) for h in headers[8:]]
    stacks, rejections = assemble(headers)
    assert not rejections
    assert [stack.geometry.affine[1, 3] for stack in stacks] == [0.0, 240.0]
    assert [len(stack.headers) for stack in stacks] == [8, 8]


def test_a_longer_first_repetition_does_not_make_the_others_incomplete():
    places = [*range(12), *range(3, 9), *range(3, 9), *range(3, 9)]
    numbers = [0] * 12 + [1] * 6 + [2] * 6 + [3] * 6
    stacks, rejections = assemble(placed(range(30), places, acquisition_number=numbers))
    assert not rejections
    assert [len(stack.headers) for stack in stacks] == [12, 6, 6, 6]


def test_numbers_in_no_order_are_not_believed():
    numbers = list(range(1, 25))
    random.Random(3).shuffle(numbers)
    stacks, (rejection,) = assemble(placed(numbers, [k % 6 for k in range(24)]))
    assert not stacks
    assert rejection.reason is Reason.CONFLICTING_DUPLICATES
    assert "nothing else tells apart" in rejection.detail


def test_the_earliest_of_equal_repetitions_is_chosen_whatever_its_files_are_called():
    headers = placed(
        range(1, 25),
        [k % 6 for k in range(24)],
        acquisition_time=[f"12{59 - k // 6:02}00" for k in range(24)],
        series_description=["T1w"] * 24,
        modality=["MR"] * 24,
    )
    plan = plan_patient("1", headers, ["T1w"])
    assert {header.acquisition_time for header in plan.series["T1w"].headers} == {"125600"}
    assert [row.files for row in plan.rows] == [6] * 4


def test_a_file_of_several_repetitions_counts_once(tmp_path):
    frames = [(t, k) for t in range(3) for k in range(PLACES)][:-2]  # the last is incomplete
    groups = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0.0, 0.0, 2.0 * k]},
            FrameContentSequence={"TemporalPositionIndex": t + 1},
        )
        for t, k in frames
    ]
    path = tmp_path / "4d.dcm"
    save(
        enhanced_dataset(groups, bits_stored=12, SeriesDescription="T1w"), path,
        uid.ExplicitVRLittleEndian, images(len(frames)),
    )  # fmt: skip
    headers, _ = index_files([str(path)])
    plan = plan_patient("1", headers, ["T1w"])
    assert [(row.reason, row.files) for row in plan.rows] == [
        ("", 1),
        ("other_candidate_preferred", 0),
        ("incomplete_repetition", 0),
    ]


def scrambled_time_series(rng):
    """Headers told apart by one means of many, some lost; and the truth by path."""
    places, times = rng.randint(6, 12), rng.randint(2, 8)
    order = list(range(places))
    order = rng.choice([order, order[::-1], order[::2] + order[1::2]])
    first = rng.choice([1, 1, 1, 5, places + 1, 401])
    told_by = rng.choice(["number", "slice", "acquisition", "direction", "time", "slices' times"])
    headers, truth = [], {}
    for t in range(times):
        for k, place in enumerate(order):
            (header,) = placed(
                [
                    {"number": first + t * places + k, "slice": first + k * times + t}.get(
                        told_by, k
                    )
                ],
                [place],
                acquisition_number=[t if told_by == "acquisition" else 1],
                diffusion_direction=[(float(t), 1.0, 0.0) if told_by == "direction" else ()],
                acquisition_time=[
                    {"time": f"12{t:02}00", "slices' times": f"12{t:02}{k:02}"}.get(told_by, "")
                ],
            )
            path = f"{rng.random():.12f}"
            headers.append(header._replace(path=path, sop_uid=path))
            truth[path] = t
    rng.shuffle(headers)
    return headers[rng.choice([0, 0, 1, 2, 5]) :], truth


@pytest.mark.parametrize("seed", range(300))
def test_no_series_mixes_repetitions_and_no_order_of_files_matters(seed):
    rng = random.Random(seed)
    headers, truth = scrambled_time_series(rng)
    stacks, rejections = assemble(headers)
    for stack in stacks:
        assert len({truth[header.path] for header in stack.headers}) == 1
    seen = [p for s in stacks for p in s.paths] + [p for r in rejections for p in r.paths]
    assert sorted(seen) == sorted(header.path for header in headers)
    rng.shuffle(headers)
    again, rejected_again = assemble(headers)
    assert [stack.paths for stack in again] == [stack.paths for stack in stacks]
    assert rejected_again == rejections
