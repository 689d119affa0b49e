"""Any supported model → ONNX, each by its well-kept exporter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from mlflow_lipschitz.errors import AuditError, UnsupportedOperator, UntrustedModel, UsageError
from mlflow_lipschitz.frontends.discrete_columns import without_notes
from mlflow_lipschitz.safe_loading.onnx_file import read_onnx
from mlflow_lipschitz.safe_loading.structure import Unexpected


def to_onnx(model: Any, example: Any = None) -> onnx.ModelProto:
    """Export `model` to ONNX with its weights exactly as they are.

    Args:
        model: torch.nn.Module, torch.export.ExportedProgram, path of a .pt2 or .onnx file, onnx.ModelProto, or a fitted
            scikit-learn estimator or pipeline.
        example: rows of its input, (rows, *sample shape). Needed by torch modules; fixes the free axes of ONNX models.

    Raises:
        UsageError: the model is of a kind that cannot be exported, or needs an example.
        UntrustedModel: loading the file would run code from it.
        UnsupportedOperator: its exporter cannot export it.
        AuditError: the file cannot be read as ONNX. RegistryError: the installed torch cannot read the .pt2 archive.
    """
    if isinstance(model, (str, os.PathLike)):
        return _from_path(Path(model), example)
    if isinstance(model, onnx.ModelProto):
        return _with_shape_of(model, example)
    package = {part.__module__.partition(".")[0] for part in type(model).__mro__}
    if "torch" in package:
        return _from_torch(model, example)
    if "sklearn" in package:
        from mlflow_lipschitz.frontends.sklearn_export import sklearn_to_onnx

        return sklearn_to_onnx(model, example)
    raise UsageError(
        f"a model of type {type(model).__name__} cannot be exported; supported are torch modules, exported programs, "
        ".pt2 and .onnx files, ONNX models and scikit-learn estimators"
    )


def loaded(model: Any) -> Any:
    """The exported program where `model` is the path of a .pt2 file; anything else as it is.

    Raises:
        RegistryError: the installed torch cannot read the archive. UntrustedModel: loading it would run code from it.
    """
    if not isinstance(model, (str, os.PathLike)) or Path(model).suffix != ".pt2" or not Path(model).is_file():
        return model
    from mlflow_lipschitz.safe_loading.pt2 import load_pt2

    return load_pt2(Path(model))


def is_torch_model(model: Any) -> bool:
    """Whether it is a torch.nn.Module or an ExportedProgram; torch is not imported to find out."""
    known = {("torch.nn.modules.module", "Module"), ("torch.export.exported_program", "ExportedProgram")}
    return any((part.__module__, part.__name__) in known for part in type(model).__mro__)


def _from_path(path: Path, example: Any) -> onnx.ModelProto:
    if not path.is_file():
        raise UsageError(f"there is no model file {path}")
    if path.suffix == ".onnx":
        try:
            model = read_onnx(path)
        except Unexpected as error:
            raise UntrustedModel(f"{path.name} is refused before loading: {error}") from error
        except (OSError, ValueError) as error:
            raise AuditError(f"{path.name} cannot be read as an ONNX model: {error}") from error
        return _with_shape_of(model, example)
    if path.suffix == ".pt2":
        from mlflow_lipschitz.frontends.torch_export import program_to_onnx
        from mlflow_lipschitz.safe_loading.pt2 import load_pt2

        return program_to_onnx(load_pt2(path))
    raise UntrustedModel(
        f"{path.name} is neither .onnx nor .pt2; pickled models run code when they are loaded: save the model with "
        "torch.export.save or as ONNX, or pass the model object itself"
    )


def _from_torch(model: Any, example: Any) -> onnx.ModelProto:
    import torch

    from mlflow_lipschitz.frontends.torch_export import module_to_onnx, program_to_onnx

    if isinstance(model, torch.export.ExportedProgram):
        return program_to_onnx(model)
    if isinstance(model, (torch.nn.Module, torch.jit.ScriptFunction)):
        return module_to_onnx(model, example)
    raise UsageError(f"a model of type {type(model).__name__} cannot be exported; pass the torch.nn.Module itself")


def _with_shape_of(model: onnx.ModelProto, example: Any) -> onnx.ModelProto:
    """A copy in which the example's shape fixes every free axis of the input but the batch."""
    model = without_notes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [i for i, value in enumerate(model.graph.input) if value.name not in constants]
    if example is None or len(inputs) != 1:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    value = copy.graph.input[inputs[0]]
    dims = value.type.tensor_type.shape.dim
    shape = tuple(example.shape)
    if len(dims) != len(shape):
        raise UnsupportedOperator(
            "Input",
            value.name,
            reason=f"the model takes tensors of {len(dims)} axes, the rows have {len(shape)}, the batch included",
            remedy="pass rows of shape (rows, *sample shape)",
        )
    for dim, length in list(zip(dims, shape, strict=True))[1:]:
        if dim.dim_value <= 0:
            dim.dim_value = length
        elif dim.dim_value != length:
            raise UsageError(f"the model takes samples {[d.dim_value for d in dims][1:]}, the rows have {shape[1:]}")
    return copy
