"""What a search finds, by QIDO-RS, and what each series holds, by its metadata (PS3.18 10.6, 10.4).

Studies are searched for by the terms of studies, then each for series by the terms of series: that
services match a study's attributes when series are searched for is optional. Pages are turned until
an empty one, for services cap them; answers come in any order, and some twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import session
from beam_jobs.common.files.dicomweb.address import (
    TERMS,
    Root,
    SeriesAddress,
    Service,
    fits,
    is_uid,
    loosened,
)
from beam_jobs.common.files.dicomweb.session import CutError, Patience, RefusedError
from beam_jobs.common.files.dicomweb.spool import Listed
from beam_jobs.common.files.objects import stamp_of

JSON = "application/dicom+json"
_PAGE = 1000
_MOST_UNLISTED = 10_000
_SOP_CLASS, _SOP_UID = "00080016", "00080018"
_STUDY_UID, _SERIES_UID = "0020000D", "0020000E"
_MODALITY, _IMAGES = "00080060", "00201209"
_SERIES_FIELDS = (_IMAGES, "0008103E", "00180015", "00181030")

# Modalities whose objects are no images of their own (PS3.3 C.7.3.1.1.1).
NO_IMAGES = frozenset(
    {
        *("ASMT", "AU", "DOC", "ECG", "EPS", "FID", "HD", "KO", "M3D", "PLAN", "PR", "REG", "RESP"),
        *("RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR"),
        *("SR", "STAIN", "TEXTUREMAP", "ANN", "SRF", "VA"),
    }
)
# Objects that lie in series of images and are none to learn from: Parametric Maps are answers.
_NO_IMAGE_CLASSES = {"1.2.840.10008.5.1.4.1.1.30": "PM"}
NO_UID = "series without a valid UID"

# Of the answer they depend on the address and the moment, not on the instance.
_VOLATILE = {"00080054", "00080056", "00081190"}


# `map`, or what does the same with several threads.
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Series(NamedTuple):
    """A series that a search found.

    Attributes:
      address: of it, None where its UIDs are none that can be requested.
      modality: of it, "" where the service does not say.
      images: how many instances the service counts, None where it does not say.
    """

    address: SeriesAddress | None
    modality: str
    images: int | None


class Content(NamedTuple):
    """What a series holds.

    Attributes:
      listed: stamp and UIDs.
      left_out: SOP Instance UID → what it is left out as.
    """

    listed: Listed
    left_out: Mapping[str, str]


def find_studies(root: Root, *, page: int = _PAGE) -> Iterator[str]:
    """Study Instance UID of each study that a root's search finds, each once."""
    seen = set()
    for terms in root.studies:
        for study in studies_of(root.service, terms, page=page):
            if study not in seen:
                seen.add(study)
                yield study


def studies_of(service: Service, terms: Mapping[str, str], *, page: int = _PAGE) -> Iterator[str]:
    """Study Instance UID of each study that has all of these terms."""
    for found in _found(service, "/studies", terms, _STUDY_UID, page):
        yield _value(found, _STUDY_UID)


def find_series(root: Root, study: str) -> list[Series]:
    """The series of a study that a root's search finds, by their UIDs."""
    if not is_uid(study):
        return [Series(None, "", None)]
    found: dict[str, Series] = {}
    for terms in root.series:
        within, fields = f"/studies/{study}/series", ",".join(_SERIES_FIELDS)
        for one in _found(root.service, within, terms, _SERIES_UID, fields=fields):
            found[_value(one, _SERIES_UID)] = _series_of(root.service, study, one)
    return [found[uid] for uid in sorted(found)]


def find_named(root: Root, several: Map = map) -> list[Series] | None:
    """The series of a root that names series and says nothing of studies.

    That services search for series in all studies is optional; where one does, a list of series
    costs a request each, and not one for each study that there is.

    Args:
      root: the search.
      several: as `map`, for the requests behind the first.

    Returns:
      None where the root is another, or the service does not say in which studies they are.
    """
    if root.studies != ({},) or not all("SeriesInstanceUID" in terms for terms in root.series):
        return None

    def one(terms: Mapping[str, str]) -> list[Series] | None:
        return _find_one(root.service, terms)

    if (first := one(root.series[0])) is None:
        return None
    found = [first, *several(one, root.series[1:])]
    if None in found:
        return None
    return [series for answer in found for series in answer or ()]


