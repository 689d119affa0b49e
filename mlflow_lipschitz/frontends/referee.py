"""onnxruntime, the referee of what an ONNX model computes."""

from __future__ import annotations

import onnx
import onnxruntime


def onnxruntime_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """`model` on the CPU, one thread, its graph as it stands: onnxruntime's own optimizations round weights anew."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
