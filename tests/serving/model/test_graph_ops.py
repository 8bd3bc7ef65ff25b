"""A graph that does more than compute is refused before it runs; every network's is let through."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from beam_jobs.common.contract_json import ContractError
from serving.model.calibration import Calibration
from serving.model.canonical import GRAPH_NAME, nodes_of
from serving.model.contract import CONTRACT_NAME, Contract
from serving.model.graph import in_float32, serving_module
from serving.model.graph_ops import ALLOWED, require_known_ops
from serving.model.integrity import file_hashes
from serving.model.loaded_model import load_model
from tests.serving.models import schema_of, spec_of
from tests.trainer.networks.weights import torch_format, torch_reference
from trainer.config.network import FUSIONS, HEADS, MODELS, POOLINGS, SLICE_MODELS, NetworkConfig
from trainer.networks.registry import build_model

SHAPE = (16, 16, 12)
CALIBRATIONS = (
    Calibration(method="temperature", temperature=2.0),
    Calibration(method="isotonic", knots=((-1.0, -2.0), (0.0, 0.5), (2.0, 3.0))),
    Calibration(method="isotonic", knots=((-1.0, -2.0),)),
)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def relist(model: Path) -> None:
    """Makes the contract list the files as they are now, as whoever changed them would."""
    data: dict[str, Any] = json.loads((model / CONTRACT_NAME).read_text())
    data["sha256"] = {k: v for k, v in file_hashes(model).items() if k != CONTRACT_NAME}
    (model / CONTRACT_NAME).write_text(json.dumps(data))


def of_function(do: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Path], None]:
    """Gives a model the graph of a function whose signatures do `do`."""

    def put(model: Path) -> None:
        module = tf.Module()
        spec = tf.TensorSpec([None], tf.string, name="examples")
        module.f = tf.function(do, input_signature=[spec])
        names = {"serving_default": module.f, "volumes": module.f}
        tf.saved_model.save(module, str(model), signatures=names)

    return put


def written(path: str) -> Callable[[Path], None]:
    def do(examples: tf.Tensor) -> tf.Tensor:
        tf.io.write_file(path, "owned")
        return tf.identity(examples)

    return of_function(do)


def printed(path: str) -> Callable[[Path], None]:
    def do(examples: tf.Tensor) -> tf.Tensor:
        tf.print("owned", output_stream=f"file://{path}")
        return tf.identity(examples)

    return of_function(do)


def in_a_branch(path: str) -> Callable[[Path], None]:
    def write() -> tf.Tensor:
        tf.io.write_file(path, "owned")
        return tf.constant(["x"])

    return of_function(
        lambda examples: tf.cond(tf.size(examples) > 0, write, lambda: tf.constant(["y"]))
    )


def edited(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    def put(model: Path) -> None:
        saved = SavedModel.FromString((model / GRAPH_NAME).read_bytes())
        edit(saved.meta_graphs[0])
        (model / GRAPH_NAME).write_bytes(saved.SerializeToString())

    return put


def calling_the_saver(graph: Any) -> None:
    """serving_default calls the function that writes variables to a path of the caller's."""
    save = next(
        node
        for node in graph.graph_def.node
        if f"{node.name}:0" == graph.saver_def.save_tensor_name
    )
    for node in graph.graph_def.node:
        if node.op == "StatefulPartitionedCall" and node is not save:
            node.attr["f"].func.name = save.attr["f"].func.name
            return


def hiding_a_function(graph: Any) -> None:
    library = graph.graph_def.library
    library.function.append(library.function[0])


def named_like_an_operation(graph: Any) -> None:
    graph.graph_def.library.function[0].signature.name = "WriteFile"


def a_saver_of_its_own(graph: Any) -> None:
    graph.graph_def.node.add(name="w", op="WriteFile")
    graph.saver_def.save_tensor_name = "w:0"


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        (written, "WriteFile"),
        (printed, "PrintV2"),
        (in_a_branch, "WriteFile"),
        (lambda path: of_function(lambda e: tf.reshape(tf.io.read_file(path), [1])), "ReadFile"),
        (lambda path: of_function(lambda e: tf.io.matching_files([path])), "MatchingFiles"),
        (
            lambda path: of_function(lambda e: tf.numpy_function(lambda x: x, [e], tf.string)),
            "PyFunc",
        ),
        (lambda path: edited(calling_the_saver), "MergeV2Checkpoints"),
        (lambda path: edited(named_like_an_operation), "WriteFile"),
        (lambda path: edited(hiding_a_function), "a name given twice"),
        (lambda path: edited(a_saver_of_its_own), "MergeV2Checkpoints"),
    ],
)
def test_a_graph_that_touches_files_is_refused_and_touches_none(
    copy: Path,
    tmp_path: Path,
    change: Callable[[str], Callable[[Path], None]],
    operation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "mark"
    change(str(mark))(copy)
    relist(copy)
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("opened"))
    with pytest.raises(ContractError, match=operation) as refused:
        load_model(copy)
    assert "not loaded" in str(refused.value)
    assert str(copy) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (GRAPH_NAME, b"\xff" * 100),
        (GRAPH_NAME, b""),
        ("saved_model.cpb", b"another graph"),
    ],
)
def test_what_is_no_graph_of_ours_is_refused(copy: Path, name: str, data: bytes) -> None:
    (copy / name).write_bytes(data)
    relist(copy)
    with pytest.raises(ContractError, match=name) as refused:
        load_model(copy)
    assert "\n" not in str(refused.value)


