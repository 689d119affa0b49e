"""Operators that become several nodes of the engine, inside small random networks: exact values and slopes stay in their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frontends.checks import assert_bounds_hold, between_layers
from tests.frontends.onnx_models import node

RANDOM = np.random.default_rng(31)
SHAPE = (2, 3)
# Few where the engine's own rows are drawn often; all of them in the long profile.
EXAMPLES = settings.default.max_examples if settings.default.max_examples > 100 else 3


def eighths(*shape: int) -> np.ndarray:
    return RANDOM.integers(-8, 9, size=shape).astype(np.float32) / 8


def integers(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.int64)


POSITIVE, SIN = node("Exp", "a", "p"), node("Sin", "a", "s")
CONSTANTS = {
    "slopes": eighths(2, 1), "half": np.float32(0.5), "low": np.float32(-0.25), "one": np.float32(1), "two": np.float32(2),
    "keep": np.array([[True, False, True]]), "row": eighths(3), "axis": integers(2), "end": integers(-1),
    "three": np.float32(3), "eps": np.float32(0.125), "places": integers([0, 2], [1, 1]), "halves": np.float32(1.5),
    "repeats": integers(1, 2, 1), "root": np.float32(np.sqrt(2)), "zero": np.float32(0), "six": np.float32(6),
}  # fmt: skip

NETWORKS: dict[str, list[Any]] = {
    "PRelu": [node("PRelu", "a slopes", "b")],
    "PRelu, computed slopes": [SIN, node("PRelu", "a s", "b")],
    "Clip from below": [node("Clip", "a low", "b")],
    "Clip from above": [node("Clip", "a _ half", "b")],
    "Clip": [node("Clip", "a low half", "b")],
    "HardSigmoid": [node("HardSigmoid", "a", "b", alpha=0.75, beta=0.25)],
    "Shrink": [node("Shrink", "a", "b", lambd=0.25, bias=0.25)],
    "Div": [POSITIVE, node("Div", "a p", "b")],
    "Div of a constant": [POSITIVE, node("Div", "row p", "b")],
    "Div by a root": [POSITIVE, node("Sqrt", "p", "r"), node("Div", "a r", "b")],
    "Pow": [node("Pow", "a three", "b")],
    "Pow of a constant": [node("Pow", "half a", "b")],
    "Pow of variables": [POSITIVE, node("Pow", "p a", "b")],
    "Pow of no whole number": [POSITIVE, node("Pow", "p halves", "b")],
    "Mul of itself": [node("Mul", "a a", "b")],
    "Sum": [SIN, node("Sum", "a s row a", "b")],
    "Mean": [SIN, node("Mean", "s row a", "b")],
    "Where": [SIN, node("Where", "keep a s", "b")],
    "Where, a constant": [node("Where", "keep row a", "b")],
    "ReduceMean": [node("ReduceMean", "a axis", "b")],
    "ReduceL1": [node("ReduceL1", "a axis", "b")],
    "ReduceL2": [POSITIVE, node("ReduceL2", "p axis", "b")],
    "ReduceSumSquare": [node("ReduceSumSquare", "a axis", "b")],
    "ReduceLogSum": [POSITIVE, node("ReduceLogSum", "p axis", "b")],
    "ReduceLogSumExp": [node("ReduceLogSumExp", "a axis", "b")],
    "CumSum": [node("CumSum", "a end", "b")],
    "Tile": [node("Tile", "a repeats", "b")],
    "Trilu": [node("Trilu", "a", "b")],
    "a GELU written out": [
        node("Div", "a root", "d"), node("Erf", "d", "e"), node("Add", "e one", "g"), node("Mul", "a g", "b"),
    ],
    "a hard swish written out": [
        node("Add", "a three", "t"), node("Clip", "t zero six", "c"), node("Mul", "a c", "b"),
    ],
    "a softsign written out": [node("Abs", "a", "v"), node("Add", "v two", "w"), node("Div", "a w", "b")],
    "a LayerNorm written out": [
        node("ReduceMean", "a axis", "mean"), node("Sub", "a mean", "c"), node("Pow", "c two", "q"),
        node("ReduceMean", "q axis", "v"), node("Add", "v eps", "w"), node("Sqrt", "w", "r"), node("Div", "c r", "b"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([0.0, 0.05, 0.5]))
def test_bounds_of_small_networks_hold(name: str, seed: int, radius: float) -> None:
    assert_bounds_hold(between_layers(NETWORKS[name], SHAPE, CONSTANTS, seed), seed, radius)
