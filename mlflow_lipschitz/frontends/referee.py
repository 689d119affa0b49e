"""onnxruntime, the referee of what an ONNX model computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper

_IR_VERSION = 8  # any that onnxruntime reads: it says how a file is laid out, not what its operators mean


def onnxruntime_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """`model` on the CPU, one thread, its graph as it stands: onnxruntime's own optimizations round weights anew."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_node(node: onnx.NodeProto, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray | None]:
    """The outputs of one node of the default domain for these inputs (None: left out), in the node's own types;
    None for an optional output that the node leaves out.

    Raises:
        Exception: whatever onnxruntime raises; its exceptions have no base class of their own.
    """
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    feeds = {f"input_{i}": value for i, value in enumerate(inputs) if value is not None}
    alone.input.extend(f"input_{i}" if value is not None else "" for i, value in enumerate(inputs))
    names = [f"result_{i}" if name else "" for i, name in enumerate(node.output)]
    alone.output.extend(names)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    wanted = [name for name in names if name]
    results = [helper.make_empty_tensor_value_info(name) for name in wanted]
    graph = helper.make_graph([alone], "constant", declared, results)
    imports = [helper.make_opsetid(node.domain, opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    found = dict(zip(wanted, onnxruntime_session(model).run(wanted, feeds), strict=True))
    return [found.get(name) for name in names]
