"""What a search finds: pages, duplicates, what is no image, and answers that fit no term."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import service
from tests.beam_jobs.common.dicomweb.pacs import SERIES, STUDY, Answer, Asked, Cut, Pacs, holdings


def found(root: str) -> list[str]:
    return [
        entry.path.removeprefix(root.partition("?")[0]) for entry in files.listing(root).entries
    ]


def many(studies: int) -> dict[str, dict[str, dict[str, bytes]]]:
    one = holdings(1)[STUDY][SERIES]
    return {
        f"1.3.{n}": {f"1.3.{n}.1": {f"1.3.{n}.1.1": next(iter(one.values()))}}
        for n in range(studies)
    }


@pytest.mark.parametrize("warns", [False, True])
@pytest.mark.parametrize("page", [1, 3, 100])
def test_pages_are_turned_until_an_empty_one(pacs: Pacs, page: int, warns: bool) -> None:
    pacs.holdings, pacs.page, pacs.warns = many(7), page, warns
    assert len(found(pacs.root)) == 7


def test_what_is_found_is_sorted_whatever_the_order_of_the_answers(pacs: Pacs) -> None:
    pacs.holdings = dict(reversed(many(12).items()))
    assert found(pacs.root) == sorted(found(pacs.root))
    assert len(found(pacs.root)) == 12


def test_a_page_that_comes_again_and_again_is_no_endless_search(pacs: Pacs) -> None:
    pacs.holdings, pacs.page = many(3), 3
    usual = b'[{"0020000D": {"vr": "UI", "Value": ["1.3.1"]}}]'
    pacs.fault = lambda asked: (
        Answer(200, usual, {"Warning": "299 there is more"}) if asked.within == "/studies" else None
    )
    with pytest.raises(StoreError, match="the same page again"):
        files.listing(pacs.root)
    pacs.fault = lambda asked: Answer(200, usual) if asked.within == "/studies" else None
    assert len(found(pacs.root)) == 1


@pytest.mark.parametrize("empty", [Answer(204), Answer(200, b"[]"), Answer(200, b"")])
def test_nothing_found_is_an_empty_listing(pacs: Pacs, empty: Answer) -> None:
    pacs.fault = lambda asked: empty
    assert files.listing(pacs.root) == ([], {})
    assert not files.holds_files(pacs.root)


def test_a_search_for_one_series_finds_that(pacs: Pacs) -> None:
    pacs.holdings = holdings(2, series=3)
    wanted = f"{STUDY}.2"
    assert found(f"{pacs.root}?SeriesInstanceUID={wanted}") == [
        f"/studies/{STUDY}/series/{wanted}/instances/{wanted}.{n}" for n in (1, 2)
    ]
    assert files.holds_files(f"{pacs.root}?SeriesInstanceUID={wanted}")
    assert not files.holds_files(f"{pacs.root}?SeriesInstanceUID=1.9")


@pytest.mark.parametrize("all_series", [False, True])
def test_a_list_of_series_costs_a_request_each_where_the_service_lets_it(
    pacs: Pacs, tmp_path: Path, all_series: bool
) -> None:
    pacs.holdings, pacs.all_series = many(20), all_series
    (tmp_path / "ids").write_text("1.3.2.1\n1.3.7.1\n1.3.99.1\n")
    assert len(found(f"{pacs.root}?SeriesInstanceUID=@{tmp_path}/ids&Modality=MR")) == 2
    assert (len(pacs.requests) <= 5) is all_series


def test_series_of_no_images_are_left_out_and_counted(pacs: Pacs) -> None:
    pacs.holdings = holdings(2, series=4)
    pacs.modalities = {f"{STUDY}.1": "SR", f"{STUDY}.2": "SEG", f"{STUDY}.3": "SR"}
    listing = files.listing(pacs.root)
    assert dict(listing.left_out) == {"SR": 4, "SEG": 2}
    assert len(listing.entries) == 2
    pacs.modalities[f"{STUDY}.4"] = "PR"
    assert not files.holds_files(pacs.root)


def test_a_parametric_map_among_images_is_left_out(pacs: Pacs) -> None:
    kinds = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.30")
    answer = [
        {"00080018": {"Value": [f"{SERIES}.{n + 1}"]}, "00080016": {"Value": [kind]}}
        for n, kind in enumerate(kinds)
    ]
    pacs.holdings = holdings(2)
    pacs.fault = lambda asked: (
        Answer(200, json.dumps(answer).encode()) if asked.within.endswith("/metadata") else None
    )
    listing = files.listing(pacs.root)
    assert dict(listing.left_out) == {"PM": 1}
    assert [files.name_of(entry.path) for entry in listing.entries] == [f"{SERIES}.1"]


def test_an_empty_series_is_none(pacs: Pacs) -> None:
    pacs.counts = {SERIES: 0}
    assert found(pacs.root) == []


@pytest.mark.parametrize(
    ("term", "answer", "fits"),
    [
        ("Modality=CT", "MR", False),
        ("Modality=MR", "MR", True),
        ("SeriesDescription=t1*", "T1 w", True),
        ("SeriesDescription=t1?", "T1 w", False),
        ("SeriesDescription=%5Bt1%5D*", "[T1] w", True),
        ("SeriesNumber=3", "3", True),
        ("SeriesNumber=3", "33", False),
    ],
)
def test_a_service_that_does_not_go_by_a_term_is_found_out(
    pacs: Pacs, term: str, answer: str, fits: bool
) -> None:
    tags = {"Modality": "00080060", "SeriesDescription": "0008103E", "SeriesNumber": "00200011"}
    tag = tags[term.partition("=")[0]]
    one = {"0020000E": {"vr": "UI", "Value": [SERIES]}, tag: {"Value": [answer]}}
    series = json.dumps([one])
    pacs.fault = lambda asked: (
        Answer(200, series.encode() if asked.query["offset"] == "0" else b"[]")
        if asked.within.endswith("/series")
        else None
    )
    if fits:
        assert len(found(f"{pacs.root}?{term}")) == 5
    else:
        with pytest.raises(StoreError, match=f"does not search by {term.partition('=')[0]}"):
            files.listing(f"{pacs.root}?{term}")


def test_a_service_that_takes_an_escape_for_three_letters_finds_all_the_same(pacs: Pacs) -> None:
    pacs.holdings = many(2)
    named = {"1.3.0": {"Alphabetic": "DOE^JANE"}, "1.3.1": {"Alphabetic": "DOE-JANE"}}

    def search(asked: Asked) -> Answer | None:  # as Orthanc 1.10 does
        if asked.within != "/studies":
            return None
        found = [
            {"0020000D": {"Value": [uid]}, "00100010": {"Value": [name]}}
            for uid, name in named.items()
            if asked.query["PatientName"] == "Doe*Jane" and asked.query["offset"] == "0"
        ]
        return Answer(200, json.dumps(found).encode())

    pacs.fault = search
    assert found(f"{pacs.root}?PatientName=Doe%5EJane") == [
        "/studies/1.3.0/series/1.3.0.1/instances/1.3.0.1.1"
    ]
    assert found(f"{pacs.root}?PatientName=%5E%5E") == []
    assert [one.query.get("PatientName") for one in pacs.requests].count("*") == 0


def test_a_service_that_knows_no_star_finds_nothing_where_there_is_nothing(pacs: Pacs) -> None:
    pacs.fault = lambda asked: Answer(400 if "*" in asked.query.get("PatientID", "") else 204)
    assert found(f"{pacs.root}?PatientID=a%20b") == []
    with pytest.raises(StoreError, match=r"400 \(Bad Request\) to a search"):
        files.listing(f"{pacs.root}?PatientID=a*")


def test_a_cut_answer_is_requested_again(pacs: Pacs) -> None:
    left = [Cut(30), Cut(70)]
    pacs.chunked = True
    pacs.fault = lambda asked: left.pop() if left and asked.within.endswith("/metadata") else None
    assert len(found(pacs.root)) == 5
    assert not left


def test_a_series_whose_metadata_fails_is_searched_for_instances(pacs: Pacs) -> None:
    pacs.fault = lambda asked: Answer(500) if asked.within.endswith("/metadata") else None
    assert len(found(pacs.root)) == 5


@pytest.mark.parametrize("broken", [(1,), (1, 2), (3, 17, 40), (40,), tuple(range(1, 41, 3))])
def test_unreadable_instances_are_found_among_many_by_few_requests(
    pacs: Pacs, broken: tuple[int, ...]
) -> None:
    pacs.holdings = holdings(40, size=10)
    pacs.broken = {f"{SERIES}.{n}" for n in broken}
    names = [files.name_of(path) for path in found(pacs.root)]
    readable = {f"{SERIES}.{n}" for n in range(1, 41)} - pacs.broken
    assert set(names) == readable | {f"unlisted-{n + 1}" for n in range(len(broken))}
    if len(broken) == 1:
        assert len(pacs.requests) < 25


def test_fewer_instances_than_are_counted_are_told(pacs: Pacs) -> None:
    pacs.counts = {SERIES: 7}
    names = [files.name_of(path) for path in found(pacs.root)]
    assert names[5:] == ["unlisted-1", "unlisted-2"]


def test_a_listing_changes_its_stamp_with_the_series_and_not_with_the_moment(pacs: Pacs) -> None:
    stamps = {entry.stamp for _ in range(3) for entry in files.listing(pacs.root).entries}
    assert len(stamps) == 1
    del pacs.holdings[STUDY][SERIES][f"{SERIES}.2"]
    assert {entry.stamp for entry in files.listing(pacs.root).entries}.isdisjoint(stamps)


def test_trying_whether_there_is_anything_takes_few_requests(pacs: Pacs) -> None:
    pacs.holdings = many(50)
    assert files.holds_files(pacs.root)
    assert len(pacs.requests) <= 4
    assert all("/metadata" not in asked.within for asked in pacs.requests)


def test_a_root_is_no_file(pacs: Pacs) -> None:
    assert service.stat(pacs.root) is None
    assert service.stat(f"{pacs.root}/studies/1.2?Modality=MR") is None


def test_each_id_of_a_file_is_searched_for(pacs: Pacs, tmp_path: Path) -> None:
    pacs.holdings = many(9)
    (tmp_path / "ids").write_text("1.3.2\n1.3.4\n1.3.77\n")
    assert len(found(f"{pacs.root}?StudyInstanceUID=@{tmp_path}/ids")) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'[{"00080018": ' + b'{"Value": [' * 300 + b"]}" * 300 + b"}]",
        b'[{"00080018": {"Value": [' + b"9" * 5000 + b"]}}]",
        b'[{"00080018": []}, {"00080018": {"Value": {}}}, {"00080018": {"Value": [[]]}}]',
    ],
)
def test_hostile_metadata_ends_in_one_line_or_counts_as_unlisted(pacs: Pacs, body: bytes) -> None:
    pacs.fault = lambda asked: Answer(200, body) if asked.within.endswith("/metadata") else None
    told = ""
    count = 5
    try:
        count = len(found(pacs.root))
    except StoreError as error:
        told = str(error)
    assert count >= 5
    assert len(told) < 300


def test_a_count_without_end_is_no_endless_listing(pacs: Pacs) -> None:
    pacs.counts = {SERIES: 999_999_999}
    with pytest.raises(StoreError, match="counts 999999999 instances, and lists 5"):
        files.listing(pacs.root)
