"""One case from its files to its verdict, in a process that it may take down."""

from __future__ import annotations

import dataclasses
import faulthandler
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from beam_jobs.core.dicom import headers
from beam_jobs.core.dicom.alike import Recent
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.core.reasons import RejectedError, Rejection
from beam_jobs.core.series import Series, assemble
from beam_jobs.core.volume import Volume, load_volume
from tests.mutations.bases import make_bases
from tests.mutations.kinds import mutate
from tests.mutations.truth import Images, Truth, image_values, same

SPEC = PreprocessSpec(modalities=("T1w",), shape=(16, 16, 8))
TIMES_FILE = 4
PARSER_BYTES = 1 << 20
# `foreground_extent` holds six coordinates of every foreground voxel among so many.
SAMPLED_VOXEL_BYTES = 48
MOST_SAMPLED = 60_000
NATIVE_SLACK = 16 << 20
ADDRESS_SPACE = 1 << 30
WHOLE_SERIES = 0.3
CPU_LIMIT_S = 1.0
CPU_KILL_S = 5.0
WALL_KILL_S = 120.0


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of one case.

    Attributes:
      index: number of the case.
      label: base and mutations.
      verdict: "used", or the reason code.
      failures: what must not be; empty when all is well.
      compared: whether pydicom read the used file too, so that values were compared.
      seconds: processor time of the reader.
      peak: greatest allocation in bytes of the reading that came nearest to its allowance.
      files: bytes which that allowance was reckoned from.
    """

    index: int
    label: str = ""
    verdict: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)
    compared: bool = False
    seconds: float = 0.0
    peak: int = 0
    files: int = 1

    @property
    def share(self) -> float:
        """The peak as a share of its allowance."""
        return self.peak / allowance(self.files)


def allowance(files: int) -> int:
    """Bytes that reading may allocate for `files` bytes of files."""
    return TIMES_FILE * files + PARSER_BYTES


def sampled_bytes(stacks: Iterable[Series]) -> int:
    """Bytes for the voxels by which the head is found: as many as the coarse grid gives them."""
    extents = [np.multiply(stack.geometry.shape, stack.geometry.spacing) for stack in stacks]
    voxels = [float(np.prod(extent / SPEC.spacing + 1)) for extent in extents]
    return SAMPLED_VOXEL_BYTES * int(min(MOST_SAMPLED, max(voxels, default=0)))


class Bench:
    """The sound series on disk, to try mutated files in."""

    def __init__(self, directory: Path, which: str = "all") -> None:
        self.directory = directory
        self.bases = make_bases(which)
        self.headers: list[list[list[SliceHeader]]] = []
        self.values: Images = {}
        self.sample_bytes: list[int] = []
        for number, base in enumerate(self.bases):
            images = []
            for place, data in enumerate(base.files):
                path = directory / f"{number}-{place}.dcm"
                path.write_bytes(data)
                found, rejected = index_files([str(path)])
                assert not rejected, (base.name, rejected)
                images.append(found)
            self.headers.append(images)
            (series,), rejected = assemble(header for found in images for header in found)
            assert not rejected, (base.name, rejected)
            values = image_values(series)
            self.values |= values
            first = images[0][0]
            samples = sum(each.size for each in values.values()) * (first.bits_allocated or 0) // 8
            self.sample_bytes.append(0 if first.is_native else samples)

    def draw(self, seed: int, index: int) -> tuple[int, dict[int, bytes], str]:
        """(base, mutated files by place in its series, label) of a case."""
        rng = random.Random(f"{seed}-{index}")
        number = rng.choices(range(len(self.bases)), [base.weight for base in self.bases])[0]
        base = self.bases[number]
        places: Sequence[int] = [rng.randrange(len(base.files))]
        kind = base.name
        if len(base.files) > 1 and rng.random() < WHOLE_SERIES:
            places, kind = range(len(base.files)), f"all of {base.name}"
        state = rng.getstate()
        mutated = {}
        for place in places:
            rng.setstate(state)
            mutated[place], names = mutate(base.files[place], rng)
        return number, mutated, f"{kind}: {' + '.join(names)}"

    def run(self, seed: int, index: int) -> Outcome:
        """One case, from its files to its verdict."""
        number, mutated, label = self.draw(seed, index)
        outcome = Outcome(index=index, label=label)
        base, samples = self.bases[number], self.sample_bytes[number]
        headers._recent = Recent()
        if index % 2:
            headers.index_files(
                self.directory / f"{number}-{n}.dcm" for n in range(len(base.files))
            )
        paths = []
        for place, data in mutated.items():
            path = self.directory / f"case-{index}-{place}.dcm"
            path.write_bytes(data)
            paths.append(str(path))
        sound = [place for place in range(len(base.files)) if place not in mutated]
        siblings = [header for place in sound for header in self.headers[number][place]]
        sizes = [len(data) for data in mutated.values()]
        total = sum(sizes) + sum(len(base.files[place]) for place in sound)
        try:
            self._try(outcome, paths[:1], [], max(sizes[0], samples // len(base.files)))
            if len(base.files) > 1:
                self._try(outcome, paths, siblings, max(total, samples))
        finally:
            for name in paths:
                os.unlink(name)
        return outcome

    def _try(
        self, outcome: Outcome, paths: Sequence[str], siblings: Sequence[SliceHeader], files: int
    ) -> None:
        """Reads the files in one company, and holds the reading to every rule."""
        volumes: list[tuple[Series, Volume]] = []
        reasons: list[str] = []
        with Meter() as meter, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                reasons, volumes = read(paths, siblings)
            except Exception:
                outcome.failures.append(traceback.format_exc(limit=-5))
        outcome.failures += [
            f"warned: {each.message} ({each.filename}:{each.lineno})" for each in caught
        ]
        files += sampled_bytes(series for series, _ in volumes) // TIMES_FILE
        outcome.failures += meter.failures(allowance(files))
        outcome.failures += [each for each in reasons if "MemoryError" in each]
        outcome.verdict = reasons[0].split(":")[0] if reasons else "raised"
        outcome.seconds = max(outcome.seconds, meter.seconds)
        if meter.peak / allowance(files) > outcome.share:
            outcome.peak, outcome.files = meter.peak, files
        used = {header.path for series, _ in volumes for header in series.headers}
        truths = {path: Truth.of(path) for path in paths if path in used}
        outcome.compared |= any(truths.values())
        for series, volume in volumes:
            outcome.failures += self._differences(series, volume, truths)

    def _differences(
        self, series: Series, volume: Volume, truths: Mapping[str, Truth | None]
    ) -> Iterator[str]:
        """Where the images of a series are not what their files say."""
        for place, (header, values) in enumerate(
            zip(series.headers, image_values(series).values(), strict=True)
        ):
            if series.even and not same(volume.array[:, :, place], values):
                yield "the volume's slice differs from the slice read alone"
            if header.path not in truths:
                if not same(values, self.values[header.path, header.frame]):
                    yield "wrong values in a sound file"
            elif truth := truths[header.path]:
                yield from truth.differences(header, values)


def read(
    paths: Sequence[str], siblings: Sequence[SliceHeader]
) -> tuple[list[str], list[tuple[Series, Volume]]]:
    """Verdicts on mutated files, "used" first, and the volumes that hold any of them."""
    found, rejections = index_files(paths)
    stacks, refused = assemble([*found, *siblings])
    rejections += refused
    volumes = []
    for stack in stacks:
        try:
            prepared = prepare_case("0", {"T1w": stack}, SPEC)
            case, left_out = prepared.case, prepared.rejections
            assert not left_out
            assert case.volume.any()
        except RejectedError:
            pass
        try:
            volume = load_volume(stack)
        except RejectedError as error:
            rejections.append(Rejection(paths=stack.paths, reason=error.reason, detail=str(error)))
            continue
        if not set(paths).isdisjoint(stack.paths):
            volumes.append((stack, volume))
    accounted = {path for stack, _ in volumes for path in stack.paths}
    accounted |= {path for each in rejections for path in each.paths}
    assert accounted.issuperset(paths), "a file is neither in a series nor in a rejection"
    reasons = [
        f"{each.reason.value}: {each.detail}"
        for each in rejections
        if not set(paths).isdisjoint(each.paths)
    ]
    return ["used"] * bool(volumes) + reasons, volumes


class Meter:
    """Processor time and greatest allocation of what runs inside `with`.

    Attributes:
      seconds: processor time, of all threads.
      peak: bytes, as tracemalloc counts.
      resident: bytes by which the resident peak rose.
    """

    def __enter__(self) -> Meter:
        # 5 resets the peak of resident memory to what is resident now: proc(5).
        Path("/proc/self/clear_refs").write_text("5")
        self.resident = -memory("VmRSS")
        tracemalloc.start()
        self.seconds = -time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.process_time()
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.resident += memory("VmHWM")

    def failures(self, allowed: int) -> Iterator[str]:
        """Which limits were broken."""
        if self.seconds > CPU_LIMIT_S:
            yield f"took {self.seconds:.2f} s of processor time"
        if self.peak > allowed:
            yield f"allocated {self.peak} bytes, {allowed} allowed"
        if self.resident > allowed + NATIVE_SLACK:
            yield f"resident memory rose by {self.resident} bytes, {allowed} allowed"


def memory(name: str) -> int:
    """A size from /proc/self/status, bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:", 1)[1].split(None, 1)[0]) * 1024


