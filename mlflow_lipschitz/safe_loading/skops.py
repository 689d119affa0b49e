"""Loading a skops archive (scikit-learn) with this package's own list of types, not the list inside the model.

MLflow passes skops the allow-list it finds in the model's own MLmodel file, and skops adds hundreds of types of its
own. Here the archive's schema is read as JSON first: every node must use a loader and a type named below, or the
model is refused by the names of what was found. What skops then reads is a copy of the records that were checked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import RegistryError, UntrustedModel
from mlflow_lipschitz.safe_loading.archives import check_array, read_records, stored
from mlflow_lipschitz.safe_loading.structure import Unexpected

_SCHEMA = "schema.json"
_SCHEMA_LIMIT = 32 << 20
_DEPTH = 200

# Public class names by public module. Private submodules below them (`sklearn.linear_model._base`) are the same place.
_ESTIMATORS = {
    "sklearn.pipeline": "Pipeline FeatureUnion",
    "sklearn.compose": "ColumnTransformer TransformedTargetRegressor _RemainderColsList make_column_selector",
    "sklearn.preprocessing": (
        # A column transformer holds one for the columns it passes on; a function in it would be a node of its own, and refused.
        "FunctionTransformer "
        "StandardScaler MinMaxScaler MaxAbsScaler RobustScaler Normalizer PolynomialFeatures LabelBinarizer "
        "LabelEncoder "
        "OneHotEncoder OrdinalEncoder PowerTransformer QuantileTransformer SplineTransformer KBinsDiscretizer Binarizer"
    ),
    "sklearn.impute": "SimpleImputer",
    "sklearn.decomposition": "PCA TruncatedSVD FastICA NMF",
    "sklearn.feature_selection": "SelectKBest SelectPercentile VarianceThreshold",
    "sklearn.linear_model": (
        "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV BayesianRidge ARDRegression "
        "HuberRegressor "
        "QuantileRegressor TweedieRegressor PoissonRegressor GammaRegressor LogisticRegression LogisticRegressionCV "
        "RidgeClassifier SGDClassifier SGDRegressor Perceptron TheilSenRegressor OrthogonalMatchingPursuit Lars"
    ),
    "sklearn.neural_network": "MLPRegressor MLPClassifier AdamOptimizer SGDOptimizer",
    "sklearn.svm": "SVC SVR LinearSVC LinearSVR NuSVC NuSVR",
    "sklearn.gaussian_process": "GaussianProcessRegressor RBF ConstantKernel WhiteKernel Matern Sum Product",
    "sklearn.naive_bayes": "GaussianNB",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "sklearn.kernel_ridge": "KernelRidge",
    "sklearn.cross_decomposition": "PLSRegression",
    "sklearn.multiclass": "OneVsRestClassifier _ConstantPredictor",
    "sklearn.utils": "Bunch",
}
_TYPES = frozenset((module, name) for module, names in _ESTIMATORS.items() for name in names.split())
_NUMPY_SCALAR = re.compile(r"(bool_?|(u?int|float)(8|16|32|64)|str_|bytes_)")
_CONTAINERS = {
    "DictNode": {"builtins.dict", "collections.OrderedDict"},
    "ListNode": {"builtins.list"},
    "TupleNode": {"builtins.tuple"},
    "SetNode": {"builtins.set"},
    "SliceNode": {"builtins.slice"},
    "RandomStateNode": {"numpy.random.mtrand.RandomState"},
}
_PLAIN_TYPES = {
    *(f"builtins.{name}" for name in ("bool", "float", "int", "object", "str")),
    *(f"numpy.{name}" for name in ("number", "integer", "floating", "object_")),
}
_LEAVES = {"JsonNode", "CachedNode"}


def load_skops(path: str | Path) -> Any:
    """The estimator in the archive at `path`.

    Raises UntrustedModel naming every type outside the list, or why the archive is no plain one; RegistryError when the
    installed scikit-learn or skops cannot rebuild it.
    """
    path = Path(path)
    try:
        records = _records(path)
        nodes = _nodes(_schema(records))
    except Unexpected as error:
        raise UntrustedModel(
            f"{path.name} is refused before loading: not a skops file that can be read safely: {error}. Log the model again "
            "with mlflow.sklearn.log_model(model, name=…, serialization_format='skops')."
        ) from error
    unknown = sorted({found for node in nodes if (found := _unlisted(node))})
    if unknown:
        raise UntrustedModel(
            f"the skops file {path.name} is refused before loading: it names {', '.join(unknown)}, outside the "
            "types this tool loads. Build the model from scikit-learn's own estimators, log it as ONNX with "
            "mlflow.onnx.log_model, or allow it with trust_pickle=True (--trust-pickle) if you wrote it yourself."
        )
    import skops.io

    data = stored(records).getvalue()
    try:
        return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise RegistryError(
            f"{path} cannot be rebuilt by the installed scikit-learn and skops: {error}. Install the versions named "
            "in the "
            "model's requirements.txt."
        ) from error


def _records(path: Path) -> dict[str, bytes]:
    records = read_records(path)
    for name, content in records.items():
        if name == _SCHEMA:
            continue
        try:
            check_array(content)
        except Unexpected as error:
            raise Unexpected(f"{name[:80]}: {error}") from error
    return records


def _schema(records: dict[str, bytes]) -> Any:
    content = records.get(_SCHEMA)
    if content is None:
        raise Unexpected("it has no schema.json")
    if len(content) > _SCHEMA_LIMIT:
        raise Unexpected(f"schema.json has {len(content)} bytes, where {_SCHEMA_LIMIT} are allowed")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unexpected(f"schema.json is not JSON ({error})") from error


def _nodes(schema: Any) -> list[dict[str, Any]]:
    """Every node of the schema, however deep; Unexpected beyond a depth that no estimator has."""
    nodes, level = [], [schema]
    for _ in range(_DEPTH):
        nodes += [value for value in level if isinstance(value, dict) and "__loader__" in value]
        level = [child for value in level for child in _children(value)]
    if level:
        raise Unexpected(f"schema.json is nested more than {_DEPTH} levels deep")
    return nodes


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _unlisted(node: dict[str, Any]) -> str:
    """The name of what `node` would build when that is not on the list, else an empty string."""
    loader, module, name = node["__loader__"], str(node.get("__module__")), str(node.get("__class__"))
    full = f"{module}.{name}"
    if loader in _LEAVES or full in _CONTAINERS.get(loader, ()):
        return ""
    if loader == "ObjectNode" and (_public(module), name) in _TYPES:
        return ""
    numeric = module == "numpy" and (_NUMPY_SCALAR.fullmatch(name) or name == "ndarray")
    if loader == "NdArrayNode" and numeric:
        return ""
    if loader == "TypeNode" and (numeric or full in _PLAIN_TYPES):
        return ""
    if loader == "DTypeNode" and module in ("numpy", "numpy.dtypes"):
        return ""
    return f"{full} ({loader})"


def _public(module: str) -> str:
    """`sklearn.linear_model` for `sklearn.linear_model._base`."""
    return ".".join(module.split(".")[:2])
