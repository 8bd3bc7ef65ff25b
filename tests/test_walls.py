"""Who may import whom (ARCHITECTURE.md, "Rooms"), asked of fresh interpreters and of the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("tensorflow", "keras", "keras_tuner", "apache_beam", "sklearn", "matplotlib")


def modules(folder: str) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if path.name != "__init__.py"
    ]


def loaded_by(*names: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh interpreter that imported `names`."""
    code = f"import sys, {', '.join(names)}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def imports_of(module: str) -> set[str]:
    """Every module named in an import statement of a source file, at any depth."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def test_core_brings_in_neither_beam_nor_tensorflow():
    core = modules("beam_jobs/core")
    assert len(core) > 10
    assert not loaded_by("beam_jobs.core", *core) & set(HEAVY)


def test_record_format_phantoms_and_terminal_cost_no_beam_and_no_tensorflow():
    light = ("beam_jobs.core.tfrecord", "beam_jobs.phantoms.__main__", "beam_jobs.common.terminal")
    assert not loaded_by(*light) & set(HEAVY)


def test_conversion_costs_no_tensorflow():
    loaded = loaded_by(
        "beam_jobs.dicom_to_tfrecord", "beam_jobs.convert.transforms", "beam_jobs.convert.finish"
    )
    assert not loaded & {"tensorflow", "keras", "keras_tuner"}


@pytest.mark.parametrize("module", modules("beam_jobs/core"))
def test_core_imports_only_itself_and_its_libraries(module):
    ours = {name for name in imports_of(module) if name.split(".")[0] in _OURS}
    assert all(name.startswith(("beam_jobs.core", "beam_jobs.common")) for name in ours), ours
    foreign = {name.split(".")[0] for name in imports_of(module)} - set(_OURS)
    libraries = {
        "numpy", "scipy", "pydicom", "pandas", "gdcm", "google", "google_crc32c", "nibabel",
    }  # fmt: skip
    assert foreign <= libraries | set(sys.stdlib_module_names)


_OURS = ("beam_jobs", "trainer", "serving", "tests")
_TRAINER_MAY = (
    "beam_jobs.core.cohort.ids",
    "beam_jobs.core.record",
    "beam_jobs.core.manifest",
    "beam_jobs.core.example",
    "beam_jobs.core.tfrecord",
    "beam_jobs.common",
)


@pytest.mark.parametrize("module", modules("trainer"))
def test_trainer_knows_records_and_manifests_alone(module):
    for name in imports_of(module):
        assert not name.startswith(("apache_beam", "serving")), name
        if name.startswith("beam_jobs."):
            assert name in ("beam_jobs", "beam_jobs.core") or name.startswith(_TRAINER_MAY), name


@pytest.mark.parametrize("module", modules("serving"))
def test_only_export_knows_the_trainer(module):
    if module != "serving.export":
        assert not {name for name in imports_of(module) if name.split(".")[0] == "trainer"}


@pytest.mark.parametrize("module", [*modules("beam_jobs"), *modules("trainer")])
def test_nobody_imports_serving(module):
    assert not {name for name in imports_of(module) if name.split(".")[0] == "serving"}


@pytest.mark.parametrize("module", modules("trainer/networks"))
def test_networks_and_augmentation_are_pure_keras(module):
    foreign = {name.split(".")[0] for name in imports_of(module)} - set(_OURS)
    assert foreign <= {"keras", "numpy", "h5py"} | set(sys.stdlib_module_names)


def test_settings_and_the_baseline_cost_no_tensorflow():
    names = (
        "trainer.task",
        "trainer.training.environment",
        "trainer.baseline",
        *modules("trainer/config"),
    )
    assert not loaded_by(*names, "trainer.evaluate") & {"tensorflow", "keras", "matplotlib"}


@pytest.mark.parametrize(
    "package",
    [str(p.parent.relative_to(ROOT)) for o in _OURS[:3] for p in (ROOT / o).rglob("__init__.py")],
)
def test_package_files_are_empty(package):
    assert (ROOT / package / "__init__.py").read_text() == ""
