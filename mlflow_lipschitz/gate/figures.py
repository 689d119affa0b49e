"""Single figures of a column, and what "no worse than the baseline" means for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

INF = float("inf")


@dataclass(frozen=True)
class Regression:
    """One metric a no_regression check may name.

    Attributes:
        column: bounds-table column the figure is taken of.
        figure: name for `column_figure`.
        metric: the attested bound that holds the baseline's value.
        larger_is_better: the direction in which a change is an improvement.
    """

    column: str
    figure: str
    metric: str
    larger_is_better: bool = False


REGRESSIONS: Mapping[str, Regression] = {
    "lipschitz_upper": Regression("lipschitz_upper", "max", "lipschitz/upper_max"),
    "lipschitz_upper_mean": Regression("lipschitz_upper", "mean", "lipschitz/upper_mean"),
    "radius_median": Regression("radius", "median", "lipschitz/radius_median", larger_is_better=True),
    "radius_p05": Regression("radius", "p05", "lipschitz/radius_p05", larger_is_better=True),
    "certified_fraction": Regression(
        "status", "certified_fraction", "lipschitz/certified_fraction", larger_is_better=True
    ),
}


_PLAIN: Mapping[str, Callable[[np.ndarray], np.floating]] = {"max": np.max, "mean": np.mean, "median": np.median}


def column_figure(figure: str, values: np.ndarray) -> float:
    """max, mean, median, p05, sum or certified_fraction of a column (points,).

    Of no rows nothing is known: +inf, and a certified fraction of 0. p05 is the value of a row, never one between two
    rows: a percentile must not invent a radius nobody certified.
    """
    values = np.ascontiguousarray(values)  # sums of strided memory may differ in the last bit
    if figure == "certified_fraction":
        return float(np.mean(values == "certified")) if len(values) else 0.0
    if figure == "sum":
        return float(np.sum(values))
    if not len(values):
        return INF
    if figure == "p05":
        return float(np.quantile(values, 0.05, method="lower"))
    return float(_PLAIN[figure](values))


def regression_limit(name: str, baseline: float, rel_tol: float) -> float:
    """The worst allowed value of metric `name`."""
    return baseline * (1 - rel_tol) if REGRESSIONS[name].larger_is_better else baseline * (1 + rel_tol)


def is_within(name: str, observed: float, limit: float) -> bool:
    """Whether `observed` is no worse than `limit`; false for NaN."""
    return observed >= limit if REGRESSIONS[name].larger_is_better else observed <= limit
