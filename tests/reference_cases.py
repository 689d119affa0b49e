"""Networks, points and reference numbers of the state of the art, where a checkout has them beside the project.

They are test data only and not part of the project; everything that uses them skips when they are absent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.engine.ir.graph import Graph

FOLDER = Path(__file__).parent.parent.parent / "shared" / "cases"


@dataclass(frozen=True)
class ReferenceCase:
    """One network at one radius. Reference lists have one number per point; some rows only have exact values."""

    model: str
    radius: float
    shape: tuple[int, ...]
    row: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.model} r={self.radius:.4f}"

    @property
    def points(self) -> np.ndarray:
        with np.load(FOLDER / f"{self.model}.npz") as archive:
            return archive[archive.files[0]].astype(np.float64).reshape(-1, *self.shape)[:10]

    @property
    def graph(self) -> Graph:
        from mlflow_lipschitz import trace

        return trace(FOLDER / f"{self.model}.onnx")

    def values(self, key: str) -> np.ndarray:
        """(points,) reference numbers, each the maximum over the outputs."""
        return np.array(self.row[key], dtype=float)

    @property
    def exact(self) -> list[dict[str, Any]]:
        """Single (point, output) pairs; `status` 0 means solved to optimality."""
        return self.row.get("exact") or []


def reference_cases() -> list[ReferenceCase]:
    """All rows; empty when the folder is absent."""
    file = FOLDER / "reference.json"
    if not file.exists():
        return []
    return [ReferenceCase(r["model"], r["eps"], tuple(r["shape"]), r) for r in json.loads(file.read_text())]
