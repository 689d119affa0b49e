"""Picking, repeating and replacing entries at constant positions, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_indexing
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

RANDOM = np.random.default_rng(23)
SIN = node("Sin", "x", "s")


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def some(*shape: int) -> np.ndarray:
    return RANDOM.integers(-3, 3, size=shape)


FREE, ONE = "batch", 1
# name: nodes, sample shape, constants, operator sets, batches
CASES: dict[str, tuple[list[Any], tuple[int, ...], dict[str, Any], tuple[int, ...], tuple[Any, ...]]] = {
    "Gather": ([node("Gather", "x i", axis=1)], (4, 3), {"i": integers(2, -1, 0)}, (7, 11, 13), (FREE, ONE)),
    "Gather a matrix": ([node("Gather", "x i", axis=-1)], (2, 3), {"i": some(2, 2)}, (13,), (FREE, ONE)),
    "GatherElements": (
        [node("GatherElements", "x i", axis=2)], (2, 3), {"i": some(1, 2, 4)}, (11, 13), (ONE,),
    ),
    "GatherElements, a part": (
        [node("GatherElements", "x i", axis=1)], (3, 4), {"i": some(1, 5, 2)}, (13,), (ONE,),
    ),
    "GatherND": ([node("GatherND", "x i")], (2, 3), {"i": integers([0, 1], [0, -1])}, (11, 12, 13), (ONE,)),
    "GatherND of entries": (
        [node("GatherND", "x i")], (2, 3), {"i": integers([[0, 1, 2], [0, 0, -3]])}, (13,), (ONE,),
    ),
    "GatherND, shared axes": (
        [node("GatherND", "x i", batch_dims=1)], (2, 3), {"i": integers([[0, 1], [1, -1]])[None]}, (12, 13), (ONE,),
    ),
    "GatherND, more shared axes": (
        [node("GatherND", "x i", batch_dims=2)], (2, 3), {"i": integers([1], [-1])[None]}, (13,), (ONE,),
    ),
    "GatherND behind a transpose": (
        [node("Transpose", "x", "t", perm=[1, 2, 0]), node("GatherND", "t i", "g"), node("Transpose", "g", perm=[1, 0])],
        (2, 3), {"i": integers([0, 1], [1, -1])}, (13,), (FREE, ONE),
    ),
    "Scatter": ([SIN, node("Scatter", "x i s", axis=1)], (3,), {"i": integers([2, 0, 1])}, (9,), (ONE,)),
    "ScatterElements": (
        [SIN, node("ScatterElements", "x i s", axis=-1)], (3,), {"i": integers([2, 0, -2])}, (11, 13, 16, 18), (ONE,),
    ),
    "ScatterElements into a constant": (
        [node("ScatterElements", "c i x", axis=1)], (2,), {"i": integers([3, 0]), "c": weight(1, 4)}, (18,), (ONE,),
    ),
    "ScatterElements of constants": (
        [node("ScatterElements", "x i c", axis=1)], (4,), {"i": integers([3, 0]), "c": weight(1, 2)}, (18,), (ONE,),
    ),
    "ScatterND": (
        [SIN, node("Reshape", "s flat", "f"), node("Gather", "f two", "u"), node("ScatterND", "x i u")], (2, 3),
        {"i": integers([0, 1, 2], [0, -1, 0]), "flat": integers(-1), "two": integers(4, 1)}, (11, 13, 16, 18), (ONE,),
    ),
    "ScatterND of constants": (
        [node("ScatterND", "x i c")], (2, 3), {"i": integers([0, 1]), "c": weight(1, 3)}, (18,), (ONE,),
    ),
    "ScatterND behind a transpose": (
        [node("Transpose", "x", "t", perm=[1, 0]), node("Sin", "t", "s"), node("Gather", "s i", "u", axis=0),
         node("ScatterND", "t j u", "g"), node("Transpose", "g", perm=[1, 0])],
        (4,), {"i": integers(1, 3), "j": integers([0], [-1])}, (13, 18), (FREE, ONE),
    ),
    "Tile": ([node("Tile", "x r")], (2, 3), {"r": integers(1, 2, 3)}, (7, 13), (FREE, ONE)),
    "Tile nothing": ([node("Tile", "x r")], (2, 3), {"r": integers(1, 1, 1)}, (13,), (FREE, ONE)),
    "Trilu": ([node("Trilu", "x")], (3, 4), {}, (14,), (FREE, ONE)),
    "Trilu, lower": ([node("Trilu", "x k", upper=0)], (2, 3, 4), {"k": np.array(1)}, (14,), (FREE, ONE)),
    "Trilu, upper": ([node("Trilu", "x k")], (4, 3), {"k": np.array(-1)}, (14,), (FREE, ONE)),
}  # fmt: skip
TRIED = [(n, o, batch) for n, (*_, opsets, batches) in CASES.items() for o in opsets for batch in batches]


@pytest.mark.parametrize(("name", "opset", "batch"), TRIED)
def test_entries_are_where_onnxruntime_puts_them(name: str, opset: int, batch: Any) -> None:
    nodes, sample, constants, *_ = CASES[name]
    assert_lowers_exactly(make_model(nodes, sample, constants, batch=batch, opset=opset), sample)


def test_every_row_has_a_case() -> None:
    assert set(lowering_indexing.ROWS) <= {n.op_type for nodes, *_ in CASES.values() for n in nodes}


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "Gather outside": ([node("Gather", "x i", axis=1)], {"i": integers(4)}, "outside an axis"),
    "Gather at computed places": (
        [node("ArgMax", "x", "i", axis=1, keepdims=0), node("Gather", "x i", axis=1)], {}, "scores",
    ),
    "GatherElements outside": ([node("GatherElements", "x i", axis=1)], {"i": integers([4])}, "outside an axis"),
    "GatherElements too many": (
        [node("GatherElements", "x i", axis=1)], {"i": integers([0], [0])}, "do not fit a tensor",
    ),
    "GatherND outside": ([node("GatherND", "x i")], {"i": integers([0, 7])}, "outside an axis"),
    "GatherND that shares too much": (
        [node("GatherND", "x i", batch_dims=1)], {"i": integers([0], [1])}, "do not fit a tensor",
    ),
    "ScatterND twice": ([node("ScatterND", "x i c")], {"i": integers([0, 1], [0, 1]), "c": weight(2)}, "several values"),
    "ScatterND added": (
        [node("ScatterND", "x i c", reduction="add")], {"i": integers([0, 1]), "c": weight(1)}, "several values",
    ),
    "ScatterND of another shape": ([node("ScatterND", "x i c")], {"i": integers([0, 1]), "c": weight(3)}, "do not fit"),
    "Tile to nothing": ([node("Tile", "x r")], {"r": integers(1, 0)}, "do not fit"),
    "Tile of rows": ([node("Tile", "x r")], {"r": integers(2, 1)}, "one entry per row|mixes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    nodes, constants, words = REFUSED[name]
    batch = FREE if name == "Tile of rows" else ONE
    with pytest.raises(UnsupportedOperator, match=words):
        lower(make_model(nodes, (4,), constants, batch=batch, opset=18, check=False))
