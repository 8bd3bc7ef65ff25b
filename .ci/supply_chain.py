"""Licences and bills of materials of what each lock installs; `make audit` runs it.

    python .ci/supply_chain.py licences LOCK              its bill anew; whether all may be used
    python .ci/supply_chain.py vulnerabilities LOCK TOOL  what TOOL (pip-audit) finds, of how many

Run the first where that lock is installed. A bill (CycloneDX 1.6) depends on its lock and on what
packages say of themselves alone: no time, no serial number, no place. A package that is not
installed here in the version that is locked (another lock's, Python's or system's) keeps the
licence that a bill already has for that very version; where none has it, what another version says
of itself is taken, and named. Libraries that wheels bundle are not judged, only what a package says
of itself.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Each lock and its bill.
BILLS = {
    "requirements.lock": ROOT / "sbom.cdx.json",
    "requirements-new.lock": ROOT / "sbom-new.cdx.json",
}

# Permissive ones, one that gives all rights away (CC0), and two that bind changes of their own
# files alone (MPL) or nothing (PSF).
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Unlicense",
    "Zlib",
    # Said in a classifier, with two or three clauses.
    "LicenseRef-BSD",
}
# How packages spell them in metadata without an SPDX expression.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "LicenseRef-BSD",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# What their metadata leaves out; the file of the distribution that says it.
TOLD = {
    "colorama": ("BSD-3-Clause", "LICENSE.txt of its distribution"),
    "dcm2niix": ("BSD-3-Clause", "license.txt: BSD, MIT, zlib and public domain; tests only"),
    "namex": ("Apache-2.0", "LICENSE"),
    "quickjs-ng": ("MIT", "LICENSE"),
}


_WORD = re.compile(r"[^A-Za-z0-9.]+")


def locked(lock: str) -> list[tuple[Requirement, list[str]]]:
    """A lock's requirements, each with the sha256 of its files."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0]), re.findall(r"--hash=sha256:(\S+)", line))
        for line in lines
    ]


def said(name: str, version: str, known: tuple[str, str] | None) -> tuple[str, str] | None:
    """(SPDX expression, where it is said) of a locked version; None where unknown.

    Args:
      name: of the package.
      version: the one that is locked.
      known: what a bill has for it already.
    """
    if name in TOLD:
        return TOLD[name]
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return known
    if known and found.version != version:
        return known
    of = "" if found.version == version else f" of {found.version}"
    expression = found.metadata.get("License-Expression")
    if expression:
        return canonicalize_license_expression(expression), f"License-Expression{of}"
    classifiers = found.metadata.get_all("Classifier") or []
    names = {text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")}
    names -= {"OSI Approved", "DFSG approved"}
    if names:  # several may mean "and" as well as "or"
        known = {SPELLINGS.get(text, f"LicenseRef-{_WORD.sub('-', text)}") for text in names}
        return " AND ".join(sorted(known)), f"Classifier{of}"
    text = (found.metadata.get("License") or "").partition("\n")[0].strip()
    try:
        return canonicalize_license_expression(SPELLINGS.get(text, text)), f"License{of}"
    except InvalidLicenseExpression:
        return None


def may_be_used(expression: str) -> bool:
    """Whether one side of every OR is allowed, and all that stands around AND."""
    return any(
        all(part.strip("() ") in ALLOWED for part in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )


def told_before() -> dict[tuple[str, str], tuple[str, str]]:
    """(name, version) -> (licence, where it is said), of all bills; a version's own word first."""
    told: dict[tuple[str, str], tuple[str, str]] = {}
    for path in BILLS.values():
        text = path.read_text(encoding="utf-8") if path.exists() else '{"components": []}'
        for part in json.loads(text)["components"]:
            key = part["name"], part["version"]
            if key not in told or " of " in told[key][1]:
                told[key] = part["licenses"][0]["expression"], _evidence(part)
    return told


def bill(lock: str) -> tuple[dict[str, Any], list[str]]:
    """A lock's bill of materials, and why it may not be used: a line a package."""
    old = told_before()
    components, faults = [], []
    for requirement, hashes in sorted(locked(lock), key=lambda entry: str(entry[0]).lower()):
        name = canonicalize_name(requirement.name)
        (pin,) = requirement.specifier
        found = said(name, pin.version, old.get((name, pin.version)))
        if found is None:
            faults.append(f"{name} {pin.version}: its licence is unknown")
            found = ("LicenseRef-unknown", "nothing")
        elif not may_be_used(found[0]):
            faults.append(f"{name} {pin.version}: {found[0]} is not allowed")
        component = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{pin.version}",
            "name": name,
            "version": pin.version,
            "licenses": [{"expression": found[0]}],
            "purl": f"pkg:pypi/{name}@{pin.version}",
            # One a file of the distribution, of which one is installed.
            "hashes": [{"alg": "SHA-256", "content": value} for value in sorted(hashes)],
            "properties": [{"name": "voxelbeam:licence-said-in", "value": found[1]}],
        }
        if requirement.marker is not None:
            marker = {"name": "voxelbeam:installed-where", "value": str(requirement.marker)}
            component["properties"].append(marker)
        components.append(component)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "voxelbeam",
                "name": "voxelbeam",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
            "properties": [{"name": "voxelbeam:lock", "value": lock}],
        },
        "components": components,
    }, faults


