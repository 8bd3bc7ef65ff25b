"""A broken environment: variables that say nonsense, streams that are closed, few descriptors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.sandbox import Sandbox

_NONSENSE = "\x1b[2J\udcff{[(%s"
_VARIABLES: dict[str, Mapping[str, str]] = {
    "a terminal of no width": {"COLUMNS": "0", "LINES": "0"},
    "a terminal a billion wide": {"COLUMNS": "1000000000", "TERM": "xterm"},
    "ASCII alone": {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"},
    "a log level that is none": {"VOXELBEAM_LOG_LEVEL": _NONSENSE, "TF_CPP_MIN_LOG_LEVEL": "x"},
    "no home": {"HOME": "/proc/nonexistent"},
    "no temporary directory": {"TMPDIR": "/proc/nonexistent"},
    "a cluster that is none": {"TF_CONFIG": _NONSENSE, "CLUSTER_SPEC": _NONSENSE},
    "a search's server that is none": {
        "KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_IP": _NONSENSE,
        "KERASTUNER_ORACLE_PORT": "99999999",
    },
    "a store's settings that are none": {
        "AWS_ENDPOINT_URL": _NONSENSE, "AWS_REGION": _NONSENSE, "STORAGE_EMULATOR_HOST": _NONSENSE,
    },
    "a proxy that is none": {"HTTPS_PROXY": "http://127.0.0.1:9", "http_proxy": _NONSENSE},
    "a clock of nowhere": {"TZ": "Nowhere/Land"},
    "no path": {"PATH": ""},
}  # fmt: skip
# Those that each command reads by code of its own; others once for Beam and once for TensorFlow.
_EVERYWHERE = ("no temporary directory", "ASCII alone")
_LIMITS = {"64 descriptors": 64}


def _variables() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        for kind, env in _VARIABLES.items():
            if kind in _EVERYWHERE or subject in ("convert", "train", "tune", "predict"):
                yield Case(
                    attack="an environment that says nonsense",
                    subject=subject,
                    name=kind,
                    make=partial(command.line, changes={}),
                    env=env,
                    terminal=kind.startswith("a terminal"),
                    timeout=300 if subject == "tune" else 120,
                )
        for kind, count in _LIMITS.items():
            yield Case(
                attack="few descriptors",
                subject=subject,
                name=kind,
                make=partial(command.line, changes={}),
                limits={"RLIMIT_NOFILE": count},
                timeout=300 if subject == "tune" else 120,
            )


def _unspeakable(sandbox: Sandbox, *, command: Command) -> list[str]:
    sandbox.path("tmp/\udcff\udcfe").mkdir()
    return command.line(sandbox, {})


def _temporary() -> Iterator[Case]:
    """A directory for temporary files that is there, under a name that libraries do not take."""
    for subject, command in COMMANDS.items():
        yield Case(
            attack="an environment that says nonsense",
            subject=subject,
            name="a temporary directory that is no UTF-8",
            make=partial(_unspeakable, command=command),
            env={"TMPDIR": "../tmp/\udcff\udcfe"},
            timeout=300 if subject == "tune" else 120,
        )


CASES = [*_variables(), *_temporary()]
