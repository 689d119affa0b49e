"""What the names of an ONNX graph stand for while it is lowered: constants and variables, and how a node is refused.

A constant is a NumPy array (floats in float64). A `Variable` is a node of the engine's graph, with the full shape of the
ONNX tensor: ONNX axes are the engine's axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.ops import Concat, Expand, Op, Pad, Reshape, Select, Transpose
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.origins import node_origin

Shape: TypeAlias = tuple[int, ...]

# Scores this far down are attention masks: their exponential is exactly 0 in float32 and float64, whatever is added.
MASKED_BELOW = -1e30


@dataclass(frozen=True)
class Variable:
    """A value that depends on the model's input.

    `masked` is None or a boolean array of the same shape: True where the ONNX value is minus infinity (an attention mask).
    What the engine computes there means nothing; only a softmax may read such a value. A mask may be a finite number: `sunk` is
    the product of what it was scaled by since, for what is left of it must still be as good as minus infinity.
    """

    index: int
    shape: Shape
    masked: np.ndarray | None = field(default=None, compare=False)
    sunk: float = field(default=1.0, compare=False, kw_only=True)


@dataclass(frozen=True)
class Pieces(Variable):
    """A variable that was split into a sequence. ONNX itself lets only sequence operators read one."""

    items: tuple[Variable, ...] = ()


Value: TypeAlias = "np.ndarray | Variable"

BATCH_REMEDY = (
    "every row of a batch must be computed by itself, with the batch as axis 0; export the model so, or with a batch "
    "of fixed length 1"
)
MASK_REMEDY = "add the attention mask to the scores right before the softmax, as exporters of attention do"


def refusal(node: onnx.NodeProto, reason: str, remedy: str = "") -> UnsupportedOperator:
    """The UnsupportedOperator error for `node`, with where it came from in the user's model."""
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return UnsupportedOperator(operator, node_name(node), origin=node_origin(node), reason=reason, remedy=remedy)


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or that of its first output: older exporters name only those."""
    return str(node.name or (node.output[0] if node.output else ""))


def split_mask(constant: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """A constant as its numbers, 0 where it masks, and the mask: True at minus infinity and near it; None where nowhere."""
    masked = np.asarray(constant <= MASKED_BELOW)
    if constant.dtype.kind != "f" or not masked.any():
        return constant, None
    return np.where(masked, 0.0, constant), masked


def mask_after(op: Op, masks: list[np.ndarray | None], shapes: list[Shape]) -> np.ndarray | None:
    """Where the result of a copying op is masked. Raises TypeError when the op computes with what it reads."""
    if all(mask is None for mask in masks):
        return None
    full = [np.zeros(shape, dtype=bool) if mask is None else mask for mask, shape in zip(masks, shapes, strict=True)]
    return _copied(op, full)


def _copied(op: Op, masks: list[np.ndarray]) -> np.ndarray:
    if isinstance(op, Concat):
        return np.concatenate(masks, axis=op.axis)
    if len(masks) != 1:
        raise TypeError(type(op).__name__)
    (mask,) = masks
    if isinstance(op, Reshape):
        return np.reshape(mask, op.shape)
    if isinstance(op, Transpose):
        return np.transpose(mask, op.axes)
    if isinstance(op, Expand):
        return np.broadcast_to(mask, op.shape)
    if isinstance(op, Select):
        return np.take(mask, op.indices, axis=op.axis)
    if isinstance(op, Pad):
        return np.pad(mask, op.padding)
    raise TypeError(type(op).__name__)
