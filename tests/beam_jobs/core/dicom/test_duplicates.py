"""Copies of images cost nothing, wherever and however they are stored."""

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.dicom.duplicates import Fingerprint, Fingerprints
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    encode_frame,
    enhanced_dataset,
    group,
    recipe_image,
    save,
    write_slices,
)
from tests.mosaics import write_mosaic

COMPRESSED = [uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless]
PLACES = 6


def images(count):
    return [recipe_image(12, turn=k).astype(np.uint16) for k in range(count)]


def write_series(folder, count=PLACES, change=lambda dataset, index: None, **attributes):
    attributes.setdefault("bits_stored", 12)
    return write_slices(folder, images(count), change=change, **attributes)


def write_time_series(folder, repetitions=10, **elements):
    """Files of a series that images every place several times; `elements` of each repetition."""

    def change(dataset, index):
        repetition, place = divmod(index, PLACES)
        dataset.ImagePositionPatient = [-20.0, -30.0, 2.0 * place]
        for keyword, value in elements.items():
            setattr(dataset, keyword, value(repetition))

    return write_series(folder, PLACES * repetitions, change)


def copy_as(path: Path, target: Path, **changes) -> Path:
    """A copy of a file, with other elements, or in another transfer syntax."""
    target.parent.mkdir(parents=True, exist_ok=True)
    syntax = changes.pop("syntax", None)
    if not changes and syntax is None:
        shutil.copy(path, target)
        return target
    dataset = pydicom.dcmread(path)
    samples = dataset.pixel_array
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    syntax = syntax or dataset.file_meta.TransferSyntaxUID
    if "SOPInstanceUID" in changes:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return save(dataset, target, syntax, [samples])


def assembled(paths):
    headers, unread = index_files(map(str, paths))
    assert not unread
    return assemble(headers)


def reasons(rejections):
    return {rejection.reason: len(rejection.paths) for rejection in rejections}


@pytest.mark.parametrize(
    "elements",
    [
        {"AcquisitionNumber": lambda t: t + 1},
        {"TemporalPositionIdentifier": lambda t: t + 1},
        {"DiffusionGradientOrientation": lambda t: [float(t), 1.0, 0.0]},
        {},
    ],
    ids=["acquisition number", "temporal position", "direction", "instance number"],
)
def test_one_copied_file_of_a_time_series_costs_nothing(tmp_path, elements):
    paths = write_time_series(tmp_path / "s", **elements)
    twin = copy_as(paths[13], tmp_path / "s" / "copy of 14.dcm")
    series, rejections = assembled([*paths, twin])
    assert [len(stack.headers) for stack in series] == [PLACES] * 10
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 1}


def test_a_series_stored_several_times_in_several_directories_is_one(tmp_path):
    paths = write_series(tmp_path / "first")
    copies = [copy_as(path, tmp_path / "second" / f"IM{k}") for k, path in enumerate(paths)]
    copies += [copy_as(path, tmp_path / "third" / path.name) for path in copies]
    (series,), rejections = assembled([*copies, *paths])
    assert sorted(series.paths) == [str(path) for path in paths]
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 2 * PLACES}


@pytest.mark.parametrize("native_first", [True, False])
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_native_and_compressed_are_one_image_and_the_native_one_is_read(
    tmp_path, syntax, native_first
):
    paths = write_series(tmp_path / "m")
    folder = tmp_path / ("z" if native_first else "a")
    compressed = [copy_as(path, folder / path.name, syntax=syntax) for path in paths]
    (series,), rejections = assembled([*paths, *compressed])
    assert sorted(series.paths) == [str(path) for path in paths]
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: PLACES}
    assert np.array_equal(load_volume(series).array, np.stack(images(PLACES), axis=-1))


def test_a_series_half_of_which_is_there_compressed_only(tmp_path):
    paths = write_time_series(tmp_path / "native", 3, AcquisitionNumber=lambda t: t)
    compressed = [
        copy_as(path, tmp_path / "compressed" / path.name, syntax=uid.JPEGLSLossless)
        for path in paths[2:]
    ]
    series, rejections = assembled([*paths[:9], *compressed])
    assert [len(stack.headers) for stack in series] == [PLACES] * 3
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 7}


def test_images_sent_again_under_other_names_are_copies(tmp_path):
    paths = write_series(tmp_path / "s")
    again = [
        copy_as(
            path, tmp_path / "again" / path.name, SOPInstanceUID=uid.generate_uid(),
            InstanceNumber=100 + k,
        )
        for k, path in enumerate(paths)
    ]  # fmt: skip
    for sent_again in (again[:1], again[2:4], again):
        series, rejections = assembled([*paths, *sent_again])
        assert [len(stack.headers) for stack in series] == [PLACES]
        assert reasons(rejections) == {Reason.EXACT_DUPLICATE: len(sent_again)}


BLANKED: dict[str, dict[str, Any]] = {
    "time": {"AcquisitionTime": ""},
    "description": {"SeriesDescription": ""},
    "maker": {"Manufacturer": ""},
    "b-value": {"DiffusionBValue": 0.0},
}


