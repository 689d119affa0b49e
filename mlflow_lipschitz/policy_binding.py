"""Names in a policy against the names of a model's features and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mlflow_lipschitz.errors import PolicyIssue
from mlflow_lipschitz.policy_messages import did_you_mean
from mlflow_lipschitz.policy_models import Monotone, SensitivityAtMost
from mlflow_lipschitz.policy_yaml import Path

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy

LineOf = Callable[[Path], int]


def matching(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """The `names` a pattern stands for. A name is first taken literally: `x[0]` is a feature before it is a pattern."""
    if pattern in names:
        return (pattern,)
    return tuple(name for name in names if fnmatchcase(name, pattern))


def binding_issues(
    policy: AuditPolicy, features: tuple[str, ...], outputs: tuple[str, ...], line_of: LineOf
) -> list[PolicyIssue]:
    """Every name the model does not have, and every feature the policy forgot."""
    return [
        *_output_issues(policy, outputs, line_of),
        *_input_issues(policy, features, line_of),
        *_radius_issues(policy, features, line_of),
        *_check_issues(policy, features),
    ]


def _output_issues(policy: AuditPolicy, outputs: tuple[str, ...], line_of: LineOf) -> Iterator[PolicyIssue]:
    output, line = policy.model.output, line_of(("model", "output"))
    if isinstance(output, int):
        if outputs and output >= len(outputs):
            yield PolicyIssue(line, "model.output", f"index {output} of a model with {len(outputs)} output(s)")
    elif output != "margin" and output not in outputs:
        hint = did_you_mean(output, outputs, list_all=True) if outputs else "; the model names none, give an index"
        yield PolicyIssue(line, "model.output", f"unknown output {output!r}{hint}")


def _input_issues(policy: AuditPolicy, features: tuple[str, ...], line_of: LineOf) -> Iterator[PolicyIssue]:
    for name in policy.inputs.domain:
        if name not in features:
            yield _unknown(line_of(("inputs", "domain", name)), f"inputs.domain.{name}", name, features)
    for index, pattern in enumerate(policy.inputs.immutable):
        if not matching(pattern, features):
            hint = did_you_mean(pattern, features)
            line = line_of(("inputs", "immutable", index))
            yield PolicyIssue(line, f"inputs.immutable[{index}]", f"{pattern!r} matches no feature{hint}")
    if features and set(policy.immutable_features(features)) == set(features):
        line = line_of(("inputs", "immutable"))
        yield PolicyIssue(line, "inputs.immutable", "matches every feature: nothing would move and nothing be proved")


def _radius_issues(policy: AuditPolicy, features: tuple[str, ...], line_of: LineOf) -> Iterator[PolicyIssue]:
    radius, where = policy.perturbation.radius, "perturbation.radius"
    if not isinstance(radius, dict):
        return
    frozen = set(policy.immutable_features(features))
    for name, value in radius.items():
        line = line_of(("perturbation", "radius", name))
        if name not in features:
            yield _unknown(line, f"{where}.{name}", name, features)
        elif value > 0 and name in frozen:
            yield PolicyIssue(line, f"{where}.{name}", f"{name!r} is immutable, its radius can only be 0")
    missing = [name for name in features if name not in radius and name not in frozen]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        message = f"no radius for {shown}: give one, or list the feature as immutable"
        yield PolicyIssue(line_of(("perturbation", "radius")), where, message)


def _check_issues(policy: AuditPolicy, features: tuple[str, ...]) -> Iterator[PolicyIssue]:
    for check in policy.checks:
        if isinstance(check, Monotone | SensitivityAtMost) and check.feature not in features:
            yield _unknown(check.line, f"checks[{check.id}].feature", check.feature, features)


def _unknown(line: int, where: str, name: str, features: tuple[str, ...]) -> PolicyIssue:
    return PolicyIssue(line, where, f"unknown feature {name!r}{did_you_mean(name, features)}")
