"""What exporters write out is found again, also with constants of one's own; what only looks like it is left alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

F = torch.nn.functional
ROOT = np.float32(math.sqrt(2))
CONSTANTS = {
    "root": ROOT, "third": np.float32(1 / 3), "half": np.float32(0.5), "one": np.float32(1), "two": np.float32(2),
    "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6), "k": np.float32(0.7),
    "rates": np.array([1, 2, 3, 4], np.float32), "eps": np.float32(1e-3), "minus": np.float32(-1), "tiny": np.float32(1e-9),
    "axis": np.array([1]), "last": np.array([-1]),
}  # fmt: skip


def gelu_of(x: str) -> list[Any]:
    return [node("Div", f"{x} root", "d"), node("Erf", "d", "e"), node("Add", "e one", "g")]


def gaussian(z: torch.Tensor) -> torch.Tensor:
    return z * (1 + torch.erf(z / float(ROOT))) / 2


# name: nodes, the one curve they are, and what they compute
WRITTEN_OUT: dict[str, tuple[list[Any], str, Any]] = {
    "GELU": ([*gelu_of("x"), node("Mul", "x g", "m"), node("Mul", "m half")], "gelu", gaussian),
    "GELU, halved first": ([*gelu_of("x"), node("Mul", "x half", "h"), node("Mul", "h g")], "gelu", gaussian),
    "GELU, halved gate": ([*gelu_of("x"), node("Mul", "g half", "h"), node("Mul", "h x")], "gelu", gaussian),
    "GELU of another rate": (
        [node("Mul", "x k", "d"), node("Erf", "d", "e"), node("Add", "one e", "g"), node("Mul", "g x")], "gelu",
        lambda z: z * (1 + torch.erf(z * float(CONSTANTS["k"]))),
    ),
    "SiLU": ([node("Sigmoid", "x", "s"), node("Mul", "x s")], "silu", F.silu),
    "Swish of another rate": (
        [node("Mul", "k x", "d"), node("Sigmoid", "d", "s"), node("Mul", "s x")], "silu",
        lambda z: z * torch.sigmoid(float(CONSTANTS["k"]) * z),
    ),
    "SiLU of a sum": (
        [node("Add", "x k", "h"), node("Sigmoid", "h", "s"), node("Mul", "h s")], "silu",
        lambda z: F.silu(z + float(CONSTANTS["k"])),
    ),
    "Mish": ([node("Softplus", "x", "p"), node("Tanh", "p", "t"), node("Mul", "x t")], "mish", F.mish),
    "hard swish": (
        [node("Add", "x three", "a"), node("Clip", "a zero six", "c"), node("Mul", "x c", "m"), node("Div", "m six")],
        "hard_swish", F.hardswish,
    ),
    "hard swish of a hard sigmoid": (
        [node("HardSigmoid", "x", "s", alpha=1 / 6, beta=0.5), node("Mul", "x s")], "hard_swish",
        lambda z: z * (z * float(np.float32(1 / 6)) + 0.5).clamp(0, 1),
    ),
    "softplus": ([node("Exp", "x", "e"), node("Add", "e one", "a"), node("Log", "a")], "softplus", F.softplus),
    "log of a sigmoid": ([node("Sigmoid", "x", "s"), node("Log", "s")], "softplus", F.logsigmoid),
    "sigmoid": (
        [node("Neg", "x", "n"), node("Exp", "n", "e"), node("Add", "one e", "a"), node("Div", "one a")], "sigmoid",
        torch.sigmoid,
    ),
    "softsign": (
        [node("Abs", "x", "b"), node("Add", "b one", "a"), node("Div", "x a")], "softsign", F.softsign,
    ),
    "softsign of another rate": (
        [node("Abs", "x", "b"), node("Mul", "b k", "c"), node("Add", "c two", "a"), node("Div", "x a")], "softsign",
        lambda z: z / (2 + float(CONSTANTS["k"]) * z.abs()),
    ),
    "cube": ([node("Mul", "x x", "q"), node("Mul", "q x")], "power", lambda z: z**3),
}  # fmt: skip


def curves(nodes: list[Any]) -> list[str]:
    graph = lower(make_model(nodes, (4,), CONSTANTS))
    return ["product" for part in graph.nodes if isinstance(part.op, ops.Multiply)] + [
        part.op.curve for part in graph.nodes if isinstance(part.op, ops.Elementwise)
    ]


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_one_curve_for_what_was_written_out(name: str) -> None:
    nodes, curve, function = WRITTEN_OUT[name]
    model = make_model(nodes, (4,), CONSTANTS)
    assert curves(nodes) == [curve]
    assert_agrees_with_torch(model, (4,), function)
    assert_lowers_exactly(model, (4,))


LEFT_ALONE: dict[str, list[Any]] = {
    "another constant beside the error function": [
        node("Erf", "x", "e"), node("Add", "e two", "g"), node("Mul", "x g"),
    ],
    "a gate of another value": [node("Sin", "x", "s"), node("Sigmoid", "s", "g"), node("Mul", "x g")],
    "a shifted gate": [node("Add", "x one", "a"), node("Sigmoid", "a", "g"), node("Mul", "x g")],
    "a gate with a rate per entry": [node("Mul", "x rates", "a"), node("Sigmoid", "a", "g"), node("Mul", "x g")],
    "a gate and an offset": [node("Sigmoid", "x", "s"), node("Add", "s one", "g"), node("Mul", "x g")],
    "a ramp off center": [node("Add", "x two", "a"), node("Clip", "a zero six", "c"), node("Mul", "x c")],
    "a ramp from below zero": [node("Add", "x three", "a"), node("Clip", "a minus six", "c"), node("Mul", "x c")],
    "a gate of a tiny rate": [node("Mul", "x tiny", "a"), node("Sigmoid", "a", "g"), node("Mul", "x g")],
    "a broadcast gate": [node("ReduceSum", "x axis", "r"), node("Sigmoid", "r", "g"), node("Mul", "x g")],
    "a pole": [node("Abs", "x", "b"), node("Sub", "b one", "a"), node("Div", "x a")],
    "an exponential and two": [node("Exp", "x", "e"), node("Add", "e two", "a"), node("Log", "a")],
    "a tanh of no softplus": [node("Exp", "x", "p"), node("Tanh", "p", "t"), node("Mul", "x t")],
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_only_looks_like_a_curve_is_computed_as_written(name: str) -> None:
    found = curves(LEFT_ALONE[name])
    assert ("product" in found) != ("log" in found)
    assert_lowers_exactly(make_model(LEFT_ALONE[name], (4,), CONSTANTS), (4,))


# From c to y: c · (mean c² + ε) ** (−1/2), as libraries write it.
SQUARED = [node("Pow", "c two", "q"), node("ReduceMean", "q last", "v"), node("Add", "v eps", "w")]
CENTERED = [node("ReduceMean", "x last", "m"), node("Sub", "x m", "c")]
NORMALIZED: dict[str, list[Any]] = {
    "LayerNorm": [*CENTERED, *SQUARED, node("Sqrt", "w", "r"), node("Div", "c r")],
    "LayerNorm by the reciprocal": [
        *CENTERED, *SQUARED, node("Sqrt", "w", "r"), node("Reciprocal", "r", "i"), node("Mul", "i c"),
    ],
    "LayerNorm by powers": [
        *CENTERED, node("Mul", "c c", "q"), node("ReduceMean", "q last", "v", keepdims=0),
        node("Unsqueeze", "v last", "u"), node("Add", "u eps", "w"), node("Pow", "w minus_half", "r"), node("Mul", "c r"),
    ],
    "RMSNorm": [node("Identity", "x", "c"), *SQUARED, node("Sqrt", "w", "r"), node("Div", "one r", "i"), node("Mul", "c i")],
    "a sum in place of the mean": [
        node("Identity", "x", "c"), node("ReduceSumSquare", "c last", "v"), node("Add", "v eps", "w"), node("Sqrt", "w", "r"),
        node("Div", "c r"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_normalization_that_was_written_out(name: str) -> None:
    constants = {**CONSTANTS, "minus_half": np.float32(-0.5)}
    model = make_model(NORMALIZED[name], (3, 4), constants, opset=18)
    assert [part.op.axes for part in lower(model).nodes if isinstance(part.op, ops.Normalized)] == [(2,)]
    assert_lowers_exactly(model, (3, 4))


NOT_NORMALIZED: dict[str, list[Any]] = {
    "by another value": [*CENTERED, *SQUARED, node("Sqrt", "w", "r"), node("Div", "x r")],
    "by another axis": [
        *CENTERED, node("Pow", "c two", "q"), node("ReduceMean", "q last", "v", keepdims=0), node("Add", "v eps", "w"),
        node("Sqrt", "w", "r"), node("Div", "c r"),
    ],
    "with an epsilon per entry": [
        *CENTERED, node("Pow", "c two", "q"), node("ReduceMean", "q axis", "v"), node("Add", "v offsets", "w"),
        node("Sqrt", "w", "r"), node("Div", "c r"),
    ],
    "by its cube": [*CENTERED, *SQUARED, node("Pow", "w three", "r"), node("Div", "c r")],
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_NORMALIZED)
def test_what_only_looks_like_a_normalization(name: str) -> None:
    constants = {**CONSTANTS, "offsets": np.arange(1, 5, dtype=np.float32)}
    model = make_model(NOT_NORMALIZED[name], (4, 4), constants, opset=18, batch=1)
    assert not any(isinstance(part.op, ops.Normalized) for part in lower(model).nodes)
    assert_lowers_exactly(model, (4, 4))


def test_the_bounds_of_a_gelu_that_is_written_out_are_those_of_the_operator() -> None:
    weights = {"w": np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)}
    layer = [node("MatMul", "x w", "h")]
    whole = make_model([*layer, node("Gelu", "h")], (4,), weights)
    parts = make_model(
        [*layer, *gelu_of("h"), node("Mul", "h g", "m"), node("Mul", "m half")], (4,), {**weights, **CONSTANTS}
    )
    points = np.random.default_rng(2).normal(size=(3, 4))
    region = Box.around(points, 0.2)
    one, many = (certify_lipschitz(lower(model), points, region).upper for model in (whole, parts))
    np.testing.assert_allclose(many, one, rtol=1e-6)
