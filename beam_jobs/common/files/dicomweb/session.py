"""Requests to a DICOMweb service: sent again while it does not answer, and what is told of that.

A request is sent again where the service does not answer, is busy (429) or in trouble (502 to 504),
for about two minutes in all. Of its answers nothing is told but the status.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from beam_jobs.common.contract_json import shown
from beam_jobs.common.files import clients
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb.address import Service, query_of
from beam_jobs.common.files.dicomweb.credentials import authorization, held

if TYPE_CHECKING:
    import requests

AT_ONCE = 8  # requests of one process to one service
_CONNECT_S = 10.0
FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 20.0
_BUSY = (429, 502, 503, 504)
_DENIED = (401, 403)
_MOVED = (301, 302, 303, 307, 308)
_MOST_MOVES = 5
_ANSWER_BYTES = 1 << 30
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CONNECTIONS = 64  # that are kept open


class _Process:
    """What one process has of connections and credentials."""

    def __init__(self) -> None:
        self.sessions: dict[str, requests.Session] = {}
        self.told = 0.0  # when a wait was told last: several threads wait for the same
        self.reached: set[Service] = set()  # that have answered
        self.making = threading.Lock()


_process = _Process()


def _after_fork() -> None:
    global _process
    _process = _Process()  # a connection shared by two processes would mix their answers


os.register_at_fork(after_in_child=_after_fork)


def close() -> None:
    """Closes this process's connections; the next request opens others."""
    while _process.sessions:
        _process.sessions.popitem()[1].close()
    _process.reached.clear()


class _Own(threading.local):
    """What a thread knows of who waits for it: the event says that nobody does any more."""

    left: threading.Event | None = None


_own = _Own()


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for `AT_ONCE` requests; of a block that is left, none goes on waiting."""
    left = threading.Event()

    def begin() -> None:
        _own.left = left

    executor = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="dicomweb", initializer=begin)
    try:
        yield executor
    finally:
        left.set()
        executor.shutdown(wait=False, cancel_futures=True)


class CutError(Exception):
    """An answer that ended before its end; what to tell of it."""


class RefusedError(StoreError):
    """A service that answers does not answer this."""


class Patience:
    """How long a service that does not answer is waited for, in pauses that grow.

    It is `clients.RETRY_S` in all, from the first wait on: what came before was work.

    Args:
      service: that is waited for.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._end: float | None = None
        self._pause = FIRST_PAUSE_S

    def wait(self, why: str, least: float = 0.0) -> None:
        """Waits once, and says so where it takes seconds.

        Args:
          why: what happened, "does not answer (connection refused)".
          least: seconds that the service wishes.

        Raises:
          StoreError: it was waited for long enough.
        """
        now = time.monotonic()
        self._end = now + clients.RETRY_S if self._end is None else self._end
        left = self._end - now
        if left <= 0 or clients.RETRIES == 0:
            raise StoreError(f"{self._service.address}: {why}; the same command goes on from here")
        pause = min(max(self._pause * random.uniform(0.75, 1.0), least), left)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        if pause >= 2.0 and now - _process.told >= 1.0:
            _process.told = now
            told = f"{self._service.address}: {why}; tried again in {pause:.0f} s"
            print(told, file=sys.stderr, flush=True)
        if _own.left is None:
            time.sleep(pause)
        elif _own.left.wait(pause):
            raise StoreError(f"{self._service.address}: {why}")  # which nobody reads


def get(
    service: Service,
    within: str,
    *,
    accept: str,
    terms: Mapping[str, str] | None = None,
    stream: bool = False,
) -> requests.Response:
    """Requests something of a service; the answer is whatever it says that no waiting would mend.

    Args:
      service: whom.
      within: the path in it, which begins with a slash.
      accept: media types.
      terms: of a search.
      stream: leave the body to whoever reads it, and closes the answer.

    Raises:
      StoreError: access is denied, the service stays away, or sends the request elsewhere.
      CommandError: credentials are named that cannot be read.
    """
    return _send(service, "GET", within, {"Accept": accept}, terms, None, stream)


def post(service: Service, within: str, *, accept: str, kind: str, body: bytes) -> Any:
    """Sends something to a service, as `get` requests it."""
    headers = {"Accept": accept, "Content-Type": kind}
    return _send(service, "POST", within, headers, None, body, False)


def _send(
    service: Service,
    method: str,
    within: str,
    headers: Mapping[str, str],
    terms: Mapping[str, str] | None,
    body: bytes | None,
    stream: bool,
) -> requests.Response:
    url = f"{service.url}{within}"
    if terms:
        url += f"?{query_of(terms)}"
    patience = Patience(service)
    moves = 0
    while True:
        try:
            answer = _session(service).request(
                method,
                url,
                headers={**headers, "Accept-Encoding": "identity"},
                data=body,
                auth=authorization(url),
                timeout=(min(_CONNECT_S, clients.REQUEST_S), clients.REQUEST_S),
                stream=stream,
                allow_redirects=False,
            )
        except _failures() as error:
            why = _why(error)
            if why in _LASTING and service not in _process.reached:
                raise StoreError(f"{service.address}: {why}") from error
            patience.wait(why)
            continue
        _process.reached.add(service)
        if answer.status_code in _MOVED and "Location" in answer.headers:
            moves += 1
            url = _moved(service, url, answer.headers["Location"], moves)
        elif answer.status_code in _DENIED:
            answer.close()
            raise StoreError(f"{service.address}: access denied ({answer.status_code}): {held()}")
        elif answer.status_code in _BUSY:
            patience.wait(told(answer.status_code), _retry_after(answer))
        else:
            return answer
        answer.close()


