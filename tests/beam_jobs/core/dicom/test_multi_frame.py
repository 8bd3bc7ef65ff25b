"""Enhanced multi-frame objects: frames to stacks, as dcm2niix has them."""

import random

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from beam_jobs.core.cohort.modality import modality_by_rules
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    assert_same_as_nifti,
    enhanced_dataset,
    group,
    image_dataset,
    read_stacks,
    read_volume,
    recipe_image,
    run_dcm2niix,
    save,
)

# For other makers dcm2niix puts the last frame's rescale on all, and joins echoes.
PHILIPS = "Philips Medical Systems"
OBLIQUE = [0.0, 0.9659258263, 0.2588190451, 0.0, 0.2588190451, -0.9659258263]


def images(count, bits=12):
    return [recipe_image(bits, turn=k).astype(np.uint16) for k in range(count)]


def place(k, **more):
    return group(PlanePositionSequence={"ImagePositionPatient": [1.0, 2.0, 2.0 * k]}, **more)


def write(path, groups, frames, syntax=uid.ExplicitVRLittleEndian, **attributes):
    attributes.setdefault("bits_stored", 12)
    return save(enhanced_dataset(groups, **attributes), path, syntax, frames)


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless, uid.RLELossless]
)
@pytest.mark.parametrize("sop_class", [uid.EnhancedMRImageStorage, uid.EnhancedCTImageStorage])
def test_frames_in_any_order_land_at_their_positions(tmp_path, syntax, sop_class):
    frames, order = images(7), [3, 6, 0, 5, 1, 4, 2]
    path = write(
        tmp_path / "m.dcm", [place(k) for k in order], [frames[k] for k in order], syntax,
        sop_class=sop_class,
    )  # fmt: skip
    volume = read_volume([path])
    assert np.array_equal(volume.array, np.stack(frames, axis=-1))
    assert volume.affine[:3, 3] == pytest.approx([1.0, 2.0, 0.0])


def test_oblique_frames_with_their_own_rescale_are_what_dcm2niix_makes(tmp_path):
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    frames = images(6)
    groups = [
        group(
            PlanePositionSequence={
                "ImagePositionPatient": [round(float(v), 6) for v in 3.0 * k * normal]
            },
            PixelValueTransformationSequence={
                "RescaleSlope": 1.5 + k, "RescaleIntercept": -10.0 * k, "RescaleType": "US",
            },
            FrameContentSequence={"DimensionIndexValues": [1, k + 1]},
        )
        for k in range(6)
    ]  # fmt: skip
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [1.5, 1.25], "SliceThickness": 3.0},
        PlaneOrientationSequence={"ImageOrientationPatient": OBLIQUE},
    )
    (tmp_path / "s").mkdir()
    path = write(tmp_path / "s" / "m.dcm", groups, frames, shared=shared, Manufacturer=PHILIPS)
    volume = read_volume([path])
    expected = [frames[k] * (1.5 + k) - 10.0 * k for k in range(6)]
    np.testing.assert_allclose(volume.array, np.stack(expected, axis=-1), rtol=1e-6)
    (image,) = run_dcm2niix(tmp_path / "s", tmp_path)
    assert_same_as_nifti(image, volume)


def test_ct_frames_with_one_rescale_are_what_dcm2niix_makes(tmp_path):
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.5], "SliceThickness": 2.0},
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelValueTransformationSequence={
            "RescaleSlope": 1.0, "RescaleIntercept": -1024.0, "RescaleType": "HU",
        },
    )  # fmt: skip
    path = write(
        tmp_path / "s" / "m.dcm", [place(k) for k in range(6)], images(6), shared=shared,
        sop_class=uid.EnhancedCTImageStorage,
    )  # fmt: skip
    volume = read_volume([path])
    assert volume.array.min() < 0
    (image,) = run_dcm2niix(tmp_path / "s", tmp_path)
    assert_same_as_nifti(image, volume)


