"""By how much may every pixel of a digit change before the classifier may read another one? Proved, image by image."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import infer_signature
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import mlflow_lipschitz as ml

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: digits, version: 1}
model: {output: margin}                      # top class against the rest
inputs:
  points: {sample: 25, seed: 7}
perturbation: {norm: linf, radius: 0.02}     # of a brightness between 0 and 1, all 64 pixels at once
engine: {budget_per_point_s: null, arithmetic: deployed-float32}   # radii of the program that is served
checks:
  - {id: robust, type: radius_at_least, min: 0.01, mostly: 0.9}
  - {id: enough, type: points_at_least, min: 25}
"""


def main(directory: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{directory / 'mlflow.db'}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("digits", (directory / "artifacts").as_uri()))
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sixty rounds of training are enough here
        model = MLPClassifier(hidden_layer_sizes=(32,), solver="lbfgs", alpha=1.0, max_iter=60, random_state=0).fit(
            images[:1500], digits[:1500]
        )
    print(f"accuracy on 297 other images: {model.score(images[1500:], digits[1500:]):.1%}")
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(images, model.predict(images)),
            registered_model_name="digits",
            serialization_format="skops",
            pip_requirements=["scikit-learn"],
        )

    result = ml.audit("models:/digits/1", images[1500:], POLICY)
    radii = result.table.frame["radius"]
    print(f"certified radii of {len(radii)} images: median {radii.median():.4f}, smallest {radii.min():.4f}")
    for check in result.verdict.checks:
        print(f"{check.status:<10} {check.id}: {check.message}")
    print("verdict:", result.verdict.status)


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp(prefix="digits-")))
