"""The support table names every node and never fails on one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import nn

from mlflow_lipschitz.frontends.support import support_table
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import make_model, node


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_verdicts() -> None:
    nodes = [
        node("Constant", "", "half", value_float=0.5),
        node("Gemm", "x w", "a", name="first"),
        node("Relu", "a", "b"),
        node("Mul", "b half", "c"),
        node("Mul", "c c", "d"),
        node("Sign", "d", "y", name="last"),
    ]
    rows = support_table(make_model(nodes, (3,), {"w": weight(3, 4)}))
    assert [row.op_type for row in rows] == ["Constant", "Gemm", "Relu", "Mul", "Mul", "Sign"]
    assert [row.verdict for row in rows] == ["exact", "exact", "relaxed", "exact", "relaxed", "unsupported"]
    assert (rows[1].node, rows[-1].node) == ("first", "last")
    assert "jump" in rows[-1].note
    assert all(row.note for row in rows)


def test_the_walk_goes_on_behind_an_unsupported_node() -> None:
    nodes = [
        node("Sign", "x", "a"),
        node("Gemm", "a w", "b"),
        node("Reshape", "b s", "c"),
        node("Tanh", "c", "d"),
        node("MatMul", "d d", "e"),
        node("Sign", "e", "y"),
    ]
    constants = {"w": weight(3, 4), "s": np.array([-1, 2, 2])}
    rows = support_table(make_model(nodes, (3,), constants))
    assert [row.verdict for row in rows] == ["unsupported", "exact", "exact", "relaxed", "relaxed", "unsupported"]
    assert "jump" in rows[0].note and "jump" in rows[-1].note


def test_nodes_behind_an_unknown_shape_are_judged_by_their_operator() -> None:
    nodes = [
        node("Mystery", "x", "a", domain="other"),
        node("Gemm", "a w", "b"),
        node("Relu", "b", "c"),
        node("Sign", "c", "y"),
    ]
    model = make_model(nodes, (3,), {"w": weight(3, 4)}, check=False)
    rows = support_table(model)
    assert [row.verdict for row in rows] == ["unsupported", "exact", "relaxed", "unsupported"]
    assert "operator alone" in rows[1].note


def test_an_input_that_cannot_be_audited_is_one_row() -> None:
    model = make_model([node("Identity", "x")], (4,))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    (row,) = support_table(model)
    assert (row.op_type, row.verdict) == ("Input", "unsupported")
    assert "INT64" in row.note


class Signs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x)


def test_origins_of_a_torch_model() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), Signs())
    rows = support_table(to_onnx(module, torch.zeros(2, 3)))
    refused = [row for row in rows if row.verdict == "unsupported"]
    assert [row.op_type for row in refused] == ["Sign"]
    assert "layer '3'" in refused[0].origin


# a model of nodes from x: what the note of the last one must say
COSTS = {
    "kink": ([node("Relu", "x")], "exact unless a unit changes sides"),
    "clip": ([node("HardSigmoid", "x")], "exact unless a unit changes sides"),
    "curve": ([node("Tanh", "x")], "square of the interval"),
    "curve with a kink": ([node("Elu", "x", alpha=2.0)], "square of the interval"),
    "product": ([node("Sin", "x", "s"), node("Mul", "x s")], "product of both widths"),
    "division": ([node("Exp", "x", "e"), node("Div", "x e")], "unbounded if the region reaches"),
    "logarithm": ([node("Exp", "x", "e"), node("Log", "e")], "unbounded if the region reaches"),
    "largest": ([node("Sin", "x", "s"), node("Max", "x s")], "one entry is the largest"),
    "quantized": ([node("QuantizeLinear", "x q z", "i"), node("DequantizeLinear", "i q z")], "half a step"),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_a_node_costs_in_tightness(name: str) -> None:
    nodes, words = COSTS[name]
    model = make_model(nodes, (3,), {"q": np.float32(0.1), "z": np.uint8(7)})
    rows = support_table(model)
    assert "relaxed" in {row.verdict for row in rows}
    assert any(words in row.note for row in rows)


def test_a_node_that_mixes_rows_is_marked_although_each_node_is_supported() -> None:
    nodes = [node("ReduceMean", "x a", "m", name="mean"), node("Sub", "x m")]
    rows = support_table(make_model(nodes, (3,), {"a": np.array([0])}, opset=18))
    assert [(row.node, row.verdict) for row in rows] == [("mean", "unsupported"), ("make_y", "exact")]
    assert "mixes the rows" in rows[0].note


def test_an_output_that_is_not_one_entry_per_row_gets_a_row_of_its_own() -> None:
    rows = support_table(make_model([node("Transpose", "x")], (3,)))
    assert [(row.op_type, row.verdict) for row in rows] == [("Transpose", "exact"), ("Output", "unsupported")]


def test_products_behind_an_unsupported_node_are_exact_with_a_constant() -> None:
    nodes = [node("Mystery", "x", "a", domain="other"), node("MatMul", "a w", "b"), node("MatMul", "b b")]
    rows = support_table(make_model(nodes, (3,), {"w": weight(3, 3)}, check=False))
    assert [row.verdict for row in rows] == ["unsupported", "exact", "relaxed"]
