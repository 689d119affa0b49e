"""torch modules and exported programs → ONNX, through torch's own exporter with its optimizations off."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch

from mlflow_lipschitz.errors import UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends.torch_translations import TRANSLATIONS

# The dynamo exporter's own; every supported onnxruntime runs it, and in it double precision stays double: the operators of newer
# ones normalize and scale attention in float32.
OPSET = 20


def module_to_onnx(module: torch.nn.Module | torch.jit.ScriptFunction, example: Any) -> onnx.ModelProto:
    """The module in evaluation mode, with a free batch axis. The module itself is left as it was.

    Args:
        module: takes one tensor (batch, ...) and returns one, or several of which the first is audited.
        example: (rows, *sample shape), NumPy or torch; only its shape matters, and whether it holds whole numbers, for a
            module that looks up tokens.

    Raises:
        UsageError: TorchScript, or no example.
        UnsupportedOperator: torch cannot export the module with a free batch axis; says why.
    """
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UsageError(
            "TorchScript is not supported: pass the original torch.nn.Module, or save it with torch.export"
        )
    if example is None:
        raise UsageError("a torch module needs an example: rows of its input, of shape (rows, *sample shape)")
    rows = example_rows(module, example)
    # An example batch of 1 would be taken as a constant by torch.export, so the axis could not be free.
    rows = torch.cat([rows, rows])[:2] if len(rows) < 2 else rows[:2]
    with evaluation_mode(module):
        program = _captured(module, rows)
        if program is not None:
            return program_to_onnx(program, type(module).__name__)
        return _export(module, (rows,), ({0: torch.export.Dim("batch")},), type(module).__name__)


def program_to_onnx(program: torch.export.ExportedProgram, name: str = "ExportedProgram") -> onnx.ModelProto:
    """An exported program with the batch it was exported with: free, or of a fixed length. Errors call it by `name`.

    Raises:
        UnsupportedOperator: it changes its buffers, or normalizes by the batch; or torch cannot export it.
    """
    _refuse_state(program)
    return _export(program, (), None, name)


def program_input(program: torch.export.ExportedProgram) -> tuple[int | None, torch.dtype]:
    """The length of the batch that a program takes, None when it is free, and the type of its rows."""
    name = program.graph_signature.user_inputs[0]
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    return value.shape[0] if isinstance(value.shape[0], int) else None, value.dtype


def _captured(module: torch.nn.Module, rows: torch.Tensor) -> torch.export.ExportedProgram | None:
    """The module as a program for a batch of any length; None where only the ONNX exporter, which tries harder, may do it."""
    try:
        with _quiet():
            return torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        if "Constraints violated" not in str(error):
            return None
        said = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
        raise UnsupportedOperator(
            "torch.export",
            type(module).__name__,
            reason=f"its code depends on how many rows the batch has: {' '.join(said) or 'it asks for the length'}",
            remedy="compute every row by itself, without Python branches or numbers made of the length of the batch",
        ) from error


def _refuse_state(program: torch.export.ExportedProgram) -> None:
    changed = _changed_buffers(program)
    by_batch = [node.name for node in program.graph.nodes if _normalizes_by_the_batch(node)]
    if by_batch:
        raise UnsupportedOperator(
            "batch_norm",
            by_batch[0],
            reason="it is in training mode: it normalizes by the rows of the batch",
            remedy="put the model in evaluation mode (model.eval()) before exporting it",
        )
    if changed:
        raise UnsupportedOperator(
            "torch.export",
            changed[0],
            reason=f"its forward changes its buffer {changed[0]!r}, so its answers depend on earlier requests",
            remedy="leave buffers as they are in evaluation mode: `if self.training: …`",
        )


def _changed_buffers(program: torch.export.ExportedProgram) -> list[str]:
    """Programs say so themselves only once what they do in place is written out."""
    in_place = any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in program.graph.nodes)
    with _quiet():
        signature = (program.run_decompositions({}) if in_place else program).graph_signature
    return [str(name) for name in signature.buffers_to_mutate.values()]


def _normalizes_by_the_batch(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or "batch_norm" not in schema.name:
        return False
    names = [argument.name for argument in schema.arguments]
    return bool(dict(zip(names, node.args, strict=False)).get("training", node.kwargs.get("training", False)))


def _export(model: Any, arguments: tuple[Any, ...], dynamic_shapes: Any, name: str) -> onnx.ModelProto:
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:  # the exporter runs the user's code, which may raise anything; we stop either way
        raise UnsupportedOperator(
            "torch.onnx.export",
            name,
            reason=f"torch cannot export it: {_innermost(error)}",
            remedy="the model must take one tensor with a batch of any length as axis 0; or export it to ONNX yourself",
        ) from error
    assert program is not None
    return program.model_proto


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip().split("\n\n")[0]


def example_rows(module: torch.nn.Module, example: Any) -> torch.Tensor:
    """The example as the module takes it: on its device, in its type. Raises UsageError when there are no rows."""
    rows = example.detach() if isinstance(example, torch.Tensor) else torch.from_numpy(np.array(example, dtype=float))
    if rows.ndim == 0 or len(rows) == 0:
        raise UsageError("the example has no rows; shape (rows, *sample shape) is expected")
    parameters = [p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()]
    real = rows if isinstance(example, torch.Tensor) and rows.is_floating_point() else rows.float()
    if parameters:
        real = rows.to(dtype=parameters[0].dtype, device=parameters[0].device)
    numbers = rows.to(dtype=torch.int64, device=real.device)
    # Only a module that cannot take real numbers, because it looks them up, is given whole ones.
    if (
        torch.equal(numbers.to(rows.dtype), rows.to(real.device))
        and not _takes(module, real)
        and _takes(module, numbers)
    ):
        return numbers
    return real


def _takes(module: torch.nn.Module, rows: torch.Tensor) -> bool:
    try:
        with evaluation_mode(module), torch.no_grad():
            module(rows[:2])
    except Exception:  # noqa: BLE001 - the user's code, which may raise anything; what it raises is met again in the export
        return False
    return True


@contextlib.contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """The module as it answers requests; afterwards it is as it was, its buffers too."""
    modes = [(part, part.training) for part in module.modules()]
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for part, buffers in kept:
            part._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress marks on stdout and no remarks about packages the exporter would also like to see."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
