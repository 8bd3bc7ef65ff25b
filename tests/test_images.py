"""The Dockerfiles, which nothing here can build: what can be known of them without Docker."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from docker import locked
from tests.dockerfiles import (
    DOCKERFILES,
    ROOT,
    Instruction,
    Stage,
    copies,
    ignore_patterns,
    ignored,
    instructions_of,
    run_stage,
    stages_of,
)
from tests.test_packaging import locked_version

# What `--build-arg STACK=` may be: behind which lock the names of files have it.
STACKS = ("", "-new")
LOCKS = {
    stack: (ROOT / f"requirements{stack}.lock").read_text(encoding="utf-8") for stack in STACKS
}
PARSED = {path.name: instructions_of(path.read_text(encoding="utf-8")) for path in DOCKERFILES}
STAGES = {name: stages_of(found) for name, found in PARSED.items()}
# What somebody builds: the last stage, and `--target`s.
IMAGES = [
    ("Dockerfile.beam", "convert"),
    ("Dockerfile.beam", "predict"),
    ("Dockerfile.trainer", STAGES["Dockerfile.trainer"][-1].name),
]
PYTHON = "3.11"
# What the conversion requires and Beam's image has: base_image_requirements.txt of Python 3.11 in
# sdks/python/container, and Beam itself. To be looked up again when Beam's version changes.
IN_BEAMS_IMAGE = {
    *("apache-beam", "google-crc32c", "grpcio", "jinja2", "markupsafe", "numpy", "pandas"),
    *("pillow", "protobuf", "requests", "rich", "scipy", "threadpoolctl", "zstandard"),
}
BEAM_OF_THAT_LIST = "2.77.0"


def stage(file: str, name: str) -> Stage:
    (found,) = [each for each in STAGES[file] if each.name == name]
    return found


def all_instructions(*names: str) -> list[tuple[str, Instruction]]:
    return [
        (f"{file}:{each.line}", each)
        for file, found in PARSED.items()
        for each in found
        if each.name in names
    ]


def installed_stack() -> str:
    """Which of the locks is installed here: of its packages alone more than names is known."""
    tensorflow = importlib.metadata.version("tensorflow")
    (stack,) = [
        stack
        for stack in STACKS
        if tensorflow == locked_version("tensorflow", PYTHON, f"requirements{stack}.lock")
    ]
    return stack


def names_in(path: str) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").split()


def test_an_instruction_is_read_over_its_lines_and_without_comments():
    (found,) = instructions_of("# a\nRUN one \\\n    # why\n    && two\n")
    assert (found.name, found.value, found.line) == ("RUN", "one && two", 2)
    with pytest.raises(ValueError, match="line 1 is no instruction"):
        instructions_of("just words\n")


def test_every_base_is_an_earlier_stage_or_a_pinned_image():
    for file, found in STAGES.items():
        earlier: set[str] = set()
        for each in found:
            image = re.fullmatch(r"[\w./-]+:(.+)", each.base)
            pinned = image and re.match(r"\d+\.\d+", image[1]) and "latest" not in image[1]
            assert each.base in earlier or pinned, f"{file}: FROM {each.base}"
            earlier.add(each.name)


def test_beam_and_python_are_those_of_the_lock_and_of_each_other():
    bases = {each.base for found in STAGES.values() for each in found if ":" in each.base}
    beam = locked_version("apache-beam", PYTHON)
    assert beam == locked_version("apache-beam", PYTHON, "requirements-new.lock")
    assert beam == BEAM_OF_THAT_LIST
    assert bases == {f"apache/beam_python{PYTHON}_sdk:{beam}", f"python:{PYTHON}-slim-bookworm"}


def test_beams_workers_can_have_the_python_that_submits():
    found = stages_of(PARSED["Dockerfile.beam"], PYTHON="3.13")
    bases = {each.base for each in found if ":" in each.base}
    images = {f"apache/beam_python3.13_sdk:{BEAM_OF_THAT_LIST}", "python:3.13-slim-bookworm"}
    assert bases == images


@pytest.mark.parametrize(("file", "name"), IMAGES)
def test_an_image_runs_as_a_numbered_user_without_rights(file, name):
    found = stage(file, name)
    user = found.last("USER")
    if variable := re.fullmatch(r"\$\{(\w+)\}", user):
        (user,) = [
            each.value.partition("=")[2]
            for each in found.instructions
            if each.name == "ARG" and each.value.startswith(f"{variable[1]}=")
        ]
    assert int(user) > 0
    rights = [each.name for each in found.instructions]
    assert "RUN" not in rights[rights.index("USER") :], "installed without rights"


@pytest.mark.parametrize(("file", "name"), IMAGES)
def test_an_image_says_what_it_is(file, name):
    labels = stage(file, name).last("LABEL")
    for key in ("title", "description", "licenses"):
        assert f"org.opencontainers.image.{key}=" in labels


def test_nothing_is_fetched_but_by_pip_against_hashes():
    assert not all_instructions("ADD", "MAINTAINER", "ONBUILD")
    for where, each in all_instructions("RUN"):
        assert not re.search(r"\b(curl|wget|git|sudo|apt|apt-get)\b", each.value), where
        for command in re.findall(r"\bpip (?:install|wheel)[^&]*", each.value):
            assert "--no-cache-dir" in command, where
            assert "--no-deps" in command, where
            assert "--require-hashes" in command or "--no-index" in command, where


def test_every_image_is_checked_for_what_it_lacks():
    for file, name in IMAGES:
        runs = [each.value for each in stage(file, name).instructions if each.name == "RUN"]
        assert any("&& pip check" in run for run in runs), (file, name)


def test_every_copy_names_what_is_there_and_not_ignored():
    patterns = ignore_patterns()
    for file, found in STAGES.items():
        stages = {each.name for each in found}
        for each in (
            each for one in found for stack in STACKS for each in copies(one, STACK=stack)
        ):
            if "from" in each.flags:
                assert each.flags["from"] in stages, f"{file}:{each.line}"
                continue
            for source in each.words[:-1]:
                assert (ROOT / source).exists(), f"{file}:{each.line}: {source}"
                assert not ignored(source, patterns), f"{file}:{each.line}: {source}"


def test_only_what_is_copied_is_sent_to_the_build():
    patterns = ignore_patterns()
    copied = {
        word.partition("/")[0]
        for found in STAGES.values()
        for one in found
        for stack in STACKS
        for each in copies(one, STACK=stack)
        if "from" not in each.flags
        for word in each.words[:-1]
    }
    sent = {path.name for path in ROOT.iterdir() if not ignored(path.name, patterns)}
    assert sent == copied
    assert ignored("beam_jobs/core/__pycache__/record.pyc", patterns)


def test_every_entry_point_is_there():
    scripts = {entry.name for entry in importlib.metadata.entry_points(group="console_scripts")}
    for file, name in IMAGES:
        found = stage(file, name)
        (program,) = json.loads(found.last("ENTRYPOINT"))
        copied = " ".join(each.value for each in found.instructions if each.name == "COPY")
        assert program in scripts or found.base == "beam" or program in copied, (file, name)


def required(*lines: str, python: str = PYTHON) -> set[str]:
    """What these requirements come to in this Python on Linux, with all that they require."""
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        names.add(name)
        try:
            further = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of Python 3.11 alone, and this is a newer one
        for extra in {"", *one.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            of_python = {"python_version": python, "python_full_version": f"{python}.0"}
            for line in further:
                each = Requirement(line)
                if each.marker is None or each.marker.evaluate({**of_python, "extra": extra}):
                    waiting.append(each)
    return names


def declared() -> dict[str, Any]:
    """The lists in setup.py by name, as they stand there: what is installed may be older."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("CONVERSION", "LEARNING", "EXTRAS")
    }