def dimension_index(*tags):
    items = []
    for tag in tags:
        item = Dataset()
        item.DimensionIndexPointer = tag
        items.append(item)
    return items


def counted(k, t):
    return {
        "StackID": "1", "InStackPositionNumber": k + 1, "DimensionIndexValues": [1, k + 1, t + 1],
    }  # fmt: skip


# Macros of the frame at place k of repetition t.
def direction(orientation):
    item = Dataset()
    item.DiffusionGradientOrientation = orientation
    return item


KINDS = {
    "echoes": lambda k, t: {
        "MREchoSequence": {"EffectiveEchoTime": [10.0, 90.0][t]},
        "FrameContentSequence": {**counted(k, t)},
    },
    "temporal positions": lambda k, t: {
        "FrameContentSequence": {
            "TemporalPositionIndex": t + 1,
            **counted(k, t),
        }
    },
    "magnitude and phase": lambda k, t: {
        "MRImageFrameTypeSequence": {
            "FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
            "ComplexImageComponent": ["MAGNITUDE", "PHASE"][t],
        }
    },
    "real and imaginary by frame type": lambda k, t: {
        "MRImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "RI"[t]]}
    },
    "b values": lambda k, t: {"MRDiffusionSequence": {"DiffusionBValue": [0.0, 1000.0][t]}},
    "directions": lambda k, t: {
        "MRDiffusionSequence": {
            "DiffusionBValue": 1000.0,
            "DiffusionGradientDirectionSequence": [direction([1.0, 0.0, float(t)])],
        }
    },
    "stack ids": lambda k, t: {"FrameContentSequence": {"StackID": str(t + 1)}},
    "acquisition numbers": lambda k, t: {"FrameContentSequence": {"FrameAcquisitionNumber": t + 1}},
    "dimension index values": lambda k, t: {
        "FrameContentSequence": {"DimensionIndexValues": [1, k + 1, t + 1]}
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_several_stacks_in_one_file_are_split(tmp_path, kind):
    frames = images(12)
    tagged = [(k, t) for k in range(6) for t in range(2)]
    random.Random(1).shuffle(tagged)
    path = write(
        tmp_path / "m.dcm",
        [place(k, **KINDS[kind](k, t)) for k, t in tagged],
        [frames[6 * t + k] for k, t in tagged],
        DimensionIndexSequence=dimension_index(0x00209056, 0x00209057, 0x00189087),
    )
    stacks = read_stacks([path])
    assert len(stacks) == 2
    found = sorted((load_volume(stack).array for stack in stacks), key=lambda array: array[0, 0, 0])
    for at, array in zip((0, 6), found, strict=True):
        assert np.array_equal(array, np.stack(frames[at : at + 6], axis=-1))


@pytest.mark.parametrize("kind", ["echoes", "temporal positions"])
def test_split_stacks_are_the_volumes_of_dcm2niix(tmp_path, kind):
    frames = images(12)
    tagged = [(k, t) for t in range(2) for k in range(6)]
    path = write(
        tmp_path / "s" / "m.dcm",
        [place(k, **KINDS[kind](k, t)) for k, t in tagged],
        [frames[6 * t + k] for k, t in tagged],
        DimensionIndexSequence=dimension_index(0x00209056, 0x00209057, 0x00209128),
        Manufacturer=PHILIPS,
    )
    volumes = [load_volume(stack) for stack in read_stacks([path])]
    found = run_dcm2niix(tmp_path / "s", tmp_path)
    theirs = [
        (image, t if image.ndim == 4 else None)
        for image in found
        for t in range(image.shape[3] if image.ndim == 4 else 1)
    ]
    assert len(theirs) == len(volumes) == 2
    for volume, (image, frame) in zip(volumes, theirs, strict=True):
        assert_same_as_nifti(image, volume, frame)


@pytest.mark.parametrize("missing", ["all", "one"])
def test_frames_without_a_position_are_refused(tmp_path, missing):
    groups = [group() if missing == "all" or k == 2 else place(k) for k in range(4)]
    path = write(tmp_path / "m.dcm", groups, images(4), ImagePositionPatient=[0, 0, 0])
    _, (rejection,) = index_files([path])
    assert rejection.reason is Reason.NOT_AN_IMAGE_PLANE


@pytest.mark.parametrize("sop_class", [uid.MRImageStorage, uid.NuclearMedicineImageStorage])
def test_classic_multi_frame_without_groups_is_refused(tmp_path, sop_class):
    dataset = image_dataset(rows=36, columns=40, bits_stored=12, sop_class=sop_class)
    dataset.NumberOfFrames = 4
    path = save(dataset, tmp_path / "m.dcm", uid.ExplicitVRLittleEndian, images(4))
    _, (rejection,) = index_files([path])
    assert rejection.reason is Reason.NOT_AN_IMAGE_PLANE


@pytest.mark.parametrize("count", [3, 5])
def test_wrong_number_of_frames_is_refused(tmp_path, count):
    dataset = enhanced_dataset([place(k) for k in range(4)], bits_stored=12)
    dataset.NumberOfFrames = count
    path = save(dataset, tmp_path / "m.dcm", uid.ExplicitVRLittleEndian, images(4))
    _, (rejection,) = index_files([path])
    assert rejection.reason in (Reason.CORRUPT_HEADER, Reason.TRUNCATED_PIXELS)


def test_spacing_of_neither_frame_nor_shared_group_is_refused(tmp_path):
    shared = group(PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]})
    path = write(tmp_path / "m.dcm", [place(k) for k in range(4)], images(4), shared=shared)
    headers, unread = index_files([path])
    assert not unread
    _, (rejection,) = assemble(headers)
    assert rejection.reason is Reason.INVALID_GEOMETRY


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize("same", [True, False])
def test_frames_at_one_place_are_duplicates_by_their_own_pixels(tmp_path, syntax, same):
    """However far apart in the file: here 251 frames."""
    frames = [np.full((4, 4), k, np.uint16) for k in range(251)]
    groups = [place(k) for k in range(251)]
    path = write(
        tmp_path / "m.dcm", [*groups, place(0)], [*frames, frames[0 if same else 1]], syntax,
        rows=4, columns=4,
    )  # fmt: skip
    series, rejections = assemble(index_files([path])[0])
    reason = Reason.EXACT_DUPLICATE if same else Reason.CONFLICTING_DUPLICATES
    assert [rejection.reason for rejection in rejections] == [reason]
    assert [len(stack.headers) for stack in series] == [251 if same else 250]


