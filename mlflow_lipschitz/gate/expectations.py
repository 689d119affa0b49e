"""The policy as a great_expectations suite, evaluated. The only module that imports great_expectations.

great_expectations declares, evaluates and serializes; it never decides. It passes on NaN, on empty tables and on checks
it could not load, so `verdict` compares every answer given here with our own computation. Class names end up as types
in suite JSON and are permanent.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.compatibility import pydantic
from great_expectations.data_context.data_context.context_factory import project_manager
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.exceptions import DataContextError
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import (
    ColumnAggregateExpectation,
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    Expectation,
)
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_value,
)
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    ColumnPairMapMetricProvider,
    column_condition_partial,
    column_pair_condition_partial,
)

from mlflow_lipschitz.errors import PolicyError, PolicyIssue
from mlflow_lipschitz.gate.answers import Answer, answer_of, without_ids
from mlflow_lipschitz.gate.declarations import Declaration
from mlflow_lipschitz.gate.figures import column_figure, is_within, regression_limit
from mlflow_lipschitz.gate.table_io import strict_json

_RESULT_FORMAT = {"result_format": "SUMMARY", "unexpected_index_column_names": ["point_id"]}


class _AtMost(ColumnMapMetricProvider):
    # Without this, NaN rows would be dropped before they are judged, and a table of NaN would pass.
    filter_column_isnull = False
    condition_metric_name = "column_values.lipschitz_at_most"
    condition_value_keys = ("max_value",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, max_value: float, **_: Any) -> pd.Series:
        return column <= max_value


class _AtLeast(ColumnMapMetricProvider):
    filter_column_isnull = False
    condition_metric_name = "column_values.lipschitz_at_least"
    condition_value_keys = ("min_value",)

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, min_value: float, **_: Any) -> pd.Series:
        return column >= min_value


class _MovesOneWay(ColumnPairMapMetricProvider):
    condition_metric_name = "column_pair_values.lipschitz_moves_one_way"
    condition_domain_keys = (
        "batch_id", "table", "column_A", "column_B", "row_condition", "condition_parser", "ignore_row_if",
    )  # fmt: skip
    condition_value_keys = ("direction",)

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: pd.Series, column_B: pd.Series, direction: str, **_: Any) -> pd.Series:
        return (column_A == (1 if direction == "increasing" else -1)) | (column_B == 0)


class _Figure(ColumnAggregateMetricProvider):
    metric_name = "column.lipschitz_figure"
    value_keys = ("figure",)
    filter_column_isnull = False

    @column_aggregate_value(engine=PandasExecutionEngine, filter_column_isnull=False)
    def _pandas(cls, column: pd.Series, figure: str, **_: Any) -> float:
        return column_figure(figure, np.asarray(column))


def _finite(value: float | None) -> float | None:
    # great_expectations would accept a NaN threshold and write it down as null.
    if value is not None and not math.isfinite(value):
        raise ValueError(f"must be finite, not {value}")
    return value


class _RowExpectation(ColumnMapExpectation):
    """Base of the checks made row by row. `mostly` has no default: a field equal to its default vanishes from JSON."""

    mostly: float

    _check_finite = pydantic.validator("mostly", "max_value", "min_value", allow_reuse=True, check_fields=False)(
        _finite
    )


class ExpectCertifiedLipschitzToBeAtMost(_RowExpectation):
    """Expect the certified Lipschitz upper bound to be at most max_value."""

    max_value: float
    map_metric: ClassVar[str] = "column_values.lipschitz_at_most"
    success_keys: ClassVar[tuple[str, ...]] = ("max_value", "mostly")


class ExpectCertifiedRadiusToBeAtLeast(_RowExpectation):
    """Expect the certified radius to be at least min_value."""

    min_value: float
    map_metric: ClassVar[str] = "column_values.lipschitz_at_least"
    success_keys: ClassVar[tuple[str, ...]] = ("min_value", "mostly")


class ExpectCertifiedSensitivityToBeAtMost(_RowExpectation):
    """Expect the certified bound on one feature's derivative to be at most max_value."""

    max_value: float
    map_metric: ClassVar[str] = "column_values.lipschitz_at_most"
    success_keys: ClassVar[tuple[str, ...]] = ("max_value", "mostly")


class ExpectFeatureToBeMonotone(ColumnPairMapExpectation):
    """Expect the output to be proved to move in one direction: sign in column_A, or a zero bound in column_B."""

    mostly: float
    direction: str
    ignore_row_if: str
    map_metric: ClassVar[str] = "column_pair_values.lipschitz_moves_one_way"
    domain_keys: ClassVar[tuple[str, ...]] = (
        "batch_id", "column_A", "column_B", "row_condition", "condition_parser", "ignore_row_if",
    )  # fmt: skip
    success_keys: ClassVar[tuple[str, ...]] = ("direction", "mostly")

    _check_finite = pydantic.validator("mostly", allow_reuse=True)(_finite)


