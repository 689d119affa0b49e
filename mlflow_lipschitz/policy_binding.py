"""Names in a policy against the names of a model's features and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mlflow_lipschitz.errors import PolicyIssue
from mlflow_lipschitz.policy_messages import did_you_mean
from mlflow_lipschitz.policy_models import Monotone, SensitivityAtMost
from mlflow_lipschitz.policy_yaml import Path, yaml_scalar

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy

LineOf = Callable[[Path], int]


def matching(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """The `names` a pattern stands for. A name is first taken literally: `x[0]` is a feature before it is a pattern."""
    if pattern in names:
        return (pattern,)
    return tuple(name for name in names if fnmatchcase(name, pattern))


@dataclass(frozen=True)
class ModelNames:
    """What a model calls its features and outputs.

    `features` can move, `fixed` ones never do: encodings of the columns that are `looked_up`.
    """

    features: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    looked_up: tuple[str, ...] = ()

    def does_not_move(self, name: str) -> bool:
        return name in self.fixed or name in self.looked_up


def binding_issues(policy: AuditPolicy, names: ModelNames, line_of: LineOf) -> list[PolicyIssue]:
    """Every name the model does not have, and every feature the policy forgot."""
    return [
        *_output_issues(policy, names.outputs, line_of),
        *_input_issues(policy, names, line_of),
        *_looked_up_issues(policy, names, line_of),
        *_radius_issues(policy, names, line_of),
        *_check_issues(policy, names),
    ]


def _output_issues(policy: AuditPolicy, outputs: tuple[str, ...], line_of: LineOf) -> Iterator[PolicyIssue]:
    output, line = policy.model.output, line_of(("model", "output"))
    if isinstance(output, int):
        if outputs and output >= len(outputs):
            yield PolicyIssue(line, "model.output", f"index {output} of a model with {len(outputs)} output(s)")
    elif output != "margin" and output not in outputs:
        hint = did_you_mean(output, outputs, list_all=True) if outputs else "; the model names none, give an index"
        yield PolicyIssue(line, "model.output", f"unknown output {output!r}{hint}")


def _input_issues(policy: AuditPolicy, names: ModelNames, line_of: LineOf) -> Iterator[PolicyIssue]:
    features = names.features
    for name in policy.inputs.domain:
        line, where = line_of(("inputs", "domain", name)), f"inputs.domain.{name}"
        if names.does_not_move(name):
            yield PolicyIssue(line, where, f"{name!r} is looked up and does not move: it needs no domain")
        elif name not in features:
            yield _unknown(line, where, name, features)
    known = (*features, *names.fixed, *names.looked_up)
    for index, pattern in enumerate(policy.inputs.immutable):
        if not matching(pattern, known):
            hint = did_you_mean(pattern, known)
            line = line_of(("inputs", "immutable", index))
            yield PolicyIssue(line, f"inputs.immutable[{index}]", f"{pattern!r} matches no feature{hint}")
    if features and set(policy.immutable_features(features)) == set(features):
        line = line_of(("inputs", "immutable"))
        yield PolicyIssue(line, "inputs.immutable", "matches every feature: nothing would move and nothing be proved")


def _looked_up_issues(policy: AuditPolicy, names: ModelNames, line_of: LineOf) -> Iterator[PolicyIssue]:
    """A category or a token does not move, whatever a policy says; whoever reads the policy has to see that."""
    said = policy.inputs.immutable
    forgotten = [name for name in names.looked_up if not any(matching(pattern, (name,)) for pattern in said)]
    if forgotten:
        which = f"{forgotten[0]!r} is" if len(forgotten) == 1 else f"{', '.join(map(repr, forgotten))} are"
        line = f"immutable: [{', '.join(yaml_scalar(name) for name in (*said, *forgotten))}]"
        message = f"{which} looked up by the model and cannot move, and the policy has to say so; write {line}"
        yield PolicyIssue(line_of(("inputs", "immutable")), "inputs.immutable", message)


def _radius_issues(policy: AuditPolicy, names: ModelNames, line_of: LineOf) -> Iterator[PolicyIssue]:
    radius, where, features = policy.perturbation.radius, "perturbation.radius", names.features
    if not isinstance(radius, dict):
        return
    frozen = set(policy.immutable_features(features))
    for name, value in radius.items():
        line = line_of(("perturbation", "radius", name))
        if name not in features and not names.does_not_move(name):
            yield _unknown(line, f"{where}.{name}", name, features)
        elif value > 0 and (name in frozen or names.does_not_move(name)):
            yield PolicyIssue(line, f"{where}.{name}", f"{name!r} is immutable, its radius can only be 0")
    missing = [name for name in features if name not in radius and name not in frozen]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        message = f"no radius for {shown}: give one, or list the feature as immutable"
        yield PolicyIssue(line_of(("perturbation", "radius")), where, message)


def _check_issues(policy: AuditPolicy, names: ModelNames) -> Iterator[PolicyIssue]:
    for check in policy.checks:
        if not isinstance(check, Monotone | SensitivityAtMost) or check.feature in names.features:
            continue
        where = f"checks[{check.id}].feature"
        if names.does_not_move(check.feature):
            message = f"{check.feature!r} does not move, so the output has no derivative in it"
            yield PolicyIssue(check.line, where, message)
        else:
            yield _unknown(check.line, where, check.feature, names.features)


def _unknown(line: int, where: str, name: str, features: tuple[str, ...]) -> PolicyIssue:
    return PolicyIssue(line, where, f"unknown feature {name!r}{did_you_mean(name, features)}")
