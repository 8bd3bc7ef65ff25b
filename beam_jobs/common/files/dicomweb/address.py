"""What an address of a DICOMweb service says: the service, what it goes down to, search terms.

    dicomweb+https://host/path/studies/1.2?Modality=MR&SeriesDescription=T1*
    dicomweb+https://host/path?StudyInstanceUID=@studies.txt

Terms are those of an allow-list, for services ignore what they do not know and answer with all they
hold. Nothing here asks a service.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import math
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown
from beam_jobs.common.files.dicomweb.place import require_plain


class Term(NamedTuple):
    """An attribute that is searched by.

    Attributes:
      tag: eight hexadecimal digits, as in the services' answers.
      kind: what its values are: "uid", "date", "time", "code", "name" or "text".
      level: "studies" or "series", where services match it.
    """

    tag: str
    kind: str
    level: str


# Attributes that PS3.18 10.6.1.2 has services match, and those of a series' name that most do.
TERMS: Mapping[str, Term] = {
    "StudyDate": Term("00080020", "date", "studies"),
    "StudyTime": Term("00080030", "time", "studies"),
    "AccessionNumber": Term("00080050", "text", "studies"),
    "ModalitiesInStudy": Term("00080061", "code", "studies"),
    "ReferringPhysicianName": Term("00080090", "name", "studies"),
    "PatientName": Term("00100010", "name", "studies"),
    "PatientID": Term("00100020", "text", "studies"),
    "StudyInstanceUID": Term("0020000D", "uid", "studies"),
    "StudyID": Term("00200010", "text", "studies"),
    "Modality": Term("00080060", "code", "series"),
    "SeriesInstanceUID": Term("0020000E", "uid", "series"),
    "SeriesNumber": Term("00200011", "text", "series"),
    "SeriesDescription": Term("0008103E", "text", "series"),
    "BodyPartExamined": Term("00180015", "text", "series"),
    "ProtocolName": Term("00181030", "text", "series"),
}
_BY_TAG = {term.tag: name for name, term in TERMS.items()}
_TIME = r"(?:[0-9]{2}){1,3}(?:\.[0-9]{1,6})?"
_RANGES = {
    "date": (re.compile(r"[0-9]{8}(?:-(?:[0-9]{8})?)?|-[0-9]{8}"), "YYYYMMDD, or a range of it"),
    "time": (
        re.compile(rf"{_TIME}(?:-(?:{_TIME})?)?|-{_TIME}"),
        "HHMMSS, or a range of it",
    ),
}
_MOST_SEARCHES = 2_000_000
_FILE_BYTES = 64 << 20  # of a list of ids: a million UIDs

_UNESCAPED = "*?/:@,()"
_ESCAPED = re.compile(rf"[^0-9A-Za-z_.~{re.escape(_UNESCAPED)}-]+")
_UID = re.compile(r"(?=.*[0-9])[0-9.]{1,64}")
_UNLISTED = re.compile(r"unlisted-([0-9]+)")
_WITHIN = re.compile(
    r"(?P<service>[^?]*?)(?:/studies/(?P<study>[^/?]*)(?:/series/(?P<series>[^/?]*)"
    r"(?:/instances/(?P<instance>[^/?]*))?)?)?/?"
)
_PORT = re.compile(r"[^:\[\]]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class Service(NamedTuple):
    """A DICOMweb service.

    Attributes:
      address: "dicomweb+https://host/path", as paths begin.
    """

    address: str

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return self.address.removeprefix("dicomweb+")

    @property
    def key(self) -> str:
        """Names its directory in the spool."""
        return hashlib.sha256(self.address.encode()).hexdigest()[:16]


class SeriesAddress(NamedTuple):
    """A series: what is fetched at once."""

    service: Service
    study: str
    series: str

    @property
    def within(self) -> str:
        """Its path in the service, which begins with a slash."""
        return f"/studies/{self.study}/series/{self.series}"

    @property
    def path(self) -> str:
        """Its path."""
        return f"{self.service.address}{self.within}"

    def instance(self, uid: str) -> str:
        """The path of an instance."""
        return f"{self.path}/instances/{uid}"


class Root(NamedTuple):
    """A search.

    Attributes:
      service: where.
      studies: searches for studies, each key → value; what any of them finds is found.
      series: the same of series, in the studies found.
    """

    service: Service
    studies: tuple[Mapping[str, str], ...]
    series: tuple[Mapping[str, str], ...]


def is_uid(text: object) -> bool:
    """Whether a text is a UID, and so a plain name of a file and a plain part of an address."""
    return isinstance(text, str) and _UID.fullmatch(text) is not None


def unlisted(number: int) -> str:
    """What stands for the UID of an instance that is counted, and that no answer names."""
    return f"unlisted-{number}"


def fits(key: str, value: str, answers: Iterable[str]) -> bool:
    """Whether one of the values that an answer has of a key is what a term searches for.

    Args:
      key: of the term.
      value: of the term: a text with wildcards, a UID, or a range.
      answers: in small letters, without blanks around.

    >>> fits("PatientName", "Doe^J*", ["doe^jane"]), fits("StudyDate", "2026-", ["20260101"])
    (True, True)
    """
    wanted = value.strip().lower()
    first, dash, last = wanted.partition("-")
    if dash and TERMS[key].kind in ("date", "time"):
        return any((first or "0") <= one <= (last or "9") for one in answers)
    pattern = re.sub(r"([\[\]])", r"[\1]", wanted)
    return any(fnmatch.fnmatchcase(one, pattern) for one in answers)


def query_of(terms: Mapping[str, str]) -> str:
    """The query of a search; no more is escaped than has to be (RFC 3986 3.4).

    >>> query_of({"PatientID": "a/b?", "SeriesDescription": "T1 *"})
    'PatientID=a/b?&SeriesDescription=T1%20*'
    """
    return "&".join(
        f"{key}={urllib.parse.quote(value, safe=_UNESCAPED)}" for key, value in terms.items()
    )


def loosened(terms: Mapping[str, str]) -> Mapping[str, str] | None:
    """A search for more, in which nothing has to be escaped; None where it is for all, or the same.

    >>> loosened({"PatientName": "DOE^JANE", "PatientID": "*"})
    {'PatientName': 'DOE*JANE', 'PatientID': '*'}
    """
    loose = {key: _ESCAPED.sub("*", value) for key, value in terms.items()}
    changed = [value for key, value in loose.items() if value != terms[key]]
    return loose if changed and all(re.search("[0-9A-Za-z]", value) for value in changed) else None


def parse_root(root: str) -> Root:
    """What a search says; a file of ids is read.

    Args:
      root: `dicomweb+https://host/path[/studies/UID[/series/UID]][?KEY=VALUE&…]`.

    Raises:
      UsageError: the address makes no sense, a key is none of `TERMS`, a value none of its key, or
        the file cannot be read.
    """
    place, mark, query = root.partition("?")
    service, study, series, instance = _within(root)
    if instance:
        raise UsageError(f"{place}: names one instance; a search ends at a series")
    values: dict[str, list[str]] = {}
    if mark:
        for key, value in _terms(place, query):
            values.setdefault(key, []).extend(_values(place, key, value))
    for key, uid in (("StudyInstanceUID", study), ("SeriesInstanceUID", series)):
        if uid and values.get(key, [uid]) != [uid]:
            raise UsageError(f"{place}: {key} is in the address already")
        if uid:
            values[key] = [uid]
    return Root(service, _searches(place, values, "studies"), _searches(place, values, "series"))


def parse_file(path: str) -> tuple[SeriesAddress, str]:
    """(series, SOP Instance UID or `unlisted`) of an instance's path.

    Raises:
      UsageError: the path is none of an instance.
    """
    service, study, series, instance = _within(path)
    if not instance or "?" in path:
        raise UsageError(
            f"{path.partition('?')[0]}: names no instance (/studies/UID/series/UID/instances/UID)"
        )
    return SeriesAddress(service, study, series), instance


def parse_service(root: str) -> Service:
    """The service of an address that has nothing but one.

    Raises:
      UsageError: the address makes no sense, or goes on behind the service.
    """
    service, study, _, _ = _within(root)
    if study or "?" in root:
        raise UsageError(f"{root.partition('?')[0]}: has to name a service, and no study or search")
    return service


def _within(address: str) -> tuple[Service, str, str, str]:
    """(service, study, series, instance), "" for what the address does not go down to."""
    require_plain(address)
    place = address.partition("?")[0]
    found = _WITHIN.fullmatch(place)
    if found is None or not place.isprintable() or " " in place or "\\" in place:
        raise UsageError(f"{shown(place)}: is no address (blanks are %20)")
    rest = found["service"].partition("://")[2].rstrip("/")
    host, _, path = rest.partition("/")
    if not _PORT.fullmatch(host):
        raise UsageError(f"{place}: names no host")
    uids = [found[level] for level in ("study", "series", "instance")]
    for level, uid in zip(("study", "series", "instance"), uids, strict=True):
        fits = uid is None or is_uid(uid) or (level == "instance" and _UNLISTED.fullmatch(uid))
        if not fits:
            raise UsageError(f"{place}: {shown(uid)} is no UID")
    if {".", ".."} & set(urllib.parse.unquote(path).split("/")):
        raise UsageError(f"{place}: is no address (.. in it)")
    study, series, instance = (uid or "" for uid in uids)
    return Service(found["service"].rstrip("/")), study, series, instance


def _terms(place: str, query: str) -> Iterator[tuple[str, str]]:
    """Key and value of each term; a plus is a plus."""
    for term in query.split("&"):
        given, equals, value = term.partition("=")
        given = urllib.parse.unquote(given)
        key = _BY_TAG.get(given.upper(), given)
        if key not in TERMS:
            raise UsageError(
                f"{place}: {shown(given)} cannot be searched by; known: {', '.join(TERMS)}"
            )
        value = urllib.parse.unquote(value)
        if not equals or not value.strip():
            raise UsageError(f"{place}: {key} has no value")
        yield key, value


def _values(place: str, key: str, value: str) -> list[str]:
    """What a term searches for, one value each."""
    kind = TERMS[key].kind
    values = [value]
    if value.startswith("@"):
        values = _of_file(place, key, value[1:])
    elif kind in ("uid", "code"):
        values = [part.strip() for part in re.split(r"[,\\]", value) if part.strip()]
    for one in values:
        what = _RANGES.get(kind)
        if what is not None and not what[0].fullmatch(one):
            raise UsageError(f"{place}: {key}={shown(one)} is no {what[1]}")
        if kind == "uid" and not is_uid(one):
            raise UsageError(f"{place}: {key}={shown(one)} is no UID")
        if not one.isprintable():
            raise UsageError(f"{place}: {key} has a value that is no text")
    return list(dict.fromkeys(values))


def _of_file(place: str, key: str, name: str) -> list[str]:
    """Values from a file, one a line."""
    try:
        with open(name, "rb") as stream:
            data = stream.read(_FILE_BYTES + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{place}: {key}=@{shown(name)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: {key}=@{shown(name)}: is not UTF-8 text") from error
    if len(data) > _FILE_BYTES:
        raise UsageError(f"{place}: {key}=@{shown(name)}: holds more than 64 MB")
    values = [line.strip() for line in lines if line.strip()]
    if not values:
        raise UsageError(f"{place}: {key}=@{shown(name)}: holds no value")
    return values


def _searches(
    place: str, values: Mapping[str, list[str]], level: str
) -> tuple[Mapping[str, str], ...]:
    """One search for each combination of values: services differ in what a list means to them."""
    keys = [key for key in values if TERMS[key].level == level]
    if (count := math.prod(len(values[key]) for key in keys)) > _MOST_SEARCHES:
        lists = " and ".join(key for key in keys if len(values[key]) > 1)
        raise UsageError(f"{place}: every {lists} together are {count} searches: give one list")
    product = itertools.product(*(values[key] for key in keys))
    return tuple(dict(zip(keys, found, strict=True)) for found in product)
