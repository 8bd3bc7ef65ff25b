"""What workers note of their progress: each thing counts once, however often it was done."""

from pathlib import Path

from beam_jobs.common.progress_files import Ticks, Units, lines, note, tick
from beam_jobs.convert.summary import print_shards


def test_work_that_is_done_again_counts_once(tmp_path: Path) -> None:
    path = str(tmp_path / "patients")
    tick(path, "00001", "00002")
    tick(path, "00002", "00003")
    assert Units(path).done() == 3


def test_a_key_stands_for_as_many_units_as_it_says(tmp_path: Path) -> None:
    path = str(tmp_path / "files")
    for chunk, count in (("0", 64), ("1", 7), ("0", 64)):
        tick(path, chunk, count=count)
    assert Units(path).done() == 71


def test_what_is_appended_meanwhile_is_counted_next(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    units = Units(str(path))
    assert units.done() == 0
    tick(str(path), "a")
    whole = path.read_bytes()
    assert units.done() == 1
    tick(str(path), "a", "b")
    path.write_bytes(path.read_bytes()[:-1])  # amid a write
    assert units.done() == 1
    path.write_bytes(path.read_bytes() + b"\0")
    assert units.done() == 2
    assert path.stat().st_size == 3 * len(whole)


def test_names_do_not_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    tick(str(path), "DOE^JANE", "a surrogate \udcff")
    assert b"DOE" not in path.read_bytes()


def test_nothing_is_noted_where_workers_are_elsewhere_or_the_command_has_ended(
    tmp_path: Path,
) -> None:
    tick("", "a")
    note("", "a new")
    tick(str(tmp_path / "gone" / "patients"), "a")
    assert (Units("").done(), lines(""), list(tmp_path.iterdir())) == (0, [], [])


def test_a_shard_written_twice_is_one_converted_shard(tmp_path: Path, capsys) -> None:
    ticks = Ticks.below(str(tmp_path))
    for line in ("a.tfrecord new", "b.tfrecord new", "a.tfrecord kept", "c.tfrecord kept"):
        note(ticks.shards, line)
    tick(ticks.files, "0", count=20)
    tick(ticks.files, "0", count=20)
    print_shards(ticks, 2.0)
    out = capsys.readouterr().out
    assert "1 kept, 2 converted" in out
    assert "2.0 s, 10 files a second" in out
