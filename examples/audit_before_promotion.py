"""Log a scikit-learn regression, audit it against a policy, and promote it only if it passed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

import mlflow_lipschitz as ml

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: rent, version: 1}
model: {output: 0}
inputs:
  domain: {area: [10, 300], floor: [0, 40]}
perturbation: {norm: linf, radius: {area: 5.0, floor: 1.0}}
checks:
  - {id: rises-with-area, type: monotone, feature: area, direction: increasing}
  - {id: price-per-square-meter, type: sensitivity_at_most, feature: area, max: 30.0}
  - {id: enough, type: points_at_least, min: 20}
"""


def main(directory: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("rent", (directory / "artifacts").as_uri()))
    generator = np.random.default_rng(0)
    flats = pd.DataFrame({"area": generator.uniform(20, 200, 60), "floor": generator.uniform(0, 20, 60)})
    rent = 12.0 * flats["area"] + 8.0 * flats["floor"] + generator.normal(scale=30.0, size=60)
    model = LinearRegression().fit(flats, rent)
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(flats, model.predict(flats)),
            registered_model_name="rent",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )

    result = ml.audit("models:/rent/1", flats, POLICY)
    for check in result.verdict.checks:
        print(f"{check.status:<10} {check.id}: {check.message}")
    print("report:", result.directory / "report.html")
    if result.verdict.status == "passed":
        print(ml.promote("models:/rent/1", alias="champion"))


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="rent-")))
