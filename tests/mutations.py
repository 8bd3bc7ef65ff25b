"""Mutated DICOM files against the reader: each is used with right values or rejected with a code.

    python -m tests.mutations --count 10000 --seed 0

Case n of a seed is always the same. A mutated file takes the place of one slice of a sound series
or, three times in ten, all slices are mutated alike; the stack, and the file alone, then go through
index, assembly, volume and prepared case.

A case fails when the reader raises anything but `RejectedError`, warns, dies, takes more than
1 s of processor time, loses the file from its accounting, allocates beyond its allowance, or uses
the file with other values or another place than pydicom reads from it.

Allowance: 4 × max(bytes of the files, bytes of the sound series' samples where these are stored
compressed) + 1 MiB for the parser's objects and the spec's small grid. What a mutated header
claims grants nothing: a small file that says 65535 × 65535 has the allowance of a small file.
Python and numpy are measured to the byte (tracemalloc); the decoders in C by the peak of resident
memory, with 16 MiB of slack, and by a limit on address space.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import faulthandler
import functools
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import RLELossless

from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.core.reasons import RejectedError, Rejection
from beam_jobs.core.series import Series, assemble
from beam_jobs.core.volume import Volume, load_volume
from tests.mutants import make_bases, mutate

SPEC = PreprocessSpec(modalities=("T1w",), shape=(16, 16, 8))
TIMES_FILE = 4
PARSER_BYTES = 1 << 20
NATIVE_SLACK = 16 << 20
ADDRESS_SPACE = 1 << 30
WHOLE_SERIES = 0.3
CPU_LIMIT_S = 1.0
CPU_KILL_S = 5.0
WALL_KILL_S = 120.0

Images = dict[tuple[str, int], npt.NDArray[Any]]


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
      files: bytes of files (or sound samples) which that allowance was reckoned from.
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


class Bench:
    """The sound series on disk, to try mutated files in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bases = make_bases()
        self.headers: list[list[list[SliceHeader]]] = []
        self.values: Images = {}
        self.sample_bytes: list[int] = []
        for number, base in enumerate(self.bases):
            headers = []
            for place, data in enumerate(base.files):
                path = directory / f"{number}-{place}.dcm"
                path.write_bytes(data)
                found, rejected = index_files([str(path)])
                assert not rejected, (base.name, rejected)
                headers.append(found)
            self.headers.append(headers)
            (series,), rejected = assemble(header for found in headers for header in found)
            assert not rejected, (base.name, rejected)
            values = image_values(series)
            self.values |= values
            first = headers[0][0]
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
    headers, rejections = index_files(paths)
    stacks, refused = assemble([*headers, *siblings])
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


