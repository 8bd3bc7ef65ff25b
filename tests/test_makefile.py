"""The Makefile and `.ci/run`: which Python and which lock they take."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What an outer make, or whoever runs the tests, says to those.
SAID = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "VENV", "WHEELHOUSE", "STACK"}
TOOLS = (
    *("cat", "cp", "date", "dirname", "du", "find", "ls", "mkdir", "mv", "rm", "sed", "sort"),
    *("touch", "wc"),
)

# A Python of a version of our choice. `-c` is run by a real one that takes itself for that version;
# `-m venv` makes an environment of itself; `-m pip` only writes down what it is asked, beside the
# environment, and fails where a file `broken` lies there.
FAKE = """#!/bin/sh
case "$1" in
  --version) echo "Python {version}.0";;
  -c) exec {real} -S -c "import sys; sys.version_info = ({tuple}, 0, 'final', 0)
sys.path.append('{packages}')
$2";;
  -m) case "$2" in
    venv) shift $(($# - 1)); rm -rf "$1"; mkdir -p "$1/bin"; cp "$0" "$1/bin/python"
      echo > "$1/pyvenv.cfg";;
    pip) echo "$*" >> {log}; [ ! -e {folder}/broken ];;
    *) echo "$*" >> {log};;
  esac;;
esac
"""


def shim(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def only_tools(folder: Path) -> Path:
    """A folder to be the whole PATH: the tools that are needed, and Pythons that do not work."""
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        shim(folder, name, f'echo "shim: {name}: command not found" >&2; exit 127')
    return folder


def run_make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    environment = {key: value for key, value in os.environ.items() if key not in SAID}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [make, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where make runs with Pythons of our choice, and an environment to be made."""

    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def has(self, *versions: str) -> None:
        for version in versions:
            fake = FAKE.format(
                version=version,
                tuple=version.replace(".", ", "),
                real=sys.executable,
                packages=importlib.metadata.distribution("pip").locate_file(""),
                log=self.folder / "log",
                folder=self.folder,
            )
            (self.folder / "bin" / f"python{version}").write_text(fake, encoding="utf-8")
            (self.folder / "bin" / f"python{version}").chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "log").write_text("", encoding="utf-8")
        return run_make(f"VENV={self.venv}", *arguments, path=str(self.folder / "bin"))

    @property
    def asked(self) -> list[str]:
        """What pip and the environment's modules were asked for by the last make."""
        return (self.folder / "log").read_text(encoding="utf-8").splitlines()

    @property
    def locks(self) -> list[str]:
        """Locks that the last make had pip install or download."""
        return [word for line in self.asked for word in line.split() if word.endswith(".lock")]

    @property
    def stack(self) -> str:
        return (self.venv / ".voxelbeam-stack").read_text(encoding="utf-8").strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    only_tools(tmp_path / "bin")
    return Machine(folder=tmp_path)


OLD, NEW = "requirements.lock", "requirements-new.lock"


