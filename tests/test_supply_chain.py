"""Licences, bill of materials and known vulnerabilities of what the lock installs."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BILL = ROOT / "sbom.cdx.json"


@pytest.fixture
def audit() -> ModuleType:
    """The script that `make audit` runs."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "supply_chain.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def components() -> list[dict[str, Any]]:
    return list(json.loads(BILL.read_text(encoding="utf-8"))["components"])


def test_the_bill_of_materials_holds_what_is_locked() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = [
        (entry[1], entry[2], sorted(re.findall(r"sha256:([0-9a-f]{64})", entry[0])))
        for entry in re.finditer(
            r"(?m)^([a-z0-9][\w.-]*?)(?:\[.*?\])?==([^\s;]+)[^\n]*\n(?:    --hash=[^\n]+\n)+", text
        )
    ]
    assert len(locked) > 100
    found = [
        (part["name"], part["version"], [entry["content"] for entry in part["hashes"]])
        for part in components()
    ]
    assert sorted(found) == sorted(locked)
    assert all(
        part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}" for part in components()
    )


def test_the_bill_is_made_anew_to_the_same_bytes(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BILL", tmp_path / "bill.json")
    (tmp_path / "bill.json").write_bytes(BILL.read_bytes())
    assert audit.licences() == 0
    assert (tmp_path / "bill.json").read_bytes() == BILL.read_bytes()


def test_neither_bill_nor_locks_name_an_index() -> None:
    for name in ("sbom.cdx.json", ".ci/tools.lock"):
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

    monkeypatch.setattr(audit, "BILL", tmp_path / "bill.json")
    (entry,) = (entry for entry in audit.locked() if entry[0].name == "absl-py")
    Distribution.version = next(iter(entry[0].specifier)).version
    monkeypatch.setattr(audit, "locked", lambda: [entry])
    monkeypatch.setattr(audit.importlib.metadata, "distribution", lambda name: Distribution())
    assert audit.licences() == 1
    assert capsys.readouterr().err.startswith("audit: absl-py ")


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
    assert audit.vulnerabilities(tool(tmp_path, report)) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "NOT CHECKED" in out
    assert "0 known" not in out


def test_a_known_vulnerability_fails_the_audit(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"name": "absl-py", "version": "1", "vulns": [{"id": "PYSEC-1"}]}
    assert audit.vulnerabilities(tool(tmp_path, json.dumps({"dependencies": [found]}))) == 1
    captured = capsys.readouterr()
    assert captured.err == "audit: absl-py 1: PYSEC-1\n"
    assert "1 known in 1 packages" in captured.out
