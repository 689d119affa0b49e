"""Parts of scikit-learn pipelines that no bound can be given for, refused by name before an exporter stumbles over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow_lipschitz.errors import UnsupportedOperator

_SMOOTH = "train a linear model, a kernel machine or a multi-layer perceptron on the same columns"
_JUMPS = "a jump has no Lipschitz constant"
_TREES = (f"trees answer in steps, and {_JUMPS}", _SMOOTH)
_NEIGHBORS = (f"its answer changes at once where another neighbor becomes the nearest, and {_JUMPS}", _SMOOTH)
_BINS = (f"it sorts numbers into bins, and {_JUMPS}", "keep the number itself, scaled by StandardScaler")

_BY_MODULE = {"tree": _TREES, "neighbors": _NEIGHBORS, "cluster": (f"it assigns clusters, and {_JUMPS}", _SMOOTH)}
_BY_NAME = {
    **dict.fromkeys(("KBinsDiscretizer", "Binarizer"), _BINS),
    "TargetEncoder": ("its export rounds the encodings to float32", "use OneHotEncoder, or encode before the pipeline"),
    "OneVsOneClassifier": (f"its pairs of classes vote, and {_JUMPS}", "use OneVsRestClassifier instead"),
}
_TREE_ENSEMBLES = ("Forest", "Trees", "GradientBoosting", "AdaBoost")


def refuse_jumps(estimator: Any) -> None:
    """Raises UnsupportedOperator for the first part that jumps, or that is a Python function no exporter can read."""
    for path, part in _parts(estimator, ""):
        found = _reason(part)
        if found:
            raise UnsupportedOperator(type(part).__name__, path or "estimator", reason=found[0], remedy=found[1])


def _reason(part: Any) -> tuple[str, str] | None:
    name, module = type(part).__name__, type(part).__module__.split(".")
    if name == "FunctionTransformer" and not (part.func is None and part.inverse_func is None):
        return (
            "it runs a Python function, which cannot be exported",
            "apply the function to the data before the pipeline",
        )
    if module[:1] != ["sklearn"]:
        return None
    if module[1] in ("svm", "kernel_ridge") and callable(getattr(part, "kernel", None)):
        return (
            "its kernel is a function of your own, which cannot be exported",
            "use one of scikit-learn's kernels by name",
        )
    if name in _BY_NAME:
        return _BY_NAME[name]
    if module[1] == "ensemble" and any(word in name for word in _TREE_ENSEMBLES):
        return _TREES
    return _BY_MODULE.get(module[1])


def _parts(estimator: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, estimator
    named = [*getattr(estimator, "steps", ()), *getattr(estimator, "transformer_list", ())]
    named += [(name, part) for name, part, _ in getattr(estimator, "transformers_", ())]
    listed = getattr(estimator, "estimators_", ())
    named += [(f"estimators_[{i}]", part) for i, part in enumerate(listed if isinstance(listed, list) else ())]
    named += [(own, getattr(estimator, own)) for own in ("best_estimator_", "regressor_") if hasattr(estimator, own)]
    for name, part in named:
        if hasattr(part, "get_params"):
            yield from _parts(part, f"{path}.{name}" if path else name)
