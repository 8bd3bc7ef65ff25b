"""An archive gives what its unpacked directory gives, wherever it lies."""

import gzip
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord, survey
from beam_jobs.common import cli
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests import stores

ARGV = ("--shape", "16,16,8", "--modalities", "T1w,T2w", "--no_report")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`export/`: two patients, a note and a damaged image; its labels beside it."""
    root = tmp_path_factory.mktemp("archives")
    config = PhantomConfig(
        patients=2, test_patients=0, seed=5, matrix=(24, 28), slices=(6, 7), trouble_rate=0.0
    )
    write_cohort(config, root / "cohort")
    shutil.copytree(root / "cohort" / "train", root / "export")
    for unused in [*root.glob("export/*/FLAIR"), *root.glob("export/*/T1wCE")]:
        shutil.rmtree(unused)
    first, second = sorted((root / "export").iterdir())
    (first / "T2w" / "notes.txt").write_text("not an image")
    image = next((second / "T1w").iterdir())
    image.write_bytes(image.read_bytes()[:-50])
    return root


def convert(scratch: Path, source: Path | str, output: Path | str, *more: str) -> dict[str, bytes]:
    labels = str(scratch / "cohort" / "train_labels.csv")
    argv = ["--input", str(source), "--output", str(output), "--labels", labels, *ARGV, *more]
    assert dicom_to_tfrecord.main(argv) == cli.EXIT_OK
    return {path.name: path.read_bytes() for path in Path(output).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def unpacked(scratch) -> dict[str, bytes]:
    found = convert(scratch, scratch / "export", scratch / "unpacked", "--quiet")
    assert b"00" in found["series.csv"]
    assert b"truncated_pixels" in found["rejects.csv"]
    assert b"notes.txt" in found["rejects.csv"]
    return found


def packed(kind: str, directory: Path, target: Path) -> Path:
    """`directory` below its own name or, where `target` is a directory, each child packed."""
    if kind == "zip":
        path = target.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(directory.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(directory))
        return path
    path = target.with_suffix({"tar": ".tar", "tgz": ".tar.gz"}[kind])
    with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
        for file in sorted(directory.rglob("*")):
            archive.add(file, file.relative_to(directory), recursive=False)
    return path


def archive_of(kind: str, scratch: Path, where: Path) -> Path:
    """The export as an archive, as archives of patients, or as compressed files."""
    export = scratch / "export"
    if kind in ("zip", "tar", "tgz"):
        return packed(kind, export, where / "export")
    target = where / "export"
    target.mkdir()
    if kind == "zips":
        for patient in export.iterdir():
            packed("zip", patient, target / patient.name)
        return target
    for file in export.rglob("*.dcm"):
        copy = target / f"{file.relative_to(export)}.gz"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(gzip.compress(file.read_bytes()))
    for note in export.rglob("*.txt"):
        shutil.copy(note, target / note.relative_to(export))
    return target


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "zips", "gz"])
def test_archive_gives_the_bytes_of_its_directory(scratch, unpacked, tmp_path, kind):
    source = archive_of(kind, scratch, tmp_path)
    assert convert(scratch, source, tmp_path / "d", "--quiet") == unpacked


@pytest.mark.emulator
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "tgz", "zips"])
def test_archive_in_a_store_gives_the_bytes_of_its_directory(
    scratch, unpacked, tmp_path, monkeypatch, kind
):
    source = archive_of(kind, scratch, tmp_path)
    with stores.s3() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        if source.is_file():
            store.put(source.name, source.read_bytes())
        else:
            store.upload(source, source.name)
        assert convert(scratch, store.path(source.name), tmp_path / "d", "--quiet") == unpacked


def test_second_run_over_an_archive_keeps_every_shard_until_the_archive_changes(
    scratch, unpacked, tmp_path, capsys
):
    source = archive_of("zips", scratch, tmp_path)
    convert(scratch, source, tmp_path / "d")
    assert convert(scratch, source, tmp_path / "d") == unpacked
    assert "2 kept, 0 converted" in capsys.readouterr().out
    patient = min(source.iterdir())
    shorter = shutil.copytree(scratch / "export" / patient.stem, tmp_path / "shorter")
    max((shorter / "T1w").iterdir()).unlink()
    patient.unlink()
    packed("zip", shorter, patient)
    convert(scratch, source, tmp_path / "d")
    printed = capsys.readouterr().out
    assert "1 kept, 1 converted" in printed
    assert "inputs changed" in printed


def test_survey_of_an_archive_is_that_of_its_directory(scratch, tmp_path, capsys):
    source = archive_of("zip", scratch, tmp_path)
    found = []
    for number, root in enumerate((scratch / "export", source)):
        output = tmp_path / f"{number}.csv"
        assert survey.main([str(root), "--modalities", "T1w,T2w", "--output", str(output)]) == 0
        found.append((output.read_bytes(), capsys.readouterr().out.replace(f"{number}.csv", "")))
    assert found[0] == found[1]


def test_damaged_archive_among_others_is_a_reject_under_its_own_name(scratch, tmp_path):
    source = archive_of("zips", scratch, tmp_path)
    (source / "00099.zip").write_bytes(b"PK\x03\x04 cut off")
    found = convert(scratch, source, tmp_path / "d", "--quiet")
    (line,) = [line for line in found["rejects.csv"].decode().splitlines() if "00099" in line]
    assert line.startswith("file,00099.zip,")
    assert "unreadable_file" in line


@pytest.mark.parametrize("name", ["gone.zip", "damaged.zip"])
def test_archive_that_cannot_be_read_is_one_line(scratch, tmp_path, name):
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 cut off")
    argv = ["--input", str(tmp_path / name), "--output", str(tmp_path / "d"), *ARGV]
    with pytest.raises((cli.UsageError, OSError)) as found:
        dicom_to_tfrecord.main(argv)
    assert "\n" not in str(found.value)
    assert name in str(found.value)


@pytest.mark.parametrize("output", ["dataset.zip", "dataset.tar.gz/", "s3://bucket/dataset.zip"])
def test_output_named_like_an_archive_is_refused(scratch, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    argv = ["--input", str(scratch / "export"), "--output", output, *ARGV]
    with pytest.raises(cli.UsageError, match="an archive can be read, not written to"):
        dicom_to_tfrecord.main(argv)
    assert list(tmp_path.iterdir()) == []


def test_hidden_names_of_people_are_not_in_what_is_wrong_with_a_member(scratch, tmp_path):
    source = archive_of("tar", scratch, tmp_path)
    with tarfile.open(source, "a") as archive:
        for name in ("/etc/Mueller_Anna.dcm", "../Mueller_Anna.dcm"):
            archive.addfile(tarfile.TarInfo(name))
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    policy = ("--quiet", "--id_policy", "hmac", "--id_key", str(key))
    found = convert(scratch, source, tmp_path / "d", *policy)
    assert found["rejects.csv"].count(b"leaves the archive") == 2
    for path in (tmp_path / "d").rglob("*"):
        assert path.is_dir() or b"Mueller" not in path.read_bytes()


def test_directory_named_like_an_archive_has_paths_below_it(scratch, tmp_path, capsys):
    shutil.copytree(scratch / "export", tmp_path / "export.zip")
    tables = []
    for root in (scratch / "export", tmp_path / "export.zip"):
        output = tmp_path / "series.csv"
        assert survey.main([str(root), "--modalities", "T1w,T2w", "--output", str(output)]) == 0
        tables.append(output.read_bytes())
    assert tables[0] == tables[1]
