"""From a model URI to audited bytes: resolve, download, hash, understand, and load without running the model's code."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models.signature import ModelSignature

from mlflow_lipschitz.registry.loading import Served, load, refuse_untrusted
from mlflow_lipschitz.registry.manifest import Manifest, manifest_of
from mlflow_lipschitz.registry.mlmodel import describe
from mlflow_lipschitz.registry.store import ModelReference, download, resolve


@dataclass(frozen=True)
class PulledModel:
    """A model as files on this machine, hashed before anything was loaded.

    Attributes:
        uri: as the user wrote it.
        path: the folder with the MLmodel file.
        flavor: onnx, pytorch-pt2, pytorch-pickle, sklearn-skops or sklearn-pickle.
        model_file: the file that holds the model itself.
        manifest: SHA-256 of every file.
        name, version: of the registered version, None where the URI names none.
        model_id: of the logged model (`m-…`), None in stores that have none.
        run_id: of the run that logged the model.
        signature: MLflow's signature, None when the model was logged without.
        input_example: the stored example (rows first), None when there is none.
        served: points (P, *input shape), an array or a frame -> outputs (P, …), as the deployed model answers.
        model: the loaded object, see `load_model_object`.
    """

    uri: str
    path: Path
    flavor: str
    model_file: Path
    manifest: Manifest
    name: str | None
    version: str | None
    model_id: str | None
    run_id: str | None
    signature: ModelSignature | None
    input_example: pd.DataFrame | np.ndarray | None
    served: Served | None
    model: Any

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Column names of the signature, or of the input example; empty for tensor models that name nothing."""
        named = _names(self.signature.inputs) if self.signature else ()
        if not named and isinstance(self.input_example, pd.DataFrame):
            return tuple(str(column) for column in self.input_example.columns)
        return named

    @property
    def fitted_names(self) -> tuple[str, ...]:
        """Names the estimator was fitted with, in the order of its inputs; empty for models that know no names."""
        names = getattr(self.model, "feature_names_in_", None)
        return () if names is None else tuple(str(name) for name in names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the signature's outputs; empty when it names none."""
        return _names(self.signature.outputs) if self.signature else ()


def pull(
    model_uri: str, *, trust_pickle: bool = False, directory: str | Path | None = None, tracking_uri: str | None = None
) -> PulledModel:
    """Download and load a model; code from its files runs only with `trust_pickle`.

    Args:
        model_uri: `models:/name/1`, `models:/name@alias`, `models:/m-…`, `runs:/…`, or a folder.
        trust_pickle: load pickled models and models that ship code, which runs that code here.
        directory: an empty folder for the files; by default a temporary one, removed when the process ends.
        tracking_uri: of the MLflow store; by default MLflow's current one.
    Raises:
        UntrustedModel: loading would run code, and was therefore not begun.
        RegistryError: the store or the model cannot be read.
        UsageError: the URI is none of the forms above.
    """
    reference, path = fetch(model_uri, directory=directory, tracking_uri=tracking_uri)
    manifest = manifest_of(path)
    description = describe(path)
    if not trust_pickle:
        refuse_untrusted(model_uri, description)
    loaded = load(path, description, trusted=trust_pickle)
    return PulledModel(
        uri=model_uri,
        path=path,
        flavor=description.flavor,
        model_file=description.model_file,
        manifest=manifest,
        name=reference.name,
        version=reference.version,
        model_id=reference.model_id or (None if reference.name else description.declared_model_id),
        run_id=reference.run_id,
        signature=description.signature,
        input_example=description.input_example,
        served=loaded.served,
        model=loaded.model,
    )


def fetch(
    model_uri: str, *, directory: str | Path | None = None, tracking_uri: str | None = None
) -> tuple[ModelReference, Path]:
    """Resolve and download without reading the model: what it is, and the folder that holds its files."""
    reference = resolve(model_uri, tracking_uri)
    target = Path(directory) if directory is not None else Path(tempfile.mkdtemp(prefix="mlflow-lipschitz-"))
    if directory is None:
        atexit.register(shutil.rmtree, target, ignore_errors=True)
    return reference, download(reference, target, tracking_uri)


def load_model_object(pulled: PulledModel) -> Any:
    """What `frontends.to_onnx` takes: an onnx ModelProto, an ExportedProgram, a torch module or an estimator."""
    return pulled.model


def _names(schema: Any) -> tuple[str, ...]:
    """Column names of an MLflow schema; a tensor's own name is no feature name."""
    if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
        return ()
    return tuple(str(name) for name in schema.input_names())
