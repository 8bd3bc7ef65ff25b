"""What workers elsewhere need, and whether the options give it to them."""

import os
import re

import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.common.cli import UsageError
from beam_jobs.runners.options import pipeline_options
from beam_jobs.runners.workers_package import require_package

JOB_SERVER = ("--runner=PortableRunner", "--job_endpoint=somewhere:8099")
DATAFLOW = ("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/tmp")
SETUP = "--setup_file=./setup.py"


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [(DATAFLOW, "--sdk_container_image"), (JOB_SERVER, "--environment_config")],
)
def test_beams_own_image_is_refused_where_workers_would_lack_what_they_import(arguments, flag):
    bare, packaged = pipeline_options(arguments), pipeline_options([*arguments, SETUP])
    own = pipeline_options([*arguments, f"{flag}=ours:1"])
    with pytest.raises(UsageError, match=f"no voxelbeam: --setup_file=./setup.py, or {flag}=IMAGE"):
        require_package(bare, tensorflow=False)
    require_package(packaged, tensorflow=False)
    for options in (bare, packaged):
        with pytest.raises(UsageError, match=f"TensorFlow can be installed: {flag}=IMAGE"):
            require_package(options, tensorflow=True)
    for tensorflow in (False, True):
        require_package(own, tensorflow=tensorflow)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (*JOB_SERVER, "--environment_type=LOOPBACK"),
        (*JOB_SERVER, "--environment_type=EXTERNAL", "--environment_config=somewhere:50000"),
        (*JOB_SERVER, "--environment_type=PROCESS", '--environment_config={"command": "boot"}'),
        (*JOB_SERVER, "--environment_options=docker_container_image=ours:1"),
    ],
)
def test_workers_here_in_a_pool_or_in_another_image_have_what_they_have(arguments):
    require_package(pipeline_options(arguments), tensorflow=True)


@pytest.mark.parametrize("config", ["", "/opt/boot", "{}", "[1]", '{"command": ""}'])
def test_processes_without_their_program_are_refused(config):
    process = (*JOB_SERVER, "--environment_type=PROCESS", f"--environment_config={config}")
    with pytest.raises(UsageError, match=f"the program .*not {re.escape(config) or 'nothing'}"):
        require_package(pipeline_options(process), tensorflow=False)
    told = "--environment_options=process_command=/opt/boot"
    if config:  # Beam looks at nothing else then
        with pytest.raises(UsageError, match="the program"):
            require_package(pipeline_options([*process, told]), tensorflow=False)
    require_package(pipeline_options([*process[:-1], told]), tensorflow=False)


def test_package_that_beam_builds_requires_tensorflow_only_where_the_job_does(monkeypatch):
    monkeypatch.delenv("VOXELBEAM_REQUIRES", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    options = pipeline_options([*DATAFLOW, SETUP, "--sdk_container_image=ours:1"])
    require_package(options, tensorflow=True)
    assert "VOXELBEAM_REQUIRES" not in os.environ
    require_package(options, tensorflow=False)
    assert os.environ["VOXELBEAM_REQUIRES"] == "conversion"


def test_conversion_is_refused_before_its_job_is_sent(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"x")
    argv = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "d"), "--shared_disk"]
    with pytest.raises(UsageError, match="no voxelbeam"):
        dicom_to_tfrecord.main([*argv, *JOB_SERVER])
    assert not (tmp_path / "d").exists()