def work(
    seed: int, indices: Sequence[int], which: str, directory: str, reports: Connection
) -> None:
    """Runs cases in a process of its own, which a hang or a crash of a decoder may take down."""
    descriptor = os.open(f"{directory}/stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    bench = Bench(Path(directory), which)
    for base in range(len(bench.bases)):  # what is loaded at first use is no case's allocation
        headers = [header for found in bench.headers[base] for header in found]
        prepare_case("0", {"T1w": assemble(headers)[0][0]}, SPEC)
    size = memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for index in indices:
        reports.send(index)
        # The kernel ends the process by SIGPROF, be it in C code that never returns.
        signal.setitimer(signal.ITIMER_PROF, CPU_KILL_S)
        outcome = bench.run(seed, index)
        signal.setitimer(signal.ITIMER_PROF, 0)
        reports.send(outcome)


def outcomes(seed: int, indices: Sequence[int], which: str = "all") -> Iterator[Outcome]:
    """Runs cases one after another, in a process that is started anew when a case ends it."""
    # Looking up symbols for a panic's backtrace would count as the decoder's memory.
    os.environ["RUST_BACKTRACE"] = "0"
    context = multiprocessing.get_context("spawn")
    remaining = list(indices)
    with tempfile.TemporaryDirectory() as directory:
        while remaining:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(seed, remaining, which, directory, sender))
            process.start()
            sender.close()
            running: int | None = None
            try:
                while remaining:
                    if not receiver.poll(WALL_KILL_S):
                        process.kill()
                    report = receiver.recv()
                    if isinstance(report, Outcome):
                        remaining.remove(report.index)
                        yield report
                    else:
                        running = report
            except EOFError:
                process.join()
                said = Path(directory, "stderr").read_text(errors="replace")[-2000:]
                if running is None:
                    raise RuntimeError(f"the worker does not start: {said}") from None
                hung = process.exitcode in (-signal.SIGPROF, -signal.SIGKILL)
                failure = "hung" if hung else f"ended the process ({process.exitcode}): {said}"
                remaining.remove(running)
                yield Outcome(index=running, verdict="crashed", failures=[failure])
            finally:
                receiver.close()
                process.kill()
                process.join()
