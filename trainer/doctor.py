"""What this machine has for Voxelbeam, what was tried on it, and what is to be mended.

Every fact is measured once and is a value (`trainer.machine`); here they are printed, a section as
soon as it is known. Nothing is imported in this process that could fail: libraries, decoders, GPUs
and places are tried in others, whose crash or hang is a line.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.doctor")

import argparse
import itertools
import sys
import textwrap
from collections.abc import Iterator, Sequence

from beam_jobs.common.cli import EXIT_FAILURE, EXIT_OK, Parser, run
from beam_jobs.common.printable import printable
from beam_jobs.common.terminal import say, width
from trainer.machine import (
    decoders,
    device_section,
    gpus,
    libraries,
    packages,
    stores,
    system,
    tensorflow_facts,
)
from trainer.machine.apart import Answer, Trial, tried
from trainer.machine.findings import Fault, Row, Section

PROG = "python -m trainer.doctor"

_MARKS = {"": " ", "note": "-", "fault": "!"}
_COLUMNS, _MOST_COLUMNS = 80, 100
_NAMES = 12  # characters of a row's name, the blanks behind it included
_CPU_S, _GPU_S = 90.0, 150.0  # of one trial, the imports of its process among it


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Says what this machine has for Voxelbeam, tries it, and ends with what is to "
        "be mended: packages against the project's locks and ranges, GPUs with a 3D convolution "
        "in each precision, decoders of pixel data, credentials of stores. Marked with - is what "
        "is merely absent or odd, with ! what is broken. Nothing is changed, nothing stays "
        "behind, and no secret is shown.",
        examples=(f"  {PROG}\n  {PROG} s3://bucket/dataset /data/cohort https://host/labels.csv"),
        exit_codes={
            EXIT_OK: "nothing needed is broken",
            EXIT_FAILURE: "something is, and the last lines say what to do",
        },
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PLACE",
        help="a directory, file, store or address that you mean to use: one page of it is listed, "
        f"within {stores.PLACE_S:g} s",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    faults: list[Fault] = []
    for section in sections(args.places):
        _show(section)
        faults += section.faults
    for number, fault in enumerate(faults, 1):
        if number == 1:
            print("to mend")
        begin = f"{number}. "
        print("\n".join(_folded(begin, fault.what)))
        for word, text in (("stops: ", fault.stops), ("mend:  ", fault.mend)):
            print("\n".join(_folded(" " * len(begin) + word, text)))
    if not faults:
        say("nothing needed is broken")
    return EXIT_FAILURE if faults else EXIT_OK


def sections(places: Sequence[str]) -> Iterator[Section]:
    """What is found, a section at a time."""
    yield system.section(system.measure())
    found = packages.measure()
    facts = Trial(function=f"{tensorflow_facts.__name__}:facts")
    cpu = device_section.trials("CPU:0")
    answers = tried([*libraries.trials(), *decoders.trials(), facts, *cpu], seconds=_CPU_S)

    def following(number: int) -> list[Answer]:
        return list(itertools.islice(answers, number))

    imports = following(len(libraries.LIBRARIES))
    problems = {
        one.package: answer for one, answer in zip(libraries.LIBRARIES, imports, strict=True)
    }
    yield packages.section(found, _imports(imports, found))
    already = {answer.problem for answer in imports}
    decoded = following(len(decoders.SYNTAXES))
    yield decoders.section(decoded, problems["tensorflow-io"], already)
    known = following(1)[0]
    results = {}
    if known.value:
        results["CPU:0"] = _until_hung(itertools.islice(answers, len(cpu)))
    answers.close()  # one process a GPU is all that some machines allow
    if known.value:
        for number in range(len(known.value["gpus"])):
            device = f"GPU:{number}"
            answers = tried(device_section.trials(device), seconds=_GPU_S)
            results[device] = _until_hung(answers)
            answers.close()
    yield device_section.section(gpus.measure(found.found), known, results, already)
    stored = list(tried(stores.trials(), seconds=_CPU_S))
    client = "" if problems["obstore"].problem else found.found.get("obstore", "")
    section = stores.section(stored, client, aws=not problems["boto3"].problem)
    yield section
    if places:
        looks = tried(stores.place_trials(places), seconds=stores.PLACE_S + 2)
        yield stores.section_of_places(places, list(looks), section.faults)


def _imports(answers: Sequence[Answer], found: packages.Packages) -> Section:
    return libraries.section(answers, found.found, found.to_install, locked=bool(found.locks))


def _until_hung(answers: Iterator[Answer]) -> list[Answer]:
    """Answers up to the first that took too long: the others would, too."""
    found = []
    for answer in answers:
        found.append(answer)
        if answer.hung:
            break
    return found


def _show(section: Section) -> None:
    say(section.title)
    for row in section.rows:
        say("\n".join(_lines(row)))
    say("")


def _lines(row: Row) -> list[str]:
    name = f"{printable(row.name):<{_NAMES - 1}} " if row.name else ""
    return _folded(f"{_MARKS[row.mark]} {name}", row.text)


def _folded(begin: str, text: str) -> list[str]:
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed by the caller
    return textwrap.wrap(
        printable(text),
        min(width(), _MOST_COLUMNS) if terminal else _COLUMNS,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_on_hyphens=False,
        break_long_words=False,
    )


if __name__ == "__main__":
    run(main, PROG)
