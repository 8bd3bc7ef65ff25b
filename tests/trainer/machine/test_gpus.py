"""GPUs that are not here: what a driver, libraries and TensorFlow would say of them, injected."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.machine import device_section, gpus, tensorflow_facts
from trainer.machine.apart import Answer
from trainer.machine.findings import Section
from trainer.machine.gpus import Card, Gpus, Ptxas

BUILT = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]  # of TensorFlow 2.17 and 2.21
GIB = 2**30


def card(capability: tuple[int, int], name: str = "NVIDIA X") -> Card:
    return Card(index="0", name=name, capability=capability, total=80 * GIB, free=79 * GIB)


GOOD = Gpus(
    cards=(card((8, 0), "NVIDIA A100-SXM4-80GB"),),
    problem="",
    driver="545.23.08",
    cuda=(12, 3),
    hidden=None,
    libraries={"nvidia-cudnn-cu12": "8.9.7.29"},
    wanted={"nvidia-cudnn-cu12==8.9.7.29": True},
    shadowed=(),
    ptxas=(Ptxas(path="/ptxas", version=(12, 3, 107)),),
    hardware=True,
)
NONE = dataclasses.replace(
    GOOD, cards=(), driver="", cuda=None, libraries={}, ptxas=(), hardware=False
)


def facts(*seen: tuple[int, int], **changed: Any) -> Answer:
    """What TensorFlow says that sees GPUs of these capabilities."""
    build = {
        "is_cuda_build": True,
        "cuda_version": "12.3",
        "cudnn_version": "8",
        "cuda_compute_capabilities": BUILT,
    }
    known = {
        "version": "2.17.1",
        "backend": "tensorflow",
        "build": build,
        "gpus": [{"name": "NVIDIA X", "capability": list(one)} for one in seen],
        "precision": "mixed_bfloat16" if seen else "float32",
        "xla": bool(seen),
    }
    return Answer(value={**known, **changed})


WELL = [Answer(value=1e-7)] * 6


def section_of(
    found: Gpus, known: Answer, tried: Mapping[str, Sequence[Answer]] | None = None
) -> Section:
    return device_section.section(found, known, {"CPU:0": WELL} if tried is None else tried)


def marks(section: Section) -> dict[str, str]:
    return {row.name: row.mark for row in section.rows}


def what(section: Section) -> list[str]:
    return [fault.what for fault in section.faults]


# nvidia-smi.


def smi(directory: Path, script: str) -> dict[str, str]:
    """An environment whose nvidia-smi is a script."""
    file = directory / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {"PATH": str(directory), "CUDA_VISIBLE_DEVICES": "0"}


TABLE = 'case "$*" in "") echo "| NVIDIA-SMI 545.23  CUDA Version: 12.3 |";; *) '


def test_cards_driver_and_cuda_are_read_from_nvidia_smi(tmp_path: Path) -> None:
    lines = (
        'echo "0, NVIDIA A100-SXM4-80GB, 8.0, 81920, 81000, 545.23.08"; '
        'echo "1, NVIDIA X, [N/A], [N/A], [N/A], 545.23.08";; esac'
    )
    found = gpus.measure({}, smi(tmp_path, TABLE + lines))
    assert found.cards == (
        Card(
            index="0",
            name="NVIDIA A100-SXM4-80GB",
            capability=(8, 0),
            total=80 * GIB,
            free=81000 * 2**20,
        ),
        Card(index="1", name="NVIDIA X", capability=None, total=None, free=None),
    )
    assert (found.driver, found.cuda, found.hidden) == ("545.23.08", (12, 3), "0")


def test_an_old_drivers_nvidia_smi_does_not_know_capabilities(tmp_path: Path) -> None:
    script = (
        'case "$*" in *compute_cap*) echo "Field \\"compute_cap\\" is not a valid field"; exit 2;; '
        '*) echo "0, Tesla K80, 11441, 11000, 470.57.02";; esac'
    )
    (only,) = gpus.measure({}, smi(tmp_path, script)).cards
    assert (only.name, only.capability) == ("Tesla K80", None)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo has failed because it >&2; echo could not communicate >&2; exit 9",
         "has failed because it could not communicate"),
        ("exit 0", "nvidia-smi shows no GPU"),
    ],
)  # fmt: skip
def test_an_nvidia_smi_that_shows_nothing_says_why(
    tmp_path: Path, script: str, problem: str
) -> None:
    found = gpus.measure({}, smi(tmp_path, script))
    assert (found.cards, found.problem) == ((), problem)
    here = section_of(dataclasses.replace(found, hardware=True), facts())
    assert what(here) == [f"there is an NVIDIA GPU, but {problem}"]
    assert marks(here)["GPU"] == "fault"
    assert what(section_of(dataclasses.replace(found, hardware=False), facts())) == []


def test_an_nvidia_smi_that_hangs_is_left_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_SMI_S", 0.2)
    found = gpus.measure({}, smi(tmp_path, f"echo x >> {tmp_path}/calls; exec /bin/sleep 20"))
    assert found.problem == "nvidia-smi gives no answer within 0.2 s"
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_gpu_that_is_worn_or_lost_does_not_hide_the_others(tmp_path: Path) -> None:
    worn = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0"
    rows = 'echo "0, NVIDIA H100 80GB HBM3, 9.0, 81559, 81000, 550.54.15"'
    found = gpus.measure({}, smi(tmp_path, f'{TABLE}{rows}; echo "{worn}"; exit 14;; esac'))
    assert [card.capability for card in found.cards] == [(9, 0)]
    section = section_of(found, facts((9, 0)), {})
    (row,) = (row for row in section.rows if row.name == "nvidia-smi")
    assert (row.text, row.mark) == (f"says: {worn}", "note")


def test_the_first_ptxas_on_the_path_is_the_one_that_counts(tmp_path: Path) -> None:
    file = tmp_path / "ptxas"
    file.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.86'\n")
    file.chmod(0o755)
    found = gpus.measure({}, {"PATH": str(tmp_path)})
    assert found.ptxas[0] == Ptxas(path=str(file), version=(12, 9, 86))


# What is said.


def test_a_machine_without_a_gpu_has_nothing_to_mend() -> None:
    section = section_of(NONE, facts())
    assert section.faults == ()
    assert set(marks(section).values()) == {""}


def test_a_gpu_that_works_has_nothing_to_mend() -> None:
    section = section_of(GOOD, facts((8, 0)), {"CPU:0": WELL, "GPU:0": WELL})
    assert section.faults == ()
    texts = {row.name: row.text for row in section.rows}
    assert texts["driver"] == "NVIDIA 545.23.08, allows CUDA 12.3"
    assert texts["GPU 0"].endswith("compute capability 8.0, 79 GiB of 80 GiB free")
    assert texts["auto"] == "--precision auto is mixed_bfloat16, --xla auto is on"
    assert texts["GPU 0 XLA"].startswith("float32, mixed_float16, mixed_bfloat16 agree")


@pytest.mark.parametrize(
    ("changes", "known", "reason", "mend"),
    [
        ({"wanted": {"nvidia-cudnn-cu12==8.9.7.29": False}}, facts(),
         "of NVIDIA's 1 packages it lacks all", "tensorflow[and-cuda]==2.17.1"),
        ({"wanted": {"nvidia-a==1": True, "nvidia-b==2": False}}, facts(),
         "of NVIDIA's 2 packages it lacks nvidia-b==2", "tensorflow[and-cuda]==2.17.1"),
        ({"cuda": (11, 4)}, facts(), "the driver allows CUDA 11.4, 12.3 is needed", "a driver for"),
        ({}, facts(build={"is_cuda_build": False}), "built without CUDA", "pip uninstall"),
        ({"shadowed": ("/cuda/lib",)}, facts(), "TensorFlow sees none", "unset LD_LIBRARY_PATH"),
        ({}, facts(), "TensorFlow sees none", "--log_level info"),
    ],
    ids=["libraries", "a library", "driver", "build", "shadowed", "unknown"],
)  # fmt: skip
def test_a_gpu_that_tensorflow_does_not_see_is_told_with_what_to_install(
    changes: dict[str, Any], known: Answer, reason: str, mend: str
) -> None:
    section = section_of(dataclasses.replace(GOOD, **changes), known)
    (fault,) = section.faults
    assert fault.what.startswith("the driver shows a GPU and TensorFlow sees none")
    assert reason in fault.what
    assert mend in fault.mend
    assert marks(section)["sees"] == "fault"


@pytest.mark.parametrize("hidden", ["-1", "", "-1,0"])
def test_a_gpu_that_is_hidden_on_purpose_is_a_note(hidden: str) -> None:
    section = section_of(dataclasses.replace(GOOD, hidden=hidden), facts())
    assert section.faults == ()
    assert marks(section)["visible"] == marks(section)["sees"] == "note"


@pytest.mark.parametrize("capability", [(10, 0), (12, 0)])
def test_no_kernel_serves_blackwell(capability: tuple[int, int]) -> None:
    found = dataclasses.replace(GOOD, cards=(card(capability, "NVIDIA B"),))
    hung = [Answer(problem="no answer within 150 s", hung=True)]
    section = section_of(found, facts(capability), {"CPU:0": WELL, "GPU:0": hung})
    assert what(section) == [
        f"TensorFlow 2.17.1 has no code for NVIDIA B (compute capability "
        f"{capability[0]}.{capability[1]}), only {' '.join(BUILT)}"
    ]
    assert "docs/how-to/gpu.md" in section.faults[0].mend
    texts = {row.name: row.text for row in section.rows}
    assert texts["GPU 0 plain"].endswith("no answer within 150 s; 2 not tried after that")


def test_of_cards_that_are_hidden_nothing_is_to_be_mended() -> None:
    cards = (card((9, 0), "NVIDIA H"), card((12, 0), "NVIDIA B"), card((7, 0), "NVIDIA V"))
    libraries = {"nvidia-cudnn-cu12": "9.28.0.1"}
    found = dataclasses.replace(GOOD, cards=cards, libraries=libraries)
    assert len(section_of(found, facts((9, 0), (12, 0), (7, 0))).faults) == 3
    assert section_of(dataclasses.replace(found, hidden="-1"), facts()).faults == ()
    one = section_of(dataclasses.replace(found, hidden="1"), facts((8, 0)))
    assert (one.faults, marks(one)["ptxas"]) == ((), "")


def test_cards_that_are_alike_are_told_once() -> None:
    found = dataclasses.replace(GOOD, cards=(card((12, 0)),) * 8)
    assert len(section_of(found, facts(*[(12, 0)] * 8)).faults) == 1


def test_without_an_nvidia_smi_the_gpus_are_those_that_tensorflow_sees() -> None:
    found = dataclasses.replace(GOOD, cards=())
    section = section_of(found, facts((9, 0), (12, 0)))
    texts = {row.name: row.text for row in section.rows}
    assert texts["sees"] == "0: NVIDIA X (9.0), 1: NVIDIA X (12.0)"
    told = what(section)
    assert "no code for NVIDIA X (compute capability 12.0)" in told[0]
    assert told[1].startswith("ptxas 12.3.107 on a Hopper GPU")


def test_a_variable_that_names_a_gpu_that_is_not_there_is_the_reason() -> None:
    (fault,) = section_of(dataclasses.replace(GOOD, hidden="7"), facts()).faults
    assert fault.what.endswith("CUDA_VISIBLE_DEVICES=7 begins with one that is not there")
    assert fault.mend == "unset CUDA_VISIBLE_DEVICES"


def test_a_gpu_without_free_memory_is_not_blamed_on_its_precision() -> None:
    full = [Answer(problem="OOM when allocating tensor with shape[2,3]")] * 6
    (fault,) = section_of(GOOD, facts((8, 0)), {"CPU:0": WELL, "GPU:0": full}).faults
    assert fault.mend.startswith("wait for the GPU's memory")


def test_no_kernel_serves_what_is_older_than_pascal() -> None:
    found = dataclasses.replace(GOOD, cards=(card((5, 2)),))
    (fault,) = section_of(found, facts()).faults
    assert "(compute capability 5.2)" in fault.what
    assert "a newer GPU" in fault.mend


@pytest.mark.parametrize(
    ("capability", "served"),
    [((6, 1), True), ((7, 5), True), ((8, 6), True), ((9, 0), True), ((5, 2), False),
     ((10, 0), False), ((12, 0), False)],
)  # fmt: skip
def test_a_gpu_runs_code_of_its_major_number_from_its_minor_one_on(
    capability: tuple[int, int], served: bool
) -> None:
    assert gpus.served(capability, BUILT) is served
    assert not gpus.served((8, 0), ["sm_86", "sm_90a"])


@pytest.mark.parametrize(
    ("capability", "version", "is_told"),
    [((9, 0), (12, 3, 107), True), ((9, 0), (12, 6, 85), False), ((9, 0), (), False),
     ((8, 0), (12, 3, 107), False)],
)  # fmt: skip
def test_on_hopper_an_old_compiler_is_told(
    capability: tuple[int, int], version: tuple[int, ...], is_told: bool
) -> None:
    found = dataclasses.replace(
        GOOD, cards=(card(capability),), ptxas=(Ptxas(path="/ptxas", version=version),)
    )
    section = section_of(found, facts(capability))
    assert [one for one in what(section) if "ptxas 12.3.107 on a Hopper" in one] == what(section)
    assert bool(section.faults) is is_told
    assert (marks(section)["ptxas"] == "fault") is is_told


@pytest.mark.parametrize(
    ("capability", "version", "is_told"),
    [((7, 0), "9.28.0.1", True), ((6, 1), "9.11.0.98", True), ((7, 0), "9.10.2.21", False),
     ((7, 5), "9.28.0.1", False), ((7, 0), "8.9.7.29", False)],
)  # fmt: skip
def test_a_cudnn_without_code_for_an_old_card_is_told(
    capability: tuple[int, int], version: str, is_told: bool
) -> None:
    found = dataclasses.replace(
        GOOD, cards=(card(capability),), libraries={"nvidia-cudnn-cu12": version}
    )
    section = section_of(found, facts(capability))
    assert [fault.mend for fault in section.faults] == [
        "pip install 'nvidia-cudnn-cu12<9.11'"
    ] * is_told
    assert (marks(section)["libraries"] == "fault") is is_told


def test_libraries_that_go_before_the_installed_ones_are_a_note(tmp_path: Path) -> None:
    (tmp_path / "libcudnn.so.8").touch()
    environ = {"PATH": "", "LD_LIBRARY_PATH": f"/no/such:{tmp_path}:"}
    found = gpus.measure({}, environ)
    assert found.shadowed == (str(tmp_path),)
    section = section_of(dataclasses.replace(GOOD, shadowed=found.shadowed), facts((8, 0)))
    assert (section.faults, marks(section)["shadowed"]) == ((), "note")


def test_a_driver_older_than_the_build_is_a_note_within_a_major_number() -> None:
    section = section_of(dataclasses.replace(GOOD, cuda=(12, 0)), facts((8, 0)))
    assert (section.faults, marks(section)["driver"]) == ((), "note")


def test_a_container_that_was_given_no_gpu_says_how_to_give_it_one() -> None:
    section = section_of(dataclasses.replace(NONE, hardware=True), facts())
    (row,) = (row for row in section.rows if row.name == "GPU")
    assert "docker run --gpus all" in row.text
    assert (section.faults, row.mark) == ((), "note")


def test_what_auto_would_choose_must_work_and_the_rest_is_a_note() -> None:
    fails = Answer(problem="no algorithm worked")
    for number, faulty in ((0, 0), (5, 1)):  # float32 without XLA; mixed_bfloat16 with it
        answers = [fails if number == place else WELL[0] for place in range(6)]
        section = section_of(GOOD, facts((8, 0)), {"CPU:0": WELL, "GPU:0": answers})
        assert len(section.faults) == faulty
    assert what(section) == [
        "GPU 0 XLA, mixed_bfloat16: a 3D convolution fails: no algorithm worked"
    ]
    assert marks(section)["GPU 0 XLA"] == "fault"


def test_wrong_numbers_are_a_fault_wherever_they_are() -> None:
    alike = [Answer(problem="no kernel")] * 3
    section = section_of(NONE, facts(), {"CPU:0": [*WELL[:3], *alike]})
    assert section.rows[-1].text == "float32, mixed_float16, mixed_bfloat16: no kernel"
    answers = [*WELL[:4], Answer(value=0.5), WELL[0]]  # mixed_float16 with XLA
    section = section_of(NONE, facts(), {"CPU:0": answers})
    assert what(section) == [
        "CPU XLA, mixed_float16: a 3D convolution fails: numbers are off by 0.5 of the largest"
    ]
    nan = [Answer(value=float("nan")), *WELL[1:]]
    assert "off by nan" in what(section_of(NONE, facts(), {"CPU:0": nan}))[0]


def test_float32_is_multiplied_as_tf32_on_a_gpu_alone() -> None:
    assert tensorflow_facts.most_error("CPU:0", "float32") == 1e-5
    assert tensorflow_facts.most_error("GPU:0", "float32") == tensorflow_facts.most_error(
        "GPU:0", "mixed_float16"
    )


def test_keras_on_another_backend_is_told() -> None:
    section = section_of(NONE, facts(backend="jax"))
    assert what(section) == ["Keras is told to run on jax"]


def test_without_tensorflow_nothing_is_tried_and_its_absence_is_told_elsewhere() -> None:
    gone = Answer(problem="No module named 'tensorflow'", missing="tensorflow")
    assert section_of(GOOD, gone, {}).faults == ()
    worker = Answer(problem="No module named 'keras'", missing="keras")
    assert marks(section_of(NONE, worker, {}))["Keras"] == "note"
    broken = Answer(problem="libstuff.so.9")
    assert device_section.section(NONE, broken, {}, {"libstuff.so.9"}).faults == ()
    assert len(device_section.section(NONE, broken, {}).faults) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", tensorflow_facts.PRECISIONS)
@pytest.mark.parametrize("xla", [False, True], ids=["plain", "xla"])
def test_a_convolution_is_as_near_to_float64_as_is_asked(precision: str, xla: bool) -> None:
    error = tensorflow_facts.convolution("CPU:0", precision, xla)
    assert 0 < error < tensorflow_facts.most_error("CPU:0", precision)
    # Of another kernel it is not.
    assert tensorflow_facts.most_error("CPU:0", precision) < 0.1
