"""Times one series from DICOM files to a prepared volume, on one core, against two other ways.

Every way gets the same files in the page cache and runs in turn with the others, so that whatever
else the machine does falls on all of them. Ratios are taken within each round and the median of
the rounds is a run's figure: on a busy machine a ratio holds still where a time does not.

A run is a process of its own, for where memory happens to lie changes times by a tenth. Limits are
judged by the median of the runs, and twice: with transparent huge pages as the system gives them
(numpy asks for them for arrays of 4 MB and more, glibc and ITK do not), and without any
(PR_SET_THP_DISABLE, prctl(2)), for the floor moves more with them than all else.
"""

from __future__ import annotations

import os

# Before numpy and ITK are loaded: they make their threads once.
for _name in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import concurrent.futures  # noqa: E402
import ctypes  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import multiprocessing  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterable, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from _harness import (  # noqa: E402
    Clock,
    Limit,
    conclude,
    on_one_core,
    parser,
    ratio,
    show,
    take_turns,
)
from _stages import HEADER, ORDER, STAGES, Stages  # noqa: E402
from _ways import (  # noqa: E402
    BIG,
    FLOORS,
    GRID,
    NOISE,
    OBLIQUE,
    SMALL,
    WAYS,
    Input,
    ours,
    simple_itk,
    sitk,
    write_inputs,
)

from beam_jobs.common import cli  # noqa: E402
from beam_jobs.core.dicom.headers import index_files  # noqa: E402
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case  # noqa: E402
from beam_jobs.core.series import assemble  # noqa: E402

_PROG = "python benchmarks/convert.py"
_HUGE_PAGES = {True: "as the system has them", False: "off"}
_PR_SET_THP_DISABLE = 41  # linux/prctl.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run measured of one input.

    Attributes:
      source: the input.
      clocks: way → a clock a round.
      peak_mb: way → MB above the state before.
      stages: stage → seconds of ours, the least of the rounds.
    """

    source: Input
    clocks: dict[str, list[Clock]]
    peak_mb: dict[str, float]
    stages: dict[str, float]

    def cpu(self, way: str) -> list[float]:
        """CPU seconds a round."""
        return [clock.cpu for clock in self.clocks[way]]

    def typical(self, way: str) -> float:
        """CPU seconds: the median over the rounds; of the floors the least.

        A floor is what no way can be faster than, and making huge pages for its fresh volume
        stalls some rounds of it tenfold.
        """
        return min(self.cpu(way)) if way in FLOORS else statistics.median(self.cpu(way))

    def ratio(self, way: str, over: str) -> float:
        """One way's CPU time over another's: median over the rounds, or typical over a floor."""
        if over in FLOORS:
            return self.typical(way) / self.typical(over)
        return ratio(self.cpu(way), self.cpu(over))

    def to_json(self) -> dict[str, Any]:
        return {
            "series": self.source.name,
            "files": len(self.source.paths),
            "shape": self.source.shape,
            "clocks": self.clocks,
            "peak_mb": self.peak_mb,
            "stages": self.stages,
        }


def measure_in_child(
    inputs: Sequence[Input], huge_pages: bool, core: int | None, rounds: int, plain_rounds: int
) -> list[Figures]:
    """One run, in a fresh process."""
    with concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=_settle,
        initargs=(huge_pages, core),
    ) as pool:
        return pool.submit(_measure_all, inputs, rounds, plain_rounds).result()


def _settle(huge_pages: bool, core: int | None) -> None:
    on_one_core(core)
    if not huge_pages and ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise cli.CommandError("the system does not let a process go without huge pages")


def _measure_all(inputs: Sequence[Input], rounds: int, plain_rounds: int) -> list[Figures]:
    (warm_up,) = (source for source in inputs if source.name == SMALL)
    return [measure(source, warm_up, rounds, plain_rounds) for source in inputs]


def measure(source: Input, warm_up: Input, rounds: int, plain_rounds: int) -> Figures:
    """Runs all ways in turn, `rounds` times; the slow plain way in the first few, or not at all."""
    ways = {way: functools.partial(function, source) for way, function in WAYS.items()}
    if source.vendor:
        del ways["plain"]  # pydicom takes seconds for such headers
    shown = [way for way in ways if way in ("plain", "SimpleITK", "ours")]
    peaks = {way: peak_memory(way, source, warm_up) for way in shown}
    clocks = take_turns(ways, rounds, only_first={"plain": plain_rounds})
    return Figures(source=source, clocks=clocks, peak_mb=peaks, stages=stages(source, rounds))


def peak_memory(way: str, source: Input, warm_up: Input) -> float:
    """MB by which one run rises above the state before it, in a process of its own.

    The process has run the same way on another, small series: imports and tables are there.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_peak_here, (way, source, warm_up))


