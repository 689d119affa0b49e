"""The replay must see every way in which the graph is not the served model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends import fidelity
from mlflow_lipschitz.frontends.fidelity import ReplayOptions, replay
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import make_model, node


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, onnx.ModelProto, Graph]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    model = to_onnx(module, torch.zeros(2, 6))
    return module, model, lower(model)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 6))


def answers_of(module: nn.Module, points: np.ndarray) -> np.ndarray:
    return module(torch.from_numpy(points).float()).detach().numpy()


def tampered(graph: Graph, position: int, change: float) -> Graph:
    """The graph with one weight of its `position`-th Linear off by `change`."""
    linear = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, ops.Linear)][position]
    weight = graph.nodes[linear].op.weight.copy()
    weight[0, 0] += change
    nodes = list(graph.nodes)
    nodes[linear] = replace(nodes[linear], op=ops.Linear(weight, graph.nodes[linear].op.bias))
    return replace(graph, nodes=tuple(nodes))


def test_an_honest_graph_passes(network, points) -> None:
    module, model, graph = network
    report = replay(graph, model, points, lambda rows: answers_of(module, rows))
    assert report.compared == ("graph against onnxruntime", "graph against served outputs")
    assert report.rows == 50
    assert 0 < report.max_difference < report.tolerance
    assert 0 <= report.worst_row < 50


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_changed_weight_is_seen(network, points, layer: int) -> None:
    _, model, graph = network
    with pytest.raises(FidelityError, match=r"onnxruntime.*worst is row \d+ with a difference of"):
        replay(tampered(graph, layer, 0.01), model, points)


def test_worst_row_is_named(network, points) -> None:
    module, model, graph = network

    def served(rows: np.ndarray) -> np.ndarray:
        answers = answers_of(module, rows)
        answers[17, 2] += 0.5
        return answers

    with pytest.raises(FidelityError, match=r"served outputs: 1 of 50 rows differ; worst is row 17 .* 0\.5"):
        replay(graph, model, points, served)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_a_mismatch(network, points, value: float) -> None:
    module, model, graph = network

    def served(rows: np.ndarray) -> np.ndarray:
        answers = answers_of(module, rows)
        answers[3, 0] = value
        return answers

    with pytest.raises(FidelityError, match="row 3"):
        replay(graph, model, points, served)


def test_a_graph_that_overflows(network, points) -> None:
    _, model, graph = network
    with pytest.raises(FidelityError, match="NaN or infinity on row 0"):
        replay(tampered(graph, 2, np.inf), model, points)


@pytest.mark.parametrize(
    "form",
    [
        lambda a: a.tolist(),
        lambda a: torch.from_numpy(a),
        lambda a: pd.DataFrame(a),
        lambda a: {"anything": a},
        lambda a: {"linear_2": a, "other": a[:, :1]},
        lambda a: a[:, None, :],
    ],
    ids=["list", "tensor", "frame", "dict of one", "dict by name", "extra axis"],
)
def test_forms_of_an_answer(network, points, form) -> None:
    module, model, graph = network
    assert model.graph.output[0].name == "linear_2"
    replay(graph, model, points, lambda rows: form(answers_of(module, rows)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda a: a[:, :2], "nothing can be compared"),
        (lambda a: a[:-1], "49 answers for 50 rows"),
        (lambda a: np.array(["yes"] * len(a)), "nothing can be compared"),
        (lambda a: {"a": a, "b": a}, "none of these"),
        (lambda a: 1.0, "one answer"),
        (lambda a: None, "one answer"),
        (lambda a: a.argmin(axis=1), "served labels"),
        (lambda a: np.full(len(a), 7), "served labels"),
    ],
)
def test_answers_that_do_not_fit(network, points, answer, words: str) -> None:
    module, model, graph = network
    with pytest.raises(FidelityError, match=words):
        replay(graph, model, points, lambda rows: answer(answers_of(module, rows)))


def test_positions_of_the_largest_output(network, points) -> None:
    module, model, graph = network
    report = replay(graph, model, points, lambda rows: answers_of(module, rows).argmax(axis=1))
    assert report.compared[1] == "argmax of the graph against served labels"


def test_a_served_model_that_fails(network, points) -> None:
    _, model, graph = network

    def served(rows: np.ndarray) -> Any:
        raise ZeroDivisionError("at night")

    with pytest.raises(FidelityError, match="at night"):
        replay(graph, model, points, served)


def test_points_that_do_not_fit(network) -> None:
    _, model, graph = network
    for shape in ((0, 6), (3, 5), (3, 6, 1)):
        with pytest.raises(FidelityError, match="cannot be replayed"):
            replay(graph, model, np.zeros(shape))


def test_many_chunks_give_what_one_gives(network, points, monkeypatch) -> None:
    module, model, graph = network
    whole = replay(graph, model, points)
    monkeypatch.setattr(fidelity, "CHUNK_ENTRIES", 20)
    assert replay(graph, model, points, lambda rows: answers_of(module, rows)).rows == whole.rows
    with pytest.raises(FidelityError):
        replay(tampered(graph, 2, 0.1), model, points)


@pytest.mark.parametrize("batch", [1, 8, "batch"])
def test_every_kind_of_batch(batch: Any) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    model = make_model([node("Gemm", "x w", "h"), node("Relu", "h")], (4,), {"w": weight}, batch=batch)
    asked: list[int] = []

    def served(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return np.maximum(rows @ weight, 0)

    assert replay(lower(model), model, np.random.default_rng(1).normal(size=(21, 4)), served).rows == 21
    assert asked == {1: [1] * 21, 8: [8, 8, 8], "batch": [21]}[batch]


def test_the_output_that_was_lowered_is_replayed() -> None:
    nodes = [node("Relu", "x", "a"), node("Tanh", "x", "b")]
    model = make_model(nodes, (4,), outputs=["a", "b"])
    points = np.random.default_rng(1).normal(size=(5, 4))
    replay(
        lower(model, "b"),
        model,
        points,
        lambda rows: {"a": rows * 0, "b": np.tanh(rows)},
        options=ReplayOptions(output="b"),
    )
    with pytest.raises(FidelityError):
        replay(lower(model, "b"), model, points)


def test_rounding_a_row_is_not_the_models_error() -> None:
    model = make_model([node("Mul", "x c")], (1,), {"c": np.float32(1.0)})
    replay(lower(model), model, np.array([[1e8 + 1.0]]), options=ReplayOptions(relative=1e-12))


def test_regressor_in_double_precision() -> None:
    rows, targets = load_diabetes(return_X_y=True, scaled=False)
    estimator = make_pipeline(StandardScaler(), Ridge()).fit(rows, targets)
    model = to_onnx(estimator)
    report = replay(lower(model), model, rows, estimator.predict)
    assert report.max_difference < 1e-10
    with pytest.raises(FidelityError):
        replay(lower(model), model, rows, lambda x: estimator.predict(x) * (1 + 1e-6))


@pytest.fixture(scope="module")
def classifier() -> tuple[Any, onnx.ModelProto, np.ndarray]:
    rows, targets = load_breast_cancer(return_X_y=True)
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, np.array(["bad", "good"])[targets])
    return estimator, to_onnx(estimator), rows


@pytest.mark.parametrize(
    ("method", "compared"),
    [
        ("predict", "argmax of the graph against served labels"),
        ("predict_proba", "softmax of the graph against served probabilities"),
        ("decision_function", "graph against served scores"),
    ],
)
def test_classifier(classifier, method: str, compared: str) -> None:
    estimator, model, rows = classifier
    report = replay(lower(model), model, rows, getattr(estimator, method))
    assert report.compared[1] == compared


def test_wrong_labels_and_probabilities_are_seen(classifier) -> None:
    estimator, model, rows = classifier
    graph = lower(model)

    def one_label_changed(x: np.ndarray) -> np.ndarray:
        labels = estimator.predict(x)
        labels[11] = "good" if labels[11] == "bad" else "bad"
        return labels

    with pytest.raises(FidelityError, match="row 11"):
        replay(graph, model, rows, one_label_changed)
    with pytest.raises(FidelityError, match="probabilities"):
        replay(graph, model, rows, lambda x: estimator.predict_proba(x)[:, ::-1])
    with pytest.raises(FidelityError, match="the classes are"):
        replay(graph, model, rows, lambda x: np.array(["ugly"] * len(x)))


def test_classifier_without_probabilities() -> None:
    rows, targets = load_breast_cancer(return_X_y=True)
    rows = StandardScaler().fit_transform(rows)
    estimator = LinearSVC(random_state=0).fit(rows, targets)
    model = to_onnx(estimator)
    assert "served scores" in replay(lower(model), model, rows, estimator.decision_function).compared[1]
    assert "served labels" in replay(lower(model), model, rows, estimator.predict).compared[1]


def test_the_served_model_may_be_asked_other_rows_than_the_points(
    network: tuple[nn.Module, onnx.ModelProto, Graph], points: np.ndarray
) -> None:
    """A model that looks tokens up is asked tokens, while the graph is evaluated at their embeddings."""
    module, model, graph = network
    asked = pd.DataFrame({"key": np.arange(len(points))[::-1]})

    def served(rows: pd.DataFrame) -> np.ndarray:
        return answers_of(module, points[len(points) - 1 - rows["key"].to_numpy()])

    assert replay(graph, model, points, served, options=ReplayOptions(served_rows=asked)).rows == 50
    with pytest.raises(FidelityError):
        replay(graph, model, points, served, options=ReplayOptions(served_rows=asked[::-1]))
