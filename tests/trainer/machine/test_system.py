"""The machine as a container sees it: what of processors, memory and disks is for this process."""

import os
import pwd
from pathlib import Path

import pytest

from trainer.machine import system
from trainer.machine.findings import GIB
from trainer.machine.system import Memory, Place, Processors


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root with `proc` and `sys`, of a machine of 64 GiB."""
    meminfo = f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {48 * 2**20} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = {
    "proc/self/cgroup": "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x\n0::/\n",
    # The host's path is not there: a container's own group is at the top.
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{16 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"cache 5\ntotal_inactive_file {5 * GIB}\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
V2 = {
    "proc/self/cgroup": "0::/pods/one\n",
    "sys/fs/cgroup/pods/one/memory.max": "max\n",
    "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
    "sys/fs/cgroup/pods/memory.max": f"{16 * GIB}\n",
    "sys/fs/cgroup/pods/memory.current": f"{9 * GIB}\n",
    "sys/fs/cgroup/pods/memory.stat": f"anon 1\ninactive_file {5 * GIB}\n",
    "sys/fs/cgroup/pods/cpu.max": "150000 100000\n",
}


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_a_containers_limits_are_found_wherever_in_its_groups(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = system.measure(machine(tmp_path, files))
    assert found.processors.quota == 1.5
    assert found.memory == Memory(total=64 * GIB, available=48 * GIB, limit=16 * GIB, used=4 * GIB)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {  # version 1 writes a number beyond all memory
            "proc/self/cgroup": "4:memory:/\n1:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["nothing", "v2", "v1"],
)
def test_without_limits_none_is_told(tmp_path: Path, files: dict[str, str]) -> None:
    found = system.measure(machine(tmp_path, files))
    assert found.processors.quota is None
    assert (found.memory.limit, found.memory.used) == (None, None)


def test_a_quota_below_the_processors_says_how_many_workers_suit() -> None:
    row = system._processors_row(Processors(machine=16, allowed=8, quota=1.5))
    assert row.mark == "note"
    assert row.text.startswith("8 of 16 (this process's affinity), but the time of 1.5 (a cgroup's")
    assert "--workers 2 " in row.text
    assert system._processors_row(Processors(machine=8, allowed=8, quota=8.0)).text == "8"


def test_no_home_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    assert system.home().why == (
        f"HOME is not set, and user {os.getuid()} is not in the user database"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert system.home().why == f"{tmp_path / 'none'} is no directory"
    row = system._home_row(system.home())
    assert row.mark == "note"
    assert "HOME=DIR sets one" in row.text
    monkeypatch.setenv("HOME", str(tmp_path))
    assert system._home_row(system.home()).text == str(tmp_path)


def test_commands_that_are_absent_are_named_with_what_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    row = system._commands_row(system.measure().commands)
    assert (row.text, row.mark) == ("java, no docker (building images)", "note")


def test_no_place_for_temporary_files_is_a_fault_and_no_other_place_is() -> None:
    none = Place(path="", free=None, writable=False)
    found = system.measure()
    assert system.section(found).faults == ()
    section = system.section(system.System(**{**vars(found), "here": none, "temporary": none}))
    (fault,) = section.faults
    assert "TMPDIR" in fault.mend
    assert {row.name: row.mark for row in section.rows if row.name in ("here", "temporary")} == {
        "here": "note",
        "temporary": "fault",
    }


def test_a_full_disk_for_temporary_files_is_a_fault() -> None:
    full = Place(path="/full", free=4096, writable=True)
    section = system.section(system.System(**{**vars(system.measure()), "temporary": full}))
    (fault,) = section.faults
    assert fault.what == "the disk of /full, for temporary files, is full"
    assert {row.name: row.mark for row in section.rows}["temporary"] == "fault"
