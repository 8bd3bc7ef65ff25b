"""What a fresh clone relies on: the locks and setup.py."""

import ast
import functools
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
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("beam_jobs", "trainer", "serving")
# A lock and the Pythons that it serves.
LOCKS = {
    "requirements.lock": ("3.11", "3.12"),
    "requirements-new.lock": ("3.11", "3.12", "3.13"),
}
SERVED = [(lock, python) for lock, pythons in LOCKS.items() for python in pythons]
# Left out of a lock: CUDA, which an image adds, and tensorflow-io with its TensorFlow.
UNLOCKED_EXTRAS = {"requirements.lock": {"gpu"}, "requirements-new.lock": {"gpu", "io"}}


@functools.cache
def locked_entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Requirements of a lock, each with its hashes."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split("--hash=")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines
    ]


def linux(python: str) -> dict[str, str]:
    """What markers ask of the environment: this Python on Linux x86_64."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }


def applies(requirement: Requirement, python: str, *extras: str) -> bool:
    """Whether it is required on Linux x86_64 under this Python, with these extras."""
    return requirement.marker is None or any(
        requirement.marker.evaluate({**linux(python), "extra": extra}) for extra in ("", *extras)
    )


def locked_version(name: str, python: str, lock: str = "requirements.lock") -> str | None:
    """The version that a lock installs on Linux x86_64 under this Python, if any."""
    pins = [
        next(iter(entry.specifier)).version
        for entry, _ in locked_entries(lock)
        if canonicalize_name(entry.name) == canonicalize_name(name) and applies(entry, python)
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


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_is_pinned_and_hashed(lock):
    entries = locked_entries(lock)
    assert entries
    for entry, hashes in entries:
        assert [spec.operator for spec in entry.specifier] == ["=="], entry
        assert hashes, f"{entry} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_absolute_path(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(
        r"(?m)(^|\s)(--?(index-url|extra-index-url|find-links|trusted-host)\b)", text
    )
    assert not re.search(r"(?m)(^|[\s(])/\w", text)


@pytest.mark.parametrize(("lock", "python"), SERVED)
def test_every_declared_requirement_is_locked_within_its_range(declared, lock, python):
    extras = set(importlib.metadata.metadata("voxelbeam").get_all("Provides-Extra") or [])
    assert extras > UNLOCKED_EXTRAS[lock]
    asked = [each for each in declared if applies(each, python, *(extras - UNLOCKED_EXTRAS[lock]))]
    assert len(asked) > 50
    for requirement in asked:
        version = locked_version(requirement.name, python, lock)
        assert version, f"{requirement} is not in {lock} for Python {python}"
        assert requirement.specifier.contains(version), f"{requirement}, {lock} has {version}"


@pytest.mark.parametrize(("lock", "python"), SERVED)
def test_beam_finds_a_client_of_googles_that_imports_on_this_python(lock, python):
    apitools = locked_version("google-apitools", python, lock)
    assert apitools
    assert (Version(apitools) >= Version("0.5.35")) is (python == "3.13")


def test_the_first_lock_holds_the_second_decoder_and_the_new_one_does_not():
    for name in ("tensorflow-io", "tensorflow-io-gcs-filesystem"):
        assert locked_version(name, "3.11") == locked_version(name, "3.12") == "0.37.1"
        assert not [
            entry for entry, _ in locked_entries("requirements-new.lock") if entry.name == name
        ]


def test_the_second_decoder_brings_what_its_tensorflow_bounds():
    """Else pip takes the newest of each first, and tries release after release of what needs it."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    ]
    said = {each.name: each.specifier for each in map(Requirement, extras["io"])}
    old, new = LOCKS
    for name in ("tensorflow", "numpy", "protobuf", "tensorboard"):
        assert said[name].contains(locked_version(name, "3.12", old) or ""), name
        assert not said[name].contains(locked_version(name, "3.12", new) or ""), name
    # Releases from 82 on have no pkg_resources, which tensorboard 2.17 imports.
    assert said["setuptools"].contains(locked_version("setuptools", "3.12", old) or "")
    assert not said["setuptools"].contains("82")


def test_the_locks_try_both_ends_of_what_setup_admits():
    def major(name: str, lock: str) -> int:
        version = locked_version(name, "3.12", lock)
        assert version, name
        return Version(version).major

    old, new = LOCKS
    for name in ("numpy", "pandas", "protobuf"):
        assert major(name, old) < major(name, new), name


def test_what_runs_on_the_newest_libraries_is_there():
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    tests = next(re.finditer(r"(?m)^NEW_TESTS := (.*)", makefile))[1].split()
    assert len(tests) > 2
    assert not [path for path in tests if not (ROOT / path).exists()]


def test_pythons_that_setup_admits_are_those_that_a_lock_serves(declared):
    python = SpecifierSet(importlib.metadata.metadata("voxelbeam")["Requires-Python"])
    served = {each for pythons in LOCKS.values() for each in pythons}
    assert served == {f"3.{minor}" for minor in range(20) if python.contains(f"3.{minor}.0")}
    classifiers = importlib.metadata.metadata("voxelbeam").get_all("Classifier") or []
    named = {text.rpartition(" ")[2] for text in classifiers if ":: Python :: 3." in text}
    assert named == served


@pytest.mark.parametrize("name", ["tensorflow-hub", "pylibjpeg-libjpeg"])
def test_forbidden_package_is_neither_declared_nor_locked(declared, name):
    names = {canonicalize_name(requirement.name) for requirement in declared}
    names |= {canonicalize_name(entry.name) for lock in LOCKS for entry, _ in locked_entries(lock)}
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

    def upper_bound(requirement: Requirement) -> Version:
        bounds = [Version(part.version) for part in requirement.specifier if "<" in part.operator]
        return min(bounds, default=Version("999999"))

    beams = {
        canonicalize_name(requirement.name): upper_bound(requirement)
        for requirement in map(Requirement, importlib.metadata.requires("apache-beam") or ())
        if requirement.marker is None
    }
    shared = [entry for entry in conversion_requires if canonicalize_name(entry.name) in beams]
    assert {"numpy", "protobuf"} <= {requirement.name for requirement in shared}
    for requirement in shared:
        assert upper_bound(requirement) >= beams[canonicalize_name(requirement.name)], requirement


def test_every_import_of_the_packages_is_declared(declared):
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    provided = {"tensorflow_io"}  # of the `io` extra, which one lock leaves out
    for requirement in declared:
        if applies(requirement, here, "aws", "gcp", "dicom_out"):
            files = importlib.metadata.files(requirement.name) or []
            provided |= {file.parts[0].partition(".")[0] for file in files}
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
