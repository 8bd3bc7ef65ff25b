"""The forest baseline: features against known geometry, predictions out of fold, refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import PLAIN
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from tests.datasets import make_cases, make_schema, write_cases, write_dataset
from trainer.baseline import main
from trainer.config.run_layout import OOF_COLUMNS
from trainer.data.split import permuted_labels
from trainer.forest.features import case_features, feature_names
from trainer.forest.model import (
    FoldModel,
    cross_validate,
    fit_forest,
    forest_metrics,
    forests,
)
from trainer.forest.table import FeatureTable, measure_features

VOXEL_MM = (2.0, 1.5, 4.0)


def _affine() -> npt.NDArray[np.float64]:
    """Of a canonical grid: row → posterior (y), column → left (x), slice → superior (z)."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, VOXEL_MM[1], 0], [VOXEL_MM[0], 0, 0], [0, 0, VOXEL_MM[2]]]
    affine[:3, 3] = [-30.0, 12.0, 50.0]
    return affine


def _named(
    volume: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None
) -> dict[str, float]:
    """Features of one modality "A", by name."""
    found = case_features(volume[..., None], _affine() if affine is None else affine)
    return dict(zip(feature_names(["A"]), found.tolist(), strict=True))


def _noise(shape: tuple[int, int, int] = (20, 24, 12)) -> npt.NDArray[np.uint8]:
    volume = np.random.default_rng(0).integers(1, 120, shape).astype(np.uint8)
    volume[:3], volume[:, -4:], volume[..., :2] = 0, 0, 0
    return volume


# ---------------------------------------------------------------------------------------- features


def test_a_box_of_known_size_has_its_volume_and_extents() -> None:
    volume = np.zeros((30, 40, 20), np.uint8)
    volume[5:15, 10:30, 4:9] = 100
    found = _named(volume)
    millilitres = (10 * 2.0) * (20 * 1.5) * (5 * 4.0) / 1000
    assert found["head_ml"] == found["A_foreground_ml"] == pytest.approx(millilitres)
    extents = [found[f"head_extent_{axis}_mm"] for axis in ("ap", "lr", "si")]
    assert extents == pytest.approx([20.0, 30.0, 20.0])
    assert found["A_absent"] == 0


def test_a_bright_cube_has_its_volume_place_and_compactness() -> None:
    """24 mm wide in a large head: 12 rows, 16 columns, 6 slices; its middle 15 mm off the plane."""
    volume = np.full((80, 80, 40), 50, np.uint8)
    volume[34:46, 42:58, 17:23] = 200
    volume[5, 5, 5] = 200  # another, small piece
    found = _named(volume)
    count = 12 * 16 * 6
    assert found["A_bright_ml"] == pytest.approx(24**3 / 1000)
    assert found["A_bright_share"] == pytest.approx(count / (count + 1))
    mean = (50 * (volume.size - count - 1) + 200 * (count + 1)) / volume.size
    assert found["A_bright_contrast"] == pytest.approx(200 / mean)
    # A cube of side a: mean square distance a²/4, so a ball of radius a (5/12)^½ has the same.
    assert found["A_bright_compactness"] == pytest.approx(1 / (4 / 3 * np.pi * (5 / 12) ** 1.5))
    assert found["A_bright_lateral_mm"] == pytest.approx(10 * 1.5)


def test_depth_is_the_distance_to_the_surface_of_the_head() -> None:
    volume = np.full((60, 60, 30), 50, np.uint8)
    volume[30, 4:12, 15] = 200  # columns 4 … 11: 5 … 12 steps of 1.5 mm below the nearest face
    assert _named(volume)["A_bright_depth_mm"] == pytest.approx(1.5 * np.arange(5, 13).mean())


