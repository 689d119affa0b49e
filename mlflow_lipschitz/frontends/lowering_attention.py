"""Lowering of ONNX `Attention` (opset 23 and later): softmax(scale · Q Kᵀ + mask) V for every head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import MASKED_BELOW, Call, Shape, Value, Variable
from mlflow_lipschitz.frontends.lowering_softmax import softmax
from mlflow_lipschitz.frontends.matrix_products import contract, reshaped, swapped

MASK, PAST_KEY, PAST_VALUE, LENGTHS = 3, 4, 5, 6  # positions of the optional inputs


def lower_attention(call: Call) -> tuple[Value, ...]:
    """Y, the keys and values as a cache would hold them, and the scores at the stage that qk_matmul_output_mode names."""
    if any(call.input(position) is not None for position in (PAST_KEY, PAST_VALUE, LENGTHS)):
        call.refuse("it reads a cache of keys and values", "export the model without a cache")
    query, key, value = (_heads(call, position) for position in range(3))
    scale = float(call.attribute("scale", 1.0 / math.sqrt(query.shape[-1])))
    products = contract(call, _times(call, query, scale), _shared(call, key, query.shape[1]))
    capped = _capped(call, products, call.real("softcap", 0.0))
    scores = _masked(call, capped)
    shares = softmax(call, scores, 3)
    heads = contract(call, shares, swapped(call, _shared(call, value, query.shape[1])))
    stages = (products, capped, scores, shares)
    return _joined(call, heads), key, value, stages[int(call.attribute("qk_matmul_output_mode", 0))]


def _heads(call: Call, position: int) -> Value:
    """Queries, keys or values as (batch, heads, tokens, entries)."""
    x = call.input(position)
    if x is None:
        call.refuse("it needs queries, keys and values")
    if len(x.shape) == 4:
        return x
    heads = int(call.attribute("q_num_heads" if position == 0 else "kv_num_heads", 0))
    if len(x.shape) != 3 or heads < 1 or x.shape[2] % heads:
        call.refuse(f"queries, keys or values of shape {x.shape} do not fit {heads} heads")
    batch, tokens, width = x.shape
    return _transposed(call, reshaped(call, x, (batch, tokens, heads, width // heads)))


def _transposed(call: Call, x: Value) -> Value:
    """Heads and tokens exchanged."""
    return call.transpose(x, (0, 2, 1, 3)) if isinstance(x, Variable) else np.transpose(x, (0, 2, 1, 3))


def _shared(call: Call, x: Value, heads: int) -> Value:
    """Keys or values with each of their heads repeated for the heads of queries that share it."""
    own = x.shape[1]
    if own == 0 or heads % own:
        call.refuse(f"{heads} heads of queries cannot share {own} heads of keys and values")
    order = [int(i) for i in np.repeat(np.arange(own), heads // own)]
    return call.select(x, 1, order) if isinstance(x, Variable) else np.take(x, order, axis=1)


def _times(call: Call, x: Value, factor: float) -> Value:
    return call.scale_shift(x, np.array(factor), None) if isinstance(x, Variable) else factor * x


def _capped(call: Call, scores: Value, cap: float) -> Value:
    if cap == 0.0:
        return scores
    if not isinstance(scores, Variable):
        return np.asarray(cap * np.tanh(scores / cap))
    part = call.scale_shift(scores, np.array(1.0 / cap), None)
    return _times(call, call.curve("tanh", part), cap)


def _masked(call: Call, scores: Value) -> Value:
    """The scores plus the mask: entries that no query may attend to are masked, they never enter the arithmetic."""
    mask = call.input(MASK)
    if isinstance(mask, Variable):
        scores, mask = _with_variable_mask(call, scores, mask), None
    shift, kept = _constant_mask(call, mask, scores.shape)
    kept = kept & _window(call, scores.shape)
    if not isinstance(scores, Variable):
        return np.where(kept, scores + shift, -np.inf)
    shifted = call.scale_shift(scores, None, shift) if shift.any() else scores
    return shifted if kept.all() else replace(shifted, masked=~kept)


def _with_variable_mask(call: Call, scores: Value, mask: Variable) -> Variable:
    if call.broadcast(mask.shape, scores.shape) != scores.shape:
        call.refuse(f"a mask of shape {mask.shape} does not fit scores of shape {scores.shape}")
    return call.add(scores, mask) if isinstance(scores, Variable) else call.scale_shift(mask, None, scores)


def _constant_mask(call: Call, mask: np.ndarray | None, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """What a constant mask adds to the scores, and where it keeps them. A mask of too few keys keeps none of the others."""
    if mask is None:
        return np.zeros(()), np.ones(shape, dtype=bool)
    absent = shape[-1] - mask.shape[-1] if mask.ndim and mask.shape[-1] > 1 else 0
    kept = mask if mask.dtype == bool else mask > MASKED_BELOW
    shift = np.where(kept, 0.0 if mask.dtype == bool else mask, 0.0)
    if absent > 0:
        padding = [(0, 0)] * (mask.ndim - 1) + [(0, absent)]
        kept, shift = np.pad(kept, padding), np.pad(shift, padding)
    if call.broadcast(kept.shape, shape) != shape:
        call.refuse(f"a mask of shape {mask.shape} does not fit scores of shape {shape}")
    return np.broadcast_to(shift, shape), np.broadcast_to(kept, shape)


def _window(call: Call, shape: Shape) -> np.ndarray:
    """Which keys a query may attend to by its position: those before it, or those in a window around it."""
    ahead = np.arange(shape[-1])[None, :] - np.arange(shape[-2])[:, None]
    left, right = int(call.attribute("left_window_size", -1)), int(call.attribute("right_window_size", -1))
    kept = np.ones_like(ahead, dtype=bool)
    if call.attribute("is_causal", 0):
        kept &= ahead <= 0
    if left >= 0:
        kept &= ahead >= -left
    if right >= 0:
        kept &= ahead <= right
    return kept


def _joined(call: Call, heads: Value) -> Value:
    """The heads side by side again, where the inputs came so."""
    first = call.input(0)
    assert first is not None
    if len(first.shape) == 4:
        return heads
    batch, count, tokens, width = heads.shape
    return reshaped(call, _transposed(call, heads), (batch, tokens, count * width))


ROWS: dict[str, Callable[[Call], tuple[Value, ...]]] = {"Attention": lower_attention}
