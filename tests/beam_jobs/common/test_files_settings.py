"""Stores are found by the variables that their users always set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import clients, settings
from beam_jobs.common.files import interface as files

SERVICE_ACCOUNT = {"type": "service_account", "client_email": "a@b", "private_key": "k"}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*sum(settings.VARIABLES.values(), ()), *settings.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("scheme", "environment", "config"),
    [
        ("s3", {}, {}),
        (
            "s3",
            {"AWS_ENDPOINT_URL": "http://one", "AWS_DEFAULT_REGION": "eu-west-1"},
            {"endpoint": "http://one", "region": "eu-west-1"},
        ),
        (
            "s3",
            {"AWS_ENDPOINT_URL": "http://one", "AWS_ENDPOINT_URL_S3": "http://two"},
            {"endpoint": "http://two"},
        ),
        ("gs", {}, {}),
        (
            "gs",
            {"STORAGE_EMULATOR_HOST": "localhost:9023"},
            {"base_url": "http://localhost:9023", "bearer_token": "emulator"},
        ),
        ("gs", {"GOOGLE_SKIP_SIGNATURE": "true"}, {"skip_signature": True}),
        (
            "az",
            {"AZURE_STORAGE_ACCOUNT": "us", "AZURE_STORAGE_KEY": "a2V5"},
            {"account_name": "us", "account_key": "a2V5"},
        ),
        (
            "az",
            {
                "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=us;"
                "AccountKey=a2V5YQ==;EndpointSuffix=core.windows.net"
            },
            {
                "account_name": "us",
                "account_key": "a2V5YQ==",
                "endpoint": "https://us.blob.core.windows.net",
            },
        ),
        (
            "az",
            {
                "AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://x/us;AccountName=us;"
                "SharedAccessSignature=sv=1&sig=2"
            },
            {"account_name": "us", "endpoint": "https://x/us", "sas_key": "sv=1&sig=2"},
        ),
    ],
)
def test_the_usual_variables_reach_the_client(
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    environment: dict[str, str],
    config: dict[str, Any],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings.store_options(scheme).get("config", {}) == config
    client, name = clients.client_of(f"{scheme}://bucket/a/b")
    assert name == "a/b"
    assert clients.client_of(f"{scheme}://bucket/c")[0] is client


def test_the_development_store_needs_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    assert settings.store_options("az")["config"]["account_name"] == "devstoreaccount1"


def test_az_without_an_account_names_the_variables() -> None:
    with pytest.raises(CommandError, match="AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION"):
        files.read("az://box/x")


def test_an_aws_profile_is_read_by_boto3_and_named_where_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[work]\naws_access_key_id = one\naws_secret_access_key = two\n"
    )
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    pytest.importorskip("boto3")
    options = settings.store_options("s3")
    assert options["config"] == {"region": "eu-north-1"}
    assert options["credential_provider"]()["access_key_id"] == "one"
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(CommandError, match="none") as found:
        settings.store_options("s3")
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CommandError, match=r"AWS_PROFILE=none: .*voxelbeam\[aws\]"):
        settings.store_options("s3")
    monkeypatch.delenv("AWS_PROFILE")
    assert settings.store_options("s3") == {"config": {}}


def test_keys_in_the_environment_win_over_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = one\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two")
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert settings.store_options("s3") == {"config": {}}


def test_google_credentials_of_each_kind_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(CommandError, match=r"GOOGLE_APPLICATION_CREDENTIALS=.*: no such file"):
        settings.store_options("gs")
    path.write_text("no json")
    with pytest.raises(CommandError, match="no readable Google credentials"):
        settings.store_options("gs")
    path.write_text(json.dumps(SERVICE_ACCOUNT))
    assert settings.store_options("gs")["config"] == {"application_credentials": str(path)}
    path.write_text(json.dumps({"type": "external_account"}))
    with pytest.raises(CommandError, match=r"key.json: ") as found:
        settings.store_options("gs")
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(CommandError, match=r"'external_account' need .*voxelbeam\[gcp\]"):
        settings.store_options("gs")


def test_a_private_authority_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(CommandError, match=r"AWS_CA_BUNDLE=.*none.pem: No such file"):
        files.read("s3://a-bucket-of-its-own/x")


def test_a_machine_without_credentials_hears_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """No metadata server answers at its address on machines that are no cloud of theirs."""
    message = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2ms - "
        "HTTP error: error sending request"
    )
    from obstore.exceptions import GenericError

    with (
        pytest.raises(files.StoreError, match=r"^s3://b/x: no credentials found \(AWS_ACC"),
        clients.translated("s3://b/x"),
    ):
        raise GenericError(message)


def test_a_bucket_of_another_region_is_named() -> None:
    from obstore.exceptions import GenericError

    with (
        pytest.raises(files.StoreError, match="bucket b is in another region; AWS_REGION"),
        clients.translated("s3://b/x"),
    ):
        raise GenericError("Received redirect without LOCATION, this normally indicates")


def test_what_a_client_is_made_of_is_never_pickled() -> None:
    """Credentials would lie in the pickle in clear text; workers read their own environment."""
    import pickle

    entry = files.Entry("s3://bucket/x", 1, 2)
    assert b"bucket" in pickle.dumps(entry)
    assert pickle.loads(pickle.dumps(entry)) == entry
    for one in (clients._process, clients.pool()):
        with pytest.raises(TypeError):
            pickle.dumps(one)
