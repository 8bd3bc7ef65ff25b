"""Two jobs on one output: from the second's begin on, what the first one's workers do is nothing.

Jobs are run by hand here, piece by piece and without Beam, so that any two may be anywhere.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_jobs import dicom_to_tfrecord, verify
from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import LostOutputError, Owner
from beam_jobs.common.progress_files import Ticks
from beam_jobs.convert.finish import DatasetWriter
from beam_jobs.convert.flags import Conversion, add_flags, conversion_of
from beam_jobs.convert.ours import foreign_files
from beam_jobs.convert.patient_plans import plan_patients
from beam_jobs.convert.planning import assign_people
from beam_jobs.convert.resume import ShardResult
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.convert.write_shard import ShardWriter
from beam_jobs.report.make import make_report
from tests.beam_jobs.convert.test_output import write_patient

Step = Callable[[], Any]
FIRST = ("--format", "npz", "--dtype", "uint16")
SECOND = ("--seed", "5", "--patients_per_shard", "2", "--overwrite")


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heap")
    for number in range(3):
        write_patient(root / f"s{number}", f"P{number}")
    return root


@pytest.fixture
def root(disk_or_store: str) -> str:
    """Where outputs are."""
    return disk_or_store


def conversion(heap: Path, output: str, *more: str) -> Conversion:
    parser = cli.Parser(prog="test", description="", examples="")
    add_flags(parser)
    options = ("--modalities", "T1w", "--shape", "8,8,4", "--fov_mm", "48,48,24", "--quiet")
    argv = ["--input", str(heap), "--output", output, "--patients_per_shard", "1"]
    return conversion_of(parser.parse_args([*argv, *options, *more]))


def steps_of(wanted: Conversion) -> list[Step]:
    """A job's begin, each of its shards, and its finish."""
    store, planner, spec = wanted.state, wanted.planner, wanted.spec
    tables = TableWriter(root=wanted.input, id_policy=planner.id_policy)
    writer = ShardWriter(
        store=store,
        spec=spec,
        schema=planner.schema_of(spec),
        seed=planner.seed,
        tables=tables,
        ticks=Ticks(),
        npz=wanted.npz,
    )
    dataset = DatasetWriter(store=store, spec=spec, planner=planner)
    plans = plan_patients(files.entries(wanted.input), spec.modalities, root=wanted.input)
    found = [(plan.key, plan.refusal, plan.person) for plan in plans.patients]
    assignments = assign_people(found, planner)
    shards: dict[str, list[Any]] = defaultdict(list)
    for plan in plans.patients:
        assignment = assignments.by_key[plan.key]
        shards[assignment.shard].append((plan, assignment))
    results: list[ShardResult] = []

    def write(name: str) -> Step:
        return lambda: results.append(writer.write(name, shards[name])[0])

    return [
        lambda: store.begin(overwrite=wanted.overwrite),
        *map(write, sorted(shards)),
        lambda: dataset.finish(None, results, [], assignments),
    ]


def contents(output: str) -> dict[str, bytes]:
    return {name: files.read(files.join(output, name)) for name in files.tree(output)}


def run(steps: list[Step]) -> None:
    for step in steps:
        step()


@pytest.fixture
def alone(heap: Path, root: str) -> dict[str, bytes]:
    """What the second job makes with nobody beside it."""
    output = files.join(root, "alone")
    run(steps_of(conversion(heap, output, *SECOND)))
    return contents(output)


def test_a_finished_output_has_no_owner(root: str, alone: dict[str, bytes]) -> None:
    assert not [name for name in alone if "owner" in name or "running" in name]


def test_wherever_the_first_job_is_its_workers_write_nothing_after_the_seconds_begin(
    heap: Path, root: str, alone: dict[str, bytes]
) -> None:
    many = len(steps_of(conversion(heap, files.join(root, "d"), *FIRST)))
    assert many == 5
    for done in range(1, many):
        output = files.join(root, f"d{done}")
        first = steps_of(conversion(heap, output, *FIRST))
        second = steps_of(conversion(heap, output, *SECOND))
        run(first[:done])
        living = first[1:]
        for step in second:
            step()
            before = contents(output)
            for late in living:
                with pytest.raises(LostOutputError, match="another job"):
                    late()
            assert contents(output) == before
        assert contents(output) == alone, done
    assert verify.main([output, "--workers", "1", "--quiet"]) == 0


