"""Shards of a small dataset that claim to hold much, listed by a manifest that fits them."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import google_crc32c

from beam_jobs.common.contract_json import fingerprint
from beam_jobs.core.example import field_head
from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

_BYTES = 9 << 20  # of a shard
_MANY = {"bytes": b"\x0a\x00", "integers": b"\x01", "floats": b"\x00\x00\x80\x3f"}
_FIELD = {"bytes": 1, "floats": 2, "integers": 3}
_SUBJECTS = ("verify", "report", "train", "tune", "baseline", "predict")


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _record(data: bytes, claimed: int = 0) -> bytes:
    length = struct.pack("<Q", claimed or len(data))
    return length + _masked(length) + data + _masked(data)


def _message(number: int, data: bytes) -> bytes:
    return field_head(number, len(data)) + data


def _feature(name: bytes, kind: str, values: bytes) -> bytes:
    listed = values if kind == "bytes" else _message(1, values)
    value = _message(_FIELD[kind], listed)
    return _message(1, _message(1, name) + _message(2, value))


def _with(more: bytes) -> Callable[[bytes], bytes]:
    """The shard's first record with another features' message merged into its own."""

    def change(shard: bytes) -> bytes:
        (length,) = struct.unpack_from("<Q", shard)
        return _record(shard[12 : 12 + length] + _message(1, more)) + shard[length + 16 :]

    return change


def _names() -> bytes:
    return b"".join(_message(1, _message(1, b"%x" % place)) for place in range(_BYTES // 10))


_SHARDS: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"{name} of millions of {kind}": _with(
            _feature(name.encode(), kind, _MANY[kind] * (_BYTES // len(_MANY[kind])))
        )
        for name, kind in (
            ("patient_id", "bytes"), ("modalities", "bytes"), ("label", "integers"),
            ("shape", "integers"), ("affine", "floats"), ("volume", "floats"),
        )
    },
    "a million features": _with(_names()),
    "an id of 9 MB": _with(_feature(b"patient_id", "bytes", _message(1, b"x" * _BYTES))),
    "a record of 2 GB": lambda shard: _record(b"\x00" * _BYTES, claimed=(1 << 31) - 1),
    "half a million empty records": lambda shard: _record(b"") * (_BYTES // 16),
    "nested groups": lambda shard: _record(b"\x0b" * _BYTES),
    "2 GB of zeros, compressed": lambda shard: gzip.compress(bytes(1 << 21), 9) * 1024,
}  # fmt: skip


def _put(sandbox: Sandbox, *, subject: str, change: Callable[[bytes], bytes]) -> list[str]:
    dataset = sandbox.put("dataset")
    file: Path = min(dataset.glob("fold-0*.tfrecord"))
    data = change(file.read_bytes())
    file.write_bytes(data)
    manifest = json.loads((dataset / "manifest.json").read_bytes())
    for shard in manifest["shards"]:
        if shard["name"] == file.name:
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    hashes = {"schema": manifest["schema"], "shards": [s["sha256"] for s in manifest["shards"]]}
    manifest["dataset_fingerprint"] = fingerprint(hashes)
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    changes: dict[str, object] = {}
    if subject == "predict":
        changes = {"--input": dataset}
    return COMMANDS[subject].line(sandbox, changes)


def _not_silent(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    if outcome.code == 0:
        yield "was used"


def _nothing(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    """What the trainer does not read of a record may be what it likes."""
    return iter(())


CASES = [
    Case(
        attack="a shard that claims to hold much",
        subject=subject,
        name=name,
        make=partial(_put, subject=subject, change=change),
        expect=_not_silent if subject in ("verify", "report", "baseline") else _nothing,
        timeout=120,
    )
    for subject in _SUBJECTS
    for name, change in _SHARDS.items()
]
