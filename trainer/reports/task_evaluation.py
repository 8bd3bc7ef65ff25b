"""report.html of classes, findings and values: the page that `evaluation` writes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from beam_jobs.common.templating import render
from trainer.metrics.tasks import evaluation_words as words
from trainer.metrics.tasks.measure import measure_named
from trainer.metrics.wording import auc_name, permutations_text, title_of
from trainer.reports import charts, task_charts
from trainer.reports.formats import filters_of, learnt

Draw = Callable[[dict[str, Any]], str]

_LISTED = 100  # classes or findings that tables list; metrics.json has all


def task_page(evaluation: dict[str, Any]) -> str:
    """The page of the object that `evaluation.evaluation_of_task` makes."""
    scored, parts = measure_named(evaluation["measure"]), evaluation["parts"]
    confusion = evaluation.get("confusion")
    unit = evaluation["target"]["unit"]
    shown: dict[str, tuple[Any, Draw]] = {
        "roc": (parts and task_charts.drawn(evaluation, "roc"), task_charts.roc),
        "areas": (parts, task_charts.areas),
        "confusion": (
            confusion and len(confusion) <= task_charts.CELLS_MOST,
            task_charts.confusion,
        ),
        "figures": (task_charts.bounded(evaluation), task_charts.figures),
        "calibration": (
            parts and task_charts.drawn(evaluation, "calibration"),
            task_charts.calibration,
        ),
        "scatter": ("agreement" in evaluation, task_charts.scatter),
        "agreement": ("agreement" in evaluation, task_charts.agreement),
        "chance": (evaluation["permutations"], charts.chance),
        "groups": (evaluation["groups"], charts.groups),
    }
    return render(
        "trainer.reports",
        "task_evaluation.html.j2",
        filters={
            **filters_of(evaluation),
            "at": lambda score: f"{100 * (score - scored.least) / (1 - scored.least):.2f}",
            "short": words.number,
            "with_interval": words.with_interval,
            "in_unit": words.in_unit,
            "reference": words.reference_text,
            "title": lambda name: words.TITLES[name],
            "unit": lambda name: unit if name in words.IN_UNITS else "",
        },
        e=evaluation,
        charts={
            name: Markup(draw(evaluation)) if wanted else ""
            for name, (wanted, draw) in shown.items()
        },
        permutations=permutations_text(evaluation) if evaluation["permutations"] else "",
        called=auc_name(evaluation["no_claim"], title_of(evaluation)),
        measure=scored,
        unit=unit,
        what={"multiclass": "class", "multilabel": "finding"}.get(evaluation["task"], "value"),
        parts=parts[:_LISTED],
        left_out=max(0, len(parts) - _LISTED),
        drawn_most=task_charts.DRAWN_MOST,
        learning=[Markup(svg) for svg in charts.learning(evaluation)],
        learnt=learnt(evaluation),
    )
