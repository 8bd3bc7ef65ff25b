"""Whose credentials a request bears, where they never stand, and what is not waited for."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import credentials, service, stow
from tests.beam_jobs.common.dicomweb.pacs import SERIES, Answer, Asked, Cut, Pacs, holdings, running
from tests.beam_jobs.common.dicomweb.test_fetch import WHOLE, every, read_all, spooled

CANARY = "kanarienvogel"
BASIC = "Basic " + base64.b64encode(f"me:{CANARY}".encode()).decode()
BEARER = f"Bearer {CANARY}"


def guarded(pacs: Pacs, header: str) -> None:
    """Lets nobody in but who bears a header."""
    pacs.fault = lambda asked: None if asked.headers.get("Authorization") == header else Answer(401)


def give(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Sets credentials of a kind in the environment; the header that they make."""
    if kind == "basic":
        monkeypatch.setenv("DICOMWEB_USERNAME", "me")
        monkeypatch.setenv("DICOMWEB_PASSWORD", CANARY)
        return BASIC
    if kind == "token":
        monkeypatch.setenv("DICOMWEB_TOKEN", CANARY)
        return BEARER
    if kind == "token file":
        (tmp_path / "token").write_text(f"{CANARY}\n")
        monkeypatch.setenv("DICOMWEB_TOKEN_FILE", str(tmp_path / "token"))
        return BEARER
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\nlogin me\npassword {CANARY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return BASIC


KINDS = ("basic", "token", "token file", "netrc")


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_open_the_service_and_stand_nowhere(
    pacs: Pacs,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spool: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded(pacs, give(kind, monkeypatch, tmp_path))
    assert len(read_all(f"{pacs.root}?StudyInstanceUID=1.2.1")) == 5
    told = "".join([*capfd.readouterr(), caplog.text, spooled(spool)])
    for secret in (CANARY, BASIC.split()[1]):
        assert secret not in told
    assert "StudyInstanceUID=1.2.1" not in told


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["", *KINDS])
def test_denied_access_is_one_line_that_names_what_to_set(
    pacs: Pacs, status: int, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind:
        give(kind, monkeypatch, tmp_path)
    pacs.fault = lambda asked: Answer(status, CANARY.encode())
    with pytest.raises(StoreError, match=rf"access denied \({status}\).*DICOMWEB_") as error:
        files.listing(pacs.root)
    assert len(pacs.requests) == 1
    chain: BaseException | None = error.value
    while chain is not None:
        assert CANARY not in str(chain)
        assert BASIC.split()[1] not in str(chain)
        assert "\n" not in str(chain)
        chain = chain.__cause__ or chain.__context__


def test_a_token_file_is_read_anew_for_each_request(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("DICOMWEB_TOKEN_FILE", str(token))

    def expiring(asked: Asked) -> Answer | None:
        """Every token is good for one request; then somebody writes the next."""
        good = asked.headers.get("Authorization") == f"Bearer {token.read_text()}"
        token.write_text(f"token-{len(pacs.requests)}")
        return None if good else Answer(401)

    pacs.fault = expiring
    assert len(read_all(f"{pacs.root}/studies/1.2.1/series/{SERIES}")) == 5


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"DICOMWEB_USERNAME": "me"}, "DICOMWEB_PASSWORD"),
        ({"DICOMWEB_PASSWORD": CANARY}, "DICOMWEB_USERNAME"),
        ({"DICOMWEB_TOKEN": f"{CANARY}\nX-Header: 1"}, "DICOMWEB_TOKEN"),
        ({"DICOMWEB_TOKEN": f"{CANARY}\u00e9"}, "DICOMWEB_TOKEN"),
        ({"DICOMWEB_TOKEN_FILE": "/nowhere/token"}, "DICOMWEB_TOKEN_FILE=/nowhere/token"),
        ({"DICOMWEB_TOKEN_FILE": os.devnull}, "DICOMWEB_TOKEN_FILE"),
    ],
)
def test_credentials_that_cannot_be_used_are_named_and_not_shown(
    pacs: Pacs, variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError, match=re.escape(named)) as error:
        files.listing(pacs.root)
    assert CANARY not in str(error.value)
    assert not pacs.requests


