"""One report content with every kind of outcome, and with names chosen to break out of every format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from mlflow_lipschitz.certificates.schema import Counterexample
from mlflow_lipschitz.certify.layers import Layer
from mlflow_lipschitz.gate.verdict import CheckOutcome, Verdict
from mlflow_lipschitz.policy_models import LipschitzAtMost, Monotone
from mlflow_lipschitz.report.content import ReportContent
from mlflow_lipschitz.report.insight import (
    Compared,
    Comparison,
    Found,
    Insight,
    LayerTable,
    RadiusCurve,
    Response,
    Sensitivity,
    WorstRow,
)

IMAGE = "<img src=x onerror=alert(1)>"
EVIL = "<script>alert('x')</script>|`*\"&\n::error::--><svg onload=1>"


def outcome(
    name: str, severity: str = "critical", status: str = "certified", line: int = 3, *, blocking: bool | None = None
) -> CheckOutcome:
    """`blocking` is by default what a policy says that fails on critical checks."""
    blocks = status == "error" or (status != "certified" and severity == "critical")
    return CheckOutcome(
        id=name,
        type="lipschitz_at_most",
        severity=severity,
        status=status,  # type: ignore[arg-type]
        passed=status == "certified",
        observed=float("inf") if status == "undecided" else 1.25,
        threshold=2.0,
        message=f"message of {name}",
        line=line,
        worst_point_id="7",
        blocking=blocks if blocking is None else blocking,
    )


def content(*checks: CheckOutcome, status: str = "blocked") -> ReportContent:
    frame = pd.DataFrame(
        {
            "point_id": ["5", EVIL, "7"],
            "status": ["certified", "violated", "undecided"],
            "lipschitz_upper": [1.25, 3.0, np.inf],
            "lipschitz_lower": [1.0, 2.5, 0.5],
            "radius": [0.0, 0.0, 0.0],
            "seconds": [0.1, 0.1, 0.1],
        }
    )
    example = Counterexample("rises", "7", EVIL, "increasing", -2.5, {EVIL: 1.0, "age": 30.0})
    return ReportContent(
        model=f"models:/{EVIL}/1",
        policy="credit@3 sha256:00",
        verdict=Verdict(status, checks, {}, {}),  # type: ignore[arg-type]
        frame=frame,
        counterexamples=(example,),
        derivatives={EVIL: (np.array([-1.0, 0.0, -np.inf]), np.array([1.0, 2.0, np.inf]))},
        facts={"norm": "linf", EVIL: EVIL},
        explanations={"lipschitz_at_most": f"means {EVIL}"},
    )


def mixed() -> ReportContent:
    return content(
        outcome("good"),
        outcome(EVIL, status="violated", line=12),
        outcome("unknown", severity="warning", status="undecided", line=13),
        outcome("slow", severity="info", status="violated", line=14),
        outcome("broken", severity="info", status="error", line=0),
    )


def insight(rows: int = 3, name: str = IMAGE, numbers: float = float("nan")) -> Insight:
    """Every figure, with `name` for names and `numbers` wherever a computation might have failed."""
    grid = np.linspace(0.0, 1.0, 33)
    states = np.arange(rows) % 3
    shown = min(rows, 3)
    spans = np.tile([0.1, 0.2, 0.3], (shown, 1))
    outputs = np.full((shown, 3), numbers)
    at = np.linspace(0.0, 1.0, rows)
    response = Response(
        name, "increasing", grid, np.full(33, numbers), grid, grid + 1, 3, at, states, spans, outputs, states[:shown]
    )
    found = Found("steepest point", f"it is steep at {name}", np.array([numbers, 1.0]))
    row = WorstRow("7", "violated", 1.0, numbers, 0.5, np.array([1.0, numbers]), np.array([0.1, 0.0]), (found,), "none")
    layer = Layer(name, "Linear, relu", "2 → 3", numbers, float("inf"), 1.5, 0.25)
    return Insight(
        radius_curve=RadiusCurve(
            np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]), np.array([0.9, 0.4, 0.0]), 0.9, name
        ),
        responses={name: response},
        sensitivities=(Sensitivity(name, numbers, 0.5, 1.0), Sensitivity("fixed", 1.0, 0.5, 0.0)),
        worst=(row,),
        comparison=Comparison("models:/m@champion", (Compared("lipschitz/upper_max", numbers, 1.0, None),)),
        layers=LayerTable((layer,), 1, 3),
        feature_names=(name, "age"),
    )


def full(rows: int = 3, name: str = IMAGE) -> ReportContent:
    """A blocked audit of `rows` rows with every figure, every status, infinities and NaN."""
    rng = np.random.default_rng(0)
    upper = np.where(np.arange(rows) % 50 == 1, np.inf, rng.lognormal(size=rows))
    frame = pd.DataFrame(
        {
            "point_id": [f"{name} {i}" for i in range(rows)],
            "status": rng.choice(["certified", "violated", "undecided"], rows),
            "lipschitz_upper": upper,
            "lipschitz_lower": np.where(np.isfinite(upper), upper * 0.7, 0.0),
            "radius": rng.uniform(size=rows),
            "seconds": np.full(rows, 0.1),
        }
    )
    spread = (rng.normal(size=rows) - 1, rng.normal(size=rows) + 1)
    asked = {
        "rises": Monotone(id="rises", type="monotone", feature=name, direction="increasing", mostly=0.9),
        "steady": LipschitzAtMost(id="steady", type="lipschitz_at_most", max=2.0),
    }
    checks = (outcome("steady", status="violated", line=12), outcome("fine"))
    return replace(
        content(*checks),
        frame=frame,
        derivatives={name: spread},
        asked=asked,
        advice={"steady": "Train with weight decay."},
        insight=insight(rows, name),
        facts={
            "perturbation": "norm linf, radius 0.1",
            "does not move": name,
            "versions": "mlflow-lipschitz 0.1.0, torch 2",
        },
    )