class _FigureExpectation(ColumnAggregateExpectation):
    """Base of the checks made on one figure of a column."""

    figure: str
    metric_dependencies: ClassVar[tuple[str, ...]] = ("column.lipschitz_figure",)
    success_keys: ClassVar[tuple[str, ...]] = ("figure",)

    _check_finite = pydantic.validator(
        "min_value", "max_value", "seconds_total", "baseline", "rel_tol", allow_reuse=True, check_fields=False
    )(_finite)

    def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
        observed = float(metrics["column.lipschitz_figure"])
        return {"success": bool(self._meets(observed)), "result": {"observed_value": observed}}

    @abstractmethod
    def _meets(self, observed: float) -> bool: ...


class ExpectCertifiedFractionToBeAtLeast(_FigureExpectation):
    """Expect the fraction of rows with status certified to be at least min_value."""

    min_value: float

    def _meets(self, observed: float) -> bool:
        return observed >= self.min_value


class ExpectAuditTimeToBeAtMost(_FigureExpectation):
    """Expect the audit's duration (the rows' sum where seconds_total was not measured) to be at most max_value."""

    max_value: float
    seconds_total: float | None

    def _meets(self, observed: float) -> bool:
        return (observed if self.seconds_total is None else self.seconds_total) <= self.max_value


class ExpectNoRegressionAgainst(_FigureExpectation):
    """Expect a figure not to be worse than the baseline's by more than rel_tol."""

    metric: str
    baseline: float
    rel_tol: float

    def _meets(self, observed: float) -> bool:
        return is_within(self.metric, observed, regression_limit(self.metric, self.baseline, self.rel_tol))


# Everything a suite may hold. Built-in expectations other than the row count are left out: they skip NaN.
EXPECTATIONS: Mapping[str, type[Expectation]] = {
    kind.expectation_type: kind
    for kind in (
        ExpectCertifiedLipschitzToBeAtMost,
        ExpectCertifiedRadiusToBeAtLeast,
        ExpectCertifiedSensitivityToBeAtMost,
        ExpectFeatureToBeMonotone,
        ExpectCertifiedFractionToBeAtLeast,
        ExpectAuditTimeToBeAtMost,
        ExpectNoRegressionAgainst,
        gx.expectations.ExpectTableRowCountToBeBetween,
    )
}


def build_suite(name: str, declarations: Sequence[Declaration]) -> gx.ExpectationSuite:
    """One expectation per declaration, joined by `meta.check_id`."""
    return gx.ExpectationSuite(
        name=name,
        expectations=[
            EXPECTATIONS[d.type](**d.kwargs, severity=d.severity, meta={"check_id": d.check_id, "policy_line": d.line})
            for d in declarations
        ],
    )


def suite_to_json(suite: gx.ExpectationSuite) -> dict[str, Any]:
    """The suite as strict JSON, the same for the same suite."""
    content = suite.to_json_dict()
    content["meta"] = {"great_expectations_version": gx.__version__}
    content["expectations"] = sorted(content["expectations"], key=lambda item: item["meta"]["check_id"])
    return without_ids(strict_json(content))


def load_suite(content: Mapping[str, Any]) -> gx.ExpectationSuite:
    """The suite that `suite_to_json` wrote down.

    Raises:
        PolicyError: a check would be lost or changed by loading, which great_expectations does not report.
    """
    items = content.get("expectations")
    if not isinstance(items, list):
        raise PolicyError([PolicyIssue(0, "expectations", "must be a list")], "suite")
    unknown = sorted({str(item.get("type")) for item in items} - set(EXPECTATIONS))
    if unknown:
        raise PolicyError([PolicyIssue(0, kind, "unknown expectation type") for kind in unknown], "suite")
    suite = gx.ExpectationSuite(name=content["name"], expectations=[dict(item) for item in items])
    if len(suite.expectations) != len(items) or suite_to_json(suite)["expectations"] != without_ids(items):
        raise PolicyError([PolicyIssue(0, "expectations", "loading the suite changed its checks")], "suite")
    return suite


def evaluate(suite: gx.ExpectationSuite, frame: pd.DataFrame) -> tuple[tuple[Answer, ...], dict[str, Any]]:
    """Evaluate the suite on the frame of a bounds table.

    Returns:
        the answers, in no particular order, and the whole validation result as strict JSON.
    """
    with _own_context() as context:
        source = context.data_sources.add_pandas("bounds")
        batch = source.add_dataframe_asset("table").add_batch_definition_whole_dataframe("all")
        result = batch.get_batch({"dataframe": frame}).validate(suite, result_format=_RESULT_FORMAT)
        content = strict_json(result.to_json_dict())
    return tuple(answer_of(item) for item in result.results), without_ids(content)


_LOCK = threading.Lock()


@contextmanager
def _own_context() -> Iterator[Any]:
    """A context nobody else sees: one shared by threads hands them each other's tables. Creating it replaces the
    process-wide project, which belongs to the user and is put back."""
    with _LOCK:
        try:
            project = project_manager._project
        except DataContextError:
            project = None
        try:
            context = gx.get_context(mode="ephemeral")
            context.variables.progress_bars = ProgressBarsConfig(globally=False)
            yield context
        finally:
            project_manager.set_project(project)