@pytest.mark.parametrize("count", [1, 3, PLACES - 1, PLACES])
@pytest.mark.parametrize("text", BLANKED)
def test_copies_whose_other_headers_were_changed_cost_nothing(tmp_path, text, count):
    def change(dataset, index):
        dataset.AcquisitionTime, dataset.Manufacturer = f"1200{index:02}.5", "SIEMENS"

    paths = write_series(tmp_path / "s", change=change, SeriesDescription="T1")
    copies = [
        copy_as(
            path, tmp_path / "c" / path.name, SOPInstanceUID=uid.generate_uid(), **BLANKED[text]
        )
        for path in paths[:count]
    ]
    (series,), rejections = assembled([*paths, *copies])
    assert len(series.headers) == PLACES
    assert set(reasons(rejections)) <= {Reason.EXACT_DUPLICATE, Reason.INCOMPLETE_REPETITION}


@pytest.mark.parametrize("again", [{}, {"SOPInstanceUID": "1.2.3.4"}], ids=["same", "other name"])
@pytest.mark.parametrize("position", [(-20.004, -30, 14), (-20, -30, 14.01)], ids=str)
def test_copies_may_lie_as_far_off_as_rounding_takes_them(tmp_path, position, again):
    paths = write_series(tmp_path / "s")
    copy = copy_as(paths[2], tmp_path / "c.dcm", ImagePositionPatient=list(position), **again)
    series, rejections = assembled([*paths, copy])
    assert [len(stack.headers) for stack in series] == [PLACES]
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 1}


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSNearLossless])
@pytest.mark.parametrize("chosen", [slice(0, PLACES), slice(1, 3)], ids=["all", "some"])
def test_of_one_image_with_and_without_loss_the_latter_is_read(tmp_path, syntax, chosen):
    paths = write_series(tmp_path / "z")
    lossy = [copy_as(path, tmp_path / "a" / path.name, syntax=syntax) for path in paths[chosen]]
    first = [stored.samples for header in index_files([str(lossy[0])])[0]
             for stored in stored_slices([header])]  # fmt: skip
    assert not np.array_equal(first[0], images(PLACES)[chosen][0])
    (series,), rejections = assembled([*paths, *lossy])
    assert sorted(series.paths) == [str(path) for path in paths]
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: len(lossy)}


@pytest.mark.parametrize("again_at", ["120500", "115500", None])
def test_a_slice_acquired_again_does_not_cost_the_series(tmp_path, again_at):
    """The later image is taken; where nothing tells which that is, the slice is left out."""

    def change(dataset, index):
        dataset.AcquisitionTime = f"1200{index:02}" if again_at else ""

    paths = write_series(tmp_path / "s", 12, change)
    dataset = pydicom.dcmread(paths[4])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.AcquisitionTime = again_at or ""
    again = save(dataset, tmp_path / "again.dcm", uid.ExplicitVRLittleEndian, images(30)[29:])
    (series,), (rejection,) = assembled([*paths, again])
    later = () if again_at is None else (again,) if again_at > "12" else (paths[4],)
    assert set(series.paths) == {str(path) for path in (*paths[:4], *later, *paths[5:])}
    assert rejection.reason is Reason.CONFLICTING_DUPLICATES
    assert len(rejection.paths) == 2 - len(later)


def test_thousands_of_copies_cost_no_quadratic_time(tmp_path, monkeypatch):
    def read(self, headers):
        for header in headers:
            self._known[header.path, header.frame] = Fingerprint(b"alike", blank=False)

    monkeypatch.setattr(Fingerprints, "read", read)
    (header,), _ = index_files([str(write_series(tmp_path)[0])])
    copies = [header._replace(path=f"{k}", position=(2.0 * k, 0.0, 0.0)) for k in range(9000)]
    start = time.perf_counter()
    assemble(copies)
    assert time.perf_counter() - start < 20  # 2 minutes when each was compared with all others


def test_black_slices_of_repetitions_are_no_copies(tmp_path):
    """Stripped of all but numbers, the empty ends of two repetitions are equal."""

    def change(dataset, index):
        dataset.ImagePositionPatient = [-20.0, -30.0, 2.0 * (index % PLACES)]

    frames = images(3 * PLACES)
    for t in range(3):
        frames[PLACES * t] = frames[PLACES * t + 5] = np.zeros_like(frames[0])
    paths = write_slices(tmp_path, frames, bits_stored=12, change=change)
    series, rejections = assembled(paths)
    assert [len(stack.headers) for stack in series] == [PLACES] * 3
    assert not rejections
    # One of them lost: that repetition is incomplete, and no other lends it a slice.
    series, rejections = assembled(paths[:6] + paths[7:])
    assert [len(stack.headers) for stack in series] == [PLACES] * 2
    assert reasons(rejections) == {Reason.INCOMPLETE_REPETITION: 5}


