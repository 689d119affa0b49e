"""Which functionals of the output are asked about, as cotangents."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.errors import UsageError

Outputs = int | Sequence[int] | str | None


def cotangents(size: int, outputs: Outputs, points: int, labels: Any = None) -> tuple[Tensor, tuple[str, ...]]:
    """(1 or points, objectives, size) cotangents, and a name for each objective.

    Args:
        size: number of outputs m.
        outputs: None for all, an index, several indices, or "margin": f_y − f_j for every j ≠ y, in the order of j.
        points: number of points.
        labels: (points,) integers y; only with "margin".

    Raises:
        UsageError: an index out of range, or labels missing or out of range.
    """
    if isinstance(outputs, str):
        if outputs != "margin":
            raise UsageError(f"outputs={outputs!r}: the only name is 'margin'")
        return margins(size, points, labels), tuple(f"margin[{j}]" for j in range(size - 1))
    chosen = _indices(size, outputs)
    if not chosen or any(not 0 <= index < size for index in chosen):
        raise UsageError(f"outputs {outputs!r} are not indices of a model with {size} output(s)")
    return torch.eye(size, dtype=torch.float64)[chosen][None], tuple(f"output[{index}]" for index in chosen)


def _indices(size: int, outputs: Outputs) -> list[int]:
    if outputs is None:
        return list(range(size))
    try:
        return [operator.index(index) for index in np.atleast_1d(np.asarray(outputs)).tolist()]
    except TypeError:
        raise UsageError(f"outputs {outputs!r} are not indices") from None


def margins(size: int, points: int, labels: Any) -> Tensor:
    """(points, size − 1, size) rows e_y − e_j."""
    if size < 2:
        raise UsageError("a margin needs at least two outputs; this model has one")
    y = checked_labels(labels, points, size)
    columns = torch.arange(size - 1).expand(len(y), -1)
    others = columns + (columns >= y[:, None])  # every class but the label, in order
    eye = torch.eye(size, dtype=torch.float64)
    return eye[y][:, None] - eye[others]


def checked_labels(labels: Any, points: int, classes: int) -> Tensor:
    """(points,) class indices.

    Raises:
        UsageError: missing, not one per point, not whole numbers, or outside 0 … classes − 1; names the row.
    """
    if labels is None:
        raise UsageError("labels are needed: the class index of every point")
    values = np.asarray(labels)
    whole = np.issubdtype(values.dtype, np.number) and values.ndim == 1 and bool(np.all(values == np.floor(values)))
    if not whole:
        raise UsageError(f"labels must be a vector of class indices, got {values.dtype} of shape {values.shape}")
    if len(values) != points:
        raise UsageError(f"{len(values)} labels for {points} points")
    bad = np.flatnonzero((values < 0) | (values >= classes))
    if bad.size:
        raise UsageError(f"row {bad[0]}: label {values[bad[0]]} is not a class index in 0 … {classes - 1}")
    return torch.from_numpy(values.astype(np.int64))
