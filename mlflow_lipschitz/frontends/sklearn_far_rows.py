"""Rows far outside the example: an option that a converter drops (clipping, a floor) shows there, and only there.

A region that is certified may well reach beyond the rows that a model was fitted on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mlflow_lipschitz.frontends.sklearn_columns import FittedColumns

_ROWS = 64
_WIDER = (2.0, 10.0)  # times the range of the example, around its middle
# Of the largest answer to such rows: what is far from where it was fitted may cancel, and a dropped option is far larger.
_SHARE = 1e-7

Answers = TypeVar("Answers")


def answered_far_away(
    columns: FittedColumns, example: pd.DataFrame | np.ndarray, ask: Callable[[Any], Answers]
) -> Iterator[tuple[pd.DataFrame | np.ndarray, Answers]]:
    """Tables of far rows with what `ask` answers; those it refuses (negative numbers, say) are tried without their signs."""
    for table in _far_tables(columns, example):
        for rows in (table, _without_signs(columns, table)):
            try:
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    answers = ask(rows)
            except ValueError:  # how scikit-learn says that an estimator has no answer to such rows
                continue
            yield rows, answers
            break


def close_far_away(own: np.ndarray, expected: np.ndarray, absolute: float = 1e-9) -> bool:
    """Whether two programs answer alike, (rows, …), wherever the second one's answer is finite."""
    own, expected = (np.reshape(answer, (len(expected), -1)).astype(np.float64) for answer in (own, expected))
    if own.shape != expected.shape:
        return False
    finite = np.isfinite(expected)
    size = np.abs(np.where(finite, expected, 0.0)).max(axis=0, initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool(np.all((np.abs(own - expected) <= absolute + _SHARE * size)[finite]))


def _far_tables(columns: FittedColumns, example: pd.DataFrame | np.ndarray) -> Iterator[pd.DataFrame | np.ndarray]:
    """The example with wider and wider columns of numbers, and with columns around 0; its categories stay."""
    frame, random = pd.DataFrame(example), np.random.default_rng(0)
    repeated = frame.iloc[np.resize(np.arange(len(frame)), _ROWS)].reset_index(drop=True)
    for factor in (*_WIDER, None):
        cells = {}
        for position in range(columns.count):
            column = repeated.iloc[:, position]
            if position in columns.numbers and position not in columns.unread and column.dtype != bool:
                numbers = column.to_numpy(np.float64)
                middle, half = (numbers.max() + numbers.min()) / 2, (numbers.max() - numbers.min()) / 2
                around = (
                    middle + factor * (half or abs(middle) or 1.0) * random.uniform(-1, 1, _ROWS) if factor else None
                )
                column = pd.Series(random.normal(size=_ROWS) if around is None else around)
            cells[position] = column
        yield _like(columns, pd.DataFrame(cells))


def _without_signs(columns: FittedColumns, table: pd.DataFrame | np.ndarray) -> pd.DataFrame | np.ndarray:
    frame = pd.DataFrame(table)
    positive = {
        i: frame.iloc[:, i].abs() if frame.iloc[:, i].dtype.kind == "f" else frame.iloc[:, i]
        for i in range(columns.count)
    }
    return _like(columns, pd.DataFrame(positive))


def _like(columns: FittedColumns, frame: pd.DataFrame) -> pd.DataFrame | np.ndarray:
    if columns.names is None:
        return frame.to_numpy()
    return frame.set_axis(list(columns.names), axis=1)