def operations(config: NetworkConfig, dtype: str, precision: str, number: int) -> set[str]:
    """Of the functions that an export would write."""
    channels = 1 + number % 3
    keras.config.set_dtype_policy(precision)
    try:
        network = build_model(config, SHAPE, channels, dtype)
    finally:
        keras.config.set_dtype_policy("float32")
    spec = spec_of(shape=list(SHAPE), dtype=dtype)
    schema = schema_of(spec)
    taken = Contract(
        schema=schema,
        spec=spec,
        modalities=schema.modalities[:channels],
        members=({},),
        ensemble=("logits", "probabilities")[number % 2],
        calibration=CALIBRATIONS[number % 3],
        prior=(0.5,),
        cohort={},
        training=(),
        versions={},
    )
    _, signatures = serving_module([in_float32(network, precision)], taken)
    graphs = [f.get_concrete_function().graph.as_graph_def() for f in signatures.values()]
    return {node.op for graph in graphs for node in nodes_of(graph)}


def every_option() -> list[NetworkConfig]:
    # Width, depth and larger networks of a family change the counts of layers, not their kinds.
    alike = {"resnet18", "resnet34", *(f"efficientnet_b{size}" for size in range(1, 8))}
    configs = [NetworkConfig(name=name) for name in MODELS if name not in alike]
    for name in ("resnet10", "seed_cnn"):
        for pooling in POOLINGS:
            configs += [
                NetworkConfig(name=name, pooling=pooling, fusion=fusion, dropout=0.3)
                for fusion in FUSIONS
            ]
    configs.append(NetworkConfig(name="resnet10", padding="symmetric"))
    for head in HEADS:
        configs += [
            NetworkConfig(name=SLICE_MODELS[0], head=head, fusion=fusion, dropout=0.3)
            for fusion in FUSIONS
        ]
    return configs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_every_network_with_every_option_stays_within_the_listed_operations(
    precision: str,
) -> None:
    for number, config in enumerate(every_option()):
        dtype = ("uint8", "uint16", "float16")[number % 3]
        assert operations(config, dtype, precision, number) <= ALLOWED, config


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("of", ["volumes", "images"])
def test_a_network_in_the_layout_of_its_weights_stays_within_the_listed_operations(
    tmp_path: Path, of: str, precision: str
) -> None:
    arrays = torch_reference.state_dict("resnet50", width=0.125, channels=1, shortcut="A")
    if of == "images":
        arrays = {
            name: array.sum(axis=2) if array.ndim == 5 else array for name, array in arrays.items()
        }
    torch_format.write_torch(tmp_path / "net.pth", arrays)
    config = NetworkConfig(name="resnet50", width=0.125, weights=str(tmp_path / "net.pth"))
    assert operations(config, "uint8", precision, 0) <= ALLOWED


def test_the_export_of_a_network_passes(model: Path) -> None:
    require_known_ops(model, name="model")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Conv3D(2, 3, dilation_rate=2),
        lambda: keras.layers.Conv3DTranspose(2, 2, strides=2),
        lambda: keras.layers.Lambda(lambda x: keras.ops.roll(x, 1, axis=1)),
        lambda: keras.layers.Lambda(lambda x: keras.ops.sin(x) + keras.ops.cos(x)),
        lambda: keras.layers.Lambda(lambda x: keras.ops.top_k(x, 2)[0]),
        lambda: keras.layers.Lambda(lambda x: keras.ops.one_hot(keras.ops.argmax(x, -1), 2)),
        lambda: keras.layers.TimeDistributed(keras.layers.Resizing(6, 6)),
    ],
)
def test_layers_that_users_networks_have_are_let_through(
    layer: Callable[[], keras.Layer],
) -> None:
    made = layer()
    given = tf.TensorSpec((1, 8, 8, 8, 2))
    graph = tf.function(made, input_signature=[given]).get_concrete_function().graph
    found = {node.op for node in nodes_of(graph.as_graph_def())}
    functions = {function.signature.name for function in graph.as_graph_def().library.function}
    assert found - functions <= ALLOWED
