"""A network's graph, call by call: layers of a user's own network may be called more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras


class Call(NamedTuple):
    """One call of a layer, or of an operation that is none, within a graph.

    Attributes:
      layer: what was called.
      inputs: the symbolic tensors that it was given; none of an input layer.
      outputs: those it gave.
    """

    layer: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def calls(model: keras.Model) -> Iterator[Call]:
    """Every call of a functional model, in an order in which they can be computed.

    `layer.output` is the first call's alone, which may lie in another graph.
    """
    order = {id(operation): place for place, operation in enumerate(model.operations)}
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in sorted(nodes, key=lambda node: order[id(node.operation)]):
            yield Call(node.operation, tuple(node.input_tensors), tuple(node.outputs))
