"""What tells a study from others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from tests.datasets import write_dataset
from trainer.config.space_file import space_of
from trainer.search.run_search import Search, SearchConfig


def test_a_study_is_one_of_the_very_weights_that_its_networks_start_from(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=4, folds=2, modalities=("T1w",))
    file = tmp_path / "net.pth"

    def search(*weights: str) -> Search:
        narrowed = {"network": "resnet18", "weights": list(weights)}
        space = space_of(manifest.schema.modalities, narrowed)
        return Search(
            SearchConfig(), data=str(tmp_path), manifest=manifest, space=space, folds=(0, 1)
        )

    for text in ("one state", "another"):
        file.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert search(str(file), "none").request["weights"] == {str(file): digest}
    assert "weights" not in search("none").request
    file.unlink()
    with pytest.raises(UsageError, match=r"^--space: weights: .*net.pth is not a file$"):
        search(str(file), "none")
