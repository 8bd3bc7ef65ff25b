"""A user's code is known by its source: whatever of it changes, the identity does."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from trainer.config import code_identity
from trainer.config.code_identity import identities, identity, require_code, require_same

Write = Callable[[str, str], Path]
F = "def f(): ...\n"


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_identity, "_LOADED", {})


def _sha256(reference: str) -> str:
    """As a process that begins would find it."""
    for name in (reference.partition(":")[0], "helper", "helpers", "helpers.one", "net.sub"):
        sys.modules.pop(name, None)
    code_identity._LOADED.clear()
    found: str = identity(reference, flag="--loss")["sha256"]
    return found


def test_a_change_of_the_file_or_of_what_it_imports_beside_it_is_told(user_module: Write) -> None:
    user_module("net.py", "import helper\ndef f():\n    from helpers import one\n")
    user_module("helper.py", "A = 1\n")
    user_module("helpers/__init__.py", "")
    user_module("helpers/one.py", "")
    user_module("other.py", "")
    user_module("helpers/notes.txt", "")
    seen = [_sha256("net:f")]
    for name, text in (("other.py", "B = 2"), ("helpers/notes.txt", "x")):
        user_module(name, text)
        assert _sha256("net:f") == seen[0], f"{name} is no part of it"
    for name in ("net.py", "helper.py", "helpers/one.py", "helpers/two.py"):
        file = user_module(name, "")
        file.write_text(f"def f(): ...  # {name}\nimport helper\nfrom helpers import one\n")
        seen.append(_sha256("net:f"))
    assert len(set(seen)) == 5


def test_a_package_is_known_by_all_of_its_sources(user_module: Write) -> None:
    user_module("net/__init__.py", "")
    user_module("net/sub.py", F)
    before = _sha256("net.sub:f")
    user_module("net/beside.py", "A = 1\n")
    assert _sha256("net.sub:f") != before


def test_a_folder_that_is_no_package_is_not_all_of_the_code(user_module: Write) -> None:
    user_module("net/sub.py", F)
    before = _sha256("net.sub:f")
    user_module("net/beside.py", "A = 1\n")
    assert _sha256("net.sub:f") == before
    user_module("net/sub.py", f"from net import beside\n{F}")
    importing = _sha256("net.sub:f")
    user_module("net/beside.py", "A = 2\n")
    assert _sha256("net.sub:f") != importing


def test_an_installed_package_is_named_with_its_version() -> None:
    found = identity("packaging.version:parse", flag="--loss")
    assert found["package"] == "packaging"
    assert found["version"] == importlib.metadata.version("packaging")
    assert len(found["sha256"]) == 64
    assert "imports" not in found


def test_a_file_of_ones_own_names_the_packages_that_it_imports(user_module: Write) -> None:
    user_module("net.py", f"import os, keras, packaging.version\nfrom scipy import ndimage\n{F}")
    names = ("packaging", "scipy")  # keras's version stands in every run.json
    versions = {name: importlib.metadata.version(name) for name in names}
    assert identity("net:f", flag="--loss")["imports"] == versions


def test_a_file_with_an_installed_packages_name_does_not_take_its_version(
    user_module: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    file = user_module("packaging.py", F)
    sys.path.insert(0, str(file.parent))
    found = identity("packaging:f", flag="--loss")
    assert found.keys() == {"function", "sha256"}


def test_an_archive_is_its_own_source(user_module: Write) -> None:
    place = user_module("here", "").parent / "own.zip"

    def made_of(text: str) -> str:
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("zipped.py", text)
        return _sha256("zipped:f")

    sys.path.append(str(place))
    assert made_of(F) != made_of(f"{F}# more\n")


def test_a_change_after_python_has_loaded_it_is_refused(user_module: Write) -> None:
    user_module("net.py", F)
    before = identity("net:f", flag="--loss")
    user_module("net.py", f"{F}# edited\n")
    with pytest.raises(UsageError, match="--loss net:f: its source was changed after Python"):
        identity("net:f", flag="--loss")
    importlib.reload(sys.modules["net"])
    assert identity("net:f", flag="--loss") != before


def test_code_without_a_file_or_with_one_that_cannot_be_read_is_refused(
    user_module: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--loss sys:exit: its module has no file"):
        identity("sys:exit", flag="--loss")
    user_module("net.py", F)

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UsageError, match=r"--loss net:f: .*net\.py: Permission denied"):
        identity("net:f", flag="--loss")


def test_a_function_that_stands_for_two_flags_is_told_once(user_module: Write) -> None:
    user_module("net.py", F)
    assert len(identities([("--loss", "net:f"), ("--augment", "net:f")])) == 1
    assert identities([]) == []


def test_other_code_than_a_run_was_begun_with_is_refused_by_its_functions_name() -> None:
    old: list[dict[str, Any]] = [{"function": "net:f", "sha256": "a" * 64}]
    require_same(old, old)
    with pytest.raises(
        ContractError,
        match=r"net:f is not what the run was begun with \(sha256 aaaaaaaaaaaa then, bbb.* now\);"
        " put that back, or train anew$",
    ):
        require_same(old, [{"function": "net:f", "sha256": "b" * 64}])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "code: {} found, a list required"),
        ([1], r"code\[0\]: 1 found"),
        ([{"function": "a:b"}], r"code\[0\]\.sha256 is missing"),
        ([{"function": "a:b", "sha256": 1}], r"code\[0\]\.sha256: 1 found, text required"),
        ([{"function": "a:b", "sha256": "", "more": 1}], r"code\[0\]\.unknown member"),
        ([{"function": "a:b", "sha256": "", "imports": {"x": 1}}], r"imports\.x: 1 found"),
    ],
)
def test_what_is_no_identity_is_refused_by_member(found: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        require_code(found, where="code")
