"""What SECURITY.md says of strangers' files, where no other test holds it."""

import ast
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.serving.models import write_run
from trainer.config.run_layout import FOLD_STATE_NAME
from trainer.training.checkpoint import load_state
from trainer.training.run_files import Run

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("beam_jobs", "trainer", "serving")
NETWORK = "fold-0/network.keras"


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text("utf-8")))
    assert len(named) >= 4
    assert all((ROOT / name).is_file() for name in named)


def test_the_page_says_which_versions_are_mended() -> None:
    from beam_jobs.common.version import __version__

    supported = __version__.rpartition(".")[0]
    assert f"| {supported} | yes |" in (ROOT / "SECURITY.md").read_text("utf-8")


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(name with its modules, call) of every call in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def test_no_file_is_ever_unpickled_or_run() -> None:
    """One place unpickles: what a conversion's own workers have packed for each other."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            for call, node in calls(path):
                if call in ("eval", "compile", "__import__", "joblib.load", "joblib.dump"):
                    found.add((name, call))
                if call == "exec" and [ast.unparse(given) for given in node.args] != ["''"]:
                    found.add((name, call))
                if call.startswith(("pickle.", "dill.", "marshal.", "yaml.")):
                    found.add((name, call))
                if call.endswith(("np.load", "numpy.load")):
                    keywords = {given.arg: ast.unparse(given.value) for given in node.keywords}
                    assert keywords.get("allow_pickle") == "False", name
                if call.endswith("load_model") and "saving" in call:
                    assert "safe_mode" not in ast.unparse(node), name
    assert found == {
        ("beam_jobs/convert/transforms.py", "pickle.dumps"),
        ("beam_jobs/convert/transforms.py", "pickle.loads"),
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path / "run", seeds=(0,))


def of_lambda(path: Path, mark: Path) -> None:
    """A network with Python code in it."""
    code = f"open({str(mark)!r}, 'w').write('owned')"
    volume = keras.Input((6, 5, 4, 3), dtype="uint8")
    namespace: dict[str, Any] = {}
    exec(f"layer = lambda x: (x, {code})[0]", namespace)
    x = keras.layers.Lambda(namespace["layer"], output_shape=(6, 5, 4, 3))(volume)
    keras.Model(volume, x).save(path)
    mark.unlink(missing_ok=True)  # it ran as it was made


def of_another_module(module: str, name: str, given: Any) -> Callable[[Path, Path], None]:
    """A network one of whose layers is a class, or a function, of any module."""

    def put(path: Path, mark: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        config = json.loads(members["config.json"])
        layer = config["config"]["layers"][1]
        arguments = json.loads(json.dumps(given).replace("MARK", str(mark)))
        layer.update(module=module, class_name=name, registered_name=name, config=arguments)
        members["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    return put


@pytest.mark.parametrize(
    "change",
    [
        of_lambda,
        of_another_module("subprocess", "Popen", {"args": ["touch", "MARK"]}),
        of_another_module("subprocess", "check_call", {"args": ["touch", "MARK"]}),
        of_another_module("os", "system", {"command": "touch MARK"}),
        of_another_module("pathlib", "Path", {}),
        of_another_module("builtins", "exec", {"source": "open('MARK', 'w')"}),
        of_another_module(
            "keras.utils", "get_file", {"fname": "MARK", "origin": "file:///etc/hosts"}
        ),
        of_another_module("keras.saving", "load_model", {"filepath": "MARK"}),
    ],
)
def test_a_runs_network_that_carries_code_is_refused(
    run: Run, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    mark = tmp_path / "mark"
    change(Path(run.directory, NETWORK), mark)
    with pytest.raises(ContractError, match="not a readable Keras model"):
        run.load_member(0)
    assert not mark.exists()


class _Owned:
    """What unpickling it would do."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._mark,))


def test_a_state_with_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    objects = np.array([_Owned(tmp_path / "mark")], dtype=object)
    state: dict[str, Any] = {"progress": objects, "array-0": objects}
    np.savez(tmp_path / FOLD_STATE_NAME, **state)
    with pytest.raises(ContractError, match="not a readable state"):
        load_state(tmp_path, request="")
    assert not (tmp_path / "mark").exists()
