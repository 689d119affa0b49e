"""What logits say about labels and probabilities: one place, used where models are cut and where they are compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx

# Model property that holds a classifier's labels as JSON, in the order of its logits.
CLASSES_KEY = "mlflow_lipschitz.classes"


def classes_of(model: onnx.ModelProto) -> list[Any] | None:
    """Labels of a classifier that `to_onnx` cut at its logits; None for any other model."""
    for entry in model.metadata_props:
        if entry.key == CLASSES_KEY:
            return list(json.loads(entry.value))
    return None


def probabilities_from(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ways a classifier makes probabilities of (rows, classes) logits: softmax, and sigmoids scaled to sum 1.

    Where all sigmoids are 0 in floating point, scikit-learn answers equal probabilities.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    sigmoids = np.exp(-np.logaddexp(0.0, -logits))
    total = sigmoids.sum(axis=1, keepdims=True)
    normalized = np.where(total > 0, sigmoids / np.where(total > 0, total, 1.0), 1.0 / logits.shape[1])
    return shifted / shifted.sum(axis=1, keepdims=True), normalized
