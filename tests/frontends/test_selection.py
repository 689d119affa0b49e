"""Maxima and minima over windows, axes and several values, against onnxruntime, torch and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlflow_lipschitz.certify import certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers, jacobian
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node
from tests.frontends.windows import random_window

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, axes=st.integers(1, 3), opset=st.sampled_from((7, 8, 10, 11, 12, 22)))
def test_max_pools_compute_what_onnxruntime_computes(seed: int, axes: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    spatial = [int(n) for n in rng.integers(1, 8, size=axes)]
    attributes = random_window(rng, spatial, dilated=opset >= 10 and bool(rng.random() < 0.5), pool=True)
    if opset >= 10:
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    model = make_model([node("MaxPool", "x", **attributes)], (2, *spatial), opset=opset, check=False)
    assert_lowers_exactly(model, (2, *spatial), seed)


def test_padding_never_wins() -> None:
    nodes = [node("MaxPool", "x", kernel_shape=[3, 3], pads=[2, 2, 2, 2], strides=[3, 3])]
    graph = lower(make_model(nodes, (1, 2, 2)))
    point = np.full((1, 1, 2, 2), -7.0)
    np.testing.assert_array_equal(evaluate(graph, point), np.full((1, 4), -7.0))


def test_windows_of_one_entry_need_no_maximum() -> None:
    graph = lower(make_model([node("MaxPool", "x", kernel_shape=[1, 3], strides=[2, 1], pads=[0, 1, 0, 1])], (1, 4, 1)))
    assert not any(isinstance(node.op, ops.Maximum) for node in graph.nodes)


REDUCTIONS = {
    "of two axes": ({"axes": [1, 3]}, (2, 3, 4)),
    "of the last axis, dropped": ({"axes": [-1], "keepdims": 0}, (2, 3)),
    "of outer and inner axes, dropped": ({"axes": [1, 3], "keepdims": 0}, (2, 3, 2)),
    "of an axis of one entry": ({"axes": [1]}, (1, 3)),
}


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("opset", [7, 11, 13, 18, 20])
def test_reductions(operator: str, name: str, opset: int) -> None:
    attributes, shape = dict(REDUCTIONS[name][0]), REDUCTIONS[name][1]
    if opset < 18:
        assert_lowers_exactly(make_model([node(operator, "x", **attributes)], shape, opset=opset), shape)
        return
    constants = {"a": np.array(attributes.pop("axes"), dtype=np.int64)}
    assert_lowers_exactly(make_model([node(operator, "x a", **attributes)], shape, constants, opset=opset), shape)


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_reductions_over_all_axes(operator: str) -> None:
    assert_lowers_exactly(make_model([node(operator, "x", noop_with_empty_axes=1)], (2, 3)), (2, 3))
    model = make_model([node(operator, "x")], (2, 3), batch=1)
    point = np.random.default_rng(0).normal(size=(1, 2, 3))
    np.testing.assert_array_equal(evaluate(lower(model), point)[0], [getattr(np, operator[-3:].lower())(point)])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_global_max_pools(axes: int) -> None:
    shape = (2, 3, 1, 5)[: axes + 1]
    assert_lowers_exactly(make_model([node("GlobalMaxPool", "x")], shape), shape)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def halves(operator: str, inputs: str) -> list[onnx.NodeProto]:
    """Two variables h and k of different shapes made from x, (batch, 2, 3), and the operator on them."""
    return [
        node("Relu", "x", "h"),
        node("Split", "x", "k rest", axis=1, num_outputs=2),
        node(operator, inputs),
    ]


LISTS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "one": ("x", {}),
    "the same twice": ("x x", {}),
    "two": ("x h", {}),
    "two, broadcast": ("h k", {}),
    "three, broadcast": ("k x h", {}),
    "a constant": ("x c", {"c": floats(-0.5, 0.0, 0.5)}),
    "a scalar": ("c x", {"c": np.float32(0.25)}),
    "zero": ("c x", {"c": np.float32(0)}),
    "a constant that grows it": ("k c", {"c": floats(-0.5, 0.5).reshape(2, 1)}),
    "two constants": ("c x d", {"c": floats(-0.5, 0.0, 0.5), "d": floats(0.25).reshape(1, 1)}),
    "everything": ("c x h d k", {"c": floats(-0.5, 0.0, 0.5), "d": floats(0.25).reshape(1, 1)}),
}


@pytest.mark.parametrize("operator", ["Max", "Min"])
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("opset", [8, 13, 20])
def test_the_largest_and_smallest_of_values(operator: str, name: str, opset: int) -> None:
    inputs, constants = LISTS[name]
    nodes = halves(operator, inputs)
    if opset < 18:
        nodes[1] = node("Split", "x", "k rest", axis=1)
    assert_lowers_exactly(make_model(nodes, (2, 3), constants, opset=opset), (2, 3))


@pytest.mark.parametrize(("operator", "limit"), [("Max", -1), ("Min", 1)])
@pytest.mark.parametrize("size", [np.finfo(np.float32).max, np.inf])
def test_a_limit_that_no_float_reaches_is_none(operator: str, limit: int, size: float) -> None:
    model = make_model([node(operator, "x c")], (3,), {"c": np.float32(limit * size)})
    assert_lowers_exactly(model, (3,))
    assert not any(isinstance(node.op, ops.Elementwise) for node in lower(model).nodes)


def test_derivatives_of_max_pools_are_those_of_torch() -> None:
    attributes = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [1, 2], "ceil_mode": 1}
    model = make_model([node("MaxPool", "x", **attributes)], (2, 6, 5))
    assert_agrees_with_torch(model, (2, 6, 5), lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1, (1, 2), True))


FUNCTIONS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], Any]] = {
    "ReduceMax": ([node("ReduceMax", "x a")], {"a": np.array([2])}, lambda x: x.amax(2)),
    "ReduceMin": ([node("ReduceMin", "x a")], {"a": np.array([1, 2])}, lambda x: x.amin((1, 2))),
    "GlobalMaxPool": ([node("GlobalMaxPool", "x")], {}, lambda x: x.amax(2)),
    "Max": (
        [node("Tanh", "x", "h"), node("Max", "x h c")],
        {"c": np.float32(0.25)},
        lambda x: torch.maximum(x, torch.tanh(x)).clamp(min=0.25),
    ),
    "Min": (
        [node("Abs", "x", "h"), node("Min", "x c h")],
        {"c": floats(-0.5, 0.5, 1.0)},
        lambda x: torch.minimum(torch.minimum(x, x.abs()), torch.tensor([-0.5, 0.5, 1.0], dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_torch(name: str) -> None:
    nodes, constants, function = FUNCTIONS[name]
    assert_agrees_with_torch(make_model(nodes, (2, 3), constants), (2, 3), function)


def test_at_a_tie_the_derivative_is_one_of_the_clarke_set() -> None:
    slopes = jacobian(lower(make_model([node("ReduceMax", "x a", keepdims=0)], (3,), {"a": np.array([1])})), np.ones(3))
    assert np.all(slopes >= 0)
    assert slopes.sum() == 1


NETWORKS: dict[str, tuple[tuple[int, ...], list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "MaxPool": ((1, 3, 3), [node("MaxPool", "a", "b", kernel_shape=[2, 2], pads=[1, 0, 0, 1])], {}),
    "MaxPool 1d, apart": ((2, 4), [node("MaxPool", "a", "b", kernel_shape=[2], strides=[2])], {}),
    "GlobalMaxPool": ((2, 3), [node("GlobalMaxPool", "a", "b")], {}),
    "ReduceMin": ((2, 3), [node("ReduceMin", "a i", "b")], {"i": np.array([2])}),
    "Max": ((3,), [node("Relu", "a", "h"), node("Neg", "a", "k"), node("Max", "h k c", "b")], {"c": np.float32(0.5)}),
    "Min": ((3,), [node("Abs", "a", "h"), node("Min", "h c", "b")], {"c": floats(0.25, 0.5, 0.0)}),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_of_small_networks_hold(name: str, seed: int, radius: float) -> None:
    shape, nodes, constants = NETWORKS[name]
    assert_bounds_hold(between_layers(nodes, shape, constants, seed), seed, radius)


REFUSED = {
    "SAME, dilated": (
        [node("MaxPool", "x", kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER")], {}, "departs from the standard",
    ),
    "an empty window": ([node("MaxPool", "x", kernel_shape=[2], pads=[0, 2])], {}, "padding alone"),
    "no spatial axes": ([node("Flatten", "x", "h"), node("GlobalMaxPool", "h")], {}, "no spatial axes"),
    "an axis twice": ([node("ReduceMax", "x i")], {"i": np.array([1, -2])}, "twice"),
    "an axis that is not there": ([node("ReduceMin", "x i")], {"i": np.array([3])}, "does not exist"),
    "a limit for some": ([node("Max", "x c")], {"c": floats(0, -np.inf, 0, 0)}, "some of its constants are infinite"),
    "NaN": ([node("Max", "x c")], {"c": np.float32(np.nan)}, "infinite"),
    "shapes that do not fit": ([node("Max", "x c")], {"c": floats(1, 2, 3)}, "broadcast"),
    "TopK": ([node("TopK", "x k", "y i")], {"k": np.array([2])}, "no lowering"),
    "the whole batch": ([node("ReduceMax", "x")], {}, "row"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_refused(name: str) -> None:
    nodes, constants, words = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=words) as error:
        lower(make_model(nodes, (2, 4), constants, check=False))
    assert error.value.node.startswith("make_y")


def test_positions_of_maxima_are_refused_where_they_are_read() -> None:
    pool = node("MaxPool", "x", "y i", kernel_shape=[2], strides=[2])
    assert_lowers_exactly(make_model([pool], (1, 4)), (1, 4))
    nodes = [pool, node("MaxUnpool", "y i", "z", kernel_shape=[2], strides=[2])]
    with pytest.raises(UnsupportedOperator, match="positions of the maxima"):
        lower(make_model(nodes, (1, 4), outputs=("z",), check=False))


def test_masked_scores_may_be_limited_from_far_below_and_not_compared() -> None:
    mask = np.where(np.tril(np.ones((3, 3))) > 0, 0, -np.inf).astype(np.float32)
    nodes = [node("Add", "x m", "h"), node("Max", "h c", "k"), node("Softmax", "k")]
    assert_lowers_exactly(make_model(nodes, (3, 3), {"m": mask, "c": np.float32(np.finfo(np.float32).min)}), (3, 3))
    for inputs in ("h x", "x h h"):
        with pytest.raises(UnsupportedOperator, match="mask"):
            lower(make_model([node("Add", "x m", "h"), node("Max", inputs)], (3, 3), {"m": mask}))


POOL = node("MaxPool", "h", kernel_shape=[2], strides=[2])


@pytest.mark.parametrize(
    ("curve", "after"),
    [
        (node("Relu", "x", "h"), True),
        (node("Tanh", "x", "h"), True),
        (node("LeakyRelu", "x", "h", alpha=0.1), True),
        (node("LeakyRelu", "x", "h", alpha=-0.1), False),
        (node("Gelu", "x", "h"), False),
        (node("Abs", "x", "h"), False),
    ],
)
def test_a_curve_that_never_falls_comes_after_the_maximum(curve: onnx.NodeProto, after: bool) -> None:
    model = make_model([curve, POOL], (2, 6))
    assert_lowers_exactly(model, (2, 6))
    last = [part for part in lower(model).nodes if not isinstance(part.op, ops.Reshape)][-1]
    assert isinstance(last.op, ops.Elementwise) == after


def test_a_curve_that_others_read_stays_where_it_is() -> None:
    model = make_model(
        [node("Relu", "x", "h"), POOL, node("GlobalAveragePool", "h", "k"), node("Add", "y k", "z")],
        (2, 6),
        outputs=("z",),
    )
    assert_lowers_exactly(model, (2, 6))
    assert (
        sum(
            part.op.curve == "relu" and part.shape == (1, 2, 6)
            for part in lower(model).nodes
            if isinstance(part.op, ops.Elementwise)
        )
        == 1
    )


@pytest.mark.parametrize(
    "attributes", [{"pads": [1, 1, 1, 1]}, {"pads": [2, 0, 0, 2], "strides": [2, 2]}, {"auto_pad": "SAME_UPPER"}]
)
def test_padding_leaves_no_derivative_open(attributes: dict[str, Any]) -> None:
    graph = lower(make_model([node("MaxPool", "x", kernel_shape=[3, 3], **attributes)], (1, 4, 5)))
    point = np.random.default_rng(0).normal(size=(1, 1, 4, 5))
    for output in range(0, graph.output_shape[0], 3):
        certificate = certify_monotonicity(graph, point, Box.around(point, 0.0), output=output, device="cpu")
        assert np.abs(certificate.upper - certificate.lower).max() < 1e-9
        assert certificate.lower.sum() == pytest.approx(1)


def test_dead_entries_leave_no_derivative_open() -> None:
    graph = lower(make_model([node("Relu", "x", "h"), POOL], (1, 2)))
    point = np.array([[[-1.0, -2.0]]])
    certificate = certify_lipschitz(graph, point, Box.around(point, 0.5), device="cpu")
    assert certificate.upper == 0
