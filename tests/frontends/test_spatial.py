"""Convolutions, transposed convolutions and average pools with any attributes, against onnxruntime, torch and exact numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node
from tests.frontends.windows import PADDED, random_window

seeds = st.integers(0, 2**32 - 1)
POOL_OPSETS = (7, 10, 11, 18, 19, 22)


def some(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    return [int(n) for n in rng.integers(low, high, size=count)]


@given(seed=seeds, axes=st.integers(1, 3), opset=st.sampled_from((7, 11, 22)))
def test_convolutions_compute_what_onnxruntime_computes(seed: int, axes: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    spatial, groups = some(rng, 1, 7, axes), int(rng.integers(1, 3))
    attributes = random_window(rng, spatial, dilated=bool(rng.random() < 0.5), pool=False)
    weight = rng.normal(size=(3 * groups, 2, *attributes["kernel_shape"])).astype(np.float32)
    constants = {"w": weight, "b": rng.normal(size=3 * groups).astype(np.float32)}
    model = make_model(
        [node("Conv", "x w b", group=groups, **attributes)], (2 * groups, *spatial), constants, opset=opset
    )
    assert_lowers_exactly(model, (2 * groups, *spatial), seed)


@given(seed=seeds, axes=st.integers(1, 3), opset=st.sampled_from((7, 11, 22)))
def test_transposed_convolutions_compute_what_onnxruntime_computes(seed: int, axes: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    spatial, groups = some(rng, 1, 5, axes), int(rng.integers(1, 3))
    kernel, stride, dilation = some(rng, 1, 4, axes), some(rng, 1, 4, axes), some(rng, 1, 3, axes)
    extra = [int(rng.integers(0, s)) for s in stride]
    reach = [
        (n - 1) * s + e + d * (k - 1) + 1
        for n, s, e, d, k in zip(spatial, stride, extra, dilation, kernel, strict=True)
    ]
    attributes: dict[str, Any] = {"strides": stride, "dilations": dilation, "output_padding": extra, "group": groups}
    mode = str(rng.choice((*PADDED, "output_shape")))
    if mode == "NOTSET":
        attributes["pads"] = [int(rng.integers(0, (n + 1) // 2)) for n in reach * 2]
    elif mode == "output_shape":
        attributes["output_shape"] = [int(rng.integers(1, n + 1)) for n in reach]
        attributes["auto_pad"] = str(rng.choice(PADDED))
    else:
        attributes["auto_pad"] = mode
    weight = rng.normal(size=(2 * groups, 3, *kernel)).astype(np.float32)
    constants = {"w": weight, "b": rng.normal(size=3 * groups).astype(np.float32)}
    nodes = [node("ConvTranspose", "x w b" if rng.random() < 0.5 else "x w", **attributes)]
    model = make_model(nodes, (2 * groups, *spatial), constants, opset=opset, check=False)
    assert_lowers_exactly(model, (2 * groups, *spatial), seed)


@given(seed=seeds, axes=st.integers(1, 3), opset=st.sampled_from(POOL_OPSETS))
def test_average_pools_compute_what_onnxruntime_computes(seed: int, axes: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    spatial = some(rng, 1, 8, axes)
    attributes = random_window(rng, spatial, dilated=opset >= 19 and bool(rng.random() < 0.5), pool=True)
    attributes["count_include_pad"] = int(rng.integers(0, 2))
    if opset >= 10:
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    model = make_model([node("AveragePool", "x", **attributes)], (2, *spatial), opset=opset, check=False)
    assert_lowers_exactly(model, (2, *spatial), seed)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_global_average_pools(axes: int) -> None:
    assert_lowers_exactly(
        make_model([node("GlobalAveragePool", "x")], (2, 3, 4, 5)[: axes + 1]), (2, 3, 4, 5)[: axes + 1]
    )


@given(seed=seeds, axes=st.integers(1, 3), p=st.sampled_from((1, 2)), opset=st.sampled_from((7, 11, 18, 22)))
def test_pools_of_norms_compute_what_onnxruntime_computes(seed: int, axes: int, p: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    spatial = some(rng, 1, 8, axes)
    attributes = random_window(rng, spatial, dilated=opset >= 18 and bool(rng.random() < 0.5), pool=True)
    if opset >= 18:
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    model = make_model([node("LpPool", "x", p=p, **attributes)], (2, *spatial), opset=opset, check=False)
    assert_lowers_exactly(model, (2, *spatial), seed)
    opset = min(opset, 21)  # onnxruntime has no newer global one
    assert_lowers_exactly(make_model([node("GlobalLpPool", "x", p=p)], (2, *spatial), opset=opset), (2, *spatial), seed)


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def double(weight: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(weight.astype(np.float64))


def test_derivatives_of_convolutions_are_those_of_torch() -> None:
    weight = random_weight(4, 1, 3, 2)
    model = make_model(
        [node("Conv", "x w", group=2, strides=[2, 1], dilations=[1, 2], pads=[1, 1, 1, 1])], (2, 5, 6), {"w": weight}
    )
    assert_agrees_with_torch(
        model, (2, 5, 6), lambda x: F.conv2d(x, double(weight), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    )


def test_a_bias_that_does_not_fit_is_refused() -> None:
    constants = {"w": np.ones((2, 1, 2), np.float32), "b": np.zeros((2, 2), np.float32)}
    model = make_model([node("Conv", "x w b")], (1, 4), constants, check=False)
    with pytest.raises(
        UnsupportedOperator, match=r"a bias of shape \(2, 2\) does not fit a weight of shape \(2, 1, 2\)"
    ):
        lower(model)


def test_derivatives_of_convolutions_in_three_axes_are_those_of_torch() -> None:
    weight = random_weight(3, 2, 2, 2, 2)
    model = make_model([node("Conv", "x w", strides=[1, 2, 1])], (2, 3, 4, 3), {"w": weight})
    assert_agrees_with_torch(model, (2, 3, 4, 3), lambda x: F.conv3d(x, double(weight), stride=(1, 2, 1)))


def test_derivatives_of_transposed_convolutions_are_those_of_torch() -> None:
    weight, bias = random_weight(4, 3, 3, 2), random_weight(6)
    nodes = [
        node(
            "ConvTranspose",
            "x w b",
            group=2,
            strides=[2, 3],
            pads=[1, 0, 1, 0],
            output_padding=[1, 2],
            dilations=[2, 1],
        )
    ]
    model = make_model(nodes, (4, 3, 2), {"w": weight, "b": bias})
    assert_agrees_with_torch(
        model,
        (4, 3, 2),
        lambda x: F.conv_transpose2d(
            x, double(weight), double(bias), (2, 3), (1, 0), (1, 2), groups=2, dilation=(2, 1)
        ),
    )


def test_derivatives_of_average_pools_are_those_of_torch() -> None:
    attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    for include in (0, 1):
        model = make_model([node("AveragePool", "x", count_include_pad=include, **attributes)], (2, 5, 4), opset=22)
        assert_agrees_with_torch(
            model, (2, 5, 4), lambda x, include=include: F.avg_pool2d(x, (3, 2), 2, 1, True, bool(include))
        )


NETWORKS = {
    "Conv 1d": ((2, 4), [node("Conv", "a w", "h", pads=[1, 0]), node("Relu", "h", "b")], {"w": (2, 2, 2)}),
    "Conv 3d": ((1, 2, 2, 2), [node("Conv", "a w", "h"), node("Relu", "h", "b")], {"w": (2, 1, 2, 1, 2)}),
    "ConvTranspose": (
        (2, 2, 2),
        [node("ConvTranspose", "a w c", "h", strides=[2, 1], pads=[1, 0, 0, 0], group=2), node("Relu", "h", "b")],
        {"w": (2, 1, 2, 2), "c": (2,)},
    ),
    "AveragePool": (
        (1, 3, 3),
        [node("Relu", "a", "h"), node("AveragePool", "h", "b", kernel_shape=[2, 2], pads=[0, 1, 0, 1], ceil_mode=1)],
        {},
    ),
    "GlobalAveragePool": ((2, 2, 2), [node("Relu", "a", "h"), node("GlobalAveragePool", "h", "b")], {}),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_of_small_networks_hold(name: str, seed: int, radius: float) -> None:
    shape, nodes, shapes = NETWORKS[name]
    rng = np.random.default_rng(seed)
    constants = {key: rng.integers(-8, 9, size=size).astype(np.float32) / 8 for key, size in shapes.items()}
    assert_bounds_hold(between_layers(nodes, shape, constants, seed), seed, radius)


REFUSED = {
    "no spatial axes": (node("Conv", "x w"), (3,), {"w": random_weight(2, 3)}, "0 spatial axes"),
    "four spatial axes": (node("AveragePool", "x", kernel_shape=[1] * 4), (1, 2, 2, 2, 2), {}, "4 spatial axes"),
    "a variable weight": (node("Conv", "x x"), (2, 3, 3), {}, "the weight depends"),
    "negative padding": (node("Conv", "x w", pads=[-1, 0]), (2, 4), {"w": random_weight(2, 2, 1)}, "negative padding"),
    "a kernel that contradicts the weight": (
        node("Conv", "x w", kernel_shape=[2]), (2, 4), {"w": random_weight(2, 2, 3)}, "does not fit",
    ),
    "SAME where the stride skips": (
        node("AveragePool", "x", kernel_shape=[1], strides=[3], auto_pad="SAME_UPPER"), (1, 4), {}, "departs from the standard",
    ),
    "a cubic norm": (node("LpPool", "x", kernel_shape=[2], p=3), (1, 4), {}, "the norm p = 3"),
    "an empty window": (node("AveragePool", "x", kernel_shape=[2], pads=[2, 0]), (1, 4), {}, "padding alone"),
    "output padding as long as the stride": (
        node("ConvTranspose", "x w", output_padding=[1], strides=[1], dilations=[2]), (2, 4), {"w": random_weight(2, 2, 2)},
        "output_padding",
    ),
    "an output longer than the kernels reach": (
        node("ConvTranspose", "x w", output_shape=[9]), (2, 4), {"w": random_weight(2, 2, 2)}, "longer than its kernels reach",
    ),
    "padding that leaves nothing": (
        node("ConvTranspose", "x w", pads=[9, 9]), (2, 4), {"w": random_weight(2, 2, 2)}, "leaves nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_matched_is_refused(name: str) -> None:
    bad, shape, constants, words = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=words) as error:
        lower(make_model([bad], shape, constants, check=False))
    assert error.value.node == "make_y"
