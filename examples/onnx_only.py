"""Nothing but an ONNX file, from whatever trained it: its operators, its bounds, and an audit of the registered version."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import onnx
from mlflow.models import infer_signature
from onnx import TensorProto, helper, numpy_helper

import mlflow_lipschitz as ml
from mlflow_lipschitz.frontends.support import support_table

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: controller, version: 1}
model: {output: "command[0]"}
perturbation: {norm: linf, radius: 0.05}
checks:
  - {id: steady, type: lipschitz_at_most, max: 40.0}
"""


def controller(path: Path) -> onnx.ModelProto:
    """Two dense layers with a tanh between them, as any exporter would write them."""
    random = np.random.default_rng(0)
    weights = {"first": random.normal(size=(3, 12)), "second": random.normal(size=(12, 2))}
    nodes = [
        helper.make_node("MatMul", ["state", "first"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["command"]),
    ]
    graph = helper.make_graph(
        nodes,
        "controller",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("command", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return model


def main(directory: Path) -> None:
    model = controller(directory / "controller.onnx")
    states = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    for node in support_table(model):
        print(f"{node.op_type}: {node.verdict}")

    # Without MLflow: a file, points, a region.
    graph = ml.trace(directory / "controller.onnx")
    bound = ml.certify_lipschitz(graph, states, ml.Box.around(states, 0.05), norm="linf", outputs=0)
    print(f"steepest slope around 20 states: proved at most {bound.upper.max():.2f}, met {bound.lower.max():.2f}")

    # With MLflow: the registered version, and a verdict on record.
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("control", (directory / "artifacts").as_uri()))
    with mlflow.start_run():
        mlflow.onnx.log_model(
            model,
            name="model",
            signature=infer_signature(states, np.zeros((20, 2), np.float32)),
            registered_model_name="controller",
            pip_requirements=["onnxruntime"],
        )
    result = ml.audit("models:/controller/1", states, POLICY)
    print("verdict:", result.verdict.status)


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="controller-")))
