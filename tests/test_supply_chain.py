"""Licences, bills of materials and known vulnerabilities of what the locks install."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BILLS = {"requirements.lock": "sbom.cdx.json", "requirements-new.lock": "sbom-new.cdx.json"}
OLD, NEW = BILLS


@pytest.fixture
def audit() -> ModuleType:
    """The script that `make audit` runs."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "supply_chain.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def components(lock: str) -> list[dict[str, Any]]:
    return list(json.loads((ROOT / BILLS[lock]).read_text(encoding="utf-8"))["components"])


@pytest.mark.parametrize("lock", BILLS)
def test_the_bill_of_materials_holds_what_is_locked(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    locked = [
        (entry[1], entry[2], sorted(re.findall(r"sha256:([0-9a-f]{64})", entry[0])))
        for entry in re.finditer(
            r"(?m)^([a-z0-9][\w.-]*?)(?:\[.*?\])?==([^\s;]+)[^\n]*\n(?:    --hash=[^\n]+\n)+", text
        )
    ]
    assert len(locked) > 100
    found = [
        (part["name"], part["version"], [entry["content"] for entry in part["hashes"]])
        for part in components(lock)
    ]
    assert sorted(found) == sorted(locked)
    assert all(
        part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}" for part in components(lock)
    )


@pytest.mark.parametrize("lock", BILLS)
def test_the_bill_is_made_anew_to_the_same_bytes_whichever_lock_is_installed(
    audit: ModuleType, lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(audit.BILLS, lock, tmp_path / "bill.json")
    (tmp_path / "bill.json").write_bytes((ROOT / BILLS[lock]).read_bytes())
    assert audit.licences(lock) == 0
    assert (tmp_path / "bill.json").read_bytes() == (ROOT / BILLS[lock]).read_bytes()


def test_a_version_that_is_not_installed_keeps_what_the_bill_says_of_it(audit: ModuleType) -> None:
    known = ("MIT", "what it said itself")
    assert audit.said("pytest", "1.0", known) == known
    assert audit.said("pytest", "1.0", None) == (
        "MIT",
        f"License-Expression of {pytest.__version__}",
    )
    assert audit.said("pytest", pytest.__version__, known) == ("MIT", "License-Expression")


def test_what_a_version_says_of_itself_goes_before_what_another_says(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lock, where in ((OLD, "License of 2.0"), (NEW, "License")):
        (entry,) = (part for part in components(lock) if part["name"] == "absl-py")
        entry["properties"][0]["value"] = where
        monkeypatch.setitem(audit.BILLS, lock, tmp_path / lock)
        (tmp_path / lock).write_text(json.dumps({"components": [entry]}))
    assert audit.told_before() == {("absl-py", entry["version"]): ("Apache-2.0", "License")}


def test_every_lock_has_a_bill(audit: ModuleType) -> None:
    assert {path.name for path in ROOT.glob("requirements*.lock")} == set(BILLS)
    assert {lock: path.name for lock, path in audit.BILLS.items()} == BILLS


def test_neither_bills_nor_locks_name_an_index() -> None:
    for name in (*BILLS.values(), ".ci/tools.lock"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_tools_of_lock_and_audit_are_pinned_and_hashed() -> None:
    text = (ROOT / ".ci/tools.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert {"pip-audit", "uv"} <= {line.partition("==")[0] for line in lines}
    assert all(re.match(r"[\w.-]+==\S+ .*--hash=sha256:", line) for line in lines)


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("AGPL-3.0-only", False),
        ("LicenseRef-Proprietary", False),
    ],
)
def test_a_licence_is_allowed_by_name_alone(audit: ModuleType, expression: str, fits: bool) -> None:
    assert audit.may_be_used(expression) == fits


@pytest.mark.parametrize(
    ("classifiers", "licence"),
    [
        (["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], None),
        (["License :: OSI Approved :: MIT License", "License :: Other/Proprietary License"], None),
        ([], "made up"),
    ],
)
def test_a_package_of_another_or_an_unknown_licence_fails_the_audit(
    audit: ModuleType,
    classifiers: Sequence[str],
    licence: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Metadata(dict[str, str]):
        def get_all(self, name: str) -> list[str]:
            return list(classifiers)

    class Distribution:
        version = "2.5.1"
        metadata = Metadata({} if licence is None else {"License": licence})

    monkeypatch.setitem(audit.BILLS, OLD, tmp_path / "bill.json")
    (entry,) = (entry for entry in audit.locked(OLD) if entry[0].name == "absl-py")
    Distribution.version = next(iter(entry[0].specifier)).version
    monkeypatch.setattr(audit, "locked", lambda lock: [entry])
    monkeypatch.setattr(audit.importlib.metadata, "distribution", lambda name: Distribution())
    assert audit.licences(OLD) == 1
    assert capsys.readouterr().err.startswith(f"audit: {OLD}: absl-py ")


def tool(tmp_path: Path, report: str) -> str:
    """A pip-audit that writes one report whatever it is asked."""
    path = tmp_path / "pip-audit"
    (tmp_path / "report").write_text(report)
    path.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{tmp_path}/report" "$last"\nexit 1\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "report",
    ["", '{"dependencies": [{"name": "absl-py", "skip_reason": "not found"}]}'],
)
def test_where_no_database_is_reached_the_audit_says_so_and_claims_nothing(
    audit: ModuleType, tmp_path: Path, report: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.vulnerabilities(NEW, tool(tmp_path, report)) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "NOT CHECKED" in out
    assert "0 known" not in out


def test_a_known_vulnerability_fails_the_audit(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"name": "absl-py", "version": "1", "vulns": [{"id": "PYSEC-1"}]}
    assert audit.vulnerabilities(NEW, tool(tmp_path, json.dumps({"dependencies": [found]}))) == 1
    captured = capsys.readouterr()
    assert captured.err == f"audit: {NEW}: absl-py 1: PYSEC-1\n"
    assert "1 known in 1 packages" in captured.out
