"""What is known of an engine from Beam's options alone: where it works, and what it sees."""

import re

import pytest
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
)

from beam_jobs.common.cli import UsageError
from beam_jobs.runners.engines import (
    engine_of,
    name_job,
    require_reachable,
    shares_disk,
    workers_here,
)
from beam_jobs.runners.options import pipeline_options

JOB_SERVER = ("--runner=PortableRunner", "--job_endpoint=somewhere:8099")
POOL = (*JOB_SERVER, "--environment_type=EXTERNAL", "--environment_config=somewhere:50000")


@pytest.mark.parametrize("runner", ["", "--runner=DirectRunner", "--runner=direct"])
def test_the_local_runner_is_one_that_downloads_nothing(runner):
    options = pipeline_options([runner] if runner else [])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert workers_here(options)


@pytest.mark.parametrize(
    ("arguments", "here"),
    [
        ((*JOB_SERVER, "--environment_type=LOOPBACK"), True),
        (POOL, False),
        ((*JOB_SERVER, "--environment_type=PROCESS"), False),
        (JOB_SERVER, False),
        (("--runner=PrismRunner", "--prism_location=setup.py"), True),
    ],
)
def test_only_workers_known_to_be_here_are_taken_for_local_ones(arguments, here):
    options = pipeline_options(arguments)
    assert workers_here(options) == here
    assert shares_disk(options, False) == here
    assert shares_disk(options, True)


def test_a_local_path_is_refused_with_the_engine_that_was_requested_and_all_that_helps(tmp_path):
    options = pipeline_options(POOL)
    paths = {"--input": "az://cohort/train", "--output": str(tmp_path)}
    with pytest.raises(
        UsageError, match=r"--output .* PortableRunner .*gs://, s3:// or az://"
    ) as no:
        require_reachable(options, paths, shared_disk=False)
    assert "--shared_disk" in str(no.value)
    assert "Dataflow" not in str(no.value)
    require_reachable(options, paths, shared_disk=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner=PrismRunner"], "go install github.com/apache/beam/sdks/v2/go/cmd/prism@v"),
        (["--runner=PrismRunner", "--prism_location=gone"], "gone is not a file"),
        (["--runner=PrismRunner", "--prism_location=https://x/y"], "https://x/y is not a file"),
        (["--runner=PortableRunner"], "needs --job_endpoint"),
        (["--runner=SparkRunner"], "--spark_job_server_jar"),
        (["--runner=DaskRunner", "--dask_client_address=x:1"], "by tags"),
        (["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], "by tags"),
        (["--runner=apache_beam.runners.trivial_runner.TrivialRunner"], "no side inputs"),
        (["--runner=no.such.Runner"], "--runner=no.such.Runner: No module named 'no'"),
        (["--runner=NoRunner"], "--runner=NoRunner: "),
        (["--runner=decimal.Decimal"], "--runner=decimal.Decimal is not a runner of Beam's"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_with_what_would_help(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        pipeline_options(arguments)


def test_a_prism_in_the_working_directory_is_that_one_and_none_of_the_path(tmp_path, monkeypatch):
    (tmp_path / "prism").touch()
    monkeypatch.chdir(tmp_path)
    options = pipeline_options(["--runner=PrismRunner", "--prism_location=prism"])
    assert options.view_as(PrismRunnerOptions).prism_location == str(tmp_path / "prism")


def test_options_of_a_runner_that_was_not_imported_yet_reach_it(tmp_path, monkeypatch):
    (tmp_path / "far_runner.py").write_text(
        "from apache_beam.options.pipeline_options import PipelineOptions\n"
        "from apache_beam.runners.runner import PipelineRunner\n"
        "class FarOptions(PipelineOptions):\n"
        "  @classmethod\n"
        "  def _add_argparse_args(cls, parser): parser.add_argument('--far_away')\n"
        "class FarRunner(PipelineRunner): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = pipeline_options(["--runner=far_runner.FarRunner", "--far_away=very"])
    assert options.get_all_options()["far_away"] == "very"


def test_a_job_is_named_by_command_and_output_and_by_the_user_first():
    options = pipeline_options(POOL)
    name_job(options, "convert", "gs://bucket/Brain scans/2026_DATA/")
    name = options.view_as(GoogleCloudOptions).job_name
    assert re.fullmatch("voxelbeam-convert-2026-data-[0-9a-f]{8}", name)
    long = pipeline_options(POOL)
    name_job(long, "predict", "a" * 200)
    assert len(long.view_as(GoogleCloudOptions).job_name) <= 63
    named = pipeline_options([*POOL, "--job_name=mine"])
    name_job(named, "convert", "out")
    assert named.view_as(GoogleCloudOptions).job_name == "mine"


def test_a_job_ends_with_the_command_where_its_workers_do():
    assert engine_of(pipeline_options([])).ends_with_command
    assert not engine_of(pipeline_options(POOL)).ends_with_command
    options = pipeline_options(JOB_SERVER)
    options.view_as(PortableOptions).environment_type = "LOOPBACK"
    assert engine_of(options).ends_with_command
