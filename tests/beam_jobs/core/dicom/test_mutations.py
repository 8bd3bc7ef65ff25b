"""Spoilt files: a short run of the harness, and the defects that its long runs have found."""

import multiprocessing
import random
import struct
import time
from io import BytesIO

import numpy as np
import pydicom
import pytest

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.mutations import __main__ as mutations_main
from tests.mutations import cases
from tests.mutations.bases import make_bases
from tests.mutations.layout import Layout
from tests.mutations.sequences import ON_SEQUENCES


def test_150_mutated_files_are_used_rightly_or_rejected(capsys, tmp_path):
    failed = mutations_main.main(["--count", "150", "--seed", "1", "--keep", str(tmp_path)])
    assert not failed, capsys.readouterr().out


@pytest.mark.slow  # 150 of the plain ones are tried quickly
def test_50_mutated_files_of_vendors_shapes_are_used_rightly_or_rejected(capsys, tmp_path):
    told = ["--bases", "vendors", "--count", "50", "--seed", "2", "--keep", str(tmp_path)]
    assert not mutations_main.main(told), capsys.readouterr().out


@pytest.mark.parametrize("kind", ON_SEQUENCES)
def test_every_way_to_spoil_a_sequence_changes_vendors_files(kind):
    changed = 0
    bases = make_bases("vendors")
    for seed, base in enumerate(bases):
        layout = Layout.of(base.files[0])
        ON_SEQUENCES[kind](layout, random.Random(seed))
        changed += layout.join() != base.files[0]
    assert changed >= len(bases) / 2 - (kind == "unknown")  # implicit files have no UN


@pytest.mark.parametrize("kind", ["close", "icon"])
def test_what_leaves_a_vendors_file_sound_is_read_as_before(kind):
    for base in make_bases("vendors"):
        layout = Layout.of(base.files[0])
        ON_SEQUENCES[kind](layout, random.Random(3))
        sound, changed = (pydicom.dcmread(BytesIO(d)) for d in (base.files[0], layout.join()))
        changed.pop(0x00880200, None)
        # Implicit, a private sequence of known length is bytes to who does not know its creator.
        sound.remove_private_tags()
        changed.remove_private_tags()
        assert sound == changed, base.name


def test_a_case_is_the_same_file_every_time(tmp_path):
    one, other = (cases.Bench(tmp_path) for _ in range(2))
    assert [one.draw(5, n) for n in range(50)] == [other.draw(5, n) for n in range(50)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "ZeroDivisionError"),
        ("allocate", "allocated"),
        ("warn", "warned"),
        ("lose", "neither in a series nor in a rejection"),
        ("wrong", "wrong values"),
    ],
)
def test_harness_notices(fault, message, tmp_path, monkeypatch):
    def faulty(paths):
        if fault == "raise":
            raise ZeroDivisionError
        if fault == "allocate":
            np.ones(2 << 20)
        if fault == "warn":
            np.float32(1e30) * np.float32(1e30)
        if fault == "lose":
            return [], []
        headers, rejections = index_files(paths)
        return [h._replace(slope=2.0) if fault == "wrong" else h for h in headers], rejections

    bench = cases.Bench(tmp_path)
    monkeypatch.setattr(cases, "mutate", lambda data, rng: (data, ["nothing"]))
    sound = bench.run(0, 0)
    assert (sound.failures, sound.verdict) == ([], "used")
    monkeypatch.setattr(cases, "index_files", faulty)
    assert any(message in failure for failure in bench.run(0, 0).failures)


def _hang_or_die(directory, monkeypatch, act):
    monkeypatch.setattr(cases, "CPU_KILL_S", 0.5)
    monkeypatch.setattr(cases.Bench, "run", lambda self, seed, index: act(index))
    monkeypatch.setattr(cases, "make_bases", lambda which: [])
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda _: multiprocessing.context.ForkContext()
    )
    return list(cases.outcomes(0, range(3)))