def test_make_alone_lists_every_target():
    done = run_make()
    assert done.returncode == 0, done.stderr
    listed = set(re.findall(r"(?m)^  ([a-z-]+) {2,}\S", done.stdout))
    phony = re.search(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert phony
    assert listed == set(phony[1].split())


@pytest.mark.parametrize(
    ("arguments", "range_"), [([], "3.11 to 3.13"), (["STACK=default"], "3.11 to 3.12")]
)
def test_setup_without_a_working_python_says_so_in_one_line(machine, arguments, range_):
    done = machine.make("setup", *arguments)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(f"setup: no working Python {range_} with")
    assert "PYTHON=" in said[0]
    assert not machine.venv.exists()


def test_setup_leaves_a_folder_alone_that_is_no_environment(machine):
    machine.has("3.11")
    precious = machine.venv / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("months of work", encoding="utf-8")
    done = machine.make("setup")
    assert done.returncode != 0
    assert "is no Python environment" in done.stderr
    assert precious.exists()


@pytest.mark.parametrize(
    ("versions", "arguments", "python", "lock"),
    [
        (["3.11"], [], "3.11", OLD),
        (["3.11", "3.12", "3.13"], [], "3.12", OLD),
        (["3.13"], [], "3.13", NEW),
        (["3.11", "3.12", "3.13"], ["STACK=new"], "3.13", NEW),
        (["3.11"], ["STACK=new"], "3.11", NEW),
        (["3.11", "3.13"], ["STACK=default"], "3.11", OLD),
        (["3.11", "3.13"], ["PYTHON=python3.13"], "3.13", NEW),
    ],
)
def test_setup_takes_a_python_and_its_lock(machine, versions, arguments, python, lock):
    machine.has(*versions)
    done = machine.make("setup", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"setup: making {machine.venv} with Python {python}.0" in done.stdout
    assert machine.locks == [lock]
    assert f" of {lock} into " in done.stdout
    assert machine.stack == ("new" if lock == NEW else "default")


def test_a_stack_that_no_python_here_can_hold_is_refused_in_one_line(machine):
    machine.has("3.13")
    for arguments in (["STACK=default"], ["STACK=default", "PYTHON=python3.13"]):
        done = machine.make("setup", *arguments)
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
        assert len(said) == 1, done.stderr
        assert "no working Python 3.11 to 3.12" in said[0]
        assert not machine.venv.exists()


def test_a_stack_that_there_is_not_is_refused_in_one_line(machine):
    done = machine.make("setup", "STACK=newest")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "STACK is default or new: STACK=newest" in done.stderr


def test_an_environment_keeps_its_stack(machine):
    machine.has("3.11")
    machine.make("setup", "STACK=new")
    assert machine.make("setup").returncode == 0
    assert machine.asked == []  # nothing to do
    os.utime(machine.venv / ".voxelbeam-installed", (0, 0))  # a lock is newer
    machine.make("setup")
    assert machine.locks == [NEW]


def test_another_stack_replaces_the_one_that_is_there(machine):
    machine.has("3.11")
    machine.make("setup")
    machine.make("setup", "STACK=new")
    removed = next(n for n, line in enumerate(machine.asked) if " uninstall " in line)
    installed = next(n for n, line in enumerate(machine.asked) if NEW in line)
    assert removed < installed
    assert machine.asked[removed].endswith(" tensorflow-io tensorflow-io-gcs-filesystem")
    assert machine.stack == "new"
    machine.make("setup", "STACK=default")
    assert machine.locks == [OLD]
    assert machine.stack == "default"


def test_an_environment_of_a_python_that_cannot_hold_the_stack_is_made_anew(machine):
    machine.has("3.13", "3.11")
    machine.make("setup", "STACK=new")
    done = machine.make("setup", "STACK=default")
    assert "with Python 3.11.0" in done.stdout
    assert machine.locks == [OLD]


def test_an_interrupted_setup_goes_on_with_its_stack(machine):
    machine.has("3.11")
    (machine.folder / "broken").touch()
    done = machine.make("setup", "STACK=new")
    assert done.returncode != 0
    assert "tries again" in done.stderr
    (machine.folder / "broken").unlink()
    assert machine.make("setup").returncode == 0
    assert machine.locks == [NEW]


def test_the_other_stack_is_tested_in_an_environment_of_its_own(machine):
    machine.has("3.11", "3.13")
    done = machine.make("test-new", f"NEW={machine.folder}/other")
    assert done.returncode == 0, done.stderr
    assert machine.locks == [OLD, NEW]
    tests = [line for line in machine.asked if line.startswith("-m pytest")]
    assert len(tests) == 2
    assert tests[1].endswith("tests/test_stacks.py")


def test_where_all_is_of_the_new_lock_nothing_is_compared_with_itself(machine):
    machine.has("3.13")
    done = machine.make("test-new", f"NEW={machine.folder}/other")
    assert done.returncode == 0, done.stderr
    assert machine.locks == [NEW]
    assert not [line for line in machine.asked if line.startswith("-m pytest")]
    assert f"nothing ran on {OLD} (" in done.stdout.splitlines()[-1]


def test_environments_that_the_makefile_names_are_no_part_of_the_project(tmp_path):
    named = set(re.findall(r"\.venv[\w-]*", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert len(named) > 2
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for name in named:
        assert any(fnmatch.fnmatch(f"/{name}/", pattern) for pattern in ignored), name
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("import   os", encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # as in an archive, where git ignores nothing
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("version", "lock"), [("3.11", OLD), ("3.13", NEW)])
def test_a_wheelhouse_installs_the_lock_without_an_index(machine, version, lock):
    machine.has(version)
    machine.make("setup", "WHEELHOUSE=wheels")
    (install,) = [line for line in machine.asked if lock in line]
    assert "--no-index --find-links wheels" in install
    assert "--require-hashes" in install


@pytest.mark.parametrize(("version", "lock"), [("3.11", OLD), ("3.13", NEW)])
def test_a_wheelhouse_that_does_not_fit_is_told_with_what_was_looked_for(machine, version, lock):
    machine.has(version)
    (machine.folder / "broken").touch()
    done = machine.make("setup", "WHEELHOUSE=some wheels")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1, done.stderr
    assert f"'some wheels' hold what {lock} wants with Python {version}.0" in said[0]
    recipe = run_make("-n", "setup", "WHEELHOUSE=some wheels", f"VENV={machine.venv}").stdout
    assert "--find-links 'some wheels'" in recipe


@pytest.mark.parametrize(
    ("arguments", "lock"), [([], OLD), (["STACK=new"], NEW), (["STACK=default"], OLD)]
)
def test_the_collection_for_a_wheelhouse_is_of_the_environments_lock(machine, arguments, lock):
    machine.has("3.12")
    machine.make("setup", *arguments)
    done = run_make(
        "--dry-run", "wheelhouse", f"VENV={machine.venv}", path=str(machine.folder / "bin")
    )
    collects = done.stdout.partition(" download ")[2]
    assert re.findall(r"-r (\S+)", collects) == [lock]


def test_the_audit_ends_at_the_first_lock_with_a_known_vulnerability():
    done = run_make("--dry-run", "audit", f"PYTHON={sys.executable}")
    asks = re.findall(r"(?m)^\S+ \.ci/supply_chain\.py vulnerabilities (\S+) \S+$", done.stdout)
    assert asks == [OLD, NEW]  # a command each, not a loop that goes on


def ci(folder: Path, *, stack: str | None = None) -> tuple[int, list[str], str]:
    """(exit code, what make was asked, stdout) of `.ci/run` where only `folder` is on the PATH."""
    # Make takes STACK of the environment, too.
    say = 'echo "${STACK:+STACK=$STACK }$*"'
    shim(folder, "make", f"{say} >> {folder}/asked; [ ! -e {folder}/red ]")
    environment = {"PATH": str(folder)} | ({} if stack is None else {"STACK": stack})
    done = subprocess.run(
        [shutil.which("bash") or "bash", ROOT / ".ci" / "run"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, (folder / "asked").read_text().splitlines(), done.stdout


def pyenv(folder: Path, root: Path, *, works: bool) -> Path:
    """A version manager that keeps a Python 3.13 below `root`, which works or does not."""
    (root / "bin").mkdir(parents=True)
    shim(root / "bin", "python3.13", f"exit {0 if works else 1}")
    shim(folder, "pyenv", f'[ "$*" = "prefix 3.13" ] && echo {root}')
    return root / "bin" / "python3.13"


def test_ci_tests_the_new_lock_with_a_python_on_the_path(tmp_path):
    folder = only_tools(tmp_path / "bin")
    shim(folder, "python3.13", "exit 0")
    assert ci(folder)[:2] == (0, ["check test", "test-new NEW_PYTHON=python3.13"])


def test_ci_asks_a_version_manager_behind_a_shim_that_does_not_work(tmp_path):
    folder = only_tools(tmp_path / "bin")
    python = pyenv(folder, tmp_path / "versions", works=True)
    assert ci(folder)[:2] == (0, ["check test", f"test-new NEW_PYTHON={python}"])


def test_ci_without_python_3_13_says_what_it_left_out(tmp_path):
    folder = only_tools(tmp_path / "bin")
    pyenv(folder, tmp_path / "versions", works=False)
    code, asked, said = ci(folder)
    assert (code, asked) == (0, ["check test"])
    assert said.startswith(".ci/run: no Python 3.13 here, so nothing ran on requirements-new.lock")


def test_ci_takes_the_new_lock_on_any_python_where_it_is_asked_to(tmp_path):
    folder = only_tools(tmp_path / "bin")
    assert ci(folder, stack="new")[:2] == (0, ["check test", "test-new"])


def test_ci_that_fails_on_the_first_lock_ends_there(tmp_path):
    folder = only_tools(tmp_path / "bin")
    shim(folder, "python3.13", "exit 0")
    (folder / "red").touch()
    assert ci(folder)[:2] == (1, ["check test"])
