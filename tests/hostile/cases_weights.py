"""Weights of PyTorch that a stranger made, for a network to start from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome
from tests.trainer.networks.weights import torch_format as torch
from tests.trainer.networks.weights.torch_attempts import ATTEMPTS, CLAIMS, GOOD

_GIGABYTE = 1 << 30


def _pickle(value: object) -> bytes:
    """What would leave a file "mark" in the working directory, which is somebody else's."""
    return torch.pickled({"state_dict": {"a": GOOD, "b": value}}, 4).replace(b"MARK", b"mark")


def _archive(path: Path, pickle: bytes) -> None:
    torch.write_zip(path, pickle, {"0": bytes(16)})


def _old(path: Path, pickle: bytes) -> None:
    torch.write_legacy(path, pickle, {"0": (4, bytes(16))})


def _zeros(path: Path) -> None:
    """2 GB of zeros, compressed to 2 MB."""
    count = 2 * _GIGABYTE
    wanted = torch.tensor(torch.storage("0", "ByteStorage", count), (count,))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", torch.pickled({"a": wanted}))
        with archive.open("net/data/0", "w", force_zip64=True) as stream:
            for _ in range(count >> 24):
                stream.write(bytes(1 << 24))


def _long_table(path: Path) -> None:
    """64 MB that say where arrays lie, of which there are none."""
    text = b"{" + b'"a":[[[[[]]]]],' * (1 << 22) + b'"b":1}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)


_FILES: dict[str, Callable[[Path], object]] = {
    "2 GB of zeros.pth": _zeros,
    "a table of 64 MB.safetensors": _long_table,
    "text.pth": lambda path: path.write_text("weights"),
    "text.safetensors": lambda path: path.write_text("weights of a network"),
    "nothing.pt": lambda path: path.write_bytes(b""),
}


def _line(sandbox: Sandbox, *, name: str, put: Callable[[Path], object]) -> list[str]:
    path = sandbox.path("input") / name
    put(path)
    given = {"--model": "resnet10", "--weights": path}
    return COMMANDS["train"].line(sandbox, given)


def _refused(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    if outcome.code == 0:
        yield "was used"


def _case(attack: str, name: str, put: Callable[[Path], object], *, file: str) -> Case:
    return Case(
        attack=attack,
        subject="train",
        name=f"--weights {name}",
        make=partial(_line, name=file, put=put),
        expect=_refused,
        timeout=120,
    )


def _cases() -> Iterator[Case]:
    for name, value in ATTEMPTS.items():
        for write in (_archive, _old):
            put = partial(write, pickle=_pickle(value))
            told = f"{name}, {write.__name__.strip('_')}"
            yield _case("a pickle that would do something", told, put, file="net.pth")
    for name, (value, _) in CLAIMS.items():
        put = partial(_archive, pickle=torch.pickled(value))
        yield _case("weights that claim more than they hold", name, put, file="net.pth")
    for name, make in _FILES.items():
        file = f"net{Path(name).suffix}"
        yield _case("weights that claim more than they hold", name, make, file=file)


CASES = list(_cases())
