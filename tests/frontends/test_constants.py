"""Constants are what onnxruntime makes of them, in the model's types, also where float64 or NumPy would decide otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.support import support_table
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node


def single(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# In float32 0.7 - 0.2 is not the float32 nearest to the float64 difference of the two, and 0.1 * 10 is exactly 1.
DIFFERENCE = node("Sub", "a b", "d")
PRODUCT = node("Mul", "tenth ten", "p")
CHOICE = node("Where", "is high low", "c")
FLOATS = {
    "a": single(0.7), "b": single(0.2), "k": single(0.7) - single(0.2), "tenth": single(0.1), "ten": single(10.0),
    "one": single(1.0), "high": single(4.0), "low": single(-4.0), "half": single(0.5),
}  # fmt: skip
TO_FLOAT = node("Cast", "n", "c", to=TensorProto.FLOAT)

BRANCHES: dict[str, list[Any]] = {
    "Equal": [DIFFERENCE, node("Equal", "d k", "is"), CHOICE],
    "Greater": [DIFFERENCE, node("Greater", "d k", "is"), CHOICE],
    "Less": [DIFFERENCE, node("Less", "d k", "is"), CHOICE],
    "GreaterOrEqual": [DIFFERENCE, node("GreaterOrEqual", "k d", "is"), CHOICE],
    "LessOrEqual": [DIFFERENCE, node("LessOrEqual", "d k", "is"), CHOICE],
    "Greater than one": [PRODUCT, node("Greater", "p one", "is"), CHOICE],
    "Floor": [node("Div", "one tenth", "q"), node("Floor", "q", "c")],
    "Ceil": [PRODUCT, node("Ceil", "p", "c")],
    "Mod": [node("Mod", "one tenth", "c", fmod=1)],
    "Cast to integers": [node("Div", "one tenth", "q"), node("Cast", "q", "n", to=TensorProto.INT64), TO_FLOAT],
    "Cast to bytes": [node("Cast", "many", "n", to=TensorProto.UINT8), TO_FLOAT],
    "Cast to float16": [node("Cast", "tenth", "n", to=TensorProto.FLOAT16), TO_FLOAT],
    "Range": [node("Range", "zero_f end_f tenth_f", "r"), node("ReduceSum", "r", "c", keepdims=0)],
    "Pow of integers": [node("Pow", "two half", "n"), TO_FLOAT],
    "ReduceMean of integers": [node("ReduceMean", "pair", "n", keepdims=0), TO_FLOAT],
    "Div of integers": [node("Div", "minus_seven two", "n"), TO_FLOAT],
    "Mod of integers": [node("Mod", "minus_seven two", "n"), TO_FLOAT],
    "Add that wraps": [node("Add", "byte byte", "n"), TO_FLOAT],
    "CastLike": [node("CastLike", "two tenth", "c")],
    "Trilu": [node("Trilu", "square", "t", upper=0), node("ReduceSum", "t", "c", keepdims=0)],
    "ReduceL2": [node("ReduceL2", "square", "c", keepdims=0)],
    "ReduceSumSquare": [node("ReduceSumSquare", "square", "c", keepdims=0)],
    "CumSum": [node("CumSum", "square zero_i", "s"), node("ReduceMax", "s", "c", keepdims=0)],
    "Einsum": [node("Einsum", "square square", "c", equation="ij,ij->")],
    "Softmax": [node("Softmax", "square", "s"), node("ReduceMax", "s", "c", keepdims=0)],
    "Dropout": [node("Dropout", "a", "d"), node("Mul", "d half", "c")],
    "TopK, the second output": [node("TopK", "square one_i", "v i"), node("ReduceSum", "i", "n", keepdims=0), TO_FLOAT],
    "SplitToSequence": [
        node("SplitToSequence", "square two_s", "q", axis=1),
        node("SequenceAt", "q zero_i", "s"),
        node("ReduceMax", "s", "c", keepdims=0),
    ],
    "SplitToSequence one by one": [
        node("SplitToSequence", "square", "q", axis=0, keepdims=0),
        node("SequenceAt", "q minus_one", "c"),
    ],
    "Min and Max": [node("Max", "a k high", "m"), node("Min", "m ten", "c")],
}
MORE = {
    "many": single(200.7), "two": integers(2), "minus_seven": integers(-7), "pair": integers(1, 2),
    "byte": np.array([200], np.uint8), "zero_f": np.float32(0), "end_f": np.float32(0.3), "tenth_f": np.float32(0.1),
    "square": np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32), "zero_i": np.array(0),
    "minus_one": np.array(-1), "two_s": np.array(2), "one_i": integers(1),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_a_constant_comes_out_as_onnxruntime_computes_it(name: str) -> None:
    nodes = [*BRANCHES[name], node("Mul", "x c")]
    assert_lowers_exactly(make_model(nodes, (3,), {**FLOATS, **MORE}, opset=18), (3,))


def test_the_cases_where_float64_would_take_the_other_branch() -> None:
    """Without these the test above could not fail."""
    assert float(FLOATS["a"][0]) - float(FLOATS["b"][0]) != float(FLOATS["k"][0])
    assert float(FLOATS["tenth"][0]) * 10.0 > 1.0 == (FLOATS["tenth"] * FLOATS["ten"])[0]
    assert 1.0 / float(FLOATS["tenth"][0]) < 10.0 == (FLOATS["one"] / FLOATS["tenth"])[0]


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1, 4, -1, -(2**63)])
@pytest.mark.parametrize(("start", "step"), [(1, -1), (9, -2), (0, 1), (-3, 2)])
def test_slices_of_constants(start: int, end: int, step: int) -> None:
    sliced = node("Slice", "c s e a t", "part")
    nodes = [sliced, node("ReduceSum", "part", "sum", keepdims=0), node("Add", "x sum")]
    constants = {
        "c": np.arange(1, 7, dtype=np.float32)[None], "s": integers(start), "e": integers(end), "a": integers(1),
        "t": integers(step),
    }  # fmt: skip
    assert_lowers_exactly(make_model(nodes, (3,), constants, opset=18), (3,))


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_a_slice_that_reverses_the_input(end: int) -> None:
    constants = {"s": integers(-1), "e": integers(end), "a": integers(1), "t": integers(-1)}
    assert_lowers_exactly(make_model([node("Slice", "x s e a t")], (4,), constants, check=False), (4,))


def test_constants_keep_their_types_until_they_meet_the_input() -> None:
    nodes = [node("ConstantOfShape", "s", "z"), node("Add", "z a", "c"), node("Add", "x c")]
    assert_lowers_exactly(make_model(nodes, (3,), {**FLOATS, "s": integers(1)}), (3,))


@pytest.mark.parametrize(
    "bad",
    [
        node("Div", "a two", "c"),
        node("Add", "a wide", "c"),
        node("Cast", "a", "c", to=TensorProto.STRING),
        node("MatMul", "wide wide", "c"),
    ],
    ids=["mixed types", "shapes", "strings", "matrices"],
)
def test_constants_that_onnxruntime_cannot_compute(bad: Any) -> None:
    constants = {"a": single(1.0, 2.0), "wide": single(1.0, 2.0, 3.0), "two": integers(2)}
    if bad.op_type == "MatMul":
        constants["wide"] = np.ones((2, 3), np.float32)
    model = make_model([bad, node("Add", "x c")], (3,), constants, check=False)
    with pytest.raises(UnsupportedOperator, match=r"'make_c'.*(cannot be evaluated|constants of type)"):
        lower(model)


def test_the_support_table_knows_what_is_folded() -> None:
    rows = support_table(make_model([*BRANCHES["Equal"], node("Mul", "x c")], (3,), FLOATS))
    assert [row.verdict for row in rows] == ["exact"] * 4


@pytest.mark.parametrize("axis", [-2, -1, 0, 1, 2])
def test_a_flattened_constant(axis: int) -> None:
    nodes = [node("Flatten", "c", "f", axis=axis), node("ReduceSum", "f last", "s"), node("MatMul", "x s")]
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    rows = {-2: 1, -1: 3, 0: 1, 1: 3, 2: 9}[axis]
    model = make_model(nodes, (rows,), {"c": square, "last": integers(1)}, opset=18)
    assert_lowers_exactly(model, (rows,))
    with pytest.raises(UnsupportedOperator, match="axis"):
        lower(make_model([node("Flatten", "c", "f", axis=3), node("Add", "x f")], (9,), {"c": square}, check=False))
