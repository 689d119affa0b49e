"""What measured numbers depend on, by names for people: rows that were measured under another value are not gone on with."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mlflow_lipschitz import __version__
from mlflow_lipschitz.certify.execution import resolve_device
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.rows import AuditedRows

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy
    from mlflow_lipschitz.registry.pull import PulledModel

# Whose code makes the numbers; of a development version the number alone does not say which.
_ENGINE = ("certificates", "certify", "checker", "engine", "frontends", "pipeline")


def journal_key(pulled: PulledModel, policy: AuditPolicy, device: str) -> dict[str, str]:
    """Everything but the measured rows and graph. Raises UsageError for a device that is not there."""
    return {
        "model (digest of its files)": pulled.manifest.digest,
        "policy (digest)": policy.digest,
        "seed": str(policy.inputs.points.seed),
        "arithmetic": f"{policy.engine.precision}, {policy.engine.arithmetic}",
        "device": _device_name(device),
        "engine version": engine_version(),
    }


def measured_fields(graph: Graph, rows: AuditedRows) -> dict[str, str]:
    """What is measured: the graph, and the rows with their names, in their order."""
    digest = hashlib.sha256(repr((rows.points.shape, rows.feature_names, rows.point_ids.tolist())).encode())
    for values in (rows.points, rows.scale):
        digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return {"graph": graph.content_hash(), "rows (digest)": f"sha256:{digest.hexdigest()}"}


@lru_cache(maxsize=1)
def engine_version() -> str:
    """Versions and the source of what computes."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in _ENGINE for path in (package / folder).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    versions = f"mlflow-lipschitz {__version__}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{versions}, source sha256:{digest.hexdigest()[:16]}"


def _device_name(device: str) -> str:
    place = resolve_device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    return f"{place.type} {name}"
