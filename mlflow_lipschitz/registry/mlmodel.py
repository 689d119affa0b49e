"""Reading a model's MLmodel file as data: which flavor it has, whether loading it would run code, what goes in and out.

Nothing here imports a framework or loads a model. MLflow's own loaders are not used for this: they put the model's
`code/` folder on the import path and call whatever `loader_module` the file names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models.signature import ModelSignature

from mlflow_lipschitz.errors import RegistryError, UntrustedModel

_SAFE_LOG = {
    "pytorch": "mlflow.pytorch.log_model(model, name=…, serialization_format='pt2', input_example=rows)",
    "sklearn": "mlflow.sklearn.log_model(model, name=…, serialization_format='skops')",
    "onnx": "mlflow.onnx.log_model(model, name=…)",
}
_LOADERS = {"pytorch": "mlflow.pytorch", "sklearn": "mlflow.sklearn", "onnx": "mlflow.onnx"}
_CODE_KEYS = ("code", "model_code_path", "python_model", "cloudpickle_version")
_MLMODEL_LIMIT, _MLMODEL_VALUES = 8 << 20, 1 << 20
_EXAMPLE_LIMIT = 256 << 20
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ModelDescription:
    """An MLmodel file, understood.

    `flavor` is one of `onnx`, `pytorch-pt2`, `pytorch-pickle`, `sklearn-skops`, `sklearn-pickle`; `model_file` is
    the file that holds the model; `runs_code` says in words why loading it would run code from its files, and is
    empty when it would not; `safe_way` is the call that saves such a model without code; `predict_method` is the
    estimator's method that MLflow serves.
    """

    flavor: str
    model_file: Path
    runs_code: str
    safe_way: str
    predict_method: str
    signature: ModelSignature | None
    input_example: pd.DataFrame | np.ndarray | None
    declared_model_id: str | None


def describe(directory: Path) -> ModelDescription:
    """Read `directory/MLmodel`.

    Raises RegistryError when there is no readable MLmodel or no flavor this tool can certify, UntrustedModel when a
    path in it leaves the model's folder or the model is nothing but Python code.
    """
    content = _read_mlmodel(directory)
    flavors = _mapping(content.get("flavors"))
    pyfunc = _mapping(flavors.get("python_function"))
    framework = next((name for name in ("onnx", "pytorch", "sklearn") if name in flavors), None)
    if framework is None:
        raise _no_framework(flavors, directory)
    config = _mapping(flavors[framework])
    flavor, model_file = _FLAVORS[framework](directory, config)
    return ModelDescription(
        flavor=flavor,
        model_file=model_file,
        runs_code=_why_code(framework, flavor, config, pyfunc),
        safe_way=_SAFE_LOG[framework],
        predict_method=str(pyfunc.get("predict_fn") or "predict"),
        signature=_signature(content),
        input_example=_input_example(directory, content),
        declared_model_id=content.get("model_id") or None,
    )


def inside(directory: Path, relative: object) -> Path:
    """`directory/relative`, or UntrustedModel when that is not a path below `directory`."""
    root = directory.resolve()
    path = (root / str(relative)).resolve()
    if not isinstance(relative, str) or root not in path.parents:
        raise UntrustedModel(f"the MLmodel file names the path {relative!r}, which lies outside the model's folder.")
    return path


def _read_mlmodel(directory: Path) -> Mapping[str, Any]:
    path = directory / "MLmodel"
    if not path.is_file():
        raise RegistryError(f"{directory} holds no MLmodel file. Give the folder of an MLflow model.")
    try:
        content = yaml.safe_load(_text_of(path, _MLMODEL_LIMIT))
        _refuse_expansion(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError(f"{path} is not readable YAML: {error}. Log the model again.") from error
    return _mapping(content)


def _text_of(path: Path, limit: int) -> str:
    size = path.stat().st_size
    if size > limit:
        raise UntrustedModel(
            f"the model's file {path.name} has {size} bytes, where {limit} are read. Log the model again."
        )
    return path.read_text(encoding="utf-8")


def _refuse_expansion(content: object) -> None:
    """UntrustedModel for YAML whose aliases, written out, would be far longer than the file, or run in circles."""
    pending, seen = [content], 0
    while pending:
        value, seen = pending.pop(), seen + 1
        if seen > _MLMODEL_VALUES:
            raise UntrustedModel("the MLmodel file repeats itself without end by YAML aliases. Log the model again.")
        pending += (
            [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        )


def _onnx(directory: Path, config: Mapping[str, Any]) -> tuple[str, Path]:
    return "onnx", _existing(inside(directory, config.get("data", "model.onnx")))


def _pytorch(directory: Path, config: Mapping[str, Any]) -> tuple[str, Path]:
    data = inside(directory, config.get("model_data", "data"))
    # MLflow loads model.pth when both exist, so its presence decides.
    if (data / "model.pth").exists():
        return "pytorch-pickle", data / "model.pth"
    return "pytorch-pt2", _existing(data / "model.pt2")


def _sklearn(directory: Path, config: Mapping[str, Any]) -> tuple[str, Path]:
    path = _existing(inside(directory, config.get("pickled_model", "model.pkl")))
    return ("sklearn-skops" if config.get("serialization_format") == "skops" else "sklearn-pickle"), path


_FLAVORS = {"onnx": _onnx, "pytorch": _pytorch, "sklearn": _sklearn}


def _why_code(framework: str, flavor: str, config: Mapping[str, Any], pyfunc: Mapping[str, Any]) -> str:
    loader = pyfunc.get("loader_module", _LOADERS[framework])
    if loader != _LOADERS[framework]:
        return f"it is served by its own loader_module {loader!r}"
    for key in _CODE_KEYS:
        if config.get(key) or (key != "cloudpickle_version" and pyfunc.get(key)):
            return f"it ships Python code ({key})"
    if flavor.endswith("-pickle"):
        return "its weights are stored by pickle, which runs code while loading"
    return ""


def _no_framework(flavors: Mapping[str, Any], directory: Path) -> RegistryError | UntrustedModel:
    found = ", ".join(sorted(flavors)) or "none"
    advice = "log it with mlflow.onnx, mlflow.pytorch (serialization_format='pt2') or mlflow.sklearn ('skops')"
    if set(flavors) == {"python_function"}:
        return UntrustedModel(
            "the model is Python code only (the python_function flavor). Code cannot be certified, and reading it "
            "would "
            f"run it: {advice}."
        )
    return RegistryError(f"none of the model's flavors ({found}) can be certified: {advice}.")


def _signature(content: Mapping[str, Any]) -> ModelSignature | None:
    stored = content.get("signature")
    if not stored:
        return None
    try:
        return ModelSignature.from_dict(stored)
    except (MlflowException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegistryError(f"the model's signature is not readable: {error}. Log the model again.") from error


def _input_example(directory: Path, content: Mapping[str, Any]) -> pd.DataFrame | np.ndarray | None:
    stored = _mapping(content.get("saved_input_example_info"))
    name = stored.get("serving_input_path") or stored.get("artifact_path")
    if not isinstance(name, str) or not name.endswith(".json") or not inside(directory, name).is_file():
        return None
    try:
        value = json.loads(_text_of(inside(directory, name), _EXAMPLE_LIMIT))
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"the model's input example {name} is not JSON: {error}. Log the model again.") from error
    table = value.get("dataframe_split", value) if isinstance(value, dict) else value
    if isinstance(table, dict) and "data" in table:
        return pd.DataFrame(table["data"], columns=table.get("columns"))
    array = table.get("inputs", table.get("instances")) if isinstance(table, dict) else table
    return np.asarray(array) if isinstance(array, list) else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RegistryError(f"the model's file {path.name} is missing from its artifacts. Log the model again.")
    return path


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else _NOTHING
