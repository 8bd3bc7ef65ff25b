"""Where a case happens: its input, its output, its TMPDIR, and other people's files around them.

ROOT/
  input/      what the case puts there
  tmp/        $TMPDIR
  home/       $HOME
  notes.txt, state/state.npz, ...           other people's
  work/       the directory a command starts in
    output    where a command is to write, absent at first
    letter.txt, neighbour/...               other people's
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from beam_jobs.common.printable import printable
from tests.hostile.made import Made
from tests.hostile.zygote import ROOT, Outcome

MOST_BYTES = 1 << 30
CODES = (0, 1, 2, 8)
_LARGE = 64 << 20
# What says that a directory is finished.
_MARKERS = ("manifest.json", "run.json", "saved_model.pb", "assets/contract.json")
# What other libraries and the interpreter say in their own name.
_FOREIGN = re.compile(
    r"Traceback \(most recent|^Exception ignored|^  File \"|\w+Warning: |^(WARNING|INFO|ERROR):"
    r"|^[WIEF]\d{4} |: [IWEF] tensorflow/|^Fatal Python error|core dumped",
    re.MULTILINE,
)
_ERROR = re.compile(r"^(python -m [\w.]+|voxelbeam[ \w]*): error: ", re.MULTILINE)
# What rich sends to a terminal: colours, the cursor's showing, lines taken back.
_STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[\d*A|\r+\n|\r(?=\x1b|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The directories of one case, with other people's files among them.

    Attributes:
      root: an empty directory.
      made: sound inputs to copy from.
    """

    root: Path
    made: Made

    def __post_init__(self) -> None:
        for name in ("input", "tmp", "home", "streams", "work"):
            self.path(name).mkdir()
        for name, mode in (
            ("notes.txt", 0o644), ("state/state.npz", 0o600), ("x/state.npz", 0o644),
            ("work/letter.txt", 0o444), ("work/neighbour/manifest.json", 0o644),
            ("work/neighbour/train/T1w/00000.npz", 0o640), ("work/neighbour/.state/lock", 0o644),
            ("work/neighbour/fold-0-00000-of-00001.tfrecord", 0o644), ("work/report.html", 0o644),
        ):  # fmt: skip
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} belongs to somebody else\n")
            path.chmod(mode)
        self.path("work/link").symlink_to("letter.txt")

    def path(self, name: str) -> Path:
        """A place below the root."""
        return self.root / name

    @property
    def output(self) -> Path:
        """Where a command is to write; absent until the case or the command makes it."""
        return self.root / "work" / "output"

    @property
    def work(self) -> Path:
        """The directory that a command starts in."""
        return self.root / "work"

    def put(self, what: str, to: str = "") -> Path:
        """Copies a sound input.

        Args:
          what: a name of `Made`'s: "cohort", "dataset", "run", ...
          to: where below the root; default "input/WHAT".
        """
        source, place = self.made.get(what), self.path(to or f"input/{what}")
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True)
        else:
            shutil.copy(source, place)
        return place

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes a file below the root, and the directories it lies in."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a command."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.path("home")),
            "TMPDIR": str(self.path("tmp")),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            **(changes or {}),
        }

    def snapshot(self) -> dict[str, str]:
        """What lies where: kind, mode and content of all but TMPDIR, HOME and caught streams."""
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[str, str]]:
        for folder, names, members in os.walk(self.root):
            if Path(folder) == self.root:
                names[:] = [name for name in names if name not in ("tmp", "home", "streams")]
            for name in (*names, *members):
                path = Path(folder, name)
                yield str(path.relative_to(self.root)), _described(path)


def _described(path: Path) -> str:
    status = path.lstat()
    kind = f"{stat.filemode(status.st_mode)} {status.st_size if path.is_file() else ''}"
    if stat.S_ISLNK(status.st_mode):
        return f"{kind} {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return kind
    if status.st_size > _LARGE or not os.access(path, os.R_OK):
        return f"{kind} {status.st_mtime_ns}"
    return f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def faults(
    outcome: Outcome,
    sandbox: Sandbox,
    before: Mapping[str, str],
    *,
    codes: tuple[int, ...] = CODES,
    may_change: Callable[[str], bool] = lambda name: False,
    may_add: Callable[[str], bool] = lambda name: False,
    terminal: bool = False,
    says_no: bool = False,
) -> Iterator[str]:
    """What must not be, after whatever case; nothing where all held.

    Args:
      outcome: how it ended.
      sandbox: where it happened.
      before: its snapshot from before.
      codes: the exit codes it may end with.
      may_change: whether a path below the root, besides the output, may differ afterwards.
      may_add: whether one that was not there may be.
      terminal: its streams were a terminal.
      says_no: code 1 is a verdict, on stdout, and no error.
    """
    if outcome.killed:
        yield f"killed for {outcome.killed} after {outcome.seconds:.1f} s"
    elif outcome.code not in codes:
        yield f"exit code {outcome.code}, signal {outcome.signal}"
    if outcome.peak_bytes >= MOST_BYTES:
        yield f"{outcome.peak_bytes / 1e6:.0f} MB at its peak"
    if outcome.left:
        yield f"left in TMPDIR: {', '.join(outcome.left[:5])}"
    if outcome.left_processes:
        yield f"left running: {outcome.left_processes[0]}"
    yield from _speech_faults(outcome, terminal, says_no)
    after = sandbox.snapshot()
    added = after.keys() - before.keys()
    yield from _file_faults(
        outcome, before, after, lambda name: may_change(name) or (name in added and may_add(name))
    )


def _speech_faults(outcome: Outcome, terminal: bool, says_no: bool) -> Iterator[str]:
    stderr = _STYLE.sub("\n", outcome.stderr) if terminal else outcome.stderr
    stdout = _STYLE.sub("\n", outcome.stdout) if terminal else outcome.stdout
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        if found := _FOREIGN.search(text):
            line = text[found.start() :].splitlines()[0]
            yield f"{name} has another's words: {line[:160]!r}"
        for line in text.split("\n"):
            if not line.isprintable() and printable(line) != line.replace("\xa0", " "):
                yield f"{name} has raw control characters: {line[:160]!r}"
                break
    errors = len(_ERROR.findall(stderr))
    failed = outcome.code not in (0, 8)
    no = says_no and outcome.code == 1 and outcome.stdout
    if errors != failed and not outcome.killed and not no:
        yield f"{errors} error lines on stderr with exit code {outcome.code}"
    longest = max(map(len, stderr.splitlines()), default=0)
    if longest > 2000:
        yield f"a line of {longest} characters on stderr"


def _file_faults(
    outcome: Outcome,
    before: Mapping[str, str],
    after: Mapping[str, str],
    may_change: Callable[[str], bool],
) -> Iterator[str]:
    output = "work/output"
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        if name == output or name.startswith((f"{output}/", f"{output}.")):
            if name.endswith(".part"):
                yield f"{name} is left over"
            continue
        if not may_change(name):
            what = "gone" if name not in after else "changed" if name in before else "new"
            yield f"{name} is {what}"
    if outcome.code in (0, 8) or outcome.killed:
        return
    for name in (output, f"{output}.csv"):
        if name not in before and after.get(name, "d").startswith("-"):
            yield f"failed, and yet {name} stands"
    for marker in _MARKERS:
        name = f"{output}/{marker}"
        if before.get(name) != after.get(name) and name in after:
            yield f"failed, and yet {marker} says that its output is finished"
