"""Padding, resizing and depth against space, over random attributes: onnxruntime, torch and exact numbers agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import interpolation
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch, assert_bounds_hold, between_layers
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

seeds = st.integers(0, 2**32 - 1)
SCALES = (0.3, 0.5, 0.6, 0.75, 1, 1.5, 2, 2.3, 3, 10 / 3)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@given(
    seed=seeds, mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]), opset=st.sampled_from((11, 13, 18, 21))
)
def test_paddings_compute_what_onnxruntime_computes(seed: int, mode: str, opset: int) -> None:
    rng = np.random.default_rng(seed)
    opset = max(opset, 19) if mode == "wrap" else opset
    shape = [int(n) for n in rng.integers(1, 6, size=int(rng.integers(1, 4)))]
    pads = np.zeros((2, len(shape) + 1), dtype=np.int64)
    for axis, length in enumerate(shape, start=1):
        most = length - 1 if mode == "reflect" else 9
        pads[:, axis] = rng.integers(0, most + 1, size=2)
        if length > 2 and rng.random() < 0.3:  # a negative number crops, and there is less to reflect then
            pads[:, axis] = [-1, min(pads[1, axis], length - 2)]
    constants = {"p": pads.reshape(-1), "v": np.float32(2.5)}
    model = make_model(
        [node("Pad", "x p v" if mode == "constant" else "x p", mode=mode)], shape, constants, opset=opset
    )
    assert_lowers_exactly(model, shape, seed)


def test_padding_of_the_axes_that_are_named() -> None:
    model = make_model(
        [node("Pad", "x p _ a", mode="edge")], (3, 4), {"p": integers(-1, 2, 2, 0), "a": integers(-1, 1)}
    )
    assert_lowers_exactly(model, (3, 4))


@pytest.mark.parametrize("opset", [7, 10])
def test_padding_by_attributes(opset: int) -> None:
    nodes = [node("Pad", "x", "h", mode="constant", pads=[0, 0, 1, 0, 0, 2], value=1.5)]
    nodes.append(node("Pad", "h", mode="reflect", pads=[0, 1, 0, 0, 1, 2]))
    assert_lowers_exactly(make_model(nodes, (2, 3), opset=opset), (2, 3))


def resize(
    rng: np.random.Generator, mode: str, opset: int
) -> tuple[onnx.NodeProto, tuple[int, ...], dict[str, np.ndarray]]:
    """A random `Resize` of opset 11 or later, its sample shape and constants."""
    height, width = (int(n) for n in rng.integers(1, 7, size=2))
    attributes: dict[str, Any] = {"mode": mode}
    choices = [c for c in interpolation.POSITIONS if c != "half_pixel_symmetric" or opset >= 19]
    coordinates = str(
        rng.choice([c for c in choices if c != "tf_half_pixel_for_nn" or (opset < 13 and mode == "nearest")])
    )
    attributes["coordinate_transformation_mode"] = coordinates
    if mode == "nearest":
        kinds = [kind for kind in interpolation.NEAREST if kind != "ceil" or coordinates != "tf_half_pixel_for_nn"]
        attributes["nearest_mode"] = str(rng.choice(kinds))
    if mode == "cubic":
        attributes.update(cubic_coeff_a=float(rng.choice([-0.75, -0.5])), exclude_outside=int(rng.integers(0, 2)))
    constants = {"r": floats()}
    if coordinates == "tf_crop_and_resize":
        start = rng.uniform(-0.2, 0.6, size=2)
        constants["r"] = floats(0, 0, *start, 1, 1, *(start + rng.uniform(0.2, 0.8, size=2)))
        attributes["extrapolation_value"] = 2.5
    if rng.random() < 0.5:
        fitting = [s for s in SCALES if s != 1 or coordinates != "tf_crop_and_resize"]
        scales = [float(rng.choice([s for s in fitting if s * n >= 1])) for n in (height, width)]
        constants["s"] = floats(1, 1, *scales)
        return node("Resize", "x r s", **attributes), (2, height, width), constants
    sizes = [int(rng.choice([m for m in range(1, 12) if m != n])) for n in (height, width)]
    constants.update(s=floats(), z=integers(2, *sizes))
    if opset < 18:
        constants["z"] = integers(1, 2, *sizes)
        return node("Resize", "x r s z", **attributes), (2, height, width), constants
    constants["z"], attributes["axes"] = integers(*sizes[::-1]), [3, -2]
    if len(constants["r"]):
        constants["r"] = constants["r"][[3, 2, 7, 6]]
    return node("Resize", "x r _ z", **attributes), (2, height, width), constants


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@given(seed=seeds, opset=st.sampled_from((11, 13, 18, 19, 22)))
def test_resizing_computes_what_onnxruntime_computes(mode: str, seed: int, opset: int) -> None:
    part, shape, constants = resize(np.random.default_rng(seed), mode, opset)
    model = make_model([part], shape, constants, opset=opset, batch=1, check=False)
    try:
        lower(model)
    except UnsupportedOperator as error:
        assume("decided by rounding in float32" not in error.reason)
        raise
    assert_lowers_exactly(model, shape, seed)


@given(seed=seeds, mode=st.sampled_from(["nearest", "linear"]), axes=st.sampled_from((1, 3)))
def test_resizing_one_and_three_axes(seed: int, mode: str, axes: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, *(int(n) for n in rng.integers(1, 5, size=axes)))
    scales = floats(1, 1, *rng.choice([1, 1.5, 2, 3], size=axes))
    coordinates = str(rng.choice(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]))
    part = node("Resize", "x _ s", mode=mode, coordinate_transformation_mode=coordinates)
    assert_lowers_exactly(make_model([part], shape, {"s": scales}), shape, seed)


@given(seed=seeds, mode=st.sampled_from(["nearest", "linear"]), opset=st.sampled_from((7, 9, 10)))
def test_upsampling_of_old_opsets(seed: int, mode: str, opset: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, *(int(n) for n in rng.integers(1, 6, size=2)))
    scales = floats(1, 1, *rng.choice([1, 1.5, 2, 2.5, 3, 10 / 3], size=2))
    if opset == 7:
        part = node("Upsample", "x", mode=mode, scales=[float(scale) for scale in scales])
    else:
        part = node("Upsample" if opset == 9 else "Resize", "x s", mode=mode)
    assert_lowers_exactly(make_model([part], shape, {"s": scales}, opset=opset, check=False), shape, seed)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(7, 9), (2, 3), (3, 8)])
def test_the_aspect_ratio_policies(policy: str, mode: str, sizes: tuple[int, int]) -> None:
    part = node("Resize", "x _ _ z", mode=mode, axes=[2, 3], keep_aspect_ratio_policy=policy)
    assert_lowers_exactly(make_model([part], (2, 4, 5), {"z": integers(*sizes)}), (2, 4, 5))


def test_an_unchanged_axis_costs_nothing() -> None:
    for mode in ("nearest", "linear", "cubic"):
        graph = lower(make_model([node("Resize", "x _ s", mode=mode)], (2, 3, 4), {"s": floats(1, 1, 1, 1)}))
        assert not any(isinstance(part.op, (ops.Linear, ops.Select)) for part in graph.nodes)


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, opset: int) -> None:
    assert_lowers_exactly(
        make_model([node("DepthToSpace", "x", blocksize=2, mode=mode)], (12, 2, 3), opset=opset), (12, 2, 3)
    )


def test_depth_and_space_of_old_opsets() -> None:
    nodes = [node("SpaceToDepth", "x", "h", blocksize=3), node("DepthToSpace", "h", blocksize=3)]
    assert_lowers_exactly(make_model(nodes[:1], (2, 3, 6), outputs=("h",), opset=7), (2, 3, 6))
    assert_lowers_exactly(make_model(nodes, (2, 3, 6), opset=7), (2, 3, 6))


FUNCTIONS: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray], Any]] = {
    "reflect": (
        node("Pad", "x p", mode="reflect"), {"p": integers(0, 0, 1, 2, 0, 0, 2, 0)},
        lambda x: F.pad(x, (2, 0, 1, 2), mode="reflect"),
    ),
    "edge": (
        node("Pad", "x p", mode="edge"), {"p": integers(0, 0, 1, 2, 0, 0, 2, 0)},
        lambda x: F.pad(x, (2, 0, 1, 2), mode="replicate"),
    ),
    "nearest": (
        node("Resize", "x _ s", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"s": floats(1, 1, 2, 3)}, lambda x: F.interpolate(x, scale_factor=(2.0, 3.0), mode="nearest"),
    ),
    "linear": (
        node("Resize", "x _ _ z", mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
        {"z": integers(1, 2, 7, 2)}, lambda x: F.interpolate(x, size=(7, 2), mode="bilinear"),
    ),
    "linear, corners aligned": (
        node("Resize", "x _ _ z", mode="linear", coordinate_transformation_mode="align_corners"),
        {"z": integers(1, 2, 7, 3)}, lambda x: F.interpolate(x, size=(7, 3), mode="bilinear", align_corners=True),
    ),
    "cubic": (
        node("Resize", "x _ _ z", mode="cubic", coordinate_transformation_mode="half_pixel"),
        {"z": integers(1, 2, 7, 3)}, lambda x: F.interpolate(x, size=(7, 3), mode="bicubic"),
    ),
    "DepthToSpace": (
        node("DepthToSpace", "h", blocksize=2, mode="CRD"), {}, lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 3), 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_torch(name: str) -> None:
    part, constants, function = FUNCTIONS[name]
    before = [] if name != "DepthToSpace" else [node("Reshape", "x r", "h")]
    constants = constants if not before else {"r": integers(0, 4, 2, 3)}
    assert_agrees_with_torch(make_model([*before, part], (2, 4, 3), constants, batch=1), (2, 4, 3), function)


NETWORKS: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray]]] = {
    "Pad": (node("Pad", "a p", "h", mode="reflect"), {"p": integers(0, 0, 1, 0, 0, 0, 0, 1)}),
    "linear": (node("Resize", "a _ s", "h", mode="linear"), {"s": floats(1, 1, 1.5, 2)}),
    "cubic": (node("Resize", "a _ s", "h", mode="cubic"), {"s": floats(1, 1, 2, 0.5)}),
    "nearest": (node("Resize", "a _ s", "h", mode="nearest"), {"s": floats(1, 1, 2, 1)}),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=seeds, radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_of_small_networks_hold(name: str, seed: int, radius: float) -> None:
    part, constants = NETWORKS[name]
    assert_bounds_hold(between_layers([part, node("Relu", "h", "b")], (1, 2, 2), constants, seed), seed, radius)


def cropped(**attributes: Any) -> onnx.NodeProto:
    return node("Resize", "x r s", coordinate_transformation_mode="tf_crop_and_resize", **attributes)


HALF = {"r": floats(0, 0, 0, 0, 1, 1, 0.5, 0.5)}

REFUSED: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray], str]] = {
    "antialias": (node("Resize", "x _ s", mode="linear", antialias=1), {"s": floats(1, 1, 0.5, 1)}, "antialias"),
    "an unknown mode": (node("Resize", "x _ s", mode="lanczos"), {"s": floats(1, 1, 2, 2)}, "not one that ONNX has"),
    "an unknown choice": (
        node("Resize", "x _ s", nearest_mode="any"), {"s": floats(1, 1, 2, 2)}, "not one that ONNX has",
    ),
    "an unknown policy": (
        node("Resize", "x _ _ z", keep_aspect_ratio_policy="any"), {"z": integers(1, 1, 2, 2)}, "not one that ONNX has",
    ),
    "neither scales nor sizes": (node("Resize", "x"), {}, "one scale or one size for every axis"),
    "too few scales": (node("Resize", "x _ s"), {"s": floats(2, 2)}, "one scale or one size for every axis"),
    "scales that depend on the input": (node("Resize", "x _ x"), {}, "scales depends on the model's input"),
    "nothing left": (node("Resize", "x _ s"), {"s": floats(1, 1, 0.1, 1)}, "resizes"),
    "a crop that onnxruntime leaves out": (cropped(), {**HALF, "s": floats(1, 1, 1, 2)}, "does not crop"),
    "a choice that rounding makes": (cropped(), {**HALF, "s": floats(1, 1, 0.75, 0.75)}, "rounding in float32"),
    "an unknown padding": (node("Pad", "x p", mode="any"), {"p": integers(0, 0, 0, 1, 0, 0, 0, 0)}, "not one that ONNX"),
    "an infinite fill": (
        node("Pad", "x p v"), {"p": integers(0, 0, 0, 1, 0, 0, 0, 0), "v": np.float32(-np.inf)}, "infinity",
    ),
    "an odd depth": (node("DepthToSpace", "x", blocksize=2), {}, "no multiple"),
    "an odd space": (node("SpaceToDepth", "x", blocksize=3), {}, "not made of blocks"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_matched_is_refused(name: str) -> None:
    part, constants, words = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=words) as error:
        lower(make_model([part], (1, 4, 4), constants, check=False))
    assert error.value.node == "make_y"


def test_where_onnxruntime_departs_from_the_standard_is_refused() -> None:
    model = make_model([node("Resize", "x s", mode="nearest")], (1, 5, 5), {"s": floats(1, 1, 0.75, 1)}, opset=10)
    with pytest.raises(UnsupportedOperator, match="picks other entries than the standard"):
        lower(model)


def test_rows_that_are_resized_away_are_refused() -> None:
    model = make_model([node("Resize", "x _ s", mode="linear")], (1, 2, 2), {"s": floats(2, 1, 1, 1)}, check=False)
    with pytest.raises(UnsupportedOperator):
        lower(model)
