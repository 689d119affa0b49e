"""Every exception a user can see, each with the exit code the command line answers with.

Exit codes (the contract): 0 passed, 1 blocked by the policy, 2 usage or policy error, 3 the audit itself failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LipschitzError(Exception):
    """Base of all errors of this package. `exit_code` is what the command line returns."""

    exit_code = 3


class UnsupportedOperator(LipschitzError):
    """The model holds an operator the engine has no rule for.

    Args:
        operator: the operator's type, as ONNX spells it.
        node: the node's name in the ONNX graph.
        origin: where the node came from in the user's model; empty when the exporter recorded nothing.
        reason: what exactly is not supported.
        remedy: what the user can do about it.
    """

    def __init__(self, operator: str, node: str, *, origin: str = "", reason: str = "", remedy: str = "") -> None:
        self.operator, self.node, self.origin, self.reason, self.remedy = operator, node, origin, reason, remedy
        where = f"node {node!r}" + (f" (from {origin})" if origin else "")
        why = reason or "no rule for this operator"
        hint = remedy or "replace the operator, or list every node with: mlflow-lipschitz support MODEL_URI"
        super().__init__(f"unsupported operator {operator} at {where}: {why}. {hint}")


class InvalidRegion(LipschitzError):
    """The region is empty, not finite, or its shape does not fit the points."""

    exit_code = 2


class InvalidData(LipschitzError):
    """The audited rows cannot be used; the message names the row and the column."""

    exit_code = 2


class UsageError(LipschitzError):
    """The call itself cannot be carried out as asked (an absent device, an unknown option value)."""

    exit_code = 2


class PropertyError(LipschitzError):
    """A VNN-LIB file says something that is not understood. `line` counts from 1; 0 where no line applies."""

    exit_code = 2

    def __init__(self, message: str, line: int = 0) -> None:
        self.line = line
        super().__init__(f"line {line}: {message}" if line else message)


@dataclass(frozen=True)
class PolicyIssue:
    """One thing wrong with a policy file. `line` counts from 1; 0 where no line applies."""

    line: int
    where: str
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.where}: {self.message}" if self.where else f"{place}{self.message}"


class PolicyError(LipschitzError):
    """The policy cannot be used. All issues are collected in `errors`, none is reported alone."""

    exit_code = 2

    def __init__(self, errors: Sequence[PolicyIssue], source: str = "policy") -> None:
        self.errors = tuple(errors)
        self.source = source
        lines = "\n".join(f"  {issue}" for issue in self.errors)
        super().__init__(f"{source} has {len(self.errors)} error(s):\n{lines}")


class UntrustedModel(LipschitzError):
    """Loading this model would run code from its files, and the user did not allow it."""

    exit_code = 2


class FidelityError(LipschitzError):
    """The graph that would be certified does not compute what the served model computes."""


class RegistryError(LipschitzError):
    """The model, its run or its files cannot be read from or written to the tracking store."""


class AuditError(LipschitzError):
    """The audit could not be completed. Nothing was decided, so nothing is passed."""


class Interrupted(KeyboardInterrupt):
    """Somebody stopped the audit, by Ctrl-C or SIGTERM; the message says what is kept and how to go on.

    No LipschitzError, so that nothing that handles errors takes an interruption for one.
    """

    exit_code = 3


class PromotionRefused(LipschitzError):
    """The model version may not be promoted; the message says what is missing."""

    exit_code = 1
