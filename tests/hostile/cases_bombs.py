"""Small inputs that unpack to, claim or would be parsed into far more than they are."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests import bombs
from tests.dicom_bytes import dicom
from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome

_GIGABYTE = 1 << 30
_made = functools.lru_cache(2)(lambda name: bombs.DICOM[name]())
# Where a command looks for patients: option → the part of a cohort.
_READERS = {
    "survey": ("", "train"),
    "convert": ("--input", "train"),
    "predict": ("--input", "test"),
}


def _beside_a_cohort(
    sandbox: Sandbox, *, subject: str, put: Callable[[Path], object]
) -> Sequence[str]:
    """The command with an input that holds a sound cohort and a directory of bombs."""
    command = COMMANDS[subject]
    option, split = _READERS[subject]
    folder = sandbox.put("cohort") / split
    bomb = folder / "00999" / "FLAIR"
    bomb.mkdir(parents=True)
    put(bomb)
    return command.line(sandbox, {option: folder})


def _write_dicom(folder: Path, *, name: str) -> None:
    for number, data in enumerate(_made(name)):
        (folder / f"{number}.dcm").write_bytes(data)


_ARCHIVES: dict[str, Callable[[Path], object]] = {
    "a zip of a zip": lambda folder: bombs.zip_of(folder / "a.zip", [("b.zip", 1 << 20)]),
    "a zip of 2 GB": lambda folder: bombs.zip_of(
        folder / "a.zip", [("0.dcm", _GIGABYTE), ("1.dcm", _GIGABYTE)], dicom()
    ),
    "150,000 members of one name": lambda folder: (folder / "a.zip").write_bytes(
        bombs.many_members(150_000, "0.dcm")
    ),
    "150,000 members": lambda folder: (folder / "a.zip").write_bytes(bombs.many_members(150_000)),
    "a million empty members": lambda folder: (folder / "a.tar.gz").write_bytes(
        bombs.tar_of_empty_members(1_000_000)
    ),
    "a gzip file of 1 GB": lambda folder: bombs.gzip_of(folder / "0.dcm.gz", dicom(), _GIGABYTE),
}
# To be decoded a second time: what claims the most, in various ways.
_WORST = (
    "deflated: pixels as large as they claim",
    "codestream and header of 65535 x 65535",
    "JPEG of 65535 x 65535",
    "2,000 compressed frames of 2048 x 2048",
    "100,000 frames",
    "65535 rows of 45 um",
)


def _dicom() -> Iterator[Case]:
    for name in bombs.DICOM:
        for subject in _READERS:
            yield Case(
                attack="DICOM bomb",
                subject=subject,
                name=name,
                make=partial(
                    _beside_a_cohort, subject=subject, put=partial(_write_dicom, name=name)
                ),
                timeout=240,
            )
    for name, put in _ARCHIVES.items():
        for subject in _READERS:
            yield Case(
                attack="archive bomb",
                subject=subject,
                name=name,
                make=partial(_beside_a_cohort, subject=subject, put=put),
                timeout=240,
            )


def _against(sandbox: Sandbox, *, name: str) -> Sequence[str]:
    """A verification whose input has a bomb in a known patient's series, and samples it all."""
    folder = sandbox.put("cohort") / "train"
    bomb = folder / "00000" / "FLAIR"
    for path in bomb.iterdir():
        path.unlink()
    _write_dicom(bomb, name=name)
    return COMMANDS["verify"].line(sandbox, {"--against": folder, "--samples": 2000})


def _second_decoder() -> Iterator[Case]:
    for name in _WORST:
        yield Case(
            attack="DICOM bomb",
            subject="verify",
            name=f"--against {name}",
            make=partial(_against, name=name),
            timeout=240,
        )


def _sound(sandbox: Sandbox) -> Sequence[str]:
    """An archive of 30,000 files, which is nothing unusual."""
    folder = sandbox.path("input/archives")
    folder.mkdir()
    bombs.zip_of_slices(folder / "a.zip", 1000, 30)
    return COMMANDS["survey"].line(sandbox, {"": folder})


