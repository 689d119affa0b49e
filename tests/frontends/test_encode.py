"""What rows become before they are certified: columns by name, codes as they are, and errors that name the cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import InvalidData, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends import encode, trace
from tests.frontends.onnx_models import make_model, node

RANDOM = np.random.default_rng(8)
FRAME = pd.DataFrame(
    {"c": RANDOM.choice(list("abc"), 40), "u": RANDOM.normal(size=40), "v": RANDOM.normal(size=40) + 5}
)
TARGETS = FRAME.u * 2 + FRAME.v


def columns(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """a − 2 b of two columns."""
    nodes = [node("Cast", "a", "f", to=TensorProto.FLOAT), node("Mul", "b two", "d"), node("Sub", "f d")]
    inputs = [helper.make_tensor_value_info(name, k, ["n", 1]) for name, k in (("a", kind), ("b", TensorProto.FLOAT))]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])]
    graph = helper.make_graph(nodes, "columns", inputs, made, [numpy_helper.from_array(np.float32([2]), "two")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_columns_go_by_name(kind: int) -> None:
    model, rows = columns(kind), pd.DataFrame({"b": [1.0, 2.0], "a": [10.0, 20.0]})
    for given in (rows, rows[["a", "b"]], rows[["a", "b"]].to_numpy()):
        np.testing.assert_allclose(evaluate(trace(model, given), encode(model, given))[:, 0], [8.0, 16.0])


@pytest.mark.parametrize("rest", [["c", "u", "v"], ["u", "v"]])
def test_columns_of_an_estimator_go_by_name(rest: list[str]) -> None:
    parts = [(StandardScaler(), ["u", "v"]), (OneHotEncoder(), ["c"])][: len(rest) - 1]
    estimator = make_pipeline(make_column_transformer(*parts), LinearRegression()).fit(FRAME[rest], TARGETS)
    turned = FRAME[rest[::-1]]
    np.testing.assert_allclose(
        evaluate(trace(estimator, turned), encode(estimator, turned))[:, 0], estimator.predict(FRAME[rest])
    )


BAD: dict[str, tuple[Any, str]] = {
    "a column less": (pd.DataFrame({"a": [1.0]}), "without 'b'"),
    "a column more": (pd.DataFrame({"a": [1.0], "b": [2.0], "z": [3.0]}), "unknown 'z'"),
    "too few": (np.ones((2, 1)), "1 columns"),
    "text": (pd.DataFrame({"a": [1, 1], "b": [2.0, "x"]}), "row 1: 'x' is no float32.*'b'"),
    "text for a code": (pd.DataFrame({"a": ["x"], "b": [1.0]}), "row 0: 'x' is no int64.*'a'"),
    "half a code": (pd.DataFrame({"a": [1, 1.5], "b": [1.0, 1.0]}), "row 1: 1.5 is no int64"),
    "a code that float64 rounded": (pd.DataFrame({"a": [2.0**60], "b": [1.0]}), "is no int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_rows_that_do_not_fit(name: str) -> None:
    rows, said = BAD[name]
    with pytest.raises(InvalidData, match=said):
        encode(columns(TensorProto.INT64), rows)


def test_rows_that_do_not_fit_an_estimator() -> None:
    numbers = FRAME[["u", "v"]]
    estimator = make_pipeline(StandardScaler(), LinearRegression()).fit(numbers, TARGETS)
    for rows, said in ((numbers[["u"]], "without 'v'"), (FRAME, "unknown 'c'")):
        with pytest.raises(InvalidData, match=said):
            encode(estimator, rows)
    for rows in (np.ones((2, 1)), numbers.assign(u="x")):
        with pytest.raises(UsageError):
            encode(estimator, rows)


def test_a_column_of_text_that_nothing_reads() -> None:
    transformer = make_column_transformer((StandardScaler(), ["v", "u"]), remainder="drop")
    estimator = make_pipeline(transformer, LinearRegression()).fit(FRAME, TARGETS)
    points = encode(estimator, FRAME)
    np.testing.assert_allclose(evaluate(trace(estimator, FRAME), points)[:, 0], estimator.predict(FRAME))


def test_codes_that_no_float64_holds() -> None:
    rows = pd.DataFrame({"k": RANDOM.integers(0, 4, 40) + 2**60, "u": FRAME.u})
    transformer = make_column_transformer((OneHotEncoder(), ["k"]), (StandardScaler(), ["u"]))
    estimator = make_pipeline(transformer, LinearRegression()).fit(rows, rows.u + (rows.k - 2**60) * 10)
    np.testing.assert_allclose(
        evaluate(trace(estimator, rows.iloc[:20]), encode(estimator, rows))[:, 0], estimator.predict(rows)
    )


def test_a_list_of_rows() -> None:
    model = make_model([node("Relu", "x")], (4,))
    assert trace(model, [[1.0, 2.0, 3.0, 4.0]]).input_shape == (4,)


def test_a_lookup_that_reaches_back_in_the_batch() -> None:
    nodes = [
        node("Pad", "t pads", "p"), node("Slice", "p zero back zero", "s"), node("Add", "t s", "u"),
        node("Gather", "e u", "h"), node("ReduceSum", "h one", keepdims=0),
    ]  # fmt: skip
    constants = {
        "pads": np.array([5, 0, 0, 0]), "zero": np.array([0]), "back": np.array([-5]), "one": np.array([1]),
        "e": RANDOM.normal(size=(6, 4)).astype(np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("t", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(UnsupportedOperator, match="other rows of a batch"):
        trace(model, RANDOM.integers(1, 3, size=(9, 3)))


@pytest.mark.parametrize("doubled", [True, False])
def test_a_softmax_behind_a_long_chain_of_sums(doubled: bool) -> None:
    count = 40 if doubled else 1200
    chain = [node("Add", f"a{i} a{i}" if doubled else f"a{i} c", f"a{i + 1}") for i in range(count)]
    nodes = [node("Identity", "x", "a0"), *chain, node("Softmax", f"a{count}", axis=-1)]
    assert trace(make_model(nodes, (4,), {"c": np.float32([1, 2, 3, 4])})).output_shape == (4,)