def _peak_here(way: str, source: Input, warm_up: Input) -> float:
    WAYS[way](warm_up)
    # Memory that was freed but kept would hide what the run takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS: proc(5)
    before = _status_kb("VmRSS")
    result = WAYS[way](source)
    peak = _status_kb("VmHWM")
    del result
    return (peak - before) / 1024


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise cli.CommandError(f"/proc/self/status has no {field}")


def stages(source: Input, rounds: int) -> dict[str, float]:
    """Seconds a stage of `ours`: by the wall's clock, and so the least of the rounds."""
    found = []
    for _ in range(rounds):
        watch = Stages()
        spec = PreprocessSpec(modalities=("T1w",), shape=source.shape)
        with watch.clocked():
            with watch.stage(HEADER):
                headers, _ = index_files(source.paths)
            with watch.stage(ORDER):
                (series,), _ = assemble(headers)
            prepare_case("0", {"T1w": series}, spec)
        found.append(watch.seconds)
    return {name: min(seconds[name] for seconds in found) for name in STAGES}


def require_same_work(source: Input) -> None:
    """Ours and SimpleITK's volumes must show the same thing, or times mean nothing."""
    mine, theirs = ours(source).ravel(), simple_itk(source).ravel()
    correlation = float(np.corrcoef(mine, theirs)[0, 1])
    if correlation < 0.95:
        raise cli.CommandError(
            f"{source.name}: ours and SimpleITK's volume correlate by {correlation:.3f} only"
        )


def judge(run: Iterable[Figures]) -> list[Limit]:
    """Each limit of the documentation beside one run's figure."""
    found = {figures.source.name: figures for figures in run if figures.source.shape == GRID}

    def faster(name: str, than: str, times: float) -> Limit:
        words = {"plain": "the plain way", "SimpleITK + sort": "SimpleITK from the same folder"}
        return Limit(
            figure=f"{name}: times faster than {words[than]}",
            value=found[name].ratio(than, "ours"),
            at_least=times,
        )

    return [
        faster(BIG, "plain", 30.0),
        faster(BIG, "SimpleITK + sort", 3.5),
        Limit(
            figure=f"{BIG}: times reading the files and copying the pixels into one block",
            value=found[BIG].ratio("ours", "read + one block"),
            at_most=1.5,
        ),
        Limit(
            figure=f"{BIG}: MB above the state before",
            value=found[BIG].peak_mb["ours"],
            at_most=40.0,
        ),
        faster(NOISE, "SimpleITK + sort", 2.5),
        faster(OBLIQUE, "plain", 15.0),
        faster(SMALL, "plain", 18.0),
        faster(SMALL, "SimpleITK + sort", 2.5),
        *(
            faster(name, "SimpleITK + sort", 3.0)
            for name, figures in found.items()
            if figures.source.vendor
        ),
    ]


def over_runs(runs: Iterable[Sequence[Figures]], huge_pages: str) -> list[Limit]:
    """Each limit beside the median of the runs' figures."""
    judged = zip(*map(judge, runs), strict=True)
    return [
        dataclasses.replace(
            limits[0],
            figure=f"{limits[0].figure} (huge pages {huge_pages})",
            value=statistics.median(limit.value for limit in limits),
        )
        for limits in judged
    ]