def test_names_and_passwords_may_have_any_letters(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMWEB_USERNAME", "Jörg")
    monkeypatch.setenv("DICOMWEB_PASSWORD", "p:ä ß")
    guarded(pacs, "Basic " + base64.b64encode("Jörg:p:ä ß".encode()).decode())
    assert files.holds_files(pacs.root)


def test_no_credentials_go_to_another_host(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMWEB_TOKEN", CANARY)
    with running(Pacs(holdings())) as other:
        target = f"http://127.0.0.1:{other.port}/web/studies?secret={CANARY}"
        pacs.fault = lambda asked: Answer(302, headers={"Location": target})
        with pytest.raises(StoreError, match="sends requests on to") as error:
            files.listing(pacs.root)
        assert not other.requests
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("target", ["http://[bad", "//h:x/", "file:///etc/passwd", "x:\0y"])
def test_a_redirect_to_no_address_is_one_line(pacs: Pacs, target: str) -> None:
    pacs.fault = lambda asked: Answer(302, headers={"Location": target})
    with pytest.raises(StoreError, match="sends requests on to"):
        files.listing(pacs.root)


def test_a_redirect_within_the_host_is_followed_and_a_circle_is_not(pacs: Pacs) -> None:
    moved = {"Location": f"/web/studies/1.2.1/series/{SERIES}"}
    pacs.fault = lambda asked: (
        Answer(307, headers=moved) if asked.within == f"/old/series/{SERIES}" else None
    )
    assert len(read_all(pacs.root)) == 5
    pacs.fault = lambda asked: Answer(301, headers={"Location": asked.within})
    with pytest.raises(StoreError, match="in a circle"):
        files.listing(pacs.root)


def test_a_service_that_does_not_answer_in_time_is_told(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = files.listing(pacs.root).entries
    monkeypatch.setattr(clients, "REQUEST_S", 0.05)
    pacs.pause_s = 0.1
    with pytest.raises(StoreError, match="timed out") as error:
        files.read(found[0].path)
    assert str(error.value).startswith(pacs.root)


def test_a_host_that_is_none_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "RETRY_S", 60.0)
    with pytest.raises(StoreError, match="no such host"):
        files.holds_files("dicomweb+http://no-such-host.invalid/web?PatientID=Doe")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>no service</html>", {"Content-Type": "text/html"}),
        Answer(200, b'{"a": 1}'),
        Answer(200, b"[1, 2]"),
        Answer(404),
        Answer(406),
    ],
)
def test_what_is_no_service_is_told_in_one_line(pacs: Pacs, answer: Answer) -> None:
    pacs.fault = lambda asked: answer
    with pytest.raises(StoreError) as error:
        files.listing(f"{pacs.root}?PatientID=Doe")
    assert "Doe" not in str(error.value)
    assert "html>" not in str(error.value)


def test_waiting_is_told_with_the_service_and_without_terms(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(clients, "RETRY_S", 60.0)
    busy = [Answer(503, headers={"Retry-After": "7"})]
    pacs.fault = lambda asked: busy.pop() if busy else None
    assert files.holds_files(f"{pacs.root}?StudyInstanceUID=1.2.1")
    told = capfd.readouterr().err
    assert (
        told == f"{pacs.root}: the service answered 503 (Service Unavailable); tried again in 7 s\n"
    )
    assert slept == [7.0]


def test_stored_instances_are_sent_as_they_are(pacs: Pacs) -> None:
    stow.store(pacs.root, [("a", b"one"), ("b", b"two")])
    (body,) = pacs.stored
    assert body.count(b"Content-Type: application/dicom\r\n\r\n") == 2
    assert b"\r\n\r\none\r\n--" in body


REFUSED = (
    b'{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]},'
    b' "00081197": {"vr": "US", "Value": [43264]}}]},'
    b' "00081199": {"vr": "SQ", "Value": [{}]}}'
)


@pytest.mark.parametrize("status", [200, 202, 400, 409])
def test_what_a_service_does_not_store_is_named_with_its_reason(pacs: Pacs, status: int) -> None:
    pacs.fault = lambda asked: Answer(status, REFUSED)
    with pytest.raises(StoreError, match=r"1 of 2 not stored: reason A900H .*'1\.2\.3'"):
        stow.store(pacs.root, [("a", b"one"), ("b", b"two")])


@pytest.mark.parametrize("answer", [Answer(400), Answer(413, b"<html>"), Answer(500, b"x")])
def test_a_refusal_without_words_is_told_by_its_status(pacs: Pacs, answer: Answer) -> None:
    pacs.fault = lambda asked: answer
    with pytest.raises(StoreError, match=f"a: not stored: the service answered {answer.status}"):
        stow.store(pacs.root, [("a", b"one")])


class Google:
    """Google's application default credentials: good for one token, then expired."""

    valid = False
    token = ""
    quota_project_id = ""

    def refresh(self, request: object) -> None:
        self.token, self.valid = f"{self.token}{CANARY}", True


def test_googles_credentials_are_taken_for_its_hosts_alone_and_refreshed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auth = pytest.importorskip("google.auth")
    google = Google()
    monkeypatch.setattr(auth, "default", lambda scopes: (google, "project"))
    monkeypatch.setattr(credentials, "_held", credentials._Google())
    address = "https://healthcare.googleapis.com/v1/projects/p/dicomWeb/studies"
    assert credentials.credentials(address) == {"Authorization": f"Bearer {CANARY}"}
    assert credentials.credentials(address) == {"Authorization": f"Bearer {CANARY}"}
    google.valid, google.quota_project_id = False, "mine"
    assert credentials.credentials(address) == {
        "Authorization": f"Bearer {CANARY}{CANARY}",
        "x-goog-user-project": "mine",
    }
    assert credentials.credentials("https://googleapis.com.example/dicomWeb") == {}
    monkeypatch.setenv("DICOMWEB_TOKEN", "mine")
    assert credentials.credentials(address) == {"Authorization": "Bearer mine"}


def test_certificates_that_are_none_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "RETRY_S", 60.0)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/authority.pem")
    with pytest.raises(StoreError, match="REQUESTS_CA_BUNDLE"):
        files.holds_files("dicomweb+https://127.0.0.1:1/web")


