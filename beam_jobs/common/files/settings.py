"""Where a store is, and whose credentials open it: by the variables its users always set.

obstore reads many of them by itself. Here are those that it does not know, or knows by another
name: `STORAGE_EMULATOR_HOST`, `AZURE_STORAGE_CONNECTION_STRING`, AWS profiles, Google's federated
and impersonated credentials. Nothing is ever passed on to another process: each reads its own
environment, for what is pickled lies there in clear text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import CommandError

CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
# Scheme → what makes another client when it changes.
VARIABLES = {
    "s3": (
        *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
        *("AWS_MAX_ATTEMPTS", "AWS_SKIP_SIGNATURE"),
    ),
    "gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE"),
    "az": (
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"),
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT"),
        *("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SERVICE_ENDPOINT"),
    ),
}

_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# The kinds of Google credentials that obstore reads by itself.
_GOOGLE_NATIVE = ("service_account", "authorized_user")


def is_set(name: str) -> bool:
    """Whether a variable says yes."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def store_options(scheme: str) -> dict[str, Any]:
    """Keyword arguments of a store's client, besides the bucket: "config" and maybe a provider.

    Raises:
      CommandError: credentials are named that cannot be read, or need a package that is not there.
    """
    return {"s3": _s3, "gs": _gs, "az": _az}.get(scheme, dict)()


def endpoint_of(options: Mapping[str, Any]) -> str:
    """The endpoint in `store_options`' result, "" for the store's own."""
    config = options.get("config", {})
    return str(config.get("endpoint") or config.get("base_url") or "")


def certificates() -> str | None:
    """What a private authority's certificates are, as PEM; boto3's and requests' variables."""
    for name in CERTIFICATES:
        if path := os.environ.get(name):
            try:
                return Path(path).read_text(encoding="ascii", errors="replace")
            except OSError as error:
                raise CommandError(f"{name}={path}: {error.strerror}") from error
    return None


def _s3() -> dict[str, Any]:
    config: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        config["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        config["region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID") or is_set("AWS_SKIP_SIGNATURE"):
        return {"config": config}
    profile = os.environ.get("AWS_PROFILE")
    if not (profile or _aws_files()):
        return {"config": config}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if profile is None:  # the machine's own role may do
            return {"config": config}
        raise CommandError(
            f"AWS_PROFILE={profile}: profiles need more packages: pip install 'voxelbeam[aws]'"
        ) from error
    try:
        session = boto3.Session()
        if session.region_name:
            config.setdefault("region", session.region_name)
        if session.get_credentials() is None:
            return {"config": config}
        return {"config": config, "credential_provider": Boto3CredentialProvider(session)}
    except BotoCoreError as error:
        raise CommandError(f"AWS credentials: {' '.join(str(error).split())}") from error


def _aws_files() -> bool:
    places = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    )
    return any(os.path.isfile(os.path.expanduser(place)) for place in places)


def _gs() -> dict[str, Any]:
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        if "://" not in emulator:
            emulator = f"http://{emulator}"
        # Any token does: it keeps the client from looking for credentials.
        return {"config": {"base_url": emulator.rstrip("/"), "bearer_token": "emulator"}}
    if is_set("GOOGLE_SKIP_SIGNATURE"):
        return {"config": {"skip_signature": True}}
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    home = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")
    path = named or os.path.join(home, "application_default_credentials.json")
    try:
        kind = json.loads(Path(path).read_bytes()).get("type")
    except FileNotFoundError as error:
        if named is None:  # on one of Google's machines there is no file
            return {}
        raise CommandError(f"GOOGLE_APPLICATION_CREDENTIALS={named}: no such file") from error
    except (OSError, ValueError, AttributeError) as error:
        raise CommandError(f"{path}: no readable Google credentials") from error
    if kind in _GOOGLE_NATIVE:
        return {"config": {"application_credentials": path}}
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from obstore.auth.google import GoogleCredentialProvider
    except ImportError as error:
        raise CommandError(
            f"{path}: credentials of kind {kind!r} need more packages: pip install 'voxelbeam[gcp]'"
        ) from error
    try:
        credentials, _ = google.auth.default(scopes=[_GOOGLE_SCOPE])
    except GoogleAuthError as error:
        raise CommandError(f"{path}: {' '.join(str(error).split())}") from error
    return {"credential_provider": GoogleCredentialProvider(credentials)}


def _az() -> dict[str, Any]:
    config: dict[str, Any] = {}
    if connection := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        config = _of_connection(connection)
    for key, names in (
        ("account_name", ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")),
        ("account_key", ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")),
        ("sas_key", ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")),
        ("endpoint", ("AZURE_STORAGE_SERVICE_ENDPOINT", "AZURE_STORAGE_ENDPOINT")),
    ):
        found = next((os.environ[name] for name in names if os.environ.get(name)), None)
        if found and key not in config:
            config[key] = found
    if not config.get("account_name"):
        raise CommandError(
            "az:// names a container; whose it is must be in AZURE_STORAGE_ACCOUNT "
            "or AZURE_STORAGE_CONNECTION_STRING"
        )
    return {"config": config}


# Azurite's account, which is documented for everyone.
_DEVELOPMENT = {
    "account_name": "devstoreaccount1",
    "account_key": (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    ),
    "endpoint": "http://127.0.0.1:10000/devstoreaccount1",
}


def _of_connection(connection: str) -> dict[str, Any]:
    """The parts of an Azure connection string that its blobs need."""
    parts = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return dict(_DEVELOPMENT)
    config = {
        "account_name": parts.get("AccountName"),
        "account_key": parts.get("AccountKey"),
        "sas_key": parts.get("SharedAccessSignature"),
        "endpoint": parts.get("BlobEndpoint"),
    }
    suffix = parts.get("EndpointSuffix")
    if not config["endpoint"] and config["account_name"] and suffix:
        protocol = parts.get("DefaultEndpointsProtocol", "https")
        config["endpoint"] = f"{protocol}://{config['account_name']}.blob.{suffix}"
    return {name: value for name, value in config.items() if value}