def test_a_ball_is_compact_and_a_rod_is_not() -> None:
    axes = [(np.arange(n) - n / 2) * mm for n, mm in zip((40, 52, 20), VOXEL_MM, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    ball = np.where(sum(axis**2 for axis in grid) < 15**2, 200, 50)
    rod = np.full_like(ball, 50)
    rod[20, 5:45, 10] = 200
    assert _named(ball)["A_bright_compactness"] == pytest.approx(1, abs=0.03)
    assert _named(rod)["A_bright_compactness"] < 0.1


def test_intensities_are_those_of_scipy_relative_to_the_foregrounds_mean() -> None:
    volume = _noise()
    inside = volume[volume > 0] / volume[volume > 0].mean()
    found = _named(volume)
    assert found["A_std"] == pytest.approx(inside.std())
    assert found["A_skew"] == pytest.approx(stats.skew(inside))
    assert found["A_kurtosis"] == pytest.approx(stats.kurtosis(inside))
    for percentile in (1, 25, 50, 95, 99):
        expected = np.percentile(inside, percentile)
        assert found[f"A_p{percentile:02d}"] == pytest.approx(expected)
    expected = np.mean((inside >= 0.5) & (inside < 0.75))
    assert found["A_hist_0.50_0.75"] == pytest.approx(expected)
    assert sum(value for name, value in found.items() if "_hist_" in name) == pytest.approx(1)


def test_a_ramps_gradient_is_its_slope_in_mm() -> None:
    ramp = 100 + 3.0 * np.arange(20)[:, None, None] * np.ones((20, 16, 12))
    found = _named(ramp)
    assert found["A_gradient_mean"] == pytest.approx(3.0 / 2.0 / ramp.mean())
    assert found["A_gradient_std"] == pytest.approx(0, abs=1e-9)


def test_left_and_right_are_compared_at_the_heads_middle() -> None:
    half = np.random.default_rng(1).integers(50, 150, (20, 9, 12)).astype(np.float64)
    even = np.zeros((20, 30, 12))
    even[:, 7:25] = np.concatenate([half, half[:, ::-1]], axis=1)
    assert _named(even)["A_mirror_mean"] == pytest.approx(0, abs=1e-12)
    assert _named(even)["A_left_minus_right"] == pytest.approx(0, abs=1e-12)
    odd = even.copy()
    odd[:, 16:25] += 20  # higher columns: the patient's left
    found = _named(odd)
    mean = odd[odd > 0].mean()
    assert found["A_mirror_mean"] == pytest.approx(20 / mean)
    assert found["A_mirror_p95"] == pytest.approx(20 / mean)
    assert found["A_left_minus_right"] == pytest.approx(20 / mean)


def test_a_scanners_gain_changes_nothing() -> None:
    plain = _named(_noise())
    for gained in (_noise() * np.uint8(2), _noise().astype(np.uint16) * 37):
        assert _named(gained) == pytest.approx(plain, rel=1e-9, abs=1e-9)


def test_order_and_direction_of_the_stored_axes_change_nothing() -> None:
    volume, affine = _noise(), _affine()
    plain = _named(volume)
    last = volume.shape[1] - 1
    reverse = np.eye(4)
    reverse[1, 1], reverse[1, 3] = -1, last
    flipped = _named(volume[:, ::-1], affine @ reverse)
    assert flipped == pytest.approx(plain, rel=1e-9, abs=1e-9)
    swapped = _named(volume.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]])
    assert swapped == pytest.approx(plain, rel=1e-9, abs=1e-9)
    mirrored = _named(volume[:, ::-1])  # without its affine's knowledge it is another head
    assert mirrored["A_left_minus_right"] == pytest.approx(-plain["A_left_minus_right"])


def test_an_absent_modality_says_so_and_leaves_the_others_alone() -> None:
    both = np.stack([_noise(), np.zeros_like(_noise())], axis=-1)
    names = feature_names(["A", "B"])
    found = dict(zip(names, case_features(both, _affine()).tolist(), strict=True))
    assert found["B_absent"] == 1
    assert all(np.isnan(found[name]) for name in names if name[0] == "B" and name != "B_absent")
    assert {name: found[name] for name in feature_names(["A"])} == _named(_noise())


