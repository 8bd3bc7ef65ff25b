"""One graph, one file: what TensorFlow writes into saved_model.pb by chance is made canonical.

Functions are numbered by a counter of the process, and calls carry the settings of the process
that traced them (threads, devices). Neither is part of what the graph computes. Here functions are
numbered and ordered as they were traced, calls keep the one setting that is not the machine's, and
map fields are written sorted. `fingerprint.pb`, TensorFlow's own hash, is made anew, without the
number that newer TensorFlows draw for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

GRAPH_NAME = "saved_model.pb"
FINGERPRINT_NAME = "fingerprint.pb"
_NUMBERED = re.compile(r"(.*)_(\d+)")


def canonicalise(model: Path) -> None:
    """Rewrites saved_model.pb and fingerprint.pb of a model that was just written."""
    from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    # The one writer of fingerprint.pb; TensorFlow has no public one.
    from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

    file = model / GRAPH_NAME
    saved = SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        _canonicalise(graph)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    (model / FINGERPRINT_NAME).unlink(missing_ok=True)
    write_fingerprint(str(model))
    fingerprint = FingerprintDef.FromString((model / FINGERPRINT_NAME).read_bytes())
    if "uuid" in FingerprintDef.DESCRIPTOR.fields_by_name:  # random; 2.17 has none
        fingerprint.ClearField("uuid")
        (model / FINGERPRINT_NAME).write_bytes(fingerprint.SerializeToString(deterministic=True))


def _canonicalise(graph: Any) -> None:
    """Renames and orders the functions of a MetaGraphDef, and clears what the process left."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    config = ConfigProto(allow_soft_placement=True).SerializeToString(deterministic=True)
    library = graph.graph_def.library
    names = renumbered(function.signature.name for function in library.function)
    for node in nodes_of(graph.graph_def):
        node.op = names.get(node.op, node.op)
        if "config_proto" in node.attr:
            node.attr["config_proto"].s = config
        # Numbered by the process too, and of use in training alone.
        node.attr.pop("_gradient_op_type", None)
        for function in functions_called(node):
            function.name = names[function.name]
    mention = re.compile(f"({'|'.join(map(re.escape, names))})(?![0-9])")
    for function in library.function:
        function.signature.name = names[function.signature.name]
        # Loops name arguments after their functions.
        for argument in function.signature.input_arg:
            argument.name = mention.sub(lambda found: names[found[1]], argument.name)
        for attributes in function.arg_attr.values():
            given = attributes.attr.get("_user_specified_name")
            if given is not None and given.s.isdigit():  # the process's number again
                del attributes.attr["_user_specified_name"]
        for node in function.node_def:
            node.input[:] = [mention.sub(lambda found: names[found[1]], of) for of in node.input]
    library.function.sort(key=lambda function: _number(function.signature.name))
    _rename_objects(graph.object_graph_def, names)
    aliases = {names[name]: text for name, text in graph.meta_info_def.function_aliases.items()}
    graph.meta_info_def.function_aliases.clear()
    graph.meta_info_def.function_aliases.update(aliases)


def renumbered(names: Iterable[str]) -> dict[str, str]:
    """name -> the same with its place in the order of tracing for the process's number.

    Raises:
      ValueError: a function without a number: TensorFlow names them otherwise than it did.
    """
    ordered = sorted(names, key=_number)
    return {name: f"{_parts(name)[0]}_{place}" for place, name in enumerate(ordered)}


def nodes_of(graph: Any) -> Iterable[Any]:
    """Every node of a GraphDef, those of its functions too."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def functions_called(node: Any) -> Iterator[Any]:
    """NameAttrLists in the attributes of a NodeDef or NameAttrList: functions that it runs."""
    for value in node.attr.values():
        for function in (*([value.func] if value.HasField("func") else []), *value.list.func):
            yield function
            yield from functions_called(function)


def _rename_objects(objects: Any, names: Mapping[str, str]) -> None:
    """Puts new names of functions into a SavedObjectGraph."""
    signatures = {}
    for name, function in objects.concrete_functions.items():
        signatures[names[name]] = type(function).FromString(function.SerializeToString())
    objects.concrete_functions.clear()
    for name, function in signatures.items():
        objects.concrete_functions[name].CopyFrom(function)
    for node in objects.nodes:
        if node.HasField("function"):
            node.function.concrete_functions[:] = [
                names[name] for name in node.function.concrete_functions
            ]
        if node.HasField("bare_concrete_function"):
            bare = node.bare_concrete_function
            bare.concrete_function_name = names[bare.concrete_function_name]


def _number(name: str) -> int:
    return int(_parts(name)[1])


def _parts(name: str) -> tuple[str, str]:
    found = _NUMBERED.fullmatch(name)
    if found is None:
        raise ValueError(f"a function {name!r} without a number: it cannot be named canonically")
    return found[1], found[2]
