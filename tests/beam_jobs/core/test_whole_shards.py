"""A shard is what the manifest says, or nobody's: every command that reads records says so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from beam_jobs import api, verify
from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import Manifest, read_manifest
from beam_jobs.core.tfrecord import inspect_shard, read_shard
from beam_jobs.report import __main__ as report_command
from tests.datasets import write_dataset


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_dataset(tmp_path / "d", patients=8, folds=2)


def _damage(directory: Path, kind: str) -> tuple[Path, str]:
    """Damages the second shard; gives it, and what is said of it."""
    first, shard, *_ = sorted(directory.glob("*.tfrecord"))
    content = bytearray(shard.read_bytes())
    if kind == "emptied":
        shard.write_bytes(b"")
        return shard, "0 bytes, the manifest says"
    if kind == "appended":
        shard.write_bytes(bytes(content) + first.read_bytes())
        return shard, f"{shard.stat().st_size} bytes, the manifest says"
    if kind == "flipped":
        content[100] ^= 1
        shard.write_bytes(bytes(content))
        return shard, "corrupt record at byte"
    if kind == "another fold's":
        shard.write_bytes(first.read_bytes())
        return shard, "records and manifest differ: record 1 is of patient"
    assert kind == "other voxels"
    write_dataset(directory.parent / "other", patients=8, folds=2, seed=1)
    shard.write_bytes((directory.parent / "other" / shard.name).read_bytes())
    return shard, "sha256 [0-9a-f]{64}, the manifest says"


KINDS = ["emptied", "appended", "flipped", "another fold's", "other voxels"]


def test_a_sound_shard_is_read(tmp_path: Path, manifest: Manifest) -> None:
    for entry in manifest.shards:
        cases = list(read_shard(tmp_path / "d", entry, manifest.schema))
        assert [case.patient_id for case in cases] == [one.patient_id for one in entry.patients]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_another_is_refused_in_one_line(
    tmp_path: Path, manifest: Manifest, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shard, said = _damage(tmp_path / "d", kind)
    for command in (
        lambda: report_command.main([str(shard.parent)]),
        lambda: list(api.Dataset(path=str(shard.parent), manifest=manifest).cases()),
    ):
        with pytest.raises(ContractError, match=f"{shard.name}: {said}") as caught:
            command()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "d" / "report.html").exists()
    with pytest.raises(cli.CommandError, match="faults"):
        verify.main([str(shard.parent), "--workers", "1"])
    assert re.search(f"{shard.name}: {said}", capsys.readouterr().err)


def test_no_more_is_read_than_the_manifest_says(tmp_path: Path, manifest: Manifest) -> None:
    entry = manifest.shards[0]
    shard = tmp_path / "d" / entry.name
    with shard.open("ab") as stream:
        stream.truncate(1 << 40)  # a hole of a terabyte
    found = list(inspect_shard(tmp_path / "d", entry, manifest.schema))
    assert [fault for fault in found if isinstance(fault, str)] == [
        f"{1 << 40} bytes, the manifest says {entry.bytes}"
    ]


def test_a_shard_of_fewer_records_than_listed_is_refused(
    tmp_path: Path, manifest: Manifest
) -> None:
    first, *rest = manifest.shards
    more = dataclasses.replace(first, patients=(*first.patients, *rest[0].patients))
    with pytest.raises(ContractError, match=f"4 records, not the {more.count} of the manifest"):
        list(read_shard(tmp_path / "d", more, manifest.schema))
    assert read_manifest(tmp_path / "d") == manifest
