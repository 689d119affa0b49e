"""What README.md and the reference pages take for granted: a store with `credit-scorer`, its policy, rows, keys and a network.

Run as a script in an empty folder; argument: README.md, whose policy is the one that is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
from mlflow.models import infer_signature
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LinearRegression

import mlflow_lipschitz as ml
from mlflow_lipschitz.registry.keys import new_keys

FEATURES = ["customer_id", "country_de", "country_fr", "age", "income"]
PROPERTY = """\
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const X_2 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 -0.1)) (assert (<= X_0 0.1))
(assert (>= X_1 -0.1)) (assert (<= X_1 0.1))
(assert (>= X_2 -0.1)) (assert (<= X_2 0.1))
(assert (>= Y_0 100.0))
"""


def customers(count: int = 250) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "customer_id": np.arange(count, dtype=float),
            "country_de": random.integers(0, 2, count).astype(float),
            "country_fr": random.integers(0, 2, count).astype(float),
            "age": random.uniform(20, 90, count),
            "income": random.uniform(1e4, 2e5, count),
        }
    )
    return frame.assign(label=(frame["income"] > 6e4).astype(int))


def register(frame: pd.DataFrame, slope: float) -> None:
    model = LinearRegression().fit(frame[FEATURES], slope * frame["income"] / 1e5 - 0.01 * frame["age"])
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name="credit-scorer",
            signature=infer_signature(frame[FEATURES], model.predict(frame[FEATURES])),
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )


def network() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["scores"]),
    ]
    weights = {"first": random.normal(size=(3, 8)), "second": random.normal(size=(8, 2))}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main(readme: Path) -> None:
    text = next(part for part in readme.read_text(encoding="utf-8").split("```") if "kind: AuditPolicy" in part)
    policy = text.partition("\n")[2]
    Path("policy.yaml").write_text(policy, encoding="utf-8")
    frame = customers()
    frame.to_parquet("rows.parquet")
    onnx.save(network(), "network.onnx")
    Path("property.vnnlib").write_text(PROPERTY, encoding="utf-8")
    private, _, _ = new_keys("keys")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("credit", (Path.cwd() / "artifacts").as_uri()))
    for slope in (1.3, 1.0, 1.01):
        register(frame, slope)
    how = ml.AuditOptions(sign_key=private)
    first = "".join(line + "\n" for line in policy.splitlines() if "no_regression" not in line)
    ml.audit("models:/credit-scorer/2", frame, first, options=how)
    ml.promote("models:/credit-scorer/2", alias="champion")
    passed = ml.audit("models:/credit-scorer/3", frame, "policy.yaml", out="audit", options=how)
    assert passed.verdict.status == "passed", passed.verdict


if __name__ == "__main__":
    main(Path(sys.argv[1]))