def test_images_with_tensorflow_install_what_the_package_requires_and_no_tools():
    stack, lists = installed_stack(), declared()
    lines = [*lists["CONVERSION"], *lists["LEARNING"]]
    lines += [*lists["EXTRAS"]["gcp"], *lists["EXTRAS"]["dicom_out"]]
    if not stack:
        lines += lists["EXTRAS"]["io"]
    names = set(names_in(f"docker/runtime{stack}.txt"))
    assert names == required(*lines)
    # Beam's image to predict may be built for the Python that submits.
    assert names >= required(*lines, python=f"3.{sys.version_info.minor}")


@pytest.mark.parametrize("stack", STACKS)
def test_an_image_with_tensorflow_installs_of_its_lock(stack):
    names = names_in(f"docker/runtime{stack}.txt")
    assert locked.entries(LOCKS[stack], names)
    assert ("tensorflow-io" in names) is (stack == "")
    assert {"tensorflow", "keras", "apache-beam", "google-cloud-storage"} < set(names)


def test_beams_image_gets_what_it_lacks_and_what_that_requires():
    installed = set(names_in("docker/beam.txt"))
    names = {canonicalize_name(Requirement(line).name) for line in declared()["CONVERSION"]}
    assert names > IN_BEAMS_IMAGE
    lacking = names - IN_BEAMS_IMAGE
    assert lacking <= installed <= required(*lacking)
    assert not installed & required("apache-beam")
    for lock in LOCKS.values():
        assert locked.entries(lock, installed)


def test_cuda_is_the_one_that_the_locked_tensorflow_names():
    text = (ROOT / f"docker/gpu{installed_stack()}.lock").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(?m)^(nvidia-[\w-]+)==(\S+)", text))
    named = {
        each.name: each.specifier
        for each in map(Requirement, importlib.metadata.requires("tensorflow") or [])
        if each.marker and each.marker.evaluate({"extra": "and-cuda"})
        and not each.marker.evaluate({"extra": ""})
    }  # fmt: skip
    assert pins.keys() == named.keys()
    assert [name for name in pins if not named[name].contains(pins[name])] == []
    assert len(pins) > 5


