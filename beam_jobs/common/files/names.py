"""Paths as text: of local files, of objects in stores, of members of archives.

    data/train/x.dcm                      a local file
    s3://bucket/train/x.dcm               an object; gs://, az://container/name, https://host/name
    s3://bucket/export.zip!/train/x.dcm   a member of an archive, which may lie in either place
    dicomweb+https://host/path?KEY=VALUE  a search in a DICOMweb service; what it finds lies at
    dicomweb+https://host/path/studies/UID/series/UID/instances/UID

Nothing here opens anything. A path says all that another process needs to open it.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files.dicomweb.place import DICOMWEB, SERVICES, require_plain, service_of

StrPath = str | os.PathLike[str]

READ_ONLY = ("http", "https", *DICOMWEB)
SCHEMES = ("gs", "s3", "az", *READ_ONLY)
KNOWN = (
    "known: local paths, gs://, s3://, az://, https:// (to read), dicomweb+https:// (DICOM to read)"
)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MEMBER = "!/"  # between an archive and the name of a member
GZIPPED = ".dcm.gz"

_NO_OUTPUT = "an archive can be read, not written to"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What a path object makes of "gs://bucket": repeated slashes fall together.
_FOLDED = re.compile(r"(gs|s3|az|(?:dicomweb\+)?https?):/(?=[^/])")
_BEFORE_HOST = re.compile(r"(:/{1,2})[^/?#]*@")  # a name and a password
_MEMBER = re.compile(r"(.+?\.(?:zip|tar|tar\.gz|tgz))!/", re.IGNORECASE | re.DOTALL)
_TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{12}\.part")
_NAME_BYTES = 200  # of a name made of an id; every file system takes 255, a writer adds 18
_DRIVE = re.compile(r"[A-Za-z]:")

# Files that no image hides in, so that a tidy directory gives no rejections; in any case.
_NOT_INPUT = {name.casefold(): name for name in ("DICOMDIR", "Thumbs.db", "desktop.ini")}
HIDDEN = "hidden"


class Entry(NamedTuple):
    """A file of a listing.

    Attributes:
      path: its path.
      size: in bytes, None where the listing does not say.
      stamp: changes when the content does, 0 where the listing does not say.
    """

    path: str
    size: int | None = None
    stamp: int = 0


class Listing(NamedTuple):
    """All that lies below a root.

    Attributes:
      entries: the files that are read, in the order of their paths.
      left_out: how many files are not, by what they are left out as (`left_out_as`).
    """

    entries: list[Entry]
    left_out: Mapping[str, int]


class Status(NamedTuple):
    """What a store (or a disk) says of a file without reading it.

    Attributes:
      size: in bytes.
      modified: time of change in ns.
      tag: changes with the content; "" on a disk.
    """

    size: int
    modified: int
    tag: str = ""


def text(path: StrPath) -> str:
    """A path as text; `Path("gs://bucket/x")` is understood although it lost a slash.

    Raises:
      UsageError: a text with one slash after a store's scheme, which would name a local directory.

    >>> from pathlib import PurePosixPath
    >>> text(PurePosixPath("s3://bucket/x"))
    's3://bucket/x'
    """
    if isinstance(path, str):
        if path.startswith(("gs:/", "s3:/", "az:/", "http", "dicomweb")) and _FOLDED.match(path):
            told = _without_user(path)
            raise UsageError(f"{told}: a slash is missing after the scheme ({_unfolded(told)})")
        return path
    return _unfolded(os.fspath(path))


def _unfolded(path: str) -> str:
    return _FOLDED.sub(r"\1://", path, count=1) if _FOLDED.match(path) else path


def _without_user(address: str) -> str:
    """An address as it may be told: without a name and a password before its host."""
    return _BEFORE_HOST.sub(r"\1...@", address, count=1)


def scheme_of(path: StrPath) -> str:
    """The scheme of a path, "" of a local one.

    Raises:
      UsageError: one that is not among `SCHEMES`.
    """
    path = text(path)
    found = _SCHEME.match(path) if "://" in path else None
    if found is None:
        return ""
    if found[1] not in SCHEMES:
        raise UsageError(f"{_without_user(path)}: cannot use {found[1]}://; {KNOWN}")
    return found[1]


def is_remote(path: StrPath) -> bool:
    """Whether a path names something in a store (or behind a web server), not on a local disk.

    Raises:
      UsageError: its scheme is none that is known.
    """
    return scheme_of(path) != ""


def is_dicomweb(path: StrPath) -> bool:
    """Whether a path is a search in a DICOMweb service, or something that lies in one."""
    return text(path).startswith(SERVICES)


def require_writable(path: StrPath) -> None:
    """Refuses a place that no output can have: what nothing writes to, or an archive's name.

    Raises:
      UsageError: http(s)://, an archive or its member, an unknown scheme, or no bucket.
    """
    require_written(path)
    if is_archive(text(path).rstrip("/")):
        raise UsageError(f"{text(path)}: {_NO_OUTPUT}")


def require_written(path: StrPath) -> None:
    """Refuses a file that cannot be written; a file that is an archive can.

    Raises:
      UsageError: http(s)://, a member of an archive, an unknown scheme, or no bucket.
    """
    path = text(path)
    scheme = scheme_of(path)
    if scheme in DICOMWEB:
        split(path)
    if scheme in READ_ONLY:
        raise UsageError(f"{path}: {scheme}:// can be read, not written to")
    if split_member(path) is not None:
        raise UsageError(f"{path}: {_NO_OUTPUT}")
    if scheme:
        split(path)


def split(path: str) -> tuple[str, str, str]:
    """(scheme, bucket, name) of an object's path; of a web address (scheme, host, name).

    Of a DICOMweb service's address the last is all behind the host, as it is written.

    >>> split("gs://bucket/a/b")
    ('gs', 'bucket', 'a/b')

    Raises:
      UsageError: it names no bucket; a web address has a query; that of a DICOMweb service has a
        name before its host, or a fragment.
    """
    scheme = scheme_of(path)
    if scheme in DICOMWEB:
        require_plain(path)
    bucket, _, name = path.partition("://")[2].partition("/")
    if not bucket:
        raise UsageError(f"{path} names no {'host' if scheme in READ_ONLY else 'bucket'}")
    if scheme in READ_ONLY and scheme not in DICOMWEB:
        if "?" in path:
            raise UsageError(f"{path}: a web address with a query cannot be read")
        name = urllib.parse.unquote(name)
    return scheme, bucket, name


def join(directory: StrPath, *names: str) -> str:
    """The path of something below a directory, wherever that lies.

    >>> join("gs://bucket/dataset/", "manifest.json")
    'gs://bucket/dataset/manifest.json'
    """
    path = text(directory)
    if is_dicomweb(path):  # no search term gets below
        path = path.partition("?")[0]
    return "/".join((path.rstrip("/"), *names))


def trimmed(directory: StrPath) -> str:
    """A directory's path without the slashes at its end that it does not need.

    >>> trimmed("s3://bucket/data//"), trimmed("/"), trimmed("export.zip!/")
    ('s3://bucket/data', '/', 'export.zip!/')

    Raises:
      UsageError: it names no bucket, or has an unknown scheme.
    """
    path = text(directory)
    if is_remote(path):
        split(path)
    if is_dicomweb(path):
        address, mark, terms = path.partition("?")
        return address.rstrip("/") + mark + terms
    member = _MEMBER.match(path)
    needed = member.end() if member else 1
    return path[:needed] + path[needed:].rstrip("/")


def name_of(path: StrPath) -> str:
    """The last part of a path, whatever lies there.

    >>> name_of("s3://bucket/run/")
    'run'
    """
    return text(path).rstrip("/").rpartition("/")[2]


def is_archive(path: str) -> bool:
    """Whether a path is named like an archive (and is not a member of one)."""
    return path.lower().endswith(ARCHIVES) and MEMBER not in path and not is_dicomweb(path)


def split_member(path: str) -> tuple[str, str] | None:
    """(archive, name within it) of a member's path; None for any other path.

    The name is "" for the archive as a directory (`export.zip!/`).

    >>> split_member("d/export.tar.gz!/1/x.dcm")
    ('d/export.tar.gz', '1/x.dcm')
    """
    if MEMBER not in path or is_dicomweb(path):
        return None
    found = _MEMBER.match(path)
    return (found[1], path[found.end() :]) if found else None


def logical(path: StrPath) -> str:
    """Where a member would lie were its archive unpacked into a directory of its name.

    Layout rules and tables see this, so that an archive gives what its directory gives. Other
    paths are what they are.

    >>> logical("d/00001.zip!/T1w/1.dcm"), logical("d/00001.zip"), logical("d/1.dcm")
    ('d/00001/T1w/1.dcm', 'd/00001', 'd/1.dcm')
    """
    path = text(path)
    if is_archive(path):
        return _without_suffix(path)
    found = split_member(path)
    if found is None:
        return path
    archive, name = found
    return f"{_without_suffix(archive)}/{name}" if name else _without_suffix(archive)


def _without_suffix(archive: str) -> str:
    suffix = max((s for s in ARCHIVES if archive.lower().endswith(s)), key=len)
    return archive[: -len(suffix)]


def logical_root(root: str, path: str) -> str:
    """`logical` of a root, as the `logical` of a path below it begins; no slash at its end.

    Of a search in a DICOMweb service it is the service: the same instance has the same name below
    it by whatever terms it was found, and no term gets into a table.

    >>> logical_root("d/00001.zip", "d/00001.zip!/T1w/1.dcm")
    'd/00001'
    >>> logical_root("d/00001.zip", "d/00001.zip/1.dcm")  # a directory, whatever its name
    'd/00001.zip'
    """
    if is_dicomweb(root):
        return service_of(root)
    bare = root.rstrip("/")
    if MEMBER not in root and path.startswith(f"{bare}/"):
        return bare
    return logical(trimmed(root))


def name_below(root: str, path: str) -> str:
    """A file's path below a root: the same of an archive, or of the root elsewhere, in tables."""
    damaged = path.endswith(MEMBER)  # an archive that cannot be read keeps its own name
    name = path.removesuffix(MEMBER) if damaged else logical(path)
    name = name[: -len(".gz")] if name.lower().endswith((GZIPPED, ".nii.gz")) else name
    return name.removeprefix(f"{logical_root(root, path)}/")


