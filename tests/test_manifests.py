"""Manifests and commands for clusters in the documentation: nobody runs them here."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from beam_jobs.common.version import __version__
from beam_jobs.runners import submitted
from tests.test_docs import DOCS, blocks_of, parser_of
from tests.test_images import PYTHON, stage
from tests.test_packaging import locked_version

PAGES = sorted(path for path in (DOCS / "how-to").glob("*.md") if blocks_of(path, "yaml"))
FLINK, VERTEX = DOCS / "how-to/flink.md", DOCS / "how-to/vertex.md"
COMMANDS = [
    (page, words)
    for page in sorted(DOCS.rglob("*.md"))
    for block in blocks_of(page, "sh")
    for line in block.text.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True))
]


def documents(page: Path) -> list[dict[str, Any]]:
    return [
        document for block in blocks_of(page, "yaml") for document in yaml.safe_load_all(block.text)
    ]


@functools.cache
def cluster() -> dict[tuple[str, str], dict[str, Any]]:
    """Kind and name of what Flink's page has Kubernetes make -> the manifest."""
    return {(one["kind"], one["metadata"]["name"]): one for one in documents(FLINK)}


def pod(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster()[kind, name]["spec"]["template"]["spec"]
    return found


def option(arguments: list[str], name: str) -> str:
    (value,) = [each.partition("=")[2] for each in arguments if each.startswith(f"--{name}=")]
    return value


def service_ports() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster()["Service", "flink-jobmanager"]["spec"]["ports"]
    return found


def test_every_page_with_manifests_is_checked_here():
    assert set(PAGES) == {FLINK, VERTEX}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_image_is_pinned_and_ours_are_of_this_version(page):
    text = page.read_text(encoding="utf-8")
    images = re.findall(r"(?m)^\s+image(?:Uri)?: (\S+)$", text)
    assert images
    for image in images:
        name, _, tag = image.rpartition(":")
        assert name
        assert re.match(r"\d", tag), image
        assert "voxelbeam" not in image or tag == __version__


def test_images_that_the_documentation_builds_are_of_this_version():
    built = [
        word for _, words in COMMANDS if words[0] == "docker" for word in words if ":0" in word
    ]
    assert len(built) > 4
    assert {word.rpartition(":")[2] for word in built} == {__version__}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_arguments_are_ones_that_their_command_takes(page):
    found = re.findall(r"(?m)^ +args:\n((?: +- \S+\n)+)", page.read_text(encoding="utf-8"))
    assert found
    for block in found:
        verb, *arguments = re.findall(r"- (\S+)", block)
        taken, beams = parser_of(verb).parse_known_args(arguments)
        assert taken
        assert not beams or any(each.startswith("--runner=") for each in beams), beams


def test_a_deployment_selects_the_pods_it_makes_and_the_service_finds_its_own():
    for (kind, name), one in cluster().items():
        if kind == "Deployment":
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"] == labels, name
    service = cluster()["Service", "flink-jobmanager"]["spec"]
    manager = cluster()["Deployment", "flink-jobmanager"]["spec"]["template"]
    assert service["selector"] == manager["metadata"]["labels"]
    (container,) = manager["spec"]["containers"]
    open_ports = {each["containerPort"] for each in container["ports"]}
    assert {each["port"] for each in service_ports()} == open_ports


def test_flink_finds_its_manager_and_starts_lost_work_again():
    text = cluster()["ConfigMap", "flink"]["data"]["FLINK_PROPERTIES"]
    properties = dict(line.split(": ", 1) for line in text.splitlines())
    assert properties["jobmanager.rpc.address"] == "flink-jobmanager"
    assert properties["restart-strategy.type"] == "fixed-delay"
    for kind, name in cluster():
        if kind == "Deployment":
            sources = [each.get("envFrom") for each in pod(kind, name)["containers"]]
            assert [{"configMapRef": {"name": "flink"}}] in sources


def test_a_pool_of_workers_runs_beside_each_task_manager():
    manager, workers = pod("Deployment", "flink-taskmanager")["containers"]
    (job,) = pod("Job", "convert")["containers"]
    assert manager["args"] == ["taskmanager"]
    assert workers["args"] == ["--worker_pool"]
    assert stage("Dockerfile.beam", "convert").last("ENTRYPOINT") == '["/opt/apache/beam/boot"]'
    assert workers["image"] == job["image"]
    ((port,),) = (each.values() for each in workers["ports"])
    assert option(job["args"], "environment_config") == f"localhost:{port}"
    assert option(job["args"], "environment_type") == "EXTERNAL"
    cores = int(workers["resources"]["requests"]["cpu"])
    assert int(option(job["args"], "sdk_worker_parallelism")) == cores
    replicas = cluster()["Deployment", "flink-taskmanager"]["spec"]["replicas"]
    assert int(option(job["args"], "parallelism")) == replicas * cores


def test_the_job_server_is_of_the_locked_beam_and_flinks_version():
    spec = pod("Job", "convert")
    (server,) = spec["initContainers"]
    (job,) = spec["containers"]
    flink = pod("Deployment", "flink-jobmanager")["containers"][0]["image"]
    version = re.match(r"flink:(\d+\.\d+)\.", flink)
    assert version
    beam = locked_version("apache-beam", PYTHON)
    assert server["image"] == f"apache/beam_flink{version[1]}_job_server:{beam}"
    # A sidecar, which ends with the command and is there before it.
    assert server["restartPolicy"] == "Always"
    rest = [each["port"] for each in service_ports() if each["name"] == "rest"]
    assert option(job["args"], "flink_master") == f"flink-jobmanager:{rest[0]}"
    assert option(server["args"], "flink-master") == option(job["args"], "flink_master")
    port = server["startupProbe"]["tcpSocket"]["port"]
    assert option(job["args"], "job_endpoint") == f"localhost:{port}"


def test_the_command_gets_the_time_that_it_takes_to_cancel_its_job():
    limits = submitted._SUBMIT_S + submitted._CANCEL_S
    assert pod("Job", "convert")["terminationGracePeriodSeconds"] > limits


def test_vertex_ais_jobs_have_the_members_that_gcloud_takes():
    members = {"workerPoolSpecs", "baseOutputDirectory", "serviceAccount", "scheduling"}
    for job in documents(VERTEX):
        assert set(job) <= members
        for each in job["workerPoolSpecs"]:
            assert set(each) == {"replicaCount", "machineSpec", "containerSpec"}
            assert set(each["containerSpec"]) == {"imageUri", "args"}


def test_files_that_other_peoples_commands_name_are_on_their_page():
    for page, words in COMMANDS:
        if words[0] in ("gcloud", "kubectl"):
            named = [word.rpartition("=")[2] for word in words if word.endswith(".yaml")]
            for name in named:
                assert f"`{name}`" in page.read_text(encoding="utf-8"), page
