"""An output holds a conversion's files and no others: nobody else's is replaced or deleted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from beam_jobs.convert.ours import foreign_files, require_ours
from beam_jobs.core.manifest import read_manifest
from beam_jobs.phantoms.series import SeriesSpec, write_series

_SHARD = "fold-0-00000-of-00001.tfrecord"


def convert(source: Path, output: Path, *more: str) -> int:
    argv = ["--input", str(source), "--output", str(output), "--modalities", "T1w,T2w"]
    return dicom_to_tfrecord.main(
        [*argv, "--shape", "8,8,4", "--fov_mm", "48,48,24", "--quiet", "--no_report", *more]
    )


def write_patient(directory: Path, patient_id: str, modality: str = "T1w") -> None:
    spec = SeriesSpec(modality=modality, rows=16, columns=16, slices=6)
    write_series(spec, directory, lambda xyz: xyz[..., 0] ** 2, patient_id=patient_id)


def contents(root: Path) -> dict[str, bytes]:
    every = (path for path in sorted(root.rglob("*")) if path.is_file())
    found = (path for path in every if path.name != "lock")  # which has a time in it
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def put(output: Path, **named: str) -> None:
    for name, text in named.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients whose ids lead elsewhere, and one whose id does not."""
    root = tmp_path_factory.mktemp("heap")
    for number, patient_id in enumerate(("../../../victim/state", "../P2", ".P3", "P-1.2_3")):
        write_patient(root / f"s{number}", patient_id)
    return root


@pytest.fixture(scope="module")
def dataset(heap: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("npz") / "a"
    put(root, **{"victim/state.npz": "precious", "victim.npz": "precious"})
    assert convert(heap, root / "out" / "d", "--format", "npz") == cli.EXIT_OK
    return root / "out" / "d"


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "d")
    return tmp_path / "d"


def test_an_id_names_a_file_below_the_output_and_nowhere_else(dataset: Path) -> None:
    around = {
        name: data
        for name, data in contents(dataset.parents[1]).items()
        if not name.startswith("out/d/")
    }
    assert around == {"victim/state.npz": b"precious", "victim.npz": b"precious"}
    found = {str(path.relative_to(dataset)) for path in dataset.rglob("*.npz")}
    names = {files.file_name(one, ".npz") for one, _, _ in read_manifest(dataset).patients}
    assert found == {f"test/T1w/{name}" for name in names}
    assert "test/T1w/P-1.2_3.npz" in found
    assert np.load(dataset / "test/T1w/P-1.2_3.npz")["arr_0"].shape == (8, 8, 4)


def test_states_list_the_npz_files(dataset: Path) -> None:
    states = [json.loads(path.read_text()) for path in (dataset / ".state").glob("*.tfrecord.json")]
    listed = {name for state in states for name in state["npz"]}
    assert listed == {str(path.relative_to(dataset)) for path in dataset.rglob("*.npz")}
    assert foreign_files(str(dataset)) == []


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", ".hidden", "test/T1w/mine.npz", "train/T1w/deep/in/here.npz", "test/x"),
        *("test/T2w/P-1.2_3.npz", ".state/notes.json", ".state/a/b", "d/manifest.json", "a/.b/c"),
        *(f"{_SHARD}.json", f"{_SHARD}\n", "job.json", "test/T1w/mine.npz.0123456789ab.part"),
    ],
)
def test_a_foreign_file_anywhere_refuses_the_job(copy: Path, name: str) -> None:
    put(copy, **{name: "precious"})
    before = contents(copy)
    with pytest.raises(cli.UsageError, match="holds files that are no dataset: ") as caught:
        require_ours(str(copy))
    assert "\n" not in str(caught.value)
    assert "move them elsewhere" in str(caught.value)
    assert contents(copy) == before


