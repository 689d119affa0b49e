"""Log the demo's models as a user would: exported to ONNX, with named columns, as versions of one registered model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import onnx
import onnxruntime
import torch
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from mlflow.utils.file_utils import path_to_local_file_uri

from mlflow_lipschitz.demo.data import DiabetesData
from mlflow_lipschitz.demo.models import Progression
from mlflow_lipschitz.registry.keys import SIGNING_KEY, TRUSTED_KEYS
from mlflow_lipschitz.registry.revocation import REVOKED_KEYS

MODEL_NAME = "diabetes-progression"

_REGISTRY = "MLFLOW_REGISTRY_URI"


@contextmanager
def local_store(directory: Path) -> Iterator[str]:
    """Make an SQLite store in `directory` MLflow's current one, and put the former one back afterwards.

    The registry is set as well: a user's MLFLOW_REGISTRY_URI must not receive the demo's models. Nor are the user's keys used:
    they are not for signing a demo, and where a key is trusted an unsigned audit opens nothing.
    """
    uri = f"sqlite:///{(directory / 'mlflow.db').resolve()}"
    before, registry = mlflow.get_tracking_uri(), os.environ.get(_REGISTRY)
    keys = {name: os.environ.pop(name) for name in (SIGNING_KEY, TRUSTED_KEYS, REVOKED_KEYS) if name in os.environ}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield uri
    finally:
        os.environ.update(keys)
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(registry)
        if registry is None:
            # MLflow keeps the variable when the registry is set back to None, and would go on obeying it.
            os.environ.pop(_REGISTRY, None)


def register(model: Progression, data: DiabetesData, directory: Path, run_name: str) -> str:
    """Log `model` in a run of its own, register it, and return `models:/diabetes-progression/<version>`."""
    experiment = mlflow.get_experiment_by_name(MODEL_NAME)
    artifacts = path_to_local_file_uri(str((directory / "artifacts").resolve()))
    experiment_id = experiment.experiment_id if experiment else mlflow.create_experiment(MODEL_NAME, artifacts)
    signature = ModelSignature(
        inputs=Schema([ColSpec("double", name) for name in data.train.columns]),
        outputs=Schema([ColSpec("double", "progression")]),
    )
    with mlflow.start_run(experiment_id=experiment_id, run_name=run_name):
        mlflow.log_metric("rmse_held_out", held_out_error(model, data))
        info = mlflow.onnx.log_model(
            exported(model, data),
            name="model",
            signature=signature,
            input_example=data.train.head(3),
            registered_model_name=MODEL_NAME,
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=[f"onnx=={onnx.__version__}", f"onnxruntime=={onnxruntime.__version__}"],
            await_registration_for=0,
        )
    return f"models:/{MODEL_NAME}/{info.registered_model_version}"


def exported(model: Progression, data: DiabetesData) -> onnx.ModelProto:
    """The model as ONNX with a free number of rows."""
    example = torch.tensor(data.train.to_numpy()[:2], dtype=torch.float32)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("rows")},),
        input_names=["measurements"],
        output_names=["progression"],
        verbose=False,
    )
    assert program is not None  # None only for the older exporter that writes a file
    return program.model_proto


def held_out_error(model: Progression, data: DiabetesData) -> float:
    """Root mean square error on the audited rows, in target units."""
    with torch.no_grad():
        predicted = model(torch.tensor(data.audited.to_numpy(), dtype=torch.float32))[:, 0].numpy()
    return float(((predicted - data.audited_target) ** 2).mean() ** 0.5)
