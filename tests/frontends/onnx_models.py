"""Small ONNX models, and onnxruntime as the referee of what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.referee import onnxruntime_session

Dims = Sequence[Any]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    sample_shape: Dims,
    constants: Mapping[str, np.ndarray] | None = None,
    batch: int | str | None = "batch",
    opset: int = 20,
    outputs: Sequence[str] = ("y",),
    functions: Sequence[onnx.FunctionProto] = (),
    check: bool = True,
) -> onnx.ModelProto:
    """A model from input "x" of shape (batch, *sample_shape) to "y"; the shapes of the outputs are inferred.

    With `check` off shape inference may fail, as it does on models that make no sense with the batch they declare.
    """
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *sample_shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    domains = {**{part.domain: 1 for part in nodes}, "": opset, "ai.onnx.ml": 3}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)
    known = onnx.shape_inference.infer_shapes(model, strict_mode=check)
    for declared, inferred in zip(model.graph.output, known.graph.output, strict=True):
        declared.CopyFrom(inferred)
        if not declared.type.tensor_type.HasField("shape"):  # inference knows nothing of this operator
            declared.type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * 2)
    return model


def node(op_type: str, inputs: str, outputs: str = "y", name: str = "", **attributes: Any) -> onnx.NodeProto:
    """`inputs` and `outputs` are names separated by blanks; "_" is an optional input left out."""
    names = ["" if part == "_" else part for part in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=name or f"make_{outputs}", **attributes)


def run_onnxruntime(model: onnx.ModelProto, points: np.ndarray, output: str | None = None) -> np.ndarray:
    """(rows, outputs) flattened; row by row when the model has a batch of fixed length 1."""
    session = onnxruntime_session(model)
    name = session.get_inputs()[0].name
    chosen = [output] if output else [session.get_outputs()[0].name]
    step = 1 if session.get_inputs()[0].shape[0] == 1 else len(points)
    rows = [session.run(chosen, {name: points[i : i + step]})[0] for i in range(0, len(points), step)]
    return np.concatenate([np.asarray(part).reshape(step, -1) for part in rows])


def assert_lowers_exactly(model: onnx.ModelProto, sample_shape: Sequence[int], seed: int = 0) -> None:
    """The lowered graph computes what onnxruntime computes, up to float32 rounding, on random rows."""
    points = np.random.default_rng(seed).normal(size=(5, *sample_shape)).astype(np.float32)
    graph = lower(model)
    expected = run_onnxruntime(model, points)
    actual = evaluate(graph, points).numpy()
    assert actual.shape == expected.shape
    assert len(graph.output_names) == actual.shape[1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max()))
