"""What TF_CONFIG and Vertex AI's variables are read as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trainer.training.environment
from beam_jobs.common.cli import UsageError
from trainer.training.environment import Cluster, cluster_of, run_directories


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
    ("text", "told"),
    [
        ("{", "TF_CONFIG: "),
        ("[]", "TF_CONFIG: "),
        (_described({"worker": ["a:1"]}, "worker", 1), "worker 1 is not in the cluster"),
        (_described({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0), "ps cannot be used"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG: 'type'"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_its_variable(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        cluster_of({"TF_CONFIG": text})


def test_vertex_directories_are_files_under_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.training.environment, "_MOUNT", tmp_path)
    (tmp_path / "bucket").mkdir()
    environ = {
        "AIP_MODEL_DIR": "gs://bucket/job/model/",
        "AIP_CHECKPOINT_DIR": "gs://bucket/job/checkpoints",
        "AIP_TENSORBOARD_LOG_DIR": "gs://bucket/job/logs",
    }
    places = run_directories(None, environ)
    assert places.run == tmp_path / "bucket/job/model"
    assert places.checkpoints == tmp_path / "bucket/job/checkpoints"
    assert places.logs == tmp_path / "bucket/job/logs"
    assert run_directories(tmp_path / "run", environ).run == tmp_path / "run"
    with pytest.raises(UsageError, match="AIP_MODEL_DIR=gs://other/x: the bucket is not mounted"):
        run_directories(None, {"AIP_MODEL_DIR": "gs://other/x"})


def test_without_any_directory_the_flag_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--output_dir is required"):
        run_directories(None, {})
    alone = run_directories(tmp_path, {})
    assert (alone.run, alone.checkpoints, alone.logs) == (tmp_path, tmp_path, tmp_path / "logs")
