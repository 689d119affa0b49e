"""Powers, quotients, sums, reductions and constant choices against onnxruntime, over operator sets; masks of minus infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import lowering_arithmetic, lowering_choice, lowering_reductions
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.checks import assert_agrees_with_torch
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

RANDOM = np.random.default_rng(19)
Case = tuple[list[Any], tuple[int, ...], dict[str, Any], tuple[int, ...]]


def weight(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


POSITIVE = node("Exp", "x", "p")
SIN = node("Sin", "x", "s")
KEEP = np.array([[True, False, True], [False, False, True]])
MASK = np.where(KEEP, np.float32(0), np.float32(-np.inf))

# name: nodes, sample shape, constants, operator sets
CASES: dict[str, Case] = {
    "Add": ([node("Add", "x c")], (2, 3), {"c": weight(3)}, (7, 13, 14)),
    "Add of itself": ([node("Add", "x x")], (3,), {}, (7, 14)),
    "Sub of itself": ([node("Sub", "x x", "z"), node("Add", "z x")], (3,), {}, (7, 14)),
    "Mul of itself": ([node("Mul", "x x")], (3,), {}, (7, 14)),
    "Mul, broadcast": ([node("ReduceSum", "x", "h", axes=[1], keepdims=1), node("Mul", "x h")], (2, 3), {}, (7, 11)),
    "Div by a variable": ([POSITIVE, SIN, node("Div", "s p")], (2, 3), {}, (7, 13, 14)),
    "Div, broadcast": (
        [POSITIVE, node("ReduceSum", "p", "h", axes=[1], keepdims=1), node("Div", "p h")], (2, 3), {}, (7, 11),
    ),
    "Div of a constant": ([POSITIVE, node("Div", "c p")], (2, 3), {"c": weight(2, 1)}, (7, 14)),
    "Div of one": ([POSITIVE, node("Div", "c p")], (3,), {"c": np.float32(1)}, (7, 14)),
    "Div by a root": ([POSITIVE, node("Sqrt", "p", "r"), node("Div", "x r")], (3,), {}, (7, 14)),
    "Pow two": ([node("Pow", "x c")], (3,), {"c": np.float32(2)}, (7, 12, 13, 15)),
    "Pow three": ([node("Pow", "x c")], (3,), {"c": np.float32(3)}, (7, 15)),
    "Pow three, an integer": ([node("Pow", "x c")], (3,), {"c": np.array(3)}, (12, 13, 15)),
    "Pow one": ([node("Pow", "x c")], (3,), {"c": np.float32(1)}, (7, 15)),
    "Pow zero": ([node("Pow", "x c", "h"), node("Add", "h x")], (3,), {"c": np.float32(0)}, (7, 15)),
    "Pow minus one": ([POSITIVE, node("Pow", "p c")], (3,), {"c": np.float32(-1)}, (7, 15)),
    "Pow minus two": ([POSITIVE, node("Pow", "p c")], (3,), {"c": np.float32(-2)}, (7, 15)),
    "Pow one half": ([POSITIVE, node("Pow", "p c")], (3,), {"c": np.float32(0.5)}, (7, 15)),
    "Pow minus one half": ([POSITIVE, node("Pow", "p c")], (3,), {"c": np.float32(-0.5)}, (7, 15)),
    "Pow of no simple number": ([POSITIVE, node("Pow", "p c")], (3,), {"c": np.float32(1.7)}, (7, 15)),
    "Pow that grows": ([node("Pow", "x c")], (1, 3), {"c": np.full((2, 1), 2, np.float32)}, (7, 15)),
    "Pow of a constant": ([node("Pow", "c x")], (2, 3), {"c": np.abs(weight(3)) + 0.1}, (7, 15)),
    "Pow of variables": ([POSITIVE, node("Pow", "p x")], (3,), {}, (7, 15)),
    "Neg": ([node("Neg", "x")], (3,), {}, (7, 13)),
    "Reciprocal": ([POSITIVE, node("Reciprocal", "p")], (3,), {}, (7, 13)),
    "Sum": ([SIN, node("Sum", "x s c x")], (2, 3), {"c": weight(2, 1)}, (8, 13)),
    "Sum of one": ([node("Sum", "x")], (3,), {}, (7, 13)),
    "Mean": ([SIN, node("Mean", "c x s")], (2, 3), {"c": weight(3)}, (8, 13)),
    "Mean of one": ([node("Mean", "x")], (3,), {}, (7, 13)),
    "Where": ([SIN, node("Where", "k x s")], (2, 3), {"k": KEEP}, (9, 16)),
    "Where, a constant": ([node("Where", "k x c")], (2, 3), {"k": KEEP, "c": weight(3)}, (9, 16)),
    "Where, a constant first": ([node("Where", "k c x")], (2, 3), {"k": KEEP, "c": weight(2, 1)}, (9, 16)),
    "Where, zero": ([node("Where", "k c x")], (2, 3), {"k": KEEP, "c": np.float32(0)}, (9, 16)),
    "Where that grows": ([node("Where", "k x c")], (1, 3), {"k": KEEP, "c": weight(1)}, (9, 16)),
    "Where, always": ([SIN, node("Where", "k x s")], (2, 3), {"k": np.ones((2, 1), bool)}, (9, 16)),
    "Where, never": ([SIN, node("Where", "k s x")], (2, 3), {"k": np.zeros((1, 3), bool)}, (9, 16)),
    "IsNaN": ([node("IsNaN", "x", "n"), node("Where", "n c x")], (2, 3), {"c": np.float32(5)}, (9, 13, 20)),
    "CumSum": ([node("CumSum", "x a")], (2, 3), {"a": np.array(1)}, (11, 14)),
    "CumSum, exclusive": ([node("CumSum", "x a", exclusive=1)], (2, 3), {"a": integers(-1)}, (11, 14)),
    "CumSum, reverse": ([node("CumSum", "x a", reverse=1)], (2, 3), {"a": integers(2)}, (11, 14)),
    "CumSum, both": ([node("CumSum", "x a", reverse=1, exclusive=1)], (4, 3), {"a": integers(1)}, (14,)),
}  # fmt: skip

# Reductions of a positive value, so that each is defined.
for name in sorted(lowering_reductions.ROWS.keys() - {"CumSum"}):
    changed = 13 if name == "ReduceSum" else 18  # from here on the axes are an input
    old = (7, 11) if name == "ReduceSum" else (7, 11, 13)
    for keep in (0, 1):
        attributes = {"keepdims": keep, "axes": [1, -1]}
        CASES[f"{name} {keep}"] = ([POSITIVE, node(name, "p", **attributes)], (2, 3, 4), {}, old)
        CASES[f"{name} of an input {keep}"] = (
            [POSITIVE, node(name, "p a", keepdims=keep)], (2, 3, 4), {"a": integers(-2)}, (changed, 20),
        )  # fmt: skip
    CASES[f"{name} of one axis"] = ([POSITIVE, node(name, "p", axes=[2])], (2, 3, 4), {}, old)
    CASES[f"{name} of a shape"] = (
        [POSITIVE, node("Reshape", "p r", "q"), node(name, "q a", keepdims=0)], (6,),
        {"a": integers(1, 2, 3), "r": integers(-1, 2, 1, 3)}, (changed,),
    )  # fmt: skip
for name in ("ReduceSum", "ReduceMean"):
    CASES[f"{name} of nothing"] = ([node(name, "x", noop_with_empty_axes=1)], (2, 3), {}, (18, 20))
    CASES[f"{name} of nothing, said"] = (
        [node(name, "x a", noop_with_empty_axes=1)], (2, 3), {"a": integers()}, (18, 20),
    )  # fmt: skip

TRIED = [(name, opset) for name, (*_, opsets) in CASES.items() for opset in opsets]


@pytest.mark.parametrize(("name", "opset"), TRIED)
def test_arithmetic_is_what_onnxruntime_computes(name: str, opset: int) -> None:
    nodes, sample, constants, _ = CASES[name]
    assert_lowers_exactly(make_model(nodes, sample, constants, opset=opset), sample)


def test_every_row_has_a_case() -> None:
    rows = {op for module in (lowering_arithmetic, lowering_choice, lowering_reductions) for op in module.ROWS}
    assert rows <= {n.op_type for nodes, *_ in CASES.values() for n in nodes}


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_reduction_of_all_axes_mixes_rows_unless_there_is_one(batch: Any) -> None:
    model = make_model([POSITIVE, node("ReduceL2", "p", name="norm", keepdims=0)], (3,), {}, batch=batch)
    if batch == 1:
        assert lower(model).output_shape == (1,)
        return
    with pytest.raises(UnsupportedOperator, match="mixes the rows") as error:
        lower(model)
    assert error.value.node == "norm"


TORCH: dict[str, tuple[list[Any], dict[str, Any], Any]] = {
    "ReduceL2": ([node("ReduceL2", "x a", keepdims=0)], {"a": integers(1)}, lambda z: z.norm(dim=1)),
    "ReduceLogSumExp": ([node("ReduceLogSumExp", "x a", keepdims=0)], {"a": integers(1)}, lambda z: z.logsumexp(1)),
    "ReduceL1": ([node("ReduceL1", "x a", keepdims=0)], {"a": integers(1)}, lambda z: z.abs().sum(1)),
    "Pow": ([node("Pow", "x c")], {"c": np.float32(3)}, lambda z: z**3),
    "Pow of a constant": ([node("Pow", "c x")], {"c": np.float32(2)}, lambda z: 2.0**z),
    "Div": ([POSITIVE, node("Div", "x p")], {}, lambda z: z / z.exp()),
    "CumSum": ([node("CumSum", "x a")], {"a": integers(1)}, lambda z: z.cumsum(1)),
    "Where": (
        [SIN, node("Where", "k x s")], {"k": KEEP[0]}, lambda z: torch.where(torch.from_numpy(KEEP[0]), z, z.sin()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_values_and_derivatives_in_float64(name: str) -> None:
    nodes, constants, function = TORCH[name]
    assert_agrees_with_torch(make_model(nodes, (3,), constants), (3,), function)


def test_log_sum_exp_of_large_numbers_does_not_overflow() -> None:
    nodes = [node("Add", "x c", "h"), node("ReduceLogSumExp", "h a", keepdims=0)]
    assert_lowers_exactly(make_model(nodes, (3,), {"c": np.float32(5000), "a": integers(1)}), (3,))


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "Div by zero": ([node("Div", "x c")], {"c": np.array([1, 0, 1], np.float32)}, "by zero"),
    "Pow with several exponents": ([node("Pow", "x c")], {"c": np.array([1, 2, 3], np.float32)}, "differ from entry"),
    "Pow of a negative number": ([node("Pow", "c x")], {"c": np.float32(-2)}, "not positive"),
    "Where by the data": (
        [node("Greater", "x c", "k"), node("Where", "k x c")], {"c": np.float32(0)}, "condition on the data",
    ),
    "a reduction of nothing": ([node("ReduceL1", "x", noop_with_empty_axes=1)], {}, "no axis"),
    "a log-sum of nothing": ([node("ReduceLogSumExp", "x", noop_with_empty_axes=1)], {}, "no axis"),
    "axes from the data": ([node("Shape", "x", "n"), node("CumSum", "x x")], {}, "depends on the model's input"),
    "Sub of infinity": ([node("Sub", "x c")], {"c": np.float32(-np.inf)}, "NaN or infinity"),
    "ReduceProd": ([node("ReduceProd", "x a")], {"a": integers(1)}, "no lowering"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    nodes, constants, words = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=words):
        lower(make_model(nodes, (3,), constants, check=False))


# Scores with minus infinity at constant places, on their way to a softmax.
MASKED: dict[str, list[Any]] = {
    "added": [node("Add", "x m", "h")],
    "added from the left": [node("Add", "m x", "h")],
    "subtracted": [node("Sub", "x minus_m", "h")],
    "chosen": [node("Where", "k x lowest", "h")],
    "chosen from the left": [node("Where", "other lowest x", "h")],
    "a large number": [node("Where", "k x large", "h")],
    "with a bias": [node("Add", "x biased", "h")],
    "scaled afterwards": [node("Add", "x m", "a"), node("Div", "a two", "b"), node("Mul", "two b", "h")],
    "more added": [node("Add", "x m", "a"), node("Add", "a bias", "b"), node("Add", "b x", "h")],
    "masked twice": [node("Add", "x m", "a"), node("Add", "a m", "h")],
    "moved": [
        node("Add", "x m", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("Reshape", "b flat", "c"),
        node("Reshape", "c back", "d"), node("Transpose", "d", "e", perm=[0, 2, 1]), node("Identity", "e", "f"),
        node("Unsqueeze", "f one", "g"), node("Squeeze", "g one", "h"),
    ],
    "joined": [node("Add", "x m", "a"), node("Concat", "a x", "b", axis=2), node("Slice", "b zero three two", "h")],
}  # fmt: skip
MASKS = {
    "m": MASK, "minus_m": -MASK, "k": KEEP, "other": ~KEEP, "lowest": np.float32(-np.inf), "large": np.float32(-3.4e38),
    "biased": np.where(KEEP, np.float32(0.5), np.float32(-np.inf)), "bias": weight(2, 3), "two": np.float32(2),
    "flat": integers(-1, 6), "back": integers(-1, 3, 2), "one": integers(1), "zero": integers(0), "three": integers(4),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_masked_scores_reach_the_softmax_and_not_the_arithmetic(name: str) -> None:
    constants = {**MASKS, "two": integers(2)} if name == "joined" else MASKS
    model = make_model([*MASKED[name], node("Softmax", "h", axis=2)], (2, 3), constants, opset=18, check=False)
    assert_lowers_exactly(model, (2, 3))


def test_no_constant_of_a_masked_model_is_infinite() -> None:
    nodes = [node("Add", "x m", "h"), node("Softmax", "h", axis=2)]
    for part in lower(make_model(nodes, (2, 3), MASKS)).nodes:
        constants = (getattr(part.op, name, None) for name in ("scale", "shift", "weight", "bias"))
        assert all(np.isfinite(constant).all() for constant in constants if constant is not None)


@pytest.mark.parametrize(
    "bad",
    [
        node("Relu", "h"), node("Mul", "h x"), node("Mul", "h tiny"), node("Mul", "h minus"), node("ReduceSum", "h a"),
        node("Max", "h x"), node("Sub", "x h"), node("Identity", "h"), node("IsNaN", "h"),
    ],
    ids=lambda bad: f"{bad.op_type} {' '.join(bad.input)}",
)  # fmt: skip
def test_nothing_else_computes_with_masked_scores(bad: Any) -> None:
    constants = {**MASKS, "tiny": np.float32(1e-20), "minus": np.float32(-1), "a": integers(1)}
    model = make_model([node("Add", "x m", "h"), bad], (2, 3), constants, opset=18, check=False)
    with pytest.raises(UnsupportedOperator, match=r"minus infinity|masked scores|scales a mask down"):
        lower(model)