def image_values(series: Series) -> Images:
    """Values of each image of a series in order, by path and frame."""
    return {
        (header.path, header.frame): stored.samples * np.float64(stored.slope) + stored.intercept
        for header, stored in zip(series.headers, stored_slices(series.headers), strict=True)
    }


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Equal but for rounding to float32."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-6, atol=1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What pydicom reads from a file: its samples, and the attributes that turn them to values."""

    dataset: pydicom.Dataset
    frames: npt.NDArray[Any]

    @classmethod
    def of(cls, path: str) -> Truth | None:
        """Reads `path`; None when pydicom does not, or finds the pixel description at odds."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(path, force=True)
                shape = (-1, dataset.Rows, dataset.Columns)
                syntax = dataset.file_meta.TransferSyntaxUID
                stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
                if syntax.is_encapsulated and syntax != RLELossless:
                    return cls(dataset=dataset, frames=dataset.pixel_array.reshape(shape))
                if allocated not in (8, 16, 32):
                    return None
                kind = "i" if dataset.get("PixelRepresentation") else "u"
                order = "<" if dataset.original_encoding[1] else ">"
                count = dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1)
                if syntax == RLELossless:
                    raw: dict[str, Any] = {"correct_unused_bits": False}
                    samples = pixel_array(dataset, **raw)
                else:
                    dtype = f"{order}{kind}{allocated // 8}"
                    samples = np.frombuffer(dataset.PixelData, dtype, count)
                # A sample is its stored bits, up to the high bit: PS3.5 8.1.1.
                high_bit = dataset.get("HighBit", stored - 1)
                samples = samples << (allocated - 1 - high_bit) >> (allocated - stored)
                return cls(dataset=dataset, frames=samples.reshape(shape))
        except Exception:
            return None

    def differences(self, header: SliceHeader, values: npt.NDArray[Any]) -> Iterator[str]:
        """Where a used image differs."""
        if header.frame >= len(self.frames):
            yield "a frame that pydicom does not find"
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                wanted = self._values(header.frame)
                place = self._place(header.frame)
            except Exception:  # pydicom finds a value malformed that the reader does not need
                return
        if not same(values, wanted):
            yield f"wrong values: {values.shape} {values.flat[:3]}, pydicom {wanted.flat[:3]}"
        for name, (found, expected) in place(header).items():
            if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-12, atol=0):
                yield f"{name} {found}, pydicom {expected}"

    def _item(self, frame: int, keyword: str, macro: str) -> pydicom.Dataset:
        """The data set that holds `keyword` for a frame: PS3.3 C.7.6.16."""
        if "PerFrameFunctionalGroupsSequence" not in self.dataset:
            return self.dataset
        group = self.dataset.PerFrameFunctionalGroupsSequence[frame]
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        for holder in (group, shared[0]):
            if holder.get(macro) and keyword in holder[macro].value[0]:
                found: pydicom.Dataset = holder[macro].value[0]
                return found
        return self.dataset

    def _values(self, frame: int) -> npt.NDArray[Any]:
        samples: npt.NDArray[Any] = self.frames[frame]
        if self.dataset.PhotometricInterpretation.strip() == "MONOCHROME1":
            bits, signed = int(self.dataset.BitsStored), int(self.dataset.PixelRepresentation)
            samples = (-1 if signed else (1 << bits) - 1) - samples.astype(np.float64)
        elif self.dataset.get("ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(samples, self.dataset), dtype=np.float64)
        macro = "PixelValueTransformationSequence"
        slope = self._item(frame, "RescaleSlope", macro).get("RescaleSlope")
        intercept = self._item(frame, "RescaleIntercept", macro).get("RescaleIntercept")
        return samples * float(1 if slope in (None, "") else slope) + float(intercept or 0)

    def _place(self, frame: int) -> Callable[[SliceHeader], dict[str, tuple[Any, Any]]]:
        def numbers(keyword: str, macro: str) -> list[float]:
            holder = self._item(frame, keyword, macro)
            if keyword in holder and holder[keyword].VR != "DS":
                raise ValueError("the reader goes by the tag, pydicom by the representation")
            value = holder.get(keyword)
            if value is None or value == "":
                return []
            return [float(v) for v in (value if isinstance(value, Sequence) else [value])]

        position = numbers("ImagePositionPatient", "PlanePositionSequence")
        orientation = numbers("ImageOrientationPatient", "PlaneOrientationSequence")
        spacing = numbers("PixelSpacing", "PixelMeasuresSequence")
        return lambda header: {
            "position": (header.position, position),
            "orientation": (header.orientation, orientation),
            "pixel spacing": (header.pixel_spacing, spacing),
        }


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


def work(seed: int, indices: Sequence[int], directory: str, reports: Connection) -> None:
    """Runs cases in a process of its own, which a hang or a crash of a decoder may take down."""
    descriptor = os.open(f"{directory}/stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    bench = Bench(Path(directory))
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


def outcomes(seed: int, indices: Sequence[int]) -> Iterator[Outcome]:
    """Runs cases one after another, in a process that is started anew when a case ends it."""
    # Looking up symbols for a panic's backtrace would count as the decoder's memory.
    os.environ["RUST_BACKTRACE"] = "0"
    context = multiprocessing.get_context("spawn")
    remaining = list(indices)
    with tempfile.TemporaryDirectory() as directory:
        while remaining:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(seed, remaining, directory, sender))
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


@functools.lru_cache(1)
def _bench_to_draw_from() -> Bench:
    with tempfile.TemporaryDirectory() as directory:
        return Bench(Path(directory))


def keep(outcome: Outcome, seed: int, directory: Path) -> None:
    """Writes a failed case's file, and beside it what it was and what went wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    _, mutated, label = _bench_to_draw_from().draw(seed, outcome.index)
    name = f"seed-{seed}-case-{outcome.index}"
    for place, data in mutated.items():
        (directory / f"{name}-{place}.dcm").write_bytes(data)
    (directory / f"{name}.txt").write_text("\n".join([label, *outcome.failures, ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints what became of them; 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="which cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="folder for the files of failed cases")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    verdicts: collections.Counter[str] = collections.Counter()
    compared, failed = 0, 0
    slowest = largest = nearest = Outcome(index=-1)
    for outcome in outcomes(options.seed, range(options.first, options.first + options.count)):
        verdicts[outcome.verdict] += 1
        compared += outcome.compared
        slowest = max(slowest, outcome, key=lambda each: each.seconds)
        largest = max(largest, outcome, key=lambda each: each.peak)
        nearest = max(nearest, outcome, key=lambda each: each.share)
        if outcome.failures:
            failed += 1
            print(f"FAILED case {outcome.index} ({outcome.label})", *outcome.failures, sep="\n  ")
            if options.keep:
                keep(outcome, options.seed, options.keep)
    print(f"{options.count} cases of seed {options.seed} in {time.monotonic() - start:.0f} s")
    for verdict, count in verdicts.most_common():
        print(f"  {count:6d} {verdict}")
    print(f"values compared with pydicom's reading in {compared} cases")
    print(f"slowest: {slowest.seconds:.3f} s of processor time, case {slowest.index}")
    for name, each in (("greatest allocation", largest), ("nearest to its allowance", nearest)):
        print(
            f"{name}: {each.peak} bytes for {each.files} bytes of files, "
            f"{each.share:.0%} of the allowance, case {each.index} ({each.label})"
        )
    print(f"failures: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
