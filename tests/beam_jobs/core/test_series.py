"""Assembly: order by position, true stacks, and a reason for every refusal."""

import random

import numpy as np
import pytest

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.reasons import Reason, Verdict
from beam_jobs.core.series import assemble

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def header(z: float, **changes) -> SliceHeader:
    base = SliceHeader(
        path=f"slice-{z:.4f}-{changes.get('series_uid', '1.2')}",
        file_size=10_000,
        transfer_syntax="1.2.840.10008.1.2.1",
        pixel_offset=1000,
        pixel_length=8 * 9 * 2,
        modality="MR",
        series_uid="1.2",
        position=(0.0, 0.0, z),
        orientation=AXIAL,
        pixel_spacing=(2.0, 1.5),
        rows=8,
        columns=9,
        bits_allocated=16,
        bits_stored=16,
    )
    return base._replace(**changes)


def stack(places=range(6), **changes) -> list[SliceHeader]:
    return [header(float(place), **changes) for place in places]


def test_slices_are_ordered_by_position_whatever_names_and_numbers_say():
    headers = [
        h._replace(path=f"{(7 * i) % 11}", instance_number=(3 * i) % 7)
        for i, h in enumerate(stack(range(7)))
    ]
    for seed in range(5):
        random.Random(seed).shuffle(headers)
        (series,), rejected = assemble(headers)
        assert not rejected
        assert [h.position[2] for h in series.headers] == list(range(7))


def test_affine_takes_index_to_lps_mm():
    (series,), _ = assemble(stack(np.arange(5) * 2.5 + 10))
    affine = series.geometry.affine
    # Row index moves along the second direction of the orientation, by the first spacing.
    assert affine @ (1, 0, 0, 1) == pytest.approx((0, 2.0, 10, 1))
    assert affine @ (0, 1, 0, 1) == pytest.approx((1.5, 0, 10, 1))
    assert affine @ (0, 0, 4, 1) == pytest.approx((0, 0, 20, 1))
    assert series.geometry.plane == "axial"


def test_step_comes_from_positions_not_from_thickness_or_spacing_tags():
    headers = stack(np.arange(5) * 0.6, slice_thickness=1.2, spacing_between_slices=1.0)
    (series,), _ = assemble(headers)
    assert series.geometry.spacing[2] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "change",
    [
        {"orientation": SAGITTAL, "position": (5.0, 0.0, 0.0)},
        {"rows": 16},
        {"pixel_spacing": (1.0, 1.0)},
        {"echo_time": 80.0},
        {"temporal_position": 2},
        {"image_type": ("ORIGINAL", "PRIMARY", "P")},
    ],
)
def test_one_uid_with_two_stacks_is_split(change):
    one = stack(range(4), echo_time=10.0, temporal_position=1)
    other = []
    for h in stack(range(4), echo_time=10.0, temporal_position=1):
        changed = h._replace(path=h.path + "b", **change)
        if "orientation" in change:
            changed = changed._replace(position=(h.position[2], 0.0, 0.0))
        other.append(changed)
    series, rejected = assemble(one + other)
    assert not rejected
    assert sorted(len(s.headers) for s in series) == [4, 4]


def test_missing_slice_keeps_true_positions():
    (series,), _ = assemble(stack([0, 1, 2, 4, 5, 6]))
    assert series.geometry.shape[2] == 7
    assert series.offsets == pytest.approx((0, 1, 2, 4, 5, 6))
    assert not series.even


def test_small_rounding_of_positions_is_an_even_stack():
    places = np.round(np.arange(20) * 1.3333333, 2)
    (series,), _ = assemble(stack(places))
    assert series.even


def test_large_gap_is_refused():
    _, (rejection,) = assemble(stack([0, 1, 2, 3, 9, 10, 11]))
    assert rejection.reason is Reason.GAP_TOO_LARGE
    assert len(rejection.paths) == 7


def test_gantry_tilt_gives_a_sheared_affine():
    headers = [h._replace(position=(0.0, 0.3 * h.position[2], h.position[2])) for h in stack()]
    (series,), _ = assemble(headers)
    assert series.geometry.affine[:3, 2] == pytest.approx((0, 0.3, 1.0))


def test_slices_off_the_line_are_refused():
    headers = stack(range(8))
    headers[3] = headers[3]._replace(position=(25.0, 0.0, 3.0))
    _, (rejection,) = assemble(headers)
    assert rejection.reason is Reason.NOT_A_STACK


def test_single_slice_is_refused():
    _, (rejection,) = assemble(stack([0]))
    assert rejection.reason is Reason.TOO_FEW_SLICES


@pytest.mark.parametrize(
    ("image_type", "reason"),
    [
        (("ORIGINAL", "PRIMARY", "LOCALIZER"), Reason.LOCALIZER),
        (("DERIVED", "SECONDARY", "PROJECTION IMAGE"), Reason.DERIVED_IMAGE),
    ],
)
def test_what_is_no_volume_is_left_out_by_rule(image_type, reason):
    localizer = stack(range(3), series_uid="9.9", image_type=image_type)
    (series,), (rejection,) = assemble(stack() + localizer)
    assert len(series.headers) == 6
    assert rejection.reason is reason
    assert rejection.verdict is Verdict.UNUSED


def test_derived_secondary_alone_is_no_reason_to_refuse():
    (series,), rejected = assemble(stack(image_type=("DERIVED", "SECONDARY")))
    assert len(series.headers) == 6
    assert not rejected


@pytest.mark.parametrize("same", [True, False])
def test_exact_duplicates_collapse_and_conflicting_ones_are_refused(tmp_path, same):
    headers = []
    for index in range(5):
        path = tmp_path / f"{index}"
        path.write_bytes(bytes(1000) + bytes([index]) * 144)
        headers.append(header(float(index), path=str(path)))
    twin = tmp_path / "twin"
    twin.write_bytes(bytes(1000) + bytes([2 if same else 77]) * 144)
    headers.append(header(2.0, path=str(twin), sop_uid="another"))
    series, (rejection,) = assemble(headers)
    if same:
        assert len(series[0].headers) == 5
        assert rejection.reason is Reason.EXACT_DUPLICATE
        assert len(rejection.paths) == 1
    else:
        assert not series
        assert rejection.reason is Reason.CONFLICTING_DUPLICATES


@pytest.mark.parametrize(
    "change",
    [
        {"orientation": (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)},
        {"orientation": (1.0, 0.0, 0.0)},
        {"orientation": ()},
        {"pixel_spacing": ()},
        {"pixel_spacing": (0.0, 1.0)},
        {"position": (0.0, float("nan"), 0.0)},
    ],
)
def test_impossible_geometry_is_refused(change):
    _, rejections = assemble(stack(**change))
    assert {rejection.reason for rejection in rejections} == {Reason.INVALID_GEOMETRY}
    assert sum(len(rejection.paths) for rejection in rejections) in (1, 6)


def test_without_any_geometry_the_series_says_so():
    headers = [
        h._replace(position=(), orientation=(), instance_number=10 - i)
        for i, h in enumerate(stack())
    ]
    (series,), _ = assemble(headers)
    assert not series.geometry_known
    assert [h.instance_number for h in series.headers] == sorted(10 - i for i in range(6))


def test_every_file_is_in_exactly_one_place():
    headers = stack() + stack([0], series_uid="2") + stack([0, 1, 9, 10], series_uid="3")
    series, rejections = assemble(headers)
    seen = [path for s in series for path in s.paths] + [p for r in rejections for p in r.paths]
    assert sorted(seen) == sorted(h.path for h in headers)