def test_a_hang_costs_one_case(tmp_path, monkeypatch):
    def act(index):
        while index == 1 and time.monotonic():
            pass
        return cases.Outcome(index=index)

    failures = [outcome.failures for outcome in _hang_or_die(tmp_path, monkeypatch, act)]
    assert failures == [[], ["hung"], []]


def phantom(folder, **changes):
    spec = SeriesSpec(rows=8, columns=10, slices=3, **changes)
    return write_series(spec, folder, lambda xyz: 200 + np.rint(xyz[..., 0])).paths


def rewrite(paths, change):
    for path in paths:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def reasons(paths):
    headers, rejections = index_files(map(str, paths))
    series, refused = assemble(headers)
    for stack in series:
        try:
            load_volume(stack)
        except RejectedError as error:
            return {error.reason}
    return {each.reason for each in rejections + refused}


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (0x00280008, b"inf ", Reason.CORRUPT_HEADER),
        (0x00280008, b"-3", Reason.CORRUPT_HEADER),
        (0x00280008, b"1e-30 ", Reason.CORRUPT_HEADER),
        (0x00280101, struct.pack("<H", 60_000), Reason.CORRUPT_HEADER),
        (0x00280100, struct.pack("<H", 8), Reason.CORRUPT_HEADER),
        (0x00281053, b"1e308 ", Reason.CORRUPT_HEADER),
        (0x00281052, b"9" * 40, Reason.CORRUPT_HEADER),
        (0x00200032, b"1e308\\0\\0 ", Reason.INVALID_GEOMETRY),
        (0x00280030, b"4000\\4000 ", Reason.INVALID_GEOMETRY),
        (0x00280030, b"-1\\-1 ", Reason.INVALID_GEOMETRY),
    ],
)
def test_absurd_value_is_rejected_with_its_reason(tmp_path, tag, value, reason):
    paths = phantom(tmp_path, slope=0.5)
    for path in paths:
        layout = Layout.of(path.read_bytes())
        elements = {element.tag: element for element in layout.elements()}
        place = elements.get(tag) or next(e for t, e in elements.items() if t > tag)
        end = place.end if place.tag == tag else place.start
        vr = b"US" if len(value) == 2 and tag in (0x00280100, 0x00280101) else b"DS"
        layout.body[place.start : end] = layout.encode(tag, vr, value)
        path.write_bytes(layout.join())
    assert reasons(paths) == {reason}


def test_volume_of_metres_without_positions_is_rejected(tmp_path):
    paths = phantom(tmp_path)

    def change(dataset):
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.PixelSpacing = [2999, 2999]

    rewrite(paths, change)
    assert reasons(paths) == {Reason.INVALID_GEOMETRY}


def test_pixel_data_before_the_rescale_does_not_hide_it(tmp_path):
    paths = phantom(tmp_path, slope=0.5, intercept=-7.0)
    for path in paths:
        layout = Layout.of(path.read_bytes())
        elements = {element.tag: element for element in layout.elements()}
        pixels, intercept = elements[0x7FE00010], elements[0x00281052]
        layout.body[intercept.start : intercept.start] = layout.body[pixels.start :]
        path.write_bytes(layout.join())
    headers, _ = index_files(map(str, paths))
    assert {(header.slope, header.intercept) for header in headers} == {(0.5, -7.0)}


def test_panic_of_the_rle_decoder_is_a_rejection(tmp_path):
    (base,) = (base for base in make_bases() if base.name == "MR_small_RLE.dcm")
    paths = []
    for place, data in enumerate(base.files):
        path = tmp_path / f"{place}.dcm"
        at = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xe0\x7f\x10\x00") + 20) + 8
        # A literal run at the end of the first segment that is longer than the segment.
        spoilt = bytearray(data)
        (second,) = struct.unpack_from("<L", data, at + 8)
        spoilt[at + 64 : at + second] = b"\x7f" * (second - 64)
        path.write_bytes(spoilt)
        paths.append(path)
    headers, _ = index_files(map(str, paths))
    (series,), _ = assemble(headers)
    with pytest.raises(RejectedError) as caught:
        list(stored_slices(series.headers))
    assert caught.value.reason is Reason.UNDECODABLE_PIXELS
