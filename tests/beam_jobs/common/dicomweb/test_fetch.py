"""Series brought into the spool, whatever the server does on the way."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import service, session
from beam_jobs.common.files.dicomweb.address import parse_file
from beam_jobs.common.files.dicomweb.journal import Journal
from beam_jobs.common.files.dicomweb.spool import Spooled
from tests.beam_jobs.common.dicomweb.pacs import (
    SERIES,
    STUDY,
    Answer,
    Asked,
    Cut,
    Pacs,
    file_of,
    holdings,
    running,
)

Fault = Callable[[Asked], Answer | Cut | None]
WHOLE = f"/series/{SERIES}"


def read_all(root: str) -> dict[str, bytes]:
    """SOP Instance UID → what is read of each instance that a search finds."""
    found = files.listing(root).entries
    with files.fetched_ahead(found, 64):
        return {files.name_of(entry.path): files.read(entry.path) for entry in found}


def singles(pacs: Pacs) -> int:
    return sum("/instances/" in asked.within for asked in pacs.requests)


def once(fault: Answer | Cut, end: str = WHOLE) -> Fault:
    """A fault of the first request whose path ends so."""
    left = [fault]
    return lambda asked: left.pop() if left and asked.within.endswith(end) else None


def every(fault: Answer | Cut, end: str = WHOLE) -> Fault:
    return lambda asked: fault if asked.within.endswith(end) else None


def spooled(spool: Path) -> str:
    """All that lies in the spool, names and contents."""
    return "".join(
        f"{path}\n{path.read_bytes().decode('latin-1')}"
        for path in sorted(spool.rglob("*"))
        if path.is_file()
    )


def test_a_series_comes_by_one_request_and_is_read_as_it_lies_there(pacs: Pacs) -> None:
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert pacs.asked(WHOLE) == 1
    assert singles(pacs) == 0
    (asked,) = (asked for asked in pacs.requests if asked.within.endswith(WHOLE))
    assert "transfer-syntax=*" in asked.headers["Accept"]
    assert asked.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "manner",
    [
        {"with_length": False},
        {"chunked": True},
        {"chunked": True, "with_length": False},
        {"boundary": b"a boundary: with=all/sorts?", "quoted": True},
        {"preamble": b"\n"},
        {"preamble": b"this is a multipart body\r\n", "with_length": False},
        {"arrange": lambda parts: parts[::-1]},
        {"tagged": True},
    ],
)
def test_services_differ_in_how_they_send_a_series(pacs: Pacs, manner: dict[str, object]) -> None:
    for name, value in manner.items():
        setattr(pacs, name, value)
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert (pacs.asked(WHOLE), singles(pacs)) == (1, 0)


def test_a_boundary_within_pixels_is_data(pacs: Pacs) -> None:
    inside = b"\r\n--a-boundary\r\nContent-Type: application/dicom\r\n\r\nno part\r\n--a-boundary--"
    pacs.holdings[STUDY][SERIES]["1.2.1.1.9"] = file_of("1.2.1.1.9", inside=inside)
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert pacs.asked(WHOLE) == 1


def test_the_spool_is_read_again_without_a_request_for_instances(pacs: Pacs) -> None:
    first = read_all(pacs.root)
    before = pacs.asked(WHOLE)
    assert read_all(pacs.root) == first
    assert pacs.asked(WHOLE) == before


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("after", [0, 50, 3239, 3240, 5000, 9000])
def test_a_cut_series_is_requested_again_until_it_is_whole(
    pacs: Pacs, after: int, chunked: bool
) -> None:
    pacs.chunked = chunked
    pacs.fault = once(Cut(after))
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert pacs.asked(WHOLE) == 2


def test_a_cut_between_two_parts_looks_whole_to_http_and_is_seen(pacs: Pacs) -> None:
    pacs.chunked = True
    sent: list[bytes] = []
    pacs.arrange = lambda parts: sent.extend(parts) or parts  # type: ignore[func-returns-value]
    data = pacs.holdings[STUDY][SERIES][f"{SERIES}.1"]
    head = len(b"--a-boundary\r\nContent-Type: application/dicom\r\nContent-Length: 3188\r\n\r\n")
    pacs.fault = once(Cut(2 * (head + len(data) + 2)))
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert pacs.asked(WHOLE) == 2


def test_what_is_cut_every_time_comes_one_by_one(pacs: Pacs) -> None:
    pacs.fault = every(Cut(8000))
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert singles(pacs) == 3  # two came before the cut


def test_one_unreadable_instance_is_refused_and_the_others_are_read(pacs: Pacs) -> None:
    lost = f"{SERIES}.3"
    pacs.broken = {lost}
    found = files.listing(pacs.root).entries
    # The service says how many there are, and of one of them no UID.
    assert [files.name_of(entry.path) for entry in found] == [
        *(f"{SERIES}.{n}" for n in (1, 2, 4, 5)),
        "unlisted-1",
    ]
    for entry in found[:-1]:
        name = files.name_of(entry.path)
        assert files.read(entry.path) == pacs.holdings[STUDY][SERIES][name]
    with pytest.raises(OSError, match="counts it"):
        files.read(found[-1].path)


def test_an_instance_that_breaks_after_the_listing_is_refused_with_the_status(pacs: Pacs) -> None:
    found = files.listing(pacs.root).entries
    pacs.broken = {f"{SERIES}.3"}
    for entry in found:
        if entry.path.endswith(".3"):
            with pytest.raises(OSError, match="answered 500") as error:
                files.read(entry.path)
            assert not isinstance(error.value, StoreError)
        else:
            files.read(entry.path)
    # It is asked for again by the next listing, and by nobody before.
    asked = len(pacs.requests)
    with pytest.raises(OSError, match="answered 500"):
        files.read(found[2].path)
    assert len(pacs.requests) == asked
    pacs.broken = set()
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert len(pacs.requests) > asked


def test_a_service_that_answers_nothing_is_no_fault_of_the_instances(pacs: Pacs) -> None:
    found = files.listing(pacs.root).entries
    pacs.fault = lambda asked: Answer(500)
    with pytest.raises(StoreError, match="answered 500"):
        files.read(found[0].path)
    pacs.fault = lambda asked: None
    assert len(read_all(pacs.root)) == 5


def test_an_instance_that_left_since_the_listing_is_refused(pacs: Pacs) -> None:
    found = files.listing(pacs.root).entries
    del pacs.holdings[STUDY][SERIES][f"{SERIES}.2"]
    with pytest.raises(OSError, match="404"):
        files.read(found[1].path)
    assert files.read(found[0].path)


def test_a_series_without_one_of_its_instances_is_not_whole(pacs: Pacs) -> None:
    pacs.arrange = lambda parts: parts[:-1] if len(parts) > 1 else parts
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert singles(pacs) == 1


def test_an_instance_that_comes_twice_is_one(pacs: Pacs) -> None:
    pacs.arrange = lambda parts: parts + parts[:1] if len(parts) > 1 else parts
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert singles(pacs) == 0


def test_of_two_files_with_one_uid_neither_is_believed(pacs: Pacs) -> None:
    other = file_of(f"{SERIES}.1", 100)
    pacs.arrange = lambda parts: [*parts, other, parts[0]] if len(parts) > 1 else parts
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert pacs.asked(f"/instances/{SERIES}.1") == 1


def test_a_dropped_instance_is_not_believed_by_who_goes_on(pacs: Pacs) -> None:
    series = Spooled(parse_file(f"{pacs.root}/studies/1.2/series/1.3/instances/1.4")[0])
    with series.locked():
        journal = Journal(series, 7)
        for uid, data in (("1.4", b"dropped"), ("1.5", b"kept")):
            arriving = journal.begin()
            arriving.write(memoryview(data))
            journal.keep(uid, arriving.kept)
        journal.drop("1.4")
        journal.close()
        again = Journal(series, 7)
        again.close()
    assert list(again.kept) == ["1.5"]


@pytest.mark.parametrize("uid", ["../../../../../../etc/x", "..", ".", "", "/etc/x", "1/2", "a"])
def test_a_hostile_uid_names_no_file(pacs: Pacs, tmp_path: Path, uid: str) -> None:
    outside = {path for path in tmp_path.rglob("*") if "spool" not in path.parts}
    pacs.holdings[STUDY][SERIES][uid] = file_of(uid or "x")
    found = files.listing(pacs.root).entries
    assert [files.name_of(entry.path) for entry in found][-1] == "unlisted-1"
    assert len(found) == 6
    for entry in found[:-1]:
        files.read(entry.path)
    assert {path for path in tmp_path.rglob("*") if "spool" not in path.parts} == outside


@pytest.mark.parametrize("uid", ["../x", "..", "1/2"])
def test_a_study_or_series_with_a_hostile_uid_is_left_out_and_counted(pacs: Pacs, uid: str) -> None:
    pacs.holdings[STUDY][uid] = {"1.2.9": file_of("1.2.9")}
    pacs.holdings[uid] = {"1.3": {"1.3.1": file_of("1.3.1")}}
    found = files.listing(pacs.root)
    assert len(found.entries) == 5
    assert dict(found.left_out) == {"series without a valid UID": 2}


def test_a_service_that_is_away_for_a_while_is_waited_for(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "RETRY_S", 5.0)
    busy: list[Answer | Cut] = [
        Answer(503),
        Answer(429, headers={"Retry-After": "0"}),
        Answer(502),
        Cut(0),
    ]
    pacs.fault = lambda asked: busy.pop() if busy else None
    assert len(read_all(pacs.root)) == 5
    assert not busy


def test_a_service_that_goes_midway_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "RETRY_S", 10.0)
    pacs = Pacs(holdings())
    with running(pacs):
        found = files.listing(pacs.root).entries
        pacs.fault = every(Cut(8000))
    back = threading.Event()

    def return_later() -> None:
        back.wait(10)
        pacs.fault = lambda asked: None
        with running(pacs):
            back.clear()
            back.wait(10)

    thread = threading.Thread(target=return_later)
    thread.start()
    threading.Timer(0.1, back.set).start()
    try:
        data = [files.read(entry.path) for entry in found]
    finally:
        back.set()
        thread.join()
    assert data == list(pacs.holdings[STUDY][SERIES].values())


def test_a_service_that_stays_away_ends_with_one_line_and_what_came_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pacs = Pacs(holdings())
    with running(pacs):
        found = files.listing(pacs.root).entries
        monkeypatch.setattr(session, "FIRST_PAUSE_S", 10.0)

        def leave(asked: Asked) -> Cut | Answer:
            return Cut(8000) if asked.within.endswith(WHOLE) else Answer(503)

        pacs.fault = leave
        with pytest.raises(StoreError, match="the same command goes on from here") as error:
            files.read(found[0].path)
        assert "\n" not in str(error.value)
        pacs.fault = lambda asked: None
        pacs.requests.clear()
        assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    sent = [asked.within for asked in pacs.requests if asked.within.startswith("/studies/")]
    assert any(within.endswith(WHOLE) for within in sent)


def test_a_series_that_changed_is_fetched_again_and_no_other(pacs: Pacs) -> None:
    pacs.holdings = holdings(series=2)
    read_all(pacs.root)
    changed = f"{STUDY}.2"
    pacs.holdings[STUDY][changed][f"{changed}.1"] = file_of(f"{changed}.1", 50)
    pacs.requests.clear()
    everything = pacs.holdings[STUDY][SERIES] | pacs.holdings[STUDY][changed]
    assert read_all(pacs.root) == everything
    assert pacs.asked(f"/series/{changed}") == 1
    assert pacs.asked(WHOLE) == 0


def test_a_content_has_one_stamp_whenever_it_is_fetched(pacs: Pacs, spool: Path) -> None:
    stamps = []
    for _ in range(2):
        found = files.listing(pacs.root).entries
        stamps.append([files.stat(entry.path).modified for entry in found])  # type: ignore[union-attr]
        service.forget(pacs.root)
    assert stamps[0] == stamps[1]
    assert len(set(stamps[0])) == 5
    assert all(0 < stamp < 1 << 56 for stamp in stamps[0])


def test_refetch_forgets_the_series_that_are_found(pacs: Pacs) -> None:
    pacs.holdings = holdings(series=2)
    read_all(pacs.root)
    assert service.forget(f"{pacs.root}?SeriesInstanceUID={SERIES}") == 1
    assert service.forget(f"{pacs.root}?SeriesInstanceUID={SERIES}") == 0
    pacs.requests.clear()
    read_all(pacs.root)
    assert pacs.asked(WHOLE) == 1
    assert pacs.asked(f"/series/{STUDY}.2") == 0


def test_a_machine_that_listed_nothing_asks_the_service_itself(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = files.listing(pacs.root).entries
    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "worker"))
    with files.fetched_ahead(found, 64):
        assert files.read(found[0].path) == pacs.holdings[STUDY][SERIES][f"{SERIES}.1"]
    # It has them from another day, and the listing of this one says otherwise.
    pacs.holdings[STUDY][SERIES][f"{SERIES}.1"] = file_of(f"{SERIES}.1", 77)
    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "spool"))
    found = files.listing(pacs.root).entries
    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "worker"))
    pacs.requests.clear()
    with files.fetched_ahead(found, 64):
        data = [files.read(entry.path) for entry in found]
    assert data == list(pacs.holdings[STUDY][SERIES].values())
    assert pacs.asked(WHOLE) == 1
    # Later passes know what was read by its content.
    stamps = [files.stat(entry.path).modified for entry in found]  # type: ignore[union-attr]
    known = [entry._replace(stamp=stamp) for entry, stamp in zip(found, stamps, strict=True)]
    with files.fetched_ahead(known, 64):
        assert [files.read(entry.path) for entry in known] == data
    assert pacs.asked(WHOLE) == 1


def test_several_threads_fetch_a_series_once(pacs: Pacs) -> None:
    found = files.listing(pacs.root).entries
    pacs.pause_s = 0.01
    data: list[bytes] = []
    threads = [
        threading.Thread(target=lambda path=entry.path: data.append(files.read(path)))
        for entry in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(data) == sorted(pacs.holdings[STUDY][SERIES].values())
    assert pacs.asked(WHOLE) == 1


def test_a_full_disk_ends_the_command_and_makes_no_instance_unreadable(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    found = files.listing(pacs.root).entries
    real = os.pwrite

    def full(descriptor: int, data: bytes, at: int) -> int:
        if at > 5000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"No space left on device .*--spool") as error:
        files.read(found[0].path)
    assert str(spool) in str(error.value)
    monkeypatch.setattr(os, "pwrite", real)
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]


def test_the_spool_is_its_users_alone(pacs: Pacs, spool: Path) -> None:
    read_all(pacs.root)
    assert spool.stat().st_mode & 0o777 == 0o700
    below = [path for path in spool.rglob("*") if path.is_file()]
    assert below
    assert all(path.stat().st_mode & 0o077 == 0 for path in below if path.suffix == ".pack")


def test_a_directory_that_the_spool_is_put_into_keeps_its_mode(pacs: Pacs, spool: Path) -> None:
    spool.mkdir(exist_ok=True)
    spool.chmod(0o775)
    read_all(pacs.root)
    assert spool.stat().st_mode & 0o777 == 0o775
    (own,) = spool.iterdir()
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["pack", "marker", "gone", "short"])
def test_a_damaged_spool_is_filled_again(pacs: Pacs, spool: Path, damage: str) -> None:
    read_all(pacs.root)
    (pack,) = spool.rglob("*.pack")
    marker = pack.parent / "series.json"
    if damage == "pack":
        pack.unlink()
    elif damage == "short":
        os.truncate(pack, 4000)
    elif damage == "marker":
        marker.write_text('{"kept": {"1": ["x", -1, 2]}, "stamps": "abc"')
    else:
        marker.unlink()
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]


def test_bytes_that_turned_in_the_spool_are_fetched_again_before_their_pixels_are_read(
    pacs: Pacs, spool: Path
) -> None:
    data = read_all(pacs.root)
    found = files.listing(pacs.root).entries
    stamps = [files.stat(entry.path).modified for entry in found]  # type: ignore[union-attr]
    known = [entry._replace(stamp=stamp) for entry, stamp in zip(found, stamps, strict=True)]
    (pack,) = spool.rglob("*.pack")
    turned = bytearray(pack.read_bytes())
    turned[-5] ^= 1
    pack.write_bytes(turned)
    with files.fetched_ahead(known, 64):
        assert {entry.path: files.read(entry.path) for entry in known} == {
            entry.path: data[entry.path.rpartition("/")[2]] for entry in known
        }
    assert pacs.asked(WHOLE) == 2


def test_what_was_fetched_since_is_counted(pacs: Pacs) -> None:
    nothing = service.spooled(pacs.root)
    assert service.fetched_since(pacs.root, nothing) == (0, 0, 0)
    data = read_all(pacs.root)
    size = sum(map(len, data.values()))
    assert service.fetched_since(f"{pacs.root}?Modality=MR", nothing) == (1, 5, size)
    there = service.spooled(pacs.root)
    read_all(pacs.root)
    assert service.fetched_since(pacs.root, there) == (0, 0, 0)
    service.forget(pacs.root)
    read_all(pacs.root)
    assert service.fetched_since(pacs.root, there) == (1, 5, size)


def test_files_without_a_meta_group_are_known_by_their_data_set_or_the_request(pacs: Pacs) -> None:
    bare = b"\x08\x00\x18\x00UI\x0a\x00" + f"{SERIES}.7".encode() + b"\0" * 1 + bytes(500)
    strange = b"no DICOM at all"
    pacs.holdings[STUDY][SERIES] |= {f"{SERIES}.7": bare, f"{SERIES}.8": strange}
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]


def test_a_series_without_end_is_left(pacs: Pacs) -> None:
    strange = file_of("1.9.9", 20)
    pacs.arrange = lambda parts: [*([strange] * 5000), *parts] if len(parts) > 1 else parts
    assert read_all(pacs.root) == pacs.holdings[STUDY][SERIES]
    assert singles(pacs) == 5


def test_what_a_failed_fetch_had_begun_takes_no_room(
    pacs: Pacs, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = files.listing(pacs.root).entries
    size = len(pacs.holdings[STUDY][SERIES][f"{SERIES}.1"])
    pacs.fault = every(Cut(8000))
    monkeypatch.setattr(clients, "RETRIES", 0)
    with pytest.raises(StoreError):
        files.read(found[0].path)
    (pack,) = spool.rglob("*.pack")
    assert pack.stat().st_size == 2 * size
