"""metrics.json and report.html: what they hold, that they stand alone, and what they say."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.integrate import trapezoid
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from beam_jobs.common.contract_json import ContractError
from tests.browser import Browser
from tests.trainer.reports.pages import Page
from trainer.config.run_layout import OOF_COLUMNS
from trainer.evaluate import main
from trainer.metrics import evaluation
from trainer.metrics.estimate import estimate_of
from trainer.metrics.evaluation import evaluation_of
from trainer.metrics.logits import sigmoid
from trainer.metrics.predictions import Predictions, read_predictions
from trainer.reports.evaluation import page, write_report

N = 60


def _run(
    directory: Path,
    *,
    seeds: tuple[int, ...] = (0, 1),
    strength: float = 2.0,
    no_claim: str = "",
    null: tuple[float, ...] = (),
) -> Path:
    """A run's directory with out-of-fold predictions, histories and a series.csv."""
    rng = np.random.default_rng(8)
    labels = np.tile([0, 1], N // 2)
    directory.mkdir(parents=True)
    with (directory / "oof_predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(OOF_COLUMNS)
        for seed in seeds:
            logits = rng.normal(size=N) + strength * (labels - 0.5)
            for i in range(N):
                own = f"{i:05d}", labels[i], i // 20, seed, logits[i], sigmoid(logits[i])
                writer.writerow([*own, 2, "last", no_claim])
            for fold in range(3):
                member = directory / f"fold-{fold}-seed-{seed}"
                member.mkdir()
                (member / "history.csv").write_text(
                    "epoch,loss,val_loss,val_auc\n1,0.7,0.7,0.8\n2,0.6,nan,0.7\n"
                )
    run = {
        "model": "seed_cnn",
        "modalities": ["T1wCE"],
        "config": {"permute_labels": no_claim == "permuted"},
        "epoch_choice": "last",
        "no_claim": [no_claim] if no_claim else [],
    }
    (directory / "run.json").write_text(json.dumps(run))
    if null:
        rows = "".join(f"{i},{2 * i},{auc}\n" for i, auc in enumerate(null, 1))
        (directory / "permutations.csv").write_text("permutation,seed,auc\n" + rows)
    with (directory / "series.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient", "modality", "verdict", "plane", "field_strength"])
        for i in range(N):
            tesla = 7 if i in (1, 3, 5) else 3  # 7 T: positive patients only
            writer.writerow([str(i), "T1wCE", "used", "axial", tesla])
    return directory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Page]:
    """The command's output for a run, compared with another model, on a module's tests."""
    root = tmp_path_factory.mktemp("evaluation")
    run = _run(root / "first-run")
    other = _run(root / "second-run", strength=0.3, seeds=(4,))
    arguments = ["--predictions", str(run / "oof_predictions.csv")]
    arguments += [str(other / "oof_predictions.csv"), "--series", str(run / "series.csv")]
    assert main([*arguments, "--output", str(root / "out")]) == 0
    text = (root / "out" / "metrics.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in metrics.json")

    metrics = json.loads(text, parse_constant=refuse)
    return root, metrics, Page((root / "out" / "report.html").read_text(encoding="utf-8"))


def test_headline_is_the_mean_of_the_seeds_within_folds_and_each_seed_is_listed(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    root, metrics, _ = written
    text = (root / "first-run" / "oof_predictions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    logits = np.array([float(row["logit"]) for row in rows]).reshape(2, N)
    labels = np.array([int(row["label"]) for row in rows[:N]])
    assert (metrics["n"], metrics["repeats"]) == (N, 2)
    # Three folds of as many pairs each.
    each = [
        np.mean([roc_auc_score(labels[k : k + 20], one[k : k + 20]) for k in (0, 20, 40)])
        for one in logits
    ]
    assert metrics["auc"] == pytest.approx(np.mean(each))
    by_seed = next(group for group in metrics["groups"] if group["by"] == "seed")
    assert [one["auc"] for one in by_seed["groups"]] == pytest.approx(each)
    assert metrics["seeds"]["auc_sd"] == pytest.approx(np.std(each, ddof=1))
    roc = metrics["curves"]["roc"]
    assert trapezoid(roc["sensitivity"], roc["false_positive_rate"]) == pytest.approx(
        metrics["auc"]
    )
    probabilities = sigmoid(logits.mean(axis=0))
    expected = brier_score_loss(labels, probabilities)
    assert metrics["calibration"]["brier"] == pytest.approx(expected)
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, probabilities))


