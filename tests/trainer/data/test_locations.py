"""Paths that are local or in a store: joined, read, and refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.core.manifest import MANIFEST_NAME
from tests.datasets import write_dataset
from trainer.data import locations


@pytest.mark.parametrize(
    ("directory", "joined"),
    [
        ("data", "data/a/b"),
        ("data/", "data/a/b"),
        ("/", "/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("gs://bucket/data//", "gs://bucket/data/a/b"),
    ],
)
def test_names_are_joined_with_one_slash(directory: str, joined: str) -> None:
    assert locations.join(directory, "a", "b") == joined


def test_local_files_are_read_without_tensorflow(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=4, folds=2)
    code = (
        "import sys; from trainer.data.locations import is_dir, read_bytes, size\n"
        "from beam_jobs.core.manifest import read_manifest\n"
        "data = sys.argv[1]\n"
        f"assert is_dir(data) and size(data + '/{MANIFEST_NAME}') > 0\n"
        f"assert len(read_bytes(data + '/{MANIFEST_NAME}')) > 0\n"
        "print(read_manifest(data).dataset_fingerprint)\n"
        "assert not {'tensorflow', 'tensorflow_io', 'keras'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == manifest.dataset_fingerprint


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        locations.read_bytes(str(tmp_path / "absent"))


def test_an_unknown_scheme_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"cannot read http://; known: local paths, gs://, s3://"):
        locations.read_bytes("http://host/dataset")


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ({"AWS_ENDPOINT_URL": "http://one"}, "http://one"),
        ({"AWS_ENDPOINT_URL": "http://one", "AWS_ENDPOINT_URL_S3": "http://two"}, "http://two"),
        ({"AWS_ENDPOINT_URL": "http://one", "S3_ENDPOINT": "three"}, "three"),
        ({}, None),
    ],
)
def test_boto3s_endpoint_reaches_tensorflow_io(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], endpoint: str | None
) -> None:
    monkeypatch.setattr(locations.os, "environ", dict(given))
    locations._settle_s3()
    assert os.environ.get("S3_ENDPOINT") == endpoint


def test_a_missing_tensorflow_io_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(CommandError) as caught:
        locations.read_bytes("az://account/box/data/manifest.json")
    told = str(caught.value)
    assert told.startswith("az://account/box/data/manifest.json: az:// needs tensorflow-io: ")
    assert "\n" not in told
