"""Rooms and walls (ARCHITECTURE.md): who may import whom, read from the source.

What a room costs to import is asked of fresh interpreters.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a room imports itself and the rooms before it. "" is the commands.
ROOMS = {
    "beam_jobs": [
        *("common", "core", "runners", "convert", "phantoms", "report", "inventory", "api", ""),
    ],
    "trainer": [
        *("config", "data", "networks", "metrics", "training", "machine"),
        *("forest", "explain", "search", "reports", "api", "testing", ""),
    ],
    "serving": ["model", "predict", "api", ""],
}
# Module (or room) → what it may import of the other packages.
ABROAD = {
    "trainer": ("beam_jobs.common", "beam_jobs.core"),
    "serving": ("beam_jobs",),
    "serving.export": ("beam_jobs", "trainer"),
}
LIBRARIES = {
    "beam_jobs.core": {
        *(
            "gdcm",
            "google",
            "google_crc32c",
            "highdicom",
            "nibabel",
            "numpy",
            "pandas",
            "pydicom",
            "scipy",
        ),
    },
    "trainer.networks": {"h5py", "keras", "numpy"},
    "trainer.networks.hypermodel": {"keras_tuner"},  # beside the room's
}
MOST_LINES, MOST_MODULES = 400, 15


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {
    name_of(path): path
    for package in ROOMS
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}
FOR_PYTHON = ("api", "testing")  # what Python users import, beside the commands
COMMANDS = {
    name
    for name in FILES
    if name.endswith(".__main__")
    or (name.count(".") == 1 and name.rpartition(".")[2] not in FOR_PYTHON)
}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that an import statement of a file names, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else node.module for name in full)


IMPORTS = {name: set(imports_of(path)) for name, path in FILES.items()}
OURS = {name: found & FILES.keys() for name, found in IMPORTS.items()}


def room_of(module: str) -> str:
    """A module's room in its package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[1] in FOR_PYTHON else ""


def test_a_module_can_be_read_in_one_sitting():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_a_package_has_few_modules_beside_its_rooms():
    modules = Counter(name.rpartition(".")[0] for name in FILES)
    assert not {name: count for name, count in modules.items() if count > MOST_MODULES}


def test_package_files_are_empty():
    for package in ROOMS:
        for path in (ROOT / package).rglob("__init__.py"):
            assert path.read_text() == "", path


def test_nobody_imports_a_command():
    assert not {(name, one) for name, found in OURS.items() for one in found & COMMANDS}


def test_no_import_points_up():
    up = []
    for name, found in OURS.items():
        package = name.split(".")[0]
        rooms = ROOMS[package]
        for one in found:
            if not one.startswith(f"{package}."):
                if not one.startswith(ABROAD.get(name, ABROAD.get(package, ()))):
                    up.append((name, one))
            # The commands of a room stand in it as __main__.
            elif rooms.index(room_of(one)) > rooms.index(room_of(name)):
                up.append((name, one))
    assert not up


def test_no_imports_go_round_in_a_circle():
    state: dict[str, str] = {}
    way: list[str] = []

    def visit(name: str) -> None:
        assert state.get(name) != "open", [*way[way.index(name) :], name]
        if name not in state:
            state[name] = "open"
            way.append(name)
            for one in sorted(OURS[name]):
                visit(one)
            way.pop()
            state[name] = "closed"

    for name in FILES:
        visit(name)


@pytest.mark.parametrize("room", [name for name in LIBRARIES if name not in FILES])
def test_a_pure_room_has_few_libraries(room):
    packages = {name.split(".")[0] for name in ROOMS}
    for name, found in IMPORTS.items():
        if name.startswith(f"{room}."):
            foreign = {one.split(".")[0] for one in found} - packages
            own = LIBRARIES[room] | LIBRARIES.get(name, set())
            assert foreign <= own | set(sys.stdlib_module_names), name


def test_files_are_opened_by_the_layer_for_files_alone():
    """A path that a user names may lie in a store, which `open` and `Path` do not know."""
    own = ("beam_jobs.common.files.", "beam_jobs.phantoms.")
    found = [
        f"{name}:{node.lineno}"
        for name, path in FILES.items()
        if not name.startswith(own)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("gfile", "GFile", "FileSystems", "WriteToText", "ReadFromText")
    ]
    assert not found


def test_kerastuner_is_touched_by_the_search_and_by_what_builds_its_models():
    found = {name for name, one in IMPORTS.items() if any(m.startswith("keras_tuner") for m in one)}
    assert "trainer.networks.hypermodel" in found
    at_once = ast.parse(FILES["trainer.networks.hypermodel"].read_text()).body
    assert not [node for node in at_once if "keras_tuner" in ast.unparse(node).splitlines()[0]]
    rest = found - {"trainer.networks.hypermodel"}
    assert rest
    assert all(name.startswith("trainer.search.") for name in rest)


def loaded_by(*names: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh interpreter that imported `names`."""
    code = f"import sys, {', '.join(names)}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def in_room(room: str) -> list[str]:
    return [name for name in FILES if name.startswith(f"{room}.")]


HEAVY = {"tensorflow", "keras", "keras_tuner", "apache_beam", "sklearn", "matplotlib"}


@pytest.mark.parametrize(
    ("names", "heavy"),
    [
        (in_room("beam_jobs.core"), HEAVY),
        (in_room("beam_jobs.common"), HEAVY),
        (in_room("beam_jobs.phantoms"), HEAVY),
        (["beam_jobs.api"], HEAVY),
        (in_room("beam_jobs.convert"), HEAVY - {"apache_beam"}),
        (["beam_jobs.dicom_to_tfrecord", "beam_jobs.survey"], HEAVY - {"apache_beam"}),
        (in_room("trainer.config"), HEAVY),
        (["trainer.api", "trainer.task", "trainer.baseline", "trainer.evaluate"], HEAVY),
        # It has to say what is wrong where none of them can be imported.
        (["trainer.doctor"], {*HEAVY, "numpy", "pydicom", "obstore", "rich", "packaging"}),
    ],
    ids=[
        *("core", "common", "phantoms", "api", "convert", "conversion", "config", "training"),
        "doctor",
    ],
)
def test_what_a_room_costs_to_import(names, heavy):
    assert not loaded_by(*names) & heavy
