"""Whose credentials a request to a DICOMweb service bears.

They are read from this process's environment for each request, for tokens expire, and stand nowhere
else: in no address, message, log or file.
"""

from __future__ import annotations

import base64
import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from beam_jobs.common.cli import CommandError

HINT = "DICOMWEB_USERNAME and DICOMWEB_PASSWORD, DICOMWEB_TOKEN or DICOMWEB_TOKEN_FILE, or ~/.netrc"
_GOOGLE = ".googleapis.com"
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-healthcare"
_TOKEN_BYTES = 64 << 10


class _Google:
    """Google's credentials, which this process refreshes when they expire."""

    def __init__(self) -> None:
        self.google: Any = None
        self.lock = threading.Lock()


_held = _Google()


def _after_fork() -> None:
    global _held
    _held = _Google()


os.register_at_fork(after_in_child=_after_fork)


def authorization(url: str) -> Callable[[Any], Any]:
    """What puts the credentials into a request; requests would look for others without it."""
    headers = credentials(url)

    def authorize(request: Any) -> Any:
        request.headers.update(headers)
        return request

    return authorize


def credentials(url: str) -> dict[str, str]:
    """The headers that prove who asks, none for nobody.

    Raises:
      CommandError: credentials are named that cannot be used.
    """
    name, password = (os.environ.get(f"DICOMWEB_{one}", "") for one in ("USERNAME", "PASSWORD"))
    if name or password:
        if not (name and password):
            raise CommandError("DICOMWEB_USERNAME and DICOMWEB_PASSWORD are set together")
        return _basic(name, password)
    if token := os.environ.get("DICOMWEB_TOKEN"):
        return _bearer("DICOMWEB_TOKEN", token)
    if path := os.environ.get("DICOMWEB_TOKEN_FILE"):
        try:
            with open(path, "rb") as stream:
                data = stream.read(_TOKEN_BYTES)
        except OSError as error:
            raise CommandError(f"DICOMWEB_TOKEN_FILE={path}: {error.strerror}") from error
        return _bearer("DICOMWEB_TOKEN_FILE", data.decode("latin-1"))
    from requests.utils import get_netrc_auth

    if found := get_netrc_auth(url):
        return _basic(*found)
    host = urllib.parse.urlsplit(url).hostname or ""
    return _google() if host.endswith(_GOOGLE) else {}


def held() -> str:
    """What was tried, and what could be, for whom access was denied."""
    for name in ("DICOMWEB_USERNAME", "DICOMWEB_TOKEN", "DICOMWEB_TOKEN_FILE"):
        if os.environ.get(name):
            return f"{name} is not accepted, or is not allowed this"
    return f"credentials are looked for in {HINT}"


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def _bearer(where: str, token: str) -> dict[str, str]:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise CommandError(f"{where}: holds no token (a line without blanks)")
    return {"Authorization": f"Bearer {token}"}


def _google() -> dict[str, str]:
    """Google's application default credentials, refreshed where they expired."""
    with _held.lock:
        try:
            import google.auth
            import google.auth.transport.requests
            from google.auth.exceptions import GoogleAuthError
        except ImportError as error:
            raise CommandError(
                "Google's credentials need more packages: pip install 'voxelbeam[gcp]'"
            ) from error
        try:
            if _held.google is None:
                _held.google, _ = google.auth.default(scopes=[_GOOGLE_SCOPE])
            if not _held.google.valid:
                _held.google.refresh(google.auth.transport.requests.Request())
        except GoogleAuthError as error:
            raise CommandError(
                "no Google credentials (GOOGLE_APPLICATION_CREDENTIALS, or "
                f"gcloud auth application-default login): {type(error).__name__}"
            ) from error
        headers = {"Authorization": f"Bearer {_held.google.token}"}
        # A person's own credentials are refused without a project that the requests count for.
        if project := getattr(_held.google, "quota_project_id", None):
            headers["x-goog-user-project"] = project
        return headers
