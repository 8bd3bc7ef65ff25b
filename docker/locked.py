"""Entries of a lock by name, hashes and all: what an image installs of `requirements*.lock`.

    python docker/locked.py requirements.lock setuptools @docker/runtime.txt

`@FILE` stands for the names in a file, one a line.
"""

import argparse
import re
import sys
from collections.abc import Collection
from pathlib import Path


def entries(lock: str, names: Collection[str]) -> str:
    """The lines of a lock that pin these packages, their markers and hashes.

    Raises:
      ValueError: the lock lacks one of them.
    """
    # An entry begins in the first column; its hashes, and who required it, are indented.
    found = list(re.finditer(r"(?m)^([a-z0-9][a-z0-9.-]*).*\n(?: .*\n)*", lock))
    if missing := sorted(set(names) - {entry[1] for entry in found}):
        raise ValueError(f"not in the lock: {', '.join(missing)}")
    return "".join(entry[0] for entry in found if entry[1] in names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, fromfile_prefix_chars="@")
    parser.add_argument("lock", type=Path)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    try:
        sys.stdout.write(entries(given.lock.read_text(encoding="utf-8"), given.names))
    except ValueError as error:
        sys.exit(f"locked.py: {error}")
