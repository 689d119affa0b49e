"""Which rule speaks for which op. An explicit table: a duplicate cannot be written, a miss is loud."""

from __future__ import annotations

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.affine import AddRule, AffineRule, ConcatRule
from mlflow_lipschitz.engine.rules.affine_maps import AFFINE_MAPS
from mlflow_lipschitz.engine.rules.elementwise import ElementwiseRule, supported_curve
from mlflow_lipschitz.engine.rules.log_softmax import LogSoftmaxRule
from mlflow_lipschitz.engine.rules.matrix_product import MatMulRule
from mlflow_lipschitz.engine.rules.maximum import MaximumRule, RemainderRule
from mlflow_lipschitz.engine.rules.normalization import NormalizedRule
from mlflow_lipschitz.engine.rules.product import MultiplyRule
from mlflow_lipschitz.engine.rules.protocol import Rule
from mlflow_lipschitz.engine.rules.quantization import RoundingRule
from mlflow_lipschitz.errors import UnsupportedOperator

RULES: dict[type[Op], Rule] = {
    **dict.fromkeys((*AFFINE_MAPS, ops.Adjoint), AffineRule()),
    ops.Add: AddRule(),
    ops.Concat: ConcatRule(),
    ops.Elementwise: ElementwiseRule(),
    ops.LogSoftmax: LogSoftmaxRule(),
    ops.MatMul: MatMulRule(),
    ops.Maximum: MaximumRule(),
    ops.Multiply: MultiplyRule(),
    ops.Normalized: NormalizedRule(),
    ops.Remainder: RemainderRule(),
    ops.Rounding: RoundingRule(),
}

# The two ops that are given, not computed; propagation reads them from the region and the objective.
SOURCES: tuple[type[Op], ...] = (ops.Input, ops.Cotangent)


def rule_for(op: Op, name: str = "") -> Rule:
    """The rule of an op.

    Raises:
        UnsupportedOperator: there is none; names the node.
    """
    try:
        return RULES[type(op)]
    except KeyError:
        raise UnsupportedOperator(type(op).__name__, name) from None


def is_supported(op: Op) -> bool:
    """Whether values of the op can be bounded, and its derivatives where it has any."""
    if isinstance(op, ops.Elementwise):
        return supported_curve(op)
    return type(op) in RULES or isinstance(op, SOURCES)
