"""Instances stored in a DICOMweb service by STOW-RS (PS3.18 10.5), and what it says of each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from beam_jobs.common.contract_json import shown
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import session
from beam_jobs.common.files.dicomweb.address import parse_service

_FAILED, _REFERENCED, _REASON, _UID = "00081198", "00081199", "00081197", "00081155"
# PS3.18 I.2.2 and PS3.4 Table B.2-1.
_REASONS = {
    0x0110: "processing failure",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0xA700: "out of resources",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot be understood",
    0xC122: "transfer syntax not supported",
}
# "Duplicate SOP Instance" (PS3.7 C.5.8), and what Azure's service says instead.
_IS_THERE = (0x0111, 0xB00E)


def store(root: str, instances: Sequence[tuple[str, bytes]]) -> None:
    """Stores instances, in one request; one that is there already counts as stored.

    Args:
      root: `dicomweb+https://host/path`, a service.
      instances: (name for messages, bytes of a DICOM file) each.

    Raises:
      UsageError: `root` is no service's address.
      StoreError: the service stays away, denies access, or does not store one of them: which, and
        with which reason (PS3.18 10.5.3). The others are stored all the same.
    """
    service = parse_service(root)
    boundary = uuid.uuid4().hex
    while any(boundary.encode() in data for _, data in instances):
        boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(part for _, data in instances for part in (head, data, b"\r\n"))
    answer = session.post(
        service,
        "/studies",
        accept="application/dicom+json",
        kind=f'multipart/related; type="application/dicom"; boundary={boundary}',
        body=body + f"--{boundary}--\r\n".encode(),
    )
    said = _object(answer.content)
    refused = _items(said, _FAILED)
    failed = [_failure(one) for one in refused if _reason(one) not in _IS_THERE]
    there = len(refused) - len(failed)
    stored = len(_items(said, _REFERENCED)) + there
    accepted = answer.status_code < 400 or there > 0  # of nothing but those the answer is 409
    if accepted and not failed and (stored == len(instances) or not said):
        return
    names = ", ".join(name for name, _ in instances[:3]) + (", ..." if len(instances) > 3 else "")
    count = f"{len(instances) - stored} of {len(instances)} not stored" if said else "not stored"
    why = "; ".join(dict.fromkeys(failed)) or session.told(answer.status_code)
    raise StoreError(f"{service.address}: {names}: {count}: {why}")


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else {}


def _items(said: Any, tag: str) -> list[Any]:
    element = said.get(tag) if isinstance(said, dict) else None
    value = element.get("Value") if isinstance(element, dict) else None
    return value if isinstance(value, list) else []


def _reason(item: Any) -> Any:
    """The code of a failure, None where there is none."""
    return next(iter(_items(item, _REASON)), None)


def _failure(item: Any) -> str:
    code, uid = _reason(item), next(iter(_items(item, _UID)), None)
    if not isinstance(code, int):
        return "the service gives no reason"
    words = _REASONS.get(code) or _REASONS.get(code & 0xFF00) or _REASONS.get(code & 0xF000)
    about = f" for {shown(uid)}" if uid else ""
    return f"reason {code:04X}H{f' ({words})' if words else ''}{about}"
