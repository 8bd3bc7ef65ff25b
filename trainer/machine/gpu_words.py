"""What is said of GPUs and of what was tried on each device, and what is to be mended there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from trainer.machine import networks
from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Mark, Row, Section, gib
from trainer.machine.gpus import Gpus, served

# XLA warns of wrong numbers on Hopper from compilers before it (docs/how-to/gpu.md).
_HOPPER, _HOPPER_PTXAS = 9, (12, 6, 85)
_TRAINING = "training on it"
_NETWORKS = "train, tune, saliency and export"


def trials(device: str) -> list[Trial]:
    """A convolution in each precision, without XLA and with it."""
    function = f"{networks.__name__}:convolution"
    return [
        Trial(function=function, arguments={"device": device, "precision": precision, "xla": xla})
        for xla in (False, True)
        for precision in networks.PRECISIONS
    ]


def told(
    gpus: Gpus,
    facts: Answer,
    tried: Mapping[str, Sequence[Answer]],
    told_of: Collection[str] = (),
) -> Section:
    """The section of the devices.

    Args:
      gpus: as they are apart from TensorFlow.
      facts: `networks.facts`'; without an answer where TensorFlow does not import.
      tried: device → answers of `trials`, fewer where one took too long.
      told_of: problems that are told already, and to be mended there.
    """
    known: Mapping[str, Any] = facts.value or {}
    rows = [*_card_rows(gpus, known), *_software_rows(gpus, known)]
    faults = [*_card_faults(gpus, known)]
    if known:
        xla = "on" if known["xla"] else "off"
        rows.append(
            Row(name="auto", text=f"--precision auto is {known['precision']}, --xla auto is {xla}")
        )
        if known["backend"] != "tensorflow":
            rows.append(Row(name="backend", text=f"Keras runs on {known['backend']}", mark="fault"))
            faults.append(
                Fault(
                    what=f"Keras is told to run on {known['backend']}",
                    stops=_NETWORKS,
                    mend="unset KERAS_BACKEND, or name tensorflow in ~/.keras/keras.json",
                )
            )
    elif facts.missing == "tensorflow":
        rows.append(Row(name="TensorFlow", text="not installed: nothing is tried", mark="note"))
    else:
        rows.append(Row(name="TensorFlow", text=f"nothing is tried: {facts.problem}", mark="fault"))
        if facts.problem not in told_of:
            faults.append(
                Fault(
                    what=f"TensorFlow does not say what it sees: {facts.problem}",
                    stops=_NETWORKS,
                    mend="--log_level info shows what it says of it",
                )
            )
    for device, answers in tried.items():
        more, wrong = _tried(device, answers, known)
        rows += more
        faults += wrong
    return Section(title="devices", rows=tuple(rows), faults=tuple(faults))


def _card_rows(gpus: Gpus, known: Mapping[str, Any]) -> Iterator[Row]:
    if gpus.driver or gpus.cuda:
        allows = "" if gpus.cuda is None else f", allows CUDA {_dotted(gpus.cuda)}"
        text = f"NVIDIA {gpus.driver or 'of an unknown version'}{allows}"
        built = _pair(known.get("build", {}).get("cuda_version", ""))
        if gpus.cuda and built and gpus.cuda[0] == built[0] and gpus.cuda < built:
            text += (
                f": older than {_dotted(built)}, which TensorFlow was built for. That serves, but "
                "for GPUs whose code the driver has to compile, as Hopper's"
            )
            yield Row(name="driver", text=text, mark="note")
        else:
            yield Row(name="driver", text=text)
    for card in gpus.cards:
        parts = [card.name]
        if card.capability:
            parts.append(f"compute capability {_dotted(card.capability)}")
        if card.total is not None and card.free is not None:
            parts.append(f"{gib(card.free)} of {gib(card.total)} free")
        yield Row(name=f"GPU {card.index}", text=", ".join(parts))
    if not gpus.cards:
        seen = known.get("gpus") or []
        if gpus.problem:
            yield Row(
                name="GPU",
                text=gpus.problem,
                mark="fault" if gpus.hardware and not seen else "note",
            )
        elif gpus.hardware and not seen:
            yield Row(
                name="GPU",
                text="the machine has one of NVIDIA's, which is not for this process: no "
                "nvidia-smi here. A container needs docker run --gpus all",
                mark="note",
            )
        elif not seen:
            yield Row(name="GPU", text="none: training goes on the CPU")
    if gpus.hidden is not None and (gpus.cards or gpus.hardware):
        yield Row(name="visible", text=f"CUDA_VISIBLE_DEVICES={gpus.hidden}", mark=_hiding(gpus))


def _hiding(gpus: Gpus) -> Mark:
    return "note" if _hides_all(gpus) else ""


def _hides_all(gpus: Gpus) -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves none: what stands behind one that is none is ignored."""
    if gpus.hidden is None:
        return False
    first = gpus.hidden.split(",")[0].strip()
    return first in ("", "-1", "NoDevFiles", "none", "void")


