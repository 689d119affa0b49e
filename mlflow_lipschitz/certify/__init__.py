"""What a user asks of a model: local Lipschitz constants, monotonicity, certified radii."""

from mlflow_lipschitz.certify.attention import SelfAttention, attention_lipschitz, normalized_radius
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.certify.deployed import served_error_bounds, why_unserved
from mlflow_lipschitz.certify.lipschitz import LipschitzCertificate, certify_lipschitz
from mlflow_lipschitz.certify.monotonicity import (
    MonotonicityCertificate,
    Violation,
    certify_monotonicity,
    find_violation,
)
from mlflow_lipschitz.certify.radius import RadiusCertificate, certified_radius

__all__ = [
    "Budget",
    "LipschitzCertificate",
    "MonotonicityCertificate",
    "RadiusCertificate",
    "SelfAttention",
    "Violation",
    "attention_lipschitz",
    "certified_radius",
    "certify_lipschitz",
    "certify_monotonicity",
    "find_violation",
    "normalized_radius",
    "served_error_bounds",
    "why_unserved",
]
