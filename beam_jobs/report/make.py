"""A dataset as one page to look at: records read, counted, drawn and written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from beam_jobs.common import terminal
from beam_jobs.common.files import interface as files
from beam_jobs.common.processes import in_processes
from beam_jobs.convert.ours import REPORT_NAME
from beam_jobs.core.manifest import Manifest, read_manifest
from beam_jobs.report.cases import CaseFacts, PicturePlan, Pictures, report_shard
from beam_jobs.report.compare import compare
from beam_jobs.report.data import DatasetFacts, gather, summarise
from beam_jobs.report.labels import with_labels
from beam_jobs.report.page import privacy_of, render, sprite_element, write

# Below about this many voxels processes cost more than they save: a second until they are there,
# where a volume of 2 MB takes 8 ms.
_WORTH_PROCESSES = 500_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Attributes:
      path: the page.
      bytes: its size.
      patients: how many it shows.
      marked: comparisons that are marked, None when nothing was compared.
    """

    path: str
    bytes: int
    patients: int
    marked: int | None


def make_report(
    directory: str,
    *,
    output: str | None = None,
    against: str | None = None,
    workers: int = 1,
) -> Report:
    """Writes the page of a dataset; same dataset, same bytes.

    Args:
      directory: the dataset, local or of a store.
      output: the page, None for `report.html` in the dataset.
      against: another dataset to compare with.
      workers: processes to read shards with, where that pays.

    Raises:
      UsageError: a dataset is not there, or not finished.
      ContractError: a dataset is damaged; the message names the shard or the column.
      OSError: the page cannot be written.
    """
    directory = files.trimmed(directory)
    manifest = read_manifest(directory)
    other = None if against is None else files.trimmed(against)
    other_manifest = None if other is None else read_manifest(other)
    path = output or files.join(directory, REPORT_NAME)
    plan = PicturePlan.for_dataset(manifest.schema, len(manifest.patients))
    cases: list[CaseFacts] = []
    pictures: list[Pictures] = []
    with _aside() as sprites:
        for facts, shown in _cases(directory, manifest, plan, workers=workers):
            assert shown is not None
            with files.refused(tempfile.gettempdir()):
                sprites.write(sprite_element(len(cases), shown.sprite))
                sprites.flush()
            cases.append(facts)
            pictures.append(dataclasses.replace(shown, sprite=""))
        found = gather(directory, manifest, cases)
        comparison = None
        if other is not None and other_manifest is not None:
            others = _cases(other, other_manifest, None, workers=workers)
            theirs = gather(other, other_manifest, [facts for facts, _ in others])
            comparison = compare(found, theirs)
        size = _write(path, found, pictures, plan, comparison, sprites)
    marked = None if comparison is None else sum(row["marked"] for row in comparison["drift"])
    return Report(path=path, bytes=size, patients=len(cases), marked=marked)


@contextlib.contextmanager
def _aside() -> Iterator[IO[bytes]]:
    """A file without a name for what is larger than one wants in memory."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  its end is not to fail
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # what it could not take has been told
            file.close()


def _cases(
    directory: str, manifest: Manifest, plan: PicturePlan | None, *, workers: int
) -> Iterator[tuple[CaseFacts, Pictures | None]]:
    """Every record's facts and pictures in shard order, a few shards in memory at a time."""
    shards = manifest.shards
    schema = manifest.schema
    work = functools.partial(report_shard, directory=directory, schema=schema, plan=plan)
    voxels = len(manifest.patients) * schema.volume_bytes
    with contextlib.ExitStack() as stack:
        done: Iterable[list[tuple[CaseFacts, Pictures | None]]] = map(work, shards)
        workers = min(workers, len(shards))
        if workers > 1 and voxels > _WORTH_PROCESSES:
            done = stack.enter_context(contextlib.closing(in_processes(work, shards, workers)))
        for found in terminal.track(done, "reading records", len(shards)):
            yield from found


def _write(
    path: str,
    facts: DatasetFacts,
    pictures: Sequence[Pictures],
    plan: PicturePlan,
    comparison: dict[str, object] | None,
    sprites: IO[bytes],
) -> int:
    """Writes the page; returns its size."""
    summary = with_labels(summarise(facts), facts)
    for place, (patient, shown) in enumerate(zip(summary["patients"], pictures, strict=True)):
        patient["sprite"] = {
            "at": place,
            "tile": shown.tile,
            "across": shown.across,
            "box": shown.box,
            "first": shown.first,
            "count": shown.count,
            "step": plan.step,
        }
    order = sorted(range(len(pictures)), key=lambda place: _natural(facts.cases[place].patient_id))
    summary["patients"] = [summary["patients"][place] for place in order]
    page = render(
        summary,
        [pictures[place].thumbnail for place in order],
        privacy_of(facts.manifest),
        comparison,
    )
    with files.open_write(path) as stream:
        return write(stream, page, sprites)


def _natural(name: str) -> tuple[tuple[str, int, str], ...]:
    """Sorts numbers in names by their value: 9 before 10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return tuple((text, int(digits or -1), digits) for text, digits in parts)
