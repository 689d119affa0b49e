"""Operators of scikit-learn models in single precision, as onnxruntime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.referee import onnxruntime_session
from mlflow_lipschitz.frontends.support import support_table

FEATURES = 3


def one_node(op_type: str, outputs: list[str], **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x"], outputs, name="machine", domain="ai.onnx.ml", **attributes)
    kinds, shapes = {"label": TensorProto.INT64}, {"label": [None], "scores": [None, 2], "y": [None, 1]}
    graph = helper.make_graph(
        [node],
        "machine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shapes[name]) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def machine(seed: int, kernel: str, **attributes: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    count = 5
    return {
        "coefficients": random.normal(size=count).tolist(),
        "support_vectors": random.normal(size=count * FEATURES).tolist(),
        "rho": [float(random.normal())],
        "kernel_type": kernel,
        "kernel_params": [0.4, 0.3, 3.0],
        "post_transform": "NONE",
        **attributes,
    }


def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(20, FEATURES)).astype(np.float32)


KERNELS = ["LINEAR", "RBF", "POLY", "SIGMOID"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(3))
def test_svm_regressor(kernel: str, seed: int) -> None:
    model = one_node("SVMRegressor", ["y"], **machine(seed, kernel, n_supports=5))
    expected = onnxruntime_session(model).run(None, {"x": rows()})[0]
    np.testing.assert_allclose(evaluate(lower(model), rows()).numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("labels", [{"classlabels_ints": [3, 7]}, {"classlabels_strings": ["no", "yes"]}])
@pytest.mark.parametrize("seed", range(3))
def test_svm_classifier_of_two_classes(kernel: str, labels: dict[str, Any], seed: int) -> None:
    attributes = machine(seed, kernel, vectors_per_class=[2, 3], **labels)
    model = one_node("SVMClassifier", ["label", "scores"], **attributes)
    if "classlabels_strings" in labels:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    expected = onnxruntime_session(model).run(["scores"], {"x": rows()})[0]
    values = evaluate(lower(model, "scores"), rows()).numpy()
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6)
    assert support_table(model)[0].verdict == ("exact" if kernel == "LINEAR" else "relaxed")


@pytest.mark.parametrize(
    ("op_type", "changed", "reason"),
    [
        ("SVMClassifier", {"classlabels_ints": [0, 1, 2], "vectors_per_class": [2, 2, 1]}, "vote"),
        ("SVMClassifier", {"prob_a": [1.0], "prob_b": [0.0]}, "two different functions"),
        ("SVMClassifier", {"post_transform": "LOGISTIC"}, "LOGISTIC"),
        ("SVMClassifier", {"vectors_per_class": []}, "no support vectors"),
        ("SVMRegressor", {"one_class": 1}, "jump"),
        ("SVMRegressor", {"n_supports": 0}, "no support vectors"),
        ("SVMRegressor", {"post_transform": "SOFTMAX"}, "SOFTMAX"),
    ],
)
def test_what_jumps_is_refused(op_type: str, changed: dict[str, Any], reason: str) -> None:
    plain = (
        {"classlabels_ints": [0, 1], "vectors_per_class": [2, 3]} if op_type == "SVMClassifier" else {"n_supports": 5}
    )
    attributes = {name: v for name, v in {**machine(0, "RBF"), **plain, **changed}.items() if v != []}
    outputs = ["label", "scores"] if op_type == "SVMClassifier" else ["y"]
    with pytest.raises(UnsupportedOperator, match=reason) as refusal:
        lower(one_node(op_type, outputs, **attributes), outputs[-1])
    assert refusal.value.node == "machine" and refusal.value.remedy
