"""Element types of the tensors of an ONNX model."""

from __future__ import annotations

import onnx


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors for which ONNX can tell."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        graph = model.graph
    known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            known[value.name] = value.type.tensor_type.elem_type
    return known
