"""What a report shows beyond the bounds table, as plain values: each figure, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow_lipschitz.certify.layers import Layer

PROVED, OPEN, BROKEN = 0, 1, 2
"""What is known of a row's direction in one feature: proved as asked, not decided, a wrong direction met."""


@dataclass(frozen=True)
class Absent:
    """There is no such figure, and why."""

    reason: str


@dataclass(frozen=True)
class RadiusCurve:
    """For how many rows the decision is certified within each radius.

    Attributes:
        radii: (n,) rising, in units of the perturbation.
        certified: (n,) fraction of all rows whose decision is proved not to change within the radius.
        right: (n,) fraction whose decision is proved not to change and is right; None where no labels are known.
        accuracy: fraction of the rows decided rightly, without any perturbation.
        labels: which column the labels are from, or why there are none.
    """

    radii: np.ndarray
    certified: np.ndarray
    right: np.ndarray | None
    accuracy: float | None
    labels: str


@dataclass(frozen=True)
class Response:
    """How the output answers to one feature with a `monotone` check, all others kept: computed values, no bounds.

    Attributes:
        grid: (n,) values of the feature.
        mean, low, high: (n,) mean, and 10th and 90th percentile, of the output over some rows.
        averaged: over how many rows.
        at: (P,) the feature's value of every audited row.
        state: (P,) PROVED, OPEN or BROKEN.
        spans, outputs: (s, 3) of some rows, the feature at the region's ends and at the row, and the output there.
        span_state: (s,) what is known of those rows.
    """

    feature: str
    direction: str
    grid: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    averaged: int
    at: np.ndarray
    state: np.ndarray
    spans: np.ndarray
    outputs: np.ndarray
    span_state: np.ndarray


@dataclass(frozen=True)
class Sensitivity:
    """One feature. `upper` and `lower` are the largest over the rows of its derivative's certified size and of one attained.

    `unit` is how far one unit of perturbation moves the feature; 0: it does not move.
    """

    feature: str
    upper: float
    lower: float
    unit: float


@dataclass(frozen=True)
class Found:
    """A point that was found near a row, with what happens there in words. `point` has the input's flattened entries."""

    kind: str
    what: str
    point: np.ndarray


@dataclass(frozen=True)
class WorstRow:
    """A row to look at: its bounds, its flattened entries, how far each may move, and what was found near it."""

    point_id: str
    status: str
    lower: float
    upper: float
    radius: float | None
    point: np.ndarray
    reach: np.ndarray
    found: tuple[Found, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Compared:
    """One figure of the baseline's attestation beside this audit's. `better` is None where they are equal or cannot be compared."""

    metric: str
    baseline: float | None
    now: float | None
    better: bool | None


@dataclass(frozen=True)
class Comparison:
    """The baseline by its URI, figure by figure."""

    uri: str
    figures: tuple[Compared, ...]


@dataclass(frozen=True)
class LayerTable:
    """The layers in the model's order, at most so many, of `total`; unstable shares are means over `rows` audited rows."""

    layers: tuple[Layer, ...]
    total: int
    rows: int


_NOT_COMPUTED = Absent("it was not computed for this report")


@dataclass(frozen=True)
class Insight:
    """Every figure of a report that is not in the bounds table.

    `feature_names` name the flattened entries; `image` is (channels, height, width) of an input that is one, else None.
    `responses` are by check id.
    """

    radius_curve: RadiusCurve | Absent = _NOT_COMPUTED
    responses: Mapping[str, Response] | Absent = _NOT_COMPUTED
    sensitivities: tuple[Sensitivity, ...] | Absent = _NOT_COMPUTED
    worst: tuple[WorstRow, ...] | Absent = _NOT_COMPUTED
    comparison: Comparison | Absent = _NOT_COMPUTED
    layers: LayerTable | Absent = _NOT_COMPUTED
    feature_names: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
