"""A challenger may replace the champion only if its certified bound is not worse: the same rows, the same question."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import Ridge

import mlflow_lipschitz as ml

CHECKS = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: demand, version: 1}
model: {output: 0, baseline: "models:/demand@champion"}
perturbation: {norm: l2, radius: 0.1, scale: standardized}
checks:
  - {id: steady, type: lipschitz_at_most, max: 100.0}
"""
AGAINST_THE_CHAMPION = CHECKS + "  - {id: no-worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0.05}\n"


def register(rows: pd.DataFrame, demand: np.ndarray, strength: float) -> str:
    model = Ridge(alpha=strength).fit(rows, demand)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(rows, model.predict(rows)),
            registered_model_name="demand",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    return f"models:/demand/{info.registered_model_version}"


def main(directory: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("demand", (directory / "artifacts").as_uri()))
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(40, 6)), columns=[f"week-{i}" for i in range(1, 7)])
    demand = rows.to_numpy() @ [9.0, 4.0, 2.0, 1.0, 0.5, 0.2] + random.normal(scale=6.0, size=40)

    # The first version has nobody to be compared with.
    first = register(rows, demand, strength=20.0)
    ml.audit(first, rows, CHECKS)
    print(ml.promote(first, alias="champion"))

    for strength in (0.01, 22.0):
        challenger = register(rows, demand, strength)
        result = ml.audit(challenger, rows, AGAINST_THE_CHAMPION)
        answer = next(check for check in result.verdict.checks if check.id == "no-worse")
        print(f"{challenger}, regularized by {strength:g}: {result.verdict.status} ({answer.message})")
        if result.verdict.status == "passed":
            print(ml.promote(challenger, alias="champion"))


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="demand-")))
