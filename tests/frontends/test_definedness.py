"""Asking whether a value is a number is a choice, unless nothing behind the value can be anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import assert_lowers_exactly, make_model, node

CONSTANTS = {
    "half": np.float32(0.5), "cube": np.float32(3), "tiny": np.float32(1e-3), "zero": np.float32(0),
    "minus": np.float32(-1), "two": np.float32(2), "axis": np.array([1]), "w": np.eye(3, dtype=np.float32),
}  # fmt: skip
ASKED = [node("IsNaN", "v", "n"), node("Where", "n two x")]

MAY_BE_NONE = {
    "a logarithm": [node("Log", "x", "v")],
    "a logarithm of what may be 0": [node("Relu", "x", "r"), node("Log", "r", "v")],
    "a root": [node("Sqrt", "x", "v")],
    "a root of a difference": [node("Abs", "x", "a"), node("Add", "a minus", "b"), node("Sqrt", "b", "v")],
    "a power": [node("Pow", "x half", "v")],
    "a quotient": [node("Div", "x x", "v")],
    "a quotient by what may be 0": [node("Abs", "x", "a"), node("Div", "x a", "v")],
    "a norm that may be 0": [node("LpNormalization", "x", "v", axis=1, p=2)],
    "far behind": [node("Log", "x", "l"), node("Tanh", "l", "t"), node("MatMul", "t w", "v")],
}  # fmt: skip
ALWAYS_ONE = {
    "a curve": [node("Tanh", "x", "v")],
    "a logarithm of a positive number": [node("Mul", "x x", "s"), node("Add", "s tiny", "p"), node("Log", "p", "v")],
    "a root": [node("Abs", "x", "a"), node("Sqrt", "a", "v")],
    "a whole power": [node("Pow", "x cube", "v")],
    "a standard deviation": [
        node("ReduceMean", "x", "m", axes=[1]), node("Sub", "x m", "d"), node("Mul", "d d", "s"),
        node("ReduceMean", "s", "var", axes=[1]), node("Add", "var tiny", "p"), node("Sqrt", "p", "q"), node("Div", "d q", "v"),
    ],
    "a softmax": [node("Softmax", "x", "v", axis=-1)],
    "a logarithm of a softmax": [node("LogSoftmax", "x", "v", axis=-1)],
    "a quotient by an exponential": [node("Exp", "x", "e"), node("Div", "x e", "v")],
}  # fmt: skip


@pytest.mark.parametrize("name", MAY_BE_NONE)
def test_what_may_be_no_number(name: str) -> None:
    with pytest.raises(UnsupportedOperator, match="may be no number") as error:
        lower(make_model([*MAY_BE_NONE[name], *ASKED], (3,), CONSTANTS, opset=17))
    assert error.value.operator == "IsNaN"


@pytest.mark.parametrize("name", ALWAYS_ONE)
def test_what_is_always_a_number(name: str) -> None:
    assert_lowers_exactly(make_model([*ALWAYS_ONE[name], *ASKED], (3,), CONSTANTS, opset=17), (3,))


class Block(torch.nn.Module):
    """An attention layer behind a normalization, as torch exports it with a boolean mask: with a question in between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = torch.nn.LayerNorm(4), torch.nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.norm(x)).chunk(3, -1)
        mask = torch.ones(3, 3, dtype=torch.bool).tril()
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).flatten(1)


def test_attention_behind_a_normalization() -> None:
    torch.manual_seed(0)
    assert trace(Block(), torch.randn(2, 3, 4)).output_shape == (12,)


def test_a_sum_that_skips_what_is_no_number() -> None:
    class Skips(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.nansum(torch.log(x), 1, keepdim=True)

    with pytest.raises(UnsupportedOperator, match="IsNaN"):
        trace(Skips(), torch.rand(4, 3) + 0.1)
