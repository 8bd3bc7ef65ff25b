"""The same bytes whatever order the files come in and however they are dealt out to workers.

Two processes against one: test_conversion.py. Flink: test_flink.py.
"""

import random
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.common.files import interface
from beam_jobs.convert import transforms
from beam_jobs.core.preprocess import DEFAULT_MODALITIES
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests.kills import files


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(patients=6, test_patients=1, seed=5, matrix=(32, 40), slices=(12, 16))
    write_cohort(config, root)
    (root / "train" / "note.txt").write_text("no image")
    return root


def convert(cohort: Path, output: Path) -> dict[str, bytes]:
    argv = [
        *("--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")),
        *("--output", str(output), "--shape", "24,24,8", "--patients_per_shard", "2", "--quiet"),
    ]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    return files(output)


@pytest.fixture(scope="module")
def reference(cohort, tmp_path_factory) -> dict[str, bytes]:
    return convert(cohort, tmp_path_factory.mktemp("reference") / "d")


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffled_input_order_gives_the_same_bytes(cohort, reference, tmp_path, monkeypatch, seed):
    listing_of, orders = interface.listing, []

    def shuffled(root: str):
        entries, left_out = listing_of(root)
        random.Random(seed).shuffle(entries)
        orders.append([entry.path for entry in entries])
        return interface.Listing(entries, left_out)

    monkeypatch.setattr(interface, "listing", shuffled)
    found = convert(cohort, tmp_path / "d")
    assert orders
    assert orders[0] != sorted(orders[0])
    assert found == reference


def test_files_dealt_out_in_other_chunks_give_the_same_bytes(
    cohort, reference, tmp_path, monkeypatch
):
    monkeypatch.setattr(transforms, "_FILES_AT_ONCE", 5)
    source = transforms.Input(root=str(cohort / "train"), modalities=DEFAULT_MODALITIES)
    assert max(len(transforms.unpack(one).files) for one in transforms._chunks(source)) == 5
    assert convert(cohort, tmp_path / "d") == reference