def of_cuda(name: str, stack: str) -> Version:
    text = (ROOT / f"docker/gpu{stack}.lock").read_text(encoding="utf-8")
    found = re.search(rf"(?m)^nvidia-{name}-cu12==(\S+)", text)
    assert found
    return Version(found[1])


def test_the_new_lock_has_a_compiler_without_the_fault_on_hopper_and_the_other_has_none():
    """XLA of TensorFlow 2.21 asks for ptxas 12.6.85: before it clamping may be compiled wrongly."""
    assert of_cuda("cuda-nvcc", "") < Version("12.6.85") <= of_cuda("cuda-nvcc", "-new")


@pytest.mark.parametrize("stack", STACKS)
def test_cudnn_has_code_for_every_gpu_that_tensorflow_is_built_for(stack):
    """From 9.11 on, libcudnn_ops holds none below compute capability 7.5: no V100, no P100."""
    assert of_cuda("cudnn", stack) < Version("9.11")


def test_entries_of_a_lock_keep_their_markers_and_hashes():
    lock = "# made\na==1 ; x \\\n    --hash=sha256:0\n    # via b\nab==2 \\\n    --hash=sha256:1\n"
    assert locked.entries(lock, ["a"]) == lock.partition("\n")[2].partition("ab==")[0]
    with pytest.raises(ValueError, match="not in the lock: c, d"):
        locked.entries(lock, ["d", "c"])


def built(root: Path, *, file: str = "Dockerfile.beam", stack: str) -> dict[str, Path]:
    """What the first stage of a file makes, by its own lines: stage -> its root."""
    venv.create(root / "python", with_pip=True)
    run_stage(
        stage(file, "package"),
        root=root / "package",
        python=root / "python" / "bin" / "python",
        of={},
        given={"STACK": stack},
    )
    return {"package": root / "package"}


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_wheels_of_the_images_are_built_by_the_lines_that_stand_there(stack, tmp_path):
    dist = built(tmp_path, stack=stack)["package"] / "dist"
    for name, tensorflow in (("convert", False), ("predict", True)):
        (wheel,) = (dist / name).glob("voxelbeam-*.whl")
        (metadata,) = importlib.metadata.Distribution.discover(name="voxelbeam", path=[str(wheel)])
        requires = [Requirement(line).name for line in metadata.requires or []]
        assert ("tensorflow" in requires) is tensorflow
    runtime = names_in(f"docker/runtime{stack}.txt")
    assert (dist / "predict/runtime.lock").read_text() == locked.entries(LOCKS[stack], runtime)


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_an_image_that_trains_gets_its_locks_packages_and_cuda(stack, tmp_path):
    dist = built(tmp_path, file="Dockerfile.trainer", stack=stack)["package"] / "dist"
    assert len(list(dist.glob("voxelbeam-*.whl"))) == 1
    runtime = names_in(f"docker/runtime{stack}.txt")
    assert (dist / "runtime.lock").read_text() == locked.entries(LOCKS[stack], runtime)
    assert (dist / "gpu.lock").read_bytes() == (ROOT / f"docker/gpu{stack}.lock").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_image_that_converts_leaves_beams_packages_as_they_are(tmp_path):
    """In an environment like Beam's image, which itself cannot be had."""
    venv.create(tmp_path / "beam", with_pip=True)
    python = tmp_path / "beam" / "bin" / "python"

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    beams = f"apache-beam[dataframe,gcp]=={BEAM_OF_THAT_LIST}"
    had = pip("install", "--quiet", beams, *sorted(IN_BEAMS_IMAGE - {"apache-beam", "pandas"}))
    if had.returncode:
        pytest.skip(f"{beams} cannot be installed, is there a package index? {had.stderr[-300:]}")
    before = set(pip("freeze").stdout.splitlines())
    run_stage(
        stage("Dockerfile.beam", "convert"),
        root=tmp_path / "convert",
        python=python,
        of=built(tmp_path, stack=installed_stack()),
        given={},
    )
    after = set(pip("freeze").stdout.splitlines())
    assert before <= after
    added = {canonicalize_name(re.split("[= ]", line)[0]) for line in after - before}
    python, lock = f"3.{sys.version_info.minor}", f"requirements{installed_stack()}.lock"
    lacking = {name for name in names_in("docker/beam.txt") if locked_version(name, python, lock)}
    assert added == {*lacking, "voxelbeam"}


def test_every_image_is_built_in_the_documentation():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    for file, name in IMAGES:
        built = re.findall(rf"docker build --file docker/{file}([^\n]*)", text)
        assert built, file
        targets = {target for line in built for target in re.findall(r"--target (\w+)", line)}
        assert targets <= {each.name for each in STAGES[file]}
        assert name == STAGES[file][-1].name or name in targets