def test_one_name_and_other_pixels_contradict(tmp_path):
    paths = write_series(tmp_path / "s")
    dataset = pydicom.dcmread(paths[2])
    other = save(dataset, tmp_path / "other.dcm", uid.ExplicitVRLittleEndian, images(9)[8:])
    series, (rejection,) = assembled([*paths, other])
    assert not series
    assert rejection.reason is Reason.CONFLICTING_DUPLICATES
    assert rejection.detail.startswith("2 images have the SOPInstanceUID (0008,0018)")


def test_a_contradiction_costs_its_own_repetition_only(tmp_path):
    paths = write_time_series(tmp_path / "s", 4, AcquisitionNumber=lambda t: t)
    dataset = pydicom.dcmread(paths[8])
    other = save(dataset, tmp_path / "other.dcm", uid.ExplicitVRLittleEndian, images(99)[98:])
    series, rejections = assembled([*paths, other])
    assert [len(stack.headers) for stack in series] == [PLACES] * 3
    assert reasons(rejections) == {Reason.CONFLICTING_DUPLICATES: PLACES + 1}


def test_a_damaged_copy_costs_nothing(tmp_path):
    paths = write_series(tmp_path / "s")
    dataset = pydicom.dcmread(paths[1])
    damaged = save(
        dataset, tmp_path / "a.dcm", uid.JPEGLSLossless,
        [encode_frame(images(2)[1], uid.JPEGLSLossless, dataset)[:60] + b"\xff\xd9"],
    )  # fmt: skip
    (series,), (rejection,) = assembled([*paths, damaged])
    assert sorted(series.paths) == [str(path) for path in paths]
    assert rejection.paths == (str(damaged),)
    assert rejection.reason in (Reason.UNDECODABLE_PIXELS, Reason.TRUNCATED_PIXELS)


def test_copies_of_a_series_without_geometry_collapse_too(tmp_path):
    def change(dataset, index):
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    paths = write_series(tmp_path / "s", change=change)
    twin = copy_as(paths[3], tmp_path / "twin.dcm")
    (series,), rejections = assembled([*paths, twin])
    assert not series.geometry_known
    assert len(series.headers) == PLACES
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 1}


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless])
def test_a_file_of_many_frames_stored_twice_is_compared_frame_by_frame(tmp_path, syntax):
    groups = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0.0, 0.0, 2.0 * place]},
            FrameContentSequence={"FrameAcquisitionNumber": t + 1},
        )
        for t in range(3)
        for place in range(PLACES)
    ]
    dataset = enhanced_dataset(groups, bits_stored=12)
    path = save(dataset, tmp_path / "b.dcm", uid.ExplicitVRLittleEndian, images(3 * PLACES))
    twin = save(dataset, tmp_path / "a.dcm", syntax, images(3 * PLACES))
    series, rejections = assembled([path, twin])
    assert [len(stack.headers) for stack in series] == [PLACES] * 3
    kept = str(twin if syntax == uid.ExplicitVRLittleEndian else path)
    assert {stack.paths for stack in series} == {(kept,)}
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 1}


def test_mosaics_stored_twice_are_their_volumes_once(tmp_path):
    paths = [write_mosaic(tmp_path / f"{t}.dcm", images(9)[t : t + 6], number=t) for t in range(3)]
    copies = [copy_as(path, tmp_path / "again" / path.name) for path in paths]
    copies[0] = copy_as(paths[0], copies[0], syntax=uid.JPEGLSLossless)
    series, rejections = assembled([*copies, *paths])
    assert [stack.paths for stack in series] == [(str(path),) for path in paths]
    assert reasons(rejections) == {Reason.EXACT_DUPLICATE: 3}


def test_every_image_is_read_once_however_many_copies_there_are(tmp_path, monkeypatch):
    paths = write_series(tmp_path / "0")
    for k in range(1, 5):
        paths += [copy_as(path, tmp_path / str(k) / path.name) for path in paths[:PLACES]]
    opened: Counter[str] = Counter()

    def counting(path):
        opened[path] += 1
        return open_bytes(path)

    monkeypatch.setattr("beam_jobs.core.dicom.pixels.open_bytes", counting)
    headers, _ = index_files(map(str, paths))
    (series,), _ = assemble(headers)
    assert len(series.headers) == PLACES
    assert set(opened.values()) == {1}
    opened.clear()
    assemble(headers[:PLACES])
    assert not opened  # without copies nothing is read


def test_files_add_up_and_no_order_of_the_input_matters(tmp_path):
    paths = write_time_series(tmp_path / "s", 4, AcquisitionNumber=lambda t: t)
    paths += [copy_as(path, tmp_path / "c" / path.name) for path in paths[3:17]]
    paths += [
        copy_as(path, tmp_path / "j" / path.name, syntax=uid.RLELossless) for path in paths[:9]
    ]
    headers, _ = index_files(map(str, [*paths[1:20], *paths[22:]]))
    plan = plan_patient("1", headers, ["T1w"])
    assert sum(row.files for row in plan.rows) == len(headers)
    for seed in range(5):
        random.Random(seed).shuffle(headers)
        again = plan_patient("1", headers, ["T1w"])
        assert again.rows == plan.rows