def _find_one(service: Service, terms: Mapping[str, str]) -> list[Series] | None:
    asked = {**terms, "limit": "2", "includefield": ",".join((_STUDY_UID, *_SERIES_FIELDS))}
    status, found, _ = _json(service, "/series", asked, failing=True)
    if status >= 400 or len(found) > 1:
        return None
    for one in found:
        if not is_uid(_value(one, _STUDY_UID)):
            return None
        if _value(one, _SERIES_UID) != terms["SeriesInstanceUID"]:
            return None
        for key, value in terms.items():
            _require_match(service, key, value, one)
    return [_series_of(service, _value(one, _STUDY_UID), one) for one in found]


def _series_of(service: Service, study: str, one: Mapping[str, Any]) -> Series:
    uid, count = _value(one, _SERIES_UID), _value(one, _IMAGES)
    address = SeriesAddress(service, study, uid) if is_uid(uid) else None
    images = int(count) if re.fullmatch("[0-9]{1,9}", count) else None
    return Series(address, _value(one, _MODALITY), images)


def answers(service: Service) -> bool:
    """Whether a service answers a search at all."""
    with session.get(service, "/studies", accept=JSON, terms={"limit": "1"}) as answer:
        return answer.status_code < 500


def _found(
    service: Service,
    within: str,
    terms: Mapping[str, str],
    uid: str,
    page: int = _PAGE,
    fields: str = "",
) -> Iterator[Mapping[str, Any]]:
    """What a search finds, of a service that takes "%20" for three letters (Orthanc 1.10), too.

    It is asked again with a star for what has to be escaped, and what fits the terms is found.
    """
    empty = True
    for one in _pages(service, within, terms, uid, page, fields):
        empty = False
        yield one
    if empty and (loose := loosened(terms)):
        with contextlib.suppress(RefusedError):  # some know no star in such a key
            for one in _pages(service, within, loose, uid, page, fields):
                if all(fits(key, value, _texts(one, key)) for key, value in terms.items()):
                    yield one


def _pages(
    service: Service, within: str, terms: Mapping[str, str], uid: str, page: int, fields: str
) -> Iterator[Mapping[str, Any]]:
    """What a search finds, a page after the other.

    Raises:
      StoreError: the service does not go by the terms, or does not turn pages.
    """
    seen: set[str] = set()
    offset = 0
    while True:
        asked = {**terms, "limit": str(page), "offset": str(offset)}
        if fields:
            asked["includefield"] = fields
        status, found, warning = _json(service, within, asked)
        if status >= 400:
            raise RefusedError(f"{service.address}{within}: {session.told(status)} to a search")
        new = [one for one in found if _value(one, uid) not in seen]
        for one in new:
            for key, value in terms.items():
                _require_match(service, key, value, one)
            seen.add(_value(one, uid))
            yield one
        if not found:
            return
        if not new:
            if len(found) >= page or warning:
                raise StoreError(
                    f"{service.address}{within}: the service answers with the same page again, "
                    "and not with what follows it; narrower terms may fit one page"
                )
            return
        offset += len(found)


def _require_match(service: Service, key: str, value: str, found: Mapping[str, Any]) -> None:
    """Refuses an answer that shows that the service does not go by a term.

    Only where no service would take it for a match, whatever case and blanks are to it.
    """
    answers = _texts(found, key)
    if answers and TERMS[key].kind not in ("name", "time") and not fits(key, value, answers):
        hint = f" ({key}=A&{key}=B are several values)" if "," in value or "\\" in value else ""
        raise StoreError(
            f"{service.address}: the service does not search by {key}: it answers with others{hint}"
        )


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    """What an answer has of a key, in small letters; of a name each of its ways to be written."""
    values = _values(found, TERMS[key].tag)
    texts = [text for one in values for text in (one.values() if isinstance(one, dict) else [one])]
    return [text for one in texts if (text := str(one).strip().lower())]


def content_of(series: SeriesAddress, images: int | None) -> Content:
    """What a series holds, each instance by its UID; those that the service only counts, too.

    Metadata is what services answer fastest. Where one cannot (an unreadable instance is enough),
    instances are searched for, in ever smaller pages around those that it fails at.

    Args:
      series: which.
      images: how many instances the service counts.

    Raises:
      StoreError: the service does not say.
    """
    try:
        return _content_of(series, images)
    except RecursionError as error:
        raise StoreError(
            f"{series.path}: what the service says of it is nested too deeply"
        ) from error


