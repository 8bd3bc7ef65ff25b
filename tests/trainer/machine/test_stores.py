"""Stores: credentials are named and never shown, and a place that cannot be used says why."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import clients, settings
from beam_jobs.common.files import interface as files
from trainer.machine import stores
from trainer.machine.apart import Answer
from trainer.machine.findings import Section

SECRET = "c2VjcmV0LW9mLW1pbmU="
CONNECTION = f"AccountName=mine;AccountKey={SECRET};BlobEndpoint=http://127.0.0.1:1/mine"


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those of the test, and as much patience as before."""
    for name in (*sum(settings.VARIABLES.values(), ()), *settings.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("REQUEST_S", "RETRY_S", "RETRIES"):
        monkeypatch.setattr(clients, name, getattr(clients, name))


def section_of(aws: bool = True) -> Section:
    answers = []
    for trial in stores.trials():
        function: Callable[..., Any] = getattr(stores, trial.function.partition(":")[2])
        try:
            answers.append(Answer(value=function(**trial.arguments)))
        except CommandError as error:
            answers.append(Answer(problem=str(error)))
    return stores.section(answers, "0.12.1", aws=aws)


def test_without_credentials_each_store_says_what_there_is_instead() -> None:
    section = section_of()
    assert section.faults == ()
    assert [(row.name, row.mark) for row in section.rows] == [
        ("client", ""), ("s3://", "note"), ("gs://", "note"), ("az://", "note"),
    ]  # fmt: skip
    assert "AZURE_STORAGE_ACCOUNT" in section.rows[-1].text


def test_credentials_are_named_and_what_they_hold_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", CONNECTION)
    section = section_of()
    assert section.faults == ()
    assert section.rows[1].text == "credentials by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    assert section.rows[3].text == "credentials by AZURE_STORAGE_CONNECTION_STRING"
    shown = repr(section)
    assert SECRET not in shown
    assert "AKIAMINE" not in shown


def test_credentials_that_cannot_be_read_are_to_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    (fault,) = section_of().faults
    assert fault.what.endswith("GOOGLE_APPLICATION_CREDENTIALS=/no/such.json: no such file")
    assert fault.mend.endswith("unset GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such.pem")
    assert section_of().faults[0].what.startswith("certificates: AWS_CA_BUNDLE=")


@pytest.mark.parametrize(
    ("environ", "number", "text", "mark"),
    [
        ({"AWS_REGION": "x"}, 1,
         f"{stores._NONE['s3']}; set: AWS_REGION",
         "note"),
        ({"AWS_REGION": "x", "AWS_ACCESS_KEY_ID": "AKIAMINE", "AWS_SECRET_ACCESS_KEY": SECRET}, 1,
         "credentials by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; set: AWS_REGION", ""),
        ({"AWS_ACCESS_KEY_ID": "AKIAMINE"}, 1,
         "AWS_ACCESS_KEY_ID: Generic S3 error: Missing SecretAccessKey", "fault"),
        ({"STORAGE_EMULATOR_HOST": "h:1"}, 2, "an emulator, by STORAGE_EMULATOR_HOST", ""),
        ({"AZURE_STORAGE_ACCOUNT": "a"}, 3,
         "no key in variables: a machine's own identity; set: AZURE_STORAGE_ACCOUNT", "note"),
        ({"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "no base64!"}, 3,
         "AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_KEY: Generic MicrosoftAzure error: Invalid",
         "fault"),
    ],
)  # fmt: skip
def test_what_says_where_is_no_credential_and_half_a_credential_none(
    environ: dict[str, str], number: int, text: str, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    section = section_of()
    row = section.rows[number]
    assert (row.text[: len(text)], row.mark) == (text, mark)
    assert [fault.mend.partition("unset ")[2] for fault in section.faults] == [
        name for name in environ if "KEY" in name
    ] * (mark == "fault")


def test_a_file_of_aws_settings_is_no_credential_and_unread_beside_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home/.aws").mkdir(parents=True)
    (tmp_path / "home/.aws/config").write_text("[default]\nregion = x\n")
    assert section_of().rows[1].text.endswith("; set: ~/.aws/config")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert section_of().rows[1].text == "credentials by AWS_SKIP_SIGNATURE"


def test_aws_files_that_nothing_reads_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home/.aws").mkdir(parents=True)
    (tmp_path / "home/.aws/config").write_text("[default]\n")
    row = section_of(aws=False).rows[1]
    assert row.text.startswith("~/.aws/config; files are not read without boto3")
    assert row.mark == "note"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x: refused", "https://...@host/x: refused"),
        ("url (https://host/x?sig=abc&se=1): refused", "url (https://host/x?...): refused"),
        ("https://me:p@ss@host/x: refused", "https://...@host/x: refused"),
        (
            "https://a.net/c?se=2026-01-01T00:00:00Z&sig=c2Vj%3D: refused",
            "https://a.net/c?...: refused",
        ),
        ("signature c2lnbmVkLmJ5= of c2lnbmVkLmJ5%3D", "signature ... of ..."),
        (f"key {SECRET} is bad", "key ... is bad"),
        ("proxy http://user:word@proxy:3128", "proxy http://...@proxy:3128"),
        ("s3://bucket/a@b: denied", "s3://bucket/a@b: denied"),
    ],
)
def test_secrets_are_cut_out_of_messages(text: str, shown: str) -> None:
    signed = "?se=2026-01-01T00:00:00Z&sig=c2lnbmVkLmJ5%3D"
    environ = {
        "AZURE_STORAGE_CONNECTION_STRING": CONNECTION,
        "AZURE_STORAGE_SAS_TOKEN": signed,
        "PATH": "/bin",
    }
    assert stores.without_secrets(text, environ) == shown


def test_a_place_on_a_disk_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert stores.look(str(tmp_path)).startswith("files there, can be written to, ")
    assert stores.look(str(tmp_path / "d")).startswith("empty, can be written to, ")
    (tmp_path / "f").write_text("x")
    assert stores.look(str(tmp_path / "f")) == "a file of 1 bytes, can be written to"
    with pytest.raises(CommandError, match=f"^{os.strerror(errno.ENOENT)}$"):
        stores.look(str(tmp_path / "none"))


def test_a_store_that_does_not_answer_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    begin = time.monotonic()
    with pytest.raises(CommandError) as error:
        stores.look("s3://bucket/x")
    assert time.monotonic() - begin < 5
    assert SECRET not in str(error.value)
    assert not str(error.value).startswith("s3://bucket/x")


@pytest.mark.parametrize("place", ["xx://y", "s3://", "https://host/x?sig=abc"])
def test_a_place_that_makes_no_sense_is_a_line_too(place: str) -> None:
    with pytest.raises(CommandError) as error:
        stores.look(place)
    section = stores.section_of_places([place], [Answer(problem=str(error.value))])
    (fault,) = section.faults
    assert "sig=abc" not in fault.what
    assert section.rows[0].mark == "fault"


def test_what_is_is_told_a_store_is_not_is_told_a_place_in_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    with pytest.raises(CommandError) as error:
        stores.look("gs://bucket/x")
    answer = Answer(problem=str(error.value))
    assert stores.section_of_places(["gs://bucket/x"], [answer], section_of().faults).faults == ()
    assert len(stores.section_of_places(["gs://bucket/x"], [answer]).faults) == 1


def test_a_place_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(place: str) -> int:
        monkeypatch.setattr(time, "monotonic", lambda: begin + stores.PLACE_S)
        raise CommandError("HTTP error: error sending request")

    begin = time.monotonic()
    monkeypatch.setattr(files, "size", late)
    with pytest.raises(CommandError, match=r"^no answer within 10 s$"):
        stores.look("https://host/x")


def test_a_store_is_listed(disk_or_store: str) -> None:
    place = files.join(disk_or_store, "dataset")
    if files.is_remote(place):
        assert stores.look(place) == "can be listed, and is empty"
    files.write(files.join(place, "x"), b"x")
    assert stores.look(place).startswith(("objects there", "files there"))
