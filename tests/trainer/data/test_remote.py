"""Datasets in a store, against emulators over sockets; in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_dataset
from tests.stores import Emulator, gs, s3

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]

# What a dataset gives, and what reading it ends in: [patients, digest of all voxels].
READ = """
import json, sys, zlib
from trainer.data.records import open_records
from beam_jobs.core.manifest import read_manifest
def read(data, **options):
    records = open_records(data, read_manifest(data), [0, 1], modalities=("T1w",), **options)
    batches = records.training_batches(batch_size=3, seed=5, epochs=2).as_numpy_iterator()
    names, digest = [], 0
    for batch in batches:
        names += [name.decode() for name in batch["patient_id"]]
        digest = zlib.crc32(batch["volume"].tobytes(), digest)
    records.close()
    return names, digest
def outcome(data, **options):
    try:
        return read(data, **options)
    except Exception as error:
        return type(error).__name__, str(error)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=12, folds=2, shards=2, modalities=("T1w",))
    return directory


@pytest.fixture(
    scope="module", params=[pytest.param(s3, marks=pytest.mark.slow), gs], ids=["s3", "gs"]
)
def store(request: pytest.FixtureRequest, dataset: Path):
    with request.param() as running:
        running.upload(dataset, "dataset")
        running.upload(dataset, "damaged")
        running.upload(dataset, "denied")
        name = next(dataset.glob("fold-1-00000*")).name
        running.put(f"damaged/{name}", (dataset / name).read_bytes()[:-4] + b"\0\0\0\0")
        running.front.fault = lambda method, path: 403 if "/denied/" in path else None
        yield running


def _run(store: Emulator, code: str, *argv: str) -> list[list[Any]]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", READ + code, *argv],
        capture_output=True,
        text=True,
        env={**environment, **store.environment, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    assert done.returncode == 0, done.stderr
    rows: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.slow
def test_a_stores_dataset_reads_as_a_local_one_and_errors_are_one_line(
    store: Emulator, dataset: Path
) -> None:
    store.front.requests.clear()
    code = """
base = sys.argv[1]
print(json.dumps([
    read(base + "/dataset", cache="memory"),
    read(base + "/dataset", cache="file"),
    outcome(base + "/nothing"),
    outcome(base.replace("voxelbeam-test", "no-such-bucket") + "/dataset"),
    outcome(base + "/damaged"),
    outcome(base + "/denied"),
    outcome(base + "/dataset", cache="none"),
    read(sys.argv[2]),
]))"""
    answers = _run(store, code, store.path(), str(dataset))
    in_memory, in_file, nothing, no_bucket, damaged, denied, uncached, local = answers
    assert in_memory == in_file == local
    assert len(set(local[0])) == 12
    assert len(local[0]) == 24
    lost = "no manifest.json: no dataset, or its conversion is not done, or there is no such bucket"
    assert nothing == ["UsageError", f"{store.path('nothing')}: {lost}"]
    assert no_bucket == ["UsageError", f"{store.scheme}://no-such-bucket/dataset: {lost}"]
    assert damaged[0] == "ContractError"
    name = next(dataset.glob("fold-1-00000*")).name
    assert damaged[1].startswith(
        f"shards with a wrong hash or count: {store.path('damaged', name)} (corrupt record at byte "
    )
    assert denied[0] == "StoreError"
    assert denied[1].startswith(f"{store.path('denied')}/manifest.json: access denied")
    assert uncached[0] == "UsageError"
    assert not [line for _, line in (nothing, no_bucket, damaged, denied) if "\n" in line]
    fetched = Counter(
        request.path
        for request in store.front.requests
        if request.method == "GET" and "/dataset/fold-" in request.path
    )
    # Once to memory and once to the file, not once an epoch or a record.
    assert len(fetched) == 4
    assert set(fetched.values()) == {2}
