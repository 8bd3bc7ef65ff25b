"""report.html of classes, findings and values: it stands alone, and says what metrics.json does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.core.cohort.target import PLAIN, Target
from tests.browser import Browser
from tests.trainer.metrics.tasks.cohorts import TASKS, make_predictions
from tests.trainer.reports.pages import Page
from trainer.metrics.comparisons import comparisons_of
from trainer.metrics.evaluation import evaluation_of
from trainer.metrics.predictions import Predictions
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.wording import auc_text, interval_text
from trainer.reports.evaluation import page, write_report

# One page is drawn by `make test`: drawings take a second.
KINDS = [
    "multilabel",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("multiclass", "regression")),
]


@pytest.fixture(scope="module", params=KINDS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Page, str]:
    """A task, its metrics.json, the page read, and its text."""
    root = tmp_path_factory.mktemp("page")
    path = write_report(root, make_predictions(request.param, seeds=2))
    text = path.read_text(encoding="utf-8")
    return request.param, json.loads((root / "metrics.json").read_text()), Page(text), text


def test_page_stands_alone_and_every_link_and_chart_is_whole(written):
    _, _, found, text = written
    names = [tag for tag, _ in found.tags]
    assert not {"script", "iframe", "img", "object", "embed", "base", "form"} & set(names)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), target
            if target and target.startswith("#"):
                assert target[1:] in ids, target
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#\w+", drawn)  # a fixed colour is lost in the dark
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", found.words)
    assert "00001" not in found.words


def test_page_says_every_sentence_and_shows_every_figure_with_its_interval(written):
    task, metrics, found, _ = written
    assert all(one in found.words for one in (*metrics["reading"], *metrics["warnings"]))
    rows = len(metrics["figures"]) + sum(len(one["groups"]) for one in metrics["groups"])
    assert rows + len(metrics["parts"]) < len([tag for tag, _ in found.tags if tag == "tr"])
    for title in {"multiclass": ("Quadratic kappa", "Confusion matrix"),
                  "multilabel": ("All findings right", "p, Holm"),
                  "regression": ("Root mean square error", "Upper limit of agreement",
                                 "holds the true value in 90 of 100")}[task]:  # fmt: skip
        assert title in found.words
    assert "its variance doubled" in found.words


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_page_without_a_claim_has_neither_interval_nor_p(task):
    text = Page(page(evaluation_of(make_predictions(task, no_claim=("searched",))))).words
    assert "is optimistic: no measure of what the model is worth" in text
    assert not re.search(r"p [=<] |[Ii]nterval(?! nor p-value)|\bp, Holm\b|than chance", text)


@pytest.mark.slow
def test_names_are_text_and_many_classes_are_listed_but_not_drawn():
    names = ("a <b>&", *(f"class {number}" for number in range(1, 60)))
    target = Target(task="multiclass", labels=("kind",), classes=names)
    found = evaluation_of(make_predictions("multiclass", n=240, target=target))
    assert found["confusion"] is None
    text = page(found)
    assert "too many for a picture" in text
    assert "a &lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert "class 59" in text


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_covariates_alone_stand_beside_the_headline_and_among_the_models(task: str) -> None:
    predictions = make_predictions("regression")
    if task == "binary":
        labels = (predictions.labels > 20).astype(np.int64)
        predictions = dataclasses.replace(predictions, labels=labels, target=PLAIN)
    found = evaluation_of(predictions)
    assert "Covariates alone" not in page(found)
    alone = dataclasses.replace(predictions, name="covariates alone", scores=predictions.scores**2)
    estimate = estimate_of_task(alone.target, alone.labels, alone.repeats, folds=alone.folds)
    (comparison,) = comparisons_of(predictions, [alone])
    found["covariates_alone"] = {"estimate": estimate, "comparison": comparison, "said": "x"}
    text = Page(page(found)).words
    assert f"Covariates alone{auc_text(estimate)} {interval_text(estimate)}, without an" in text
    assert re.search("covariates alone60[^a-z]+to", text)  # a row of the table
    assert "p, Holm" not in text  # a question of its own, not one of several models
    others = [dataclasses.replace(alone, name=name) for name in ("other", "another")]
    several = page({**found, "comparisons": comparisons_of(predictions, others)})
    assert "p, Holm" in several
    (own,) = (row for row in several.split("<tr>") if 'row">covariates alone<' in row)
    assert own.partition("</tr>")[0].endswith("<td>–</td>")
    found["covariates_alone"]["comparison"] = None  # too few patients of a class
    assert "Models compared" not in page(found)


@pytest.mark.slow
def test_a_binarys_page_tells_which_named_class_is_positive() -> None:
    labels = np.tile([0, 1], 8)
    target = Target(task="binary", labels=("status",), classes=("healthy", "ill <b>"))
    keys = tuple(map(str, range(16)))
    given = Predictions(name="a", keys=keys, labels=labels, scores=labels - 0.3, target=target)
    found = evaluation_of(given)
    assert found["target"]["classes"] == ["healthy", "ill <b>"]
    assert "8 positive (ill &lt;b&gt;), 8 negative (healthy)" in page(found)
    assert "target" not in evaluation_of(dataclasses.replace(given, target=PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_phone(tmp_path: Path, dark: bool) -> None:
    long = Target(task="multilabel", labels=("W" * 60, "x" * 200, "edema"))
    kinds: list[tuple[str, dict[str, Any]]] = [(task, {}) for task in TASKS]
    kinds += [("multilabel", {"target": long}), ("regression", {"no_claim": ("permuted",)})]
    with Browser(dark=dark) as browser:
        for place, (task, more) in enumerate(kinds):
            path = write_report(tmp_path / str(place), make_predictions(task, **more))
            shown = browser.open(path, width=390, height=844)
            assert shown.value("document.documentElement.scrollWidth") <= 390
            bottom = "document.querySelector('.lead').getBoundingClientRect().bottom"
            assert shown.value(bottom) < 844
            assert (len(shown.requests), shown.complaints) == (1, [])
