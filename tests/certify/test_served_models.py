"""Models that onnxruntime and torch serve in float32: their answers lie within the served error, node by node fused or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

import mlflow_lipschitz as ml
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.served.libraries import LIBRARIES
from mlflow_lipschitz.frontends.lowering import lower
from tests import exact
from tests.cases import points_of
from tests.frontends.onnx_models import make_model, node

Build = Callable[[np.random.Generator], onnx.ModelProto]
LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def dense(rng: np.random.Generator, *middle: onnx.NodeProto, inputs: int = 4, width: int = 5) -> onnx.ModelProto:
    """Gemm, the nodes from h to a, Gemm."""
    constants = {
        "w1": floats(rng, inputs, width), "b1": floats(rng, width), "w2": floats(rng, width, 3), "b2": floats(rng, 3),
        "half": np.float32(0.5), "one": np.float32(1), "root": np.float32(np.sqrt(0.5)), "third": np.float32(1 / 3),
        "epsilon": np.float32(1e-5), "axis": np.array([-1]), "power": np.float32(2.0), "far": np.float32(10.0),
        "g5": np.linspace(0.5, 2, width, dtype=np.float32), "b5": np.linspace(-1, 3, width, dtype=np.float32),
    }  # fmt: skip
    nodes = [node("Gemm", "x w1 b1", "h"), *middle, node("Gemm", "a w2 b2", "y")]
    return make_model(nodes, (inputs,), constants)


def batch_normalized(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Statistics far from 0 and 1, so that the folded constants cancel."""
    return {
        "gamma": rng.uniform(0.5, 2, 3).astype(np.float32), "beta": rng.normal(size=3).astype(np.float32) * 100,
        "mean": rng.normal(size=3).astype(np.float32) * 100, "var": rng.uniform(1e-3, 10, 3).astype(np.float32),
    }  # fmt: skip


def convolutional(rng: np.random.Generator) -> onnx.ModelProto:
    constants = {
        "w1": floats(rng, 3, 1, 3, 3), "b1": floats(rng, 3), "w2": floats(rng, 2, 3, 2, 2), "w3": floats(rng, 2, 8),
        **batch_normalized(rng),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c gamma beta mean var", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "m", kernel_shape=[2, 2], strides=[1, 1]),
        node("Conv", "m w2", "d"),
        node("AveragePool", "d", "p", kernel_shape=[2, 2]),
        node("Tanh", "p", "t"),
        node("Flatten", "t", "f"),
        node("Gemm", "f w3", "y", transB=1, alpha=0.75),
    ]
    return make_model(nodes, (1, 5, 5), constants)


def normalized_between_layers(rng: np.random.Generator) -> onnx.ModelProto:
    constants = {"w1": floats(rng, 4, 3), "b1": floats(rng, 3), "w2": floats(rng, 3, 2), **batch_normalized(rng)}
    nodes = [
        node("MatMul", "x w1", "h"),
        node("Add", "h b1", "z"),
        node("BatchNormalization", "z gamma beta mean var", "n"),
        node("Relu", "n", "r"),
        node("MatMul", "r w2", "y"),
    ]
    return make_model(nodes, (4,), constants)


