"""Every row of the lowering table against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.frontends import lowering_shape
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

RANDOM = np.random.default_rng(7)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def kinds(graph: Graph) -> list[type[ops.Op]]:
    """The ops that compute something; a sample becomes a batch of one row, and the result a vector, by reshapes."""
    return [type(n.op) for n in graph.nodes if not isinstance(n.op, (ops.Input, ops.Reshape))]


def only(graph: Graph, kind: type[ops.Op]) -> Any:
    (op,) = (n.op for n in graph.nodes if isinstance(n.op, kind))
    return op


BATCH_NORM = {"g": weight(4), "b": weight(4), "m": weight(4), "v": np.abs(weight(4)) + 0.1}

# name: (nodes, sample shape, constants[, opset])
CASES: dict[str, tuple] = {
    "Gemm": ([node("Gemm", "x w b")], (3,), {"w": weight(3, 4), "b": weight(4)}),
    "Gemm transB": ([node("Gemm", "x w b", transB=1)], (3,), {"w": weight(4, 3), "b": weight(4)}),
    "Gemm alpha beta": ([node("Gemm", "x w b", alpha=0.5, beta=2.0)], (3,), {"w": weight(3, 4), "b": weight(1, 4)}),
    "Gemm scalar bias": ([node("Gemm", "x w b")], (3,), {"w": weight(3, 4), "b": np.float32(2)}),
    "Gemm without bias": ([node("Gemm", "x w")], (3,), {"w": weight(3, 4)}),
    "MatMul": ([node("MatMul", "x w")], (3,), {"w": weight(3, 4)}),
    "MatMul on the last axis": ([node("MatMul", "x w")], (2, 5, 3), {"w": weight(3, 4)}),
    "MatMul with a vector": ([node("MatMul", "x w")], (2, 3), {"w": weight(3)}),
    "MatMul with a stack of one": ([node("MatMul", "x w")], (2, 3), {"w": weight(1, 3, 4)}),
    "MatMul from the left": ([node("MatMul", "w x")], (2, 3), {"w": weight(4, 2)}),
    "MatMul from the left, deep": ([node("MatMul", "w x")], (5, 2, 3), {"w": weight(4, 2)}),
    "MatMul of a vector from the left": ([node("MatMul", "w x")], (2, 3), {"w": weight(2)}),
    "MatMul and Add": ([node("MatMul", "x w", "h"), node("Add", "h b")], (3,), {"w": weight(3, 4), "b": weight(4)}),
    "Add": ([node("Add", "x c")], (2, 3), {"c": weight(3)}),
    "Add from the left": ([node("Add", "c x")], (2, 3), {"c": weight(1, 2, 1)}),
    "Add grows": ([node("Add", "x c")], (1, 3), {"c": weight(2, 1)}),
    "Add of variables": ([node("Relu", "x", "h"), node("Add", "x h")], (3,), {}),
    "Add of variables, broadcast": (
        [node("ReduceSum", "x a", "h", keepdims=1), node("Add", "x h")],
        (2, 3),
        {"a": integers(2)},
    ),
    "Sub": ([node("Sub", "x c")], (3,), {"c": weight(3)}),
    "Sub from the left": ([node("Sub", "c x")], (3,), {"c": weight(3)}),
    "Sub of variables": ([node("Relu", "x", "h"), node("Sub", "h x")], (3,), {}),
    "Mul": ([node("Mul", "x c")], (2, 3), {"c": weight(2, 1)}),
    "Mul from the left": ([node("Mul", "c x")], (3,), {"c": np.float32(3)}),
    "Mul of variables": ([node("Tanh", "x", "h"), node("Mul", "x h")], (3,), {}),
    "Mul of a variable by itself": ([node("Mul", "x x")], (3,), {}),
    "Div": ([node("Div", "x c")], (3,), {"c": weight(3)}),
    "Neg": ([node("Neg", "x")], (3,), {}),
    "ReduceSum": ([node("ReduceSum", "x a", keepdims=0)], (2, 3), {"a": integers(-1)}),
    "ReduceSum of two axes": ([node("ReduceSum", "x a")], (2, 3, 4), {"a": integers(1, 3)}),
    "ReduceSum of nothing": ([node("ReduceSum", "x", noop_with_empty_axes=1)], (2,), {}),
    "ReduceSum, axes an attribute": ([node("ReduceSum", "x", axes=[1], keepdims=0)], (2, 3), {}, 11),
    "ReduceMean": ([node("ReduceMean", "x a", keepdims=0)], (2, 3, 4), {"a": integers(2, 3)}),
    "ReduceMean, axes an attribute": ([node("ReduceMean", "x", axes=[-1])], (2, 3), {}, 13),
    "Conv 1d": ([node("Conv", "x w b", pads=[1, 2], strides=[2])], (3, 9), {"w": weight(4, 3, 3), "b": weight(4)}),
    "Conv 2d": (
        [node("Conv", "x w b", pads=[0, 1, 2, 1], strides=[2, 1])],
        (3, 8, 7),
        {"w": weight(4, 3, 3, 2), "b": weight(4)},
    ),
    "Conv dilated": ([node("Conv", "x w", dilations=[2, 3])], (2, 9, 9), {"w": weight(3, 2, 3, 2)}),
    "Conv in groups": ([node("Conv", "x w", group=2)], (4, 5, 5), {"w": weight(6, 2, 3, 3)}),
    "Conv SAME_UPPER": (
        [node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])],
        (2, 8, 7),
        {"w": weight(3, 2, 3, 2)},
    ),
    "Conv SAME_LOWER": (
        [node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 3])],
        (2, 8, 7),
        {"w": weight(3, 2, 4, 2)},
    ),
    "Conv VALID": ([node("Conv", "x w", auto_pad="VALID")], (2, 5, 5), {"w": weight(3, 2, 3, 3)}),
    "Conv and Add per channel": (
        [node("Conv", "x w", "h"), node("Add", "h c")],
        (2, 5, 5),
        {"w": weight(3, 2, 3, 3), "c": weight(3, 1, 1)},
    ),
    "Conv and Add per position": (
        [node("Conv", "x w", "h"), node("Add", "h c")],
        (2, 5, 5),
        {"w": weight(3, 2, 3, 3), "c": weight(3)},
    ),
    "BatchNormalization": ([node("BatchNormalization", "x g b m v", epsilon=0.01)], (4, 2, 3), BATCH_NORM),
    "BatchNormalization after Conv": (
        [node("Conv", "x w", "h"), node("BatchNormalization", "h g b m v")],
        (2, 5, 5),
        {"w": weight(4, 2, 3, 3), **BATCH_NORM},
    ),
    "BatchNormalization after Conv read twice": (
        [node("Conv", "x w c", "h"), node("BatchNormalization", "h g b m v", "z"), node("Add", "z h")],
        (2, 5, 5),
        {"w": weight(4, 2, 3, 3), "c": weight(4), **BATCH_NORM},
    ),
    "BatchNormalization after Gemm": (
        [node("Gemm", "x w c", "h"), node("BatchNormalization", "h g b m v")],
        (3,),
        {"w": weight(3, 4), "c": weight(4), **BATCH_NORM},
    ),
    "AveragePool": ([node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 1])], (3, 6, 6), {}),
    "AveragePool 1d": ([node("AveragePool", "x", kernel_shape=[3], pads=[1, 1])], (3, 6), {}),
    "AveragePool padded": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 0, 1, 2], strides=[2, 2])],
        (2, 6, 7),
        {},
    ),
    "AveragePool padded, counting it": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        (2, 5, 5),
        {},
    ),
    "AveragePool SAME_UPPER": (
        [node("AveragePool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[2, 2])],
        (2, 5, 5),
        {},
    ),
    "AveragePool ceil_mode that changes nothing": (
        [node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
        (2, 6, 6),
        {},
    ),
    "GlobalAveragePool": ([node("GlobalAveragePool", "x")], (3, 4, 5), {}),
    "Reshape": ([node("Reshape", "x s")], (2, 6), {"s": integers(-1, 3, 4)}),
    "Reshape keeping axes": ([node("Reshape", "x s")], (2, 6), {"s": integers(0, 0, 3, -1)}),
    "Flatten": ([node("Flatten", "x")], (2, 3, 4), {}),
    "Shape": (
        [node("Shape", "x", "s"), node("Reshape", "x s", "h"), node("Size", "x", "n"), node("Reshape", "h s")],
        (2, 3),
        {},
    ),
    "Squeeze": ([node("Squeeze", "x a")], (1, 3, 1), {"a": integers(-1)}),
    "Squeeze, axes an attribute": ([node("Squeeze", "x", axes=[1])], (1, 3), {}, 11),
    "Squeeze all": ([node("Squeeze", "x")], (1, 3, 1), {}),
    "Unsqueeze": ([node("Unsqueeze", "x a")], (2, 3), {"a": integers(-1, 1)}),
    "Unsqueeze, axes an attribute": ([node("Unsqueeze", "x", axes=[1])], (3,), {}, 11),
    "Transpose": ([node("Transpose", "x", perm=[0, 3, 1, 2])], (2, 3, 4), {}),
    "Expand": ([node("Expand", "x s")], (1, 3), {"s": integers(1, 4, 3)}),
    "Expand, fewer axes": ([node("Expand", "x s")], (2, 1), {"s": integers(2, 4)}),
    "Slice": (
        [node("Slice", "x s e a t")],
        (6, 7),
        {"s": integers(1, -1), "e": integers(99, -8), "a": integers(1, 2), "t": integers(2, -3)},
    ),
    "Slice of every axis": ([node("Slice", "x s e")], (6,), {"s": integers(0, 1), "e": integers(2**40, -1)}),
    "Slice, attributes": ([node("Slice", "x", starts=[1], ends=[3], axes=[1])], (6,), {}, 9),
    "Split": ([node("Split", "x s", "a b", axis=1), node("Concat", "b a", axis=1)], (5,), {"s": integers(2, 3)}),
    "Split, attribute": ([node("Split", "x", "a y", axis=-1, split=[2, 3])], (5,), {}, 11),
    "Split evenly": ([node("Split", "x", "a b y", axis=1, num_outputs=3)], (5,), {}),
    "SplitToSequence": (
        [node("SplitToSequence", "x s", "q", axis=1), node("SequenceAt", "q i")],
        (5,),
        {"s": np.array(2), "i": np.array(-1)},
    ),
    "SplitToSequence by sizes": (
        [node("SplitToSequence", "x s", "q", axis=-1), node("SequenceAt", "q i")],
        (2, 5),
        {"s": integers(1, 4), "i": np.array(1)},
    ),
    "SplitToSequence one by one": (
        [node("SplitToSequence", "x", "q", axis=1, keepdims=0), node("SequenceAt", "q i")],
        (3, 2),
        {"i": np.array(1)},
    ),
    "ConcatFromSequence": (
        [
            node("Relu", "x", "h"),
            node("SequenceConstruct", "x h x", "q"),
            node("ConcatFromSequence", "q", axis=2, new_axis=1),
        ],
        (2, 3),
        {},
    ),
    "ConcatFromSequence of pieces": (
        [node("SplitToSequence", "x s", "q", axis=1), node("ConcatFromSequence", "q", axis=-1)],
        (4, 3),
        {"s": np.array(2)},
    ),
    "CastLike": (
        [node("CastLike", "c x", "d"), node("CastLike", "x d", "h"), node("Mul", "h d")],
        (3,),
        {"c": integers(2)},
    ),
    "Gather": ([node("Gather", "x i", axis=1)], (4, 3), {"i": integers(2, -1, 0)}),
    "Gather one": ([node("Gather", "x i", axis=2)], (4, 3), {"i": np.array(-1)}),
    "Gather a table": ([node("Gather", "x i", axis=1)], (4,), {"i": np.array([[0, 1], [2, 3]])}),
    "Concat": ([node("Relu", "x", "h"), node("Concat", "x h x", axis=-1)], (2, 3), {}),
    "Concat with constants": (
        [
            node("Shape", "x", "n", start=0, end=1),
            node("Concat", "n r", "s", axis=0),
            node("Expand", "c s", "token"),
            node("Concat", "token x token", axis=1),
        ],
        (2, 3),
        {"r": integers(1, 3), "c": weight(1, 1, 3)},
    ),
    "Pad": ([node("Pad", "x p v")], (3, 4), {"p": integers(0, 1, 2, 0, 0, 1), "v": np.float32(1.5)}),
    "Pad some axes, cropping": ([node("Pad", "x p _ a")], (3, 4), {"p": integers(-1, 2), "a": integers(2)}),
    "Pad, attributes": ([node("Pad", "x", pads=[0, 1, 0, 1])], (3,), {}, 10),
    "Relu": ([node("Relu", "x")], (3,), {}),
    "LeakyRelu": ([node("LeakyRelu", "x", alpha=0.3)], (3,), {}),
    "LeakyRelu default": ([node("LeakyRelu", "x")], (3,), {}),
    "Tanh": ([node("Tanh", "x")], (3,), {}),
    "Sigmoid": ([node("Sigmoid", "x")], (3,), {}),
    "Abs": ([node("Abs", "x")], (3,), {}),
    "Identity": ([node("Identity", "x")], (3,), {}),
    "Dropout": ([node("Dropout", "x")], (3,), {}),
    "Dropout, old": ([node("Dropout", "x", ratio=0.5)], (3,), {}, 9),
    "Cast": ([node("Cast", "x", "h", to=TensorProto.DOUBLE), node("Cast", "h", to=TensorProto.FLOAT)], (3,), {}),
    "shape computation": (
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Unsqueeze", "n axis", "n1"),
            node("Concat", "n1 rest", "target", axis=0),
            node("Reshape", "x target"),
        ],
        (2, 6),
        {"zero": np.array(0), "axis": integers(0), "rest": integers(3, -1)},
    ),
    "expand written out by an old exporter": (
        [
            node("Shape", "x", "s", start=0, end=1),
            node("Concat", "s minus", "wish", axis=0),
            node("Mul", "ones minus_one", "probe"),
            node("Equal", "wish probe", "keep"),
            node("Where", "keep ones wish", "target"),
            node("Expand", "c target", "token"),
            node("Concat", "token x", axis=1),
        ],
        (2, 3),
        {
            "minus": integers(-1, -1),
            "minus_one": integers(-1),
            "ones": integers(1, 1, 1),
            "c": weight(1, 1, 3),
        },
    ),
    "Expand of a variable over the batch": (
        [node("Shape", "x", "s", start=0, end=1), node("Concat", "s r", "t", axis=0), node("Expand", "x t")],
        (1, 3),
        {"r": integers(4, 3)},
    ),
    "Slice that keeps every row": (
        [node("Slice", "x s e a")],
        (4,),
        {"s": integers(0, 1), "e": integers(2**63 - 1, 3), "a": integers(0, 1)},
    ),
    "rows of a multiple of the batch": (
        [
            node("Shape", "x", "s", start=0, end=2),
            node("ReduceProd", "s", "p", keepdims=1),
            node("Div", "p two", "n"),
            node("Concat", "n r", "t", axis=0),
            node("Reshape", "x t"),
        ],
        (2, 3),
        {"two": integers(2), "r": integers(-1)},
    ),
    "a shape of ones": (
        [
            node("Shape", "x", "n"),
            node("ConstantOfShape", "n", "ones"),
            node("Shape", "ones", "m"),
            node("Reshape", "x m"),
        ],
        (2, 3),
        {},
    ),
    "weights computed from constants": (
        [
            node("Constant", "", "half", value_float=0.5),
            node("Transpose", "w", "wt", perm=[1, 0]),
            node("Mul", "wt half", "w2"),
            node("ConstantOfShape", "s", "ones", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
            node("Gemm", "x w2 ones"),
        ],
        (3,),
        {"w": weight(4, 3), "s": integers(4)},
    ),
    "a mean over a computed count": (
        [
            node("ReduceSum", "x a", "h", keepdims=0),
            node("Shape", "x", "s", start=1, end=2),
            node("Cast", "s", "n", to=TensorProto.FLOAT),
            node("Div", "h n"),
        ],
        (4,),
        {"a": integers(1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lowered_graph_is_what_onnxruntime_computes(name: str) -> None:
    nodes, sample, constants, *opset = CASES[name]
    assert_lowers_exactly(make_model(nodes, sample, constants, opset=opset[0] if opset else 20), sample)


FIXED = [name for name in CASES if name not in ("Squeeze all",)]  # with a batch of 1 it would drop the batch axis


@pytest.mark.parametrize("name", FIXED)
def test_batch_of_fixed_length_one(name: str) -> None:
    nodes, sample, constants, *opset = CASES[name]
    assert_lowers_exactly(make_model(nodes, sample, constants, batch=1, opset=opset[0] if opset else 20), sample)


def test_every_row_of_shape_has_a_case() -> None:
    with_cases = {n.op_type for nodes, *_ in CASES.values() for n in nodes}
    assert set(lowering_shape.ROWS) <= with_cases


def test_reshapes_that_exporters_write_for_a_batch_of_one() -> None:
    sample = (1, 1, 5)
    nodes = [
        node("Reshape", "x a", "h"),
        node("Flatten", "h", "f", axis=1),
        node("Reshape", "f b", "g"),
        node("Gemm", "g w"),
    ]
    constants = {"a": integers(1, -1), "b": integers(-1, 5), "w": weight(5, 2)}
    assert_lowers_exactly(make_model(nodes, sample, constants, batch=1), sample)


def test_constant_bias_of_a_whole_batch() -> None:
    bias = np.repeat(weight(1, 3), 4, axis=0)
    model = make_model([node("Add", "x c")], (3,), {"c": bias}, batch=4)
    points = weight(4, 3)
    graph = lower(model)
    assert graph.input_shape == (3,)
    np.testing.assert_allclose(evaluate(graph, points).numpy(), run_onnxruntime(model, points), rtol=1e-6)


def test_weights_are_kept_to_the_last_bit() -> None:
    kernel = weight(3, 4)
    graph = lower(make_model([node("Gemm", "x w b")], (3,), {"w": kernel, "b": weight(4)}))
    np.testing.assert_array_equal(only(graph, ops.Linear).weight, kernel.T.astype(np.float64))


def test_matmul_and_bias_become_one_node() -> None:
    nodes, sample, constants = CASES["MatMul and Add"]
    graph = lower(make_model(nodes, sample, constants))
    assert kinds(graph) == [ops.Linear]


def test_batch_normalization_goes_into_the_convolution_it_alone_reads() -> None:
    folded = lower(make_model(*CASES["BatchNormalization after Conv"]))
    shared = lower(make_model(*CASES["BatchNormalization after Conv read twice"]))
    assert kinds(folded) == [ops.Conv]
    assert kinds(shared) == [ops.Conv, ops.ScaleShift, ops.Add]


def test_batch_normalization_is_folded_in_float64() -> None:
    nodes, sample, constants = CASES["BatchNormalization after Conv"]
    graph = lower(make_model(nodes, sample, constants))
    exact = {name: value.astype(np.float64) for name, value in constants.items()}
    scale = exact["g"] / np.sqrt(exact["v"] + float(np.float32(1e-5)))
    np.testing.assert_allclose(only(graph, ops.Conv).weight, exact["w"] * scale[:, None, None, None], rtol=1e-15)


def test_a_model_in_double_precision_is_the_same_to_its_last_digits() -> None:
    nodes = [
        node("Gemm", "x w b", "h"), node("Tanh", "h", "e"), node("Mul", "h e", "g"), node("Softmax", "g", "s"),
        node("ReduceL2", "h last", "n"), node("Div", "s n"),
    ]  # fmt: skip
    constants = {"w": RANDOM.normal(size=(4, 3)), "b": RANDOM.normal(size=3), "last": integers(1)}
    model = make_model(nodes, (4,), {}, check=False)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    points = RANDOM.normal(size=(5, 4))
    np.testing.assert_allclose(evaluate(lower(model), points), run_onnxruntime(model, points), rtol=1e-12)


def test_names_of_the_outputs() -> None:
    linear = make_model([node("Gemm", "x w")], (3,), {"w": weight(3, 2)})
    logits = make_model([node("Gemm", "x w", "logit")], (3,), {"w": weight(3, 2)}, outputs=["logit"])
    assert lower(linear).output_names == ("output[0]", "output[1]")
    assert lower(logits).output_names == ("logit[0]", "logit[1]")


def test_an_output_of_several_axes_is_flattened() -> None:
    graph = lower(make_model([node("Relu", "x")], (2, 3), {}))
    assert graph.output_shape == (6,)
    assert lower(make_model([node("Relu", "x")], (), {})).output_shape == (1,)


def test_choice_of_the_output() -> None:
    nodes = [node("Relu", "x", "a"), node("Softmax", "x", "b"), node("Tanh", "x", "c")]
    model = make_model(nodes, (3,), {}, outputs=["a", "b", "c"])
    curves = [only(lower(model, output), ops.Elementwise).curve for output in (None, 0, "a", 2, "c", -1)]
    assert curves == ["relu", "relu", "relu", "tanh", "tanh", "tanh"]


def test_initializers_among_the_inputs_are_constants() -> None:
    model = make_model([node("Gemm", "x w")], (3,), {"w": weight(3, 2)})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]))
    assert lower(model).input_shape == (3,)


def test_local_functions_are_inlined() -> None:
    body = helper.make_function(
        "custom", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    assert_lowers_exactly(make_model([node("Twice", "x", domain="custom")], (3,), functions=[body]), (3,))


def test_external_data_is_read_exactly(tmp_path) -> None:
    kernel = weight(30, 20)
    model = make_model([node("Gemm", "x w")], (30,), {"w": kernel})
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = lower(onnx.load(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(only(graph, ops.Linear).weight, kernel.T.astype(np.float64))


@pytest.mark.parametrize("name", ["LinearRegressor", "LinearClassifier", "Scaler", "ArrayFeatureExtractor", "Imputer"])
def test_operators_of_the_ml_domain(name: str) -> None:
    kernel, bias = [0.5, -1.0, 2.0, 1.0, 0.25, -2.0], [0.5, -0.25]
    rows = {
        "LinearRegressor": node(
            "LinearRegressor", "x", coefficients=kernel, intercepts=bias, targets=2, domain="ai.onnx.ml"
        ),
        "LinearClassifier": node(
            "LinearClassifier", "x", "label y", coefficients=kernel, intercepts=bias, classlabels_ints=[0, 1],
            domain="ai.onnx.ml",
        ),
        "Scaler": node("Scaler", "x", offset=[1.0, 2.0, 3.0], scale=[0.5, 2.0, 3.0], domain="ai.onnx.ml"),
        "ArrayFeatureExtractor": node("ArrayFeatureExtractor", "x i", domain="ai.onnx.ml"),
        "Imputer": node(
            "Imputer", "x", imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=float("nan"), domain="ai.onnx.ml"
        ),
    }  # fmt: skip
    assert_lowers_exactly(make_model([rows[name]], (3,), {"i": integers(2, 0)}, opset=15), (3,))
