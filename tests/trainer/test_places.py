"""Commands whose inputs and outputs lie in stores: the same bytes as on a disk.

Against emulators over sockets, found by this process and by those that it starts.
"""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from tests.beam_jobs.common.conftest import emulator, root, store  # noqa: F401
from tests.trainer.search.searches import FAKE, argv_of, dataset, starts, trials_started  # noqa: F401
from tests.trainer.test_saliency import Made, made  # noqa: F401
from trainer import baseline, evaluate, saliency, tune

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]

OOF = "patient_id,label,fold,seed,logit,probability"
SERIES = "patient,modality,verdict,plane,field_strength"


def _upload(directory: Path, place: str) -> str:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            files.write(
                files.join(place, path.relative_to(directory).as_posix()), path.read_bytes()
            )
    return place


def _below(place: str | Path) -> dict[str, bytes]:
    """Path → bytes of every file of an output, on a disk or in a store."""
    prefix = files.join(place, "")
    return {
        entry.path.removeprefix(prefix): files.read(entry.path) for entry in files.entries(place)
    }


@pytest.mark.slow
def test_evaluation_reads_and_writes_stores(tmp_path: Path, root: str) -> None:
    here = tmp_path / "in"
    rows = [f"{i},{i % 2},{i % 3},0,{0.3 * (i % 5) + i % 2},0.5" for i in range(24)]
    for name, lines in {
        "run/oof_predictions.csv": [OOF, *rows],
        "run/run.json": ['{"model": "resnet10", "modalities": ["T1w"]}'],
        "run/fold-0/history.csv": ["epoch,val_auc,loss", "1,0.5,0.7", "2,0.75,0.6"],
        "labels.csv": ["BraTS21ID,MGMT_value", *(f"{i},{i % 2}" for i in range(24))],
        "series.csv": [SERIES, *(f"{i},T1w,used,axial,{1.5 + i % 2}" for i in range(24))],
    }.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("\n".join(lines) + "\n")
    outputs = []
    for place, output in ((str(here), str(tmp_path / "out")), (f"{root}/in", f"{root}/out")):
        if files.is_remote(place):
            _upload(here, place)
        argv = ["--predictions", f"{place}/run/oof_predictions.csv", "--output", output]
        argv += ["--labels", f"{place}/labels.csv", "--series", f"{place}/series.csv"]
        assert evaluate.main(argv) == 0
        outputs.append(_below(output))
    assert set(outputs[0]) == {"metrics.json", "report.html"}
    assert outputs[1] == outputs[0]
    assert json.loads(outputs[1]["metrics.json"])["learning_curves"]["fold-0"]["loss"] == [0.7, 0.6]


def test_predictions_behind_a_web_server_are_evaluated_without_their_run(tmp_path: Path) -> None:
    rows = [f"{i},{i % 2},0,0,{i},0.5" for i in range(8)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "oof_predictions.csv").write_text("\n".join([OOF, *rows]) + "\n")
    (tmp_path / "run" / "run.json").write_text("{}")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = f"http://127.0.0.1:{server.server_port}/run/oof_predictions.csv"
        try:
            assert evaluate.main(["--predictions", file, "--output", str(tmp_path / "out")]) == 0
        finally:
            server.shutdown()
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (written["name"], written["run"]) == ("run", None)


def test_a_baseline_in_a_store_is_the_one_on_a_disk_and_found_again(
    dataset: Path, tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    data = _upload(dataset, f"{root}/data")
    for place, output in ((str(dataset), str(tmp_path / "out")), (data, f"{root}/out")):
        argv = ["--data", place, "--output_dir", output, "--trees", "20"]
        assert baseline.main(argv) == 0
        found = _below(output)
        done = json.loads(found.pop("baseline.json"))
        del done["wall_seconds"]
        outputs.append((found, done))
    assert outputs[1] == outputs[0]
    capsys.readouterr()
    assert baseline.main(argv) == 0
    assert "is this very baseline, finished already" in capsys.readouterr().out
    with pytest.raises(UsageError, match="not empty and not a baseline"):
        baseline.main(["--data", data, "--output_dir", data])


@pytest.mark.slow
def test_a_study_in_a_store_is_the_one_on_a_disk_and_is_resumed(
    dataset: Path, tmp_path: Path, root: str, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_FITS", "4")  # what a trial came down to travels too
    data = _upload(dataset, f"{root}/data")
    local = argv_of(dataset, tmp_path / "study", "--tuner", "bayesian")
    space = local[local.index("--space") + 1]
    remote = ["--data", data, "--output_dir", f"{root}/study", "--tuner", "bayesian"]
    remote += ["--space", space, "--epochs", "9"]
    for argv in (local, remote):
        for trials in ("4", "7"):
            assert tune.main([*argv, "--max_trials", trials], command=FAKE) == 0
    first, second = _below(tmp_path / "study"), _below(f"{root}/study")
    assert set(second) == set(first)
    same = ("study.json", "oracle.json", "trials.csv", "best_hyperparameters.json", "report.html")
    for name in (*same, *(f"trials/{number}/result.json" for number in range(7))):
        assert second[name] == first[name], name
    started = trials_started(starts)
    assert started[: len(started) // 2] == started[len(started) // 2 :]
    assert {path.name for path in tmp_path.iterdir()} == {"study", Path(space).name, starts.name}
    with (
        files.lock(f"{root}/study/.lock", "held"),
        pytest.raises(files.LockedError, match="another search works on this study"),
    ):
        tune.main([*remote, "--max_trials", "8"], command=FAKE)


@pytest.mark.slow
def test_maps_of_a_run_and_a_dataset_in_a_store_are_those_from_a_disk(
    made: Made, tmp_path: Path, root: str
) -> None:
    outputs = []
    places = str(made.run), str(made.data), str(tmp_path / "out")
    for run, data, output in (places, (f"{root}/run", f"{root}/data", f"{root}/out")):
        if files.is_remote(run):
            _upload(made.run, run)
            _upload(made.data, data)
        argv = ["--run", run, "--data", data, "--output", output, "--method", "gradcam"]
        assert saliency.main([*argv, "--patients", "00001", "a<b>/é 9"]) == 0
        outputs.append(_below(output))
    assert len(outputs[0]) == 4
    assert outputs[1] == outputs[0]


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (evaluate.main, ["--predictions", "none.csv", "--output"]),
        (baseline.main, ["--data", "{data}", "--output_dir"]),
        (saliency.main, ["--run", "none", "--data", "{data}", "--output"]),
        (tune.main, ["--data", "{data}", "--output_dir"]),
    ],
)
@pytest.mark.parametrize("place", ["https://host/out", "hdfs://host/out", "s3:/bucket/out"])
def test_a_place_that_makes_no_sense_is_wrong_usage(
    dataset: Path, main: Callable[[Sequence[str]], int], argv: list[str], place: str
) -> None:
    with pytest.raises(
        UsageError, match=r"can be read, not written to|cannot use|slash is missing"
    ):
        main([*(word.format(data=dataset) for word in argv), place])
