"""Packages: which of the project's locks they are, and whether they fit what the project requires.

By their metadata; whether they import is tried in `trainer.machine.libraries`. Installed from a
source tree the locks lie beside the packages; a wheel has the ranges alone.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from beam_jobs.common.version import __version__
from trainer.machine.findings import Fault, Row, Section

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "voxelbeam"
_PYTHON = platform.python_version()
_PROJECT = Path(__file__).resolve().parents[2]
_LOCKS = ("requirements.lock", "requirements-new.lock")
_PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)(?: ; (.+?))? *\\?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """A requirement that is not met.

    Attributes:
      name: of the package.
      found: its version, "" where it is not installed.
      wanted: the range.
      by: the package that requires it.
    """

    name: str
    found: str
    wanted: str
    by: str = NAME

    def __str__(self) -> str:
        found = f"{self.name} {self.found}" if self.found else f"no {self.name}"
        return f"{found}, {self.by} needs {self.wanted or 'it'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock, held against what is installed.

    Attributes:
      name: of its file.
      pinned: packages that it has for this Python and system.
      different: (name, found, pinned) of those of another version.
      absent: those that are not installed.
      pins: normalised name → version, of all of them.
    """

    name: str
    pinned: int
    different: tuple[tuple[str, str, str], ...]
    absent: tuple[str, ...]
    pins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def same(self) -> int:
        """How many are as pinned."""
        return self.pinned - len(self.different) - len(self.absent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packages:
    """What the packages' metadata say.

    Attributes:
      place: where the project's code lies.
      installed: the version that its metadata say, "" where it is not installed.
      found: every installed package by its normalised name, and its version.
      required: its requirements without extras: normalised name → range.
      locks: the nearest first; none where there are no locks, or nothing to read them with.
      misfits: of what the project requires.
      quarrels: of what its requirements require in turn.
      readable: whether `packaging` is there, without which nothing is compared.
    """

    place: str
    installed: str
    found: Mapping[str, str]
    required: Mapping[str, str]
    locks: tuple[Lock, ...]
    misfits: tuple[Misfit, ...]
    quarrels: tuple[Misfit, ...]
    readable: bool

    @property
    def to_install(self) -> Mapping[str, str]:
        """`required` as pip should be told it: the nearest lock's version where it has one.

        Of a range pip would take the newest, which need not fit the TensorFlow that is here: else
        what others require below some version is added.
        """
        pins = self.locks[0].pins if self.locks else {}
        install = {}
        for name, wanted in self.required.items():
            others = (one.wanted for one in self.quarrels if _plain(one.name) == name)
            bounds = [wanted, *(other for other in others if "<" in other)]
            parts = sorted({part for bound in bounds for part in bound.split(",") if part})
            install[name] = f"=={pins[name]}" if name in pins else ",".join(parts)
        return install


def measure(project: Path = _PROJECT) -> Packages:
    """The packages of this environment.

    Args:
      project: the directory with the project's packages, and maybe its locks.
    """
    found = versions()
    installed = found.get(NAME, "")
    requires = importlib.metadata.requires(NAME) or [] if installed else []
    try:
        import packaging.requirements
    except ImportError:
        own_lines = [line for line in requires if "extra ==" not in line]
        return Packages(
            place=str(project),
            installed=installed,
            found=found,
            required={_plain(re.split(r"[^\w.-]", line)[0]): "" for line in own_lines},
            locks=(),
            misfits=(),
            quarrels=(),
            readable=False,
        )
    needs = [packaging.requirements.Requirement(line) for line in requires]
    pythons = importlib.metadata.metadata(NAME).get_all("Requires-Python") if installed else None
    itself = packaging.requirements.Requirement(f"Python{''.join(pythons or [])}")
    own = [need for need in needs if _applies(need)]
    locks = [_lock(project / name, found) for name in _LOCKS if (project / name).is_file()]
    return Packages(
        place=str(project),
        installed=installed,
        found=found,
        required={_plain(need.name): str(need.specifier) for need in own},
        locks=tuple(sorted(locks, key=lambda lock: -lock.same)),
        misfits=tuple(_misfits([itself, *own], {**found, "python": _PYTHON}, NAME)),
        quarrels=tuple(_quarrels(own, found)),
        readable=True,
    )


def versions() -> dict[str, str]:
    """Every installed package by its normalised name; of two the one that is imported."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        # Half-removed packages leave a directory without metadata.
        if name := one.metadata["Name"]:
            found.setdefault(_plain(name), one.version or "")
    return found


def of_extra(distribution: str, extra: str, found: Mapping[str, str]) -> dict[str, bool]:
    """What an extra of a package adds: each requirement, and whether what is installed meets it.

    Nothing where the package is not installed, or `packaging` is not there to read them.
    """
    try:
        from packaging.requirements import Requirement

        lines = importlib.metadata.requires(distribution) or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return {}
    needs = [Requirement(line) for line in lines]
    return {
        f"{need.name}{need.specifier}": not any(_misfits([need], found, distribution))
        for need in needs
        if _applies(need, extra) and not _applies(need)
    }


def _plain(name: str) -> str:
    """A name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _applies(need: Requirement, extra: str = "") -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _misfits(needs: Iterable[Requirement], found: Mapping[str, str], by: str) -> Iterator[Misfit]:
    for need in needs:
        version = found.get(_plain(need.name), "")
        if not version or not need.specifier.contains(version, prereleases=True):
            yield Misfit(name=need.name, found=version, wanted=str(need.specifier), by=by)


def _quarrels(needs: Iterable[Requirement], found: Mapping[str, str]) -> Iterator[Misfit]:
    """What does not fit among the packages that are required, theirs, and so on."""
    from packaging.requirements import InvalidRequirement, Requirement

    waiting = [(_plain(need.name), frozenset(need.extras)) for need in needs]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name not in found:
            continue
        seen.add((name, extras))
        theirs = []
        for line in importlib.metadata.requires(name) or []:
            try:
                need = Requirement(line)
            except InvalidRequirement:  # an old package's
                continue
            if any(_applies(need, extra) for extra in ("", *extras)):
                theirs.append(need)
        yield from _misfits(theirs, found, name)
        waiting += [(_plain(need.name), frozenset(need.extras)) for need in theirs]


def _lock(file: Path, found: Mapping[str, str]) -> Lock:
    from packaging.markers import Marker
    from packaging.version import Version

    different, absent, pins = [], [], {}
    for name, version, marker in _PIN.findall(file.read_text(encoding="utf-8")):
        if marker and not Marker(marker).evaluate():
            continue
        pins[_plain(name)] = version
        here = found.get(_plain(name), "")
        if not here:
            absent.append(name)
        elif Version(here) != Version(version):
            different.append((name, here, version))
    return Lock(
        name=file.name,
        pinned=len(pins),
        different=tuple(different),
        absent=tuple(absent),
        pins=pins,
    )


def section(packages: Packages, imports: Section) -> Section:
    """The section of the packages.

    Args:
      packages: by their metadata.
      imports: what became of their imports.
    """
    rows, faults, install = [_own_row(packages)], [], packages.to_install
    if not packages.readable:
        rows.append(
            Row(name="versions", text="not compared: there is no package packaging", mark="note")
        )
    elif packages.installed:
        rows += _lock_rows(packages.locks)
        rows.append(_range_row(packages))
        # What is missing is told where its import is.
        faults = [
            Fault(
                what=str(misfit),
                stops="maybe nothing, but no test has run with it",
                mend=f"an environment of Python {misfit.wanted}"
                if misfit.name == "Python"
                else f"pip install '{misfit.name}{install.get(_plain(misfit.name), '')}'",
            )
            for misfit in packages.misfits
            if misfit.found
        ]
    rows += [Row(name="quarrel", text=text, mark="note") for text in _told(packages.quarrels)]
    return Section(title="packages", rows=(*rows, *imports.rows), faults=(*faults, *imports.faults))


def _told(quarrels: Iterable[Misfit]) -> list[str]:
    """Each quarrel, those that lack the same package in one."""
    lacking: dict[str, list[str]] = {}
    told = []
    for misfit in quarrels:
        if misfit.found:
            told.append(str(misfit))
        else:
            lacking.setdefault(misfit.name, []).append(misfit.by)
    return told + [
        f"no {name}, needed by {', '.join(sorted(set(by)))}" for name, by in lacking.items()
    ]


def _own_row(packages: Packages) -> Row:
    text = f"{__version__} in {packages.place}"
    if not packages.installed:
        return Row(
            name=NAME,
            text=f"{text}, not installed: what it requires is not known here",
            mark="note",
        )
    if packages.installed != __version__:
        return Row(
            name=NAME,
            text=f"{text}, installed as {packages.installed}: pip install it anew",
            mark="note",
        )
    return Row(name=NAME, text=text)


def _lock_rows(locks: tuple[Lock, ...]) -> Iterator[Row]:
    if not locks:
        yield Row(name="lock", text="none beside this installation: ranges alone are compared")
        return
    lock = locks[0]
    text = f"{lock.name}: {lock.same} of {lock.pinned} packages as pinned"
    if lock.absent:
        text += f", {len(lock.absent)} not installed"
    yield Row(name="lock", text=text)
    if lock.different:
        pairs = [f"{name} {found} ({pinned})" for name, found, pinned in lock.different[:8]]
        more = f" and {len(lock.different) - 8} more" if len(lock.different) > 8 else ""
        yield Row(
            name="differ",
            text=f"{', '.join(pairs)}{more}; in brackets the lock's",
            mark="note",
        )


def _range_row(packages: Packages) -> Row:
    wrong = [misfit for misfit in packages.misfits if misfit.found]
    missing = [misfit for misfit in packages.misfits if not misfit.found]
    bad = sum(misfit.name != "Python" for misfit in packages.misfits)
    text = f"{len(packages.required) - bad} of {len(packages.required)} requirements met"
    if wrong:
        text += f"; out of range: {', '.join(f'{one.name} {one.found}' for one in wrong)}"
    if missing:
        text += f"; not installed: {', '.join(one.name for one in missing)}"
    return Row(name="ranges", text=text, mark="fault" if packages.misfits else "")
