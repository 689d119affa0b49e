"""The audit as one more evaluator: metrics, report and verdict land where `mlflow.models.evaluate` puts its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: rent, version: 1}
model: {output: 0}
perturbation: {norm: l2, radius: 0.1, scale: standardized}
checks:
  - {id: steadiness, type: lipschitz_at_most, max: 1000.0}
"""


def main(directory: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("rent", (directory / "artifacts").as_uri()))
    generator = np.random.default_rng(0)
    flats = pd.DataFrame({"area": generator.uniform(20, 200, 60), "floor": generator.uniform(0, 20, 60)})
    rent = 12.0 * flats["area"] + 8.0 * flats["floor"]
    model = LinearRegression().fit(flats, rent)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(flats, model.predict(flats)),
            registered_model_name="rent",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
        found = mlflow.models.evaluate(
            info.model_uri,
            data=flats,
            model_type="lipschitz",
            evaluators=["lipschitz"],
            evaluator_config={"lipschitz": {"policy": POLICY}},
        )
    for name, value in sorted(found.metrics.items()):
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="rent-")))
