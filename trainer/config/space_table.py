"""The table of what a search may choose.

What has values here is searched unless the space's file says otherwise; every other setting of the
trainer is where the file names it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from trainer.config.augment import PRESETS, AugmentConfig
from trainer.config.hyperparameter import Value
from trainer.config.network import HEADS, MODELS, PADDINGS, POOLINGS, RESNETS, SLICE_MODELS
from trainer.config.run import CLASS_WEIGHTS, CROSS_ENTROPY, PRECISIONS, SCHEDULES, XLA

VOLUME_MODELS = tuple(name for name in MODELS if name not in SLICE_MODELS)
SEARCHED_FUSIONS = ("early", "late", "single")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of a run that may be searched.

    Attributes:
      name: in the space's file.
      kind: of its values.
      place: in `TrainConfig`'s JSON; empty where `Space.settings` puts it.
      values: searched where the file says nothing of it.
      known: the only names there are; empty where anything that trains will do.
      own: it may also be a user's own, `module:function`.
      parent: of an earlier setting; this one means anything only ...
      when: ... where the parent has one of these values, ...
      when_own: ... or is a user's own, of whose network nothing is searched but what the file
        names.
    """

    name: str
    kind: type
    place: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    known: tuple[str, ...] = ()
    own: bool = False
    parent: str = ""
    when: tuple[str, ...] = ()
    when_own: bool = False


def _network(name: str, kind: type, **more: Any) -> Setting:
    return Setting(name=name, kind=kind, place=("network", name), **more)


def _optimizer(name: str, kind: type, **more: Any) -> Setting:
    return Setting(name=name, kind=kind, place=("optimizer", name), **more)


def _run(name: str, kind: type, **more: Any) -> Setting:
    return Setting(name=name, kind=kind, place=(name,), **more)


# Parents come before their children.
SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="network",
        kind=str,
        place=("network", "name"),
        values=("seed_cnn", "resnet10", "densenet121", "efficientnet_b0", "slice_cnn"),
        known=MODELS,
        own=True,
    ),
    _network("width", float, values=(0.25, 0.5, 1.0), parent="network", when=MODELS, when_own=True),
    _network(
        "depth",
        float,
        values=(1.0, 2.0),
        parent="network",
        when=tuple(name for name in MODELS if name != "seed_cnn"),
        when_own=True,
    ),
    _network(
        "pooling",
        str,
        values=POOLINGS,
        known=POOLINGS,
        parent="network",
        when=VOLUME_MODELS,
        when_own=True,
    ),
    _network("head", str, values=HEADS, known=HEADS, parent="network", when=SLICE_MODELS),
    _network(
        "dropout", float, values=(0.0, 0.2, 0.4, 0.6), parent="network", when=MODELS, when_own=True
    ),
    Setting(name="fusion", kind=str, values=SEARCHED_FUSIONS, known=SEARCHED_FUSIONS),
    # Its values are the dataset's.
    Setting(name="modality", kind=str, parent="fusion", when=("single",)),
    _optimizer("learning_rate", float, values=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    _optimizer("schedule", str, values=("exponential", "cosine"), known=SCHEDULES),
    _run("batch_size", int, values=(4, 8, 16)),
    _run(
        "augment",
        str,
        values=("none", "flip", "light", "medium"),
        known=tuple(PRESETS),
        own=True,
    ),
    _run("precision", str, values=("auto",), known=PRECISIONS),
    # From here on: where the file names them.
    _network("encoder", str, own=True, parent="network", when=SLICE_MODELS),
    _network("encoder_weights", str, parent="network", when=SLICE_MODELS),
    _network("weights", str, parent="network", when=VOLUME_MODELS, when_own=True),
    _network("padding", str, known=PADDINGS, parent="network", when=RESNETS),
    _run("freeze", int),
    _run("epochs", int),
    _optimizer("warmup_epochs", int, parent="schedule", when=("cosine",)),
    _optimizer("decay_steps", int, parent="schedule", when=("exponential",)),
    _optimizer("decay_rate", float, parent="schedule", when=("exponential",)),
    _optimizer("weight_decay", float),
    _optimizer("stage_decay", float),
    _optimizer("clip_norm", float),
    _optimizer("ema", float),
    _run("loss", str, known=(CROSS_ENTROPY,), own=True),
    _run("label_smoothing", float),
    _run("class_weights", str, known=CLASS_WEIGHTS),
    _run("xla", str, known=XLA),
    *(
        Setting(
            name=f"augment.{field.name}",
            kind=float,
            place=("augment", field.name),
            parent="augment",
            when=tuple(PRESETS),
        )
        for field in dataclasses.fields(AugmentConfig)
        if field.name != "flip"  # three numbers
    ),
)
# Settings that are no hyperparameters, and what says them instead.
ELSEWHERE = {
    "model": "it is called network here",
    "modalities": "fusion and modality choose among them",
    "covariates": "all that the dataset holds are known of a patient in every trial",
    "repeats": "the search's --seeds says how many",
    "seed": "the search has a --seed of its own",
    **dict.fromkeys(("fold", "outer_fold"), "the search's --folds and --outer_fold say which"),
    "permute_labels": "a search on permuted labels finds nothing",
    "epoch_choice": "a trial is measured at its last epoch",
}