def _software_rows(gpus: Gpus, known: Mapping[str, Any]) -> Iterator[Row]:
    if known:
        build = known["build"]
        if build.get("is_cuda_build"):
            kinds = " ".join(build.get("cuda_compute_capabilities", ()))
            text = (
                f"built for CUDA {build.get('cuda_version')}, cuDNN {build.get('cudnn_version')}, "
                f"{kinds}"
            )
        else:
            text = "built without CUDA"
        yield Row(name="TensorFlow", text=f"{known['version']}, {text}")
        if gpus.cards:
            seen = [
                f"{one['name'] or 'GPU'} ({_dotted(one['capability'] or ())})"
                for one in known["gpus"]
            ]
            yield Row(
                name="sees",
                text=", ".join(seen) or "no GPU",
                mark="" if seen else "note" if _hides_all(gpus) else "fault",
            )
    if gpus.libraries:
        short = {
            name.removeprefix("nvidia-").rpartition("-cu")[0] or name: version
            for name, version in gpus.libraries.items()
        }
        chosen = [
            f"{name} {short[name]}"
            for name in ("cuda-runtime", "cuda-nvcc", "cudnn", "nccl")
            if name in short
        ]
        yield Row(name="libraries", text=f"{', '.join(chosen)}: {len(short)} packages of NVIDIA's")
    elif gpus.cards and gpus.wanted:
        yield Row(name="libraries", text="no packages of NVIDIA's are installed", mark="note")
    for each in gpus.ptxas:
        yield Row(
            name="ptxas",
            text=f"{_dotted(each.version) or 'does not run'} ({each.path})",
            mark="fault" if each is gpus.ptxas[0] and _has_old_ptxas(gpus) else "",
        )


def _has_old_ptxas(gpus: Gpus) -> bool:
    """Whether XLA would compile for Hopper with a compiler that it warns of."""
    hopper = any(card.capability and card.capability[0] == _HOPPER for card in gpus.cards)
    return hopper and bool(gpus.ptxas) and () < gpus.ptxas[0].version < _HOPPER_PTXAS


def _card_faults(gpus: Gpus, known: Mapping[str, Any]) -> Iterator[Fault]:
    if not gpus.cards:
        if gpus.problem and gpus.hardware and not known.get("gpus"):
            yield Fault(
                what=f"there is an NVIDIA GPU, but {gpus.problem}",
                stops=_TRAINING,
                mend="install NVIDIA's driver or reboot after its update; in a container: "
                "docker run --gpus all",
            )
        return
    build = known.get("build", {})
    kinds = build.get("cuda_compute_capabilities", ())
    foreign = [
        card
        for card in gpus.cards
        if card.capability and kinds and not served(card.capability, kinds)
    ]
    for card in foreign:
        assert card.capability
        yield _unserved(card.name, card.capability, known["version"], kinds)
    if _has_old_ptxas(gpus):
        yield Fault(
            what=f"ptxas {_dotted(gpus.ptxas[0].version)} on a Hopper GPU: XLA warns that code of "
            f"compilers before {_dotted(_HOPPER_PTXAS)} may compute wrong numbers",
            stops="trust in what is trained with --xla on, and --xla auto is that on a GPU",
            mend="the new stack, or a newer ptxas first on the PATH (docs/how-to/gpu.md), or "
            "--xla off",
        )
    if known and not known["gpus"] and not _hides_all(gpus) and len(foreign) < len(gpus.cards):
        yield _unseen(gpus, known)