def residual(rng: np.random.Generator) -> onnx.ModelProto:
    constants = {"w1": floats(rng, 2, 2, 3, 3), "b1": floats(rng, 2), "w2": floats(rng, 18, 2)}
    nodes = [
        node("Conv", "x w1 b1", "c", pads=[1, 1, 1, 1]),
        node("Add", "c x", "s"),
        node("Relu", "s", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f w2", "y"),
    ]
    return make_model(nodes, (2, 3, 3), constants)


def attention(rng: np.random.Generator) -> onnx.ModelProto:
    constants = {"q": floats(rng, 3, 3), "k": floats(rng, 3, 3), "v": floats(rng, 3, 3), "s": np.float32(0.577)}
    nodes = [
        *(node("MatMul", f"x {name}", f"{name}x") for name in "qkv"),
        node("Transpose", "kx", "kt", perm=[0, 2, 1]),
        node("MatMul", "qx kt", "scores"),
        node("Mul", "scores s", "scaled"),
        node("Softmax", "scaled", "p"),
        node("MatMul", "p vx", "o"),
        node("Flatten", "o", "y"),
    ]
    return make_model(nodes, (3, 3), constants)


def instance_normalized(rng: np.random.Generator) -> onnx.ModelProto:
    constants = {"s": rng.uniform(0.5, 2, 2).astype(np.float32), "b": floats(rng, 2), "w": floats(rng, 8, 2)}
    nodes = [node("InstanceNormalization", "x s b", "n"), node("Flatten", "n", "f"), node("MatMul", "f w", "y")]
    return make_model(nodes, (2, 4), constants)


def scaled_and_linear(rng: np.random.Generator) -> onnx.ModelProto:
    offset, scale = (rng.normal(size=4) * 50).tolist(), rng.uniform(0.01, 3, 4).tolist()
    nodes = [
        node("Scaler", "x", "s", offset=offset, scale=scale, domain="ai.onnx.ml"),
        node("LinearRegressor", "s", "y", coefficients=rng.normal(size=8).tolist(), intercepts=[0.5, -1.0], targets=2,
             domain="ai.onnx.ml"),
    ]  # fmt: skip
    return make_model(nodes, (4,))


CURVES = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "Gelu", "softplus": "Softplus", "mish": "Mish",
          "elu": "Elu", "hard swish": "HardSwish", "softmax": "Softmax", "log softmax": "LogSoftmax", "erf": "Erf"}  # fmt: skip

MODELS: dict[str, Build] = {
    **{name: lambda rng, op=op: dense(rng, node(op, "h", "a")) for name, op in CURVES.items()},
    "gelu by tanh": lambda rng: dense(rng, node("Gelu", "h", "a", approximate="tanh")),
    "written-out silu": lambda rng: dense(rng, node("Sigmoid", "h", "g"), node("Mul", "h g", "a")),
    "written-out sigmoid": lambda rng: dense(
        rng, node("Neg", "h", "m"), node("Exp", "m", "e"), node("Add", "e one", "d"), node("Div", "one d", "a")
    ),
    "written-out softplus": lambda rng: dense(
        rng, node("Exp", "h", "e"), node("Add", "e one", "d"), node("Log", "d", "a")
    ),
    "written-out gelu": lambda rng: dense(
        rng, node("Mul", "h root", "s"), node("Erf", "s", "e"), node("Add", "e one", "d"), node("Mul", "h d", "m"),
        node("Mul", "m half", "a"),
    ),
    "written-out root mean square": lambda rng: dense(
        rng, node("Pow", "h power", "q"), node("ReduceMean", "q axis", "m"), node("Add", "m epsilon", "d"),
        node("Sqrt", "d", "r"), node("Div", "h r", "a"),
    ),
    "division by a constant": lambda rng: dense(rng, node("Div", "h third", "a")),
    "convolution, normalization, pools": convolutional,
    "normalization between layers": normalized_between_layers,
    "residual": residual,
    "attention": attention,
    "layer normalization": lambda rng: dense(rng, node("LayerNormalization", "h g5 b5", "a")),
    "layer normalization far from 0": lambda rng: dense(rng, node("Add", "h far", "f"), node("LayerNormalization", "f g5", "a")),
    "root mean square normalization": lambda rng: dense(
        rng, node("Mul", "h h", "q"), node("ReduceMean", "q axis", "m"), node("Sqrt", "m", "r"), node("Div", "h r", "a")
    ),
    "instance normalization": instance_normalized,
    "scaler and linear": scaled_and_linear,
}  # fmt: skip


@cache
def model_and_graph(name: str) -> tuple[onnx.ModelProto, Graph]:
    model = MODELS[name](np.random.default_rng(3))
    return model, lower(model)


