"""Mathematical properties by name; the tests run each over the whole table of cases. None has a tolerance."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np

from mlflow_lipschitz.certify import LipschitzCertificate, MonotonicityCertificate
from mlflow_lipschitz.engine.ir.graph import Graph
from tests.exact import number, one_sided, values_at


def oracle_error(truth: Any) -> Any:
    """What a 400-bit number may be off by after a small network; a fraction is exact."""
    return (1 + abs(truth)) * mpmath.mpf(2) ** -330 if isinstance(truth, mpmath.mpf) else 0


def at_least(bound: float, truth: Any, exact: Any) -> bool:
    """bound ≥ truth, as far as the oracle can tell; an infinite bound is above everything."""
    return bound == np.inf or bool(exact(bound) >= truth - oracle_error(truth))


def at_most(bound: float, truth: Any, exact: Any) -> bool:
    return bound == -np.inf or bool(exact(bound) <= truth + oracle_error(truth))


def dual_norm_exceeds(bound: float, gradient: np.ndarray, norm: str, exact: Any) -> bool:
    """Whether the gradient's dual norm is larger than the bound, decided exactly (ℓ2 by comparing squares)."""
    if bound == np.inf:
        return False
    sizes = [abs(g) - oracle_error(g) for g in gradient]
    if norm == "l2":
        return bool(exact(bound) ** 2 < sum(max(s, 0) ** 2 for s in sizes))
    return bool(exact(bound) < (sum(sizes) if norm == "linf" else max(sizes)))


def values_lie_within(graph: Graph, lower: np.ndarray, upper: np.ndarray, point: np.ndarray) -> None:
    """Certified output intervals contain the exact output."""
    exact = number(graph)
    for low, high, value in zip(lower.reshape(-1), upper.reshape(-1), values_at(graph, point), strict=True):
        assert at_most(float(low), value, exact), f"lower bound {low!r} above {float(value)!r}"
        assert at_least(float(high), value, exact), f"upper bound {high!r} below the value at {point}"


def derivatives_lie_within(graph: Graph, certificate: MonotonicityCertificate, row: int, point: np.ndarray) -> None:
    """Certified derivative ranges contain both one-sided exact derivatives."""
    exact = number(graph)
    ends = (certificate.lower[row].reshape(-1), certificate.upper[row].reshape(-1))
    try:
        for jacobian in one_sided(graph, point):
            for low, high, slope in zip(*ends, jacobian[certificate.output], strict=True):
                assert at_most(float(low), slope, exact), f"derivative {slope} below its bound {low!r} at {point}"
                assert at_least(float(high), slope, exact), f"derivative {slope} above its bound {high!r} at {point}"
    except ZeroDivisionError:
        assert np.isinf(certificate.lower[row]).any() and np.isinf(certificate.upper[row]).any()


def lipschitz_is_not_exceeded(graph: Graph, certificate: LipschitzCertificate, row: int, point: np.ndarray) -> None:
    """The certified constant is at least the dual norm of the exact gradient."""
    exact = number(graph)
    try:
        for jacobian in one_sided(graph, point):
            for bound, gradient in zip(certificate.upper[row], jacobian, strict=True):
                assert not dual_norm_exceeds(float(bound), gradient, certificate.norm, exact), (
                    f"{certificate.norm}: bound {bound!r} exceeded by the gradient {gradient} at {point}"
                )
    except ZeroDivisionError:  # the function has no value there: nothing may be claimed of it
        assert np.isinf(certificate.upper[row]).all(), f"a bound for a region that holds {point}"
