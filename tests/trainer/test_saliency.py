"""The command: who is explained by whom, what is written and refused, and phantoms' lesions."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from tests.browser import Browser
from tests.datasets import make_cases, make_metrics, make_schema, write_cases
from trainer.config.run_layout import OOF_COLUMNS
from trainer.explain import explainer
from trainer.explain.summary import half_in, map_name
from trainer.saliency import main
from trainer.training.run_files import Member, Run

SHAPE = (12, 14, 10)
MODALITIES = ("FLAIR", "T1wCE")
# Rows lead backward, columns to the left, slices up; an oblique and shifted grid.
TURN = np.array([[0.1, 1.0, 0.0], [1.0, -0.1, 0.05], [-0.05, 0.0, 1.0]])


class Made(NamedTuple):
    data: Path
    run: Path
    cases: dict[str, PreparedCase]
    manifest: Manifest


class Saved(NamedTuple):
    directory: Path
    summary: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dataset of two labelled folds and a run of untrained members, two seeds a fold."""
    import keras

    from trainer.config.network import NetworkConfig
    from trainer.networks.registry import build_model

    base: Path = tmp_path_factory.mktemp("saliency")
    schema = make_schema(shape=SHAPE, modalities=("T1wCE", "T2w", "FLAIR"))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * [2.0, 1.5, 4.0], (-11.0, -30.0, 7.0)
    cases = [
        dataclasses.replace(case, affine=affine)
        for case in make_cases(schema, patients=8, folds=2, unlabelled=1)
    ]
    cases[8] = dataclasses.replace(cases[8], patient_id="a<b>/é 9")
    cases[3].volume[..., 2] = 0  # no FLAIR
    cases[3] = dataclasses.replace(cases[3], present=(True, True, False))
    cases[4].volume[:] = 0
    manifest = write_cases(base / "data", cases, schema, folds=2)
    members, rows = [], []
    for seed in (0, 1):
        for fold in (0, 1):
            keras.utils.set_random_seed(10 * fold + seed)
            model = build_model(NetworkConfig(width=0.25), SHAPE, 2, schema.dtype)
            kernel = model.get_layer("logit").kernel
            kernel.assign(kernel * 200)  # an untrained network hardly answers
            path = f"fold-{fold}-seed-{seed}/network.keras"
            (base / "run" / path).parent.mkdir(parents=True)
            model.save(base / "run" / path)
            members.append(Member(fold=fold, seed=seed, path=path, epoch=1, val_auc=0.5))
            for case in cases:
                if case.fold == fold:
                    given = case.volume[None][..., [2, 0]]
                    logit = float(model(given, training=False)[0, 0])
                    row = (case.patient_id, case.label, fold, seed, logit, 0.5, 1, "last", "")
                    rows.append(row)
    Run(
        directory=str(base / "run"),
        config={},
        schema=schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=MODALITIES,
        model="seed_cnn",
        members=tuple(members),
        trained_on={"patients": 6, "positive": 3},
        trained_ids=tuple("012345"),
        epoch_choice="last",
        no_claim=(),
        metrics=make_metrics([(0, 0), (1, 0)]),
        precision="float32",
        versions={},
        wall_seconds=1.0,
        step_seconds=0.1,
    ).save()
    with (base / "run" / "oof_predictions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([OOF_COLUMNS, *rows])
    return Made(base / "data", base / "run", {c.patient_id: c for c in cases}, manifest)


def _argv(made: Made, output: Path, *more: str) -> list[str]:
    return ["--run", str(made.run), "--data", str(made.data), "--output", str(output), *more]


@pytest.fixture(scope="module")
def saved(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    output: Path = tmp_path_factory.mktemp("out") / "maps"
    argv = _argv(made, output, "--patients", "00001", "3", "a<b>/é 9", "00004")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(argv) == 0
    summary = json.loads((output / "saliency.json").read_text(), parse_constant=pytest.fail)
    return Saved(output, summary, printed.getvalue())


def test_a_patient_is_explained_by_the_members_that_did_not_train_on_it(
    made: Made, saved: Saved
) -> None:
    by_id = {patient["patient_id"]: patient for patient in saved.summary["patients"]}
    assert list(by_id) == ["00001", "00003", "a<b>/é 9", "00004"]
    for patient_id, patient in by_id.items():
        fold = made.cases[patient_id].fold
        folds = (0, 1) if fold is None else (fold,)
        expected = {f"fold-{f}-seed-{seed}/network.keras" for f in folds for seed in (0, 1)}
        assert set(patient["members"]) == expected
        assert len(patient["members"]) == len(expected)
        if fold is not None:  # the mean over the seeds, as the run itself predicted
            assert patient["logit"] == pytest.approx(patient["oof_logit"], abs=1e-4)
    assert abs(by_id["00001"]["logit"]) > 0.1


def test_the_map_lies_where_the_record_lies_and_sums_to_the_logits_difference(
    made: Made, saved: Saved
) -> None:
    for patient in saved.summary["patients"]:
        case = made.cases[patient["patient_id"]]
        image: Any = nibabel.load(saved.directory / patient["map"])
        values = image.get_fdata()
        assert values.shape == (*SHAPE, 2)
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        np.testing.assert_allclose(image.affine, flip @ case.affine, atol=1e-5)
        background = case.volume[..., [2, 0]] == 0
        assert background.any()
        assert (values[background] == 0).all()
        explained = patient["logit"] - patient["baseline_logit"]
        gap = abs(values.sum() - explained)
        assert gap == pytest.approx(patient["completeness_gap"], abs=1e-4)
        assert gap <= max(0.05 * abs(explained), 0.01)
        assert patient["complete"]
        assert patient["outside_head"] == (None if patient["empty"] else 0)
        voxel = patient["peak"]["voxel"]
        strength = np.abs(values).sum(axis=-1)
        assert strength[tuple(voxel)] == pytest.approx(strength.max(), rel=1e-5)
        mm = case.affine @ [*voxel, 1]
        np.testing.assert_allclose(patient["peak"]["lps_mm"], mm[:3], atol=0.01)


def test_shares_of_modalities_are_reported_and_an_absent_one_has_none(saved: Saved) -> None:
    first, absent, *_ = (patient["share_of_modality"] for patient in saved.summary["patients"])
    assert sum(first.values()) == pytest.approx(1)
    assert min(first.values()) > 0.05
    assert absent == {"FLAIR": 0, "T1wCE": pytest.approx(1)}


def test_a_patient_without_an_image_gets_an_empty_map_and_a_word_on_it(saved: Saved) -> None:
    empty = saved.summary["patients"][3]
    assert empty["empty"]
    assert empty["half_in"] is None
    assert empty["logit"] == empty["baseline_logit"]
    assert any("00004: the map is empty" in text for text in saved.summary["warnings"])
    assert "00004       label 0, logit " in saved.printed
    assert "an empty map" in saved.printed


def test_a_map_that_random_weights_repeat_is_warned_of(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explainer, "randomised", lambda model, seed: model)
    assert main(_argv(made, tmp_path, "--patients", "00001")) == 0
    summary = json.loads((tmp_path / "saliency.json").read_text())
    check = summary["patients"][0]["random_weights"]
    assert check["rank_correlation"] == pytest.approx(1)
    assert check["rank_correlation_of_sizes"] == pytest.approx(1)
    assert check["alike"]
    assert (
        "mind        00001: the map is much like that of random weights" in capsys.readouterr().out
    )
    assert "much like that of random weights" in (tmp_path / "saliency.html").read_text()


def test_without_patients_named_the_most_confident_right_and_wrong_ones_are_taken(
    made: Made, tmp_path: Path
) -> None:
    assert main(_argv(made, tmp_path, "--method", "gradcam")) == 0
    summary = json.loads((tmp_path / "saliency.json").read_text())
    logits: dict[str, list[float]] = {}
    with (made.run / "oof_predictions.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            logits.setdefault(row["patient_id"], []).append(float(row["logit"]))
    groups: dict[tuple[int, bool], list[tuple[float, str]]] = {}
    for patient_id, values in logits.items():
        logit, label = float(np.mean(values)), made.cases[patient_id].label
        assert isinstance(label, int)
        right = (logit > 0) == bool(label)
        groups.setdefault((label, right), []).append((abs(logit), patient_id))
    expected = {max(members)[1] for members in groups.values()}
    assert len(expected) >= 2
    assert {patient["patient_id"] for patient in summary["patients"]} == expected
    assert [p["right"] for p in summary["patients"]] == sorted(
        (p["right"] for p in summary["patients"]), reverse=True
    )
    first = summary["patients"][0]
    image: Any = nibabel.load(tmp_path / first["map"])
    assert image.shape == SHAPE  # Grad-CAM cannot tell modalities joined as channels apart
    sign = 1 if first["logit"] > 0 else -1
    strength = np.maximum(sign * image.get_fdata(), 0)
    outside = (made.cases[first["patient_id"]].volume[..., [2, 0]] == 0).all(axis=-1)
    share = strength[outside].sum() / strength.sum() if strength.any() else None
    assert first["outside_head"] == pytest.approx(share, rel=1e-4)


def _other_dataset(made: Made, tmp_path: Path) -> list[str]:
    schema = made.manifest.schema
    write_cases(tmp_path / "other", make_cases(schema, patients=8, folds=2), schema, folds=2)
    return ["--data", str(tmp_path / "other")]


def _one_fold(made: Made, tmp_path: Path) -> list[str]:
    """A run that held out fold 0 alone, and a patient of fold 1."""
    data = json.loads((made.run / "run.json").read_text())
    data["members"] = data["members"][:1]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(json.dumps(data))
    oof = (made.run / "oof_predictions.csv").read_text()
    (tmp_path / "one" / "oof_predictions.csv").write_text(oof)
    return ["--run", str(tmp_path / "one"), "--patients", "00002"]


def _file(made: Made, tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_text("")
    return ["--output", str(tmp_path / "file")]


def _maps(_: Made, tmp_path: Path) -> list[str]:
    return ["--dicom_pm", str(tmp_path / "pm"), "--dicom", str(tmp_path / "in")]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda made, _: ["--run", str(made.data)], ContractError, r"no run\.json \(not a run\)"),
        (lambda *_: ["--patients", ""], UsageError, "--patients names nobody"),
        (lambda *_: ["--patients", "1", "99"], UsageError, r"--patients 99: not among .* 9 "),
        (_other_dataset, ContractError, r"dataset_fingerprint: \w{12} in .*other, \w{12} in run "),
        (_one_fold, UsageError, r"00002: of fold 1, which every member .* held out there: fold 0"),
        (_file, UsageError, r"--output .*file: a file"),
        (
            lambda *_: ["--dicom_pm", "pm"],
            UsageError,
            "--dicom_pm PM and --dicom INPUT go together",
        ),
        (lambda *_: ["--dicom", "in"], UsageError, "--dicom_pm PM and --dicom INPUT go together"),
        (_maps, UsageError, r"--dicom needs .*series\.csv"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    made: Made,
    tmp_path: Path,
    change: Callable[..., list[str]],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as refused:
        main([*_argv(made, tmp_path / "out"), *change(made, tmp_path)])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_refusal_costs_no_tensorflow(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trainer.saliency import main\n"
        "try:\n    main(sys.argv[1:])\nexcept ValueError as error:\n    print(error)\n"
        "print({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules))"
    )
    argv = _argv(made, tmp_path, "--patients", "99")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert "not among the dataset's" in done.stdout


def test_the_page_is_one_file_that_fits_a_phone_and_hides_its_maps(saved: Saved) -> None:
    text = (saved.directory / "saliency.html").read_text()
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "a&lt;b&gt;/é 9" in text
    assert "a<b>" not in text
    with Browser() as browser:
        page = browser.open(saved.directory / "saliency.html", width=390, height=844)
        assert page.value("document.documentElement.scrollWidth") <= 390
        assert len(page.requests) == 1
        assert page.complaints == []
        pictures = "[...document.querySelectorAll('.picture img')]"
        assert page.value(f"{pictures}.length") >= 20
        assert page.value(f"{pictures}.every(image => image.naturalWidth > 0)")
        shown = f"{pictures}.filter(i => getComputedStyle(i).visibility === 'visible').length"
        before = page.value(shown)
        page.value("document.querySelector('#plain').click()")
        assert page.value(shown) == before / 2


def test_the_picture_says_where_the_patients_left_is(saved: Saved) -> None:
    text = (saved.directory / "saliency.html").read_text()
    # Columns lead to the patient's left, rows backward.
    for place, letter in (("left", "R"), ("right", "L"), ("up", "A"), ("down", "P")):
        assert set(re.findall(rf'class="{place}">(\w)<', text)) == {letter}


def test_half_of_a_map_is_counted_from_its_strongest_voxels() -> None:
    assert half_in(np.array([1.0, 1.0, 6.0, 1.0, 1.0])) == 0.2
    assert half_in(np.ones(10)) == 0.5
    assert half_in(np.zeros(4)) is None


def test_any_id_makes_a_file_in_the_output_and_no_two_the_same() -> None:
    names = [map_name(one) for one in ("../x", "a/b", "a%2Fb", "é", "00005", ".")]
    assert len(set(names)) == len(names)
    assert not any("/" in name for name in names)
    assert map_name("00005") == "00005.nii.gz"


def _lesion(case: PreparedCase, lesion: Any) -> npt.NDArray[np.bool_]:
    """(row, column, slice): voxel centres within the true sphere, by the record's affine."""
    places = np.moveaxis(np.indices(case.volume.shape[:3]), 0, -1)
    points = places @ case.affine[:3, :3].T + case.affine[:3, 3]
    inside: npt.NDArray[np.bool_] = np.linalg.norm(points - lesion.centre, axis=-1) < lesion.radius
    return inside


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_phantoms_the_lesion_gets_five_times_the_mean_of_the_rest_of_the_head(
    tmp_path: Path,
) -> None:
    """Held-out patients that are predicted right, all together and those with the sign of label 1.

    A network that has only to find the bright rim says 0 where it finds none: patients of label 0
    are no more than their share of the first median. Any network's integrated gradients favour
    what is far from the head's mean, so the trained one must also do better than random weights.
    """
    from beam_jobs.core.example import decode_case
    from beam_jobs.core.tfrecord import read_records
    from beam_jobs.dicom_to_tfrecord import main as convert
    from beam_jobs.phantoms.cohort import write_cohort
    from beam_jobs.phantoms.plan import PhantomConfig
    from trainer.explain.explainer import Explainer, explainable, randomised
    from trainer.task import main as train

    cohort, data, run = (tmp_path / name for name in ("cohort", "data", "run"))
    config = PhantomConfig(
        patients=80, test_patients=0, seed=1, modalities=("T1wCE",), trouble_rate=0
    )
    truth = write_cohort(config, cohort, workers=2)
    convert(
        f"--input {cohort}/train --labels {cohort}/train_labels.csv --output {data} "
        "--shape 48,48,32 --modalities T1wCE --quiet".split()
    )
    train(
        f"--data {data} --output_dir {run} --fold 0 --model seed_cnn --epochs 15 "
        "--learning_rate 1e-3 --seed 1".split()
    )
    trained = Run.load(run)
    manifest = Manifest.loads((data / "manifest.json").read_text())
    model = explainable(trained.load_member(0))
    explain = Explainer(model, "integrated_gradients")
    at_random = Explainer(randomised(model, 0), "integrated_gradients")
    ratios: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for shard in manifest.shards_of([0]):
        with (data / shard.name).open("rb") as stream:
            for case in (decode_case(one, manifest.schema) for one in read_records(stream)):
                found = explain(case.volume)
                assert case.label is not None
                if (found.logit > 0) != bool(case.label):
                    continue
                lesion = truth.patient(case.patient_id.zfill(5)).head.lesion
                head = case.volume[..., 0] > 0
                inside = head & _lesion(case, lesion)
                assert inside.sum() > 20
                pair = [
                    one.strength("integrated_gradients")[..., 0]
                    for one in (found, at_random(case.volume))
                ]
                first, second = (
                    float(map_[inside].mean() / map_[head & ~inside].mean()) for map_ in pair
                )
                assert isinstance(case.label, int)
                ratios[case.label].append((first, second))
    assert min(map(len, ratios.values())) >= 5
    every = np.array(ratios[0] + ratios[1])
    positive = np.array(ratios[1])
    print("label 1", np.sort(positive[:, 0]).round(1), "label 0", np.sort(ratios[0], axis=0)[:, 0])
    assert np.median(every[:, 0]) >= 5
    assert positive[:, 0].min() >= 5
    assert np.median(positive[:, 0]) >= 2 * np.median(positive[:, 1])
    command = [sys.executable, "-m", "trainer.saliency", "--run", run, "--data", data]
    done = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "maps")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for patient in json.loads((tmp_path / "maps" / "saliency.json").read_text())["patients"]:
        assert abs(patient["random_weights"]["rank_correlation"]) < 0.3
