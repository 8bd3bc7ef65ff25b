"""What is said of GPUs and of what was tried on each device, and what is to be mended there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from beam_jobs.common.printable import counted
from trainer.machine import tensorflow_facts
from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Mark, Row, Section, gib
from trainer.machine.gpus import Gpus, major_minor, served

# Both: docs/how-to/gpu.md. Compilers of CUDA 12 before the one have a fault on Hopper, of which not
# every release of TensorFlow warns; cuDNN has no code for cards before Turing from the other on.
_HOPPER, _HOPPER_PTXAS = 9, (12, 6, 85)
_TURING, _TURING_CUDNN = (7, 5), (9, 11)
_NO_MEMORY = re.compile(
    r"out of memory|\bOOM\b|RESOURCE_EXHAUSTED|failed to allocate", re.IGNORECASE
)
_TRAINING = "training on it"
_NETWORKS = "train, tune, saliency and export"


def trials(device: str) -> list[Trial]:
    """A convolution in each precision, without XLA and with it."""
    function = f"{tensorflow_facts.__name__}:convolution"
    return [
        Trial(function=function, arguments={"device": device, "precision": precision, "xla": xla})
        for xla in (False, True)
        for precision in tensorflow_facts.PRECISIONS
    ]


def section(
    gpus: Gpus,
    facts: Answer,
    tried: Mapping[str, Sequence[Answer]],
    already: Collection[str] = (),
) -> Section:
    """The section of the devices.

    Args:
      gpus: as they are apart from TensorFlow.
      facts: `tensorflow_facts.facts`'; without an answer where TensorFlow does not import.
      tried: device → answers of `trials`, fewer where one took too long.
      already: problems that another section tells, and how to mend them.
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
    elif facts.missing in ("tensorflow", "keras"):
        name = "TensorFlow" if facts.missing == "tensorflow" else "Keras"
        rows.append(Row(name=name, text="not installed: nothing is tried", mark="note"))
    else:
        rows.append(Row(name="TensorFlow", text=f"nothing is tried: {facts.problem}", mark="fault"))
        if facts.problem not in already:
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
        built = major_minor(known.get("build", {}).get("cuda_version", ""))
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
    if gpus.cards and gpus.problem:
        yield Row(name="nvidia-smi", text=f"says: {gpus.problem}", mark="note")
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
        mark: Mark = "note" if _hides_all(gpus) else ""
        yield Row(name="visible", text=f"CUDA_VISIBLE_DEVICES={gpus.hidden}", mark=mark)


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
        if gpus.cards or known["gpus"]:
            seen = [
                f"{number}: {one['name'] or 'GPU'} ({_dotted(one['capability'] or ())})"
                for number, one in enumerate(known["gpus"])
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
        yield Row(
            name="libraries",
            text=f"{', '.join(chosen)}: {counted(len(short), 'package')} of NVIDIA's",
            mark="fault" if _old_for_cudnn(gpus, known) else "",
        )
    elif gpus.cards and gpus.wanted:
        yield Row(name="libraries", text="no packages of NVIDIA's are installed", mark="note")
    if gpus.shadowed:
        text = f"LD_LIBRARY_PATH puts those of {', '.join(gpus.shadowed)} first"
        yield Row(name="shadowed", text=text, mark="note")
    for each in gpus.ptxas:
        yield Row(
            name="ptxas",
            text=f"{_dotted(each.version) or 'does not run'} ({each.path})",
            mark="fault" if each is gpus.ptxas[0] and _has_old_ptxas(gpus, known) else "",
        )


def _used(gpus: Gpus, known: Mapping[str, Any]) -> dict[tuple[str, tuple[int, ...]], None]:
    """(name, compute capability) of the GPUs that training would use, those alike once.

    Where some are hidden, or no nvidia-smi is there to show them, those that TensorFlow sees.
    """
    if known.get("gpus") and (gpus.hidden is not None or not gpus.cards):
        return {
            (one["name"] or "GPU", tuple(one["capability"] or ())): None for one in known["gpus"]
        }
    if _hides_all(gpus):
        return {}
    return {(card.name, card.capability or ()): None for card in gpus.cards}


def _has_old_ptxas(gpus: Gpus, known: Mapping[str, Any]) -> bool:
    """Whether XLA would compile for Hopper with a compiler that has the fault there."""
    hopper = any(capability[:1] == (_HOPPER,) for _, capability in _used(gpus, known))
    return hopper and bool(gpus.ptxas) and () < gpus.ptxas[0].version < _HOPPER_PTXAS


def _card_faults(gpus: Gpus, known: Mapping[str, Any]) -> Iterator[Fault]:
    if not gpus.cards and not known.get("gpus"):
        if gpus.problem and gpus.hardware:
            yield Fault(
                what=f"there is an NVIDIA GPU, but {gpus.problem}",
                stops=_TRAINING,
                mend="install NVIDIA's driver or reboot after its update; in a container: "
                "docker run --gpus all",
            )
        return
    build = known.get("build", {})
    kinds = build.get("cuda_compute_capabilities", ())
    used = _used(gpus, known)
    foreign = [one for one in used if one[1] and kinds and not served(one[1], kinds)]
    for name, capability in foreign:
        yield _unserved(name, capability, known["version"], kinds)
    if _has_old_ptxas(gpus, known):
        yield Fault(
            what=f"ptxas {_dotted(gpus.ptxas[0].version)} on a Hopper GPU: compilers before "
            f"{_dotted(_HOPPER_PTXAS)} may compile clamping wrongly there",
            stops="trust in what is trained with --xla on, and --xla auto is that on a GPU",
            mend="the new stack, or a newer ptxas first on the PATH (docs/how-to/gpu.md), or "
            "--xla off",
        )
    if cudnn := _old_for_cudnn(gpus, known):
        least = _dotted(_TURING_CUDNN)
        yield Fault(
            what=f"cuDNN {cudnn} has no code for a GPU here: from {least} on it begins at compute "
            f"capability {_dotted(_TURING)}",
            stops=_TRAINING,
            mend=f"pip install 'nvidia-cudnn-cu12<{least}'",
        )
    if known and not known["gpus"] and not _hides_all(gpus) and len(foreign) < len(used):
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
        else "NVIDIA's container of TensorFlow or a build of your own (docs/how-to/gpu.md), or "
        "another GPU; CUDA_VISIBLE_DEVICES=-1 trains on the CPU",
    )


