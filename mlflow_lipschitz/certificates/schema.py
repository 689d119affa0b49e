"""What is written down as evidence: the claims, the region they hold on, and the graph they are about.

Plain values, so that whoever re-checks them needs neither the engine nor a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SCHEMA = "mlflow-lipschitz/certificates/v2"

STATEMENTS = {
    "lipschitz_upper": "for each point, no gradient in the region has a larger dual norm (scaled by feature_scale)",
    "lipschitz_lower": "for each point, some gradient attained in the region has at least this dual norm (not proved again)",
    "derivative_lower": "for each point and feature, every partial derivative in the region is at least this",
    "derivative_upper": "for each point and feature, every partial derivative in the region is at most this",
    "radius": "for each point, the decision does not change within this distance (in units of the perturbation)",
    "served_error": "for each point, no output of the served program is farther than this from the exact one within the radius",
}
"""Every claim a certificate may hold, in words. The arrays of these names are in the .npz file."""


@dataclass(frozen=True)
class Counterexample:
    """A point of the region at which a claim the policy asks for is false: a fact, not a bound.

    `point` holds the feature values in input units; `derivative` is the model's slope there, output per feature unit.
    """

    check_id: str
    point_id: str
    feature: str
    direction: str
    derivative: float
    point: Mapping[str, float]

    def __str__(self) -> str:
        return (
            f"row {self.point_id}: at {self.feature} = {self.point[self.feature]:.4g} the output changes by"
            f" {self.derivative:.3g} per unit of {self.feature}, so it is not {self.direction}"
        )


@dataclass(frozen=True)
class Certificates:
    """All claims of one audit.

    Attributes:
        graph_hash: SHA-256 of the graph the claims are about.
        objective: what was bounded: an output's name, "margin", or "every output".
        norm: norm of the perturbation. Lipschitz bounds are in its dual norm.
        arrays: `points` (P, *input_shape), `radius_per_feature`, `feature_scale`, `domain_lower`, `domain_upper`
            (*input_shape) describe the region, `labels` (P,) the decisions; the others are the claims named in STATEMENTS.
        output: index of the output that was bounded, or "margin".
        unproved: what is reported beyond what these certificates prove; a sentence per point.
        arithmetic: "real" claims hold for the exact function of the stored weights, not for its float32 evaluation.
        radius_arithmetic: what the radii hold for; "deployed-float32": the program that evaluates the function in float32,
            handed the float32 numbers nearest to the entries of any input within the radius.
    """

    graph_hash: str
    objective: str
    norm: str
    method: str
    point_ids: tuple[str, ...]
    feature_names: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    counterexamples: tuple[Counterexample, ...] = ()
    arithmetic: str = "real"
    output: int | str = 0
    unproved: tuple[str, ...] = ()
    radius_arithmetic: str = "real"

    @property
    def arithmetic_of(self) -> dict[str, str]:
        """Name of each claimed array -> the arithmetic that the claim is about."""
        served = ("radius", "served_error")
        return {name: self.radius_arithmetic if name in served else self.arithmetic for name in self.claims}

    @property
    def claims(self) -> dict[str, str]:
        """Name of each claimed array -> its statement."""
        return {name: text for name, text in STATEMENTS.items() if name in self.arrays}
