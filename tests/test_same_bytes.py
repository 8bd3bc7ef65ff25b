"""The comparison of two revisions' outputs: what it must find, and the little it may overlook."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from revisions.chain import STAGES, STEPS, needed
from revisions.compare import FAILING, RECORD, Expected, Verdict, compare, compare_file

ROOTS = ("/w/side-aaaa", "/w/side-bbbb")


def verdict(name: str, before: bytes, after: bytes, *expected: Expected) -> Verdict:
    return compare_file(name, (before, after), ROOTS, expected)


def text(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in members.items():
            packed.writestr(name.replace("__", "."), data)
    return stream.getvalue()


def weights(*values: float) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["layers/dense/vars/0"] = np.array(values, np.float32)
    return stream.getvalue()


def keras_file(date: str, *values: float) -> bytes:
    return archive(metadata__json=text({"date_saved": date}), model__weights__h5=weights(*values))


def page(column: str, *cells: str) -> bytes:
    head = f'<thead><tr><th scope="col">AUC</th><th scope="col">{column}</th></tr></thead>'
    rows = "".join(f'<tr><th scope="row">0.5</th><td>{cell}</td></tr>\n' for cell in cells)
    return f"<table>{head}<tbody>{rows}</tbody></table>\n<p>17</p>".encode()


def shared(*addresses: int) -> bytes:
    return archive(config__json=text([{"shared_object_id": address} for address in addresses]))


def session(start: float, name: str) -> bytes:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    started = plugin_data_pb2.SessionStartInfo(start_time_secs=start, group_name=name)
    event = event_pb2.Event(wall_time=start)
    plugin = event.summary.value.add(tag="session").metadata.plugin_data
    plugin.plugin_name = "hparams"
    content = plugin_data_pb2.HParamsPluginData(session_start_info=started)
    plugin.content = content.SerializeToString()
    return framed(event.SerializeToString())


def framed(data: bytes) -> bytes:
    return struct.pack("<QI", len(data), 0) + data + bytes(4)


def events(wall_time: float, loss: float, tag: str = "loss") -> bytes:
    from tensorboard.compat.proto import event_pb2

    event = event_pb2.Event(wall_time=wall_time, step=3)
    event.summary.value.add(tag=tag, simple_value=loss)
    return framed(event.SerializeToString())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("run.json", text({"a": 1, "seconds": 2.5}), text({"a": 1, "seconds": 3})),
        ("run.json", text({"epoch_seconds": [1.5, 2]}), text({"epoch_seconds": [1e-5, 3.25]})),
        ("t.csv", b"a,seconds\n1,2.5\n", b"a,seconds\n1,3.5\n"),
        ("report.html", page("Seconds", "17", "8"), page("Seconds", "20", "9")),
        ("oracle.json", b'{"tried_so_far": ["a", "b"]}', b'{"tried_so_far": ["b", "a"]}'),
        ("study/trials/0/log.txt", b"epoch 1/2  4.5 s\n", b"epoch 1/2  12 s\n"),
        ("request.json", text({"logs": f"{ROOTS[0]}/x"}), text({"logs": f"{ROOTS[1]}/x"})),
    ],
)
def test_times_and_the_directory_are_left_out_of_text(name, before, after):
    assert verdict(name, before, after).word == "but times"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("network.keras", keras_file("2026-01-01", 1, 2), keras_file("2026-01-02", 1, 2)),
        ("network.keras", shared(140, 150, 140), shared(7, 3, 7)),
        ("events.out.tfevents.*.0.v2", session(1.5, "0"), session(2.5, "0")),
        ("map.bin.gz", gzip.compress(b"\x93", mtime=1), gzip.compress(b"\x93", mtime=2)),
        ("logs/events.out.tfevents.*.0.v2", events(1.5, 0.25), events(2.5, 0.25)),
        (
            "logs/events.out.tfevents.*.0.v2",
            events(1.5, 4, "step_seconds"),
            events(2.5, 5, "step_seconds"),
        ),
    ],
)
def test_containers_that_hold_the_same_are_the_same(name, before, after):
    assert verdict(name, before, after).word == "in content"


@pytest.mark.parametrize(
    ("name", "before", "after", "place"),
    [
        ("a.json", text({"x": {"y": [1, 2]}}), text({"x": {"y": [1, 3]}}), "x.y.1: 2 → 3"),
        ("a.json", text({"x": 1}), text({"x": 1.0}), "x: 1 → 1.0"),
        ("a.json", text({"x": 1}), text({}), "x: only before: 1"),
        ("a.json", text({"x": 1}), b'{"x":1}\n', "form: "),
        ("a.jsonl", b'{"p":1}\n{"p":2}\n', b'{"p":1}\n{"p":4}\n', "2.p: 2 → 4"),
        ("a.csv", b"id,p\n7,0.5\n", b"id,p\n7,0.6\n", "1.p: '0.5' → '0.6'"),
        ("a.csv", b"id,seconds,p\n7,1,5\n", b"id,seconds,p\n7,2,6\n", "1.p: '5' → '6'"),
        ("a.csv", b"id,p\n7,0.5\n", b"id,q\n7,0.5\n", "header: "),
        ("a.csv", b"id,p\n", b'id,"p"\n', "form: "),
        ("a.html", b"<p>\none\n", b"<p>\ntwo\n", "line 2: 'one' → 'two'"),
        ("a.html", page("Epochs", "17"), page("Epochs", "20"), "line 1: "),
        ("a.html", page("Seconds", "1"), page("Seconds", "1", "2"), "line "),
        ("a.json", b'{"tried_so_far": ["a"]}', b'{"tried_so_far": ["b"]}', "tried_so_far.0"),
        ("a.keras", shared(140, 150, 140), shared(7, 3, 3), "2.shared_object_id: 0 → 1"),
        ("events.out.tfevents.*.0.v2", session(1, "0"), session(2, "1"), "step 0/session"),
        ("a.tfrecord", b"abcd", b"abxd", "bytes: at 2"),
        ("a.keras", keras_file("d", 1, 2), keras_file("d", 1, 2.5), "by 0.5 at most"),
        ("a.keras", keras_file("d", 0.0), keras_file("d", -0.0), "1 of 1 values"),
        (
            "events.out.tfevents.*.0.v2",
            events(1, 0.25),
            events(1, 0.5),
            "step 3/loss: ",
        ),
    ],
)
def test_a_difference_is_found_and_placed(name, before, after, place):
    found = verdict(name, before, after)
    assert found.word == "differs"
    assert place in found.detail


def test_the_number_of_places_is_reported_beside_the_first():
    found = verdict("a.json", text({"x": 1, "y": 1, "z": 1}), text({"x": 1, "y": 2, "z": 3}))
    assert found.detail == "y: 1 → 2 (and 1 more place)"


def test_an_expected_difference_excuses_its_places_only():
    meant = Expected(file="*/a.json", place="x.*", why="renamed")
    before, after = text({"x": {"k": 1}, "y": 1}), text({"x": {"k": 2}, "y": 1})
    assert verdict("run/a.json", before, after, meant) == Verdict(
        "run/a.json", "expected", "renamed", (meant,)
    )
    assert verdict("run/b.json", before, after, meant).word == "differs"
    more = verdict("run/a.json", before, text({"x": {"k": 2}, "y": 2}), meant)
    assert (more.word, more.detail) == ("differs", "y: 1 → 2")


@pytest.fixture
def side(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, code: int = 0, **files: bytes) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        for file, data in files.items():
            (directory / file).write_bytes(data)
        steps = {"verify": {"code": code, "files": list(files)}}
        record = {"root": str(directory), "steps": steps}
        (directory / RECORD).write_text(json.dumps(record))
        return directory

    return make


def test_a_file_on_one_side_only_fails(side):
    pair = side("before", a=b"1", b=b"1"), side("after", a=b"1", c=b"1")
    words = {found.file: found.word for _, found in compare(*pair, ["verify"])}
    assert words == {"a": "same", "b": "only before", "c": "only after"}
    meant = [Expected(file="[bc]", place="file", why="b is now c")]
    words = {found.file: found.word for _, found in compare(*pair, ["verify"], meant)}
    assert words == {"a": "same", "b": "expected", "c": "expected"}


def test_a_command_that_fails_on_both_sides_is_no_agreement(side):
    pair = side("before", code=1), side("after", code=1)
    ((stage, found),) = compare(*pair, ["verify"])
    assert (stage, found.word in FAILING) == ("verify", True)


def test_a_stage_runs_after_all_that_it_reads():
    for stage in STAGES:
        steps = needed([stage])
        for place, step in enumerate(steps):
            assert set(step.needs) <= {earlier.stage for earlier in steps[:place]} | {step.stage}
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize(("after", "word"), [(0.3 + 1e-16, "expected"), (0.3001, "differs")])
def test_last_bits_that_are_meant_are_no_licence_for_more(after: float, word: str) -> None:
    meant = Expected(file="m.json", place="interval.*", why="another library", relative=1e-12)
    one, other = (text({"interval": [value]}) for value in (0.3 - 1e-16, after))
    assert verdict("m.json", one, other, meant).word == word