def answers(model: onnx.ModelProto, points: np.ndarray, level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": points.astype(np.float32)})
    return np.asarray(found).reshape(len(points), -1).astype(np.float64)


def truth(graph: Graph, point: np.ndarray) -> np.ndarray:
    return exact.values_at(graph.served or graph, point)


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_stays_within_the_error(name: str) -> None:
    model, graph = model_and_graph(name)
    assert ml.why_unserved(graph) == ""
    rng = np.random.default_rng(4)
    centers = rng.normal(size=(2, *graph.input_shape))
    lift = exact.number(graph.served or graph)
    for radius in (0.0, 0.05):
        region = ml.Box.around(centers, radius)
        bounds = ml.served_error_bounds(graph, region)
        assert np.all(bounds < 1e-2)
        for row in range(len(centers)):
            points = points_of(rng, region.lower[row].numpy(), region.upper[row].numpy(), 4)
            exactly = [truth(graph, point) for point in points]
            for level in LEVELS:
                for found, wanted in zip(answers(model, points, level), exactly, strict=True):
                    off = [abs(lift(float(a)) - b) for a, b in zip(found, wanted, strict=True)]
                    assert all(d <= lift(float(e)) for d, e in zip(off, bounds[row], strict=True)), (off, bounds[row])


@pytest.mark.parametrize("name", MODELS)
def test_the_served_steps_are_the_same_function(name: str) -> None:
    _, graph = model_and_graph(name)
    point = np.random.default_rng(5).normal(size=graph.input_shape)
    joined, steps = exact.values_at(graph, point), truth(graph, point)
    assert max(abs(mpmath.mpf(float(a)) - mpmath.mpf(float(b))) for a, b in zip(joined, steps, strict=True)) < 1e-10
    if graph.served is not None:
        assert not any(n.unserved for n in graph.served.nodes) and any(n.unserved for n in graph.nodes)


def test_steps_that_are_joined_are_known_one_by_one() -> None:
    joined = {name for name in MODELS if model_and_graph(name)[1].served is not None}
    assert joined == {
        "written-out silu", "written-out sigmoid", "written-out softplus", "written-out gelu", "written-out root mean square",
        "convolution, normalization, pools", "normalization between layers", "root mean square normalization",
        "layer normalization", "layer normalization far from 0", "instance normalization",
    }  # fmt: skip


def test_folding_a_normalization_hides_what_it_cancels() -> None:
    """Of the folded graph alone the error comes out smaller than what a served program really does."""
    _, graph = model_and_graph("normalization between layers")
    assert graph.served is not None
    region = ml.Box.around(np.random.default_rng(6).normal(size=(3, 4)), 0.0)
    from dataclasses import replace

    bare = tuple(replace(n, unserved="") for n in graph.nodes)
    folded = ml.served_error_bounds(Graph(bare, graph.output), region)
    assert np.all(folded < ml.served_error_bounds(graph, region))
    assert "joins" in ml.why_unserved(Graph(graph.nodes, graph.output))


def test_a_normalization_against_its_definition() -> None:
    """(x − mean) / √(variance + ε) · γ + β in 400 bits, from the stored float32 numbers."""
    rng = np.random.default_rng(7)
    numbers = batch_normalized(rng)
    model = make_model([node("BatchNormalization", "x gamma beta mean var", "y")], (3,), numbers)
    points = rng.normal(size=(8, 3)).astype(np.float32).astype(np.float64) * 10
    bounds = ml.served_error_bounds(lower(model), ml.Box.around(points, 0.0))
    for level in LEVELS:
        for point, found, bound in zip(points, answers(model, points, level), bounds, strict=True):
            for i in range(3):
                gamma, beta, mean, var = (mpmath.mpf(float(numbers[k][i])) for k in ("gamma", "beta", "mean", "var"))
                epsilon = mpmath.mpf(float(np.float32(1e-5)))
                y = (mpmath.mpf(point[i]) - mean) / mpmath.sqrt(var + epsilon) * gamma + beta
                assert abs(mpmath.mpf(found[i]) - y) <= mpmath.mpf(float(bound[i]))


def test_torch_stays_within_the_error() -> None:
    model, graph = model_and_graph("convolution, normalization, pools")
    weights = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
    rng = np.random.default_rng(8)
    region = ml.Box.around(rng.normal(size=(1, 1, 5, 5)), 0.05)
    (bound,) = ml.served_error_bounds(graph, region)
    points = points_of(rng, region.lower[0].numpy(), region.upper[0].numpy(), 6)
    x = torch.tensor(points, dtype=torch.float32)
    x = F.conv2d(x, weights["w1"], weights["b1"], padding=1)
    x = F.batch_norm(x, weights["mean"], weights["var"], weights["gamma"], weights["beta"], eps=1e-5)
    x = F.max_pool2d(torch.relu(x), 2, 1)
    x = torch.tanh(F.avg_pool2d(F.conv2d(x, weights["w2"]), 2, 1))
    served = (0.75 * (x.flatten(1) @ weights["w3"].T)).to(torch.float64).numpy()
    for point, found in zip(points, served, strict=True):
        for a, b, e in zip(found, truth(graph, point), bound, strict=True):
            assert abs(mpmath.mpf(float(a)) - b) <= mpmath.mpf(float(e))


LIBRARY = ("Tanh", "Sigmoid", "Erf", "Gelu", "Exp", "Softplus", "Mish", "Elu", "Celu", "Selu", "HardSwish", "Softsign", "Atan",
           "Sin", "Cos", "Log", "Sqrt", "Reciprocal")  # fmt: skip


@pytest.mark.parametrize("op", LIBRARY)
def test_curves_of_onnxruntime_are_as_accurate_as_is_assumed(op: str) -> None:
    """In float32 against float64, on many arguments; what is off there by float64's own rounding is far less."""
    graph = lower(make_model([node(op, "x", "y")], (1,)))
    (curve,) = (n.op for n in graph.nodes if isinstance(n.op, Elementwise))
    accuracy, facts = LIBRARIES[curve.curve], facts_of(curve.curve, curve.parameters)
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.uniform(-60, 60, 100_000), rng.uniform(-2, 2, 100_000)]).astype(np.float32)
    z = np.exp(z) if op in ("Log", "Sqrt", "Reciprocal") else z
    served = answers(make_model([node(op, "x", "y")], (1,)), z[:, None], LEVELS[1])[:, 0]
    argument = z.astype(np.float64)
    true = facts.value(torch.tensor(argument)).numpy()
    scale = float(np.prod([max(1.0, abs(p)) for p in curve.parameters])) if accuracy.scaled else 1.0
    allowed = accuracy.relative * np.abs(true) + accuracy.absolute * scale + accuracy.argument * np.abs(argument)
    assert np.all(np.abs(served - true) <= 2.0**-25 * allowed + 2.0**-126)  # half of what is allowed


UNKNOWN = {
    "written-out layer normalization": (
        [
            node("ReduceMean", "x axes", "m"), node("Sub", "x m", "d"), node("Mul", "d d", "q"), node("ReduceMean", "q axes", "v"),
            node("Sqrt", "v", "r"), node("Div", "d r", "y"),
        ],
        {"axes": np.array([-1])}, "in one pass instead of two",
    ),
    "LpNormalization": ([node("LpNormalization", "x", "y", p=2, axis=-1)], {}, "formulas of their own"),
    "ReduceLogSumExp": ([node("ReduceLogSumExp", "x axes", "y")], {"axes": np.array([1])}, "formulas of their own"),
    "QuantizeLinear": (
        [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")], {"s": np.float32(0.1)}, "integers",
    ),
    "Pow": ([node("Exp", "x", "e"), node("Pow", "e x", "y")], {}, "formulas of their own"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_operators_that_runtimes_round_in_ways_of_their_own_are_unknown(name: str) -> None:
    nodes, constants, reason = UNKNOWN[name]
    graph = lower(make_model(nodes, (4,), constants))
    assert reason in ml.why_unserved(graph) and "make_" in ml.why_unserved(graph)
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(np.full((1, 4), 0.5), 0.01))).all()
