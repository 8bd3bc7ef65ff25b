"""metrics.json and report.html: what they hold, that they stand alone, and what they say."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from beam_jobs.common.contract_json import ContractError
from trainer.evaluate import main
from trainer.metrics import evaluation
from trainer.metrics.evaluation import evaluation_of
from trainer.metrics.logits import sigmoid
from trainer.metrics.predictions import Predictions, read_predictions
from trainer.metrics.wording import p_text, reading
from trainer.reports.evaluation import page, write_report

N = 60


def _run(directory: Path, *, seeds: tuple[int, ...] = (0, 1), strength: float = 2.0) -> Path:
    """A run's directory with out-of-fold predictions, histories and a series.csv."""
    rng = np.random.default_rng(8)
    labels = np.tile([0, 1], N // 2)
    directory.mkdir(parents=True)
    with (directory / "oof_predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient_id", "label", "fold", "seed", "logit", "probability"])
        for seed in seeds:
            logits = rng.normal(size=N) + strength * (labels - 0.5)
            for i in range(N):
                writer.writerow([f"{i:05d}", labels[i], i % 3, seed, logits[i], sigmoid(logits[i])])
            for fold in range(3):
                member = directory / f"fold-{fold}-seed-{seed}"
                member.mkdir()
                (member / "history.csv").write_text(
                    "epoch,loss,val_loss,val_auc,best\n1,0.7,0.7,0.5,\n2,0.6,nan,0.7,best\n"
                )
    run = {
        "model": "seed_cnn",
        "modalities": ["T1wCE"],
        "config": {"permute_labels": True},
        "metrics": {"last_epoch": {"auc": 0.531}},
    }
    (directory / "run.json").write_text(json.dumps(run))
    with (directory / "series.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient", "modality", "verdict", "plane", "field_strength"])
        for i in range(N):
            tesla = 7 if i in (1, 3, 5) else 3  # 7 T: positive patients only
            writer.writerow([str(i), "T1wCE", "used", "axial", tesla])
    return directory


class _Page(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], _Page]:
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
    return root, metrics, _Page((root / "out" / "report.html").read_text(encoding="utf-8"))


def test_headline_is_the_mean_logits_and_each_seed_is_listed(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    root, metrics, _ = written
    text = (root / "first-run" / "oof_predictions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    logits = np.array([float(row["logit"]) for row in rows]).reshape(2, N)
    labels = np.array([int(row["label"]) for row in rows[:N]])
    assert metrics["n"] == N
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, logits.mean(axis=0)))
    each = [roc_auc_score(labels, one) for one in logits]
    by_seed = next(group for group in metrics["groups"] if group["by"] == "seed")
    assert [one["auc"] for one in by_seed["groups"]] == pytest.approx(each)
    assert metrics["seeds"]["auc_sd"] == pytest.approx(np.std(each, ddof=1))
    probabilities = sigmoid(logits.mean(axis=0))
    expected = brier_score_loss(labels, probabilities)
    assert metrics["calibration"]["brier"] == pytest.approx(expected)
    assert metrics["log_loss"] == pytest.approx(log_loss(labels, probabilities))


def test_every_key_is_documented(written: tuple[Path, dict[str, Any], _Page]) -> None:
    _, metrics, _ = written
    words = set(re.findall(r"\w+", evaluation.__doc__ or ""))
    assert set(metrics) | set(metrics["calibration"]) | set(metrics["permutation"]) <= words