def test_an_error_waits_for_no_request_that_is_under_way(pacs: Pacs) -> None:
    pacs.holdings = holdings(1, series=20)
    done = threading.Event()

    def fault(asked: Asked) -> Answer | None:
        if asked.within.endswith("1.2.1.1/metadata"):
            return Answer(403)
        if asked.within.endswith("/metadata"):
            done.wait(20)
        return None

    pacs.fault = fault
    start = time.monotonic()
    with pytest.raises(StoreError, match="access denied"):
        files.listing(f"{pacs.root}")
    done.set()
    assert time.monotonic() - start < 10


def _failed(*codes: int) -> bytes:
    items = [{"00081197": {"vr": "US", "Value": [code]}} for code in codes]
    return json.dumps({"00081198": {"vr": "SQ", "Value": items}}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b'{"00081199": {"vr": "SQ", "Value": [{}]}}'),
        Answer(409, _failed(0x0111)),
        Answer(409, _failed(0xB00E)),
    ],
)
def test_what_is_there_already_counts_as_stored(pacs: Pacs, answer: Answer) -> None:
    pacs.fault = lambda asked: answer
    stow.store(pacs.root, [("a", b"one")])


def test_what_is_there_already_hides_no_other_failure(pacs: Pacs) -> None:
    pacs.fault = lambda asked: Answer(409, _failed(0x0111, 0xA700))
    with pytest.raises(StoreError, match="1 of 2 not stored: reason A700H"):
        stow.store(pacs.root, [("a", b"one"), ("b", b"two")])


_FETCH = """
    import sys
    from beam_jobs.common.files import interface as files
    found = files.listing(sys.argv[1]).entries
    print("listed", flush=True)
    with files.fetched_ahead(found, 64):
        print(sum(len(files.read(entry.path)) for entry in found))
"""


def start_fetch(pacs: Pacs) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_FETCH), pacs.root],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_fetch_leaves_what_came_and_the_next_goes_on_from_there(pacs: Pacs) -> None:
    pacs.holdings = holdings(40, size=100_000)
    pacs.pause_s = 0.02
    process = start_fetch(pacs)
    while not pacs.asked(WHOLE):
        assert process.poll() is None
    found = files.listing(pacs.root).entries
    journal = Path(service.spool_directory())
    while sum(path.read_text().count("crc32c") for path in journal.rglob("parts.jsonl")) < 20:
        assert process.poll() is None
    process.kill()
    process.communicate()
    pacs.pause_s = 0.0
    pacs.fault = every(Cut(0))
    pacs.requests.clear()
    data = [files.read(entry.path) for entry in found]
    everything = pacs.holdings["1.2.1"][SERIES]
    assert data == [everything[files.name_of(entry.path)] for entry in found]
    assert 0 < sum("/instances/" in asked.within for asked in pacs.requests) <= 20


@pytest.mark.slow
def test_two_processes_fetch_a_series_once(pacs: Pacs) -> None:
    pacs.pause_s = 0.2
    processes = [start_fetch(pacs) for _ in range(2)]
    answers = [process.communicate()[0].split()[-1] for process in processes]
    assert set(answers) == {str(sum(map(len, pacs.holdings["1.2.1"][SERIES].values())))}
    assert pacs.asked(WHOLE) == 1


_PEAK = """
    import sys
    from beam_jobs.common.files import interface as files
    def peak():
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
    (found,) = files.listing(sys.argv[1]).entries
    before = peak()
    size = files.size(found.path) >> 20
    print(size, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_length", [True, False])
def test_a_long_instance_takes_no_memory(pacs: Pacs, with_length: bool) -> None:
    pacs.holdings = holdings(1, size=200 << 20)
    pacs.with_length = with_length
    command = [sys.executable, "-c", textwrap.dedent(_PEAK), pacs.root]
    size, grown = map(
        int, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()
    )
    assert size == 200
    assert grown < 80  # MB: 32 of a body received ahead, and what requests is
