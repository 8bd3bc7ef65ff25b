"""What two runs of a command leave is compared to the byte, but for what measures time."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What differs between two runs that nothing interrupted, of COMMAND/PATH, and why.
VARIES = {
    r"^convert[a-z-]*/output/\.state/lock$": "names the process that held it last",
    r"^(train|tune)/output/(.+/)?\.lock$": "names the process that held it last",
    r"^(train|tune)/output/logs/.+/events\.out\.tfevents\.[^/]+$":
        "TensorBoard names its files by time, host and process",
    r"^tune/output/trials/\d+/log\.txt$": "the output of a trial's processes, killed ones too",
    r"^tune/output/report\.html$": "a study's page says how long its trials took",
}  # fmt: skip
# Members of JSON and columns of CSV files that measure time.
_TIMES = frozenset({"seconds", "epoch_seconds", "step_seconds", "wall_seconds", "input_wait"})


def digest(path: Path) -> str:
    """Of all that a file holds, but of JSON and CSV without what measures time."""
    data = path.read_bytes()
    if path.suffix == ".csv":
        rows = list(csv.reader(data.decode().splitlines()))
        kept = [place for place, name in enumerate(rows[0]) if name not in _TIMES]
        data = repr([[row[place] for place in kept] for row in rows]).encode()
    elif path.suffix == ".json":
        data = json.dumps(_without_times(json.loads(data))).encode()
    return hashlib.sha256(data).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def differences(command: str, expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What differs beside what may (`VARIES`)."""
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return [
        f"{name} {'differs' if name in expected and name in found else 'is there or not'}"
        for name in names
        if not any(re.search(pattern, f"{command}/{name}") for pattern in VARIES)
    ]
