"""Every hostile case in turn, and the table of the documentation.

python -m tests.hostile --table docs/explanation/hostile-input.md
    python -m tests.hostile --only 'labels'
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.hostile.cases import MODULES, Case, collected, run
from tests.hostile.made import Made
from tests.hostile.zygote import Outcome, Zygotes

_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"


def outcomes(
    cases: Sequence[Case], jobs: int, directory: Path
) -> Iterator[tuple[Case, Outcome, list[str]]]:
    """Each case, how it ended and what did not hold; `jobs` at a time."""
    with ExitStack() as stack:
        free: SimpleQueue[Zygotes] = SimpleQueue()
        for _ in range(jobs):
            free.put(stack.enter_context(Zygotes()))
        (directory / "made").mkdir()
        made = Made(directory / "made", stack.enter_context(Zygotes()))

        def work(numbered: tuple[int, Case]) -> tuple[Case, Outcome, list[str]]:
            number, case = numbered
            zygotes = free.get()
            try:
                return case, *run(case, directory / str(number), made, zygotes)
            finally:
                free.put(zygotes)

        with ThreadPoolExecutor(jobs) as pool:
            for future in as_completed([pool.submit(work, each) for each in enumerate(cases)]):
                yield future.result()


def table(tried: Mapping[tuple[str, str], tuple[int, int]]) -> str:
    """Markdown: attack | command | tried | held.

    Args:
      tried: attack and command → how many cases, and how many held.
    """
    lines = ["| attack | command | tried | held |", "|---|---|--:|--:|"]
    order = list(MODULES)
    for (attack, subject), (count, held) in sorted(
        tried.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
    ):
        lines.append(f"| {attack} | `{subject}` | {count} | {held} |")
    count, held = (sum(pair[place] for pair in tried.values()) for place in (0, 1))
    lines.append(f"| **all** | | **{count}** | **{held}** |")
    return "\n".join(lines) + "\n"


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    """How cases ended, by id; the last word on each."""
    if path is None or not path.exists():
        return {}
    return {each["id"]: each for each in map(json.loads, path.read_text().splitlines())}


def main() -> int:
    """Runs the cases; 1 where one did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, metavar="PAGE", help="page to put the table into")
    parser.add_argument("--only", metavar="PATTERN", default="", help="cases whose id has it")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="written as cases end; what held is not rerun"
    )
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    flags = parser.parse_args()
    cases = [case for case in collected() if re.search(flags.only, case.id)]
    results = _read(flags.results)
    left = [case for case in cases if results.get(case.id, {}).get("faults", True)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True) as directory:
        for case, outcome, faults in outcomes(left, flags.jobs, Path(directory)):
            results[case.id] = {
                "id": case.id,
                "faults": faults,
                "seconds": round(outcome.seconds, 2),
                "mb": round(outcome.peak_bytes / 1e6),
            }
            if flags.results:
                with flags.results.open("a") as file:
                    file.write(json.dumps(results[case.id]) + "\n")
            if faults:
                print(f"FAILED {case.id}", *faults, sep="\n  ")
                print("  stderr:", outcome.stderr[-1500:].rstrip(), flush=True)
    tried: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for case in cases:
        count, held = tried[case.attack, case.subject]
        tried[case.attack, case.subject] = count + 1, held + (not results[case.id]["faults"])
    failed = sum(bool(results[case.id]["faults"]) for case in cases)
    print(f"{len(left)} of {len(cases)} cases in {time.monotonic() - start:.0f} s")
    print(f"{failed} did not hold")
    for what, unit in (("seconds", "s"), ("mb", "MB")):
        most = max((results[case.id] for case in cases), key=lambda each: each[what])
        print(f"most: {most[what]} {unit}, {most['id']}")
    if flags.table:
        text = flags.table.read_text()
        head, _, rest = text.partition(_BEGIN)
        flags.table.write_text(f"{head}{_BEGIN}\n{table(tried)}\n{_END}{rest.partition(_END)[2]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
