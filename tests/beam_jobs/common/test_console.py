"""`voxelbeam VERB` is `python -m MODULE`: the same help, errors and exit codes, by another name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.common.console import VERBS
from beam_jobs.common.version import __version__

ROOT = Path(__file__).resolve().parents[3]
CONSOLE = (sys.executable, "-c", "from beam_jobs.common.console import main; main()")


def run(*command: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_verb_and_its_module() -> None:
    code, out, err = run(*CONSOLE, "--help")
    assert (code, err) == (0, "")
    for verb, (module, purpose) in VERBS.items():
        assert f"  {verb} " in out
        assert purpose in out
        assert f"python -m {module}\n" in out


def test_version_is_the_distributions() -> None:
    assert run(*CONSOLE, "--version") == (0, f"voxelbeam {__version__}\n", "")


@pytest.mark.parametrize("verb", ["phantoms", "evaluate"])  # a package and a module
def test_a_verb_has_its_modules_help_under_its_own_name(verb: str) -> None:
    module, _ = VERBS[verb]
    code, out, err = run(*CONSOLE, verb, "--help")
    assert (code, err) == (0, "")
    assert f"usage: voxelbeam {verb} " in out
    assert "python -m" not in out
    expected = run(sys.executable, "-m", module, "--help")[1]
    assert options_of(out) == options_of(expected)


def test_every_verb_is_a_module_that_runs() -> None:
    for module, _ in VERBS.values():
        found = importlib.util.find_spec(module)
        assert found is not None
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None


def options_of(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize(("library", "verb"), [("numpy", "convert"), ("pydicom", "survey")])
def test_a_library_that_does_not_import_is_one_line_that_names_the_doctor(
    library: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError('libz.so: cannot open')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = run(*CONSOLE, verb, "--input", str(tmp_path), "--output", str(tmp_path / "o"))
    assert (code, out) == (1, "")
    line = "a library does not import (libz.so: cannot open): voxelbeam doctor says what to mend"
    assert err == f"voxelbeam {verb}: error: {line}\n"


def test_a_library_that_is_imported_late_and_does_not_import_is_one_line() -> None:
    late = (
        "from beam_jobs.common import cli\n"
        "def late(_):\n"
        "    raise ImportError('libz.so: cannot open')\n"
        "cli.run(late, 'voxelbeam train')"
    )
    code, out, err = run(sys.executable, "-c", late)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "libz.so" in err


def test_errors_speak_of_the_verb() -> None:
    code, out, err = run(*CONSOLE, "check", "no.csv", "--sample", "no.csv")
    assert (code, out) == (2, "")
    assert err.startswith("voxelbeam check: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["trian"], ["--verbose"]])
def test_what_is_no_verb_is_refused_in_one_line(words: list[str]) -> None:
    code, out, err = run(*CONSOLE, *words)
    assert (code, out) == (2, "")
    assert err.startswith("voxelbeam: error: ")
    assert err.count("\n") == 1


def test_help_of_all_imports_no_library() -> None:
    code = "import sys; from beam_jobs.common import console; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run(sys.executable, "-c", code)[1].split()}
    assert loaded <= {*sys.stdlib_module_names, "beam_jobs"} | site_modules()


def site_modules() -> set[str]:
    """What the interpreter itself loads at its start (an editable installation's finder)."""
    out = run(sys.executable, "-c", "import sys; print(*sys.modules)")[1]
    return {name.partition(".")[0] for name in out.split()}