@pytest.mark.parametrize("each", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_a_job_that_comes_between_any_two_writes_of_another_is_not_mixed_with_it(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    writing = Owner.writing
    come: list[Step] = []
    seen = 0

    @contextlib.contextmanager
    def noted(self: Owner) -> Iterator[None]:
        nonlocal seen
        seen += 1
        if come and seen == at:
            steps, come[:] = list(come), []
            run(steps)
        with writing(self):
            yield

    at = 0
    monkeypatch.setattr(Owner, "writing", noted)
    run(steps_of(conversion(heap, str(tmp_path / "a"), *FIRST)))
    places, alone = seen, contents(str(tmp_path / "a"))
    run(steps_of(conversion(heap, str(tmp_path / "b"), *SECOND)))
    other = contents(str(tmp_path / "b"))
    assert places > 20
    for at in range(1, places + 1, each):
        output, seen = str(tmp_path / f"d{at}"), 0
        come[:] = steps_of(conversion(heap, output, *SECOND))
        with pytest.raises(LostOutputError):
            run(steps_of(conversion(heap, output, *FIRST)))
        assert contents(output) == other, at
        come[:], seen = [], 0
        run(steps_of(conversion(heap, output, *FIRST, "--overwrite")))
        assert contents(output) == alone, at
        shutil.rmtree(output)


def test_nothing_is_replaced_or_deleted_but_for_the_owner(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds a writer: `with store.owner.writing()`."""
    careless: list[str] = []
    writing, held = Owner.writing, 0

    @contextlib.contextmanager
    def holding(self: Owner) -> Iterator[None]:
        nonlocal held
        with writing(self):
            held += 1
            yield
            held -= 1

    def watched(name: str) -> None:
        function = getattr(files, name)

        def called(*arguments: Any, **named: Any) -> Any:
            paths = list(arguments[0]) if name == "delete" else [arguments[0]]
            if name == "replace":
                paths = [arguments[1]]
            if not held:
                careless.extend(path for path in paths if files.temporary_of(path) is None)
            return function(paths if name == "delete" else arguments[0], *arguments[1:], **named)

        monkeypatch.setattr(files, name, called)

    monkeypatch.setattr(Owner, "writing", holding)
    for name in ("write", "write_text", "write_new", "open_write", "replace", "delete", "copy"):
        watched(name)
    output = str(tmp_path / "d")
    run(steps_of(conversion(heap, output, *FIRST)))
    run(steps_of(conversion(heap, output, *SECOND)))
    assert careless == []


def test_a_finish_that_is_tried_again_changes_nothing(heap: Path, root: str) -> None:
    output = files.join(root, "d")
    steps = steps_of(conversion(heap, output))
    run(steps)
    before = contents(output)
    for late in steps[1:]:
        with pytest.raises(LostOutputError):
            late()
    assert contents(output) == before


def test_a_job_that_may_still_run_keeps_the_next_one_out(heap: Path, root: str) -> None:
    output = files.join(root, "d")
    first, second = (conversion(heap, output).state for _ in range(2))
    first.begin(overwrite=False)
    first.keep_locked("job 7 on localhost:8099; to end it: flink cancel 7")
    assert foreign_files(output) == []
    with (
        pytest.raises(
            cli.CommandError,
            match=rf"^a job may still be writing {output}: job 7 on localhost:8099; to end it: "
            r"flink cancel 7; --break_lock if it has ended$",
        ),
        second.lock(break_lock=False),
    ):
        pass
    with second.lock(break_lock=True):
        second.begin(overwrite=False)
    first.keep_locked("too late")  # the output is the second one's
    with second.lock(break_lock=False):
        second.keep_locked("job 8")
        second.keep_locked("")
    with second.lock(break_lock=False):
        pass


def test_a_job_that_was_given_up_and_finishes_gives_the_output_back(heap: Path, root: str) -> None:
    output = files.join(root, "d")
    wanted = conversion(heap, output)
    begin, *shards = steps_of(wanted)
    begin()
    files.write_text(files.join(output, ".state/running.json"), "damaged")
    with (
        pytest.raises(cli.CommandError, match=r"running\.json is unreadable"),
        wanted.state.lock(break_lock=False),
    ):
        pass
    run(shards)
    assert not [name for name in contents(output) if "running" in name]
    with wanted.state.lock(break_lock=False):
        pass


def test_a_page_of_what_was_there_before_does_not_stay(heap: Path, root: str) -> None:
    """`report` may have begun to read before the job that replaced its dataset."""
    output = files.join(root, "d")
    begin, *shards = steps_of(conversion(heap, output))
    begin()
    files.write_text(files.join(output, "report.html"), "of another dataset")
    run(shards)
    assert "report.html" not in contents(output)


def test_what_another_job_deletes_under_ones_hands_is_told_as_that(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's begin removes what this one is writing: its file was not found."""
    output = str(tmp_path / "d")
    begin, shard, *_ = steps_of(conversion(heap, output))
    begin()
    second, size = steps_of(conversion(heap, output, *SECOND))[0], files.size

    def late(path: str) -> int:
        second()
        return size(path)

    monkeypatch.setattr(files, "size", late)
    with pytest.raises(LostOutputError, match="another job"):
        shard()


def test_a_shard_that_no_worker_wrote_is_missed(heap: Path, tmp_path: Path) -> None:
    """A worker that does not find the job's token writes nothing, and says nothing to an engine."""
    output = str(tmp_path / "d")
    begin, _, *living = steps_of(conversion(heap, output))
    begin()
    with pytest.raises(ContractError, match=r"^1 of 3 patients are neither converted nor rejected"):
        run(living)
    assert "manifest.json" not in contents(output)
    run(steps_of(conversion(heap, output)))
    assert verify.main([output, "--workers", "1", "--quiet"]) == 0


@pytest.mark.parametrize("before", [False, True], ids=["new", "again"])
def test_a_job_whose_workers_wrote_nothing_is_not_finished(
    heap: Path, tmp_path: Path, before: bool
) -> None:
    output = str(tmp_path / "d")
    if before:
        run(steps_of(conversion(heap, output)))
    store = conversion(heap, output).state
    store.begin(overwrite=False)
    with pytest.raises(
        cli.CommandError, match=r"is not finished; do its workers see it as it is here\?"
    ):
        store.require_finished()
    Path(output, ".state/owner.json").unlink()  # by whoever tidies up
    with pytest.raises(LostOutputError):
        store.require_finished()


@pytest.mark.slow
def test_the_lock_is_held_until_the_page_is_written(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "d")

    def page(directory: str, **_: Any) -> Any:
        with (
            pytest.raises(files.LockedError, match="another job is writing"),
            conversion(heap, directory).state.lock(break_lock=False),
        ):
            pass
        return make_report(directory)

    monkeypatch.setattr(dicom_to_tfrecord, "make_report", page)
    argv = ["--input", str(heap), "--output", output, "--modalities", "T1w", "--shape", "8,8,4"]
    assert dicom_to_tfrecord.main([*argv, "--fov_mm", "48,48,24", "--quiet"]) == cli.EXIT_OK
    assert "report.html" in contents(output)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("disk_or_store", ["s3"], indirect=True)
@pytest.mark.parametrize("late", ["delete", "replace"])
def test_what_a_request_that_was_under_way_undid_in_a_store_is_seen(
    heap: Path, root: str, late: str
) -> None:
    output = files.join(root, "d")
    *steps, finish = steps_of(conversion(heap, output))
    run(steps)
    shards = [name for name in files.tree(output) if name.endswith(".tfrecord")]
    path, sound = files.join(output, shards[0]), files.read(files.join(output, shards[0]))
    if late == "delete":
        files.delete([path])
    else:
        files.write(path, sound + sound)
    with pytest.raises(ContractError, match=f"{shards[0]} was replaced or deleted while"):
        finish()
    assert "manifest.json" not in contents(output)
    run(steps_of(conversion(heap, output)))
    assert files.read(path) == sound


@pytest.mark.slow
def test_a_command_whose_output_was_taken_says_so_in_one_line(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store `--break_lock` takes it from a command that is alive."""
    output = str(tmp_path / "d")
    write, taken = ShardWriter.write, conversion(heap, output).state

    def overtaken(self: ShardWriter, name: str, patients: Any) -> Any:
        taken.owner.take()
        return write(self, name, patients)

    monkeypatch.setattr(ShardWriter, "write", overtaken)
    argv = ["--input", str(heap), "--output", output, "--modalities", "T1w", "--shape", "8,8,4"]
    with pytest.raises(LostOutputError, match=r"^another job .* nothing of this one is written"):
        dicom_to_tfrecord.main([*argv, "--quiet"])
    assert {name for name in contents(output)} == {
        *(".state/job.json", ".state/lock", ".state/owner.json"),
    }
