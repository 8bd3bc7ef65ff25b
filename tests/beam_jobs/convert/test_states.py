"""A shard's state is believed where it fits shard and patients; else the shard is made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.convert.write_shard import ShardWriter
from beam_jobs.core.manifest import read_manifest
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.beam_jobs.convert.test_output import contents, convert, write_patient
from tests.hostile.damage import damaged_json

Written = tuple[Path, ShardWriter, str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A dataset of one shard, two patients of three in it, and what its writer was given."""
    root = tmp_path_factory.mktemp("states")
    seen: list[tuple[ShardWriter, str, Any]] = []
    write = ShardWriter.write

    def noted(self: ShardWriter, name: str, patients: Any) -> Any:
        seen.append((self, name, patients))
        return write(self, name, patients)

    for number in range(2):
        write_patient(root / f"in/{number}/T1w", f"P{number}")
    black = SeriesSpec(modality="T1w", rows=16, columns=16, slices=6, blank=True)
    write_series(black, root / "in/2/T1w", lambda xyz: xyz[..., 0], patient_id="P2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "write", noted)
        assert convert(root / "in", root / "d", "--patients_per_shard", "8") in (0, 8)
    ((writer, name, patients),) = seen
    writer.store.owner.take()  # what is written here is written amid the job
    assert sorted(p for p, _, _ in read_manifest(root / "d").patients) == ["0", "1"]
    assert len(patients) == 3
    return root / "d", writer, name, patients


def _mutate(written: Written, copies: list[tuple[str, bytes]]) -> tuple[int, list[str]]:
    """How many states were believed, and after which the shard was another."""
    output, writer, name, patients = written
    file = output / ".state" / f"{name}.json"
    sound, before = file.read_bytes(), contents(output)
    good, why = writer.write(name, patients)
    assert why == "kept"
    kept, wrong = 0, []
    for what, content in copies:
        file.write_bytes(content)
        result, why = writer.write(name, patients)
        kept += why == "kept"
        if why != "kept":
            assert file.read_bytes() == sound, what
        file.write_bytes(sound)
        if (result, contents(output)) != (good, before):
            wrong.append(what)
    return kept, wrong


@pytest.mark.parametrize("every", [pytest.param(5, marks=pytest.mark.slow), 97])
def test_a_damaged_state_is_seen_through(written: Written, every: int) -> None:
    file = written[0] / ".state" / f"{written[2]}.json"
    copies = list(damaged_json(file.read_bytes(), every))
    kept, wrong = _mutate(written, [(what, content) for what, content in copies])
    assert wrong == []
    assert kept < len(copies) / 10  # members of nobody's, and the npz files there are none of


def _patients_of_others(entry: dict[str, Any], result: dict[str, Any]) -> None:
    entry["patients"][0]["patient_id"] = "Q"


def _a_label(entry: dict[str, Any], result: dict[str, Any]) -> None:
    entry["patients"][0]["label"] = 1


def _a_fold(entry: dict[str, Any], result: dict[str, Any]) -> None:
    entry["fold"] = 3


def _one_patient_less(entry: dict[str, Any], result: dict[str, Any]) -> None:
    del entry["patients"][0]


def _nobody(entry: dict[str, Any], result: dict[str, Any]) -> None:
    result["entry"] = None


def _nobody_refused(entry: dict[str, Any], result: dict[str, Any]) -> None:
    result["rejects"] = []


def _turned_round(entry: dict[str, Any], result: dict[str, Any]) -> None:
    entry["patients"].reverse()


@pytest.mark.parametrize(
    "lie",
    [
        *(_patients_of_others, _a_label, _a_fold, _one_patient_less, _nobody, _nobody_refused),
        _turned_round,
    ],
)
def test_a_lie_in_a_state_that_tells_no_digest_is_seen_through(
    written: Written, lie: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    state = json.loads((written[0] / ".state" / f"{written[2]}.json").read_bytes())
    del state["sha256"]
    told = json.dumps(state).encode()
    lie(state["result"]["entry"], state["result"])
    kept, wrong = _mutate(
        written, [("as version 0.4", told), ("a lie", json.dumps(state).encode())]
    )
    assert wrong == []
    assert kept == 1
