"""Rows of a batch do not influence each other: what is accepted as proved, and what is refused, naming who mixes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

RANDOM = np.random.default_rng(11)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CONSTANTS = {
    "w4": weight(4, 4), "w6": weight(6, 6), "w3": weight(3, 3), "zero": integers(0), "one": integers(1), "two": integers(2),
    "half": np.float32(0.5), "merged": integers(-1, 4), "apart": integers(-1, 6, 4), "all": integers(1, -1),
    "nothing": np.zeros((), np.float32), "rows": weight(5, 1, 1), "same": np.ones((5, 1, 1), np.float32),
}  # fmt: skip

# Rows are moved, merged with another axis or put last on the way, and come back as axis 0.
APART: dict[str, list[Any]] = {
    "merged with another axis": [
        node("Reshape", "x merged", "a"), node("MatMul", "a w4", "b"), node("Relu", "b", "c"),
        node("Reshape", "c apart"),
    ],
    "put last": [
        node("Transpose", "x", "a", perm=[1, 2, 0]), node("Tanh", "a", "b"), node("MatMul", "w4 b", "c"),
        node("Transpose", "c", perm=[2, 0, 1]),
    ],
    "batch second, as recurrent layers have it": [
        node("Transpose", "x", "a", perm=[1, 0, 2]), node("ReduceSum", "a zero", "b", keepdims=1),
        node("Add", "a b", "c"), node("Transpose", "c", perm=[1, 0, 2]),
    ],
    "one row after another": [
        node("Reshape", "x all", "a"), node("Relu", "a", "b"), node("Reshape", "b apart"),
    ],
    "mixed with weight zero": [
        node("ReduceMean", "x zero", "m", keepdims=1), node("Mul", "m nothing", "z"), node("Add", "x z"),
    ],
    "a mixture that nobody reads": [
        node("ReduceMean", "x zero", "unread", keepdims=1), node("Relu", "x"),
    ],
    "a shape taken from the batch": [
        node("Shape", "x", "s", start=0, end=1), node("Concat", "s minus", "t", axis=0), node("Reshape", "x t", "a"),
        node("Relu", "a"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("batch", ["batch", 1, 5])
@pytest.mark.parametrize("name", APART)
def test_rows_that_stay_apart(name: str, batch: Any) -> None:
    model = make_model(APART[name], (6, 4), {**CONSTANTS, "minus": integers(-1)}, batch=batch, opset=18, check=False)
    assert_lowers_exactly(model, (6, 4))


def center(inputs: str, axis: str) -> list[Any]:
    return [
        node("ReduceMean", f"{inputs} {axis}", "mean", name="mean", keepdims=1), node("Sub", f"{inputs} mean", "centered"),
    ]  # fmt: skip


# name: nodes, the operator and the node that must be named
MIXED: dict[str, tuple[list[Any], str, str]] = {
    "normalized over the batch": (
        [node("Relu", "x", "h"), *center("h", "zero"), node("Tanh", "centered")], "ReduceMean", "mean",
    ),
    "a product with another row": (
        [node("Transpose", "x", "t", perm=[1, 2, 0]), node("Reshape", "t flat", "f"),
         node("Reshape", "f again", "s"), node("Mul", "x s", name="product")], "Mul", "product",
    ),
    "rows reshaped together": (
        [node("Reshape", "x pairs", "a"), node("MatMul", "a w40", "b", name="matrix"), node("Reshape", "b apart")],
        "MatMul", "matrix",
    ),
    "a sum of two orders": (
        [node("Reshape", "x swapped", "a"), node("Transpose", "a", "b", perm=[1, 0, 2]), node("Reshape", "b apart", "c"),
         node("Add", "x c", name="sum")], "Add", "sum",
    ),
    "a matrix over the batch": (
        [node("Transpose", "x", "a", perm=[1, 2, 0]), node("MatMul", "a w5", "b", name="matrix"),
         node("Transpose", "b", perm=[2, 0, 1])], "MatMul", "matrix",
    ),
    "a convolution along the batch": (
        [node("Transpose", "x", "a", perm=[1, 2, 0]), node("Conv", "a kernel", "b", name="conv", pads=[1, 1]),
         node("Transpose", "b", perm=[2, 0, 1])], "Conv", "conv",
    ),
}  # fmt: skip
MIXING = {
    **CONSTANTS, "flat": integers(-1), "again": integers(-1, 6, 4), "pairs": integers(-1, 40),
    "w40": weight(40, 40), "swapped": integers(2, -1, 12),
    "w5": weight(5, 5), "kernel": weight(6, 4, 3),
}  # fmt: skip
ANY_LENGTH = ("normalized over the batch", "a product with another row")


@pytest.mark.parametrize("name", MIXED)
def test_a_node_that_mixes_rows_of_a_fixed_batch_is_named(name: str) -> None:
    nodes, operator, culprit = MIXED[name]
    model = make_model(nodes, (6, 4), MIXING, batch=5, opset=18, check=False)
    with pytest.raises(UnsupportedOperator, match="mixes the rows") as error:
        lower(model)
    assert (error.value.operator, error.value.node) == (operator, culprit)
    assert "batch" in error.value.remedy


@pytest.mark.parametrize("name", ANY_LENGTH)
def test_a_node_that_mixes_rows_of_a_free_batch_is_named(name: str) -> None:
    nodes, operator, culprit = MIXED[name]
    with pytest.raises(UnsupportedOperator, match="mixes the rows") as error:
        lower(make_model(nodes, (6, 4), MIXING, opset=18, check=False))
    assert (error.value.operator, error.value.node) == (operator, culprit)


def test_the_first_of_several_is_named_also_where_a_later_node_does_not_fit() -> None:
    nodes = [
        node("ReduceSum", "x zero", "s", keepdims=1, name="first"), node("Add", "x s", "a"),
        node("Reshape", "a all", "b"), node("MatMul", "b w4", name="second"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedOperator) as error:
        lower(make_model(nodes, (4,), CONSTANTS, opset=18, check=False))
    assert error.value.node == "first"


def test_a_fixed_batch_with_another_function_per_row() -> None:
    equal = make_model([node("Add", "x same")], (6, 4), CONSTANTS, batch=5)
    points = weight(5, 6, 4)
    np.testing.assert_allclose(evaluate(lower(equal), points).numpy(), run_onnxruntime(equal, points), rtol=1e-6)
    with pytest.raises(UnsupportedOperator, match="row 1 of a batch of 5 gets another answer"):
        lower(make_model([node("Add", "x rows")], (6, 4), CONSTANTS, batch=5))


def test_one_row_of_a_fixed_batch_is_enough_unless_its_length_stands_in_the_model() -> None:
    nodes = [node("Relu", "x", "h"), node("Reshape", "h shape", "f"), node("Tanh", "f")]
    free, fixed = (
        lower(make_model(nodes, (6, 4), {"shape": integers(*shape)}, batch=5)) for shape in ([0, -1], [5, 24])
    )
    assert {int(np.prod(part.shape)) for part in free.nodes} == {24}
    assert {int(np.prod(part.shape)) for part in fixed.nodes} == {24, 120}
    points = weight(5, 6, 4)
    np.testing.assert_allclose(evaluate(free, points), evaluate(fixed, points), rtol=1e-12)


def test_a_batch_whose_sum_is_divided_by_its_length_is_refused() -> None:
    nodes = [
        node("Shape", "x", "n", start=0, end=1), node("Cast", "n", "f", to=TensorProto.FLOAT),
        node("Div", "x f", name="share"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedOperator, match=r"'share'.*how many rows"):
        lower(make_model(nodes, (4,)))


COUNTS = {
    "numbers that are moved and multiplied": [
        node("Shape", "x", "s"), node("Gather", "s first", "n"), node("Mul", "n six", "m"), node("Div", "m six", "k"),
        node("Unsqueeze", "k zero", "u"), node("Concat", "u minus six_", "t", axis=0), node("Reshape", "x t"),
    ],
    "the length compared with -1": [
        node("Shape", "x", "s"), node("Equal", "s negative", "e"), node("Where", "e ones s", "t"), node("Expand", "x t"),
    ],
    "the length compared with itself": [
        node("Shape", "x", "s"), node("Shape", "x", "r"), node("Equal", "s r", "e"), node("Where", "e s ones", "t"),
        node("Expand", "x t"),
    ],
    "a constant for every row": [
        node("Shape", "x", "s"), node("Expand", "half s", "c"), node("Mul", "c x"),
    ],
    "the norm of a constant for every row": [
        node("Shape", "x", "s"), node("Expand", "half s", "c"), node("ReduceL2", "c last", "r"), node("Sqrt", "r", "t"),
        node("Mul", "t x"),
    ],
    "the largest of a constant over the batch": [
        node("Shape", "x", "s"), node("Expand", "half s", "c"), node("ReduceMax", "c zero", "r"), node("Mul", "r x"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_what_may_be_done_with_the_number_of_rows(name: str) -> None:
    constants = {
        "first": np.array(0), "six": np.array(6), "six_": integers(4), "zero": integers(0), "minus": integers(-1),
        "negative": integers(-1), "ones": integers(1, 1, 1), "half": weight(1, 1, 4),
        "last": integers(2),
    }  # fmt: skip
    assert_lowers_exactly(make_model(COUNTS[name], (6, 4), constants, opset=18, check=False), (6, 4))


COMPARED = {
    "Equal": [node("Equal", "s six", "e"), node("Where", "e half one", "k")],
    "Div": [node("Div", "six s", "q"), node("Cast", "q", "k", to=TensorProto.FLOAT)],
    "Cast": [node("Cast", "s", "e", to=TensorProto.INT8), node("Cast", "e", "k", to=TensorProto.FLOAT)],
    "Where": [node("Equal", "s one_", "e"), node("Where", "e half one", "k")],
    "Sub": [node("Sub", "s six", "q"), node("Cast", "q", "k", to=TensorProto.FLOAT)],
    "Less": [node("Less", "s six", "e"), node("Where", "e half one", "k")],
    "Pow": [node("Cast", "s", "f", to=TensorProto.FLOAT), node("Pow", "half f", "k")],
    "Slice": [node("Slice", "many zero s", "part"), node("ReduceSum", "part", "k", keepdims=0)],
    "Gather": [node("Gather", "many s", "k", axis=0)],
    "ReduceL2": [node("Expand", "half s", "e"), node("ReduceL2", "e", "k", keepdims=0)],
    "ReduceProd": [node("Expand", "minus s", "e"), node("ReduceProd", "e", "k", keepdims=0)],
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_may_not_be_done_with_the_number_of_rows(name: str) -> None:
    """The answers for one row and for the number that is tried may be equal; for others they are not."""
    constants = {
        "six": integers(60), "one_": integers(1), "half": np.float32(0.5), "one": np.float32(1), "zero": integers(0),
        "minus": np.float32(-1), "many": weight(100),
    }  # fmt: skip
    nodes = [node("Shape", "x", "s", start=0, end=1), *COMPARED[name], node("Mul", "x k")]
    with pytest.raises(UnsupportedOperator, match="how many rows"):
        lower(make_model(nodes, (4,), constants, opset=18, check=False))
