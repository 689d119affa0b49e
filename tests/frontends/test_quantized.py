"""Quantized models: weights come back exactly, rounding between layers is a bounded doubt that onnxruntime never exceeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator
from mlflow_lipschitz.frontends.fidelity import replay
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import value_bounds
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node, run_onnxruntime

seeds = st.integers(0, 2**32 - 1)
MICROSOFT = "com.microsoft"
SLACK = 1e-5  # onnxruntime computes in float32


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def assert_rounds_like_onnxruntime(model: onnx.ModelProto, shape: tuple[int, ...], seed: int = 0) -> None:
    """Equal nearly everywhere; where a tie falls the other way, still within the bounds of a box of radius 0."""
    points = np.random.default_rng(seed).normal(size=(40, *shape)).astype(np.float32)
    graph = lower(model)
    actual, expected = evaluate(graph, points).numpy(), run_onnxruntime(model, points).astype(np.float64)
    slack = SLACK * max(1.0, np.abs(expected).max())
    assert np.ptp(expected, axis=0).min() > 0
    assert np.mean(np.abs(actual - expected) <= slack) > 0.8
    low, high = value_bounds(graph, Box.around(points.astype(np.float64), 0.0))
    assert np.all((low - slack <= expected) & (expected <= high + slack))


TYPES = {"uint8": 10, "int8": 10, "uint16": 21, "int16": 21}


@pytest.mark.parametrize("name", TYPES)
@given(seed=seeds, opset=st.sampled_from((10, 13, 19, 21, 23)))
def test_activations_are_clipped_and_rounded(name: str, seed: int, opset: int) -> None:
    rng = np.random.default_rng(seed)
    reach = np.iinfo(name)
    scale = np.float32(2.0 ** -int(rng.integers(2, 9)) * (1.5 if rng.random() < 0.5 else 1))
    constants = {"s": scale, "z": np.array(rng.integers(max(reach.min, -40), min(reach.max, 200)), dtype=name)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    model = make_model(nodes, (3, 4), constants, opset=max(opset, TYPES[name]))
    assert_rounds_like_onnxruntime(model, (3, 4), seed)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_scales_per_channel(axis: int) -> None:
    constants = {"s": floats(0.25, 0.125, 0.0625), "z": np.zeros(3, dtype=np.int8)}
    nodes = [node("QuantizeLinear", "x s z", "q", axis=axis), node("DequantizeLinear", "q s z", axis=axis)]
    assert_rounds_like_onnxruntime(make_model(nodes, (3, 3), constants), (3, 3))


def test_without_a_zero_point() -> None:
    nodes = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s")]
    assert_rounds_like_onnxruntime(make_model(nodes, (4,), {"s": floats(0.25)[0]}), (4,))
    nodes = [node("QuantizeLinear", "x s", "q", output_dtype=TensorProto.INT8), node("DequantizeLinear", "q s")]
    assert_rounds_like_onnxruntime(make_model(nodes, (4,), {"s": floats(0.25)[0]}, opset=21), (4,))


def test_integers_read_with_another_scale() -> None:
    constants = {"s": floats(0.25)[0], "z": np.int8(3), "t": floats(0.75)[0], "w": np.int8(-5)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q t w")]
    assert_rounds_like_onnxruntime(make_model(nodes, (4,), constants), (4,))


def test_a_quantization_read_as_it_was_made_adds_nothing_but_a_rounding() -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    graph = lower(make_model(nodes, (4,), {"s": floats(0.1)[0], "z": np.uint8(7)}))
    kinds = [type(part.op) for part in graph.nodes if not isinstance(part.op, ops.Reshape)]
    assert kinds == [ops.Input, ops.Elementwise, ops.Rounding]


@pytest.mark.parametrize(
    ("numbers", "scale", "zero", "attributes", "expected"),
    [
        (np.array([[-128, 5], [7, 127]], np.int8), floats(0.1)[0], np.int8(3), {}, None),
        (np.array([[0, 5], [7, 255]], np.uint8), floats(0.1, 0.3), np.array([128, 3], np.uint8), {"axis": 0}, (2, 1)),
        (np.array([[0, 5], [7, 255]], np.uint8), floats(0.1, 0.3), np.array([128, 3], np.uint8), {"axis": -1}, (2,)),
        (np.array([[10**9, 5], [-7, 3]], np.int32), floats(2.0**-20)[0], np.int32(0), {}, None),
    ],
)
def test_weights_are_dequantized_exactly(
    numbers: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    attributes: dict[str, int],
    expected: tuple[int, ...] | None,
) -> None:
    constants = {"q": numbers, "s": scale, "z": zero}
    model = make_model([node("DequantizeLinear", "q s z", "w", **attributes), node("MatMul", "x w")], (2,), constants)
    (linear,) = (part.op for part in lower(model).nodes if isinstance(part.op, ops.Linear))
    scale, zero = (part.reshape(expected) if expected else part for part in (scale, zero))
    np.testing.assert_array_equal(linear.weight.T, (numbers.astype(float) - zero) * scale.astype(float))
    assert_lowers_exactly(model, (2,))


def test_weights_of_four_bits_and_in_blocks() -> None:
    numbers = np.array([[-8, 7, 3], [1, -2, 5], [0, 4, -4], [6, -6, 2]])
    tensor = helper.make_tensor("q", TensorProto.INT4, numbers.shape, numbers.reshape(-1))
    constants = {"s": np.array([[0.5, 0.25, 0.1], [2, 1, 0.3]], dtype=np.float32)}
    nodes = [node("DequantizeLinear", "q s", "w", axis=0, block_size=3), node("MatMul", "x w")]
    model = make_model(nodes, (4,), constants, opset=21, check=False)
    model.graph.initializer.append(tensor)
    assert_lowers_exactly(model, (4,))


def test_constants_that_are_quantized_first() -> None:
    nodes = [node("QuantizeLinear", "w s", "q"), node("DequantizeLinear", "q s", "d"), node("MatMul", "x d")]
    assert_lowers_exactly(make_model(nodes, (3,), {"w": np.abs(weight(3, 2)), "s": floats(0.03125)[0]}), (3,))


def test_a_model_of_quantized_weights_has_a_lipschitz_constant() -> None:
    constants = {"q": np.array([[3, -5]], np.int8), "s": floats(0.5)[0]}
    graph = lower(make_model([node("DequantizeLinear", "q s", "w"), node("Gemm", "x w", transB=1)], (2,), constants))
    certificate = certify_lipschitz(graph, np.zeros((1, 2)), Box.around(np.zeros((1, 2)), 0.5), device="cpu")
    assert certificate.upper == pytest.approx(4.0)


class Rows(CalibrationDataReader):
    """Random rows for onnxruntime's calibration."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._rows: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": rng.normal(size=(1, 2, 8, 8)).astype(np.float32)} for _ in range(8)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def network() -> onnx.ModelProto:
    """Every operator that onnxruntime's quantizer has a quantized one for and that is lowered here."""
    nodes = [
        node("Conv", "x a b", "h", pads=[1, 1, 1, 1]),
        node("Relu", "h", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p c", "i"),
        node("LeakyRelu", "i", "l"),
        node("Conv", "p d", "j"),
        node("Add", "l j", "s"),
        node("Mul", "s l", "u"),
        node("AveragePool", "u", "v", kernel_shape=[2, 2]),
        node("Concat", "v v", "k", axis=1),
        node("GlobalAveragePool", "k", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f e m", "z"),
        node("Sigmoid", "z", "t"),
        node("MatMul", "t n"),
    ]
    shapes = {"a": (4, 2, 3, 3), "b": (4,), "c": (4, 4, 2, 2), "d": (4, 4, 2, 2), "e": (8, 5), "m": (5,), "n": (5, 3)}
    constants = {name: weight(*shape) / math.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()}
    return make_model(nodes, (2, 8, 8), constants, opset=17)


@pytest.fixture(scope="module")
def quantize(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("quantized")
    onnx.save(network(), folder / "float.onnx")

    def quantized(form: QuantFormat, kind: QuantType, *, per_channel: bool) -> onnx.ModelProto:
        quantize_static(
            folder / "float.onnx", folder / "quantized.onnx", Rows(), quant_format=form, per_channel=per_channel,
            activation_type=kind, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(folder / "quantized.onnx")

    return quantized


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_models_that_onnxruntime_quantized(
    quantize: Any, form: QuantFormat, kind: QuantType, per_channel: bool
) -> None:
    assert_rounds_like_onnxruntime(quantize(form, kind, per_channel=per_channel), (2, 8, 8))


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_what_is_served_around_a_point_stays_within_the_bounds(quantize: Any, form: QuantFormat) -> None:
    model = quantize(form, QuantType.QUInt8, per_channel=False)
    rng = np.random.default_rng(1)
    center, radius = rng.normal(size=(1, 2, 8, 8)), 0.02
    low, high = value_bounds(lower(model), Box.around(center, radius))
    points = center + rng.uniform(-radius, radius, size=(200, 2, 8, 8))
    served = run_onnxruntime(model, points.astype(np.float32))
    assert np.all((low - SLACK <= served) & (served <= high + SLACK))
    assert np.all(high - low < np.inf)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantized_model_is_replayed(quantize: Any, form: QuantFormat) -> None:
    """Also where a tie is rounded the other way; a model of other weights is not taken for it."""
    model = quantize(form, QuantType.QUInt8, per_channel=False)
    points = np.random.default_rng(0).normal(size=(100, 2, 8, 8))
    report = replay(lower(model), model, points, extra_points=points[:20] + 0.01)
    assert report.rows == 100
    other = onnx.ModelProto()
    other.CopyFrom(model)
    scale = next(part for part in other.graph.initializer if part.name == "a_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.2), "a_scale"))
    with pytest.raises(FidelityError, match="differ"):
        replay(lower(other), model, points)


def test_a_quantized_classifier_has_a_radius_and_no_lipschitz_constant() -> None:
    constants = {"s": floats(2.0**-6)[0], "q": np.array([[40, -40]], np.int8), "t": floats(2.0**-5)[0]}
    nodes = [
        node("QuantizeLinear", "x s z", "n"),
        node("DequantizeLinear", "n s z", "r"),
        node("DequantizeLinear", "q t", "w"),
        node("MatMul", "r w"),
    ]
    graph = lower(make_model(nodes, (1,), {**constants, "z": np.int8(0)}))
    radius = certified_radius(graph, np.full((1, 1), 0.5), np.zeros(1, dtype=int), device="cpu").radius
    # The step is 1/64: the class is sure while x stays above 1/128.
    assert 0.5 - 2 * 2.0**-7 <= radius[0] <= 0.5 - 2.0**-7
    with pytest.raises(UnsupportedOperator, match="jumps"):
        certify_lipschitz(graph, np.full((1, 1), 0.5), Box.around(np.full((1, 1), 0.5), 0.1), device="cpu")


Q = node("QuantizeLinear", "x s z", "q")
GRID: dict[str, np.ndarray] = {"s": floats(0.25)[0], "z": np.array(3, dtype=np.int8)}

MOVED = {
    "Reshape": ([node("Reshape", "q r", "m")], {"r": np.array([0, -1], dtype=np.int64)}),
    "Transpose": ([node("Transpose", "q", "m", perm=[0, 2, 1])], {}),
    "MaxPool": ([node("MaxPool", "q", "m", kernel_shape=[2], pads=[1, 0])], {}),
    "Slice": ([node("Slice", "q a b c", "m")], {"a": np.array([1]), "b": np.array([3]), "c": np.array([2])}),
    "Gather": ([node("Gather", "q i", "m", axis=2)], {"i": np.array([2, 0])}),
    "Split and Concat": ([node("Split", "q", "a b", axis=2, num_outputs=2), node("Concat", "b a", "m", axis=2)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_integers_may_be_moved_and_selected(name: str) -> None:
    nodes, constants = MOVED[name]
    model = make_model(
        [Q, *nodes, node("DequantizeLinear", "m s z")], (2, 4), {**GRID, **constants}, opset=18, check=False
    )
    assert_rounds_like_onnxruntime(model, (2, 4))


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]] = {
    "a dynamic scale": ([node("DynamicQuantizeLinear", "x", "y a b")], {}, "quantize it statically"),
    "MatMulInteger": ([Q, node("MatMulInteger", "q w")], {"w": np.ones((4, 2), np.int8)}, "quantize it statically"),
    "arithmetic": ([Q, node("Add", "q q")], {}, "computes with quantized integers"),
    "a curve": ([Q, node("Relu", "q")], {}, "computes with quantized integers"),
    "a cast": ([Q, node("Cast", "q", to=TensorProto.FLOAT)], {}, "computes with quantized integers"),
    "a constant beside it": ([Q, node("Concat", "q c", axis=1)], {"c": np.ones((1, 4), np.int8)}, "computes with"),
    "two grids": (
        [Q, node("QuantizeLinear", "x t z", "p"), node("Concat", "q p", axis=1)], {"t": floats(0.5)[0]}, "computes with",
    ),
    "integers as an output": ([node("QuantizeLinear", "x s z")], {}, "quantized integers"),
    "no positive scale": ([node("QuantizeLinear", "x t z")], {"t": floats(0)[0]}, "not a positive number"),
    "a scale from the input": ([node("QuantizeLinear", "x x z")], {}, "the scale depends"),
    "another type": (
        [node("QuantizeLinear", "x s", output_dtype=TensorProto.FLOAT8E4M3FN)], {}, "quantizes to float8",
    ),
    "zero points that differ": (
        [node("QuantizeLinear", "x t w")], {"t": floats(1, 1, 1, 1), "w": np.arange(4, dtype=np.int8)}, "differ",
    ),
    "scales that do not fit": (
        [node("QuantizeLinear", "x t w")], {"t": floats(1, 1), "w": np.zeros(2, dtype=np.int8)}, "do not fit",
    ),
    "blocks of activations": (
        [node("QuantizeLinear", "x t", axis=1, block_size=2)], {"t": np.ones((1, 2), np.float32)}, "in blocks",
    ),
    "real numbers dequantized": ([node("DequantizeLinear", "x s z")], {}, "was not quantized"),
    "channels last": (
        [Q, node("QLinearGlobalAveragePool", "q s z s z", channels_last=1, domain=MICROSOFT)], {}, "channels come last",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_bounded_doubt_is_refused(name: str) -> None:
    nodes, constants, words = REFUSED[name]
    model = make_model(nodes, (4,), {**GRID, **constants}, opset=21, check=False)
    with pytest.raises(UnsupportedOperator, match=words):
        lower(model)


def test_weights_of_a_newer_type_as_microsoft_wrote_them() -> None:
    constants = {"q": np.array([[300, -5], [7, 9]], np.int16), "s": floats(0.5)[0], "z": np.int16(2)}
    nodes = [node("DequantizeLinear", "q s z", "w", domain=MICROSOFT), node("MatMul", "x w")]
    assert_lowers_exactly(make_model(nodes, (2,), constants, opset=17, check=False), (2,))


def test_a_quantized_matrix_product_without_a_scale_for_its_output() -> None:
    constants = {
        **GRID, "w": np.array([[3, -5], [7, 9], [1, 0]], np.int8), "t": floats(0.5, 0.25), "v": np.zeros(2, np.int8),
        "b": np.array([10, -20], np.int32),
    }  # fmt: skip
    nodes = [Q, node("QGemm", "q s z w t v b", alpha=1.0, domain=MICROSOFT)]
    model = make_model(nodes, (3,), constants, opset=17, check=False)
    assert_rounds_like_onnxruntime(model, (3,))


def pooled(**attributes: Any) -> onnx.ModelProto:
    nodes = [
        node("Reshape", "x shape", "r"), node("QuantizeLinear", "r step center", "q"),
        node("QLinearAveragePool", "q step center wide middle", "p", kernel_shape=[3, 3], strides=[2, 2],
             domain=MICROSOFT, **attributes),
        node("DequantizeLinear", "p wide middle", "d"), node("Flatten", "d"),
    ]  # fmt: skip
    constants = {
        "shape": np.array([-1, 1, 4, 4]), "step": np.float32(0.02), "center": np.uint8(100),
        "wide": np.float32(0.05), "middle": np.uint8(90),
    }  # fmt: skip
    return make_model(nodes, (16,), constants)


@pytest.mark.parametrize("attributes", [{"ceil_mode": 1}, {"count_include_pad": 1, "pads": [1, 1, 1, 1]}])
def test_a_pool_of_integers_in_one_of_two_modes(attributes: dict[str, Any]) -> None:
    model, points = pooled(**attributes), weight(20, 16)
    apart = np.abs(evaluate(lower(model), points).numpy() - run_onnxruntime(model, points)).max()
    assert apart <= 0.06


def test_a_pool_of_integers_in_both_modes_is_another_one_in_onnxruntime() -> None:
    with pytest.raises(UnsupportedOperator, match="ceil_mode or with count_include_pad"):
        lower(pooled(ceil_mode=1, count_include_pad=1, pads=[1, 1, 1, 1]))
