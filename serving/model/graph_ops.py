"""Which operations a model's graph may hold, looked at before TensorFlow runs any.

A SavedModel is a program: `WriteFile`, `ReadFile`, `PrintV2` or a table's initialiser in its graph
touch files as whoever loads or calls it. Networks need none of these. A graph with an operation
that is not listed here is refused, whoever made it and whatever its contract says. The saver's
functions, which every SavedModel has, read and write variables; nothing else may call them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.contract_json import ContractError, shown
from serving.model.canonical import GRAPH_NAME, functions_called

# TensorFlow would read it instead of saved_model.pb.
_OTHER_GRAPH = "saved_model.cpb"
# What networks of the registry, all their options, dtypes, ensembles and calibrations are made of
# (tests/serving/model/test_graph_ops.py), and arithmetic of the same kind that layers to come need.
_COMPUTING = """
Abs AddN AddV2 All Any ArgMax Assert AvgPool AvgPool3D BatchMatMulV2 BiasAdd BroadcastTo Cast
ConcatV2 Const Conv2D Conv3D Cumsum DecodeRaw DepthwiseConv2dNative Einsum Elu Equal Erf Exp
ExpandDims Expm1 Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2 Greater
GreaterEqual Identity IdentityN IsFinite LeakyRelu Less LessEqual Log Log1p LogicalAnd LogicalNot
LogicalOr LogSoftmax MatMul Max MaxPool MaxPool3D Maximum Mean Min Minimum Mul Neg NoOp NotEqual
OnesLike Pack Pad PadV2 ParseExampleV2 Placeholder Pow Prod Range Rank RealDiv Relu Relu6 Reshape
ReverseV2 Round Rsqrt Select SelectV2 Selu Shape Sigmoid Sign Size Slice Softmax Softplus Softsign
Split SplitV Sqrt Square SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tanh
TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem TensorListStack Tile
Transpose Unpack UpperBound ZerosLike
"""
# And what users' own networks are made of besides: layers and operations of Keras without state
# (dilated and transposed convolutions, shifted windows, positions, sorting, resizing, spectra).
_OF_USERS = """
Acos Acosh ArgMin Asin Asinh Atan Atan2 Atanh BatchToSpaceND Bitcast BitwiseAnd BroadcastArgs
Bucketize Ceil Complex ComplexAbs Conv2DBackpropInput Conv3DBackpropInputV2 Cos Cosh Cumprod
DepthToSpace DivNoNan Erfc Erfinv FFT FFT2D FFT3D IFFT IFFT2D IFFT3D Imag IsInf IsNan LogicalXor
MatrixBandPart MatrixDiagPartV3 MatrixDiagV3 MatrixInverse MatrixSetDiagV3 MirrorPad OneHot
PlaceholderWithDefault RFFT RFFT2D RFFT3D Real Reciprocal ResizeBicubic ResizeBilinear
ResizeNearestNeighbor Roll Sin Sinh SpaceToBatchND SpaceToDepth Svd Tan TensorScatterAdd
TensorScatterUpdate TopKV2 Xlogy XlaDynamicUpdateSlice
"""
# Variables, calls and loops.
_HOLDING = """
AssignVariableOp DisableCopyOnRead If PartitionedCall ReadVariableOp StatefulPartitionedCall
StatelessIf StatelessWhile VarHandleOp While
"""
ALLOWED = frozenset((_COMPUTING + _OF_USERS + _HOLDING).split())
_NUMBERED = re.compile(r".+_\d+")
_RESTORING = ALLOWED | {"RestoreV2"}
_SAVING = ALLOWED | {
    "MergeV2Checkpoints",
    "SaveV2",
    "ShardedFilename",
    "StaticRegexFullMatch",
    "StringJoin",
}


def require_known_ops(model: Path, *, name: str) -> None:
    """Refuses a SavedModel whose graph does what no exported network does.

    Args:
      model: its directory, on a disk.
      name: what to call it in messages.

    Raises:
      ContractError: names the operation, or says that saved_model.pb is none.
      OSError: there is no saved_model.pb.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    if (model / _OTHER_GRAPH).exists():
        raise ContractError(f"{name}: {_OTHER_GRAPH} is not of a model that was exported")
    try:
        saved = SavedModel.FromString((model / GRAPH_NAME).read_bytes())
    except DecodeError as error:
        raise ContractError(f"{name}: {GRAPH_NAME} is damaged: no SavedModel") from error
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        raise ContractError(f"{name}: {GRAPH_NAME} is not of a model that was exported")
    if unknown := unknown_ops(saved.meta_graphs[0]):
        raise ContractError(
            f"{name}: its graph holds the operation {shown(unknown[0])}, which no exported network "
            "needs and which may touch files: not loaded"
        )


def unknown_ops(graph: Any) -> list[str]:
    """Operations of a MetaGraphDef that stand where none such may stand, sorted."""
    library = graph.graph_def.library.function
    functions = {function.signature.name: function for function in library}
    if len(functions) < len(library):
        return ["a function of a name given twice"]
    saver = graph.saver_def
    saving = {saver.save_tensor_name.partition(":")[0]}
    restoring = {saver.restore_op_name} - saving
    found = {node.op for node in graph.graph_def.node} - ALLOWED - functions.keys()
    # Numbered, as TensorFlow names them: never an operation's own name.
    found |= {name for name in functions if not _NUMBERED.fullmatch(name)}
    # What the saver alone reaches may do more, but nothing more than it needs.
    of_saver: set[str] = set()
    for names, allowed in ((saving, _SAVING), (restoring, _RESTORING)):
        nodes = [node for node in graph.graph_def.node if node.name in names]
        calls = _reached(nodes, functions)
        found |= _ops(calls, functions) - allowed
        of_saver |= calls
    others = [node for node in graph.graph_def.node if node.name not in saving | restoring]
    reached = _reached(others, functions)
    reached |= functions.keys() - of_saver
    reached |= graph.object_graph_def.concrete_functions.keys() & functions.keys()
    # TensorFlow may run a function in the place of another that says it does the same.
    reached |= {name for name in of_saver if "api_implements" in functions[name].attr}
    reached |= _reached([node for name in reached for node in functions[name].node_def], functions)
    return sorted(found | (_ops(reached, functions) - ALLOWED))


def _reached(nodes: Iterable[Any], functions: Mapping[str, Any]) -> set[str]:
    """Names of the functions that nodes call, those that these call, and so on."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        for name in (node.op, *(function.name for function in functions_called(node))):
            if name in functions and name not in found:
                found.add(name)
                waiting += functions[name].node_def
    return found


def _ops(names: Iterable[str], functions: Mapping[str, Any]) -> set[str]:
    """Operations in functions, calls of other functions by name apart."""
    return {node.op for name in names for node in functions[name].node_def} - functions.keys()
