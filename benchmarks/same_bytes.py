"""What two revisions make of the same demo, byte by byte.

Both run the whole chain on small phantoms, by its commands alone: synthesis, survey, conversion,
verification, reports, baseline, training, search, evaluation, saliency, export, prediction. Then
every file that one of them wrote is held against the other's.

Text must be equal but for times and the directory's name, archives (.keras, .npz, .gz) member by
member, SavedModels in their variables and answers. What commands print is kept and not compared;
their exit codes are. Exit code 1: a difference that `EXPECTED` does not name, or a command that
failed. A side takes about three minutes.

`EXPECTED` names what the move of all modules changed: `--before e7e189f --after 626104e`. Version
0.3 keeps other networks and scores them otherwise: of its stages, `--only` those before training.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import code_of, git
from revisions.chain import STAGES, STEPS, Step, needed
from revisions.compare import FAILING, RECORD, Expected, Verdict, compare
from revisions.contents import THROUGH_MODEL, TIMES, UNSTABLE
from rich.console import Console
from rich.table import Table

from beam_jobs.common import cli

PROG = "python benchmarks/same_bytes.py"
PARTS = Path(__file__).with_name("revisions")
MODELS = "models.npz"
# Inputs get this time of change: a conversion remembers its files by it.
CHANGED = 1_700_000_000

# Lines in which words changed: of a dataset's page its script's hash and comment and two sentences,
# of a model's card what the export was not given.
REWORDED = {
    "report.html": (6, 511, 623),
    "dataset/report.html": (6, 511, 623),
    "dataset_npz/report.html": (6, 421, 531),
    "dataset_hmac/report.html": (6, 513, 514, 626),
    "dataset_heap/report.html": (6, 399, 493),
    "model_slices/assets/MODEL_CARD.md": (19, 20, 39),
    **{f"{name}/report.html": (131,) for name in ("run", "run_slices", "run_permuted")},
    "evaluation/report.html": (131,),
    "study/report.html": (581,),
    "study_hyperband/report.html": (629,),
}
# What the working tree is meant to make otherwise than the revision it is held against.
EXPECTED: tuple[Expected, ...] = (
    Expected(
        file="*.keras",
        place="config.json/*.module",
        why="Keras writes where a layer's class lies; it is found by its registered name",
    ),
    Expected(
        file="against.html",
        place="line *",
        why="the report compares cohorts by the rule that prediction uses",
    ),
    Expected(
        file="*/.lock",
        place="bytes",
        why="a lock's file says who held it",
    ),
    *(
        Expected(
            file="*metrics.json",
            place=place,
            relative=1e-12,
            why="Wilson's interval and average precision are SciPy's and scikit-learn's",
        )
        for place in ("*interval.*", "*average_precision.*")
    ),
    Expected(
        file="*metrics.json",
        place="warnings.*",
        why="field terms in what the page says of itself",
    ),
    Expected(
        file="saliency*/*.nii.gz",
        place="header",
        why="nibabel writes the header: the same shape, type and affine, other unused fields",
    ),
    Expected(
        file="*/.state/lock",
        place="file",
        why="a lock's file stays: who unlinks it lets two jobs hold it",
    ),
    Expected(
        file="model_slices/assets/contract.json",
        place="calibration.why",
        why="field terms in what the model says of its calibration",
    ),
    *(
        Expected(file=file, place=f"line {line}", why="field terms in what the page says of itself")
        for file, lines in REWORDED.items()
        for line in lines
    ),
)


def tree_of(revision: str | None) -> str:
    """The tree's hash of a revision, or of the working tree with what git does not ignore in it."""
    if revision is not None:
        return git("rev-parse", "--verify", f"{revision}^{{tree}}").decode().strip()
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        git("read-tree", "HEAD", **index)
        git("add", "--all", **index)
        return git("write-tree", **index).decode().strip()


