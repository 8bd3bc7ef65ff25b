"""A network's stages, read from its graph: whatever network it is, nothing has to be named.

A stage begins where a layer halves the map, by its stride or, as a user's own block does, by
answering with half as many positions; what works on the features of a whole volume is the head,
the last stage. Only layers with weights are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from beam_jobs.common.cli import UsageError
from trainer.networks.graph import calls
from trainer.networks.layers import BatchToSequence


def stages_of(model: keras.Model) -> list[list[keras.layers.Layer]]:
    """The layers with weights of each stage, from the input to the head.

    Args:
      model: as `build_model` made it.
    """
    halvings: dict[int, int] = {}  # of a tensor, on its way from the input
    body: dict[int, list[keras.layers.Layer]] = {}
    head, met = _head(model), set()
    for layer, taken, given in calls(model):
        count = max((halvings.get(id(tensor), 0) for tensor in taken), default=0)
        count += _halves(layer, taken, given)
        halvings.update(dict.fromkeys(map(id, given), count))
        if _has_weights(layer) and id(layer) not in head and id(layer) not in met:
            body.setdefault(count, []).append(layer)
            met.add(id(layer))
    last = [layer for layer in model.layers if id(layer) in head and _has_weights(layer)]
    return [*(body[count] for count in sorted(body)), last]


def _head(model: keras.Model) -> set[int]:
    """The identities of the layers behind which no map comes any more."""
    leads: set[int] = set()  # tensors that a map is made of
    rejoined: set[int] = set()  # tensors of whole volumes whose items were folded into the batch
    maps = set()
    for layer, taken, given in calls(model):
        known = any(id(tensor) in rejoined for tensor in taken)
        if known or isinstance(layer, BatchToSequence):
            rejoined.update(map(id, given))
        elif any(len(tensor.shape) > 2 for tensor in given):
            maps.add(id(layer))
    head = set()
    for layer, taken, given in reversed(list(calls(model))):
        if id(layer) in maps or any(id(tensor) in leads for tensor in given):
            leads.update(map(id, taken))
        else:
            head.add(id(layer))
    return head


def head_of(model: keras.Model) -> set[str]:
    """The names of the layers with weights that work on the features of whole volumes."""
    return {layer.name for layer in stages_of(model)[-1]}


def _has_weights(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Layer) and bool(layer.weights)


def _halves(layer: Any, taken: Sequence[Any], given: Sequence[Any]) -> bool:
    strides = getattr(layer, "strides", None)
    if strides is not None:
        return any(stride > 1 for stride in keras.tree.flatten(strides))
    if not _has_weights(layer) or not taken or not given:
        return False
    before, after = _positions(taken[0]), _positions(given[0])
    return 1 < after <= before // 2


def _positions(tensor: Any) -> int:
    """Of a map or a sequence; 1 where a size is not known, and of a vector."""
    sizes = tensor.shape[1:-1]
    return 1 if None in sizes else math.prod(sizes)


class Frozen(NamedTuple):
    """What keeps its weights.

    Attributes:
      stages: that do, of `of`.
      of: stages that the network has.
      weights: that do, of `all_weights`.
      all_weights: that the network has, BatchNormalization's statistics among them.
    """

    stages: int
    of: int
    weights: int
    all_weights: int

    def __str__(self) -> str:
        kept, whole = f"{self.weights:,}", f"{self.all_weights:,}"
        if self.all_weights >= 1e5:
            kept, whole = f"{self.weights / 1e6:.2g}", f"{self.all_weights / 1e6:.3g} million"
        return f"{self.stages} of {self.of} stages, {kept} of {whole} weights"


def freeze(model: keras.Model, count: int) -> Frozen:
    """Lets the first stages keep their weights; their batch statistics stand still too.

    Args:
      model: as `build_model` made it; changed in place.
      count: of stages.

    Raises:
      UsageError: not one stage would be left but the head.
    """
    stages = stages_of(model)
    if count >= len(stages):
        raise UsageError(
            f"--freeze {count}: {model.name} has {len(stages)} stages with its head, "
            f"at most {len(stages) - 1} can be frozen"
        )
    for stage in stages[:count]:
        for layer in stage:
            layer.trainable = False
    kept = sum(layer.count_params() for stage in stages[:count] for layer in stage)
    return Frozen(count, len(stages), kept, model.count_params())


def prepared(model: keras.Model, *, frozen: int, decay: float) -> list[tuple[str, str]]:
    """Freezes what is to be frozen, and says in rows what a network starts from and how it learns.

    Args:
      model: as `build_model` made it; changed in place.
      frozen: stages.
      decay: of `factors`.

    Raises:
      UsageError: as `freeze`.
    """
    rows = []
    started = getattr(model, "started_from", "")  # a user's own may know weights of its own
    if started:
        rows.append(("weights", started))
    if frozen:
        drawn = "; it starts from no weights: they stay as they were drawn"
        rows.append(("frozen", f"{freeze(model, frozen)}{drawn if started is None else ''}"))
    if decay != 1:
        count = len(stages_of(model))
        rates = [decay ** (count - 1 - place) for place in range(frozen, count)]
        rows.append(
            ("rates", f"a stage: {', '.join(f'{rate:.2g}' for rate in rates)} of the highest")
        )
    return rows


def factors(model: keras.Model, decay: float) -> list[float]:
    """What each trainable variable's learning rate is multiplied by, in the model's order.

    1 in the head, `decay` in the stage before it, its square in the one before that (Howard &
    Ruder 2018).
    """
    stages = stages_of(model)
    of_variable = {
        id(variable): decay ** (len(stages) - 1 - place)
        for place, stage in enumerate(stages)
        for layer in stage
        for variable in layer.trainable_variables
    }
    return [of_variable[id(variable)] for variable in model.trainable_variables]
