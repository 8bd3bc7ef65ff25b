"""GPUs: what the driver shows, which CUDA libraries lie here, and what TensorFlow was built for.

TensorFlow's own facts and the tried convolutions come from `trainer.machine.tensorflow_facts`.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.machine import packages

_SMI_S = 20.0
_QUERY = ("index", "name", "compute_cap", "memory.total", "memory.free", "driver_version")
_VERSION = re.compile(r"V(\d+)\.(\d+)\.(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU, as nvidia-smi shows it.

    Attributes:
      index: its number there.
      name: of the model.
      capability: (major, minor); None where nvidia-smi does not say.
      total, free: memory in bytes; None likewise.
    """

    index: str
    name: str
    capability: tuple[int, int] | None
    total: int | None
    free: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ptxas:
    """The compiler that XLA uses for GPUs.

    Attributes:
      path: its file.
      version: three numbers; none where it does not run.
    """

    path: str
    version: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpus:
    """What there is of GPUs, apart from TensorFlow.

    Attributes:
      cards: those that nvidia-smi shows.
      problem: why it shows none, or what else it says, a line; "" where that is nothing, or it is
        not there.
      driver: its version, "" without one.
      cuda: the CUDA that the driver allows, (major, minor); None without one.
      hidden: CUDA_VISIBLE_DEVICES, None where it is not set.
      libraries: NVIDIA's packages (PyPI's) and their versions.
      wanted: those that the installed TensorFlow names, as requirements, and whether they are met.
      shadowed: directories that LD_LIBRARY_PATH names, with CUDA libraries that go before these.
      ptxas: in the order that XLA looks for it.
      hardware: whether a graphics card of NVIDIA's is on this machine's bus.
    """

    cards: tuple[Card, ...]
    problem: str
    driver: str
    cuda: tuple[int, int] | None
    hidden: str | None
    libraries: Mapping[str, str]
    wanted: Mapping[str, bool]
    shadowed: tuple[str, ...]
    ptxas: tuple[Ptxas, ...]
    hardware: bool


def measure(found: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Gpus:
    """This machine's.

    Args:
      found: every installed package, and its version.
      environ: this process's environment.
    """
    smi = shutil.which("nvidia-smi", path=environ.get("PATH"))
    cards, driver, problem = cards_of(smi) if smi else ((), "", "")
    return Gpus(
        cards=cards,
        problem=problem,
        driver=driver,
        cuda=_driver_cuda() or _shown_cuda(smi if cards else None),
        hidden=environ.get("CUDA_VISIBLE_DEVICES"),
        libraries={name: version for name, version in found.items() if name.startswith("nvidia-")},
        wanted=packages.of_extra("tensorflow", "and-cuda", found),
        shadowed=tuple(filter(_has_cuda, environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))),
        ptxas=tuple(_ptxas(environ)),
        hardware=any(map(_is_card, Path("/sys/bus/pci/devices").glob("*"))),
    )


def _has_cuda(directory: str) -> bool:
    """Whether libraries of CUDA's lie in a directory."""
    return bool(directory) and any(
        any(Path(directory).glob(f"lib{name}.so*")) for name in ("cudart", "cudnn", "cublas")
    )


def _is_card(device: Path) -> bool:
    """Whether a PCI device is a display controller of NVIDIA's."""
    with contextlib.suppress(OSError):
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        return vendor == "0x10de" and kind.startswith("0x03")
    return False


def cards_of(smi: str) -> tuple[tuple[Card, ...], str, str]:
    """(cards, version of the driver, why there are none) by that nvidia-smi."""
    rows, problem = _query(smi, _QUERY)
    if "compute_cap" in problem:  # which an old driver's does not know
        rows, problem = _query(smi, [name for name in _QUERY if name != "compute_cap"])
    cards = tuple(
        Card(
            index=row["index"],
            name=row["name"],
            capability=major_minor(row.get("compute_cap", "")),
            total=_mib(row["memory.total"]),
            free=_mib(row["memory.free"]),
        )
        for row in rows
    )
    driver = rows[0]["driver_version"] if rows else ""
    return cards, driver, problem or ("" if cards else "nvidia-smi shows no GPU")


def _query(smi: str, names: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """(a row a GPU, what else is said): a GPU that is lost, or worn, does not hide the others."""
    command = [smi, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    text, problem = _output(command)
    rows, others = [], []
    for line in filter(str.strip, text.splitlines()):
        (row,) = csv.reader([line], skipinitialspace=True)
        if len(row) == len(names) and row[0].isdigit():
            rows.append(dict(zip(names, map(str.strip, row), strict=True)))
        else:
            others.append(line)
    return rows, problem or " ".join(" ".join(others).split())[:300]


def _output(command: list[str]) -> tuple[str, str]:
    """(what a command writes to stdout, what to stderr or why it does not run)."""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SMI_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"{os.path.basename(command[0])} gives no answer within {_SMI_S:g} s"
    except OSError as error:
        return "", f"{os.path.basename(command[0])}: {error.strerror}"
    out = done.stdout.decode(errors="replace")
    said = " ".join(done.stderr.decode(errors="replace").split())
    return out, said[:300] if done.returncode else ""


def major_minor(text: str) -> tuple[int, int] | None:
    """The first two numbers of a version; None where it has not two."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _mib(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None


def _driver_cuda() -> tuple[int, int] | None:
    """The CUDA of the driver's own library, which containers have without an nvidia-smi."""
    with contextlib.suppress(OSError, AttributeError):
        number = ctypes.c_int(0)
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value // 1000, number.value % 1000 // 10
    return None


def _shown_cuda(smi: str | None) -> tuple[int, int] | None:
    found = re.search(r"CUDA Version:\s*(\d+\.\d+)", _output([smi])[0]) if smi else None
    return major_minor(found[1]) if found else None


def _ptxas(environ: Mapping[str, str]) -> list[Ptxas]:
    """Where XLA looks: the PATH, NVIDIA's package, CUDA's own directory."""
    places = []
    if found := shutil.which("ptxas", path=environ.get("PATH")):
        places.append(Path(found))
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("nvidia")
        for place in (spec and spec.submodule_search_locations) or ():
            places.append(Path(place, "cuda_nvcc/bin/ptxas"))
    places.append(Path("/usr/local/cuda/bin/ptxas"))
    known: dict[str, Ptxas] = {}
    for compiler in places:
        if compiler.is_file():
            version = _VERSION.search(_output([str(compiler), "--version"])[0])
            numbers = tuple(map(int, version.groups())) if version else ()
            real = os.path.realpath(compiler)
            known.setdefault(real, Ptxas(path=str(compiler), version=numbers))
    return list(known.values())


def served(capability: Sequence[int], built: Any) -> bool:
    """Whether a build of TensorFlow has kernels for a GPU of this capability.

    Code of a capability ("sm_80") runs on those of its major number from its minor one on; an
    intermediate form ("compute_90") is compiled by the driver for all later ones, which XLA of no
    release so far survives on another major number: it does not count beyond its own.

    Source: CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility".

    >>> served((8, 6), ["sm_80", "compute_90"]), served((12, 0), ["sm_80", "compute_90"])
    (True, False)
    """
    for each in built:
        found = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[a-z]?", str(each))
        if found and int(found[1]) == capability[0] and int(found[2]) <= capability[1]:
            return True
    return False