@pytest.mark.parametrize("name", ["manifest.json", "series.csv", "report.html", _SHARD, "job.json"])
def test_our_names_alone_make_no_dataset(tmp_path: Path, name: str) -> None:
    put(tmp_path, **{name: '{"format": "of a web page"}'})
    with pytest.raises(cli.UsageError, match=name):
        require_ours(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_out_of_the_output_is_refused(copy: Path, tmp_path: Path) -> None:
    put(tmp_path / "victim", a="precious")
    for name in (".state", "test", "test/T1w", "train"):
        link = copy / name
        if link.exists():
            shutil.move(link, tmp_path / "aside")
        link.symlink_to(tmp_path / "victim")
        with pytest.raises(cli.UsageError, match=f"are a link, or cannot be listed: {name}/"):
            require_ours(str(copy))
        link.unlink()
        if (tmp_path / "aside").exists():
            shutil.move(tmp_path / "aside", link)
    assert foreign_files(str(copy)) == []


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    put(tmp_path, victim="precious")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"), files.lock(tmp_path / "lock", "held"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_that_is_another_file_too_is_not_written_to(tmp_path: Path) -> None:
    put(tmp_path, victim="precious")
    os.link(tmp_path / "victim", tmp_path / "lock")
    with files.lock(tmp_path / "lock", "held"):
        assert (tmp_path / "victim").read_text() == "precious"
        with pytest.raises(cli.CommandError, match="held"), files.lock(tmp_path / "lock", "held"):
            pass


def test_what_systems_leave_is_left(copy: Path) -> None:
    put(copy, **{".DS_Store": "x", "test/Thumbs.db": "x", "._series.csv": "x"})
    put(copy, **{".nfs00000000a1b2c3": "x", ".~lock.series.csv#": "x", "~$rejects.csv": "x"})
    assert foreign_files(str(copy)) == []


def test_halves_of_files_that_a_killed_run_left_are_ours(copy: Path) -> None:
    part = "0123456789ab.part"
    put(copy, **{f"manifest.json.{part}": "", f"test/T1w/P-1.2_3.npz.{part}": ""})
    put(copy, **{f"{_SHARD}.{part}.{part}": "", f".state/job.json.{part}": ""})
    assert foreign_files(str(copy)) == []


@pytest.mark.slow
def test_a_job_that_is_refused_writes_nothing(heap: Path, copy: Path) -> None:
    put(copy, **{"test/T1w/mine.npz": "precious"})
    before = contents(copy)
    for more in ((), ("--overwrite",), ("--overwrite", "--dtype", "uint16"), ("--format", "npz")):
        with pytest.raises(cli.UsageError, match=r"test/T1w/mine\.npz"):
            convert(heap, copy, *more)
    assert contents(copy) == before
    with pytest.raises(cli.UsageError, match="no dataset"):
        convert(heap, copy.parent)
    assert not (copy.parent / ".state").exists()


@pytest.mark.slow
def test_npz_files_of_patients_who_are_gone_are_removed(
    heap: Path, dataset: Path, copy: Path, tmp_path: Path
) -> None:
    smaller = tmp_path / "heap"
    shutil.copytree(heap, smaller)
    shutil.rmtree(smaller / "s3")
    write_patient(smaller / "s4", "P-9", "T2w")
    assert convert(smaller, copy, "--format", "npz") == cli.EXIT_OK
    found = {str(path.relative_to(copy)) for path in copy.rglob("*.npz")}
    assert "test/T1w/P-1.2_3.npz" not in found
    assert "test/T2w/P-9.npz" in found
    assert convert(heap, copy, "--format", "npz") == cli.EXIT_OK
    ours = {name: data for name, data in contents(copy).items() if ".state" not in name}
    assert ours == {n: data for n, data in contents(dataset).items() if ".state" not in n}
    assert foreign_files(str(copy)) == []
    assert convert(smaller, copy) == cli.EXIT_OK  # in the other format: none that would be stale
    assert "test/T1w/P-1.2_3.npz" not in contents(copy)
    assert foreign_files(str(copy)) == []


@pytest.mark.slow
def test_npz_files_of_an_earlier_version_are_taken_over(
    heap: Path, dataset: Path, copy: Path
) -> None:
    for path in (copy / ".state").glob("*.tfrecord.json"):
        state = json.loads(path.read_text())
        del state["npz"]
        path.write_text(json.dumps(state))
    quoted = copy / "test" / "T1w" / files.file_name(".P3", ".npz")
    os.replace(quoted, quoted.with_name(".P3.npz"))  # as it was named then
    assert foreign_files(str(copy)) == []
    assert convert(heap, copy, "--overwrite", "--format", "npz") == cli.EXIT_OK
    assert contents(copy) == contents(dataset)
    put(copy, **{"test/T1w/P-2.npz": "precious"})
    assert foreign_files(str(copy)) == ["test/T1w/P-2.npz"]


@pytest.mark.slow
def test_ids_that_would_be_one_file_are_refused_before_any_is_written(tmp_path: Path) -> None:
    write_patient(tmp_path / "heap" / "a", "Anna")
    write_patient(tmp_path / "heap" / "b", "ANNA")
    with pytest.raises(cli.CommandError, match=r"'(?i:anna)' and '(?i:anna)' would both be"):
        convert(tmp_path / "heap", tmp_path / "d", "--format", "npz")
    assert not list((tmp_path / "d").glob("*.tfrecord"))
    assert convert(tmp_path / "heap", tmp_path / "d") == cli.EXIT_OK


@pytest.mark.slow
def test_a_state_that_does_not_account_for_its_patients_is_made_anew(
    heap: Path, dataset: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patient that neither it nor the rejects name would vanish."""
    paths = sorted((copy / ".state").glob("*.tfrecord.json"))
    edits: list[dict[str, object] | None] = [
        None,
        {"patients": []},
        {"fold": 3},
        {"patients": [{"patient_id": [], "label": None}]},
    ]
    for path, edit in zip(paths, edits, strict=True):
        state = json.loads(path.read_text())
        entry = None if edit is None else state["result"]["entry"] | edit
        path.write_text(json.dumps({**state, "result": {**state["result"], "entry": entry}}))
    argv = ["--input", str(heap), "--output", str(copy), "--modalities", "T1w,T2w", "--no_report"]
    argv += ["--shape", "8,8,4", "--fov_mm", "48,48,24", "--format", "npz"]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    assert "0 kept, 4 converted" in capsys.readouterr().out
    assert contents(copy) == contents(dataset)
