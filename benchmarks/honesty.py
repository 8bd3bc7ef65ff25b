"""Whether claims hold their level when whole cross-validated training runs are repeated.

Each repetition is a new cohort with new patients beside it, new folds, and networks trained anew (a
fast stand-in; benchmarks/_stand_in.py). Epochs are chosen, AUCs estimated and models compared by
the trainer's own code. "Before" is what version 0.2 did: each fold's best epoch on that very fold,
logits pooled, Newcombe's interval.

Exit code 1: without signal more than 2.5 % are told to be better, or worse, than chance; with
signal the 95 % interval covers the procedure's expected AUC (its networks on new patients) in less
than 93 % of a cell, or not in 95 to 97 % on average; equal models differ significantly in more than
5 %. Cells are allowed 3 standard errors of their repetitions, averages 2.

With --task the runs are of classes, findings or values. There any class or finding may be told
better than chance in 5 % at most, by p-values adjusted for their number, and intervals of values
hold 88 % of new patients at least, the folds' networks answering together, or one of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from _harness import Limit, conclude, parser, show
from _repetitions import (
    BEFORE,
    CELLS,
    FURTHER,
    KINDS,
    PERMUTATIONS,
    RULES,
    Cell,
    Measured,
    Told,
    measure,
    permuted,
)
from _stand_in_tasks import TARGETS
from _task_repetitions import (
    KINDS as TASK_KINDS,
)
from _task_repetitions import (
    RULES as TASK_RULES,
)
from _task_repetitions import (
    TASK_CELLS,
    TaskCell,
    TaskMeasured,
    measure_task,
    permuted_task,
)

from beam_jobs.common import cli

PROG = "python benchmarks/honesty.py"


def limits_of(cells: Mapping[Cell, Measured], repetitions: int) -> Iterator[Limit]:
    """What was promised, with the Monte Carlo error that so many repetitions have."""

    def error(percent: float, of: int = 1) -> float:
        return math.sqrt(percent * (100 - percent) / (repetitions * of))

    silent = [measured for cell, measured in cells.items() if not cell.shift]
    speaking = [measured for cell, measured in cells.items() if cell.shift]
    for rule in RULES:
        for side in ("better", "worse") if silent else ():
            shares = [float(getattr(one.told[rule], side)) for one in silent]
            name = f"{side} than chance without signal, {rule}, % of"
            yield Limit(figure=f"{name} a cell", value=max(shares), at_most=2.5 + 3 * error(2.5))
            yield Limit(figure=f"{name} all", value=float(np.mean(shares)),
                        at_most=2.5 + 2 * error(2.5, len(silent)))  # fmt: skip
        if speaking:
            covered = [one.told[rule].covered() for one in speaking]
            mean, slack = float(np.mean(covered)), 2 * error(95, len(speaking))
            yield Limit(figure=f"covered with signal, {rule}, % of a cell", value=min(covered),
                        at_least=93 - 3 * error(93))  # fmt: skip
            name = f"covered with signal, {rule}, % of all"
            yield Limit(figure=name, value=mean, at_least=95 - slack)
            yield Limit(figure=name, value=mean, at_most=97 + slack)
    for kind in KINDS:
        found = [one.share(kind) for one in cells.values() if kind in one.differ]
        if found:
            name = f"equal models differ, other {kind}, % of"
            yield Limit(figure=f"{name} a cell", value=max(found), at_most=5 + 3 * error(5))
            yield Limit(figure=f"{name} all", value=float(np.mean(found)),
                        at_most=5 + 2 * error(5, len(found)))  # fmt: skip


def show_tables(cells: Mapping[Cell, Measured], by_permutation: Mapping[Cell, Told]) -> None:
    """Prints the tables of the documentation."""
    kinds = ("n", "positive", "epochs")
    silent = {cell: one for cell, one in cells.items() if not cell.shift}
    speaking = {cell: one for cell, one in cells.items() if cell.shift}

    def sides(told: Told) -> str:
        return f"{told.better:.1f} / {told.worse:.1f}"

    if silent:
        print("\nWithout signal: AUC and variance (of Newcombe's); better / worse in %\n")
        show(
            (
                *kinds,
                "before: AUC",
                "last: variance",
                BEFORE,
                *RULES,
                *(f"differ: {kind}" for kind in KINDS),
            ),
            (
                (
                    *cell.names,
                    f"{one.told[BEFORE].auc:.3f}",
                    f"{one.told['last'].sd ** 2 / cell.variance:.2f}",
                    *(sides(one.told[rule]) for rule in (BEFORE, *RULES)),
                    *(f"{one.share(kind):.1f}" for kind in KINDS),
                )
                for cell, one in silent.items()
            ),
        )
    if speaking:
        fresh = (BEFORE, "last", "mean", "crossfit")
        print("\nWith signal: AUC on new patients\n")
        show(
            (*kinds, *fresh, "before: told"),
            (
                (
                    *cell.names,
                    *(f"{one.told[rule].expected:.3f}" for rule in fresh),
                    f"{one.told[BEFORE].auc:.3f}",
                )
                for cell, one in speaking.items()
            ),
        )
        print("\nWith signal: covered, and better than chance, in %\n")
        show(
            (*kinds, "AUC", BEFORE, *RULES, *(f"differ: {kind}" for kind in KINDS[:2])),
            (
                (
                    *cell.names,
                    f"{one.told['last'].expected:.2f}",
                    *(
                        f"{one.told[rule].covered():.1f}, {one.told[rule].better:.0f}"
                        for rule in (BEFORE, *RULES)
                    ),
                    *(f"{one.share(kind):.1f}" for kind in KINDS[:2]),
                )
                for cell, one in speaking.items()
            ),
        )
    if by_permutation:
        print(f"\n{PERMUTATIONS} permutations decide: better / worse, covered in %\n")
        show(
            (*kinds, "AUC", "better / worse", "covered"),
            (
                (*cell.names, f"{told.expected:.2f}", sides(told), f"{told.covered():.1f}")
                for cell, told in by_permutation.items()
            ),
        )
    further = {cell: one for cell, one in cells.items() if FURTHER[0] in one.told}
    if further:
        print("\nTheir own mean over repetitions covered, in %\n")
        show(
            (*kinds, "AUC", *FURTHER),
            (
                (
                    *cell.names,
                    f"{one.told['last'].expected:.2f}",
                    *(f"{one.told[name].covered(one.told[name].auc):.1f}" for name in FURTHER),
                )
                for cell, one in further.items()
            ),
        )


def limits_of_tasks(cells: Mapping[TaskCell, TaskMeasured], repetitions: int) -> Iterator[Limit]:
    """`limits_of` for classes, findings and values."""

    def slack(percent: float) -> float:
        return 3 * math.sqrt(percent * (100 - percent) / repetitions)

    for cell, one in cells.items():
        where = f"of {' '.join(cell.names)}"
        for rule, told in one.told.items():
            if cell.signal:
                yield Limit(figure=f"covered, {rule}, % {where}", value=told.covered(),
                            at_least=93 - slack(93))  # fmt: skip
                continue
            for side in ("better", "worse"):
                yield Limit(figure=f"{side} than chance, {rule}, % {where}",
                            value=getattr(told, side), at_most=2.5 + slack(2.5))  # fmt: skip
        if not cell.signal:
            yield Limit(figure=f"any part better than chance, % {where}", value=one.any_told,
                        at_most=5 + slack(5))  # fmt: skip
        for kind in one.differ:
            yield Limit(figure=f"equal models differ, other {kind}, % {where}",
                        value=one.share(kind), at_most=5 + slack(5))  # fmt: skip
        if one.inside:
            yield Limit(figure=f"new values within intervals, % {where}",
                        value=100 * float(np.mean(one.inside)), at_least=88)  # fmt: skip


def show_task_tables(
    cells: Mapping[TaskCell, TaskMeasured], by_permutation: Mapping[TaskCell, Told]
) -> None:
    """Prints what classes, findings and values give."""
    kinds = ("task", "n", "mix", "epochs")
    rules = TASK_RULES
    silent = {cell: one for cell, one in cells.items() if not cell.signal}
    speaking = {cell: one for cell, one in cells.items() if cell.signal}
    if silent:
        print("\nWithout signal: variance (of the closed form's); better / worse in %\n")
        show(
            (*kinds, "variance", *rules, "any part", *(f"differ: {kind}" for kind in TASK_KINDS)),
            (
                (
                    *cell.names[:4],
                    f"{one.times:.2f}",
                    *(
                        f"{one.told[rule].better:.1f} / {one.told[rule].worse:.1f}"
                        for rule in rules
                    ),
                    f"{one.any_told:.1f}",
                    *(f"{one.share(kind):.1f}" for kind in TASK_KINDS),
                )
                for cell, one in silent.items()
            ),
        )
    if speaking:
        print("\nWith signal: score on new patients; covered, and better than chance, in %\n")
        show(
            (*kinds, "score", *rules, *(f"differ: {kind}" for kind in TASK_KINDS[:2])),
            (
                (
                    *cell.names[:4],
                    f"{one.told['last'].expected:.2f}",
                    *(f"{one.told[rule].covered():.1f}, {one.told[rule].better:.0f}"
                      for rule in rules),
                    *(f"{one.share(kind):.1f}" for kind in TASK_KINDS[:2]),
                )
                for cell, one in speaking.items()
            ),
        )  # fmt: skip
    if values := {cell: one for cell, one in cells.items() if one.inside}:
        print("\nIntervals of 90 %: new patients within them in %, and the coverage told\n")
        show(
            (*kinds, "signal", "all folds' networks", "one network", "told"),
            (
                (
                    *cell.names,
                    *(f"{100 * np.mean(part):.1f}"
                      for part in (one.inside, one.inside_one, one.measured)),
                )
                for cell, one in values.items()
            ),
        )  # fmt: skip
    if by_permutation:
        print("\n39 permutations decide: better / worse in %\n")
        show(
            (*kinds, "signal", "better / worse"),
            (
                (*cell.names, f"{told.better:.1f} / {told.worse:.1f}")
                for cell, told in by_permutation.items()
            ),
        )


def of_tasks(flags: argparse.Namespace, repetitions: int) -> int:
    """Measures cohorts of one task, prints, and returns 1 if a level is broken."""
    wanted = [
        cell
        for cell in TASK_CELLS
        if cell.task == flags.task
        and "/".join(cell.names[1:]).startswith(flags.cells)
        and (cell.epochs == 15 or not flags.quick)
    ]
    if not wanted or repetitions < 2:
        raise cli.UsageError(f"--cells {flags.cells}: no such cell, or too few repetitions")
    cells, by_permutation = {}, {}
    for number, cell in enumerate(wanted, start=1):
        cells[cell] = measure_task(cell, repetitions, flags.seed)
        if (cell.n, cell.epochs, cell.mix) == (60, 15, "unequal"):
            by_permutation[cell] = permuted_task(cell, max(2, repetitions // 4), flags.seed)
        print(f"{number}/{len(wanted)}  {'/'.join(cell.names)}  {cells[cell].seconds:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    show_task_tables(cells, by_permutation)
    figures = {
        "cells": [{**dataclasses.asdict(cell), **one.to_json()} for cell, one in cells.items()],
        "permutations": [
            {**dataclasses.asdict(cell), **told.to_json()} for cell, told in by_permutation.items()
        ],
    }
    return conclude(list(limits_of_tasks(cells, repetitions)), figures, flags.json)


def figures_of(
    cells: Mapping[Cell, Measured], by_permutation: Mapping[Cell, Told]
) -> dict[str, Any]:
    """Everything measured, as JSON."""
    return {
        "cells": [
            {
                **dataclasses.asdict(cell),
                "rules": {rule: told.to_json() for rule, told in one.told.items()},
                "differ": {kind: one.share(kind) for kind in one.differ},
                "seconds": one.seconds,
            }
            for cell, one in cells.items()
        ],
        "permutations": [
            {**dataclasses.asdict(cell), **told.to_json()} for cell, told in by_permutation.items()
        ],
    }


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a level is broken."""
    made = parser(
        "honesty.py", __doc__ or "", rounds=None, examples=f"  {PROG} --quick --json honesty.json\n"
    )
    made.add_argument("--repetitions", type=int, default=400, metavar="N", help="cohorts a cell")
    made.add_argument("--cells", default="", metavar="TEXT",
                      help="those that begin so, as n/positive/epochs/AUC: 110/50%%; of tasks "
                           "n/mix/epochs: 110/unequal")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="15 epochs, 100 repetitions: a minute")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn")
    made.add_argument("--task", choices=tuple(TARGETS), help="default: labels of 0 and 1")
    flags = made.parse_args(argv)
    repetitions = 100 if flags.quick else flags.repetitions
    if flags.task:
        return of_tasks(flags, repetitions)
    wanted = [
        cell
        for cell in CELLS
        if "/".join((*cell.names, f"{cell.truth:g}")).startswith(flags.cells)
        and (cell.epochs == 15 or not flags.quick)
    ]
    if not wanted or repetitions < 2:
        raise cli.UsageError(f"--cells {flags.cells}: no such cell, or too few repetitions")
    cells, by_permutation = {}, {}
    for number, cell in enumerate(wanted, start=1):
        plain = cell.epochs == 15 and cell.positive == 0.5
        cells[cell] = measure(cell, repetitions, flags.seed, further=cell.epochs == 15)
        if plain:
            by_permutation[cell] = permuted(cell, max(2, repetitions // 2), flags.seed)
        print(f"{number}/{len(wanted)}  {'/'.join(cell.names)} AUC {cell.truth}  "
              f"{cells[cell].seconds:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    show_tables(cells, by_permutation)
    return conclude(
        list(limits_of(cells, repetitions)), figures_of(cells, by_permutation), flags.json
    )


if __name__ == "__main__":
    cli.run(main, PROG)
