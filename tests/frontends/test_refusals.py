"""What cannot be lowered exactly is refused, with the node, where it came from, and what to do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_lipschitz.errors import AuditError, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import make_model, node


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# what: (node, sample shape, constants)
MIXES_THE_BATCH = {
    "ReduceSum": (node("ReduceSum", "x a"), (4,), {"a": integers(0)}),
    "ReduceSum of all": (node("ReduceSum", "x"), (4,), {}),
    "ReduceMean": (node("ReduceMean", "x a"), (4,), {"a": integers(-2)}),
    "Squeeze": (node("Squeeze", "x a"), (4,), {"a": integers(0)}),
    "MatMul": (node("MatMul", "w x"), (4,), {"w": weight(2, 2)}),
    "Gemm": (node("Gemm", "x w", transA=1), (4,), {"w": weight(2, 2)}),
    "a constant per row": (node("Add", "x c"), (4,), {"c": weight(61, 4)}),
}
# What keeps rows apart, but not as the entries of axis 0.
REARRANGES_THE_BATCH = {
    "Reshape": (node("Reshape", "x s"), (4,), {"s": integers(4, -1)}),
    "Reshape to one row": (node("Reshape", "x s"), (4,), {"s": integers(1, -1)}),
    "Flatten": (node("Flatten", "x", axis=0), (4,), {}),
    "Flatten too much": (node("Flatten", "x", axis=2), (4, 2), {}),
    "Transpose": (node("Transpose", "x"), (4,), {}),
    "Concat": (node("Concat", "x x", axis=0), (4,), {}),
    "Gather": (node("Gather", "x i", axis=0), (4,), {"i": integers(0)}),
    "Slice": (node("Slice", "x s e a"), (4,), {"s": integers(-1), "e": integers(9), "a": integers(0)}),
    "Split": (node("Split", "x", "y z", axis=0, num_outputs=2), (4,), {}),
    "Unsqueeze": (node("Unsqueeze", "x a"), (4,), {"a": integers(0)}),
    "Pad": (node("Pad", "x p"), (4,), {"p": integers(1, 0, 0, 0)}),
    "Expand": (node("Expand", "x s"), (4,), {"s": integers(2, 1, 4)}),
    "a constant that moves the batch": (node("Add", "x c"), (4,), {"c": weight(1, 1, 4)}),
}


@pytest.mark.parametrize("name", MIXES_THE_BATCH)
def test_nothing_mixes_the_rows_of_a_batch(name: str) -> None:
    bad, sample, constants = MIXES_THE_BATCH[name]
    model = make_model([bad], sample, constants, opset=18, check=False)
    with pytest.raises(UnsupportedOperator) as error:
        lower(model)
    assert error.value.operator == bad.op_type
    assert error.value.node == bad.name
    assert error.value.reason


@pytest.mark.parametrize("name", REARRANGES_THE_BATCH)
def test_the_output_has_one_entry_per_row(name: str) -> None:
    bad, sample, constants = REARRANGES_THE_BATCH[name]
    model = make_model([bad], sample, constants, opset=18, check=False)
    with pytest.raises(UnsupportedOperator, match="one entry per row") as error:
        lower(model)
    assert (error.value.operator, error.value.node) == ("Output", "y")
    assert "batch" in error.value.remedy


def test_adding_values_whose_batches_do_not_line_up() -> None:
    model = make_model(
        [node("ReduceSum", "x a", "h", keepdims=0), node("Add", "x h", "y", name="sum")], (4,), {"a": integers(1)}
    )
    with pytest.raises(UnsupportedOperator, match=r"'sum'.*3 rows"):
        lower(model)


@pytest.mark.parametrize("operator", ["Mul", "Add"])
def test_a_graph_that_depends_on_how_many_rows_there_are(operator: str) -> None:
    nodes = [
        node("Shape", "x", "s", start=0, end=1),
        node("Cast", "s", "n", to=TensorProto.FLOAT),
        node(operator, "x n"),
    ]
    with pytest.raises(UnsupportedOperator, match="how many rows"):
        lower(make_model(nodes, (4,)))


ONE = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
ROWS_COUNTED = {
    "a slice as long as the batch": [
        node("Shape", "x", "n", start=0, end=1), node("Slice", "x zero n one"),
    ],
    "a case for one length": [
        node("Shape", "x", "n", start=0, end=1), node("Equal", "n five", "is"), node("Where", "is f g", "k"),
        node("Mul", "x k"),
    ],
    "a sum of ones": [
        node("Shape", "x", "n"), node("ConstantOfShape", "n", "ones", value=ONE), node("ReduceSum", "ones zero", "k"),
        node("Mul", "x k"),
    ],
    "a count of ones": [
        node("Shape", "x", "n"), node("ConstantOfShape", "n", "ones"), node("Size", "ones", "m"),
        node("Cast", "m", "k", to=TensorProto.FLOAT), node("Mul", "x k"),
    ],
    "a sum over an expanded constant": [
        node("Shape", "x", "n"), node("Expand", "f n", "many"), node("ReduceSum", "many zero", "k"), node("Add", "x k"),
    ],
    "a number modulo the batch": [
        node("Shape", "x", "n", start=0, end=1), node("Mod", "five n", "m"), node("Cast", "m", "k", to=TensorProto.FLOAT),
        node("Mul", "x k"),
    ],
    "the larger of two lengths": [
        node("Shape", "x", "n", start=0, end=1), node("Max", "five n", "m"), node("Cast", "m", "k", to=TensorProto.FLOAT),
        node("Mul", "x k"),
    ],
    "a number divided with a remainder": [
        node("Shape", "x", "n", start=0, end=1), node("Div", "n two", "m"), node("Cast", "m", "k", to=TensorProto.FLOAT),
        node("Mul", "x k"),
    ],
    "a number of positions": [
        node("Shape", "x", "s"), node("Gather", "s first", "n"), node("Range", "first n two_", "p"),
        node("Cast", "p", "k", to=TensorProto.FLOAT), node("Mul", "x k"),
    ],
    "an output that is a length": [node("Shape", "x", "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_COUNTED)
def test_nothing_may_depend_on_the_number_of_rows(name: str) -> None:
    constants = {
        "zero": integers(0), "one": integers(1), "five": integers(5), "two": integers(2), "f": weight(1), "g": weight(1),
        "first": np.array(0), "two_": np.array(2),
    }  # fmt: skip
    model = make_model(ROWS_COUNTED[name], (200,), constants, opset=18, check=False)
    with pytest.raises(UnsupportedOperator) as error:
        lower(model)
    assert "rows" in str(error.value) or "does not depend on the input" in str(error.value)


UNSUPPORTED = {
    "Sign": (node("Sign", "x"), {}, "jump"),
    "ArgMax": (node("ArgMax", "x"), {}, "scores"),
    "Div by zero": (node("Div", "x c"), {"c": np.zeros(4, np.float32)}, "by zero"),
    "CastLike": (node("CastLike", "c x"), {"c": np.full(4, 0.1)}, "rounds a constant"),
    "SequenceAt": (node("SequenceAt", "x i"), {"i": np.array(0)}, "no entry"),
    "Cast": (node("Cast", "x", to=TensorProto.FLOAT16), {}, "FLOAT16"),
    "Pad": (node("Pad", "x p", mode="reflect"), {"p": integers(0, 1, 0, 9)}, "reflects 9 entries"),
    "NaN": (node("Mul", "x c"), {"c": np.array([1, np.nan, 1, 1], np.float32)}, "NaN or infinity"),
    "infinity": (node("Gemm", "x c"), {"c": np.full((4, 2), np.inf, np.float32)}, "NaN or infinity"),
    "Gather outside": (node("Gather", "x i", axis=1), {"i": integers(4)}, "outside an axis"),
    "Gather by values": (node("Gather", "c x", axis=1), {"c": weight(2, 4)}, "expected to depend"),
    "LinearClassifier": (
        node("LinearClassifier", "x", "label y", coefficients=[1.0] * 8, intercepts=[0.0, 0.0],
             classlabels_ints=[0, 1], post_transform="LOGISTIC", domain="ai.onnx.ml"),
        {}, "LOGISTIC",
    ),
    "Imputer": (
        node("Imputer", "x", imputed_value_floats=[1.0], replaced_value_float=-1.0, domain="ai.onnx.ml"), {}, "jump",
    ),
    "Dropout": (node("Dropout", "x r t"), {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refusal_names_the_node_and_a_reason(name: str) -> None:
    bad, constants, words = UNSUPPORTED[name]
    with pytest.raises(UnsupportedOperator) as error:
        lower(make_model([bad], (4,), constants, opset=18, check=False))
    assert repr(bad.name) in str(error.value)
    assert words in str(error.value)


CONTRADICTIONS = {
    "Unsqueeze outside": (node("Unsqueeze", "x a"), {"a": integers(7)}, "axis 7"),
    "Unsqueeze twice": (node("Unsqueeze", "x a"), {"a": integers(1, 1)}, "twice"),
    "ReduceSum twice": (node("ReduceSum", "x a"), {"a": integers(2, -1)}, "twice"),
    "ReduceMean twice": (node("ReduceMean", "x a"), {"a": integers(2, 2)}, "twice"),
    "Concat": (node("Concat", "x c", axis=2), {"c": weight(1, 5, 4)}, "do not fit"),
    "Transpose": (node("Transpose", "x", perm=[0, 7]), {}, "do not fit"),
    "Reshape": (node("Reshape", "x s"), {"s": integers(-1, -1)}, "two axes"),
    "Slice outside": (node("Slice", "x s e a"), {"s": integers(0), "e": integers(2), "a": integers(3)}, "axes"),
    "Slice of two lengths": (node("Slice", "x s e a"), {"s": integers(0, 0), "e": integers(2), "a": integers(1)}, "fit"),
    "Split": (node("Split", "x s", "y z", axis=1), {"s": integers(1, 9)}, "make up"),
    "Pad": (node("Pad", "x p _ a"), {"p": integers(1, 1), "a": integers(5)}, "does not exist"),
    "AveragePool": (node("AveragePool", "x", kernel_shape=[9]), {}, "window"),
    "AveragePool of stride 0": (node("AveragePool", "x", kernel_shape=[2], strides=[0]), {}, "positive|window"),
    "Conv": (node("Conv", "x c"), {"c": weight(2, 2, 5)}, "window"),
    "LinearRegressor": (
        node("LinearRegressor", "x", coefficients=[1.0] * 5, targets=2, domain="ai.onnx.ml"), {}, "do not fit",
    ),
    "a folded Unsqueeze": (node("Unsqueeze", "c a", "h"), {"c": weight(2), "a": integers(9)}, "do not fit"),
    "a folded Reshape": (node("Reshape", "c s", "h"), {"c": weight(5), "s": integers(2, 2)}, "do not fit"),
    "a folded Gather": (node("Gather", "c s", "h"), {"c": weight(5), "s": integers(8)}, "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_node_that_makes_no_sense_is_refused_like_any_other(name: str) -> None:
    bad, constants, words = CONTRADICTIONS[name]
    nodes = [bad, node("Add", "x h")] if bad.output[0] == "h" else [bad]
    with pytest.raises(UnsupportedOperator, match=words) as error:
        lower(make_model(nodes, (2, 4), constants, opset=18, check=False))
    assert (error.value.operator, error.value.node) == ("::".join(filter(None, (bad.domain, bad.op_type))), bad.name)


@pytest.mark.parametrize("how", [{"strides": [3]}, {"dilations": [2]}])
def test_same_padding_of_a_pool_where_onnxruntime_departs_from_the_standard(how: dict[str, list[int]]) -> None:
    bad = node("AveragePool", "x", kernel_shape=[2], auto_pad="SAME_UPPER", **how)
    with pytest.raises(UnsupportedOperator, match="SAME padding"):
        lower(make_model([bad], (1, 7)))


def test_training_mode_batch_normalization_says_how_to_leave_it() -> None:
    constants = {name: np.abs(weight(4)) for name in "gbmv"}
    bad = node("BatchNormalization", "x g b m v", "y running_mean running_var", training_mode=1)
    with pytest.raises(UnsupportedOperator, match=r"model\.eval\(\)"):
        lower(make_model([bad], (4,), constants))


def test_a_label_has_no_bounds_but_the_scores_beside_it_have() -> None:
    classifier = node(
        "LinearClassifier", "x", "label scores", coefficients=[1.0] * 8, intercepts=[0.0, 1.0],
        classlabels_ints=[0, 1], domain="ai.onnx.ml",
    )  # fmt: skip
    model = make_model([classifier], (4,), outputs=["label", "scores"], opset=18, check=False)
    with pytest.raises(UnsupportedOperator, match="choose an output with scores"):
        lower(model)
    assert lower(model, "scores").output_shape == (2,)


def test_origin_of_a_node_from_torch() -> None:
    bad = node("Sign", "x")
    notes = {
        "pkg.torch.onnx.name_scopes": "['', 'head', 'head.scores', 'sign']",
        "pkg.torch.onnx.stack_trace": 'File "model.py", line 7, in forward\n    return torch.sign(y)\n  File',
    }
    for key, value in notes.items():
        bad.metadata_props.add(key=key, value=value)
    with pytest.raises(UnsupportedOperator) as error:
        lower(make_model([bad], (4,)))
    assert error.value.origin == "layer 'head.scores', model.py line 7: return torch.sign(y)"
    assert error.value.origin in str(error.value)


def test_origin_from_the_doc_string() -> None:
    bad = node("Sign", "x", doc_string="/lib/site-packages/torch/nn.py(3): forward\n/home/me/net.py(9): forward\n")
    with pytest.raises(UnsupportedOperator, match=r"from /home/me/net\.py\(9\): forward"):
        lower(make_model([bad], (4,)))


def test_inputs() -> None:
    two = make_model([node("Add", "x z")], (4,), check=False)
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4]))
    with pytest.raises(UnsupportedOperator, match="2 inputs"):
        lower(two)
    with pytest.raises(UnsupportedOperator, match="axis 1 has no fixed length"):
        lower(make_model([node("Relu", "x")], ("n",)))
    whole = make_model([node("Identity", "x")], (4,))
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    whole.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnsupportedOperator, match="INT64"):
        lower(whole)


def test_outputs() -> None:
    model = make_model([node("Relu", "x")], (4,))
    for wrong in ("z", 1, -2):
        with pytest.raises(UsageError, match="it has y"):
            lower(model, wrong)
    constant = make_model([node("Identity", "c"), node("Relu", "x", "z")], (4,), {"c": weight(4)})
    with pytest.raises(UnsupportedOperator, match="does not depend on the input"):
        lower(constant)


def test_operator_sets_older_than_the_table() -> None:
    nodes = [node("Add", "x c", "h", broadcast=1, axis=1), node("Relu", "h")]
    old = make_model(nodes, (3, 2), {"c": weight(3)}, batch=1, opset=6, check=False)
    with pytest.raises(UnsupportedOperator, match="opset 13 or later"):
        lower(old)


def test_an_invalid_model_is_an_error_of_its_own() -> None:
    model = make_model([node("Relu", "x")], (4,))
    del model.opset_import[:]
    with pytest.raises(AuditError, match="not a valid ONNX model"):
        lower(model)
    with pytest.raises(AuditError):
        lower(onnx.ModelProto())


def test_only_what_the_chosen_output_needs_has_to_be_supported() -> None:
    model = make_model([node("Sign", "x", "z"), node("Relu", "x")], (4,), outputs=["y", "z"])
    assert lower(model).output_shape == (4,)
    with pytest.raises(UnsupportedOperator, match="Sign"):
        lower(model, "z")


# what: nodes behind an input (4,) that compute in another type than the model's real ones
IN_ANOTHER_TYPE = {
    "a power of an integer": [node("Pow", "whole x", "p"), node("Cast", "p", to=TensorProto.FLOAT)],
    "a power in half precision": [node("Pow", "half x", "p"), node("Cast", "p", to=TensorProto.FLOAT)],
    "a cast to the type of an integer": [node("CastLike", "x whole", "p"), node("Cast", "p", to=TensorProto.FLOAT)],
    "a cast to half precision": [node("CastLike", "x half", "p"), node("Cast", "p", to=TensorProto.FLOAT)],
}


@pytest.mark.parametrize("what", IN_ANOTHER_TYPE)
def test_what_is_rounded_to_another_type(what: str) -> None:
    constants = {"whole": integers(2), "half": np.float16([2])}
    with pytest.raises(UnsupportedOperator, match=r"it rounds a value that depends on the input to (int64|float16)"):
        lower(make_model(IN_ANOTHER_TYPE[what], (4,), constants))


def test_an_output_that_is_a_sequence() -> None:
    nodes = [node("Relu", "x", "r"), node("SequenceConstruct", "x r")]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(UnsupportedOperator, match="a sequence of tensors"):
        lower(model)


@pytest.mark.parametrize("second", [11, 13])
def test_two_versions_of_the_operators_at_once(second: int) -> None:
    model = make_model([node("Softmax", "x")], (4,), opset=24 - second)
    model.opset_import.append(helper.make_opsetid("ai.onnx", second))
    with pytest.raises(UnsupportedOperator, match="versions 11 and 13 at once"):
        lower(model)
    model.opset_import[-1].version = 24 - second
    assert lower(model).output_shape == (4,)