def make_side(tree: str, steps: Sequence[Step], work: Path) -> Path:
    """Run the steps with a tree's code, in a new directory of `work`.

    Args:
      tree: hash of the tree.
      steps: what to run, in order.
      work: where the directory is made; its path is as long for every side.

    Returns:
      the directory. Its `ran.json` holds each step's exit code, seconds and new files.
    """
    side = Path(tempfile.mkdtemp(prefix="side-", dir=work))
    (side / "logs").mkdir()
    with code_of(tree) as code:
        environment = {
            **os.environ,
            "PYTHONPATH": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        there: set[str] = set()
        ran = {step.name: run(step, side, environment, there) for step in steps}
        models = sorted(path.parent.name for path in side.glob("*/saved_model.pb"))
        if models:
            probe = [str(PARTS / "models.py"), MODELS, "dataset/*.tfrecord", *models]
            subprocess.run([sys.executable, *probe], cwd=side, env=environment, check=True)
            last = [step.name for step in steps if step.stage == "export"][-1]
            ran[last]["files"].append(MODELS)
    record = {"root": str(side), "versions": versions(), "steps": ran}
    (side / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return side


def run(step: Step, side: Path, environment: dict[str, str], there: set[str]) -> dict[str, Any]:
    """Run one step; `there` holds the files of the steps before it, and then its own too."""
    if step.prepare is not None:
        step.prepare(side)
        settle(side, files_of(side) - there)
    module, *arguments = step.command.split()
    log = side / "logs" / f"{step.name}.txt"
    start = time.perf_counter()
    with log.open("wb") as stream:
        code = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=side,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode
    seconds = time.perf_counter() - start
    new = files_of(side) - there
    if step.stage == "phantoms":
        settle(side, new)
    there |= new
    print(f"  {step.name:<20} {seconds:5.1f} s, {len(new)} files", flush=True)
    if code != step.code:
        print(f"  exit code {code}, must be {step.code}:\n{log.read_text()[-2000:]}", flush=True)
    return {"code": code, "seconds": round(seconds, 1), "files": sorted(new)}


def files_of(side: Path) -> set[str]:
    files = (path.relative_to(side) for path in side.rglob("*") if path.is_file())
    return {file.as_posix() for file in files if file.parts[0] != "logs"}


def settle(side: Path, files: set[str]) -> None:
    for name in files:
        os.utime(side / name, (CHANGED, CHANGED))


def made_before(tree: str, steps: Sequence[Step], work: Path) -> Path:
    """The side of a tree with these steps: the one that `work` holds already, or a new one."""
    parts = [(PARTS / name).read_bytes() for name in ("chain.py", "models.py")]
    names = [step.name for step in steps]
    key = hashlib.sha256(repr((tree, names, parts)).encode()).hexdigest()[:8]
    kept = work / f"before-{key}"
    if not kept.is_dir():
        print(f"before, tree {tree[:12]}:")
        made = make_side(tree, steps, work)
        with contextlib.suppress(OSError):  # another run was quicker: its side is as good
            return made.rename(kept)
        shutil.rmtree(made)
    print(f"before, tree {tree[:12]}: {kept}")
    now = versions()
    for name, version in json.loads((kept / RECORD).read_text())["versions"].items():
        if now.get(name) != version:
            print(f"  was made with {name} {version}, now {now.get(name)}; delete it to redo it")
    return kept


def versions() -> dict[str, str]:
    """{package: version} of this environment, which both sides run in."""
    return {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}


def show(console: Console, verdicts: Sequence[tuple[str, Verdict]], list_all: bool) -> None:
    """Tables of what is left out, of every file that is not the same, and of counts a stage."""
    left_out = Table("left out of the comparison", "what it is")
    for name, what in {**TIMES, **UNSTABLE}.items():
        left_out.add_row(name, what)
    left_out.add_row("files' times of change", "inputs' are set to the same ones")
    for name, how in THROUGH_MODEL.items():
        left_out.add_row(f"model*/{name}", f"where bytes differ; {how}")
    console.print(left_out)
    files = Table("stage", "file", "verdict", "what")
    for stage, verdict in verdicts:
        if list_all or verdict.word in (*FAILING, "expected"):
            files.add_row(stage, verdict.file, verdict.word, verdict.detail)
    if files.row_count:
        console.print(files)
    counts = collections.Counter((stage, verdict.word) for stage, verdict in verdicts)
    words = list(dict.fromkeys(["same", *sorted({word for _, word in counts})]))
    table = Table("stage", *words)
    for stage in dict.fromkeys(stage for stage, _ in verdicts):
        table.add_row(stage, *(str(counts[stage, word] or "") for word in words))
    console.print(table)


def main(argv: Sequence[str]) -> int:
    """Runs both sides and prints the verdicts; returns 1 at a difference that is not expected."""
    parser = cli.Parser(
        prog=PROG,
        description=__doc__ or "",
        examples=f"  {PROG}\n  {PROG} --before v1 --work /tmp/same --only convert report\n",
        exit_codes={cli.EXIT_FAILURE: "a difference that is not expected, or a failed command"},
        output=False,
    )
    parser.add_argument("--before", default="HEAD", metavar="REV", help="to compare with")
    parser.add_argument("--after", metavar="REV", help="default: the working tree as it is now")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, metavar="STAGE",
        help=f"compare these stages and run what they need (default: all): {', '.join(STAGES)}",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the before side here, and take it from here"
    )
    parser.add_argument("--keep", action="store_true", help="keep the after side too")
    parser.add_argument("--all", action="store_true", help="list equal files too")
    flags = parser.parse_args(argv)
    trees = tree_of(flags.before), tree_of(flags.after)
    stages = flags.only or STAGES
    steps = needed(stages)
    with contextlib.ExitStack() as stack:
        work = flags.work
        if work is None and flags.keep:
            work = Path(tempfile.mkdtemp(prefix="same-bytes-"))
        elif work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        before = made_before(trees[0], STEPS if flags.work else steps, work)
        print(f"after, tree {trees[1][:12]}:")
        after = make_side(trees[1], steps, work)
        verdicts = list(compare(before, after, stages, EXPECTED))
        console = Console(width=None if sys.stdout.isatty() else 160)
        show(console, verdicts, flags.all)
        if flags.keep:
            print(f"kept: {before} and {after}")
        else:
            shutil.rmtree(after)
    unseen = set(EXPECTED).difference(*(verdict.expected for _, verdict in verdicts))
    for entry in unseen if len(stages) == len(STAGES) else ():
        print(f"expected and not seen: {entry.file} {entry.place} ({entry.why})")
    failing = sum(verdict.word in FAILING for _, verdict in verdicts)
    print(f"{len(verdicts)} files, {failing} of them with a difference that is not expected")
    return cli.EXIT_FAILURE if failing else cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main, PROG)
