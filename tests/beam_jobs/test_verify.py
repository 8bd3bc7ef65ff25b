"""Verification finds every fault that a dataset can have, and names it."""

import dataclasses

import pytest

from beam_jobs import verify
from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.convert import second_decoder
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.report import __main__ as report
from tests.datasets import make_cases, write_cases


@pytest.fixture
def dataset(tmp_path):
    spec = PreprocessSpec(modalities=("T1w",), shape=(8, 8, 4))
    cases = make_cases(spec.schema, patients=6, folds=2)
    write_cases(tmp_path / "d", cases, spec.schema, folds=2, spec=spec.to_json())
    return tmp_path / "d"


def run(dataset) -> int:
    return verify.main([str(dataset), "--workers", "1"])


def test_sound_dataset_is_sound(dataset, capsys):
    assert run(dataset) == cli.EXIT_OK
    printed = capsys.readouterr().out
    assert " 6 records in " in printed
    assert "all as the manifest says" in printed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", "corrupt record"),
        ("cut", "truncated"),
        ("remove", "does not exist"),
        ("stray", "not in the manifest"),
        ("label", "not the"),
        ("schema", "dtype"),
    ],
)
def test_every_fault_is_named(dataset, capsys, damage, message):
    path = dataset / "manifest.json"
    manifest = Manifest.loads(path.read_text())
    shard = dataset / manifest.shards[0].name
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[60] ^= 1
        shard.write_bytes(bytes(data))
    elif damage == "cut":
        shard.write_bytes(bytes(data[:-20]))
    elif damage == "remove":
        shard.unlink()
    elif damage == "stray":
        (dataset / "fold-7-00000-of-00001.tfrecord").write_bytes(b"")
    elif damage == "label":
        first, *rest = manifest.shards
        one, *others = first.patients
        assert isinstance(one.label, int)
        swapped = dataclasses.replace(one, label=1 - one.label)
        first = dataclasses.replace(first, patients=(swapped, *others))
        path.write_text(dataclasses.replace(manifest, shards=(first, *rest)).dumps())
    else:
        schema = dataclasses.replace(manifest.schema, dtype="uint16")
        path.write_text(dataclasses.replace(manifest, schema=schema).dumps())
    with pytest.raises(cli.CommandError, match="faults"):
        run(dataset)
    assert message in capsys.readouterr().err


def test_directory_without_manifest_is_no_dataset(tmp_path):
    with pytest.raises(cli.UsageError, match=r": no manifest\.json"):
        run(tmp_path)


def old_dataset(directory):
    """One whose volumes were made by recipe 1, and its schema."""
    spec = {**PreprocessSpec(modalities=("T1w",), shape=(8, 8, 4)).to_json(), "recipe": 1}
    current = PreprocessSpec(modalities=("T1w",), shape=(8, 8, 4)).schema
    schema = dataclasses.replace(current, spec_fingerprint=fingerprint(spec))
    write_cases(directory, make_cases(schema, patients=6, folds=2), schema, folds=2, spec=spec)


def test_dataset_of_an_earlier_recipe_is_verified_and_reported(tmp_path, capsys):
    old_dataset(tmp_path / "d")
    assert run(tmp_path / "d") == cli.EXIT_OK
    assert "all as the manifest says" in capsys.readouterr().out
    assert report.main([str(tmp_path / "d"), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()


def test_dataset_of_an_earlier_recipe_is_held_against_no_input(tmp_path, monkeypatch):
    old_dataset(tmp_path / "d")
    monkeypatch.setattr(second_decoder, "load_decoder", lambda: object())
    with pytest.raises(ContractError, match=r"--against .*recipe 1, .*recipes 2 and 3: convert"):
        verify.main([str(tmp_path / "d"), "--workers", "1", "--against", str(tmp_path)])
