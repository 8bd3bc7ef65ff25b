"""Names of files made of ids, and names read from files: neither leads anywhere else."""

from __future__ import annotations

import re
import urllib.parse

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files

_HOSTILE = [
    *("", ".", "..", "../../../x/state", "/etc/passwd", "a/b", "a\\b", "C:x", ".ssh", "x."),
    *("a\0b", "a\nb", "\x1b[2J", "x" * 5000, "é" * 300, "日本", "a\u202eb", "%2E", "~", "~root"),
    *("nul\udc80", "a b", "a:b", "export.zip!/x", "s3://bucket/x", "-", "*", "$(x)", "`x`"),
]


@pytest.mark.parametrize("suffix", ["", ".npz", ".nii.gz"])
def test_an_id_makes_one_plain_name(suffix: str) -> None:
    names = [files.file_name(words, suffix) for words in _HOSTILE]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_%-][A-Za-z0-9_.%-]*", name)
        assert len(name) <= 200
        assert name.endswith(suffix)
        assert files.member("d", name) == f"d/{name}"


def test_ordinary_ids_are_their_own_names() -> None:
    for words in ("00005", "BraTS2021_00005", "sub-01", "1.2.840.113619", "study-0a1b"):
        assert files.file_name(words) == words
    assert urllib.parse.unquote(files.file_name("../é 1")) == "../é 1"


def test_cut_names_stay_apart_and_are_cut_between_characters() -> None:
    long = [f"{'é' * length}{end}" for length in range(90, 140) for end in "ab"]
    names = set(files.file_names(long, ".npz").values())
    assert len(names) == len(long)
    for name in names:
        assert not re.search(r"%(?![0-9A-F]{2})", name)


def test_ids_that_would_be_one_file_are_refused() -> None:
    assert files.file_names(["a", "b", "a"]) == {"a": "a", "b": "b"}
    with pytest.raises(CommandError, match="'Anna' and 'anna' would both"):
        files.file_names(["Anna", "b", "anna"])


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/x", "a/../b", "a//b", "a/", "./a", "C:x", "a\\b", "a\0", "a\nb"),
        *("x.zip!/../y", "s3://b/x", None, 7, ["x"]),
    ],
)
def test_a_name_from_a_file_leads_nowhere_else(name: object) -> None:
    for folders in (False, True):
        with pytest.raises(ContractError, match="is no plain name of a file in run"):
            files.member("run", name, folders=folders)


def test_names_with_folders_are_taken_where_they_are_expected() -> None:
    assert files.member("run", "folds/0.keras", folders=True) == "run/folds/0.keras"
    with pytest.raises(ContractError):
        files.member("run", "folds/0.keras")
