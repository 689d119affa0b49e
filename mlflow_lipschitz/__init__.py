"""Certified Lipschitz, monotonicity and robustness bounds as an MLflow gate.

Every public name is loaded on first use, so that `import mlflow_lipschitz` costs nothing: no torch, onnx,
great_expectations or mlflow.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditOptions, AuditResult, audit
    from mlflow_lipschitz.certify import (
        SelfAttention,
        attention_lipschitz,
        certified_radius,
        certify_lipschitz,
        certify_monotonicity,
        served_error_bounds,
        why_unserved,
    )
    from mlflow_lipschitz.engine.domains.region import Box, LpBall
    from mlflow_lipschitz.frontends import trace
    from mlflow_lipschitz.policy import load_policy
    from mlflow_lipschitz.registry.promotion import PromotionOptions, promote

_ORIGINS = {
    "AuditOptions": "audit",
    "AuditResult": "audit",
    "audit": "audit",
    "Budget": "certify.budget",
    "SelfAttention": "certify",
    "attention_lipschitz": "certify",
    "certified_radius": "certify",
    "certify_lipschitz": "certify",
    "certify_monotonicity": "certify",
    "served_error_bounds": "certify",
    "why_unserved": "certify",
    "Box": "engine.domains.region",
    "LpBall": "engine.domains.region",
    "trace": "frontends",
    "load_policy": "policy",
    "PromotionOptions": "registry.promotion",
    "promote": "registry.promotion",
}

__all__ = [
    "AuditOptions",
    "AuditResult",
    "Box",
    "Budget",
    "LpBall",
    "PromotionOptions",
    "SelfAttention",
    "attention_lipschitz",
    "audit",
    "certified_radius",
    "certify_lipschitz",
    "certify_monotonicity",
    "load_policy",
    "promote",
    "served_error_bounds",
    "trace",
    "why_unserved",
]

try:
    __version__ = version("mlflow-lipschitz")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ORIGINS[name]}"), name)


class _Package(ModuleType):
    """Keeps `mlflow_lipschitz.audit` the function: importing the submodule of that name would put the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.audit if name == "audit" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
