"""The model object behind the files, and the function that answers as the deployed model does.

One loader per flavor, each safe by construction (see the package safe_loading); MLflow's own loaders, which may run the
model's code, are used only for a model the user declared trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import RegistryError, UntrustedModel
from mlflow_lipschitz.registry.mlmodel import ModelDescription
from mlflow_lipschitz.safe_loading.pt2 import load_pt2
from mlflow_lipschitz.safe_loading.skops import load_skops
from mlflow_lipschitz.safe_loading.structure import Unexpected

Served = Callable[[np.ndarray | pd.DataFrame], np.ndarray | dict[str, np.ndarray]]


@dataclass(frozen=True)
class LoadedModel:
    """`model` is what `frontends.to_onnx` accepts; `served` maps points (P, *input shape) to outputs (P, …).

    Points may be a frame. Estimators that know their columns then take them by name, and refuse what they do not know.
    """

    model: Any
    served: Served


def load(directory: Path, description: ModelDescription, *, trusted: bool) -> LoadedModel:
    """Load the model. MLflow's own loaders are used for a `trusted` model that runs code, and only then."""
    if trusted and description.runs_code:
        return _LOAD_TRUSTED[description.flavor](directory, description)
    return _LOAD[description.flavor](directory, description)


def _load_onnx(_directory: Path, description: ModelDescription) -> LoadedModel:
    from mlflow_lipschitz.safe_loading.onnx_file import read_onnx

    path = description.model_file
    try:
        model = read_onnx(path)
    except Unexpected as error:
        raise UntrustedModel(f"{path.name} is refused before loading: {error}. Log the model again.") from error
    except (ValueError, OSError) as error:
        raise RegistryError(f"{path.name} is not a readable ONNX model: {error}. Log the model again.") from error
    return LoadedModel(model, _OnnxServer(path))


class _OnnxServer:
    """Answers as `mlflow.pyfunc` does for ONNX: an onnxruntime session; its floating-point output, or a dict of several.

    A model of several inputs is asked with a column for each, as a dictionary of columns would be served.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base class of their own
            raise RegistryError(f"onnxruntime cannot serve {path.name}: {error}") from error

    def __call__(self, points: np.ndarray | pd.DataFrame) -> np.ndarray | dict[str, np.ndarray]:
        inputs = self._session.get_inputs()
        feeds = {i.name: _fed(points, n, i, len(inputs)) for n, i in enumerate(inputs)}
        floating = [o.name for o in self._session.get_outputs() if o.type in ("tensor(float)", "tensor(double)")]
        names = floating or [self._session.get_outputs()[0].name]
        answers = self._session.run(names, feeds)
        return np.asarray(answers[0]) if len(names) == 1 else dict(zip(names, answers, strict=True))


_DTYPES = {"tensor(double)": np.float64, "tensor(string)": object, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def _fed(points: np.ndarray | pd.DataFrame, position: int, source: Any, inputs: int) -> np.ndarray:
    """What one input of a session takes of the rows: all of them, or of several inputs its column."""
    dtype = _DTYPES.get(source.type, np.float32)
    if inputs == 1:
        return np.asarray(points, dtype)
    column = points[source.name] if isinstance(points, pd.DataFrame) else points[:, position]
    return np.asarray(column, dtype).reshape(len(points), *(1,) * (len(source.shape) - 1))


def _load_pt2(_directory: Path, description: ModelDescription) -> LoadedModel:
    program = load_pt2(description.model_file)
    return LoadedModel(program, _module_server(program.module(), program.example_inputs))


def _module_server(module: Callable[..., Any], example_inputs: Any) -> Served:
    import torch

    tensors = example_inputs[0] if example_inputs else ()
    if len(tensors) > 1:
        raise RegistryError(f"the exported program has {len(tensors)} inputs; models with one input can be audited.")
    dtype = tensors[0].dtype if tensors else torch.float32

    def served(points: np.ndarray | pd.DataFrame) -> np.ndarray:
        array = np.asarray(points)
        tokens = array.dtype.kind in "iu" and dtype.is_floating_point  # looked up, whatever type the weights have
        with torch.no_grad():
            answer = module(torch.as_tensor(array, dtype=torch.int64 if tokens else dtype))
        first = answer[0] if isinstance(answer, (tuple, list)) else answer
        return first.detach().cpu().numpy()

    return served


def _load_skops(_directory: Path, description: ModelDescription) -> LoadedModel:
    estimator = load_skops(description.model_file)
    return LoadedModel(estimator, estimator_server(estimator))


def estimator_server(estimator: Any) -> Served:
    """What an estimator serves: a classifier's probabilities or decision values, else `predict`."""
    names = getattr(estimator, "feature_names_in_", None)
    methods = ("predict_proba", "decision_function", "predict") if hasattr(estimator, "classes_") else ("predict",)
    method = next((getattr(estimator, name) for name in methods if hasattr(estimator, name)), None)
    if method is None:
        raise RegistryError(
            f"the model's {type(estimator).__name__} cannot predict; log a fitted estimator or pipeline."
        )

    def served(points: np.ndarray | pd.DataFrame) -> np.ndarray:
        if names is not None and not isinstance(points, pd.DataFrame):
            # Only an array, which has no names of its own, is taken to be in the order of the fit.
            points = pd.DataFrame(points, columns=names)
        # A model may ask for any number of worker processes (n_jobs); its answers do not depend on them.
        with joblib.parallel_config(backend="sequential"):
            return np.asarray(method(points if names is not None else np.asarray(points)))

    return served


def _load_trusted_torch(directory: Path, description: ModelDescription) -> LoadedModel:
    import mlflow.pytorch
    import torch

    model = mlflow.pytorch.load_model(str(directory), **({"weights_only": False} if _pickled(description) else {}))
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return LoadedModel(model, _module_server(model, ((torch.zeros(0, dtype=dtype),), {})))


def _load_trusted_sklearn(directory: Path, _description: ModelDescription) -> LoadedModel:
    import mlflow.sklearn

    estimator = mlflow.sklearn.load_model(str(directory))
    return LoadedModel(estimator, estimator_server(estimator))


def _pickled(description: ModelDescription) -> bool:
    return description.flavor == "pytorch-pickle"


_LOAD: Mapping[str, Callable[[Path, ModelDescription], LoadedModel]] = {
    "onnx": _load_onnx,
    "pytorch-pt2": _load_pt2,
    "sklearn-skops": _load_skops,
}
# An ONNX graph needs none of the code shipped beside it, so trust changes nothing about how it is read.
_LOAD_TRUSTED: Mapping[str, Callable[[Path, ModelDescription], LoadedModel]] = {
    "onnx": _load_onnx,
    "pytorch-pt2": _load_trusted_torch,
    "pytorch-pickle": _load_trusted_torch,
    "sklearn-skops": _load_trusted_sklearn,
    "sklearn-pickle": _load_trusted_sklearn,
}


def refuse_untrusted(uri: str, description: ModelDescription) -> None:
    """Raise UntrustedModel when loading would run code; nothing has been loaded at that point."""
    if description.runs_code:
        raise UntrustedModel(
            f"{uri} is refused before loading: {description.runs_code}. Save it without code: {description.safe_way}; "
            "or, only if you trust its author with this machine, pass trust_pickle=True (--trust-pickle)."
        )
