"""Columns whose values a model looks up instead of computing with them: categories, codes, yes and no.

Such a value does not move: between "east" and "west" there is nothing a bound could speak of. It is checked like every other
cell, kept as it is, and handed to the model's own encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import InvalidData

_SHOWN = 8


@dataclass(frozen=True)
class Category:
    """One looked-up column of a model.

    Attributes:
        position: of the column among the model's columns.
        kind: "text", or "whole" for whole numbers and booleans.
        values: those the model was fitted on; empty where that is not known.
        open: whether the model also takes values it was not fitted on.
    """

    position: int
    kind: Literal["text", "whole"]
    values: tuple[Any, ...] = ()
    open: bool = True

    def encoded(self, column: Any) -> np.ndarray:
        """The column as an ONNX input takes it, (rows, 1): text as objects, whole numbers as int64."""
        cells = np.asarray(column, dtype=object if self.kind == "text" else np.int64)
        return cells.reshape(-1, 1)


@dataclass(frozen=True)
class Layout:
    """What a model does with its columns, as far as rows have to know it before the model is run.

    Attributes:
        names: of all columns, where the model itself names them.
        categories: the columns that it looks up.
        unread: positions of the columns that nothing reads, and that may hold anything.
    """

    names: tuple[str, ...] = ()
    categories: tuple[Category, ...] = ()
    unread: tuple[int, ...] = ()

    @property
    def numbers_only(self) -> bool:
        return not self.categories and not self.unread

    def text_columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Which of the columns, named in the model's order, hold text: a file without types must not guess numbers."""
        positions = [category.position for category in self.categories if category.kind == "text"]
        return tuple(names[position] for position in positions if position < len(names))


def checked_categories(column: pd.Series, category: Category, ids: np.ndarray) -> pd.Series:
    """The column as plain Python values. Raises InvalidData for the first cell the model's encoder would not take."""
    for where, cell in zip(ids, column, strict=True):
        problem = _problem(cell, category)
        if problem:
            raise InvalidData(f"row {where}, column {column.name!r}: {problem}")
    return column.astype(object) if category.kind == "text" else column


def _problem(cell: Any, category: Category) -> str:
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, (float, np.floating)) and cell != cell):
        return "the category is missing"
    if category.kind == "text" and not isinstance(cell, str):
        return f"{cell!r} is not text, and the model was fitted on text here"
    if category.kind == "whole" and not _is_whole(cell):
        return f"{cell!r} is not a whole number, and the model looks whole numbers up here"
    if not category.open and cell not in category.values:
        known = ", ".join(map(repr, category.values[:_SHOWN])) + (", …" if len(category.values) > _SHOWN else "")
        return f"{cell!r} is none of the categories the model was fitted on: {known}"
    return ""


def _is_whole(cell: Any) -> bool:
    if isinstance(cell, (bool, np.bool_, int, np.integer)):
        return -(2**63) <= int(cell) < 2**63
    return isinstance(cell, (float, np.floating)) and float(cell).is_integer() and abs(float(cell)) < 2.0**63
