"""Addresses of DICOMweb services as text, as far as every path is looked at. Asks nobody.

dicomweb+https://host/path?KEY=VALUE                                   a search
dicomweb+https://host/path/studies/UID/series/UID/instances/UID        what lies there
"""

from __future__ import annotations

import re

from beam_jobs.common.cli import UsageError

DICOMWEB = ("dicomweb+http", "dicomweb+https")
SERVICES = tuple(f"{scheme}://" for scheme in DICOMWEB)

_UID = "[0-9.]{1,64}"
_BELOW_SERVICE = re.compile(
    rf"/studies/{_UID}(/series/{_UID}(/instances(/(?:{_UID}|unlisted-[0-9]+))?)?)?/?\Z"
)
_LOCAL_TERM = re.compile(r"[?&][^=&]*=(?:@|%40)")


def service_of(path: str) -> str:
    """The DICOMweb service of a search in it, or of what lies in it.

    >>> service_of("dicomweb+https://host/web/studies/1.2/series/3?Modality=MR")
    'dicomweb+https://host/web'
    """
    return _BELOW_SERVICE.sub("", path.partition("?")[0].rstrip("/"))


def told(path: str) -> str:
    """A path as messages have it: without the terms of a search, which may be names of people.

    >>> told("dicomweb+https://host/web?PatientID=Doe")
    'dicomweb+https://host/web?...'
    """
    if not path.startswith(SERVICES):
        return path
    address, mark, _ = path.partition("?")
    return f"{address}?..." if mark else address


def names_local_file(root: str) -> bool:
    """Whether a search takes values from a file of this machine (`KEY=@FILE`)."""
    return root.startswith(SERVICES) and _LOCAL_TERM.search(root) is not None


def require_plain(address: str) -> None:
    """Refuses a service's address that would bring a secret into logs and tables; shows none.

    Raises:
      UsageError: a name or a password before the host, or a fragment.
    """
    scheme = address.partition("://")[0]
    if "@" in address.partition("?")[0]:
        raise UsageError(
            f"{scheme}://: an address with a name or a password in it (@) is not taken, for it "
            "would stand in logs; DICOMWEB_USERNAME and DICOMWEB_PASSWORD, or ~/.netrc, hold them"
        )
    if "#" in address:
        raise UsageError(f"{scheme}://: the address of a DICOMweb service has no # in it (%23)")