def left_out_as(name: str) -> str:
    """What a name below a root is never read as: hidden, or one of those that are no images.

    Nothing in a hidden directory is read. "" for a name that is.

    >>> left_out_as("1/.cache/a.dcm"), left_out_as("1/dicomdir"), left_out_as("1/a.dcm")
    ('hidden', 'DICOMDIR', '')
    """
    if name.startswith(".") or "/." in name:
        return HIDDEN
    return _NOT_INPUT.get(name.rpartition("/")[2].casefold(), "")


def temporary_of(name: str) -> str | None:
    """The name of the file that a killed writer left this half of, None for any other name.

    >>> temporary_of("run.json.0123456789ab.part")
    'run.json'
    """
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


def file_name(words: str, suffix: str = "") -> str:
    """The name of a file or directory that stands for an id: one plain name, whatever the id is.

    Letters, digits, `-`, `_` and `.` stay, so that an ordinary id is its own name; every other byte
    of its UTF-8 is percent-quoted, and so is a dot that begins or ends it. Two ids have two names,
    but for those that only a file system without case takes for one: see `file_names`.

    Args:
      words: the id, any text.
      suffix: what the name ends with, as it is.

    Returns:
      At most 200 bytes; of a longer one the begin and a hash of the whole id.

    >>> file_name("00005", ".npz"), file_name("../x"), file_name("Bj\u00f6rk 1"), file_name("")
    ('00005.npz', '%2E.%2Fx', 'Bj%C3%B6rk%201', '%')
    """
    data = words.encode("utf-8", "surrogatepass")
    quoted = urllib.parse.quote(data, safe="").replace("~", "%7E")
    quoted = re.sub(r"^\.|\.$", "%2E", quoted) or "%"
    room = _NAME_BYTES - len(suffix.encode())
    if len(quoted) > room:
        digest = hashlib.sha256(data).hexdigest()[:32]
        quoted = f"{re.sub('%.?$', '', quoted[: room - 33])}-{digest}"
    return f"{quoted}{suffix}"


def file_names(ids: Iterable[str], suffix: str = "") -> dict[str, str]:
    """`file_name` of each of some ids.

    Raises:
      CommandError: two of them would be one file where a file system does not tell case.
    """
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for words in ids:
        found[words] = file_name(words, suffix)
        owner = owners.setdefault(found[words].lower(), words)
        if owner != words:
            raise CommandError(
                f"{shown(owner)} and {shown(words)} would both be written to {found[words]} on a "
                "disk that does not tell case: no file is made of ids like these"
            )
    return found


def member(directory: StrPath, name: object, *, folders: bool = False) -> str:
    """The path of a file in a directory, by a name that was read from a file.

    Args:
      directory: where it must lie.
      name: what stands where a name is due.
      folders: let it lie in folders below the directory, with `/` between the names.

    Raises:
      ContractError: no plain name: one that leads elsewhere, or on some systems would.
    """
    parts = str(name).split("/") if folders else [str(name)]
    for part in parts:
        plain = part not in ("", ".", "..") and part.isprintable() and not _DRIVE.match(part)
        if not isinstance(name, str) or not plain or "/" in part or "\\" in part:
            raise ContractError(f"{shown(name)} is no plain name of a file in {text(directory)}")
    return join(directory, str(name))