def _install(version: str) -> str:
    least = _dotted(_TURING_CUDNN)
    return f"pip install 'tensorflow[and-cuda]=={version}' 'nvidia-cudnn-cu12<{least}'"


def _old_for_cudnn(gpus: Gpus, known: Mapping[str, Any]) -> str:
    """The version of a cuDNN that has no code for one of the cards, "" where there is none."""
    before = any(() < capability < _TURING for _, capability in _used(gpus, known))
    found = next((v for name, v in gpus.libraries.items() if name.startswith("nvidia-cudnn-")), "")
    version = major_minor(found)
    return found if before and version and version >= _TURING_CUDNN else ""


def _unseen(gpus: Gpus, known: Mapping[str, Any]) -> Fault:
    """Why TensorFlow sees no GPU where the driver shows one."""
    build, version = known["build"], known["version"]
    what = "the driver shows a GPU and TensorFlow sees none"
    first = (gpus.hidden or "").split(",")[0].strip()
    if first.isdigit() and first not in [card.index for card in gpus.cards]:
        what += f": CUDA_VISIBLE_DEVICES={gpus.hidden} begins with one that is not there"
        return Fault(what=what, stops=_TRAINING, mend="unset CUDA_VISIBLE_DEVICES")
    wanted = major_minor(build.get("cuda_version", ""))
    install = f"{_install(version)} (docs/how-to/gpu.md)"
    if not build.get("is_cuda_build"):
        what += f": this TensorFlow {version} was built without CUDA"
        mend = f"pip uninstall tensorflow tensorflow-cpu; {_install(version)}"
        return Fault(what=what, stops=_TRAINING, mend=mend)
    if gpus.cuda and wanted and gpus.cuda[0] < wanted[0]:
        what += f": the driver allows CUDA {_dotted(gpus.cuda)}, {_dotted(wanted)} is needed"
        mend = f"install a driver for CUDA {wanted[0]} (docs/how-to/gpu.md)"
        return Fault(what=what, stops=_TRAINING, mend=mend)
    if lacks := [name for name, met in gpus.wanted.items() if not met]:
        which = ", ".join(lacks) if len(lacks) < len(gpus.wanted) else "all"
        what += f": of NVIDIA's {len(gpus.wanted)} packages it lacks {which}"
        return Fault(what=what, stops=_TRAINING, mend=install)
    return Fault(
        what=what,
        stops=_TRAINING,
        mend=f"unset LD_LIBRARY_PATH; else {install}; --log_level info shows what TensorFlow says"
        if gpus.shadowed
        else f"{install}; --log_level info shows what TensorFlow says of it",
    )