def _evidence(component: dict[str, Any]) -> str:
    return next(
        item["value"]
        for item in component["properties"]
        if item["name"] == "voxelbeam:licence-said-in"
    )


def licences(lock: str) -> int:
    """Writes a lock's bill, prints what licences there are, and fails where one may not be used."""
    path = BILLS[lock]
    made, faults = bill(lock)
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    expressions = [part["licenses"][0]["expression"] for part in made["components"]]
    counts = sorted({text: expressions.count(text) for text in expressions}.items())
    print(f"audit: {lock}: licences:", ", ".join(f"{text} {count}" for text, count in counts))
    for fault in faults:
        print(f"audit: {lock}: {fault}", file=sys.stderr)
    return 1 if faults else 0


def vulnerabilities(lock: str, pip_audit: str) -> int:
    """Says what an advisory database said of how many packages, and fails on a finding."""
    text, total = (ROOT / lock).read_text(encoding="utf-8"), len(locked(lock))
    # One first: where nothing is reachable, each of them would be waited for.
    if not _looked_up(pip_audit, text.split("    # via")[0]):
        print(
            f"audit: {lock}: vulnerabilities: NOT CHECKED, none of {total} packages: no advisory "
            "database can be reached from here"
        )
        return 0
    asked = _looked_up(pip_audit, text)
    bad = [(part["name"], part["version"], vuln["id"]) for part in asked for vuln in part["vulns"]]
    for name, version, identifier in bad:
        print(f"audit: {lock}: {name} {version}: {identifier}", file=sys.stderr)
    print(f"audit: {lock}: vulnerabilities: {len(bad)} known in {len(asked)} packages, of {total}")
    return 1 if bad else 0


def _looked_up(pip_audit: str, requirements: str) -> list[dict[str, Any]]:
    """What pip-audit says of those packages that its database knows; none where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        lock, report = Path(directory, "lock.txt"), Path(directory, "report.json")
        lock.write_text(requirements, encoding="utf-8")
        command = [pip_audit, "--requirement", str(lock), "--disable-pip", "--require-hashes"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(report)]
        # It ends with 1 both where it found some and where it could not look.
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        except (OSError, ValueError, KeyError):
            return []
    return [part for part in found if "vulns" in part]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("licences", "vulnerabilities"))
    parser.add_argument("lock", choices=BILLS)
    parser.add_argument("pip_audit", nargs="?", default="pip-audit", help="the command")
    arguments = parser.parse_args()
    if arguments.what == "licences":
        sys.exit(licences(arguments.lock))
    sys.exit(vulnerabilities(arguments.lock, arguments.pip_audit))