def test_folds_are_listed_and_labels_are_shuffled_within_them(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, metrics, _ = written
    by_fold = next(group for group in metrics["groups"] if group["by"] == "fold")
    assert [one["n"] for one in by_fold["groups"]] == [20, 20, 20]
    assert metrics["permutation"]["within_folds"] is True
    assert metrics["permutation"]["p_value"] < 0.001


def test_a_scanner_of_one_class_is_reported_as_not_measurable(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, metrics, found = written
    by = next(group for group in metrics["groups"] if group["by"] == "field strength")
    assert by["groups"][1] == {
        "name": "7 T", "n": 3, "positive": 3, "not_measurable": "all positive",
    }  # fmt: skip
    assert "auc" in by["groups"][0]
    assert "not measurable: all positive" in found.text


def test_models_are_compared_on_the_patients_both_have(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, metrics, found = written
    (one,) = metrics["comparisons"]
    assert one["name"] == "second-run"
    assert one["n"] == N
    assert one["difference"] == pytest.approx(one["auc"] - one["other_auc"])
    assert one["p_value"] == one["p_value_holm"] < 0.05
    assert "second-run" in found.text


def test_warnings_tell_the_choice_of_epochs_and_permuted_labels(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, metrics, found = written
    assert "chosen on these same patients" in metrics["warnings"][0]
    assert "score 0.53" in metrics["warnings"][0]
    assert "labels were permuted" in metrics["warnings"][1]
    assert all(sentence in found.text for sentence in metrics["warnings"])


def test_learning_curves_are_found_in_the_run_that_the_predictions_lie_in(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, metrics, found = written
    assert len(metrics["learning_curves"]) == 6
    assert metrics["learning_curves"]["fold-0-seed-1"]["val_loss"] == [0.7, None]
    assert "fold 0, seed 1 2 0.70 2 0.70 0.600 0.700" in " ".join(found.text.split())


def test_report_asks_for_nothing_but_itself(written: tuple[Path, dict[str, Any], _Page]) -> None:
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
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    _, _, found = written
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        if (target := attributes.get("href") or "").startswith("#"):
            assert target[1:] in ids, target


def test_every_chart_says_what_it_shows_and_takes_the_pages_colours(
    written: tuple[Path, dict[str, Any], _Page],
) -> None:
    root, _, found = written
    drawings = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(drawings) == 9  # ROC, PR, calibration, scores, chance, groups, three of learning
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
    written: tuple[Path, dict[str, Any], _Page],
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
    assert metrics["intervals"]["delong"] == (None if positive == 1 else [1, 1])
    assert metrics["calibration"] is None
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "calibration is not measurable" in text
    assert "a &lt;b&gt;&amp;" in text
    assert "<b>&" not in text


def test_scores_all_alike_have_a_report() -> None:
    labels, half = np.tile([0, 1], 8), np.full(16, 0.5)
    found = evaluation_of(_predictions(labels, half, probabilities=half, logits=np.zeros(16)))
    assert found["auc"] == 0.5
    assert found["permutation"]["p_value"] == 1
    assert found["calibration"]["slope"] is None
    json.dumps(found, allow_nan=False)
    assert "cannot be told from chance" in page(found)


def test_scores_that_tell_the_fold_alone_are_no_evidence_and_names_are_text() -> None:
    folds = np.repeat([0, 1], 60)
    labels = np.r_[np.repeat([0, 1], [50, 10]), np.repeat([0, 1], [10, 50])]
    scores = 10 * folds + np.random.default_rng(3).normal(size=120)
    predictions = _predictions(labels, scores, folds=folds)
    found = evaluation_of(predictions, others=[_predictions(labels, labels - 0.5)])
    assert found["auc"] > 0.8
    assert found["permutation"]["null_mean"] > 0.8
    assert found["permutation"]["p_value"] > 0.05
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


@pytest.mark.parametrize(
    ("interval", "value", "said"),
    [
        ([0.46, 0.70], 0.58, "This AUC of 0.58 on 87 patients cannot be told from chance."),
        ([0.51, 0.70], 0.61, "This AUC of 0.61 on 87 patients is better than chance"),
        ([0.30, 0.49], 0.39, "This AUC of 0.39 on 87 patients is worse than chance"),
    ],
)
def test_reading_says_what_the_interval_allows(
    interval: list[float], value: float, said: str
) -> None:
    found = {
        "n": 87, "positive": 40, "auc": value, "auc_interval": interval,
        "auc_told_from_chance": 0.623, "permutation": {"permutations": 10_000, "p_value": 0.2},
    }  # fmt: skip
    first, second, third = reading(found)
    assert first.startswith(said)
    assert "40 positive and 47 negative" in second
    assert "above 0.62" in second
    assert "10,000 times" in third
    assert third.endswith("p = 0.2.")


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.031, "p = 0.031"), (1.0, "p = 1"), (9.999e-5, "p = 0.0001"), (1e-9, "p < 0.0001")],
)
def test_p_values_are_written_without_exponents(p: float, said: str) -> None:
    assert p_text(p) == said


def test_report_is_the_same_for_the_same_predictions(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", seeds=(0,))
    predictions = read_predictions(run / "oof_predictions.csv")
    first = write_report(tmp_path / "a", predictions).read_bytes()
    assert write_report(tmp_path / "b", predictions).read_bytes() == first