def _tried(
    device: str, answers: Sequence[Answer], known: Mapping[str, Any]
) -> tuple[list[Row], list[Fault]]:
    """Rows and faults of what was tried on a device."""
    rows, faults = [], []
    cpu = device.startswith("CPU")
    kind = "CPU" if cpu else device.replace(":", " ")
    chosen = ("float32", False) if cpu else (known["precision"], known["xla"])
    for xla in (False, True):
        good: list[str] = []
        bad: dict[str, list[str]] = {}
        asked = [trial.arguments for trial in trials(device)]
        mark: Mark = ""
        for arguments, answer in zip(asked, answers, strict=False):
            precision = arguments["precision"]
            if arguments["xla"] is not xla:
                continue
            problem, wrong = answer.problem, False
            if not problem and not answer.value <= tensorflow_facts.most_error(device, precision):
                problem, wrong = f"numbers are off by {answer.value:.2g} of the largest", True
            if not problem:
                good.append(precision)
                continue
            bad.setdefault(problem, []).append(precision)
            mark = mark or "note"
            if wrong or (precision, xla) == chosen:
                mark = "fault"
                faults.append(_failed(kind, precision, problem, xla=xla))
        seen = len(good) + sum(map(len, bad.values()))
        parts = [f"{', '.join(good)} agree with float64"] if good else []
        parts += [f"{', '.join(names)}: {problem}" for problem, names in bad.items()]
        if bad and seen < len(tensorflow_facts.PRECISIONS):
            parts.append(f"{len(tensorflow_facts.PRECISIONS) - seen} not tried after that")
        if parts:
            rows.append(Row(name=_device(kind, xla), text="; ".join(parts), mark=mark))
    if not cpu and not _is_served(known["gpus"][int(device.partition(":")[2])], known):
        faults = []  # that it is not served is told
    return rows, faults


def _is_served(seen: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether TensorFlow has code for a GPU that it sees."""
    kinds = known["build"].get("cuda_compute_capabilities", ())
    return not (kinds and seen["capability"]) or served(tuple(seen["capability"]), kinds)


def _device(kind: str, xla: bool) -> str:
    return f"{kind} {'XLA' if xla else 'plain'}"


def _failed(kind: str, precision: str, problem: str, *, xla: bool) -> Fault:
    other = "--xla off" if xla else "--precision float32" if precision != "float32" else ""
    mend = f"see whether {other} works" if other else "an environment made anew"
    if kind != "CPU" and _NO_MEMORY.search(problem):
        mend = "wait for the GPU's memory, or end what holds it: nvidia-smi shows who does"
    return Fault(
        what=f"{_device(kind, xla)}, {precision}: a 3D convolution fails: {problem}",
        stops=_NETWORKS if kind == "CPU" else _TRAINING,
        mend=mend,
    )


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
