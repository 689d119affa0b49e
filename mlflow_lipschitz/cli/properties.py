"""`verify-property`: what it prints and what it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_lipschitz.cli.failures import BLOCKED, FAILED, PASSED
from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.plain_text import one_line

if TYPE_CHECKING:
    from mlflow_lipschitz.pipeline.property_check import PropertyReport

_CODES = {"certified": PASSED, "violated": BLOCKED, "undecided": FAILED}
_WORDS = {"certified": "unsat", "violated": "sat", "undecided": "unknown"}  # of the verification competitions
_COLORS = {"certified": "green", "violated": "red", "undecided": "yellow"}
_SHOWN = 64  # values of a counterexample; more are read in a file


@dataclass(frozen=True)
class PropertyRequest:
    """The options of `verify-property`."""

    model: Path
    property_file: Path
    timeout: float = 60.0
    device: str = "auto"
    style: str = "text"
    out: Path | None = None
    chunk_size: int | None = None


def verify_property(request: PropertyRequest) -> int:
    """Answer whether the property holds; 0 only when that is proved."""
    from mlflow_lipschitz.pipeline.property_check import PropertyOptions, check_property

    options = PropertyOptions(request.timeout, request.device, request.chunk_size)
    report = check_property(request.model, request.property_file, options)
    if request.out is not None:
        _write(request.out, report)
    click.echo(_as_json(report) if request.style == "json" else _as_text(report, request))
    return _CODES[report.status]


def _values(report: PropertyReport) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Names and values of the inputs and outputs of the counterexample, exactly as the model took and gave them."""
    example = report.counterexample
    if example is None:
        return [], []
    sides = (("X", example.point), ("Y", example.outputs))
    named = [[(f"{letter}_{i}", float(v)) for i, v in enumerate(side.flatten())] for letter, side in sides]
    return named[0], named[1]


def _as_text(report: PropertyReport, request: PropertyRequest) -> str:
    status = click.style(report.status, fg=_COLORS[report.status], bold=True)
    lines = [f"{status}: {one_line(request.property_file.name)}: {one_line(report.message)} ({report.seconds:.1f} s)"]
    for values in _values(report):
        lines += [f"  {name} = {value!r}" for name, value in values[:_SHOWN]]
        if len(values) > _SHOWN:
            lines.append(f"  … {len(values) - _SHOWN} more; --out FILE or --format json gives all")
    return "\n".join(lines)


def _as_json(report: PropertyReport) -> str:
    document = {
        "status": report.status,
        "message": report.message,
        "seconds": round(report.seconds, 3),
        "boxes": report.answer.pieces,
        "arithmetic": report.answer.arithmetic if report.status == "certified" else None,
        "inputs": [value for _, value in _values(report)[0]],
        "outputs": [value for _, value in _values(report)[1]],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _write(path: Path, report: PropertyReport) -> None:
    """The competitions' result file: one word, and after `sat` the inputs and outputs.

    Raises:
        UsageError: it cannot be written.
    """
    inputs, outputs = _values(report)
    values = "\n ".join(f"({name} {value!r})" for name, value in [*inputs, *outputs])
    text = _WORDS[report.status] + "\n" + (f"({values})\n" if values else "")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the result cannot be written to {path}: {error}") from error
