"""Stores: with which credentials each would be opened, and places tried that somebody will use.

No secret is shown: variables and files are named, what they hold is not. Where a store's own answer
quotes an address, what stands in it of names and signatures is cut out.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import clients, settings
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import READ_ONLY, scheme_of
from trainer.machine.apart import Answer, Trial
from trainer.machine.findings import Fault, Row, Section, gib

PLACE_S = 10.0  # that a place may take to answer
SCHEMES = ("s3", "gs", "az")
_BUCKET = "bucket"  # of which nothing is requested
# Variables that say who one is or where a store is, without being of `settings.VARIABLES`: the
# client reads them by itself.
_OTHERS = {
    "s3": (
        *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ),
    "gs": ("CLOUDSDK_CONFIG",),
    "az": ("AZURE_STORAGE_SAS_KEY", "AZURE_SKIP_SIGNATURE", "AZURE_FEDERATED_TOKEN_FILE"),
}
_HOLDS_SECRET = re.compile(
    r"KEY|TOKEN|SECRET|CONNECTION_STRING|SAS|SIGNATURE|PASSWORD", re.IGNORECASE
)
# With one of these files are not read.
_BEFORE_FILES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"),
    "gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_SKIP_SIGNATURE", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (),
}
# What says where, or how often, and not who.
_WHERE = re.compile(
    r"ENDPOINT|REGION$|ATTEMPTS$|EMULATOR|^CLOUDSDK_CONFIG$|ACCOUNT(_NAME)?$|^~/.aws/config$"
)
_HOME = {
    "s3": ("~/.aws/credentials", "~/.aws/config"),
    "gs": ("~/.config/gcloud/application_default_credentials.json",),
    "az": (),
}


def trials() -> list[Trial]:
    """Certificates, then the credentials of each of `SCHEMES`."""
    function = f"{__name__}:credentials"
    each = [Trial(function=function, arguments={"scheme": scheme}) for scheme in SCHEMES]
    return [Trial(function=f"{__name__}:certificates"), *each]


def place_trials(places: Sequence[str]) -> list[Trial]:
    """A look at each of some places."""
    function = f"{__name__}:look"
    return [Trial(function=function, arguments={"place": place}) for place in places]


def certificates() -> str:
    """The variable that names the certificates of a private authority, "" for none.

    Raises:
      CommandError: they cannot be read.
    """
    settings.certificates()
    return next((name for name in settings.CERTIFICATES if os.environ.get(name)), "")


def credentials(scheme: str) -> dict[str, Any]:
    """What a store's client would be made with.

    Returns:
      "set": variables that are set and files that are there, by name; "problem": why no client can
      be made, "" where one can; "provider": whether credentials come through another library.
    """
    names = (*settings.VARIABLES[scheme], *_OTHERS[scheme])
    found = [name for name in names if os.environ.get(name)]
    if not any(map(os.environ.get, _BEFORE_FILES[scheme])):
        found += [name for name in _HOME[scheme] if os.path.isfile(os.path.expanduser(name))]
    try:
        options = settings.store_options(scheme)
        clients.client_of(f"{scheme}://{_BUCKET}")  # half a pair of keys, a key cut short
    except (CommandError, OSError) as error:
        said = without_secrets(str(error)).removeprefix(f"{scheme}://{_BUCKET}: ")
        return {"set": found, "problem": said, "provider": False}
    return {"set": found, "problem": "", "provider": "credential_provider" in options}


def look(place: str) -> str:
    """One page of what lies in a place, or whether a file is there.

    Returns:
      What was found.

    Raises:
      CommandError, OSError: it cannot be used; the message is one line without secrets.
    """
    clients.hurry(PLACE_S)
    begin = time.monotonic()
    try:
        scheme = scheme_of(place)
        if not scheme:
            return _look_at_disk(place)
        if files.is_dicomweb(place):
            return "series there" if files.holds_files(place) else "answers, and finds no series"
        if scheme in READ_ONLY:
            return f"{files.size(place)} bytes"
        return "objects there" if files.is_dir(place) else "can be listed, and is empty"
    except (CommandError, UsageError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if time.monotonic() - begin >= PLACE_S - 1:
            raise CommandError(f"no answer within {PLACE_S:g} s") from None
        shown = without_secrets(place)
        raise CommandError(without_secrets(said).removeprefix(f"{shown}: ")) from None


def _look_at_disk(place: str) -> str:
    writable = "can be written to" if os.access(place, os.W_OK) else "can be read only"
    if os.path.isdir(place):
        with os.scandir(place) as entries:
            any_there = next(entries, None) is not None
        free = gib(shutil.disk_usage(place).free)
        return f"{'files there' if any_there else 'empty'}, {writable}, {free} free"
    with open(place, "rb") as stream:
        stream.read(1)
    return f"a file of {os.path.getsize(place)} bytes, {writable}"


def without_secrets(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """A text without names and passwords in addresses, signatures, and what variables keep secret.

    >>> without_secrets("https://me:pw@host/x?sig=abc: refused", {})
    'https://...@host/x?...: refused'
    """
    text = re.sub(r"(\w+://)[^/\s]+@", r"\1...@", text)
    # Colons stand in the times of Azure's signatures, before the signature.
    text = re.sub(r"(\w+://[^\s?]*)\?[^\s)\"']*?(?=:?(?:[\s)\"']|$))", r"\1?...", text)
    secrets = set()
    for name, value in environ.items():
        if _HOLDS_SECRET.search(name) and not name.endswith("_FILE"):
            secrets.add(value)
            parts = (part.partition("=") for part in re.split("[;&?]", value))
            held = {said for key, _, said in parts if key == "sig" or _HOLDS_SECRET.search(key)}
            secrets |= held | {urllib.parse.unquote(said) for said in held}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, "...")
    return text


def section(answers: Sequence[Answer], client: str, *, aws: bool) -> Section:
    """The section of the stores.

    Args:
      answers: of `trials`.
      client: the version of the package that speaks to all of them, "" without one.
      aws: whether boto3 is there.
    """
    trusted, *each = answers
    text = f"obstore {client}" if client else "none: obstore does not import"
    if trusted.value:
        text += f", with the certificates of {trusted.value}"
    rows, faults = [Row(name="client", text=text, mark="" if client else "fault")], []
    if trusted.problem:
        rows.append(Row(name="trusts", text=trusted.problem, mark="fault"))
        faults.append(
            Fault(
                what=f"certificates: {trusted.problem}",
                stops="every input and output in a store",
                mend="name the file of your authority's certificates, or unset the variable",
            )
        )
    for scheme, answer in zip(SCHEMES, each, strict=True):
        found = answer.value or {"set": [], "problem": answer.problem, "provider": False}
        names = ", ".join(found["set"])
        variables = [
            name for name in found["set"] if not (name.startswith("~") or _WHERE.search(name))
        ]
        problem = found["problem"]
        if problem and names:
            rows.append(Row(name=f"{scheme}://", text=f"{names}: {problem}", mark="fault"))
            faults.append(
                Fault(
                    what=f"{scheme}:// cannot be opened: {problem}",
                    stops=f"every input and output in {scheme}://",
                    mend="what the message says"
                    + (f", or unset {', '.join(variables)}" if variables else ""),
                )
            )
        elif names:
            unread = [name for name in found["set"] if name.startswith("~/.aws")]
            if scheme == "s3" and unread and not aws and not found["provider"]:
                text = f"{names}; files are not read without boto3 (pip install 'voxelbeam[aws]')"
                rows.append(Row(name="s3://", text=text, mark="note"))
            else:
                rows.append(_named(scheme, found["set"], provider=found["provider"]))
        else:
            rows.append(Row(name=f"{scheme}://", text=_NONE[scheme], mark="note"))
    return Section(title="stores", rows=tuple(rows), faults=tuple(faults))


def _named(scheme: str, names: Sequence[str], *, provider: bool) -> Row:
    """The row of a store of which some variables or files are there."""
    where = [name for name in names if _WHERE.search(name)]
    who = [name for name in names if name not in where]
    if not who and provider:  # of a profile in AWS's file of settings
        who, where = where, []
    also = f"; set: {', '.join(where)}" if where else ""
    if "STORAGE_EMULATOR_HOST" in where:
        return Row(name="gs://", text=f"an emulator, by {', '.join(where)}")
    if who:
        return Row(name=f"{scheme}://", text=f"credentials by {', '.join(who)}{also}")
    none = _NONE[scheme] if scheme != "az" else "no key in variables: a machine's own identity"
    return Row(name=f"{scheme}://", text=f"{none}{also}", mark="note")


_NONE = {
    "s3": "no credentials in variables or files: a machine's own role, if it has one",
    "gs": "no credentials in variables or files: a machine's own account, if it has one",
    "az": "no account named: AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING says whose",
}


def section_of_places(
    places: Sequence[str], answers: Sequence[Answer], already: Sequence[Fault] = ()
) -> Section:
    """The section of the places that were named.

    Args:
      places: as they were.
      answers: of `place_trials`.
      already: of another section, which are not repeated.
    """
    rows, faults = [], []
    for place, answer in zip(places, answers, strict=True):
        shown = without_secrets(place)
        if answer.problem:
            rows.append(Row(name="", text=f"{shown}: cannot be used", mark="fault"))
            if any(fault.what.endswith(f": {answer.problem}") for fault in already):
                continue
            faults.append(
                Fault(
                    what=f"{shown}: {answer.problem}",
                    stops="whatever is to read it or to write there",
                    mend="what the message says; credentials and endpoints: docs/how-to/"
                    + ("dicomweb.md" if files.is_dicomweb(place) else "files.md")
                    if "://" in place
                    else "name a place that is there and that you may read",
                )
            )
        else:
            rows.append(Row(name="", text=f"{shown}: {answer.value}"))
    return Section(title="places", rows=tuple(rows), faults=tuple(faults))
