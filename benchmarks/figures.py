"""Whether intervals of the figures beside the headline hold when cross-validations are repeated.

Each repetition is a new cohort with new patients beside it, new stratified folds, and ridge
regressions trained anew on them: of three classes' indicators, or of a value. The figures and their
intervals are the trainer's own. Held to account are the intervals of 95 % out of fold, by what the
procedure scores on new patients on average, and the range of labels dealt anew, by cohorts without
signal. Values with heavy tails (Student's t with three degrees of freedom) are told, not judged.

Exit code 1: a figure is covered in less than 93 % on average over its rows, or lies outside the
range of labels dealt anew in more than 7 % of cohorts without signal: each is 2 standard errors
of 200 repetitions and more away from its level.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from _harness import Limit, conclude, parser, show

from beam_jobs.common import cli
from trainer.metrics.auc import Floats
from trainer.metrics.estimate import OUT_OF_FOLD_FACTOR
from trainer.metrics.tasks.evaluation_classes import class_figures
from trainer.metrics.tasks.evaluation_values import bland_altman, calibration_line, value_figures
from trainer.metrics.tasks.spread import Figure, figure

PROG = "python benchmarks/figures.py"
FEATURES, FOLDS, NEW, LEVEL = 30, 5, 600, 0.95
PENALTY, SHARPNESS = 10.0, 4.0  # of the ridge; logits an indicator
LEAST_COVERED, MOST_OUTSIDE = 0.93, 0.07
EVEN, UNEVEN = (0.4, 0.3, 0.3), (0.6, 0.25, 0.15)

Answer = Callable[[Floats], Floats]


def fitted(volumes: Floats, wanted: Floats) -> Answer:
    """A ridge regression of wanted (n, outputs) on features (n, FEATURES)."""
    middle, level = volumes.mean(axis=0), wanted.mean(axis=0)
    centred = volumes - middle
    square = centred.T @ centred + PENALTY * np.eye(FEATURES)
    weights = np.linalg.solve(square, centred.T @ (wanted - level))
    return lambda of: (of - middle) @ weights + level


def values(rng: np.random.Generator, n: int, signal: float, heavy: bool) -> tuple[Floats, Floats]:
    """Features, and a value that the first three tell in part."""
    features = rng.normal(size=(n, FEATURES))
    noise = rng.standard_t(3, size=n) if heavy else rng.normal(size=n)
    return features, signal * features[:, :3].sum(axis=1) / np.sqrt(3) + noise


def classes(
    rng: np.random.Generator, n: int, signal: float, shares: Sequence[float]
) -> tuple[Floats, Any]:
    """Features, and one of three classes in order that the first two tell in part."""
    truth = rng.choice(3, p=shares, size=n)
    features = rng.normal(size=(n, FEATURES))
    features[:, 0] += signal * (truth - 1)
    features[:, 1] += signal * (truth == 1)
    return features, truth


def folds_of(rng: np.random.Generator, truth: Any) -> Any:
    """Stratified by class, or by the value's rank."""
    order = np.argsort(truth + 1e-6 * rng.random(truth.size))
    folds = np.empty(truth.size, np.int64)
    for start in range(0, truth.size, FOLDS):
        block = order[start : start + FOLDS]
        folds[block] = rng.permutation(FOLDS)[: block.size]
    return folds


def measured(task: str, truth: Any, answers: Floats, **more: Any) -> dict[str, Figure]:
    """The trainer's figures; of values their agreement and line among them."""
    if task == "classes":
        return class_figures(truth, answers, ordered=True, **more)
    found = value_figures(truth, answers, **more)
    factor = more.get("factor", 1.0)
    agreement = bland_altman(truth, answers, factor=factor)
    line = calibration_line(truth, answers, factor=factor)
    found["bias"] = figure(agreement["bias"], agreement["bias_interval"])
    found["limit"] = figure(agreement["low"], agreement["low_interval"])
    if line:
        found["slope"] = figure(line["slope"], line["slope_interval"])
    return found