def _unserved(name: str, capability: Sequence[int], version: str, kinds: Sequence[str]) -> Fault:
    least = min(int(kind.rpartition("_")[2].rstrip("abcdef")) for kind in kinds)
    old = capability[0] * 10 + capability[1] < least
    return Fault(
        what=f"TensorFlow {version} has no code for {name} (compute capability "
        f"{_dotted(capability)}), only {' '.join(kinds)}",
        stops=_TRAINING
        + ("" if old else "; XLA fails, and the driver may compile for half an hour"),
        mend="train on the CPU (CUDA_VISIBLE_DEVICES=-1) or on a newer GPU"
        if old
        else "NVIDIA's container of TensorFlow, a nightly or a build of your own "
        "(docs/how-to/gpu.md), or another GPU; CUDA_VISIBLE_DEVICES=-1 trains on the CPU",
    )


def _unseen(gpus: Gpus, known: Mapping[str, Any]) -> Fault:
    """Why TensorFlow sees no GPU where the driver shows one."""
    build, version = known["build"], known["version"]
    what = "the driver shows a GPU and TensorFlow sees none"
    wanted = _pair(build.get("cuda_version", ""))
    install = f"pip install 'tensorflow[and-cuda]=={version}' (docs/how-to/gpu.md)"
    if not build.get("is_cuda_build"):
        what += f": this TensorFlow {version} was built without CUDA"
        mend = "pip uninstall tensorflow-cpu; pip install --force-reinstall "
        return Fault(what=what, stops=_TRAINING, mend=f"{mend}'tensorflow[and-cuda]=={version}'")
    if gpus.cuda and wanted and gpus.cuda[0] < wanted[0]:
        what += f": the driver allows CUDA {_dotted(gpus.cuda)}, {_dotted(wanted)} is needed"
        mend = f"install a driver for CUDA {wanted[0]} (docs/how-to/gpu.md)"
        return Fault(what=what, stops=_TRAINING, mend=mend)
    if lacks := [name for name, met in gpus.wanted.items() if not met]:
        what += f": of NVIDIA's libraries it lacks {', '.join(lacks)}"
        return Fault(what=what, stops=_TRAINING, mend=install)
    return Fault(
        what=what,
        stops=_TRAINING,
        mend=f"{install}; does LD_LIBRARY_PATH name other CUDA libraries? --log_level info shows "
        "what TensorFlow says of it",
    )


def _tried(
    device: str, answers: Sequence[Answer], known: Mapping[str, Any]
) -> tuple[list[Row], list[Fault]]:
    """Rows and faults of what was tried on a device."""
    rows, faults = [], []
    asked = trials(device)
    chosen = ("float32", False)
    if not device.startswith("CPU"):
        chosen = (known["precision"], known["xla"])
    kind = "CPU" if device.startswith("CPU") else device.replace(":", " ")
    for xla in (False, True):
        good, bad = [], []
        for trial, answer in zip(asked, answers, strict=False):
            precision = trial.arguments["precision"]
            if trial.arguments["xla"] is not xla:
                continue
            problem, wrong = answer.problem, False
            if not problem and not answer.value <= networks.most_error(device, precision):
                problem, wrong = f"numbers are off by {answer.value:.2g} of the largest", True
            if not problem:
                good.append(precision)
                continue
            bad.append(f"{precision} fails: {problem}")
            if wrong or (precision, xla) == chosen:
                faults.append(_failed(kind, precision, problem, xla=xla))
        left = len([one for one in asked if one.arguments["xla"] is xla]) - len(good) - len(bad)
        parts = [f"{', '.join(good)} agree with float64"] if good else []
        parts += bad
        parts += [f"{left} not tried after that"] if left and bad else []
        if parts:
            failed = any(fault.what.startswith(f"{_device(kind, xla)}, ") for fault in faults)
            mark: Mark = "fault" if failed else "note" if bad else ""
            rows.append(Row(name=_device(kind, xla), text="; ".join(parts), mark=mark))
    return rows, faults


def _device(kind: str, xla: bool) -> str:
    return f"{kind} {'XLA' if xla else 'plain'}"


def _failed(kind: str, precision: str, problem: str, *, xla: bool) -> Fault:
    other = "--xla off" if xla else "--precision float32" if precision != "float32" else ""
    return Fault(
        what=f"{_device(kind, xla)}, {precision}: a 3D convolution fails: {problem}",
        stops=_NETWORKS if kind == "CPU" else _TRAINING,
        mend=f"see whether {other} works" if other else "TensorFlow installed anew (make setup)",
    )


def _pair(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(text).split(".")[:2] if part.isdigit())


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
