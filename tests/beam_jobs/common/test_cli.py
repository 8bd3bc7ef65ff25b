"""Commands end alike: one line, a code that is written down, and no word to a closed pipe."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from beam_jobs.common import cli, imports
from tests.commands import outcome

ROOT = Path(__file__).resolve().parents[3]


def command(body: str) -> list[str]:
    """A command whose `main` is `body`."""
    code = (
        "import sys, threading, time\n"
        "from beam_jobs.common import cli\n"
        "def main(argv):\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "    return 0\n"
        "cli.run(main, 'python -m some.command')\n"
    )
    return [sys.executable, "-c", code]


def into_closed_pipe(argv: list[str], **environment: str) -> tuple[int, str]:
    """(exit code, stderr) of a command whose stdout nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            argv,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        )
    finally:
        os.close(write)
    return done.returncode, done.stderr


def test_finished_work_that_has_no_reader_is_done() -> None:
    assert into_closed_pipe(command("print('done')")) == (0, "")


def test_work_cut_short_by_a_closed_pipe_ends_without_a_word() -> None:
    body = "print('started', flush=True)\nprint('never here', file=sys.stderr)"
    assert into_closed_pipe(command(body)) == (1, "")
    assert into_closed_pipe(command("print('done')"), PYTHONUNBUFFERED="1") == (1, "")


def test_help_may_be_cut_off() -> None:
    assert into_closed_pipe([sys.executable, "-m", "trainer.evaluate", "--help"]) == (0, "")


def test_an_error_is_reported_though_the_output_has_no_reader() -> None:
    body = "print('half')\nraise cli.CommandError('no luck')"
    assert into_closed_pipe(command(body)) == (1, "python -m some.command: error: no luck\n")


def test_another_broken_pipe_than_ours_is_an_error() -> None:
    done = subprocess.run(
        command("raise BrokenPipeError(32, 'a store hung up')"),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr == "python -m some.command: error: a store hung up\n"


def test_a_full_disk_behind_stdout_is_reported() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("print('lost')"), stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 1
    assert done.stderr == "python -m some.command: error: No space left on device\n"


def test_what_the_system_says_of_a_file_is_told_without_numbers() -> None:
    done = subprocess.run(command("open('/no/such')"), capture_output=True, text=True, cwd=ROOT)
    expected = "python -m some.command: error: /no/such: No such file or directory\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_ctrl_c_silences_threads() -> None:
    body = (
        "def target():\n"
        "    time.sleep(0.2)\n"
        "    raise RuntimeError('too late')\n"
        "threading.Thread(target=target).start()\n"
        "raise KeyboardInterrupt"
    )
    done = subprocess.run(command(body), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130
    assert done.stderr == "python -m some.command: error: interrupted\n"


def test_ctrl_c_amid_an_import_is_the_commands_to_answer(tmp_path: Path) -> None:
    *_, code = command("exec('raise KeyboardInterrupt')  # as a dataclass is made")
    (tmp_path / "interrupted.py").write_text(code)
    argv = [sys.executable, "-m", "interrupted"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 130
    assert done.stderr == "python -m some.command: error: interrupted\n"


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("beam_jobs.phantoms", ["--output", "setup.py", "--patients", "1"]),
        ("serving.batch_predict", ["--model", "no", "--input", "no", "--output", "no"]),
        ("serving.check_submission", ["tests", "--sample", "no"]),
        ("serving.export", ["--runs", "no", "--output", "no"]),
        ("trainer.evaluate", ["--predictions", "no", "--labels", "no"]),
        ("trainer.task", ["--data", "no", "--output_dir", "no", "--fold", "0"]),
    ],
)
def test_a_name_that_does_not_exist_is_wrong_usage_in_one_line_of_one_form(
    module: str,
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    command = importlib.import_module(module)
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{module}.__main__")
    for given in (argv, [*argv, "--no_such_flag"]):
        code, out, err = outcome(command.main, given, capsys, monkeypatch, prog=command.PROG)
        assert (code, out) == (2, ""), err
        assert err.startswith(f"python -m {module}: error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(("level", "printed"), [(None, ""), ("warning", "retracing\n")])
def test_tensorflows_python_is_as_quiet_as_its_compiled_part(
    level: str | None, printed: str
) -> None:
    warn = "logging.getLogger('tensorflow').warning('retracing')"
    body = (
        f"import logging\nfrom beam_jobs.common import imports\nimports.quiet_tensorflow()\n{warn}"
    )
    environment = {key: value for key, value in os.environ.items() if "LOG_LEVEL" not in key}
    if level:
        environment["VOXELBEAM_LOG_LEVEL"] = level
    done = subprocess.run(
        command(body), capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stderr == printed


def test_a_name_that_is_no_utf8_is_refused_before_tensorflow_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.require_utf8("Bj\u00f6rk/\u8111")
    place = tmp_path / "\udcff"
    place.mkdir()
    with pytest.raises(cli.UsageError, match="not UTF-8, and this command takes no other names"):
        cli.require_utf8(str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(place))
    with pytest.raises(cli.UsageError, match="not UTF-8"):
        imports.quiet_tensorflow()


def test_an_error_is_one_line_of_bounded_length_whatever_it_quotes() -> None:
    body = "raise cli.UsageError('no: ' + 'x' * 100_000 + ' found')"
    done = subprocess.run(command(body), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    start = "python -m some.command: error: no: xxx"
    assert done.stderr.startswith(start)
    assert done.stderr.endswith("xxx found\n")
    assert len(done.stderr) < 400
    body = "raise cli.UsageError('no: ' + ', '.join(map(str, range(10_000))))"
    done = subprocess.run(command(body), capture_output=True, text=True, cwd=ROOT)
    assert len(done.stderr) < 1600
    assert done.stderr.endswith("...\n")
    body = "cli.Parser(prog='it', description='', examples='').parse_args(['--' + 'x' * 100_000])"
    done = subprocess.run(command(body), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert len(done.stderr) < 400


def test_what_is_nested_too_deep_and_what_needs_too_much_is_one_line() -> None:
    for raised, said in (("RecursionError('x')", "too deep"), ("MemoryError('1 TB')", "1 TB")):
        done = subprocess.run(
            command(f"raise {raised}"), capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
