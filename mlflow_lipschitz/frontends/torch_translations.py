"""torch operators whose translation to ONNX by torch's exporter loses precision, or fails: ours, for the exporter's table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnxscript import ir
from onnxscript import opset20 as op


def _scalar_tensor(s: Any, dtype: int = 1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    """A number in its own precision. The exporter's goes through float32, also in models of doubles."""
    return op.Constant(value=ir.tensor(s, dtype=ir.DataType(dtype)))


def _scaled_dot_product_attention(  # noqa: PLR0913 — torch's signature
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale · Q Kᵀ + mask) V for any number of leading axes; the exporter's takes four axes only."""
    if dropout_p:
        raise NotImplementedError("its attention drops entries at random also in evaluation mode")
    rank = len(query.shape)
    number = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        key, value = (_shared(x, query.shape[rank - 3], rank - 3) for x in (key, value))
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, op.Constant(value=ir.tensor(number, dtype=query.dtype))), turned)
    if is_causal:
        scores = op.Add(scores, _mask(np.tri(query.shape[-2], key.shape[-2], dtype=bool), query.dtype))
    if attn_mask is not None:
        scores = _masked(scores, attn_mask, query.dtype)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _conv3d(  # noqa: PLR0913 — torch's signature
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """The exporter's, without a bias, adds zeros of shape (channels, 2), which no Conv takes."""
    strides, before, dilations = (_of_each_axis(v, 3) for v in (stride, padding, dilation))
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return op.Conv(*inputs, strides=strides, pads=[*before, *before], dilations=dilations, group=groups)


def _of_each_axis(setting: int | Sequence[int], axes: int) -> list[int]:
    given = [setting] if isinstance(setting, int) else list(setting)
    return given * axes if len(given) == 1 else given


def _shared(x: Any, heads: int, axis: int) -> Any:
    """Each head repeated for the heads of queries that share it."""
    order = np.repeat(np.arange(x.shape[axis]), heads // x.shape[axis])
    return op.Gather(x, op.Constant(value=ir.tensor(order)), axis=axis)


def _mask(kept: np.ndarray, dtype: ir.DataType) -> Any:
    return op.Constant(value=ir.tensor(np.where(kept, 0.0, -np.inf), dtype=dtype))


def _masked(scores: Any, mask: Any, dtype: ir.DataType) -> Any:
    if mask.dtype != ir.DataType.BOOL:
        return op.Add(scores, mask)
    return op.Where(mask, scores, op.Constant(value=ir.tensor(-math.inf, dtype=dtype)))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scalar_tensor.default: _scalar_tensor,
    torch.ops.aten.conv3d.default: _conv3d,
    torch.ops.aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
}
