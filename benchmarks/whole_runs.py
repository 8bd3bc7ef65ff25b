"""Whole cross-validated runs on phantoms: what they claim without signal, and what they export.

no_signal: cohorts whose labels are shuffled in the CSV before the conversion. A run may not say
"better than chance", which luck alone brings about once in forty.

exported: a revision that kept each fold's best epoch on its own held-out patients, and this tree,
train the same runs; both ensembles (mean logit of the members) rank phantoms that neither has seen.

Exit code 1: more than one claim in ten, or a network that is worse than the one exported before by
more than two standard errors of the paired runs' mean difference.
"""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import ROOT, Limit, code_of, conclude, parser, run, show
from rich.console import Console

from beam_jobs.common import cli

PROG = "whole_runs.py"
PARTS = ("no_signal", "exported")
BEFORE = "19dee62"
FRESH = 200
SIDE = Path(__file__).with_name("revisions") / "fresh_patients.py"
CONSOLE = Console(stderr=True)


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    line = parser(PROG, __doc__ or "", rounds=None)
    line.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: both")
    line.add_argument("--epochs", type=int, nargs="+", default=[15, 100], metavar="E")
    line.add_argument("--cohorts", type=int, default=10, metavar="N", help="without signal")
    line.add_argument("--before", default=BEFORE, metavar="REV", help="chose on the scored fold")
    line.add_argument("--pairs", type=int, default=20, metavar="N", help="exported, of 5 cohorts")
    line.add_argument("--difficulty", type=float, default=0.6, help="of the exported's phantoms")
    line.add_argument(
        "--settings", type=json.loads, default={}, metavar="JSON", help="of this tree's runs alone"
    )
    args = line.parse_args(argv)
    limits: list[Limit] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if "no_signal" in args.parts:
            figures["no_signal"] = _no_signal(args, Path(scratch), limits)
        if "exported" in args.parts:
            figures["exported"] = _exported(args, Path(scratch), limits)
    return conclude(limits, figures, args.json)


def _no_signal(args: Any, work: Path, limits: list[Limit]) -> list[dict[str, Any]]:
    """Runs on shuffled labels; 109 patients of 5 folds each."""
    figures = []
    for seed in range(args.cohorts):
        data = _dataset(work, f"no-signal-{seed}", seed=seed, patients=109, shuffled=True)
        for epochs in args.epochs:
            place = str(work / f"no-signal-{seed}-{epochs}")
            run(
                [sys.executable, "-m", "trainer.task", "--data", data, "--output_dir", place,
                 "--cross_validate", "--epochs", str(epochs), "--model", "seed_cnn", "--quiet",
                 "--width", "0.25", "--learning_rate", "1e-3", "--seed", str(seed)]
            )  # fmt: skip
            metrics = json.loads(Path(place, "run.json").read_text())["metrics"]
            figures.append({"seed": seed, "epochs": epochs, **_telling(metrics)})
            CONSOLE.print(json.dumps(figures[-1]))
    rows = []
    for epochs in args.epochs:
        those = [one for one in figures if one["epochs"] == epochs]
        better, worse = (
            sum(one[name] for one in those) for name in ("better_than_chance", "worse_than_chance")
        )
        areas = [one["auc"] for one in those]
        rows.append((f"{epochs}", f"{len(those)}", f"{statistics.mean(areas):.3f}",
                     f"{min(areas):.3f} to {max(areas):.3f}", f"{better}", f"{worse}"))  # fmt: skip
        limits.append(
            Limit(
                figure=f"{epochs} epochs: claims without signal",
                value=better + worse,
                at_most=max(1, len(those) // 10),
            )
        )
    show(("epochs", "runs", "mean AUC", "AUC", "better than chance", "worse than chance"), rows)
    return figures


def _telling(metrics: dict[str, Any]) -> dict[str, Any]:
    names = ("auc", "auc_interval", "better_than_chance", "worse_than_chance")
    return {name: metrics[name] for name in names}


def _exported(args: Any, work: Path, limits: list[Limit]) -> list[dict[str, Any]]:
    """Ensembles of both revisions on fresh phantoms."""
    rows, figures = [], []
    hard = ("--difficulty", str(args.difficulty))
    fresh = _dataset(work, "fresh", *hard, seed=1000, patients=FRESH)
    cohorts = [_dataset(work, f"cohort-{seed}", *hard, seed=seed, patients=60) for seed in range(5)]
    with code_of(args.before) as before:
        for epochs in args.epochs:
            sides = []
            for name, code, settings in (("before", before, {}), ("now", ROOT, args.settings)):
                CONSOLE.print(f"{name}: {args.pairs} runs of {epochs} epochs")
                request = {
                    "cohorts": cohorts,
                    "fresh": fresh,
                    "seeds": args.pairs // len(cohorts),
                    "config": {
                        "epochs": epochs,
                        "network": {"name": "seed_cnn", "width": 0.25},
                        "optimizer": {"learning_rate": 1e-3},
                        **settings,
                    },
                    "work": str(work / f"{name}-{epochs}"),
                }
                done = run([sys.executable, str(SIDE), json.dumps(request)], PYTHONPATH=str(code))
                sides.append(json.loads(done.stdout.splitlines()[-1]))
            differences = [now - then for then, now in zip(*sides, strict=True)]
            mean = statistics.mean(differences)
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            rows.append(
                (
                    f"{epochs}",
                    *(f"{statistics.mean(side):.3f}" for side in sides),
                    f"{mean:+.3f} ± {error:.3f}",
                    f"{sum(one >= 0 for one in differences)} of {len(differences)}",
                )
            )
            limits.append(
                Limit(
                    figure=f"{epochs} epochs: mean difference in its standard errors",
                    value=mean / error if error else 0.0,
                    at_least=-2.0,
                )
            )
            figures.append({"epochs": epochs, "before": sides[0], "now": sides[1]})
    show(("epochs", "AUC before", "AUC now", "difference", "at least as good"), rows)
    return figures


def _dataset(
    work: Path, name: str, *phantoms: str, seed: int, patients: int, shuffled: bool = False
) -> str:
    """Phantoms, converted to one channel of 24 x 24 x 16 voxels; the dataset's directory.

    Five folds for what is claimed, three for what is exported.
    """
    cohort, dataset = work / f"{name}-dicom", work / name
    run(
        [sys.executable, "-m", "beam_jobs.phantoms", "--output", str(cohort), "--quiet",
         "--patients", str(patients), "--test_patients", "0", "--seed", str(seed), "--matrix",
         "40,48", "--slices", "18,22", "--modalities", "T1wCE", *phantoms]
    )  # fmt: skip
    labels = cohort / "train_labels.csv"
    if shuffled:
        with labels.open(newline="") as stream:
            header, *rows = csv.reader(stream)
        values = [row[1] for row in rows]
        random.Random(seed).shuffle(values)
        with labels.open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [header, *([row[0], value] for row, value in zip(rows, values, strict=True))]
            )
    run(
        [sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--input", str(cohort / "train"),
         "--labels", str(labels), "--output", str(dataset), "--modalities", "T1wCE", "--shape",
         "24,24,16", "--folds", "5" if shuffled else "3", "--no_report", "--quiet"]
    )  # fmt: skip
    return str(dataset)


if __name__ == "__main__":
    cli.run(main, f"python benchmarks/{PROG}")