def repetitions(
    task: str, n: int, signal: float, kind: Any, count: int, seed: int
) -> Iterator[tuple[dict[str, Figure], dict[str, float]]]:
    """Figures of a cohort out of fold, and the folds' mean of them on new patients."""
    rng = np.random.default_rng(seed)
    draw: Any = classes if task == "classes" else values
    made = 0
    while made < count:
        features, truth = draw(rng, n, signal, kind)
        if task == "classes" and np.bincount(truth, minlength=3).min() < FOLDS:
            continue
        made += 1
        folds = folds_of(rng, truth)
        unseen, theirs = draw(rng, NEW, signal, kind)
        wanted = truth[:, np.newaxis]
        if task == "classes":
            wanted = SHARPNESS * (wanted == np.arange(3))
        answers, on_new = np.zeros(wanted.shape), collections.defaultdict(list)
        for fold in range(FOLDS):
            answer = fitted(features[folds != fold], wanted[folds != fold].astype(np.float64))
            answers[folds == fold] = answer(features[folds == fold])
            there = answer(unseen)
            for name, one in measured(task, theirs, _shaped(task, there), draws=0).items():
                if one["value"] is not None:
                    on_new[name].append(one["value"])
        found = measured(
            task, truth, _shaped(task, answers), folds=folds, factor=OUT_OF_FOLD_FACTOR, seed=made
        )
        yield found, {name: float(np.mean(each)) for name, each in on_new.items()}


def _shaped(task: str, answers: Floats) -> Floats:
    return answers if task == "classes" else answers[:, 0]


def row_of(task: str, n: int, signal: float, kind: Any, count: int, seed: int) -> dict[str, Any]:
    """Of each figure: how often its interval covers, and how often it lies outside by chance."""
    cohorts = list(repetitions(task, n, signal, kind, count, seed))
    found: dict[str, Any] = {}
    for name in cohorts[0][0]:
        each = [one[name] for one, _ in cohorts if one.get(name) and one[name]["interval"]]
        expected = float(np.mean([on_new[name] for _, on_new in cohorts if name in on_new]))
        covered = [one["interval"][0] <= expected <= one["interval"][1] for one in each]
        found[name] = {"covered": float(np.mean(covered)), "expected": expected}
        if signal == 0 and each[0]["by_chance_interval"]:
            ranges = [(one["value"], *one["by_chance_interval"]) for one in each]
            outside = [not low <= value <= high for value, low, high in ranges]
            found[name]["outside"] = float(np.mean(outside))
    return found


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a level is broken."""
    made = parser("figures.py", __doc__ or "", rounds=None, examples=f"  {PROG} --repetitions 50\n")
    made.add_argument("--repetitions", type=int, default=200, metavar="N", help="cohorts a row")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn")
    flags = made.parse_args(argv)
    if flags.repetitions < 2:
        raise cli.UsageError("--repetitions: two or more")
    rows: dict[str, dict[str, Any]] = {}
    for n in (60, 110, 300):
        for task, kind in (
            ("classes", EVEN),
            ("classes", UNEVEN),
            ("values", False),
            ("values", True),
        ):
            for signal in (0.0, 1.0):
                name = f"{task}/{kind}/{n}/{signal:g}"
                rows[name] = row_of(task, n, signal, kind, flags.repetitions, flags.seed + n)
                print(name, file=sys.stderr, flush=True)
    table: list[Sequence[str]] = []
    limits: list[Limit] = []
    for heavy in (False, True):
        chosen = [row for name, row in rows.items() if ("/True/" in name) == heavy]
        for name in dict.fromkeys(name for row in chosen for name in row):
            covered, outside = (
                [row[name][kind] for row in chosen if kind in row.get(name, ())]
                for kind in ("covered", "outside")
            )
            title = f"{name}, heavy tails" if heavy else name
            table.append((title, *_told(covered, min), *_told(outside, max)))
            if not heavy:
                limits += _limits(name, covered, outside)
    show(("figure", "covered, mean", "least", "outside without signal, mean", "most"), table)
    return conclude(limits, {"rows": rows}, flags.json)


def _limits(name: str, covered: Sequence[float], outside: Sequence[float]) -> Iterator[Limit]:
    value = float(np.mean(covered))
    yield Limit(figure=f"{name}: covered", value=value, at_least=LEAST_COVERED)
    if outside:
        value = float(np.mean(outside))
        yield Limit(figure=f"{name}: outside", value=value, at_most=MOST_OUTSIDE)


def _told(shares: Sequence[float], of: Callable[[Sequence[float]], float]) -> tuple[str, str]:
    return (f"{100 * np.mean(shares):.1f}", f"{100 * of(shares):.1f}") if shares else ("", "")


if __name__ == "__main__":
    cli.run(main, PROG)
