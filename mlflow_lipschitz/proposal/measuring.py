"""A short audit that judges nothing: the bounds of a sample, for thresholds to be read from."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.intake import TracedModel
from mlflow_lipschitz.pipeline.measure import MeasureOptions, Progress, measure
from mlflow_lipschitz.pipeline.question import question_of
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.policy import AuditPolicy

_LOOSE = 0.5
"""Half of a bound: where the median gap is wider, a smaller radius says more about the model and less about the method."""


@dataclass(frozen=True)
class Measurement:
    """The bounds of every measured row, in how many seconds."""

    table: BoundsTable
    seconds: float

    @property
    def gap(self) -> float:
        """Median relative gap between the proved bound and the largest slope that was met."""
        return float(np.median(self.table.columns["gap"]))

    @property
    def useful(self) -> bool:
        """Whether every row was bounded, and the typical one not too loosely."""
        return bool(np.all(self.table.columns["status"] == "certified")) and self.gap <= _LOOSE


def measured(traced: TracedModel, policy: AuditPolicy, progress: Progress | None = None) -> Measurement:
    """The bounds that an audit under `policy` would find for the rows of `traced`; nothing is judged, kept or logged.

    Raises:
        PolicyError, InvalidData: the policy does not fit model or rows.
    """
    started, rows = time.perf_counter(), traced.rows
    policy.bind(rows.feature_names, traced.entries, fixed=rows.fixed_names, looked_up=rows.looked_up)
    question = question_of(policy, rows, traced.entries)
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        arrays = measure(traced.graph, rows, question, Path(scratch), MeasureOptions(), progress)
    table = BoundsTable.from_columns(*table_columns(rows, question, arrays))
    return Measurement(table, time.perf_counter() - started)
