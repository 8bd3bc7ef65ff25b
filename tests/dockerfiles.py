"""Dockerfiles without Docker: their instructions, what is copied, and their RUN lines run here."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile.

    Attributes:
      name: in capitals.
      value: what follows it, its lines joined.
      line: in the file, from 1.
    """

    name: str
    value: str
    line: int

    @property
    def words(self) -> list[str]:
        """Its arguments, without its `--flags`."""
        return [word for word in shlex.split(self.value) if not word.startswith("--")]

    @property
    def flags(self) -> dict[str, str]:
        found = re.findall(r"(?:^| )--([a-z]+)=(\S+)", self.value)
        return dict(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What one FROM begins.

    Attributes:
      name: behind AS, or its number.
      base: an image, or an earlier stage; with the defaults of what is declared before the first.
      instructions: those that follow.
    """

    name: str
    base: str
    instructions: list[Instruction]

    def last(self, name: str) -> str:
        """The value of the last instruction of a name, or ""."""
        found = [each.value for each in self.instructions if each.name == name]
        return found[-1] if found else ""


def instructions_of(text: str) -> list[Instruction]:
    """A Dockerfile's instructions, comments left out.

    Raises:
      ValueError: a line is none.
    """
    found: list[Instruction] = []
    gathered, began = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or (not line.strip() and not gathered):
            continue
        began = began if gathered else number
        gathered += line.strip().removesuffix("\\").rstrip() + " "
        if line.rstrip().endswith("\\"):
            continue
        name, _, value = gathered.strip().partition(" ")
        if not re.fullmatch("[A-Z]+", name) or not value:
            raise ValueError(f"line {began} is no instruction: {gathered}")
        found.append(Instruction(name=name, value=value, line=began))
        gathered = ""
    return found


def expanded(text: str, values: dict[str, str]) -> str:
    """A text with each `${NAME}` replaced; names that have no value stay as they are."""
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def argument(instruction: Instruction, given: dict[str, str]) -> dict[str, str]:
    """What an ARG instruction sets, with these `--build-arg`s."""
    name, _, default = instruction.value.partition("=")
    return {name: given.get(name, default)}


def stages_of(instructions: list[Instruction], **given: str) -> list[Stage]:
    """A Dockerfile's stages, with these `--build-arg`s for the images that they begin with."""
    stages: list[Stage] = []
    values: dict[str, str] = {}
    for each in instructions:
        if each.name == "FROM":
            base, *alias = each.words
            name = alias[1] if alias else str(len(stages))
            stages.append(Stage(name=name, base=expanded(base, values), instructions=[]))
        elif stages:
            stages[-1].instructions.append(each)
        elif each.name == "ARG":
            values |= argument(each, given)
    return stages


def copies(stage: Stage, **given: str) -> list[Instruction]:
    """A stage's COPY instructions, with these `--build-arg`s."""
    values: dict[str, str] = {}
    found = []
    for each in stage.instructions:
        if each.name == "ARG":
            values |= argument(each, given)
        elif each.name == "COPY":
            found.append(dataclasses.replace(each, value=expanded(each.value, values)))
    return found


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether `.dockerignore` keeps a path from the build; the last pattern that fits decides."""
    decided = False
    parts = path.split("/")
    ways = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for pattern in patterns:
        allowed, pattern = pattern.startswith("!"), pattern.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(way, pattern) for way in (*ways, *parts)):
            decided = not allowed
    return decided


def ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_stage(
    stage: Stage, *, root: Path, python: Path, of: dict[str, Path], given: dict[str, str]
) -> None:
    """Does here what a stage's COPY and RUN instructions do, in a directory in place of `/`.

    Paths into the directories that the stages make are turned into paths below `root`, and the
    environment of `python` stands for the image's own; users are not made.

    Args:
      stage: of a Dockerfile.
      root: to become the image's.
      python: of an environment that holds what the base image does.
      of: stage -> its root, for COPY --from.
      given: the `--build-arg`s.

    Raises:
      CalledProcessError: a RUN instruction failed.
    """
    directory, environment = root, dict(os.environ)
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    for name in ("VOXELBEAM_REQUIRES", "PYTHONPATH"):
        environment.pop(name, None)
    for each in stage.instructions:
        if each.name == "WORKDIR":
            directory = root / each.value.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
        elif each.name == "ENV":
            environment |= dict(word.split("=", 1) for word in each.words)
        elif each.name == "ARG":
            environment |= argument(each, given)
        elif each.name == "COPY":
            each = dataclasses.replace(each, value=expanded(each.value, environment))
            copy(each, source=of.get(each.flags.get("from", ""), ROOT), root=root, to=directory)
        elif each.name == "RUN":
            script = re.sub(r"(?<![\w.])/(dist|opt|src)\b", rf"{root}/\1", each.value)
            script = re.sub(r"&& useradd [^&]+", "", script)
            subprocess.run(
                ["sh", "-ec", script], cwd=directory, env=environment, check=True,
                capture_output=True, text=True,
            )  # fmt: skip


def copy(instruction: Instruction, *, source: Path, root: Path, to: Path) -> None:
    """A COPY instruction: files into a directory, a directory's content, or a file as another."""
    *names, target = instruction.words
    into = root / target.lstrip("/") if target.startswith("/") else to / target
    for name in names:
        origin = source / name.lstrip("/")
        if origin.is_dir():
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, into, dirs_exist_ok=True, ignore=caches)
        elif len(names) == 1 and not target.endswith("/") and target != ".":
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, into)
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, into)
