"""A copy of a fitted estimator that skl2onnx exports as what it computes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from mlflow_lipschitz.frontends.sklearn_columns import ENCODERS, FittedColumns, does_nothing, positions


class ColumnOrder(TransformerMixin, BaseEstimator):
    """Takes its columns in another order. Stands where skl2onnx forgets the order; see `exportable`."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self.order = order


def exportable(estimator: Any, columns: FittedColumns) -> Any:
    """A copy that skl2onnx exports as what it computes.

    - Column transformers know their columns by position, in the order of the exported inputs: numbers first.
    - skl2onnx hands a part that lists as many columns as there are the whole tensor as it stands, whatever order the list
      asks for: where a list is not in ascending order, a step of our own puts its columns in order.
    - Steps that do nothing are left out: the operator for missing values exists in no double precision.
    """
    order = {
        position: new for new, position in enumerate((*columns.numbers, *(c.position for c in columns.categories)))
    }
    return _prepared(copy.deepcopy(estimator), order, len(columns.numbers))


def _prepared(step: Any, order: dict[int, int] | None, numbers: int) -> Any:
    """The step with new column positions (None: those it has), of which the first `numbers` are in one tensor."""
    if isinstance(step, Pipeline):
        kept = [(name, part) for name, part in step.steps[:-1] if not does_nothing(part)] + step.steps[-1:]
        first, rest = kept[0], kept[1:]
        made = [(first[0], _prepared(first[1], order, numbers))]
        made += [(name, _prepared(part, None, 0)) for name, part in rest]
        # skl2onnx looks at the first step only: of a pipeline inside a pipeline it would not see the encoder.
        flat = [
            inner for name, part in made for inner in (part.steps if isinstance(part, Pipeline) else [(name, part)])
        ]
        step.steps = [(name, part) for name, part in flat if not does_nothing(part)]
        return step if step.steps else "passthrough"
    if isinstance(step, FeatureUnion):
        step.transformer_list = [(name, _prepared(part, order, numbers)) for name, part in step.transformer_list]
    elif isinstance(step, ColumnTransformer):
        if order is None:
            return _as_union(step)
        return _by_column(step, order, numbers)
    elif isinstance(step, ENCODERS):
        return _in_doubles(step)
    return "passthrough" if does_nothing(step) else step


def _in_doubles(encoder: Any) -> Any:
    """skl2onnx gives encodings in single precision, and everything behind them: scalers, coefficients."""
    from skl2onnx.sklapi import CastTransformer

    return Pipeline([("encode", encoder), ("real", CastTransformer(dtype=np.float64))])


def _as_union(transformer: ColumnTransformer) -> Any:
    """Of a tensor whose width skl2onnx does not know yet, it cannot take columns; a union of reordered columns it can."""
    parts = []
    for name, step, own in transformer.transformers_:
        taken = positions(own, transformer)
        if taken and not (isinstance(step, str) and step == "drop"):
            step = _prepared(step, None, 0)
            rest = [] if isinstance(step, str) else [("then", step)]
            parts.append((name, Pipeline([("order", ColumnOrder(tuple(taken))), *rest])))
    return FeatureUnion(parts, transformer_weights=transformer.transformer_weights)


def _by_column(transformer: ColumnTransformer, order: dict[int, int], numbers: int) -> Any:
    """Parts that choose columns of their own choose them from all: skl2onnx loses count of columns it has chosen once."""
    if not any(_reads_by_column(step) for _, step, _ in transformer.transformers_):
        transformer.transformers_ = [
            _prepared_part(part, transformer, order, numbers) for part in transformer.transformers_
        ]
        return transformer
    parts = []
    for part in transformer.transformers_:
        name, step, own = part
        if _reads_by_column(step):
            chosen = {i: order[position] for i, position in enumerate(positions(own, transformer))}
            parts.append((name, _prepared(step, chosen, numbers)))
        elif not (isinstance(step, str) and step == "drop"):
            alone = copy.copy(transformer)
            alone.transformers_, alone.transformer_weights = [_prepared_part(part, transformer, order, numbers)], None
            parts.append((name, alone))
    return FeatureUnion(parts, transformer_weights=transformer.transformer_weights)


def _prepared_part(
    part: tuple[str, Any, Any], transformer: Any, order: dict[int, int], numbers: int
) -> tuple[str, Any, list[int]]:
    name, step, own = part
    taken = [order[i] for i in positions(own, transformer)]
    if isinstance(step, str) and step == "drop":
        return name, step, taken
    ascending, step = sorted(set(taken)), _prepared(step, None, 0)
    if taken == ascending or any(position >= numbers for position in taken):
        return name, step, taken  # looked-up columns have an input each and keep their order
    ordered = [("order", ColumnOrder(tuple(ascending.index(position) for position in taken)))]
    return name, Pipeline(ordered + ([] if isinstance(step, str) else [("then", step)])), ascending


def _reads_by_column(step: Any) -> bool:
    if isinstance(step, Pipeline):
        step = next((part for _, part in step.steps if not does_nothing(part)), None)
    return isinstance(step, ColumnTransformer)
