"""What TF_CONFIG and Vertex AI's variables are read as."""

from __future__ import annotations

import json

import pytest

from beam_jobs.common.cli import UsageError
from trainer.training.environment import Cluster, cluster_of, run_addresses


def _described(cluster: dict[str, list[str]], role: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": role, "index": index}})


def test_without_a_cluster_there_is_one_process_that_writes() -> None:
    assert cluster_of({}) == Cluster()
    assert cluster_of({"TF_CONFIG": ""}).is_chief
    assert cluster_of({"TF_CONFIG": "{}"}).is_chief


def test_the_chief_comes_before_the_workers() -> None:
    described = _described({"worker": ["b:1", "c:1"], "chief": ["a:1"]}, "worker", 1)
    assert cluster_of({"TF_CONFIG": described}) == Cluster(workers=("a:1", "b:1", "c:1"), index=2)


def test_vertex_pools_are_one_line_of_workers() -> None:
    pools = {"workerpool0": ["a:2222"], "workerpool1": ["b:2222", "c:2222"]}
    found = cluster_of({"CLUSTER_SPEC": _described(pools, "workerpool1", 0)})
    assert found == Cluster(workers=("a:2222", "b:2222", "c:2222"), index=1)
    assert not found.is_chief


def test_tf_config_of_a_cluster_is_read_back_as_that_cluster() -> None:
    cluster = Cluster(workers=("a:1", "b:1"), index=1)
    assert cluster_of({"TF_CONFIG": cluster.tf_config()}) == cluster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG: "),
        ("[]", "TF_CONFIG: "),
        (_described({"worker": ["a:1"]}, "worker", 1), "worker 1 is not in the cluster"),
        (_described({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0), "ps cannot be used"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG: 'type'"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_its_variable(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cluster_of({"TF_CONFIG": text})


def test_vertex_directories_are_taken_where_the_flag_is_silent() -> None:
    environ = {
        "AIP_MODEL_DIR": "gs://bucket/job/model/",
        "AIP_CHECKPOINT_DIR": "gs://bucket/job/checkpoints",
        "AIP_TENSORBOARD_LOG_DIR": "gs://bucket/job/logs",
    }
    addresses = run_addresses(None, environ)
    assert addresses.run == "gs://bucket/job/model/"
    assert addresses.checkpoints == "gs://bucket/job/checkpoints"
    assert addresses.logs == "gs://bucket/job/logs"
    assert run_addresses("run", environ).run == "run"


def test_without_any_directory_the_flag_is_required() -> None:
    with pytest.raises(UsageError, match="--output_dir is required"):
        run_addresses(None, {})
    alone = run_addresses("gs://bucket/run", {})
    assert alone.checkpoints == alone.run
    assert alone.logs == "gs://bucket/run/logs"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("https://host/run", "can be read, not written to"),
        ("hdfs://host/run", "cannot use hdfs://"),
        ("gs:/bucket/run", "a slash is missing"),
        ("run.zip!/inner", "an archive can be read, not written to"),
    ],
)
def test_a_place_that_no_run_can_lie_in_is_refused(place: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_addresses(place, {})
    with pytest.raises(UsageError, match=said):
        run_addresses("run", {"AIP_CHECKPOINT_DIR": place})
