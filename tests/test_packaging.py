"""What a fresh clone relies on: the lock, setup.py and the Makefile."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("beam_jobs", "trainer", "serving")
PYTHONS = ("3.11", "3.12")
# Left out of the lock, because they are for machines with an accelerator only.
UNLOCKED_EXTRAS = {"gpu"}


def locked_entries() -> list[tuple[Requirement, list[str]]]:
    """Requirements of the lock, each with its hashes."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines
    ]


def locked_version(name: str, python: str) -> str | None:
    """The version that the lock installs on Linux x86_64 under this Python, if any."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    pins = [
        next(iter(entry.specifier)).version
        for entry, _ in locked_entries()
        if canonicalize_name(entry.name) == canonicalize_name(name)
        and (entry.marker is None or entry.marker.evaluate(environment))
    ]
    assert len(pins) <= 1, f"{name} is locked more than once for Python {python}: {pins}"
    return pins[0] if pins else None


def build_metadata(tmp_path: Path, **environment: str) -> tuple[list[Requirement], list[str]]:
    """Requirements and file names of the source distribution that Beam would ship."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests", "docker"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "dist")]
    subprocess.run(command, cwd=source, env=os.environ | environment, check=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = [name.partition("/")[2] for name in tar.getnames()]
        tar.extractall(tmp_path / "worker", filter="data")
    # As a worker does: setup.py runs again, out of the archive, without the submitter's choice.
    (unpacked,) = (tmp_path / "worker").iterdir()
    plain = {key: value for key, value in os.environ.items() if key != "VOXELBEAM_REQUIRES"}
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=unpacked, env=plain, check=True)
    (egg_info,) = tmp_path.glob("*.egg-info")
    requires = importlib.metadata.PathDistribution(egg_info).requires or []
    return [Requirement(line) for line in requires], names


@pytest.fixture(scope="module")
def declared() -> list[Requirement]:
    """What the installed distribution requires, extras included."""
    requires = importlib.metadata.requires("voxelbeam")
    assert requires
    return [Requirement(line) for line in requires]


def test_every_locked_requirement_is_pinned_and_hashed():
    entries = locked_entries()
    assert entries
    for entry, hashes in entries:
        assert [spec.operator for spec in entry.specifier] == ["=="], entry
        assert hashes, f"{entry} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), entry


def test_lock_names_no_index_and_no_absolute_path():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(
        r"(?m)(^|\s)(--?(index-url|extra-index-url|find-links|trusted-host)\b)", text
    )
    assert not re.search(r"(?m)(^|[\s(])/\w", text)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_declared_requirement_is_locked_within_its_range(declared, python):
    for requirement in declared:
        if any(
            requirement.marker and f'"{extra}"' in str(requirement.marker)
            for extra in UNLOCKED_EXTRAS
        ):
            continue
        version = locked_version(requirement.name, python)
        assert version, f"{requirement} is not in the lock for Python {python}"
        assert requirement.specifier.contains(version), f"{requirement}, locked is {version}"


@pytest.mark.parametrize("name", ["tensorflow-hub", "pylibjpeg-libjpeg"])
def test_forbidden_package_is_neither_declared_nor_locked(declared, name):
    names = {canonicalize_name(requirement.name) for requirement in declared}
    names |= {canonicalize_name(entry.name) for entry, _ in locked_entries()}
    assert name not in names


def test_source_distribution_holds_the_three_packages_and_no_tests(tmp_path):
    requires, names = build_metadata(tmp_path, VOXELBEAM_REQUIRES="")
    modules = {name.partition("/")[0] for name in names if name.endswith(".py")}
    assert modules == {*PACKAGES, "setup.py"}
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert sources <= set(names)
    assert "tensorflow" in {requirement.name for requirement in requires}


@pytest.fixture(scope="module")
def conversion_package(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Requirement], Path]:
    """What the package for workers that convert requires, and the directory it was made in."""
    place = tmp_path_factory.mktemp("package")
    return build_metadata(place, VOXELBEAM_REQUIRES="conversion")[0], place / "source"