@pytest.mark.parametrize("kind", ["blank", "constant", "one voxel"])
def test_degenerate_volumes_give_features_without_warnings(kind: str) -> None:
    volume = np.zeros((10, 10, 10), np.uint8)
    if kind == "constant":
        volume[:] = 7
    elif kind == "one voxel":
        volume[4, 4, 4] = 9
    with np.errstate(all="raise"):
        found = _named(volume)
    known = [name for name in found if not np.isnan(found[name])]
    assert len(known) == (5 if kind == "blank" else len(found))


# ------------------------------------------------------------------------------------------ forest


def _table(patients: int = 60) -> tuple[FeatureTable, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    truth = np.arange(patients) % 2
    features = rng.normal(size=(patients, 4))
    features[:, 2] += 3 * truth
    features[::7, 1] = np.nan
    folds = np.arange(patients) // 2 % 3
    ids = tuple(f"{index:03d}" for index in range(patients))
    return FeatureTable(patient_ids=ids, folds=folds, features=features, names=tuple("abcd")), truth


def _cross_validated(
    table: FeatureTable, truth: npt.NDArray[np.int64], seed: int = 0
) -> list[FoldModel]:
    return cross_validate(table, truth, fit=forests(PLAIN, trees=20), seed=seed, repeats=1)


def test_labels_of_the_held_out_fold_have_no_say_in_its_predictions() -> None:
    table, truth = _table()
    wrong = np.where(table.folds == 1, 1 - truth, truth)
    honest, lied = (
        {one.fold: one.answers for one in _cross_validated(table, given)}
        for given in (truth, wrong)
    )
    np.testing.assert_array_equal(honest[1], lied[1])
    assert np.abs(honest[0] - lied[0]).max() > 0.1


def test_features_of_the_held_out_fold_have_no_say_in_the_forest() -> None:
    """A held-out patient's prediction does not depend on who else is held out with it."""
    table, truth = _table()
    changed = table.features.copy()
    others = np.flatnonzero(table.folds == 1)[1:]
    changed[others] += 5
    before, after = (
        next(one for one in _cross_validated(given, truth) if one.fold == 1)
        for given in (table, dataclasses.replace(table, features=changed))
    )
    assert before.answers[0] == after.answers[0]
    assert np.abs(before.answers[1:] - after.answers[1:]).max() > 0


def test_the_feature_that_tells_is_found_important() -> None:
    table, truth = _table()
    results = _cross_validated(table, truth)
    lost = np.mean([one.score_lost.mean(axis=1) for one in results], axis=0)
    gained = np.mean([one.loss_gained.mean(axis=1) for one in results], axis=0)
    assert lost.argmax() == gained.argmax() == 2
    assert lost[2] > 0.2
    assert np.abs(np.delete(lost, 2)).max() < 0.1


def test_no_forest_is_surer_than_its_patients_allow() -> None:
    features = np.arange(40.0)[:, None]
    truth = (features[:, 0] >= 20).astype(np.int64)
    logits = fit_forest(features, truth, trees=50, seed=0)(np.array([[-100.0], [200.0]]))
    np.testing.assert_allclose(logits, [-np.log(79), np.log(79)])  # odds of 1 / 80 to 79 / 80


# -------------------------------------------------------------------------------------------- runs


class Baseline(NamedTuple):
    data: Path
    directory: Path
    argv: list[str]
    printed: list[str]


def _argv(data: Path, directory: Path, *options: str) -> list[str]:
    return ["--data", str(data), "--output_dir", str(directory), "--trees", "40", *options]


def _rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "oof_predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    data: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(data, patients=48, folds=3, unlabelled=2, signal=1.5, shards=2)
    directory: Path = tmp_path_factory.mktemp("runs") / "forest"
    argv = _argv(data, directory, "--modalities", "T2w,T1wCE")
    code = (
        "import sys; from trainer.baseline import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'tensorflow', 'keras', 'apache_beam'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Baseline(data, directory, argv, done.stdout.splitlines())


def test_an_easy_signal_is_found_without_tensorflow(baseline: Baseline) -> None:
    done = json.loads((baseline.directory / "baseline.json").read_text())
    assert done["metrics"]["auc"] >= 0.9
    assert done["metrics"]["n"] == 48
    assert any(line.startswith("out of fold AUC ") for line in baseline.printed)
    verdict = "The interval lies above 0.5: better than chance on patients like these."
    assert f"verdict     {verdict}" in baseline.printed
    manifest = Manifest.loads((baseline.data / MANIFEST_NAME).read_text())
    assert done["dataset_fingerprint"] == manifest.dataset_fingerprint
    assert done["config"]["modalities"] == ["T2w", "T1wCE"]


def test_every_labelled_patient_is_predicted_once_in_its_own_fold(baseline: Baseline) -> None:
    manifest = Manifest.loads((baseline.data / MANIFEST_NAME).read_text())
    rows = _rows(baseline.directory)
    assert tuple(rows[0]) == OOF_COLUMNS
    assert len(rows) == 48
    assert {(row["patient_id"], row["label"], row["fold"]) for row in rows} == {
        (name, str(label), str(fold))
        for name, label, fold in manifest.patients
        if label is not None
    }
    for row in rows:
        assert (row["epoch"], row["epoch_choice"], row["no_claim"]) == ("", "none", "")
        odds = np.exp(float(row["logit"]))
        assert float(row["probability"]) == pytest.approx(odds / (1 + odds))


def test_importance_lists_every_feature_of_the_chosen_modalities(baseline: Baseline) -> None:
    with (baseline.directory / "feature_importance.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["feature"] for row in rows) == sorted(feature_names(["T2w", "T1wCE"]))
    lost = [float(row["auc_lost"]) for row in rows]
    assert lost == sorted(lost, reverse=True)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    baseline: Baseline, tmp_path: Path
) -> None:
    assert main([*_argv(baseline.data, tmp_path / "again"), *baseline.argv[6:]]) == 0
    for name in ("oof_predictions.csv", "feature_importance.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (baseline.directory / name).read_bytes()
    options = (*baseline.argv[6:], "--seed", "1", "--repeats", "2")
    assert main(_argv(baseline.data, tmp_path / "other", *options)) == 0
    rows = _rows(tmp_path / "other")
    assert set(Counter((row["patient_id"]) for row in rows).values()) == {2}
    assert {row["seed"] for row in rows} == {"1", "2"}
    first = {row["patient_id"]: row["logit"] for row in _rows(baseline.directory)}
    assert any(first[row["patient_id"]] != row["logit"] for row in rows)


def test_a_finished_baseline_is_not_repeated_and_another_is_refused(
    baseline: Baseline, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (baseline.directory / "baseline.json").stat().st_mtime_ns
    assert main(baseline.argv) == 0
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(ContractError, match=r"another baseline \(trees: 40 there, 41 requested\)"):
        main([*baseline.argv, "--trees", "41"])
    assert (baseline.directory / "baseline.json").stat().st_mtime_ns == before


def test_a_baseline_of_an_earlier_version_is_refused(baseline: Baseline, tmp_path: Path) -> None:
    """Its numbers were those of logits pooled over folds."""
    done = json.loads((baseline.directory / "baseline.json").read_text())
    done["metrics"] = {"auc": 0.9, "auc_interval": [0.8, 0.95], "n": 48, "positive": 24}
    (tmp_path / "baseline.json").write_text(json.dumps(done))
    argv = [str(tmp_path) if part == str(baseline.directory) else part for part in baseline.argv]
    with pytest.raises(ContractError, match=r"of a version before 0\.3; --overwrite"):
        main(argv)


def test_permuted_labels_teach_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One draw's interval, and the mean of several draws, which would show a small leak."""
    data = tmp_path / "data"
    manifest = write_dataset(data, patients=120, folds=3, signal=1.5, modalities=("T1wCE",))
    assert main(_argv(data, tmp_path / "null", "--permute_labels")) == 0
    said = capsys.readouterr().out
    assert "out of fold AUC of permuted labels 0." in said
    assert "verdict     No claim. The labels were permuted" in said
    assert "chance" not in said
    done = json.loads((tmp_path / "null" / "baseline.json").read_text())
    assert done["metrics"]["auc_interval"] is None
    assert {row["no_claim"] for row in _rows(tmp_path / "null")} == {"permuted"}
    assert any(int(row["label"]) != int(row["patient_id"]) % 2 for row in _rows(tmp_path / "null"))

    table = measure_features(str(data), manifest, ("T1wCE",))
    scores = []
    for seed in range(6):
        truth = table.labels_from(permuted_labels(manifest, seed))
        results = _cross_validated(table, truth, seed=seed)
        scores.append(forest_metrics(truth, results)["auc"])
    assert abs(np.mean(scores) - 0.5) < 3 * 0.057 / 6**0.5  # one draw deviates by 0.057


def test_absent_modalities_are_no_obstacle(tmp_path: Path) -> None:
    schema = make_schema(modalities=("A", "B"))
    cases = make_cases(schema, patients=24, folds=2, signal=2.0)
    for case in cases[::5]:
        case.volume[..., 1] = 0
    write_cases(tmp_path / "data", cases, schema, folds=2)
    assert main(_argv(tmp_path / "data", tmp_path / "run")) == 0
    assert len(_rows(tmp_path / "run")) == 24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--modalities", "PET"), "the dataset has FLAIR, T1w, T1wCE, T2w"),
        (("--trees", "0"), "--trees must be at least 1"),
        (("--trees", "9" * 30), "--trees must be at most 1000000"),
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--seed", "-1"), "--seed must lie in"),
        (("--data", "nowhere"), "no such directory"),
    ],
)
def test_a_wrong_request_leaves_nothing(
    baseline: Baseline, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        main(_argv(baseline.data, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_else_in_it_is_refused(
    baseline: Baseline, tmp_path: Path
) -> None:
    for name, error, said in (
        ("config.json", UsageError, "not empty and not a baseline"),
        ("baseline.json", ContractError, "format None, 'voxelbeam-baseline' required"),
    ):
        directory = tmp_path / name
        directory.mkdir()
        (directory / name).write_text("{}")
        for options in ((), ("--overwrite",)):
            with pytest.raises(error, match=said):
                main(_argv(baseline.data, directory, *options))
        assert [path.name for path in directory.iterdir()] == [name]


def test_folds_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    schema = make_schema()
    cases = [
        case
        for case in make_cases(schema, patients=12, folds=2)
        if (case.label, case.fold) != (1, 0)
    ]
    write_cases(tmp_path / "data", cases, schema, folds=2)
    with pytest.raises(ContractError, match="fold 0 has 3 negative and 0 positive"):
        main(_argv(tmp_path / "data", tmp_path / "run"))


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "voxels", "labels"])
def test_shards_that_are_not_what_the_manifest_says_are_named(tmp_path: Path, damage: str) -> None:
    manifest = write_dataset(tmp_path / "data", patients=8, folds=2)
    entry = manifest.shards[1]
    shard = tmp_path / "data" / entry.name
    content = bytearray(shard.read_bytes())
    said = "corrupt record"
    if damage == "bit":
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
    elif damage == "cut":
        shard.write_bytes(bytes(content[:-1]))
        said = "the manifest says"
    elif damage == "voxels":  # another conversion's shard of the same patients
        write_dataset(tmp_path / "other", patients=8, folds=2, seed=1)
        shard.write_bytes((tmp_path / "other" / entry.name).read_bytes())
        said = f"sha256 .* the manifest says {entry.sha256}"
    elif damage == "gone":
        shard.unlink()
        said = "does not exist"
    else:
        one, two, *others = entry.patients
        swapped = (
            dataclasses.replace(one, label=two.label),
            dataclasses.replace(two, label=one.label),
            *others,
        )
        shards = (manifest.shards[0], dataclasses.replace(entry, patients=swapped))
        text = dataclasses.replace(manifest, shards=shards).dumps()
        (tmp_path / "data" / MANIFEST_NAME).write_text(text)
        said = f"differ: record 1 is of patient '{one.patient_id}', label {one.label}, .*not the"
    with pytest.raises(ContractError, match=f"{shard}: .*{said}"):
        main(_argv(tmp_path / "data", tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*"))
