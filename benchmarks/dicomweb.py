"""Retrieving whole series from a PACS: into our spool, beside dicomweb-client's two ways to loop.

A real Orthanc with its DICOMweb plugin is started on this machine and holds a phantom cohort and,
where it is there, the real series of the workspace. In every round all its series are retrieved:

  spool              ours: one multipart answer a series, streamed to a disk, hashed, proven whole;
                     as many series at once as a conversion has workers, one a core
  iter_series        dicomweb-client: one multipart answer a series, parsed in memory
  retrieve_instance  dicomweb-client: one request an instance, parsed in memory (in two rounds)

The UIDs are known before, to each of them, and the connection is kept. That ours lie on a disk
afterwards, byte for byte, and theirs in memory, changed into data sets, is not made up for. What it
takes with the listing before it (ours asks for the metadata of every series, for a re-run is to
see what changed; theirs searches for series, no more) is shown apart. Exit code 1: fewer than 10
times the instances a second of retrieve_instance, or than 2 times those of iter_series.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from _harness import Limit, conclude, parser, ratio, ratios, show, take_turns

from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb import search, service
from beam_jobs.common.files.dicomweb.address import parse_root
from beam_jobs.common.files.dicomweb.fetch import fetch
from beam_jobs.common.files.dicomweb.pack import Kept
from beam_jobs.common.files.dicomweb.spool import Listed, Spooled

if TYPE_CHECKING:
    from tests.orthanc import Orthanc

PROG = "python benchmarks/dicomweb.py"
OVER_SINGLE, OVER_SERIES = 10.0, 2.0
SLOW_ROUNDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("dicomweb.py", __doc__, rounds=9)
    made.add_argument("--patients", type=int, default=3, metavar="N", help="phantoms (default: 3)")
    args = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        paths = _cohort(directory / "cohort", args.patients)
        with _orthanc(directory) as server:
            server.store(paths)
            return _measured(server.root, directory / "spool", args.rounds, args.json)


def _cohort(directory: Path, patients: int) -> list[Path]:
    """Files of a phantom cohort, and of the real series where a workspace has it."""
    from tests.real_series import ARCHIVE, unpack_real_series

    command = ["-m", "beam_jobs.phantoms", "--patients", str(patients), "--test_patients", "1"]
    subprocess.run(
        [sys.executable, *command, "--quiet", "--output", str(directory / "phantoms")], check=True
    )
    if ARCHIVE.exists():
        unpack_real_series(directory / "real")
    else:
        print("the real series is not here: phantoms alone")
    return sorted(path for path in directory.rglob("*") if _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[128:132] == b"DICM"


def _orthanc(directory: Path) -> AbstractContextManager[Orthanc]:
    """tests.orthanc's, whose absence is a line of ours."""
    import pytest

    from tests.orthanc import orthanc, require

    try:
        require()
    except pytest.skip.Exception as missing:
        raise cli.CommandError(str(missing)) from None
    return orthanc(directory)


def _measured(root: str, spool: Path, rounds: int, file: Path | None) -> int:
    from dicomweb_client.api import DICOMwebClient

    os.environ[service.SPOOL_VARIABLE] = str(spool)
    found = parse_root(root)
    series = [
        one.address
        for study in search.find_studies(found)
        for one in search.find_series(found, study)
        if one.address is not None
    ]
    listed: list[tuple[Spooled, Listed]] = [
        (Spooled(one), search.content_of(one, None).listed) for one in series
    ]
    uids = [(one, uid) for one, (_, what) in zip(series, listed, strict=True) for uid in what.uids]
    client = DICOMwebClient(found.service.url)
    workers = len(os.sched_getaffinity(0))  # as many as a conversion has

    def forget() -> None:
        for spooled, _ in listed:
            spooled.forget()

    def ours(one: tuple[Spooled, Listed]) -> None:
        spooled, what = one
        with spooled.locked():
            kept = fetch(spooled, what).kept
        if len(kept) != len(what.uids):
            raise cli.CommandError("the spool is not whole")

    def at_once() -> None:
        with ThreadPoolExecutor(workers) as executor:
            list(executor.map(ours, listed))

    def one_series() -> None:
        for one in listed:
            ours(one)

    def by_series() -> None:
        count = sum(1 for one in series for _ in client.iter_series(one.study, one.series))
        if count != len(uids):
            raise cli.CommandError("iter_series gave another number of instances")

    def one_by_one() -> None:
        for one, uid in uids:
            client.retrieve_instance(one.study, one.series, uid)

    def ours_whole() -> None:
        entries = files.listing(root).entries
        with files.fetched_ahead(entries, 1):
            for entry in entries:
                with files.open_bytes(entry.path):
                    pass

    def theirs_whole() -> None:
        for one in client.search_for_series():
            study, uid = (one[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
            for _ in client.iter_series(study, uid):
                pass

    ways: dict[str, Callable[[], None]] = {
        "(before)": forget,
        "spool": at_once,
        "(between)": forget,
        "spool, one series at a time": one_series,
        "iter_series": by_series,
        "retrieve_instance": one_by_one,
        "(again)": forget,
        "listing + spool": ours_whole,
        "search + iter_series": theirs_whole,
    }
    clocks = take_turns(ways, rounds, only_first={"retrieve_instance": SLOW_ROUNDS})
    walls = {way: [clock.wall for clock in found] for way, found in clocks.items()}
    size = sum(kept.size for spooled, _ in listed for kept in _kept(spooled))
    print(f"{len(uids)} instances of {len(series)} series, {size >> 20} MiB; {rounds} rounds\n")
    rows, figures = [], {}
    for way in [way for way in ways if not way.startswith("(")]:
        found_walls = walls[way]
        wall = statistics.median(found_walls)
        cpu = statistics.median(clock.cpu for clock in clocks[way])
        figures[way] = {"instances": len(uids), "wall": found_walls, "cpu": cpu}
        rows.append([way, f"{wall:.2f}", f"{cpu:.2f}", f"{len(uids) / wall:,.0f}"])
    show(["", "s", "CPU s of the client", "instances a second"], rows)
    alone = ratio(walls["iter_series"], walls["spool, one series at a time"])
    print(f"\none series at a time: {alone:.2f} times as fast as iter_series")
    whole = ratio(walls["search + iter_series"], walls["listing + spool"])
    print(f"with the listing: {whole:.2f} times as fast as search + iter_series")
    limits = [
        Limit.of_median(
            "over retrieve_instance",
            ratios(walls["retrieve_instance"], walls["spool"]),
            at_least=OVER_SINGLE,
        ),
        Limit.of_median(
            "over iter_series", ratios(walls["iter_series"], walls["spool"]), at_least=OVER_SERIES
        ),
    ]
    return conclude(
        limits, {"ways": figures, "bytes": size, "with_listing": whole, "alone": alone}, file
    )


def _kept(spooled: Spooled) -> Iterable[Kept]:
    complete = spooled.complete()
    return complete.kept.values() if complete else ()


if __name__ == "__main__":
    cli.run(main, PROG)
