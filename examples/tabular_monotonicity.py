"""May the price of a flat ever fall when the flat grows? Two regressions, one rule, and a flat at which one breaks it."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.base import RegressorMixin
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mlflow_lipschitz as ml

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: flat-prices, version: 1}
model: {output: 0}
inputs:
  points: {sample: 20, seed: 7}
  domain: {area: [10, 300], age: [0, 150]}
perturbation: {norm: linf, radius: {area: 2.0, age: 1.0}}   # two square meters, one year
engine: {budget_per_point_s: 0.5}
checks:
  - {id: larger-costs-more, type: monotone, feature: area, direction: increasing}
  - {id: enough, type: points_at_least, min: 20}
"""


def flats(count: int = 120) -> tuple[pd.DataFrame, pd.Series]:
    """Flats whose prices rise with the area, with much noise on top."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"area": random.uniform(25, 180, count), "age": random.uniform(0, 90, count)})
    return rows, 4.0 * rows["area"] - 1.5 * rows["age"] + random.normal(scale=60.0, size=count)


def register(model: RegressorMixin, rows: pd.DataFrame) -> str:
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(rows, model.predict(rows)),
            registered_model_name="flat-prices",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    return f"models:/flat-prices/{info.registered_model_version}"


def main(directory: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("flats", (directory / "artifacts").as_uri()))
    rows, prices = flats()
    network = MLPRegressor(hidden_layer_sizes=(24,), solver="lbfgs", alpha=0.0, max_iter=3000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that training stopped before it converged is part of the story
        overfitted = make_pipeline(StandardScaler(), network).fit(rows, prices)
    for model in (overfitted, LinearRegression().fit(rows, prices)):
        uri = register(model, rows)
        result = ml.audit(uri, rows, POLICY)
        print(f"{uri}: {result.verdict.status}")
        for check in result.verdict.checks:
            print(f"  {check.status:<10} {check.id}: {check.message}")
        for found in result.content.counterexamples[:1]:
            place = ", ".join(f"{name} {value:.1f}" for name, value in found.point.items())
            print(f"  at {place} the price changes by {found.derivative:.3f} per square meter")


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="flats-")))
