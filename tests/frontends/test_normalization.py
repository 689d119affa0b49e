"""Normalizations and softmax over operator sets and attributes, against onnxruntime, torch and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_normalization, lowering_softmax
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers, jacobian
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

seeds = st.integers(0, 2**32 - 1)
# Large enough that two entries that happen to be close do not show how onnxruntime rounds in float32.
EPSILONS = [0.01, 0.1]


def weight(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shape_of(rng: np.random.Generator, least: int, most: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 5, size=rng.integers(least, most + 1)))


@given(seed=seeds, opset=st.sampled_from((17, 20, 23)))
def test_layer_normalization(seed: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    sample = shape_of(rng, 1, 3)
    axis = int(rng.integers(1, len(sample) + 1))
    scale = weight(*sample[axis - 1 :], seed=seed)
    constants = {"s": scale, "b": 2 * scale[::-1]}
    inputs = "x s b" if rng.random() < 0.5 else "x s"
    counted = axis if rng.random() < 0.5 else axis - len(sample) - 1
    layer = node("LayerNormalization", inputs, axis=counted, epsilon=float(rng.choice(EPSILONS)))
    assert_lowers_exactly(make_model([layer], sample, constants, opset=opset), sample, seed)


@pytest.mark.parametrize("output", ["m", "r"])
def test_the_statistics_of_layer_normalization(output: str) -> None:
    nodes = [node("LayerNormalization", "x s", "z m r", axis=2)]
    model = make_model(nodes, (2, 3, 4), {"s": weight(3, 4)}, outputs=["z", "m", "r"])
    points = weight(5, 2, 3, 4)
    actual = evaluate(lower(model, output), points)
    np.testing.assert_allclose(actual, run_onnxruntime(model, points, output), rtol=1e-5, atol=1e-6)


def test_scale_and_bias_that_depend_on_the_input() -> None:
    nodes = [node("Tanh", "x", "s"), node("Relu", "x", "b"), node("LayerNormalization", "x s b", axis=0)]
    assert_lowers_exactly(make_model(nodes, (3, 2), batch=1), (3, 2))


def test_a_layer_too_wide_for_one_matrix() -> None:
    sample = (2, lowering_normalization.LARGEST_CENTERING + 1)
    model = make_model([node("LayerNormalization", "x s")], sample, {"s": weight(sample[1])})
    assert_lowers_exactly(model, sample)
    assert not any(isinstance(n.op, ops.Linear) for n in lower(model).nodes)


@given(seed=seeds)
def test_rms_normalization(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = shape_of(rng, 1, 3)
    axis = int(rng.integers(1, len(sample) + 1))
    layer = node("RMSNormalization", "x s", axis=axis, epsilon=float(rng.choice(EPSILONS)))
    model = make_model([layer], sample, {"s": weight(*sample[axis - 1 :], seed=seed)}, opset=23)
    assert_lowers_exactly(model, sample, seed)


@given(seed=seeds, opset=st.sampled_from((7, 17, 22)))
def test_instance_normalization(seed: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    sample = shape_of(rng, 2, 4)
    layer = node("InstanceNormalization", "x s b", epsilon=float(rng.choice(EPSILONS)))
    constants = {"s": weight(sample[0], seed=seed), "b": weight(sample[0])}
    assert_lowers_exactly(make_model([layer], sample, constants, opset=opset), sample, seed)


@given(seed=seeds, opset=st.sampled_from((18, 20, 21, 23)))
def test_group_normalization(seed: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    groups, each = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    sample = (groups * each, *shape_of(rng, 1, 3))
    entries = groups * each if opset >= 21 else groups
    layer = node("GroupNormalization", "x s b", num_groups=groups, epsilon=float(rng.choice(EPSILONS)))
    constants = {"s": weight(entries, seed=seed), "b": weight(entries)}
    assert_lowers_exactly(make_model([layer], sample, constants, opset=opset, check=opset >= 21), sample, seed)


@given(seed=seeds, order=st.sampled_from((1, 2, None)), opset=st.sampled_from((7, 22)))
def test_lp_normalization(seed: int, order: int | None, opset: int) -> None:
    rng = np.random.default_rng(seed)
    sample = shape_of(rng, 1, 3)
    attributes: dict[str, Any] = {} if order is None else {"p": order}
    attributes["axis"] = int(rng.choice([-1, rng.integers(1, len(sample) + 1)]))
    model = make_model([node("LpNormalization", "x", **attributes)], sample, opset=opset)
    assert_lowers_exactly(model, sample, seed)


@pytest.mark.parametrize("axes", [[2, 3], [1, 2, 3], [1], [-1]])
@pytest.mark.parametrize("opset", [9, 13, 18])
def test_mean_variance_normalization(axes: list[int], opset: int) -> None:
    model = make_model([node("MeanVarianceNormalization", "x", axes=axes)], (3, 2, 4), opset=opset)
    assert_lowers_exactly(model, (3, 2, 4))


def test_mean_variance_normalization_over_the_batch_mixes_rows() -> None:
    with pytest.raises(UnsupportedOperator, match=r"MeanVarianceNormalization.*mixes the rows"):
        lower(make_model([node("MeanVarianceNormalization", "x", axes=[0, 2, 3])], (3, 2, 4)))


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("opset", [7, 13])
def test_local_response_normalization(size: int, opset: int) -> None:
    """onnxruntime has windows of odd size over images only; for others see the comparison with torch."""
    layer = node("LRN", "x", size=size, alpha=0.3, beta=0.6, bias=1.5)
    assert_lowers_exactly(make_model([layer], (5, 2, 2), opset=opset), (5, 2, 2))


CHANNELS = {"g": weight(4), "b": weight(4), "m": weight(4), "v": np.abs(weight(4)) + 0.1}


@pytest.mark.parametrize("sample", [(4,), (4, 3), (4, 2, 3), (4, 2, 1, 3)])
@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(sample: tuple[int, ...], opset: int) -> None:
    model = make_model([node("BatchNormalization", "x g b m v", epsilon=0.01)], sample, CHANNELS, opset=opset)
    assert_lowers_exactly(model, sample)


@pytest.mark.parametrize("opset", [7, 11, 12, 13, 22])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@given(seed=seeds)
def test_softmax(operator: str, opset: int, seed: int) -> None:
    """Before opset 13 all axes from `axis` on are one."""
    rng = np.random.default_rng(seed)
    sample = shape_of(rng, 1, 3)
    axis = int(rng.integers(1, len(sample) + 1))
    attributes = (
        {} if rng.random() < 0.3 else {"axis": axis if opset < 11 or rng.random() < 0.5 else axis - len(sample) - 1}
    )
    assert_lowers_exactly(make_model([node(operator, "x", **attributes)], sample, opset=opset), sample, seed)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_scores_that_differ_by_hundreds(operator: str) -> None:
    nodes = [node("Mul", "x k", "h"), node(operator, "h")]
    assert_lowers_exactly(make_model(nodes, (5,), {"k": np.float32(100)}), (5,))


SOFT = [-100.0, -1e4, -1e9]


@pytest.mark.parametrize("size", SOFT)
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_soft_masks_overflow_nowhere(size: float, operator: str) -> None:
    """The unmasked scores keep their values and derivatives; the masked ones are as good as gone."""
    mask = np.where(np.tri(4, dtype=bool), 0, np.float32(size)).astype(np.float32)
    nodes = [node("Add", "x c", "h"), node("Reshape", "h s", "g"), node(operator, "g")]
    model = make_model(nodes, (4, 4), {"c": mask, "s": np.array([0, 2, 2, 4])})
    assert_lowers_exactly(model, (4, 4))
    function = F.softmax if operator == "Softmax" else F.log_softmax
    assert_agrees_with_torch(model, (4, 4), lambda x: function(x + torch.from_numpy(mask).double(), -1))


def test_masked_scores_stay_out() -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    model = make_model([node("Add", "x c", "h"), node("Softmax", "h")], (4, 4), {"c": mask})
    assert_lowers_exactly(model, (4, 4))
    assert_agrees_with_torch(model, (4, 4), lambda x: torch.softmax(x + torch.from_numpy(mask).double(), -1))


def test_a_row_without_any_score_is_refused() -> None:
    mask = np.full((3, 3), -np.inf, dtype=np.float32)
    mask[:2] = 0
    with pytest.raises(UnsupportedOperator, match=r"Softmax.*masked altogether"):
        lower(make_model([node("Add", "x c", "h"), node("Softmax", "h")], (3, 3), {"c": mask}))


def test_the_logarithm_of_a_masked_score_is_refused() -> None:
    mask = np.array([0, 0, -np.inf], dtype=np.float32)
    with pytest.raises(UnsupportedOperator, match=r"LogSoftmax.*masked"):
        lower(make_model([node("Add", "x c", "h"), node("LogSoftmax", "h")], (3,), {"c": mask}))


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_few_scores(entries: int) -> None:
    for operator in ("Softmax", "LogSoftmax"):
        assert_lowers_exactly(make_model([node(operator, "x", axis=1)], (entries, 2)), (entries, 2))


def lasting(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


FUNCTIONS: dict[str, tuple[Any, dict[str, np.ndarray], Any]] = {
    "LayerNormalization": (
        node("LayerNormalization", "x s b", axis=-1, epsilon=0.5),
        {"s": weight(4), "b": weight(4)},
        lambda x: F.layer_norm(
            x, (4,), torch.from_numpy(weight(4)).double(), torch.from_numpy(weight(4)).double(), 0.5
        ),
    ),
    "RMSNormalization": (
        node("RMSNormalization", "x s", axis=-1, epsilon=0.5),
        {"s": weight(4)},
        lambda x: F.rms_norm(x, (4,), torch.from_numpy(weight(4)).double(), 0.5),
    ),
    "InstanceNormalization": (
        node("InstanceNormalization", "x s b", epsilon=0.5),
        {"s": np.float32([2, 3]), "b": np.float32([1, 0])},
        lambda x: F.instance_norm(x, weight=lasting(2, 3), bias=lasting(1, 0), eps=0.5),
    ),
    "GroupNormalization": (
        node("GroupNormalization", "x s b", num_groups=1, epsilon=0.5),
        {"s": np.float32([2, 3]), "b": np.float32([1, 0])},
        lambda x: F.group_norm(x, 1, lasting(2, 3), lasting(1, 0), 0.5),
    ),
    "LpNormalization": (node("LpNormalization", "x", axis=2), {}, lambda x: F.normalize(x, dim=2)),
    "LpNormalization 1": (node("LpNormalization", "x", axis=1, p=1), {}, lambda x: F.normalize(x, 1.0, dim=1)),
    "LRN": (
        node("LRN", "x", size=2, alpha=0.5, beta=0.75, bias=1.0),
        {},
        # torch looks one channel back for an even size where ONNX looks ahead: channels in reverse order.
        lambda x: F.local_response_norm(x.flip(1), 2, 0.5, 0.75, 1.0).flip(1),
    ),
    "Softmax": (node("Softmax", "x", axis=1), {}, lambda x: torch.softmax(x, 1)),
    "Softmax of three": (node("Softmax", "x"), {}, lambda x: torch.softmax(x, 2)),
    "LogSoftmax": (node("LogSoftmax", "x"), {}, lambda x: torch.log_softmax(x, 2)),
    "LogSoftmax of two": (node("LogSoftmax", "x", axis=1), {}, lambda x: torch.log_softmax(x, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_derivatives_are_those_of_torch(name: str, seed: int) -> None:
    layer, constants, function = FUNCTIONS[name]
    assert_agrees_with_torch(make_model([layer], (2, 4), constants, opset=23), (2, 4), function, seed)


def test_a_softmax_of_large_scores_is_constant_in_what_they_have_in_common() -> None:
    graph = lower(make_model([node("Softmax", "x")], (5,)))
    derivative = jacobian(graph, np.linspace(-1, 1, 5) + 1e6)
    assert np.abs(derivative.sum(axis=1)).max() <= 1e-15


BOUNDED = {
    "InstanceNormalization": (
        node("InstanceNormalization", "a s t", "b", epsilon=0.25),
        {"s": np.float32([2]), "t": np.float32([1])},
        (1, 3),
    ),
    "LpNormalization 1": (node("LpNormalization", "a", "b", axis=1, p=1), {}, (3,)),
    "LRN": (node("LRN", "a", "b", size=3, alpha=1.5), {}, (3, 1)),
}


@pytest.mark.parametrize("name", BOUNDED)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_contain_exact_values_and_derivatives(name: str, seed: int, radius: float) -> None:
    layer, constants, shape = BOUNDED[name]
    assert_bounds_hold(between_layers([layer], shape, constants, seed, opset=23), seed, radius)


REFUSED: dict[str, tuple[Any, tuple[int, ...], dict[str, np.ndarray], str]] = {
    "LayerNormalization of no axis": (node("LayerNormalization", "x s", axis=5), (3,), {"s": weight(3)}, "axis 5"),
    "LayerNormalization that grows": (
        node("LayerNormalization", "x s"), (3,), {"s": weight(2, 2, 3)}, "does not fit",
    ),
    "InstanceNormalization of no axes": (
        node("InstanceNormalization", "x s s"), (3,), {"s": weight(3)}, "no axes",
    ),
    "GroupNormalization of odd groups": (
        node("GroupNormalization", "x s s", num_groups=2), (3, 4), {"s": weight(3)}, "no 2 groups",
    ),
    "GroupNormalization scaled by groups": (
        node("GroupNormalization", "x s s", num_groups=2), (4, 4), {"s": weight(2)}, "4 entries",
    ),
    "LpNormalization of another order": (node("LpNormalization", "x", p=3), (3,), {}, "order 3"),
    "BatchNormalization in training": (
        node("BatchNormalization", "x s s s v", training_mode=1), (3,), {"s": weight(3), "v": np.ones(3, np.float32)},
        "training",
    ),
    "BatchNormalization without variance": (
        node("BatchNormalization", "x s s s v"), (3,), {"s": weight(3), "v": -np.ones(3, np.float32)}, "variance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    layer, sample, constants, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=reason) as error:
        lower(make_model([layer], sample, constants, opset=21, check=False))
    assert error.value.node == "make_y"


def test_positions_with_statistics_of_their_own_are_refused() -> None:
    layer = node("BatchNormalization", "x g b m v", spatial=0)
    with pytest.raises(UnsupportedOperator, match="opset 9"):
        lower(make_model([layer], (4, 2), CHANNELS, opset=7, check=False))


def test_every_row_has_a_case() -> None:
    tested = {layer.op_type for layer, *_ in (*FUNCTIONS.values(), *REFUSED.values())} | {"MeanVarianceNormalization"}
    assert set(lowering_normalization.ROWS) | set(lowering_softmax.ROWS) <= tested