def test_every_key_is_documented(written: tuple[Path, dict[str, Any], Page]) -> None:
    _, metrics, _ = written
    words = set(re.findall(r"\w+", evaluation.__doc__ or ""))
    assert set(metrics) | set(metrics["calibration"]) | set(metrics["comparisons"][0]) <= words


def test_folds_are_listed_each_with_its_own_plain_interval(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    root, metrics, _ = written
    by_fold = next(group for group in metrics["groups"] if group["by"] == "fold")
    assert [one["n"] for one in by_fold["groups"]] == [20, 20, 20]
    predictions = read_predictions(root / "first-run" / "oof_predictions.csv")
    inside = predictions.folds == 0
    alone = estimate_of(predictions.labels[inside], predictions.repeats[:, inside])
    assert by_fold["groups"][0]["auc_interval"] == alone["auc_interval"]


def test_out_of_fold_every_interval_is_wider_than_of_a_test_set(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    root, metrics, found = written
    predictions = read_predictions(root / "first-run" / "oof_predictions.csv")
    plain = evaluation_of(dataclasses.replace(predictions, folds=None))

    def widths(one: dict[str, Any]) -> list[float]:
        band = one["curves"]["roc"]["band"]
        point = one["operating_points"][-1]["sensitivity"]["interval"]
        bars = [bar["interval"] for bar in one["calibration"]["bins"]]
        spans = [one["auc_interval"], one["average_precision"]["interval"], point, bars[2]]
        return [high - low for low, high in spans] + [band["high"][30] - band["low"][30]]

    for doubled, single in zip(widths(metrics), widths(plain), strict=True):
        assert 1.1 < doubled / single < 1.6
    assert "its variance doubled" in found.text
    assert "doubled" not in page(plain)


def test_a_scanner_of_one_class_is_reported_as_not_measurable(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    _, metrics, found = written
    by = next(group for group in metrics["groups"] if group["by"] == "field strength")
    assert by["groups"][1] == {
        "name": "7 T", "n": 3, "positive": 3, "not_measurable": "all positive",
    }  # fmt: skip
    assert "auc" in by["groups"][0]
    assert "not measurable: all positive" in found.text


def test_models_are_compared_on_the_patients_both_have(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    _, metrics, found = written
    (one,) = metrics["comparisons"]
    assert one["name"] == "second-run"
    assert one["n"] == N
    assert one["difference"] == pytest.approx(one["auc"] - one["other_auc"])
    assert one["p_value"] == one["p_value_holm"] < 0.05
    assert "second-run" in found.text


def test_learning_curves_are_found_in_the_run_that_the_predictions_lie_in(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    _, metrics, found = written
    assert len(metrics["learning_curves"]) == 6
    assert metrics["learning_curves"]["fold-0-seed-1"]["val_loss"] == [0.7, None]
    text = " ".join(found.text.split())
    assert "Optimistic: best epoch's AUC" in text
    assert text.count("Optimistic: best epoch") == 2
    assert "fold 0, seed 1 2 0.70 0.80 1 0.600 0.700" in text


def test_report_asks_for_nothing_but_itself(written: tuple[Path, dict[str, Any], Page]) -> None:
    root, _, found = written
    names = [tag for tag, _ in found.tags]
    assert "svg" in names
    assert not {"script", "iframe", "img", "object", "embed", "base", "form"} & set(names)
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), target
    text = (root / "out" / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    assert str(root) not in text


def test_links_lead_somewhere_and_ids_stand_once(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    _, _, found = written
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        if (target := attributes.get("href") or "").startswith("#"):
            assert target[1:] in ids, target


def test_every_chart_says_what_it_shows_and_takes_the_pages_colours(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    root, _, found = written
    drawings = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(drawings) == 8  # ROC, PR, calibration, scores, groups, three of learning
    ids = {attributes.get("id") for _, attributes in found.tags}
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= ids
    text = (root / "out" / "report.html").read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--positive)" in drawn
    assert not re.findall(r"(?:fill|stroke): ?#\w+", drawn)  # a fixed colour is lost in the dark
    assert "prefers-color-scheme: dark" in text


def test_page_shows_no_patient_id_and_no_missing_number(
    written: tuple[Path, dict[str, Any], Page],
) -> None:
    _, _, found = written
    assert "00001" not in found.text
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", found.text)


def _predictions(labels: npt.NDArray[Any], scores: npt.NDArray[Any], **more: Any) -> Predictions:
    keys = tuple(str(i) for i in range(labels.size))
    return Predictions(name="a <b>&", keys=keys, labels=labels, scores=scores, **more)


@pytest.mark.parametrize("positive", [1, 2])
def test_smallest_cohorts_have_a_report(positive: int, tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [3, positive])
    write_report(tmp_path / "out", _predictions(labels, labels * 30.0))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["auc"] == 1
    assert metrics["calibration"] is None
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "calibration is not measurable" in text
    assert "a &lt;b&gt;&amp;" in text
    assert "<b>&" not in text


def test_scores_all_alike_have_a_report() -> None:
    labels, half = np.tile([0, 1], 8), np.full(16, 0.5)
    found = evaluation_of(_predictions(labels, half, probabilities=half, logits=np.zeros(16)))
    assert found["auc"] == 0.5
    assert found["p_value"] == 1
    assert found["calibration"]["slope"] is None
    json.dumps(found, allow_nan=False)
    assert "cannot be told from chance" in page(found)


def test_scores_that_tell_the_fold_alone_are_no_evidence_and_names_are_text() -> None:
    folds = np.repeat([0, 1], 60)
    labels = np.r_[np.repeat([0, 1], [50, 10]), np.repeat([0, 1], [10, 50])]
    scores = 10 * folds + np.random.default_rng(3).normal(size=120)
    predictions = _predictions(labels, scores, folds=folds)
    found = evaluation_of(predictions, others=[_predictions(labels, labels - 0.5)])
    assert roc_auc_score(labels, scores) > 0.8
    assert abs(found["auc"] - 0.5) < 0.1
    assert not found["better_than_chance"]
    drawn = page(found)
    assert drawn.count("a &lt;b&gt;&amp;") > 5  # the legend's too
    assert "<b>" not in drawn


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="both classes: 3 positive and 0 negative"):
        write_report(tmp_path / "out", _predictions(np.ones(3, int), np.arange(3.0)))
    assert not (tmp_path / "out").exists()


def test_comparison_needs_the_same_labels(tmp_path: Path) -> None:
    labels, scores = np.tile([0, 1], 5), np.arange(10.0)
    with pytest.raises(ContractError, match="different labels"):
        evaluation_of(_predictions(labels, scores), others=[_predictions(1 - labels, scores)])


_NULL = tuple(np.linspace(0.36, 0.62, 99).tolist())


@pytest.mark.parametrize(
    ("options", "lead", "kicker"),
    [
        ({"strength": 0.0}, "cannot be told from chance", "Against chance"),
        ({"strength": 2.0}, "is better than chance on patients like these", "by the interval"),
        ({"strength": 2.0, "null": _NULL}, "is better than chance", "by the permuted runs"),
        ({"strength": 0.0, "null": _NULL}, "cannot be told from chance", "by the permuted runs"),
        ({"strength": 2.0, "null": _NULL[:19]}, "is better than chance", "so few cannot decide"),
        ({"no_claim": "permuted"}, "is that of permuted labels", "no claim"),
        ({"no_claim": "permuted", "null": _NULL}, "is that of permuted labels", "no claim"),
        ({"no_claim": "searched"}, "is optimistic", "no claim"),
    ],
)
def test_the_headline_is_true_of_every_kind_of_run(
    tmp_path: Path, options: dict[str, Any], lead: str, kicker: str
) -> None:
    run = _run(tmp_path / "run", **options)
    out = write_report(tmp_path / "out", read_predictions(run / "oof_predictions.csv"), run=run)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    text = Page(out.read_text(encoding="utf-8")).text.replace("\N{NO-BREAK SPACE}", " ")
    assert lead in metrics["reading"][0]
    assert metrics["reading"][0] in text
    assert kicker in text
    assert metrics["better_than_chance"] == ("better than chance" in text)
    assert all(sentence in text for sentence in (*metrics["reading"], *metrics["warnings"]))
    drawn = 'id="chance-title"' in out.read_text(encoding="utf-8")
    assert drawn == bool(options.get("null"))
    if metrics["no_claim"]:
        assert not re.search(r"p [=<] |[Ii]nterval(?! nor p-value)|[Bb]ootstrap|\bband\b", text)
        assert not list(_intervals(metrics))
        assert metrics["average_precision"]["interval"] is None
        assert metrics["curves"]["roc"]["band"] is metrics["bootstrap"] is None
    else:
        assert len(list(_intervals(metrics))) > 25


def _intervals(data: Any) -> Iterator[Any]:
    """Every interval and band that a JSON object holds."""
    if isinstance(data, list):
        data = dict(enumerate(data))
    if isinstance(data, dict):
        for name, value in data.items():
            if value is not None and re.search("interval$|^band$", str(name)):
                yield value
            yield from _intervals(value)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_begins_with_the_headline(tmp_path: Path, dark: bool) -> None:
    kinds: list[dict[str, Any]] = [{"strength": 0.0}, {"null": _NULL}, {"no_claim": "permuted"}]
    pages = []
    for place, options in enumerate(kinds):
        run = _run(tmp_path / str(place), **options)
        predictions = read_predictions(run / "oof_predictions.csv")
        pages.append(write_report(tmp_path / f"out-{place}", predictions, run=run))
    with Browser(dark=dark) as browser:
        for path in pages:
            shown = browser.open(path, width=390, height=844)
            assert shown.value("document.documentElement.scrollWidth") <= 390
            bottom = "document.querySelector('.lead').getBoundingClientRect().bottom"
            assert shown.value(bottom) < 844
            assert (len(shown.requests), shown.complaints) == (1, [])


def test_permuted_retrainings_are_drawn_with_the_runs_own_auc(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", null=_NULL)
    found = evaluation_of(read_predictions(run / "oof_predictions.csv"), run=run)
    assert found["decided_by"] == "permutations"
    assert sum(found["permutations"]["histogram"]["counts"]) == 99
    drawing = re.search(r'<svg[^>]*aria-labelledby="chance.*?</svg>', page(found), re.DOTALL)
    assert drawing is not None
    assert f"this run: {found['auc']:.2f}" in drawing[0]


def test_an_old_file_is_optimistic_on_the_page_and_in_comparisons(tmp_path: Path) -> None:
    new = _run(tmp_path / "new", seeds=(0,))
    rows = list(csv.reader((new / "oof_predictions.csv").read_text().splitlines()))
    old = tmp_path / "old.csv"
    old.write_text("\n".join(",".join(row[:6]) for row in rows) + "\n")
    out, both = tmp_path / "out", (new / "oof_predictions.csv", old)
    assert main(["--predictions", *map(str, both), "--output", str(out)]) == 0
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "no test: old: A version before 0.3 kept the epochs" in text
    assert main(["--predictions", str(old), "--output", str(out)]) == 0
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    assert "is optimistic: no measure" in text
    assert "than chance" not in text
    assert "from chance" not in text


def test_report_is_the_same_for_the_same_predictions(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", seeds=(0,))
    predictions = read_predictions(run / "oof_predictions.csv")
    first = write_report(tmp_path / "a", predictions).read_bytes()
    assert write_report(tmp_path / "b", predictions).read_bytes() == first