def print_times(runs: Sequence[Sequence[Figures]]) -> None:
    """The table of docs/explanation/speed.md: one row a series."""
    ratios = (
        ("plain", "ours"),
        ("SimpleITK", "ours"),
        ("SimpleITK + sort", "ours"),
        ("ours", "read + one block"),
    )
    print("CPU ms: median of the rounds, least of the read columns; peak: MB above the start\n")
    titles = ["series", "to", *WAYS, *(f"{a} / {b}" for a, b in ratios)]
    titles += ["peak ours / plain / SimpleITK"]
    rows = []
    for of_series in zip(*runs, strict=True):
        first = of_series[0]
        cells = [first.source.name, "×".join(map(str, first.source.shape))]
        for way in WAYS:
            there = way in first.clocks
            typical = statistics.median(f.typical(way) for f in of_series) if there else 0.0
            cells.append(f"{1e3 * typical:.{0 if way == 'plain' else 1}f}" if there else "–")
        for a, b in ratios:
            there = {a, b} <= set(first.clocks)
            value = statistics.median(f.ratio(a, b) for f in of_series) if there else 0.0
            cells.append(f"{value:.{0 if a == 'plain' else 2}f}×" if there else "–")
        peaks = [
            f"{statistics.median(f.peak_mb[way] for f in of_series):.0f}"
            if way in first.peak_mb
            else "–"
            for way in ("ours", "plain", "SimpleITK")
        ]
        rows.append([*cells, " / ".join(peaks)])
    show(titles, rows)


def print_stages(runs: Sequence[Sequence[Figures]]) -> None:
    """Where ours spends its time: one row a series."""
    print("\nours, stage by stage: least ms of the rounds, the clocks' own time included\n")
    rows = []
    for of_series in zip(*runs, strict=True):
        source = of_series[0].source
        seconds = [statistics.median(f.stages[name] for f in of_series) for name in STAGES]
        cells = [f"{1e3 * each:.1f}" for each in (*seconds, sum(seconds))]
        rows.append([source.name, "×".join(map(str, source.shape)), *cells])
    show(["series", "to", *STAGES, "sum"], rows)


def main(argv: Sequence[str]) -> int:
    """Writes the series, measures, prints; returns 1 if a limit is missed."""
    made = parser(
        "convert.py",
        "Time one DICOM series → prepared volume, on one core: the converter against\n"
        "the plain way (pydicom, per-slice scaling, ndimage.zoom order 3), SimpleITK (series\n"
        "reader, linear resampling), and against reading the files and copying their pixels.\n"
        "Phantom series are written to a temporary folder (600 MB) and removed. Needs the extra\n"
        "`bench` and Linux.",
        examples=f"  {_PROG} --runs 1 --json convert.json\n",
        rounds=5,
    )
    made.add_argument(
        "--runs", type=int, default=5, metavar="N", help="processes, with and without huge pages"
    )
    made.add_argument(
        "--plain_rounds", type=int, default=2, metavar="N", help="rounds with the plain way"
    )
    made.add_argument("--core", type=int, metavar="N", help="to work on (default: the first)")
    flags = made.parse_args(argv)
    if not 1 <= flags.plain_rounds <= flags.rounds or flags.runs < 1:
        raise cli.UsageError(
            "--rounds must be at least --plain_rounds, and that and --runs at least 1"
        )
    if sitk is None:
        raise cli.CommandError("SimpleITK is not installed; `make setup` installs the extra bench")
    start = time.perf_counter()
    runs: Mapping[bool, list[list[Figures]]] = {huge_pages: [] for huge_pages in _HUGE_PAGES}
    with tempfile.TemporaryDirectory(prefix="voxelbeam-convert-") as folder:
        print("writing the series ...", file=sys.stderr)
        inputs = write_inputs(Path(folder))
        for source in inputs:
            require_same_work(source)
        for number in range(flags.runs):
            # In turn, so that what changes on the machine falls on both.
            for huge_pages, name in _HUGE_PAGES.items():
                print(f"run {number + 1} of {flags.runs}, huge pages {name} ...", file=sys.stderr)
                runs[huge_pages].append(
                    measure_in_child(
                        inputs, huge_pages, flags.core, flags.rounds, flags.plain_rounds
                    )
                )
    limits = []
    for huge_pages, name in _HUGE_PAGES.items():
        print(f"\n## huge pages {name}\n")
        print_times(runs[huge_pages])
        print_stages(runs[huge_pages])
        limits += over_runs(runs[huge_pages], name)
    print(f"\nlimits are to {'×'.join(map(str, GRID))}, of the runs' medians; ", end="")
    print(f"{time.perf_counter() - start:.0f} s")
    figures = [
        {"huge_pages": name, "runs": [[each.to_json() for each in run] for run in runs[huge_pages]]}
        for huge_pages, name in _HUGE_PAGES.items()
    ]
    return conclude(limits, {"measured": figures}, flags.json)


if __name__ == "__main__":
    cli.run(main, _PROG)