def told(status: int) -> str:
    """What a status says, for a message."""
    phrase = f" ({HTTPStatus(status).phrase})" if status in set(HTTPStatus) else ""
    return f"the service answered {status}{phrase}"


def _session(service: Service) -> requests.Session:
    found = _process.sessions.get(service.address)
    if found is None:
        import requests
        from requests.adapters import HTTPAdapter

        with _process.making:
            found = _process.sessions.get(service.address)
            if found is None:
                found = requests.Session()
                # Once, as requests would for each request, which costs more than to send it.
                found.proxies = requests.utils.get_environ_proxies(service.url)
                found.verify = next(filter(None, map(os.environ.get, _CERTIFICATES)), True)
                found.trust_env = False
                adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=0)
                # It tells whole addresses at DEBUG, search terms and all.
                logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
                # `_moved` follows; requests reads the whole body, and fails at what is no address.
                found.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
                found.mount("http://", adapter)
                found.mount("https://", adapter)
                _process.sessions[service.address] = found
    return found


def _failures() -> tuple[type[Exception], ...]:
    """What says that a service did not answer, or not to the end."""
    import requests.exceptions

    of_urllib3: type[Exception] = vars(requests.exceptions)["BaseHTTPError"]
    return (requests.RequestException, of_urllib3, OSError)


@contextmanager
def whole() -> Iterator[None]:
    """What reads a body, in which a lost connection is an answer that was cut.

    Raises:
      CutError: with what to tell of it.
    """
    try:
        yield
    except _failures() as error:
        raise CutError(_why(error)) from error


def body_of(answer: Any) -> bytes:
    """The body of an answer.

    Raises:
      StoreError: it is of more than 1 GB.
    """
    data = bytearray()
    for block in answer.iter_content(1 << 20):
        data += block
        if len(data) > _ANSWER_BYTES:
            raise StoreError(f"{answer.url.partition('?')[0]}: an answer of more than 1 GB")
    return bytes(data)


# Of requests' and urllib3's texts, which repeat the address with its terms, only the kind is told.
_UNTRUSTED = "its certificate is not trusted (REQUESTS_CA_BUNDLE names an authority's)"
_UNKNOWN_HOST = "there is no such host"
_NO_TLS = "it does not answer over https"
_NO_REQUEST = "no request can be made of this address, or of these credentials"
_NO_CERTIFICATES = "REQUESTS_CA_BUNDLE names no file of certificates"
_LASTING = (
    _UNTRUSTED,
    _NO_CERTIFICATES,
    _UNKNOWN_HOST,
    _NO_TLS,
    _NO_REQUEST,
)  # where nothing was answered before
_WORDS = (
    ("CERTIFICATE_VERIFY_FAILED", _UNTRUSTED),
    ("TLS CA certificate", _NO_CERTIFICATES),
    ("NO_CERTIFICATE_OR_CRL_FOUND", _NO_CERTIFICATES),
    ("SSLError", _NO_TLS),
    ("NameResolutionError", _UNKNOWN_HOST),
    ("InvalidHeader", _NO_REQUEST),
    ("InvalidURL", _NO_REQUEST),
    ("LocationParseError", _NO_REQUEST),
    ("UnicodeError", _NO_REQUEST),
    ("ProxyError", "the proxy does not let the request through"),
    ("refused", "does not answer (connection refused)"),
    ("timed out", "does not answer (timed out)"),
)


def _why(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    return next((words for mark, words in _WORDS if mark in text), "the connection was lost")


def _retry_after(answer: requests.Response) -> float:
    wished = answer.headers.get("Retry-After", "")
    return min(float(wished), 60.0) if wished.isdecimal() else 0.0


def _moved(service: Service, url: str, location: str, moves: int) -> str:
    old = urllib.parse.urlsplit(url)
    try:
        target = urllib.parse.urlsplit(urllib.parse.urljoin(url, location))
        host = target.hostname or ""
    except ValueError as error:
        raise StoreError(f"{service.address}: sends requests on to what is no address") from error
    upgraded = (old.scheme, target.scheme) == ("http", "https") and host == old.hostname
    if (target.scheme, target.netloc) != (old.scheme, old.netloc) and not upgraded:
        raise StoreError(
            f"{service.address}: sends requests on to {shown(host)}, which gets no credentials "
            "meant for another: give its address"
        )
    if moves > _MOST_MOVES:
        raise StoreError(f"{service.address}: sends requests in a circle")
    return target._replace(fragment="").geturl()
