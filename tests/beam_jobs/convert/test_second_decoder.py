"""DCMTK, by tensorflow-io, holds every stored sample against our own reader."""

import functools
import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid

from beam_jobs import dicom_to_tfrecord, verify
from beam_jobs.common import cli
from beam_jobs.convert import second_decoder
from beam_jobs.convert.second_decoder import Verdict
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.manifest import read_manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.dicom_files import (
    NATIVE_SYNTAXES,
    codestream,
    enhanced_dataset,
    group,
    save,
    write_slices,
)
from tests.mosaics import write_mosaic
from tests.pixel_files import ENCODABLE, SMALL, frames_of, short

pytestmark = pytest.mark.slow  # TensorFlow's import


@pytest.fixture(scope="module")
def decode() -> second_decoder.Decoder:
    return second_decoder.load_decoder()


def verdicts(paths, decode) -> list[Verdict]:
    headers, rejections = index_files(map(str, paths))
    assert not rejections
    return [item.verdict for item in second_decoder.compare(headers, decode)]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("depth", [(8, 8), (16, 12), (16, 16)], ids=str)
@pytest.mark.parametrize("syntax", [*NATIVE_SYNTAXES, *ENCODABLE], ids=short)
def test_both_decoders_agree_on_every_lossless_syntax(tmp_path, decode, syntax, depth, signed):
    allocated, stored = depth
    frames = frames_of(allocated, stored, signed=signed)
    paths = write_slices(
        tmp_path, frames, syntax, bits_allocated=allocated, bits_stored=stored, signed=signed
    )
    assert verdicts(paths, decode) == [Verdict.SAME] * 3


def test_sign_rescale_and_inversion_are_taken_out_first(tmp_path, decode):
    spec = SeriesSpec(
        rows=20, columns=24, slices=3, signed=True, bits_stored=12, slope=0.37, intercept=-300.5
    )
    paths = write_series(spec, tmp_path, lambda xyz: xyz[..., 0] * 3 - 300.5).paths
    dataset = pydicom.dcmread(paths[0])
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(paths[0])
    assert verdicts(paths, decode) == [Verdict.SAME] * 3


def test_frames_of_one_file_are_compared_each(tmp_path, decode):
    groups = [
        group(PlanePositionSequence={"ImagePositionPatient": [0.0, 0.0, 2.0 * number]})
        for number in range(3)
    ]
    frames = frames_of(16, 16)
    dataset = enhanced_dataset(groups, rows=frames[0].shape[0], columns=frames[0].shape[1])
    path = save(dataset, tmp_path / "a.dcm", uid.ExplicitVRLittleEndian, frames)
    assert verdicts([path], decode) == [Verdict.SAME] * 3


def test_tiles_of_a_mosaic_are_compared_each(tmp_path, decode):
    path = write_mosaic(tmp_path / "a.dcm", frames_of(16, 12))
    assert verdicts([path], decode) == [Verdict.SAME] * 3


def test_what_the_second_decoder_cannot_read_is_no_fault(tmp_path, decode, capfd):
    high = write_slices(
        tmp_path / "htj2k", [codestream("htj2k_u16")] * 2, uid.HTJ2KLossless, **SMALL
    )
    wide = write_slices(
        tmp_path / "wide",
        frames_of(32, 20)[:2],
        uid.ExplicitVRLittleEndian,
        bits_allocated=32,
        bits_stored=20,
    )
    assert verdicts([*high, *wide], decode) == [Verdict.NOT_DECODABLE] * 4
    assert capfd.readouterr().err == ""


def _sides(xyz, shift):
    return np.abs(xyz[..., 0]) + shift


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, Path]:
    """Two patients' T1w, and what the conversion makes of them."""
    root = tmp_path_factory.mktemp("against")
    for number, patient in enumerate(("00001", "00002")):
        spec = SeriesSpec(modality="T1w", rows=20, columns=24, slices=6)
        write_series(
            spec,
            root / "train" / patient / "T1w",
            functools.partial(_sides, shift=number),
            patient_id=patient,
        )
    argv = ["--input", str(root / "train"), "--output", str(root / "d"), "--shape", "8,8,4"]
    argv += ["--modalities", "T1w", "--no_report", "--quiet"]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    return root / "train", root / "d"


def test_verify_samples_the_input_by_a_seed(dataset, capfd):
    train, directory = dataset
    argv = [str(directory), "--workers", "1", "--against", str(train), "--samples", "5"]
    assert verify.main(argv) == cli.EXIT_OK
    printed = capfd.readouterr()
    assert "slices      5 decoded again by DCMTK: 5 the same" in printed.out
    assert printed.err == ""
    spec = PreprocessSpec.from_json(read_manifest(directory).spec)
    chosen = [
        second_decoder.sample_slices(str(train), spec, count=5, seed=seed) for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(second_decoder.sample_slices(str(train), spec, count=200, seed=0)) == 12


def test_other_samples_are_a_fault_with_the_files_name(dataset, tmp_path, capsys, monkeypatch):
    train, directory = dataset
    decode = second_decoder.load_decoder()

    def damaged(data: bytes):
        frames = decode(data).copy()
        frames[0, 3, 4] += 1
        return frames

    monkeypatch.setattr(second_decoder, "load_decoder", lambda: damaged)
    with pytest.raises(cli.CommandError, match=r"3 faults in .* and 3 slices"):
        verify.main([str(directory), "--workers", "1", "--against", str(train), "--samples", "3"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(".dcm: 1 of 480 pixels are others by DCMTK") for line in lines)


def test_where_nothing_could_be_decoded_twice_nothing_is_called_sound(dataset, monkeypatch):
    train, directory = dataset
    monkeypatch.setattr(second_decoder, "load_decoder", lambda: lambda data: np.empty(0))
    argv = [str(directory), "--workers", "1", "--against", str(train), "--samples", "3"]
    message = "nothing was checked, 3 slices: 3 not decodable there"
    with pytest.raises(cli.CommandError, match=message):
        verify.main(argv)


def test_only_the_datasets_patients_are_sampled_and_another_input_is_refused(
    dataset, tmp_path, capsys
):
    train, directory = dataset
    argv = [str(directory), "--workers", "1", "--against", str(tmp_path)]
    spec = SeriesSpec(modality="T1w", rows=20, columns=24, slices=6)
    write_series(
        spec,
        tmp_path / "00009" / "T1w",
        functools.partial(_sides, shift=9),
        patient_id="00009",
    )
    with pytest.raises(cli.UsageError, match="holds none of the dataset's patients"):
        verify.main(argv)
    shutil.copytree(train / "00002", tmp_path / "2")  # leading zeros do not count
    assert verify.main(argv) == cli.EXIT_OK
    assert "slices      6 decoded again by DCMTK: 6 the same" in capsys.readouterr().out


def test_input_without_the_recipes_series_and_a_missing_decoder_are_one_line(
    dataset, tmp_path, monkeypatch
):
    train, directory = dataset
    shutil.copytree(train / "00001" / "T1w", tmp_path / "00001" / "T2w")
    for where, message in ((tmp_path, "holds no series of T1w"), ("nowhere", "is not a directory")):
        with pytest.raises(cli.UsageError, match=message):
            verify.main([str(directory), "--workers", "1", "--against", str(where)])
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(cli.CommandError, match="second decoder does not load") as found:
        verify.main([str(directory), "--against", str(train)])
    assert "\n" not in str(found.value)