def _content_of(series: SeriesAddress, images: int | None) -> Content:
    found = _metadata(series)
    failed = 0
    if found is None or (images is not None and len(found) < images):
        searched, failed = _instances(series, images)
        found = {**searched, **(found or {})}
    uids = sorted(uid for uid in found if is_uid(uid))
    unlisted = max(failed, (images or 0) - len(uids), len(found) - len(uids))
    if unlisted > _MOST_UNLISTED:
        raise StoreError(
            f"{series.path}: the service counts {unlisted + len(uids)} instances, and lists "
            f"{len(uids)} of them"
        )
    canonical = json.dumps([found[uid] for uid in uids], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    left_out = {
        uid: _NO_IMAGE_CLASSES[kind]
        for uid in uids
        if (kind := _value(found[uid], _SOP_CLASS)) in _NO_IMAGE_CLASSES
    }
    stamp = stamp_of(f"{digest} {unlisted}") or 1
    return Content(Listed(stamp, tuple(uids), unlisted), left_out)


def _metadata(series: SeriesAddress) -> dict[str, Any] | None:
    """SOP Instance UID → metadata of a series' instances, None where the service has none."""
    status, found, _ = _json(series.service, f"{series.within}/metadata", {})
    if status >= 400 or not found:
        return None
    return {_value(one, _SOP_UID): _settled(one) for one in found}


def _settled(value: Any) -> Any:
    """Metadata without what depends on address and moment."""
    if isinstance(value, dict):
        return {
            key: _settled(one)
            for key, one in value.items()
            if key != "BulkDataURI" and key not in _VOLATILE
        }
    return [_settled(one) for one in value] if isinstance(value, list) else value


def _instances(series: SeriesAddress, images: int | None) -> tuple[dict[str, Any], int]:
    """(SOP Instance UID → answer of instances that are found, how many the service fails at)."""
    found: dict[str, Any] = {}
    failed = 0
    total = images if images is not None else _PAGE
    waiting = [(0, total)]
    while waiting:
        offset, length = waiting.pop()
        terms = {"limit": str(length), "offset": str(offset)}
        within = f"{series.within}/instances"
        status, page, _ = _json(series.service, within, terms, failing=True)
        if status >= 500 and length > 1:
            half = length // 2
            waiting += [(offset + half, length - half), (offset, half)]
        elif status >= 400:
            # Beyond the end of those that are counted nothing is missing.
            if status < 500 or (images is None and offset >= len(found) + failed + 1):
                raise StoreError(
                    f"{series.path}: {session.told(status)} to a search for its instances"
                )
            failed += 1
        else:
            found.update((_value(one, _SOP_UID), _settled(one)) for one in page)
            if 0 < len(page) < length:  # a capped page, or the last one
                waiting.append((offset + len(page), length - len(page)))
            elif page and images is None and offset + length >= total:
                waiting.append((total, _PAGE))
                total += _PAGE
    return found, failed


def _json(
    service: Service, within: str, terms: Mapping[str, str], *, failing: bool = False
) -> tuple[int, list[Mapping[str, Any]], bool]:
    """(status, objects of an answer, whether it warns of more); what is cut is requested again.

    A service may fail once (500) for a reason that passes, unless it is known to be `failing`.
    """
    patience = Patience(service)
    failures = 0
    while True:
        answer = session.get(service, within, accept=JSON, terms=terms, stream=True)
        with answer:
            try:
                with session.whole():
                    data = session.body_of(answer)
                    if answer.status_code == 500 and not (failing or failures):
                        raise CutError(session.told(500))
                    return answer.status_code, _objects(answer, data), "Warning" in answer.headers
            except CutError as cut:
                failures += 1
                why = str(cut)
        patience.wait(why)


def _objects(answer: Any, data: bytes) -> list[Mapping[str, Any]]:
    """The objects of an answer.

    Raises:
      CutError: it does not come to its end.
      StoreError: it is none of a DICOMweb service.
    """
    if answer.status_code >= 400 or not data.strip():
        return []
    found: Any
    try:
        found = json.loads(data)
    except RecursionError:
        found = None
    except ValueError as error:
        if data.lstrip().startswith(b"[") and not data.rstrip().endswith(b"]"):
            raise CutError("the answer was cut off") from error
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise StoreError(
            f"{answer.url.partition('?')[0]}: the answer is none of a DICOMweb service"
        )
    return found


def _values(found: Mapping[str, Any], tag: str) -> list[Any]:
    element = found.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _value(found: Mapping[str, Any], tag: str) -> str:
    """The first value of an element as text, "" where there is none."""
    values = _values(found, tag)
    return str(values[0]).strip("\0 ") if values else ""
