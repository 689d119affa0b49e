"""A choice that only keeps softplus from overflowing is none; any other choice by value is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.support import support_table
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.checks import assert_agrees_with_torch
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node


@pytest.mark.parametrize("arguments", [{}, {"beta": 2.0}, {"beta": 0.5, "threshold": 30.0}])
def test_softplus_of_torch(arguments: dict[str, float]) -> None:
    model = to_onnx(torch.nn.Softplus(**arguments), torch.zeros(2, 3))
    assert any(part.op_type == "Where" for part in model.graph.node)
    assert [part.op.curve for part in lower(model).nodes if isinstance(part.op, ops.Elementwise)] == ["softplus"]
    assert_lowers_exactly(model, (3,))
    assert_agrees_with_torch(model, (3,), torch.nn.Softplus(**arguments))
    assert {row.verdict for row in support_table(model)} <= {"exact", "relaxed"}


def guarded(threshold: float, beta: float, **kinds: Any) -> onnx.ModelProto:
    nodes = [
        node("Mul", "beta x", "a"),
        node(kinds.get("compare", "Greater"), "a t", "c"),
        node(kinds.get("curve", "Softplus"), "a", "s"),
        node("Div", "s d", "v"),
        node("Where", kinds.get("order", "c x v")),
    ]
    numbers = {"beta": beta, "t": threshold, "d": kinds.get("divisor", beta)}
    return make_model(nodes, (3,), {name: np.float32(value) for name, value in numbers.items()})


@pytest.mark.parametrize("compare", ["Greater", "GreaterOrEqual"])
def test_softplus_with_its_guard(compare: str) -> None:
    model = guarded(20, 3, compare=compare)
    assert_lowers_exactly(model, (3,))
    assert len(model.graph.node) == 5  # the caller's model is left as it was


@pytest.mark.parametrize(
    "model",
    [
        guarded(2, 3),
        guarded(20, 3, divisor=4),
        guarded(20, -3),
        guarded(20, 3, curve="Elu"),
        guarded(20, 3, order="c v x"),
        guarded(20, 3, order="c a v"),
    ],
    ids=["a low threshold", "another divisor", "a negative factor", "another curve", "exchanged", "without division"],
)
def test_what_jumps_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(UnsupportedOperator, match="jump"):
        lower(model)


def test_in_float64_a_threshold_of_20_can_be_told() -> None:
    nodes = [node("Greater", "x t", "c"), node("Softplus", "x", "s"), node("Where", "c x s")]
    model = make_model(nodes, (3,), {"t": np.float64(20)}, check=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(UnsupportedOperator, match="jump"):
        lower(model)


def test_a_network_with_softplus() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Softplus(), torch.nn.Linear(5, 2))
    assert trace(module, torch.zeros(2, 3)).output_shape == (2,)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT64])
def test_a_threshold_that_a_cast_changes(kind: int) -> None:
    """258 as a byte is 2, where softplus differs from its argument."""
    nodes = [
        node("Cast", "t", "u", to=kind), node("Cast", "u", "v", to=TensorProto.FLOAT), node("Greater", "x v", "c"),
        node("Softplus", "x", "s"), node("Where", "c x s"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedOperator, match="jump"):
        lower(make_model(nodes, (3,), {"t": np.float32(258)}))
