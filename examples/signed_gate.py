"""A gate that believes one key: an unsigned pass opens nothing, nor does another key's; the auditor's signature does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression

import mlflow_lipschitz as ml
from mlflow_lipschitz.errors import PromotionRefused
from mlflow_lipschitz.registry.keys import new_keys
from mlflow_lipschitz.registry.trust import TrustSources

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: rent, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: {area: 5.0, floor: 1.0}}
checks:
  - {id: rises-with-area, type: monotone, feature: area, direction: increasing}
"""
URI = "models:/rent/1"


def register_model(directory: Path) -> pd.DataFrame:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("rent", (directory / "artifacts").as_uri()))
    random = np.random.default_rng(0)
    flats = pd.DataFrame({"area": random.uniform(20, 200, 20), "floor": random.uniform(0, 20, 20)})
    model = LinearRegression().fit(flats, 12.0 * flats["area"] + 8.0 * flats["floor"])
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(flats, model.predict(flats)),
            registered_model_name="rent",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )
    return flats


def main(directory: Path) -> None:
    flats = register_model(directory)
    # Where audits run, there is the private key; where models are promoted, only the public one.
    private, public, _ = new_keys(directory / "auditor")
    other, _, _ = new_keys(directory / "somebody-else")
    gate = ml.PromotionOptions(trust=TrustSources(keys=(public,)))

    for title, key in (("unsigned", None), ("another key", other), ("the auditor's key", private)):
        result = ml.audit(URI, flats, POLICY, options=ml.AuditOptions(sign_key=key))
        print(f"{title}: audit {result.verdict.status}")
        try:
            print(ml.promote(URI, alias="champion", policy=POLICY, options=gate))
        except PromotionRefused as refused:
            print(refused)


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="rent-")))
