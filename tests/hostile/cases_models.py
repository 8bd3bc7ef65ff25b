"""Models, and networks of runs, that are not what they say: for whoever opens them.

A graph's operations are renamed byte by byte to others of as many letters, and the contract lists
the files as they then are, as whoever swapped them would: only a look at the graph helps.
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.cases import Case
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

GRAPH = "saved_model.pb"
VARIABLES = "variables/variables.data-00000-of-00001"
CONTRACT = "assets/contract.json"
Change = Callable[[Path], object]


def _file(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda model: (model / name).write_bytes(change((model / name).read_bytes()))


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def _relisted(change: Change) -> Change:
    """The change, and a contract that lists the files as they are after it."""

    def put(model: Path) -> None:
        change(model)
        data: dict[str, Any] = json.loads((model / CONTRACT).read_bytes())
        data["sha256"] = {
            str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in model.rglob("*")
            if path.is_file() and path != model / CONTRACT
        }
        (model / CONTRACT).write_text(json.dumps(data))

    return put


def _contract(**changes: Any) -> Change:
    def put(model: Path) -> None:
        data: dict[str, Any] = json.loads((model / CONTRACT).read_bytes())
        (model / CONTRACT).write_text(json.dumps({**data, **changes}))

    return put


def _renamed(old: str, new: str) -> Change:
    def change(data: bytes) -> bytes:
        assert old.encode() in data, old
        return data.replace(b"\x12" + bytes([len(old)]) + old.encode(), _field(new))

    def _field(name: str) -> bytes:
        return b"\x12" + bytes([len(name)]) + name.encode()

    assert len(old) == len(new)
    return _relisted(_file(GRAPH, change))


_CHANGED: dict[str, Change] = {
    "a bit of the weights": _file(VARIABLES, lambda data: _flipped(data, 100)),
    "a bit of the index": _file("variables/variables.index", lambda data: _flipped(data, 40)),
    "a bit of the graph": _file(GRAPH, lambda data: _flipped(data, 5000)),
    "a sentence of the card": _file(
        "assets/MODEL_CARD.md", lambda data: data + b"\nFor clinics.\n"
    ),
    "the statistics": _file("assets/training_statistics.json", lambda data: b"{}"),
    "the warm-up": _file("assets.extra/tf_serving_warmup_requests", lambda data: b""),
    "the fingerprint": lambda model: (model / "fingerprint.pb").unlink(),
    "no weights": lambda model: (model / VARIABLES).unlink(),
    "a graph beside the graph": lambda model: (model / "saved_model.cpb").write_bytes(b"x"),
    "a text beside the graph": lambda model: (model / "saved_model.pbtxt").write_text("{"),
    "an asset of its own": lambda model: (model / "assets/run.sh").write_text("rm -rf /"),
    "a name of escape sequences": lambda model: (model / "assets/\x1b]0;x\x07").write_text("x"),
    "weights of another model": _file(VARIABLES, lambda data: data[::-1]),
    "a list of nothing that is there": _contract(sha256={"../../etc/passwd": "0" * 64}),
    "a list of a number": _contract(sha256={GRAPH: 1}),
    "a list of a deep object": _contract(sha256={GRAPH: {"a": [[[]]]}}),
    "a list that is a list": _contract(sha256=[GRAPH]),
    "a long name in the list": _contract(sha256={"x" * 100_000: "0" * 64}),
}
_GRAPHS: dict[str, Change] = {
    "WriteFile": _renamed("DecodeRaw", "WriteFile"),
    "RestoreV2 of any path": _renamed("DecodeRaw", "RestoreV2"),
    "ReadFile": _renamed("Identity", "ReadFile"),
    "PrintV2": _renamed("Sigmoid", "PrintV2"),
    "PyFunc": _renamed("MatMul", "PyFunc"),
    "SaveV2": _renamed("MatMul", "SaveV2"),
    "no operation at all": _renamed("MatMul", "QQQQQQ"),
}
_DAMAGED: dict[str, Change] = {
    "an empty graph": _relisted(_file(GRAPH, lambda data: b"")),
    "half a graph": _relisted(_file(GRAPH, lambda data: data[: len(data) // 2])),
    "a graph of noise": _relisted(_file(GRAPH, lambda data: random.Random(1).randbytes(9999))),
    "a graph of nested groups": _relisted(_file(GRAPH, lambda data: b"\x0b" * 100_000)),
    "no weights": _relisted(lambda model: (model / VARIABLES).unlink()),
    "half the weights": _relisted(_file(VARIABLES, lambda data: data[: len(data) // 2])),
    "an empty index": _relisted(_file("variables/variables.index", lambda data: b"")),
    "an index of noise": _relisted(
        _file("variables/variables.index", lambda data: random.Random(2).randbytes(len(data)))
    ),
}


def _predict(sandbox: Sandbox, *, change: Change, flags: tuple[str, ...] = ()) -> list[object]:
    model = sandbox.put("model")
    change(model)
    given = ("--input", sandbox.put("dataset"), "--output", f"{sandbox.output}.csv")
    return ["--model", model, *given, *flags]


def _says(text: str) -> Callable[[Outcome, Sandbox], Iterator[str]]:
    def expect(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
        if text not in outcome.stderr:
            yield f"stderr does not say {text!r}: {outcome.stderr[:300]!r}"

    return expect


CASES = [
    *(
        Case(
            attack="a model changed since its export",
            subject="predict",
            name=name,
            make=partial(_predict, change=change),
            codes=(1,),
        )
        for name, change in _CHANGED.items()
    ),
    *(
        Case(
            attack="a graph that touches files, with a contract that fits",
            subject="predict",
            name=name,
            make=partial(_predict, change=change),
            codes=(1,),
            expect=_says("not loaded"),
        )
        for name, change in _GRAPHS.items()
    ),
    *(
        Case(
            attack="a damaged model, with a contract that fits",
            subject="predict",
            name=name,
            make=partial(_predict, change=change),
            codes=(1,),
        )
        for name, change in _DAMAGED.items()
    ),
    *(
        Case(
            attack="another model than the required one",
            subject="predict",
            name=name,
            make=partial(_predict, change=lambda model: None, flags=("--require_sha256", value)),
            codes=codes,
        )
        for name, value, codes in (
            ("a hash of another", "0" * 64, (1,)),
            ("no hash", "latest", (2,)),
            ("a hash of capitals", "A" * 64, (2,)),
            ("escape sequences", "\x1b]0;x\x07", (2,)),
            ("a hash of 100 kB", "0" * 100_000, (2,)),
        )
    ),
]


def _network(sandbox: Sandbox, *, layer: dict[str, Any]) -> list[object]:
    """A run one of whose layers is of a stranger's choice."""
    run = sandbox.put("run")
    file = min(run.rglob("network.keras"))
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    config = json.loads(members["config.json"])
    mark = str(sandbox.work / "mark")
    config["config"]["layers"][1] |= json.loads(json.dumps(layer).replace("MARK", mark))
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return ["--runs", run, "--output", sandbox.output]


def _of(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": name, "registered_name": name, "config": config}


CASES += [
    Case(
        attack="a network that carries code",
        subject="export",
        name=name,
        make=partial(_network, layer=layer),
        codes=(1,),
    )
    for name, layer in {
        "a process": _of("subprocess", "Popen", {"args": ["touch", "MARK"]}),
        "a shell": _of("os", "system", {"command": "touch MARK"}),
        "exec": _of("builtins", "exec", {"source": "open('MARK', 'w')"}),
        "a download": _of("keras.utils", "get_file", {"fname": "MARK", "origin": "file:///x"}),
        "another file": _of("keras.saving", "load_model", {"filepath": "MARK"}),
        "a lambda": _of(
            "keras.layers",
            "Lambda",
            {"function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
        ),
        "a class of nobody": _of("nowhere.at.all", "Layer", {}),
        "a deep configuration": _of("keras.layers", "Dense", json.loads("[" * 400 + "]" * 400)),
    }.items()
]
