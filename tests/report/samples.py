"""One report content with every kind of outcome, and with names chosen to break out of every format."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlflow_lipschitz.certificates.schema import Counterexample
from mlflow_lipschitz.gate.verdict import CheckOutcome, Verdict
from mlflow_lipschitz.report.content import ReportContent

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
