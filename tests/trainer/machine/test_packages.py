"""Packages held against locks and ranges: which lock it is, what differs, what does not fit."""

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from trainer.machine import packages
from trainer.machine.findings import Section
from trainer.machine.packages import Lock, Misfit, Packages

ROOT = Path(__file__).resolve().parents[3]
NO_IMPORTS = Section(title="packages", rows=())


@pytest.fixture(scope="module")
def measured() -> Packages:
    return packages.measure()


def test_every_pin_of_a_lock_is_read() -> None:
    for name in packages._LOCKS:
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = [
            line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))
        ]
        assert len(packages._PIN.findall(text)) == len(pins) > 100


def test_a_lock_counts_the_packages_of_this_python_and_system(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "one==1.0 \\\n    --hash=sha256:00\n    # via two\n"
        "two.x==2.0 ; python_version >= '3' \\\n    --hash=sha256:00\n"
        "Three==3 \\\n    --hash=sha256:00\n"
        "four==4 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )
    found = packages._lock(lock, {"one": "1.0.0", "two-x": "2.1", "four": "1"})
    assert found == Lock(
        name="requirements.lock",
        pinned=3,
        different=(("two.x", "2.1", "2.0"),),
        absent=("Three",),
    )
    assert found.same == 1


def test_the_nearer_lock_is_told_and_what_differs_from_it(
    tmp_path: Path, measured: Packages
) -> None:
    here = measured.found
    name = "requirements-new.lock"
    (tmp_path / "requirements.lock").write_text("numpy==1.0 \\\npandas==1.0 \\\n")
    (tmp_path / name).write_text(f"numpy=={here['numpy']} \\\npandas==1.0 \\\nno-such==1 \\\n")
    found = packages.measure(tmp_path)
    assert [lock.name for lock in found.locks] == [name, "requirements.lock"]
    rows = {row.name: row for row in packages.section(found, NO_IMPORTS).rows}
    assert rows["lock"].text == f"{name}: 1 of 3 packages as pinned, 1 not installed"
    assert rows["differ"].text == f"pandas {here['pandas']} (1.0); in brackets the lock's"
    assert rows["differ"].mark == "note"
    # What is to be installed is the nearer lock's version, and of what it lacks the range.
    assert found.to_install["pandas"] == "==1.0"
    assert found.to_install["rich"] == ",".join(sorted(measured.required["rich"].split(",")))
    # Without a lock what others require has its say.
    less = Misfit(name="NumPy", found="2.6", wanted="<2.0.0,>=1.23.5", by="tensorflow")
    bare = dataclasses.replace(measured, locks=(), quarrels=(less,))
    assert {"<2.0.0", "<2.5"} < set(bare.to_install["numpy"].split(","))


def test_a_wheel_has_no_locks_beside_it(tmp_path: Path) -> None:
    rows = {row.name: row for row in packages.section(packages.measure(tmp_path), NO_IMPORTS).rows}
    assert rows["lock"].text == "none beside this installation: ranges alone are compared"
    assert rows["ranges"].mark == rows["lock"].mark == ""


def test_of_several_versions_that_do_not_fit_each_is_told(measured: Packages) -> None:
    needs = [Requirement("numpy>=1.26,<2.5"), Requirement("pandas>=2.2"), Requirement("rich>=13")]
    found = {"numpy": "2.6.0rc1", "pandas": "2.3"}
    misfits = list(packages._misfits(needs, found, "voxelbeam"))
    assert misfits == [
        Misfit(name="numpy", found="2.6.0rc1", wanted="<2.5,>=1.26"),
        Misfit(name="rich", found="", wanted=">=13"),
    ]
    assert str(misfits[1]) == "no rich, voxelbeam needs >=13"
    section = packages.section(dataclasses.replace(measured, misfits=tuple(misfits)), NO_IMPORTS)
    # What is missing is told by its import.
    assert [fault.what for fault in section.faults] == [
        "numpy 2.6.0rc1, voxelbeam needs <2.5,>=1.26"
    ]
    (row,) = (row for row in section.rows if row.name == "ranges")
    assert row.mark == "fault"
    assert row.text.endswith("; out of range: numpy 2.6.0rc1; not installed: rich")


def test_another_python_than_is_required_is_told(
    monkeypatch: pytest.MonkeyPatch, measured: Packages
) -> None:
    monkeypatch.setattr(packages, "_PYTHON", "3.15.0")
    found = packages.measure()
    assert found.misfits == (Misfit(name="Python", found="3.15.0", wanted="<3.14,>=3.11"),)
    (fault,) = packages.section(found, NO_IMPORTS).faults
    assert fault.mend == "an environment of Python <3.14,>=3.11"
    (row,) = (row for row in packages.section(found, NO_IMPORTS).rows if row.name == "ranges")
    number = len(measured.required)
    assert row.text == f"{number} of {number} requirements met; out of range: Python 3.15.0"


def test_what_requirements_require_in_turn_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "one": ["two>=2", "four; extra == 'more'"],
        "two": ["one", "three<1; python_version >= '3'", "never; python_version < '3'"],
    }
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: tree.get(name))
    found = {"one": "1", "two": "2", "three": "1"}
    quarrels = set(packages._quarrels([Requirement("one[more]")], found))
    assert quarrels == {
        Misfit(name="three", found="1", wanted="<1", by="two"),
        Misfit(name="four", found="", wanted="", by="one"),
    }


def test_a_package_that_many_lack_is_one_row(measured: Packages) -> None:
    wrong = [Misfit(name="numpy", found="", wanted=f">{n}", by=by) for n, by in enumerate("bab")]
    old = Misfit(name="rich", found="1", wanted=">2", by="c")
    found = dataclasses.replace(measured, quarrels=(*wrong, old))
    rows = packages.section(found, NO_IMPORTS).rows
    assert [row.text for row in rows if row.name == "quarrel"] == [
        "rich 1, c needs >2", "no numpy, needed by a, b"
    ]  # fmt: skip


def test_the_environment_that_tests_it_fits(measured: Packages) -> None:
    assert (measured.misfits, measured.quarrels) == ((), ())
    assert measured.required.keys() > {"numpy", "tensorflow", "apache-beam"}
    assert packages.section(measured, NO_IMPORTS).faults == ()
