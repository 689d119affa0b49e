"""What a fitted estimator does with its columns: which it computes with, which it looks up, which nothing reads.

The exported model takes all columns it computes with as one tensor `input`, and each column it looks up (categories for a
OneHotEncoder, an OrdinalEncoder, …) as an input of its own, of text or whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from mlflow_lipschitz.errors import UnsupportedOperator, UsageError
from mlflow_lipschitz.row_categories import Category

NUMBERS = "input"
ENCODERS = (OneHotEncoder, OrdinalEncoder)
_TAKES_OTHERS = ("ignore", "use_encoded_value")


@dataclass(frozen=True)
class FittedColumns:
    """The columns an estimator was fitted on, in that order.

    Attributes:
        names: None for an estimator that knows none.
        categories: the columns it looks up.
        unread: positions of columns that nothing reads (a ColumnTransformer drops them). They may hold anything.
    """

    names: tuple[str, ...] | None
    count: int
    categories: tuple[Category, ...] = ()
    unread: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names or tuple(f"x{i}" for i in range(self.count))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Positions of all other columns: those that are computed with, and those that nothing reads."""
        looked_up = {category.position for category in self.categories}
        return tuple(i for i in range(self.count) if i not in looked_up)

    @property
    def inputs(self) -> dict[str, list[int]]:
        """Positions of the columns each input of the exported model takes."""
        inputs = {NUMBERS: list(self.numbers)} if self.numbers else {}
        return inputs | {f"category_{c.position}": [c.position] for c in self.categories}

    def table(self, example: Any) -> pd.DataFrame | np.ndarray:
        """The example in the order of the fit, as the estimator takes it; 32 random rows when it is None.

        Raises:
            UsageError: a frame without one of the columns, another number of columns, or cells that are no numbers.
        """
        if example is None:
            example = self._random()
        elif self.names is not None and hasattr(example, "columns"):
            missing = [name for name in self.names if name not in example.columns]
            if missing:
                raise UsageError(f"the example has no column {missing[0]!r}, which the estimator was fitted with")
            example = example[list(self.names)]
        shape = np.shape(example)
        if len(shape) != 2 or shape[1] != self.count:
            raise UsageError(f"the example has the shape {shape}; the estimator was fitted with {self.count} columns")
        if not self.categories and not self.unread:
            example = _numbers(example)
        return example if self.names is None else pd.DataFrame(example, columns=list(self.names))

    def feeds(self, table: pd.DataFrame | np.ndarray) -> dict[str, np.ndarray]:
        """The rows of a table in the order of the fit, as the exported model takes them; 0 for what nothing reads."""
        frame = pd.DataFrame(table)
        numbers = [
            frame.iloc[:, i].to_numpy(np.float64) if i not in self.unread else np.zeros(len(frame))
            for i in self.numbers
        ]
        feeds = {NUMBERS: np.stack(numbers, axis=1)} if numbers else {}
        return feeds | {f"category_{c.position}": c.encoded(frame.iloc[:, c.position]) for c in self.categories}

    def _random(self) -> Any:
        random = np.random.default_rng(0)
        rows = random.normal(size=(32, self.count))
        if not self.categories:
            return rows
        mixed = pd.DataFrame(rows).astype(object)
        for category in self.categories:
            chosen = random.integers(len(category.values), size=len(rows))
            mixed[category.position] = [category.values[i] for i in chosen]
        return mixed.to_numpy()


def _numbers(example: Any) -> np.ndarray:
    try:
        return np.asarray(example, dtype=float)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the example holds what the estimator cannot compute with: {error}") from error


def fitted_columns(estimator: Any) -> FittedColumns:
    """The columns of a fitted estimator or pipeline.

    Raises:
        UsageError: it is not fitted.
        UnsupportedOperator: a column is both computed with and looked up, or its categories are neither text nor whole.
    """
    count = getattr(estimator, "n_features_in_", None)
    if count is None:
        raise UsageError(f"{type(estimator).__name__} is not fitted: it has no n_features_in_")
    names = getattr(estimator, "feature_names_in_", None)
    columns = FittedColumns(None if names is None else tuple(str(name) for name in names), int(count))
    found: dict[int, Category] = {}
    computed: set[int] = set()
    for position, category in _uses(estimator, range(columns.count)):
        if category is None:
            computed.add(position)
        elif position not in found or found[position].open:
            found[position] = category
    both = sorted(computed & set(found))
    if both:
        raise UnsupportedOperator(
            type(estimator).__name__,
            "estimator",
            reason=f"column {columns.labels[both[0]]!r} is both a number that is computed with and a category",
            remedy="give the model two columns: a number may move, a category does not",
        )
    unread = tuple(i for i in range(columns.count) if i not in computed and i not in found)
    return FittedColumns(columns.names, columns.count, tuple(found[i] for i in sorted(found)), unread)


def _uses(step: Any, columns: Sequence[int]) -> Iterator[tuple[int, Category | None]]:
    """Every use of a column by the first step that reads it: the category it is looked up as, or None for a number."""
    if isinstance(step, Pipeline):
        reads = next((part for _, part in step.steps if not does_nothing(part)), "passthrough")
        yield from _uses(reads, columns)
    elif isinstance(step, ColumnTransformer):
        for _, part, own in step.transformers_:
            if not (isinstance(part, str) and part == "drop"):
                yield from _uses(part, [columns[i] for i in positions(own, step)])
    elif isinstance(step, FeatureUnion):
        for _, part in step.transformer_list:
            yield from _uses(part, columns)
    elif isinstance(step, ENCODERS):
        for position, values in zip(columns, step.categories_, strict=True):
            yield position, _category(step, position, values)
    else:
        yield from ((position, None) for position in columns)


def _category(encoder: Any, position: int, values: np.ndarray) -> Category:
    known = [value.item() if isinstance(value, np.generic) else value for value in values]
    known = [value for value in known if value is not None and value == value]
    accepts_others = encoder.handle_unknown in _TAKES_OTHERS
    if all(isinstance(value, str) for value in known):
        return Category(position, "text", tuple(known), accepts_others)
    if all(isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()) for value in known):
        return Category(position, "whole", tuple(int(value) for value in known), accepts_others)
    raise UnsupportedOperator(
        type(encoder).__name__,
        "estimator",
        reason=f"its categories {known[:5]} are neither all text nor all whole numbers",
        remedy="write the categories as text or as whole numbers",
    )


def does_nothing(step: Any) -> bool:
    """Steps that leave every row as it is that an audit lets pass: rows with missing values are refused before."""
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return True
    if not isinstance(step, SimpleImputer) or step.add_indicator or not pd.isna(step.missing_values):
        return False
    return len(step.statistics_) == step.n_features_in_ and not pd.isna(step.statistics_).any()


def positions(columns: Any, transformer: Any) -> list[int]:
    """The columns that one part of a fitted ColumnTransformer takes, however they were written down, by position."""
    width = int(transformer.n_features_in_)
    names = [str(name) for name in getattr(transformer, "feature_names_in_", ())]
    if isinstance(columns, slice):
        ends = [names.index(end) if isinstance(end, str) else end for end in (columns.start, columns.stop)]
        last = 1 if isinstance(columns.stop, str) else 0  # a slice of names includes its end
        stop = None if ends[1] is None else ends[1] + last
        return list(range(width))[ends[0] : stop : columns.step]
    listed = [columns] if isinstance(columns, (str, int, np.integer)) else list(columns)
    if listed and all(isinstance(column, (bool, np.bool_)) for column in listed):
        return [i for i, chosen in enumerate(listed) if chosen]
    return [names.index(column) if isinstance(column, str) else int(column) % width for column in listed]
