"""Beam's options of stores hold for the file layer, in the command and in its workers."""

import os

import pytest
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils.counters import CounterFactory

from beam_jobs.common.cli import UsageError
from beam_jobs.runners.options import (
    make_pipeline,
    pipeline_options,
    use_store_options,
    use_workers_store_options,
)

VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Whatever the functions set is gone afterwards."""
    for name in (*VARIABLES, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_endpoint_and_keys_reach_the_environment_and_the_option_wins(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere")
    use_store_options(
        ["--runner=X", "--s3_endpoint_url", "http://here:9000", "--s3_region_name=eu", "--other"]
    )
    assert [os.environ.get(name) for name in VARIABLES] == ["http://here:9000", None, "eu", None]


def test_no_option_changes_nothing(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://mine")
    use_store_options(["--runner=X", "--project", "p"])
    assert [os.environ.get(name) for name in VARIABLES] == [None, "https://mine", None, None]


@pytest.mark.parametrize("option", ["--s3_verify=false", "--s3_disable_ssl", "--s3_api_version=2"])
def test_an_option_without_counterpart_is_refused(option):
    with pytest.raises(UsageError, match=f"{option.partition('=')[0]} is of no use"):
        use_store_options([option])


def test_a_worker_elsewhere_takes_them_from_beam(monkeypatch):
    monkeypatch.setattr(
        RuntimeValueProvider, "runtime_options", {"s3_endpoint_url": "http://there"}
    )
    use_workers_store_options()
    assert os.environ["AWS_ENDPOINT_URL"] == "http://there"


def test_no_stage_waits_for_beams_sampler():
    before = StateSampler.__init__.__defaults__
    try:
        make_pipeline(pipeline_options([]), 1)
        assert StateSampler("stage", CounterFactory()).sampling_period_ms <= 10
    finally:
        StateSampler.__init__.__defaults__ = before
