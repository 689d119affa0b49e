"""The converters that skl2onnx takes beside its own, where its own are missing, rounded, or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import MaxAbsScaler, PolynomialFeatures
from sklearn.svm import SVC, SVR, NuSVC, NuSVR

from mlflow_lipschitz.frontends.sklearn_copy import ColumnOrder
from mlflow_lipschitz.frontends.sklearn_kernels import convert_machine, machine_shapes
from mlflow_lipschitz.frontends.sklearn_writer import Writer


def _convert_order(scope: Any, operator: Any, container: Any) -> None:
    write = Writer(scope, container)
    order = write.constant(operator.raw_operator.order, TensorProto.INT64)
    write.node("Gather", operator.inputs[0].full_name, order, output=operator.outputs[0].full_name, axis=1)


def _order_shapes(operator: Any) -> None:
    operator.outputs[0].type = operator.inputs[0].type.__class__([None, len(operator.raw_operator.order)])


def _convert_polynomial(scope: Any, operator: Any, container: Any) -> None:
    """Products of powers, each power of a column computed once; skl2onnx's own needs an operator without doubles."""
    powers, write, x = operator.raw_operator.powers_, Writer(scope, container), operator.inputs[0].full_name
    features = powers.shape[1]
    degree = max(1, int(powers.max(initial=1)))
    columns = [
        write.node("Mul", write.node("Gather", x, write.constant([0], TensorProto.INT64), axis=1), write.constant(0.0))
    ]
    columns[0] = write.node("Add", columns[0], write.constant(1.0))
    columns += [x] + [write.node("Mul", x, x)] * (degree >= 2)
    columns += [write.node("Pow", x, write.constant(float(p))) for p in range(3, degree + 1)]
    table = write.node("Concat", *columns, axis=1)
    factors = [[1 + (int(p) - 1) * features + i for i, p in enumerate(row) if p] for row in powers]
    product = ""
    for number in range(max(1, *(len(places) for places in factors))):
        chosen = [places[number] if number < len(places) else 0 for places in factors]
        factor = write.node("Gather", table, write.constant(chosen, TensorProto.INT64), axis=1)
        product = write.node("Mul", product, factor) if product else factor
    write.node("Identity", product, output=operator.outputs[0].full_name)


def _polynomial_shapes(operator: Any) -> None:
    operator.outputs[0].type = DoubleTensorType([None, len(operator.raw_operator.powers_)])


def _convert_max_abs(scope: Any, operator: Any, container: Any) -> None:
    """x / scale, between -1 and 1 where the scaler clips: skl2onnx's own does not ask."""
    scaler, write = operator.raw_operator, Writer(scope, container)
    output = operator.outputs[0].full_name
    inputs = operator.inputs[0].full_name, write.constant(scaler.scale_)
    if getattr(scaler, "clip", False):
        write.node("Clip", write.node("Div", *inputs), write.constant(-1.0), write.constant(1.0), output=output)
    else:
        write.node("Div", *inputs, output=output)


def _same_columns(operator: Any) -> None:
    operator.outputs[0].type = DoubleTensorType([None, operator.raw_operator.n_features_in_])


_MACHINES = (SVC, NuSVC, SVR, NuSVR, KernelRidge)
CONVERTERS: dict[type, Callable[..., None]] = {
    **dict.fromkeys(_MACHINES, convert_machine),
    MaxAbsScaler: _convert_max_abs,
    PolynomialFeatures: _convert_polynomial,
    ColumnOrder: _convert_order,
}
SHAPES: dict[type, Callable[..., None]] = {
    **dict.fromkeys(_MACHINES, machine_shapes),
    MaxAbsScaler: _same_columns,
    PolynomialFeatures: _polynomial_shapes,
    ColumnOrder: _order_shapes,
}
