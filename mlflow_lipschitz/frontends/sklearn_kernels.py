"""Kernel machines (SVC, SVR, their Nu variants, kernel ridge) as ONNX, with the weights as fitted.

skl2onnx's own converters write the support vectors, coefficients and intercepts of a kernel machine as float32 attributes of
one operator that onnxruntime computes in float32: not the model that scikit-learn serves. Here the same formulas are ordinary
operators in double precision, on the fitted parameters bit by bit:

    f(x) = Σᵢ αᵢ k(x, sᵢ) + b,   k = ⟨x, s⟩,  exp(−γ‖x − s‖²),  (γ⟨x, s⟩ + c)ᵈ  or  tanh(γ⟨x, s⟩ + c)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC, NuSVC

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.sklearn_writer import Writer

KERNELS = ("linear", "rbf", "poly", "sigmoid")


@dataclass(frozen=True)
class KernelSum:
    """f(x) = Σᵢ αᵢ k(x, sᵢ) + b of a fitted kernel machine: `supports` (n, features), `weights` (n, outputs)."""

    kernel: str
    supports: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    gamma: float
    offset: float
    degree: float


def kernel_sum(machine: Any) -> KernelSum:
    """The function of a fitted machine, its parameters as they are.

    Raises:
        UnsupportedOperator: another kernel, several classes (whose votes jump), or probabilities of their own.
    """
    if machine.kernel not in KERNELS:
        raise _refusal(machine, f"its kernel is {machine.kernel}", f"use one of the kernels {', '.join(KERNELS)}")
    if isinstance(machine, KernelRidge):
        supports, weights, intercept = machine.X_fit_, np.reshape(machine.dual_coef_, (len(machine.X_fit_), -1)), 0.0
        gamma = 1.0 / supports.shape[1] if machine.gamma is None else machine.gamma
    else:
        _refuse_votes(machine)
        supports, weights, intercept = machine.support_vectors_, _dense(machine.dual_coef_).T, machine.intercept_
        gamma = machine._gamma
    return KernelSum(
        kernel=machine.kernel,
        supports=_dense(supports).astype(np.float64),
        weights=np.asarray(weights, dtype=np.float64),
        intercept=np.asarray(intercept, dtype=np.float64),
        gamma=float(gamma),
        offset=float(machine.coef0),
        degree=float(machine.degree),
    )


def _refuse_votes(machine: Any) -> None:
    if isinstance(machine, (SVC, NuSVC)) and len(machine.classes_) > 2:
        remedy = f"fit OneVsRestClassifier({type(machine).__name__}(…)): its largest score decides"
        raise _refusal(machine, "its pairs of classes vote, and a vote is a jump", remedy)
    if isinstance(machine, (SVC, NuSVC)) and np.size(machine._probA):  # the public name warns that it will go
        reason = "its probabilities and its labels come from two different functions"
        raise _refusal(machine, reason, "fit it with probability=False: its score is what decides")


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)


def convert_machine(scope: Any, operator: Any, container: Any) -> None:
    machine, write = kernel_sum(operator.raw_operator), Writer(scope, container)
    values = _values(write, machine, operator.inputs[0].full_name)
    if len(operator.outputs) == 1:
        write.node("Add", values, write.constant(machine.intercept), output=operator.outputs[0].full_name)
        return
    score = write.node("Add", values, write.constant(machine.intercept))
    both = write.node("Concat", write.node("Neg", score), score, output=operator.outputs[1].full_name, axis=1)
    write.node("ArgMax", both, output=operator.outputs[0].full_name, axis=1, keepdims=0)


def _values(write: Writer, machine: KernelSum, x: str) -> str:
    """Σᵢ αᵢ k(x, sᵢ), (rows, outputs)."""
    if machine.kernel == "linear":
        return write.node("MatMul", x, write.constant(machine.supports.T @ machine.weights))
    if machine.kernel == "rbf":
        column = write.node("Unsqueeze", x, write.constant([1], TensorProto.INT64))
        difference = write.node("Sub", column, write.constant(machine.supports))
        squares = write.node("Mul", difference, difference)
        distance = write.node("ReduceSum", squares, write.constant([2], TensorProto.INT64), keepdims=0)
        kernels = write.node("Exp", write.node("Mul", distance, write.constant(-machine.gamma)))
    else:
        products = write.node("MatMul", x, write.constant(machine.gamma * machine.supports.T))
        inner = write.node("Add", products, write.constant(machine.offset))
        if machine.kernel == "sigmoid":
            kernels = write.node("Tanh", inner)
        else:
            kernels = write.node("Pow", inner, write.constant(machine.degree))
    return write.node("MatMul", kernels, write.constant(machine.weights))


def machine_shapes(operator: Any) -> None:
    if len(operator.outputs) == 1:
        operator.outputs[0].type = DoubleTensorType([None, None])
    else:
        operator.outputs[0].type, operator.outputs[1].type = Int64TensorType([None]), DoubleTensorType([None, 2])


def _refusal(machine: Any, reason: str, remedy: str) -> UnsupportedOperator:
    return UnsupportedOperator(type(machine).__name__, "estimator", reason=reason, remedy=remedy)