@pytest.fixture
def conversion_requires(conversion_package: tuple[list[Requirement], Path]) -> list[Requirement]:
    return conversion_package[0]


def test_package_for_conversion_workers_leaves_no_record_beside_the_sources(conversion_package):
    """Python started there would take what that package requires for what is installed."""
    assert sorted(path.name for path in conversion_package[1].glob("*.egg-info")) == []


def test_conversion_workers_are_not_made_to_install_tensorflow(conversion_requires):
    names = {requirement.name for requirement in conversion_requires}
    assert "apache-beam" in names
    assert not {name for name in names if name.startswith(("tensorflow", "keras"))}


def test_conversion_workers_keep_whatever_their_beam_allows(conversion_requires):
    """A worker's image has the newest numpy and protobuf that Beam allows: its gs:// needs them."""

    def upper_bounds(requirement: Requirement) -> set[str]:
        return {f"{part}" for part in requirement.specifier if part.operator not in (">=", "!=")}

    beams = {
        canonicalize_name(requirement.name): upper_bounds(requirement)
        for requirement in map(Requirement, importlib.metadata.requires("apache-beam") or ())
        if requirement.marker is None
    }
    shared = [entry for entry in conversion_requires if canonicalize_name(entry.name) in beams]
    assert {"numpy", "protobuf"} <= {requirement.name for requirement in shared}
    for requirement in shared:
        assert upper_bounds(requirement) <= beams[canonicalize_name(requirement.name)], requirement


def test_every_import_of_the_packages_is_declared(declared):
    provided = {
        file.parts[0].partition(".")[0]
        for requirement in declared
        for file in importlib.metadata.files(requirement.name) or []
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for module in imported_modules(path):
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in PACKAGES:
                    assert top in provided, f"{path}: {module} is not declared in setup.py"


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
    return modules


def run_make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # Without what an outer make passes down to its children.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "VENV", "WHEELHOUSE"}
    }
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [make, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def test_make_alone_lists_every_target():
    done = run_make()
    assert done.returncode == 0, done.stderr
    listed = set(re.findall(r"(?m)^  ([a-z-]+) {2,}\S", done.stdout))
    phony = re.search(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert phony
    assert listed == set(phony[1].split())


def shim(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def folder_of_tools(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: the few tools the Makefile needs, and broken Python shims."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("date", "find", "sed", "sort", "wc", "rm", "mkdir"):
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    for name in ("python3.12", "python3.11", "python3"):
        shim(folder, name, f'echo "shim: {name}: command not found" >&2; exit 127')
    return folder


def test_setup_without_a_working_python_says_so_in_one_line(tmp_path):
    done = run_make("setup", f"VENV={tmp_path}/venv", path=str(folder_of_tools(tmp_path)))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("setup: no working Python 3.11 or 3.12")
    assert "PYTHON=" in said[0]
    assert not (tmp_path / "venv").exists()


def test_setup_takes_the_first_python_that_works(tmp_path):
    folder = folder_of_tools(tmp_path)
    # Answers the question whether it works, and shows that it was chosen by failing as a venv.
    works = 'case "$1" in -c) exit 0;; --version) echo chosen-$0;; *) exit 3;; esac'
    shim(folder, "python3.11", works)
    shim(folder, "python3", works)
    done = run_make("setup", f"VENV={tmp_path}/venv", path=str(folder))
    assert "chosen-" in done.stdout
    assert "python3.11" in done.stdout
    assert done.returncode != 0


def test_setup_leaves_a_folder_alone_that_is_no_environment(tmp_path):
    folder = folder_of_tools(tmp_path)
    shim(folder, "python3.11", "exit 0")
    precious = tmp_path / "venv" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("months of work", encoding="utf-8")
    done = run_make("setup", f"VENV={precious.parent}", path=str(folder))
    assert done.returncode != 0
    assert "is no Python environment" in done.stderr
    assert precious.exists()
