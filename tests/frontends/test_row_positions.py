"""What has fixed places along the batch shows in a batch that is long enough only, and is refused whatever length is tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CONSTANTS = {
    "zero": integers(0), "one": integers(1), "five": integers(5), "minus_five": integers(-5), "hundred": integers(100),
    "end": integers(2**63 - 1), "end_32": integers(2**31 - 1), "start": integers(-(2**63)), "two": np.float32(2),
    "before": integers(5, 0, 0, 0), "beside": integers(0, 1, 0, 0), "twelve": np.array(12), "minus_ten": np.array(-10),
    "kernel": np.ones((1, 1, 2), np.float32), "point": np.full((1, 1, 1), 2, np.float32), "row": np.ones((1, 4), np.float32),
    "last": integers(-1), "image": integers(-1, 1, 2, 2), "flat": integers(-1, 4), "of_all": integers(1, 1, -1),
}  # fmt: skip
BATCH_LAST = [node("Transpose", "x", "t", perm=[1, 0]), node("Unsqueeze", "t one", "u")]
BATCH_FIRST = [node("Squeeze", "c one", "s"), node("Transpose", "s", perm=[1, 0])]

# name: nodes, the operator that must be named. In a batch of three each of them does nothing to another row.
PLACES: dict[str, tuple[list[Any], str]] = {
    "five rows before": (
        [node("Pad", "x before", "p"), node("Slice", "p zero minus_five zero", "s"), node("Add", "x s")], "Pad",
    ),
    "the first hundred": (
        [node("Slice", "x zero hundred zero", "h"), node("Slice", "x hundred end zero", "t"), node("Mul", "t two", "u"),
         node("Concat", "h u", axis=0)], "Slice",
    ),
    "the first hundred, in pieces": (
        [node("SplitToSequence", "x hundred_s", "p", axis=0), node("SequenceAt", "p first")], "SplitToSequence",
    ),
    "the last hundred": ([node("Slice", "x minus_hundred end zero")], "Slice"),
    "a dilated convolution": ([*BATCH_LAST, node("Conv", "u kernel", "c", dilations=[6], pads=[6, 0]), *BATCH_FIRST], "Conv"),
    "a triangle": ([node("Trilu", "x minus_ten", upper=1)], "Trilu"),
}  # fmt: skip
MORE = {"hundred_s": np.array(100), "first": np.array(0), "minus_hundred": integers(-100)}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_in_the_batch(name: str) -> None:
    nodes, operator = PLACES[name]
    with pytest.raises(UnsupportedOperator) as error:
        lower(make_model(nodes, (4,), {**CONSTANTS, **MORE}, opset=18, check=False))
    assert error.value.operator == operator
    assert "batch" in error.value.remedy


# What exporters write of whole batches, and of other axes.
NO_PLACES: dict[str, list[Any]] = {
    "all of the batch": [
        node("Slice", "x zero end zero", "a"), node("Slice", "a zero end_32 zero", "b"), node("Slice", "b start end zero"),
    ],
    "all, one axis after the other": [
        node("Slice", "x zero end zero", "a"), node("Slice", "a one end one", "b"), node("Concat", "a b", axis=1),
    ],
    "padding beside": [node("Pad", "x beside")],
    "two halves of two batches": [
        node("Concat", "x x", "d", axis=0), node("Split", "d", "h k", axis=0, num_outputs=2), node("Relu", "h", "r"),
        node("Add", "r k"),
    ],
    "a window of one": [*BATCH_LAST, node("Conv", "u point", "c"), *BATCH_FIRST],
    "windows beside": [
        node("Reshape", "x image", "i"), node("MaxPool", "i", "p", kernel_shape=[2, 2]), node("Flatten", "p"),
    ],
    "a row for every row": [
        node("Shape", "x", "n"), node("Expand", "row n", "r"), node("Concat", "x r", axis=1),
    ],
    "columns chosen": [node("Gather", "x five_", axis=1)],
    "a triangle beside": [node("Reshape", "x image", "i"), node("Trilu", "i", "t"), node("Flatten", "t")],
}  # fmt: skip


@pytest.mark.parametrize("name", NO_PLACES)
def test_no_place_in_the_batch(name: str) -> None:
    constants = {**CONSTANTS, "five_": integers(1, 0, 3, 3, 2)}
    assert_lowers_exactly(make_model(NO_PLACES[name], (4,), constants, opset=18, check=False), (4,))


def test_a_share_of_the_length_cut_to_a_whole_number() -> None:
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Cast", "n", "f", to=TensorProto.FLOAT),
        node("Mul", "f share", "m"), node("Cast", "m", "i", to=TensorProto.INT64), node("Cast", "i", "g", to=TensorProto.FLOAT),
        node("Add", "x g"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedOperator, match="how many rows") as error:
        lower(make_model(nodes, (4,), {"zero": integers(0), "share": np.float32(0.3)}))
    assert error.value.node == "make_i"


def test_a_length_that_stays_whole_may_be_cast() -> None:
    nodes = [
        node("Shape", "x", "s"), node("Cast", "s", "f", to=TensorProto.FLOAT), node("Mul", "f ones", "m"),
        node("Cast", "m", "i", to=TensorProto.INT64), node("Reshape", "x i"),
    ]  # fmt: skip
    assert_lowers_exactly(make_model(nodes, (4,), {"ones": np.float32([1, 1])}, check=False), (4,))


@pytest.mark.parametrize("threshold", [10.0, 1e6])
def test_a_fixed_batch_with_another_function_per_row_far_away(threshold: float) -> None:
    nodes = [node("Sub", "x t", "d"), node("Relu", "d", "r"), node("Mul", "r m", "q"), node("Add", "x q")]
    constants = {"t": np.float32(threshold), "m": np.float32([[0], [1]])}
    with pytest.raises(UnsupportedOperator, match=r"another answer|differ from row to row"):
        lower(make_model(nodes, (4,), constants, batch=2))
    same = {**constants, "m": np.float32([[1], [1]])}
    assert lower(make_model(nodes, (4,), same, batch=2)).output_shape == (4,)


def branches(source: str, inner: list[onnx.NodeProto], output: str) -> onnx.NodeProto:
    """An If of which both branches are the nodes `inner`, which make "o" of `source`."""
    result = [helper.make_empty_tensor_value_info("o")]
    graph = helper.make_graph(inner, "branch", [], result)
    return helper.make_node("If", ["c"], [output], then_branch=graph, else_branch=graph, name=f"if_{source}")


def test_two_branches_that_call_different_things_by_one_name() -> None:
    """The second one's t is a constant; the first one's the number of rows, which it compares."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [0])
    compared = [
        node("Greater", "t many", "g"), node("Cast", "g", "f", to=TensorProto.FLOAT),
    ]  # fmt: skip
    first = branches(
        "x", [node("Shape", "x", "n"), node("Gather", "n zero", "t"), *compared, node("Add", "x f", "o")], "a"
    )
    second = branches("a", [node("Constant", "", "t", value=one), *compared, node("Add", "a f", "o")], "y")
    constants = {"c": np.array(True), "zero": integers(0), "many": integers(6)}
    with pytest.raises(UnsupportedOperator, match="how many rows"):
        lower(make_model([first, second], (4,), constants, check=False))
    assert_lowers_exactly(make_model([node("Identity", "x", "a"), second], (4,), constants, check=False), (4,))


@pytest.mark.parametrize(
    ("lift", "scales", "refused"),
    [(0.0, [0.5], ""), (5.0, [0.125, 2.0], ""), (0.0, [1e-3] * 10, "scales a mask"), (1e30, [1.0], "lifts scores")],
)
def test_a_mask_counts_as_minus_infinity_only_while_it_is_as_good(
    lift: float, scales: list[float], refused: str
) -> None:
    nodes = [node("Add", "x mask", "a"), node("Add", "a lift", "b0")]
    nodes += [node("Mul", f"b{i} k{i}", f"b{i + 1}") for i in range(len(scales))]
    constants = {"mask": np.float32([0, 0, -1e30, 0]), "lift": np.float32([0, 0, lift, 0])}
    constants |= {f"k{i}": np.float32(scale) for i, scale in enumerate(scales)}
    model = make_model([*nodes, node("Softmax", f"b{len(scales)}", axis=-1)], (4,), constants)
    if refused:
        with pytest.raises(UnsupportedOperator, match=refused):
            lower(model)
    else:
        assert_lowers_exactly(model, (4,))
