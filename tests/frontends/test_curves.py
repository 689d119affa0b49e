"""Curves of every operator set, with every kind of attribute, against onnxruntime; and the ones that jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_elementwise
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

RANDOM = np.random.default_rng(17)
POSITIVE = node("Exp", "x", "p")  # a value above 0 for what is defined only there


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def curve(op_type: str, *opsets: int, **attributes: Any) -> tuple[list[Any], dict[str, np.ndarray], tuple[int, ...]]:
    return [node(op_type, "x", **attributes)], {}, opsets


def on_positive(op_type: str, *opsets: int) -> tuple[list[Any], dict[str, np.ndarray], tuple[int, ...]]:
    return [POSITIVE, node(op_type, "p")], {}, opsets


LOW, HIGH = np.float32(-0.5), np.float32(0.75)
# name: nodes, constants, operator sets
CASES: dict[str, tuple[list[Any], dict[str, Any], tuple[int, ...]]] = {
    "Relu": curve("Relu", 7, 13, 14, 20),
    "LeakyRelu": curve("LeakyRelu", 7, 16, alpha=0.3),
    "LeakyRelu steep": curve("LeakyRelu", 16, alpha=1.5),
    "LeakyRelu falling": curve("LeakyRelu", 16, alpha=-0.5),
    "LeakyRelu default": curve("LeakyRelu", 7, 16),
    "Tanh": curve("Tanh", 7, 13),
    "Sigmoid": curve("Sigmoid", 7, 13),
    "Exp": curve("Exp", 7, 13),
    "Log": on_positive("Log", 7, 13),
    "Log of one and more": (
        [POSITIVE, node("Add", "p c", "a"), node("Log", "a")], {"c": np.float32(1)}, (7, 13),
    ),
    "Sqrt": on_positive("Sqrt", 7, 13),
    "Abs": curve("Abs", 7, 13),
    "Sin": curve("Sin", 7, 22),
    "Cos": curve("Cos", 7, 22),
    "Erf": curve("Erf", 9, 13),
    "Atan": curve("Atan", 7, 22),
    "Softplus": curve("Softplus", 7, 22),
    "Softsign": curve("Softsign", 7, 22),
    "Elu": curve("Elu", 7, 22),
    "Elu steep": curve("Elu", 7, 22, alpha=2.5),
    "Elu flat": curve("Elu", 22, alpha=0.0),
    "Selu": curve("Selu", 7, 22),
    "Selu of one's own": curve("Selu", 7, alpha=0.5, gamma=2.0),
    "Celu": curve("Celu", 12),
    "Celu wide": curve("Celu", 12, alpha=2.5),
    "Gelu": curve("Gelu", 20),
    "Gelu tanh": curve("Gelu", 20, approximate="tanh"),
    "HardSigmoid": curve("HardSigmoid", 7, 22),
    "HardSigmoid of one's own": curve("HardSigmoid", 7, alpha=0.7, beta=0.1),
    "HardSwish": curve("HardSwish", 14, 22),
    "Mish": curve("Mish", 18, 22),
    "ThresholdedRelu at zero": curve("ThresholdedRelu", 10, 22, alpha=0.0),
    "Shrink": curve("Shrink", 9, lambd=0.5, bias=0.5),
    "Shrink of nothing": curve("Shrink", 9, lambd=0.0),
    "Clip, attributes": curve("Clip", 7, min=-0.5, max=0.75),
    "Clip from below, attribute": curve("Clip", 7, min=-0.5),
    "Clip from above, attribute": curve("Clip", 7, max=0.75),
    "Clip at the ends of float32": curve("Clip", 7, min=-3.4028234663852886e38, max=3.4028234663852886e38),
    "Clip, inputs": ([node("Clip", "x l h")], {"l": LOW, "h": HIGH}, (11, 12, 13)),
    "Clip from below": ([node("Clip", "x l")], {"l": LOW}, (11, 12, 13)),
    "Clip from zero": ([node("Clip", "x l")], {"l": np.float32(0)}, (11, 13)),
    "Clip from above": ([node("Clip", "x _ h")], {"h": HIGH}, (11, 12, 13)),
    "Clip nothing": ([node("Clip", "x")], {}, (11, 12, 13)),
    "Clip to six": ([node("Clip", "x l h")], {"l": np.float32(0), "h": np.float32(6)}, (13,)),
    "Clip to one number": ([node("Clip", "x h h")], {"h": HIGH}, (13,)),
    "Clip in the wrong order": ([node("Clip", "x h l")], {"l": LOW, "h": HIGH}, (12, 13)),
    "Clip to infinity": ([node("Clip", "x l h")], {"l": LOW, "h": np.float32(np.inf)}, (13,)),
    "PRelu, one slope": ([node("PRelu", "x a")], {"a": np.array([0.25], np.float32)}, (7, 9, 16)),
    "PRelu, a slope per channel": ([node("PRelu", "x a")], {"a": weight(3, 1, 1)}, (7, 9, 16)),
    "PRelu, a slope per entry": ([node("PRelu", "x a")], {"a": weight(3, 2, 4)}, (7, 9, 16)),
    "PRelu, a slope per batch and channel": ([node("PRelu", "x a")], {"a": weight(1, 3, 1, 1)}, (16,)),
    "PRelu, equal slopes": ([node("PRelu", "x a")], {"a": np.full((3, 1, 1), 0.5, np.float32)}, (16,)),
    "PRelu, computed slopes": ([node("Sin", "x", "a"), node("PRelu", "x a")], {}, (16,)),
    "Identity": curve("Identity", 7, 16, 21),
    "Cast": ([node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Cast", "d", to=TensorProto.FLOAT)], {}, (7, 9, 13, 19)),
    "CastLike": ([node("CastLike", "x c")], {"c": LOW}, (15, 19)),
    "Dropout": curve("Dropout", 7, 10, 12, 13),
}  # fmt: skip
TRIED = [(name, opset) for name, (_, _, opsets) in CASES.items() for opset in opsets]


@pytest.mark.parametrize(("name", "opset"), TRIED)
def test_a_curve_is_what_onnxruntime_computes(name: str, opset: int) -> None:
    nodes, constants, _ = CASES[name]
    assert_lowers_exactly(make_model(nodes, (3, 2, 4), constants, opset=opset), (3, 2, 4))


def test_every_curve_has_a_case() -> None:
    assert set(lowering_elementwise.ROWS) - {"Swish"} <= {n.op_type for nodes, *_ in CASES.values() for n in nodes}


TORCH: dict[str, tuple[list[Any], Any]] = {
    "Elu": ([node("Elu", "x", alpha=2.0)], lambda z: torch.nn.functional.elu(z, 2.0)),
    "Gelu": ([node("Gelu", "x")], torch.nn.functional.gelu),
    "Gelu tanh": ([node("Gelu", "x", approximate="tanh")], lambda z: torch.nn.functional.gelu(z, approximate="tanh")),
    "Mish": ([node("Mish", "x")], torch.nn.functional.mish),
    "HardSwish": ([node("HardSwish", "x")], torch.nn.functional.hardswish),
    "Softplus": ([node("Softplus", "x")], torch.nn.functional.softplus),
    "Softsign": ([node("Softsign", "x")], torch.nn.functional.softsign),
    "Shrink": ([node("Shrink", "x", lambd=0.5, bias=0.5)], torch.nn.functional.softshrink),
    "Erf": ([node("Erf", "x")], torch.erf),
    "Swish": ([node("Swish", "x", alpha=2.0)], lambda z: z * torch.sigmoid(2.0 * z)),
    "Swish of one": ([node("Swish", "x")], torch.nn.functional.silu),
    "Swish of zero": ([node("Swish", "x", alpha=0.0)], lambda z: z / 2),
    "a root's reciprocal": ([POSITIVE, node("Sqrt", "p", "r"), node("Reciprocal", "r")], lambda z: torch.rsqrt(z.exp())),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_values_and_derivatives_in_float64(name: str) -> None:
    nodes, function = TORCH[name]
    opset = 24 if name.startswith("Swish") else 20
    assert_agrees_with_torch(make_model(nodes, (3, 4), {}, opset=opset), (3, 4), function)


def test_one_kink_for_slopes_that_differ() -> None:
    graph = lower(make_model([node("PRelu", "x a")], (3, 2), {"a": weight(3, 1)}))
    assert [n.op.curve for n in graph.nodes if isinstance(n.op, ops.Elementwise)] == ["relu"]


def test_the_reciprocal_of_a_root_is_one_curve() -> None:
    nodes = [POSITIVE, node("Sqrt", "p", "r"), node("Div", "one r")]
    graph = lower(make_model(nodes, (3,), {"one": np.float32(1)}))
    assert [n.op.curve for n in graph.nodes if isinstance(n.op, ops.Elementwise)] == ["exp", "power"]


JUMPS = {
    "ThresholdedRelu": node("ThresholdedRelu", "x"),
    "Shrink": node("Shrink", "x", lambd=0.5),
    "Shrink that overlaps": node("Shrink", "x", lambd=-0.5, bias=-0.5),
    "Sign": node("Sign", "x"),
    "Round": node("Round", "x"),
    "Floor": node("Floor", "x"),
    "Ceil": node("Ceil", "x"),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperator, match="jump"):
        lower(make_model([JUMPS[name]], (4,)))


REFUSED = {
    "Tan": (node("Tan", "x"), {}, "poles"),
    "Celu": (node("Celu", "x", alpha=-1.0), {}, "positive alpha"),
    "Clip by a variable": (node("Clip", "x s"), {}, "depends on the model's input"),
    "Clip by NaN": (node("Clip", "x n"), {"n": np.float32(np.nan)}, "NaN"),
    "Clip by several": (node("Clip", "x m"), {"m": weight(4)}, "do not fit"),
    "PRelu of another shape": (node("PRelu", "x m"), {"m": weight(5)}, "broadcast"),
    "PRelu that grows": (node("PRelu", "x m"), {"m": weight(2, 1, 1)}, "do not fit"),
    "Dropout in training": (
        node("Dropout", "x r t"), {"r": np.float32(0.5), "t": np.array(True)}, "model.eval",
    ),
    "Cast to integers": (node("Cast", "x", to=TensorProto.INT64), {}, "INT64"),
    "CastLike to integers": (node("CastLike", "x i"), {"i": np.array([1])}, "int64"),
    "Equal": (node("Equal", "x c"), {"c": np.float32(0)}, "condition"),
    "Less": (node("Less", "x c"), {"c": np.float32(0)}, "condition"),
    "TopK": (node("TopK", "x k", "y i"), {"k": np.array([1])}, "sort"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    bad, constants, words = REFUSED[name]
    nodes = [node("ReduceSum", "x", "s", keepdims=0), bad] if "s" in bad.input else [bad]
    with pytest.raises(UnsupportedOperator, match=words) as error:
        lower(make_model(nodes, (4,), constants, check=False))
    assert error.value.node == bad.name
