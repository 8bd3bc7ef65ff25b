"""A small file system of a test's own, to be filled: a tmpfs, which takes root to mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = os.sysconf("SC_PAGE_SIZE")
ROOMY = 64 << 20


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = (getattr(error, "stderr", "") or str(error)).strip()
        pytest.skip(f"no file system can be mounted here: {why}")


@contextlib.contextmanager
def small_disk(place: Path, size: int = ROOMY, *, inodes: int = 100_000) -> Iterator[Path]:
    """A tmpfs at a directory, which is made, for the time of the block; skips where it cannot be.

    Args:
      place: the directory.
      size: bytes of it, rounded up to pages.
      inodes: files and directories it takes, its own root among them.
    """
    place.mkdir(exist_ok=True)
    options = f"size={max(size, PAGE)},nr_inodes={inodes},mode=755"
    _mount("-t", "tmpfs", "-o", options, "small_disk", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def make_room(place: Path) -> None:
    """Makes a small disk a roomy one, that can be written to."""
    _mount("-o", f"remount,rw,size={ROOMY},nr_inodes=100000", str(place))


def make_read_only(place: Path) -> None:
    """Lets a disk take nothing more, from root neither."""
    _mount("-o", "remount,ro", str(place))


def used(place: Path) -> tuple[int, int]:
    """Bytes and inodes taken."""
    status = os.statvfs(place)
    blocks = status.f_blocks - status.f_bfree
    return blocks * status.f_frsize, status.f_files - status.f_ffree
