"""Operator sets from the oldest to the newest that ONNX knows; operators that are defined by others; functions; external data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx import helper

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.preparation import OLDEST_OPSET
from mlflow_lipschitz.frontends.support import support_table
from tests.frontends.checks import assert_agrees_with_torch
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

RANDOM = np.random.default_rng(29)
NEWEST_OPSET = onnx.defs.onnx_opset_version()


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_OPSET + 1))
def test_a_network_of_every_operator_set(opset: int) -> None:
    """Nothing in it depends on attributes that became inputs, so one network is valid in all of them."""
    nodes = [
        node("Conv", "x k b", "c", pads=[1, 1, 1, 1]), node("BatchNormalization", "c g b m v", "n"),
        node("Relu", "n", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "a"), node("Flatten", "p", "f"), node("Flatten", "a", "h"),
        node("Concat", "f h", "z", axis=1), node("Gemm", "z w u", "d"), node("Tanh", "d", "t"),
        node("Softmax", "t", "s", axis=1), node("Mul", "s half", "q"), node("Add", "q t"),
    ]  # fmt: skip
    constants = {
        "k": weight(3, 2, 3, 3), "b": weight(3), "g": weight(3), "m": weight(3), "v": np.abs(weight(3)) + 0.5,
        "w": weight(15, 4), "u": weight(4), "half": np.float32(0.5),
    }  # fmt: skip
    assert_lowers_exactly(make_model(nodes, (2, 4, 4), constants, opset=opset), (2, 4, 4))


ANGLES = RANDOM.uniform(size=(1, 4, 2)).astype(np.float32)
CACHE = RANDOM.uniform(size=(9, 2)).astype(np.float32)
COS, SIN = {"c": np.cos(ANGLES), "s": np.sin(ANGLES)}, {"c": np.cos(CACHE), "s": np.sin(CACHE)}
# name: nodes, sample shape, constants, operator set, batch
DEFINED: dict[str, tuple[list[Any], tuple[int, ...], dict[str, Any], int, Any]] = {
    "RotaryEmbedding": ([node("RotaryEmbedding", "x c s")], (2, 4, 4), COS, 23, 1),
    "RotaryEmbedding at positions": (
        [node("RotaryEmbedding", "x c s p")], (2, 4, 4), {**SIN, "p": integers(0, 3, 2, 8)[None]}, 23, 1,
    ),
    "RotaryEmbedding of heads side by side": (
        [node("RotaryEmbedding", "x c s", num_heads=2, interleaved=1)], (4, 8), COS, 23, 1,
    ),
    "RotaryEmbedding of a computed value": (
        [node("Relu", "x", "h"), node("RotaryEmbedding", "h c s")], (2, 4, 4),
        {name: np.repeat(value, 5, axis=0) for name, value in COS.items()}, 23, 5,
    ),
    "CenterCropPad": ([node("CenterCropPad", "x s", axes=[1])], (5,), {"s": integers(3)}, 18, "batch"),
    "CenterCropPad, both": ([node("CenterCropPad", "x s", axes=[1, 2])], (5, 4), {"s": integers(8, 2)}, 18, "batch"),
    "CausalConvWithState": (
        [node("CausalConvWithState", "x k", "y state")], (3, 5), {"k": weight(3, 1, 3)}, 27, "batch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINED)
def test_an_operator_that_is_defined_by_others(name: str) -> None:
    nodes, sample, constants, opset, batch = DEFINED[name]
    if opset > NEWEST_OPSET:
        pytest.skip(f"the installed onnx knows operator sets up to {NEWEST_OPSET}")
    model = make_model(nodes, sample, constants, batch=batch, opset=opset, check=False)
    assert_lowers_exactly(model, sample)
    assert {row.verdict for row in support_table(model)} <= {"exact", "relaxed"}


@pytest.mark.skipif(NEWEST_OPSET < 28, reason="the installed onnx does not know SwiGLU")
def test_a_definition_within_a_definition() -> None:
    model = make_model([node("Sin", "x", "h"), node("SwiGLU", "x h")], (6,), {}, opset=28, check=False)
    assert_agrees_with_torch(model, (6,), lambda z: torch.nn.functional.silu(z) * torch.sin(z))


def test_an_operator_within_a_function_that_has_no_lowering_is_named() -> None:
    body = [helper.make_node("Sign", ["a"], ["b"], name="deep")]
    function = helper.make_function("custom", "Inner", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedOperator, match="jump") as error:
        lower(make_model([node("Inner", "x", domain="custom")], (4,), functions=[function], opset=18, check=False))
    assert error.value.operator == "Sign"


def test_operators_that_are_refused_are_not_written_out() -> None:
    nodes = [node("GreaterOrEqual", "x c", "k"), node("Where", "k x c")]
    with pytest.raises(UnsupportedOperator, match=r"GreaterOrEqual.*condition on the data"):
        lower(make_model(nodes, (3,), {"c": np.float32(0)}))


def branch(name: str, *nodes: Any) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])


def choice(condition: str, output: str = "y") -> onnx.NodeProto:
    then, other = (
        branch("then", node("Mul", "x two", "t")),
        branch("other", node("Tanh", "x", "u"), node("Neg", "u", "v")),
    )
    return node("If", condition, output, then_branch=then, else_branch=other, name="choice")


@pytest.mark.parametrize("chosen", [True, False])
def test_a_branch_that_a_constant_chooses(chosen: bool) -> None:
    nodes = [node("Shape", "x", "s", start=1, end=2), node("Equal", "s n", "is"), choice("is", "h"), node("Add", "h x")]
    constants = {"n": integers(4 if chosen else 5), "two": np.float32(2)}
    model = make_model(nodes, (4,), constants, check=False)
    assert_lowers_exactly(model, (4,))
    table = support_table(model)
    assert [row.op_type for row in table if row.op_type in ("If", "Mul", "Tanh")] == (
        ["If", "Mul"] if chosen else ["If", "Tanh"]
    )
    assert {row.verdict for row in table} == ({"exact"} if chosen else {"exact", "relaxed"})


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "is")], "condition on the data"),
        ([node("Shape", "x", "s", start=0, end=1), node("Equal", "s n", "is")], "how many rows"),
    ],
)
def test_a_branch_that_the_data_or_the_number_of_rows_chooses(nodes: list[Any], words: str) -> None:
    constants = {"n": integers(1), "two": np.float32(2), "zero": np.float32(0)}
    with pytest.raises(UnsupportedOperator, match=words):
        lower(make_model([*nodes, choice("is")], (4,), constants, check=False))


def test_functions_of_functions_of_the_model() -> None:
    inner = helper.make_function(
        "custom", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    outer = helper.make_function(
        "custom", "FourTimesCropped", ["a", "s"], ["b"],
        [helper.make_node("Twice", ["a"], ["c"], domain="custom"), helper.make_node("Twice", ["c"], ["d"], domain="custom"),
         helper.make_node("CenterCropPad", ["d", "s"], ["b"], axes=[1])],
        [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)],
    )  # fmt: skip
    model = make_model(
        [node("FourTimesCropped", "x n", domain="custom")], (5,), {"n": integers(3)}, opset=18, functions=[inner, outer],
        check=False,
    )  # fmt: skip
    assert_lowers_exactly(model, (5,))


def test_a_function_for_another_operator_set_says_how_to_inline_it() -> None:
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=-1)]
    function = helper.make_function("custom", "Inner", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = make_model([node("Inner", "x", domain="custom")], (4,), functions=[function], opset=20, check=False)
    with pytest.raises(UnsupportedOperator, match="convert_version=True") as error:
        lower(model)
    assert error.value.operator == "custom::Inner"
    assert_lowers_exactly(onnx.inliner.inline_local_functions(model, convert_version=True), (4,))


def test_weights_beside_the_file(tmp_path: Any) -> None:
    model = make_model([node("Gemm", "x w")], (30,), {"w": weight(30, 20)})
    points = weight(4, 30)
    expected = run_onnxruntime(model, points)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size >= 30 * 20 * 4
    np.testing.assert_allclose(evaluate(trace(path), points), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Exception, match=r"weights\.bin"):
        trace(path)
