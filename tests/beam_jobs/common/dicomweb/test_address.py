"""What addresses of DICOMweb services say, and which say nothing that makes sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files.dicomweb.address import parse_file, parse_root, parse_service

WEB = "dicomweb+https://host:8443/dicom-web"


def test_terms_go_to_the_level_that_services_match_them_at() -> None:
    root = parse_root(f"{WEB}?StudyDate=20200101-&00080060=MR&SeriesDescription=T1%20a%26b*+")
    assert root.service.url == "https://host:8443/dicom-web"
    assert root.studies == ({"StudyDate": "20200101-"},)
    assert root.series == ({"Modality": "MR", "SeriesDescription": "T1 a&b*+"},)


def test_an_address_without_terms_searches_for_everything() -> None:
    assert parse_root(f"{WEB}/")[1:] == (({},), ({},))


def test_an_address_may_go_down_to_a_study_or_a_series() -> None:
    root = parse_root(f"{WEB}/studies/1.2/series/3.4?Modality=MR")
    assert root.service.address == WEB
    assert root.studies == ({"StudyInstanceUID": "1.2"},)
    assert root.series == ({"Modality": "MR", "SeriesInstanceUID": "3.4"},)


def test_each_of_several_values_is_a_search_of_its_own() -> None:
    root = parse_root(f"{WEB}?PatientID=a,b&PatientID=c&Modality=MR,CT&StudyInstanceUID=1.2,1.3")
    assert [tuple(search.values()) for search in root.studies] == [
        *(("a,b", "1.2"), ("a,b", "1.3"), ("c", "1.2"), ("c", "1.3")),
    ]
    assert root.series == ({"Modality": "MR"}, {"Modality": "CT"})


def test_a_file_of_ids_is_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes("\ufeffDoe 1\n\r\n  Doe,2 \r\nDoe 1\n".encode())
    root = parse_root(f"{WEB}?PatientID=@{tmp_path}/ids")
    assert [search["PatientID"] for search in root.studies] == ["Doe 1", "Doe,2"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe", b"a\x00b\n"])
def test_a_file_of_ids_that_has_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ids").write_bytes(content)
    with pytest.raises(UsageError, match="PatientID"):
        parse_root(f"{WEB}?PatientID=@{tmp_path}/ids")


@pytest.mark.parametrize(
    "query",
    [
        *("Patient=Doe", "limit=3", "includefield=all", "PatientID", "PatientID=", "", "&"),
        *("StudyDate=2020", "StudyDate=20200101-2021", "StudyDate=yesterday", "StudyDate=-"),
        *("StudyTime=1", "StudyTime=12-x", "StudyInstanceUID=1.2*", "SeriesInstanceUID=../x"),
        *("PatientName=a%0Ab", "PatientName=%00"),
    ],
)
def test_a_term_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(UsageError):
        parse_root(f"{WEB}?{query}")


def test_what_is_known_is_said_to_who_asks_for_something_else() -> None:
    with pytest.raises(UsageError, match=r"known: .*ModalitiesInStudy.*ProtocolName"):
        parse_root(f"{WEB}?Modalitty=MR")


@pytest.mark.parametrize(
    "address",
    [
        *("dicomweb+https://", "dicomweb+https:///web", "dicomweb+https://host:x/web"),
        *(f"{WEB}/studies/abc", f"{WEB}/studies/1.2/series/..", f"{WEB}/studies/{'1' * 65}"),
        *(f"{WEB}/../other", f"{WEB}/%2e%2e/other", f"{WEB}/a b", f"{WEB}\\x", f"{WEB}/a\nb"),
        f"{WEB}/studies/1.2?StudyInstanceUID=1.3",
    ],
)
def test_an_address_that_makes_no_sense_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        parse_root(address)


@pytest.mark.parametrize("address", ["me:canary@host", "me:can/ary@host", "canary@host"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for parse in (parse_root, parse_file, parse_service):
        with pytest.raises(UsageError) as error:
            parse(f"dicomweb+https://{address}/web")
        assert "ary" not in str(error.value)


def test_the_path_of_an_instance() -> None:
    series, uid = parse_file(f"{WEB}/studies/1.2/series/3.4/instances/5.6")
    assert (series.service.address, series.study, series.series, uid) == (WEB, "1.2", "3.4", "5.6")
    assert series.instance(uid) == f"{WEB}/studies/1.2/series/3.4/instances/5.6"


@pytest.mark.parametrize(
    "end",
    [
        *("", "/studies/1.2", "/studies/1.2/series/3/instances/x", "/studies/1/series/2/instances"),
        *("/studies/1/series/2/instances/..", "/studies/1/series/2/instances/3?Modality=MR"),
    ],
)
def test_what_is_no_path_of_an_instance(end: str) -> None:
    with pytest.raises(UsageError):
        parse_file(f"{WEB}{end}")


@pytest.mark.parametrize("end", ["/studies/1.2", "?Modality=MR"])
def test_a_service_is_stored_to_and_nothing_below_it(end: str) -> None:
    with pytest.raises(UsageError):
        parse_service(f"{WEB}{end}")
    assert parse_service(f"{WEB}/").address == WEB


def test_lists_whose_every_combination_is_a_search_are_told(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("\n".join(map(str, range(2000))))
    names = f"PatientID=@{tmp_path}/ids&PatientName=@{tmp_path}/ids"
    with pytest.raises(UsageError, match="PatientID and PatientName together are 4000000 searches"):
        parse_root(f"dicomweb+http://h/w?{names}")