def _all_read(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    if outcome.code != 0 or "30000 = 30000 used" not in outcome.stdout:
        yield f"not all was used: {outcome.stdout[-300:]}"


def _sound_archives() -> Iterator[Case]:
    yield Case(
        attack="archive bomb",
        subject="survey",
        name="none: 30,000 sound members",
        make=_sound,
        expect=_all_read,
        timeout=240,
    )


def _pipe(sandbox: Sandbox) -> Path:
    path = sandbox.path("input/pipe")
    os.mkfifo(path)
    return path


def _sparse(sandbox: Sandbox, *, size: int) -> Path:
    path = sandbox.write("input/large", b"a,b\n")
    os.truncate(path, size)
    return path


def _text(sandbox: Sandbox, *, make: Callable[[], str]) -> Path:
    return sandbox.write("input/f", make())


# What a file of text or JSON is that a command line names.
_ENDLESS: dict[str, Callable[[Sandbox], object]] = {
    "a named pipe": _pipe,
    "an endless device": lambda sandbox: "/dev/zero",
    "a file of 1 GB": partial(_sparse, size=_GIGABYTE),
}
_LARGE: dict[str, Callable[[Sandbox], object]] = {
    "10 MB of columns": partial(_text, make=lambda: "a," * 5_000_000 + "b\n"),
    "10 MB of one line": partial(_text, make=lambda: "a,b\n" + "x" * 10_000_000),
    "10 MB of objects": partial(_text, make=lambda: '{"a":[' + "{}," * 3_300_000 + "0]}"),
    "10 MB of members": partial(
        _text,
        make=lambda: "{" + ",".join(f'"{number:x}":[]' for number in range(900_000)) + "}",
    ),
}


def _line(
    sandbox: Sandbox, *, command: Command, option: str, make: Callable[[Sandbox], object]
) -> list[str]:
    return command.line(sandbox, {option: make(sandbox)})


def _refused(outcome: Outcome, sandbox: Sandbox) -> Iterator[str]:
    if outcome.code == 0:
        yield "was used"


def _files() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        for option in command.files:
            large = _LARGE if (subject, option) == ("convert", "--labels") else {}
            for kind, make in (_ENDLESS | large).items():
                yield Case(
                    attack="a file without an end",
                    subject=subject,
                    name=f"{option} {kind}",
                    make=partial(_line, command=command, option=option, make=make),
                    expect=_refused,
                    timeout=120,
                )


def _array_of_zeros(path: Path) -> None:
    import numpy as np

    np.savez_compressed(path, np.zeros(2 * _GIGABYTE, np.uint8))


def _claimed_arrays(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("layers/0", (16 * _GIGABYTE,), dtype="f4", chunks=(1 << 20,))


def _claimed_network(path: Path) -> None:
    import zipfile

    inner = path.with_suffix(".h5")
    _claimed_arrays(inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "model.weights.h5")
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")


def _claimed_layers(path: Path) -> None:
    """Text asks for a layer of 77 GB, whose weights are nowhere."""
    import json
    import zipfile

    def layer(kind: str, **config: object) -> dict[str, object]:
        return {"module": "keras.layers", "class_name": kind, "config": config}

    layers = [
        layer("InputLayer", name="i", batch_shape=[None, 192], dtype="float32"),
        layer("Dense", name="d", units=10**8),
    ]
    network = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "s", "layers": layers},
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(network))
        archive.writestr("metadata.json", "{}")


_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "weights.h5 an HDF5 file that claims 64 GB": _claimed_arrays,
    "weights.keras a network that claims 64 GB": _claimed_network,
    "weights.keras layers of 77 GB": _claimed_layers,
    "weights.keras a zip of 2 GB of zeros": lambda path: bombs.zip_of(
        path, [("model.weights.h5", 2 * _GIGABYTE)]
    ),
    "weights.npz an array of 2 GB of zeros": _array_of_zeros,
}


_STARTS = {"--encoder_weights": "slice_cnn", "--weights": "seed_cnn"}


def _with_weights(
    sandbox: Sandbox, *, flag: str, name: str, put: Callable[[Path], object]
) -> list[str]:
    path = sandbox.path("input") / name.partition(" ")[0]
    put(path)
    model = {"--model": _STARTS[flag], "--width": None, flag: path}
    line = COMMANDS["train"].line(sandbox, model)
    at = line.index("--width")
    return line[:at] + line[at + 1 :]


def _weights() -> Iterator[Case]:
    for flag, (name, put) in itertools.product(_STARTS, _WEIGHTS.items()):
        yield Case(
            attack="weights that claim more than they hold",
            subject="train",
            name=f"{flag} {name}",
            make=partial(_with_weights, flag=flag, name=name, put=put),
            expect=_refused,
            timeout=120,
        )


CASES = [*_dicom(), *_second_decoder(), *_sound_archives(), *_files(), *_weights()]
