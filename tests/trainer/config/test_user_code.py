"""A user's own function: found where Python finds it and on the working directory, or told why."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from trainer.config import user_code
from trainer.config.user_code import accepted, is_reference, load, reason

Write = Callable[[str, str], Path]


def test_a_colon_makes_a_reference() -> None:
    assert is_reference("package.module:function")
    assert not is_reference("resnet10")
    assert not is_reference(None)


def test_a_function_is_found_on_the_working_directory(user_module: Write) -> None:
    user_module("found_here.py", "def f():\n    return 7\n")
    assert load("found_here:f", flag="--loss")() == 7
    user_module(
        "package_here/sub/deep.py", "class A:\n    @staticmethod\n    def f():\n        return 8\n"
    )
    assert load("package_here.sub.deep:A.f", flag="--loss")() == 8


def test_what_is_installed_goes_before_the_working_directory(
    user_module: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    user_module("colorsys.py", "def own():\n    return 0\n")
    with pytest.raises(UsageError, match=r"colorsys \(.*python3.*colorsys\.py\) has no own"):
        load("colorsys:own", flag="--loss")


def test_classes_partials_and_decorated_functions_are_functions(user_module: Write) -> None:
    user_module(
        "kinds.py",
        "import functools\n"
        "class Made: ...\n"
        "def f(a, b): return a + b\n"
        "part = functools.partial(f, 1)\n"
        "def decorator(g):\n"
        "    @functools.wraps(g)\n"
        "    def inner(*args, **kwargs): return g(*args, **kwargs)\n"
        "    return inner\n"
        "decorated = decorator(f)\n",
    )
    assert load("kinds:part", flag="--loss")(2) == load("kinds:decorated", flag="--loss")(1, 2) == 3
    assert load("kinds:Made", flag="--loss").__name__ == "Made"
    assert accepted(load("kinds:decorated", flag="--loss"), ["b", "c"]) == ["b"]


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        ("", "broken:f", r"broken \(.*cwd/broken\.py\) has no f$"),
        ("f = 3", "broken:f", "not a function, but int$"),
        ("def f(: pass", "broken:f", r"SyntaxError: invalid syntax \(broken\.py, line 1\)$"),
        (
            "x = 1\nraise ValueError('a\\nb')",
            "broken:f",
            r"ValueError: a b \(broken\.py, line 2\)$",
        ),
        ("raise SystemExit(2)", "broken:f", "ends the program when it is imported"),
        ("import nosuch_module", "broken:f", "imports nosuch_module, which is not there"),
        ("from . import x", "broken:f", "ImportError: attempted relative import"),
        ("", "broken.below:f", r"no such module \(looked in .*cwd too\)$"),
        ("", "nosuch_module:f", r"no such module \(looked in .*cwd too\)$"),
        ("", "broken.py:f", r"a module's name is without \.py"),
        ("", "./broken:f", r"package\.module:function is needed$"),
        ("", "broken:", r"package\.module:function is needed$"),
        ("", "__main__:f", "a file of its own is needed$"),
        ("def __getattr__(name): raise OSError('no disk')", "broken:f", "fails: OSError: no disk"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(
    user_module: Write, text: str, reference: str, message: str
) -> None:
    user_module("broken.py", text)
    with pytest.raises(UsageError, match=message) as found:
        load(reference, flag="--loss")
    assert str(found.value).startswith("--loss ")
    assert "\n" not in str(found.value)


def test_what_a_module_prints_is_no_part_of_a_commands_output(
    user_module: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    user_module("talks.py", "print('hello')\ndef f(): ...\n")
    load("talks:f", flag="--loss")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_function_is_found_in_an_archive(user_module: Write) -> None:
    place = user_module("here", "").parent / "own.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("zipped.py", "def f(): return 9\n")
    sys.path.append(str(place))
    assert load("zipped:f", flag="--loss")() == 9


def test_an_error_is_told_with_the_line_that_raised_it_and_no_more(user_module: Write) -> None:
    user_module("raises.py", "def f():\n    raise KeyError('x' * 1000)\n")
    with pytest.raises(KeyError) as found:
        load("raises:f", flag="--loss")()
    told = reason(found.value)
    assert told.startswith("KeyError: 'xxx")
    assert told.endswith("... (raises.py, line 2)")
    assert len(told) < 400


def test_a_function_that_does_not_say_what_it_takes_accepts_nothing() -> None:
    assert accepted(lambda *args, **kwargs: None, ["top"]) == []
    assert accepted(dict.fromkeys, ["top"]) == []
    assert accepted(functools.partial(lambda volume, top: None, 1), ["top"]) == ["top"]


def test_a_process_is_told_of_a_place_where_it_would_not_look(
    user_module: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "_PLACES", set())
    user_module("by_cwd.py", "def f(): ...\n")
    load("by_cwd:f", flag="--loss")
    assert user_code.places() == []
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "by_script.py").write_text("def f(): ...\n")
    sys.path.append(str(tmp_path / "scripts"))
    load("by_script:f", flag="--loss")
    assert user_code.places() == [str(tmp_path / "scripts")]


@pytest.mark.slow  # starts the command
@pytest.mark.parametrize("safe", ["", "1"])
def test_the_console_command_looks_in_the_working_directory(user_module: Write, safe: str) -> None:
    user_module("own_aug.py", "raise ValueError('it was found')\n")
    ended = subprocess.run(
        [
            *(Path(sys.executable).with_name("voxelbeam"), "train", "--data", "."),
            *("--output_dir", "run", "--fold", "0", "--augment", "own_aug:f"),
        ],
        env={**os.environ, "PYTHONSAFEPATH": safe},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "error:" in ended.stderr
    assert "Traceback" not in ended.stderr