def test_frames_say_how_they_were_made_as_classic_images_do(tmp_path):
    timing = {
        "MRTimingAndRelatedParametersSequence": {"RepetitionTime": 9000.0, "FlipAngle": 90.0},
        "MREchoSequence": {"EffectiveEchoTime": 120.0},
        "MRModifierSequence": {"InversionTimes": [2500.0]},
    }
    agent = Dataset()
    agent.CodeMeaning = "Gadobutrol"
    path = write(
        tmp_path / "m.dcm", [place(k, **timing) for k in range(3)], images(3),
        EchoPulseSequence="SPIN", InversionRecovery="YES", EchoPlanarPulseSequence="NO",
        PulseSequenceName="*spcir_278ns", ContrastBolusAgentSequence=[agent],
    )  # fmt: skip
    headers, _ = index_files([path])
    assert {
        (h.scanning_sequence, h.inversion_time, h.contrast_agent, h.pulse_sequence_name)
        for h in headers
    } == {(("SE", "IR"), 2500.0, "Gadobutrol", "*spcir_278ns")}
    (series,), _ = assemble(headers)
    assert modality_by_rules(series, ()) == "FLAIR"
    path = write(
        tmp_path / "e.dcm", [place(k, **timing) for k in range(3)], images(3),
        EchoPulseSequence="BOTH", EchoPlanarPulseSequence="YES",
    )  # fmt: skip
    headers, _ = index_files([path])
    assert headers[0].scanning_sequence == ("SE", "GR", "EP")
