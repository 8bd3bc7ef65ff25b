"""Files = used + unused + rejected, with one damage of each kind and its own reason."""

import csv
import random
from collections import Counter

import pydicom
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig


def change(keyword, value):
    def damage(path):
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, value)
        dataset.save_as(path)

    return damage


def remove(keyword):
    def damage(path):
        dataset = pydicom.dcmread(path)
        delattr(dataset, keyword)
        dataset.save_as(path)

    return damage


def spoil_position(path):
    data = path.read_bytes()
    position = "\\".join(str(v) for v in pydicom.dcmread(path).ImagePositionPatient).encode()
    assert data.count(position) == 1
    path.write_bytes(data.replace(position, b"x" * len(position)))


def make_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


# What is done to one file of a series, and the reason that must be found for it; the series loses
# one slice and continues. The second group makes a stack of its own of the file.
FILE_DAMAGES = {
    "not_dicom": lambda path: path.write_bytes(b"text " * 100),
    "truncated_pixels": lambda path: path.write_bytes(path.read_bytes()[:-64]),
    "no_pixels": remove("PixelData"),
    "not_greyscale": change("PhotometricInterpretation", "RGB"),
    "burned_in_annotation": change("BurnedInAnnotation", "YES"),
    "unsupported_pixels": change("BitsAllocated", 24),
    "corrupt_header": spoil_position,
    "unreadable_file": make_dangling_link,
}
SERIES_DAMAGES = {
    "invalid_geometry": change("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
    "too_few_slices": change("ImageOrientationPatient", [0, 1, 0, 0, 0, -1]),
    "localizer": change("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("accounting")
    config = PhantomConfig(
        patients=8, test_patients=1, seed=5, matrix=(24, 28), slices=(20, 22), trouble_rate=0
    )
    write_cohort(config, root / "c")
    rng = random.Random(0)
    series = sorted(path for path in (root / "c" / "train").glob("*/*") if path.is_dir())
    rng.shuffle(series)
    expected = Counter[str]()
    for reason, damage in [*FILE_DAMAGES.items(), *SERIES_DAMAGES.items()]:
        for folder in (series.pop(), series.pop()):
            files = sorted(folder.iterdir())
            for path in rng.sample(files[3:-3], 1):
                damage(path)
                expected[reason] += 1
    total = sum(1 for path in (root / "c" / "train").rglob("*") if not path.is_dir())
    argv = ["--input", str(root / "c" / "train"), "--output", str(root / "d"), "--quiet"]
    assert dicom_to_tfrecord.main([*argv, "--shape", "16,16,8"]) == cli.EXIT_OK
    return root / "d", expected, total


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_sum_comes_out_even(converted):
    dataset, _, total = converted
    counts = Manifest.loads((dataset / "manifest.json").read_text()).counts["files"]
    assert sum(counts.values()) == total
    listed = Counter[str]()
    for row in rows(dataset / "series.csv"):
        listed[row["verdict"]] += int(row["files"])
    for row in rows(dataset / "rejects.csv"):
        if row["scope"] == "file":
            listed["rejected"] += int(row["files"])
    assert {verdict: listed[verdict] for verdict in counts} == counts


@pytest.mark.parametrize("reason", [*FILE_DAMAGES, *SERIES_DAMAGES])
def test_each_damage_has_its_own_reason(converted, reason):
    dataset, expected, _ = converted
    found = Counter[str]()
    for row in [*rows(dataset / "rejects.csv"), *rows(dataset / "series.csv")]:
        if row["reason"] == reason and row.get("scope") != "series":
            found[reason] += int(row["files"])
    assert found[reason] == expected[reason]


def test_sound_series_are_all_used(converted):
    dataset, _, _ = converted
    used = [row for row in rows(dataset / "series.csv") if row["verdict"] == "used"]
    assert len(used) == 8 * 4
