"""Profiles: `ci` is derandomized and small, `long` is what soundness figures are quoted from."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

from tests import torch_exports, type_checks

type_checks.install("mlflow_lipschitz")

settings.register_profile(
    "ci", max_examples=12, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Whoever runs the tests may have keys of their own configured; the tests bring theirs.
for variable in ("LIPSCHITZ_SIGNING_KEY", "LIPSCHITZ_TRUSTED_KEYS", "LIPSCHITZ_REVOKED_KEYS"):
    os.environ.pop(variable, None)

# Test processes share the cores.
torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    torch_exports.parse_translations_once()
