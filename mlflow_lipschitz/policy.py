"""The audit policy: a YAML file as one frozen value, or every reason why it is not one, each with its line.

Two checks guard every audit: `points_at_least` (min 1) and `certified_fraction_at_least` (min 1.0). Each is added with
severity critical unless the author gives a *critical* check of that type. So a policy may ask for less, but only in a
line that says so with full severity: a warning or info check of these types stands beside the added one, never in its
place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from mlflow_lipschitz.errors import PolicyError, PolicyIssue
from mlflow_lipschitz.policy_binding import ModelNames, binding_issues, matching
from mlflow_lipschitz.policy_messages import cross_issues, validation_issues
from mlflow_lipschitz.policy_models import (
    IMPLICIT_PREFIX,
    AnyCheck,
    CertifiedFractionAtLeast,
    Check,
    Engine,
    Gate,
    Inputs,
    Metadata,
    Model,
    Perturbation,
    PointsAtLeast,
    Section,
)
from mlflow_lipschitz.policy_yaml import Document, read_document

_IMPLICIT: tuple[tuple[str, Check], ...] = (
    (f"{IMPLICIT_PREFIX}points", PointsAtLeast(id="points", type="points_at_least", min=1)),
    (
        f"{IMPLICIT_PREFIX}certified-fraction",
        CertifiedFractionAtLeast(id="certified-fraction", type="certified_fraction_at_least", min=1.0),
    ),
)


class AuditPolicy(Section):
    """What a registered model has to prove before it may be promoted. Made by `load_policy`."""

    api_version: Literal["mlflow-lipschitz/v1"] = Field(alias="apiVersion", description="Version of this file format.")
    kind: Literal["AuditPolicy"] = Field(description="Always AuditPolicy.")
    metadata: Metadata
    model: Model
    inputs: Inputs = Inputs()
    perturbation: Perturbation
    engine: Engine = Engine()
    checks: Annotated[tuple[AnyCheck, ...], Field(min_length=1)] = Field(description="What has to be proved.")
    gate: Gate = Gate()
    _document: Document = PrivateAttr(Document(None))
    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The policy as its author wrote it."""
        return self._text

    @property
    def digest(self) -> str:
        """`sha256:…` over the content: independent of comments, layout, key order and of writing defaults out."""
        content = self.model_dump(mode="json", by_alias=True)
        if content["engine"]["arithmetic"] == "real":  # what every policy meant before it could say so
            del content["engine"]["arithmetic"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def reference(self) -> str:
        """`name@version sha256:…`, as tags and attestations show it."""
        return f"{self.metadata.name}@{self.metadata.version} {self.digest}"

    def bind(
        self,
        feature_names: Sequence[str],
        output_names: Sequence[str],
        *,
        fixed: Sequence[str] = (),
        looked_up: Sequence[str] = (),
    ) -> None:
        """Check every name in the policy against the model's.

        Args:
            feature_names: the input columns, in order.
            output_names: one name per output entry; empty when the model names none.
            fixed: those of the features that never move: encodings of categories.
            looked_up: columns or inputs that the model looks up. They do not move, and the policy has to say so.

        Raises:
            PolicyError: all unknown names at once, with lines; and looked-up columns that are not listed as immutable.
        """
        moving = tuple(name for name in feature_names if name not in set(fixed))
        names = ModelNames(moving, tuple(output_names), tuple(fixed), tuple(looked_up))
        issues = binding_issues(self, names, self._document.line_of)
        if issues:
            raise PolicyError(_sorted(issues), self.metadata.name)

    def immutable_features(self, feature_names: Sequence[str]) -> tuple[str, ...]:
        """Those of `feature_names` that `inputs.immutable` names, exactly or by pattern, in the given order."""
        frozen = {name for pattern in self.inputs.immutable for name in matching(pattern, feature_names)}
        return tuple(name for name in feature_names if name in frozen)

    def resolve_output(self, output_names: Sequence[str]) -> int | Literal["margin"]:
        """Index of the judged output, or "margin". Call `bind` first: an unknown name raises ValueError here."""
        output = self.model.output
        if isinstance(output, int):
            return output
        return "margin" if output == "margin" else list(output_names).index(output)


def load_policy(source: str | Path) -> AuditPolicy:
    """Read a policy from a path, or from YAML text (a string with a line break in it).

    Raises:
        PolicyError: the file cannot be read, or everything that is wrong with its content, with lines.
    """
    name, text = _read(source)
    document = read_document(text)
    if document.data is None or not isinstance(document.data, dict):
        issues = document.issues or (PolicyIssue(1, "", "the policy must be a mapping of keys to values"),)
        raise PolicyError(issues, name)
    issues = (*document.issues, *cross_issues(document))
    try:
        policy = AuditPolicy.model_validate(document.data)
    except ValidationError as error:
        issues = (*issues, *validation_issues(error, document, AuditPolicy))
        raise PolicyError(_sorted(issues), name) from None
    if issues:
        raise PolicyError(_sorted(issues), name)
    placed = tuple(check.with_place(document.line_of(("checks", i))) for i, check in enumerate(policy.checks))
    policy = policy.model_copy(update={"checks": _with_implicit(placed)})
    policy._document, policy._text = document, text
    return policy


def policy_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the policy file, for editors. `load_policy` checks more than a schema can say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **AuditPolicy.model_json_schema(by_alias=True),
    }


def _read(source: str | Path) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return "policy", source
    try:
        return str(source), Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise PolicyError([PolicyIssue(0, "", reason)], str(source))


def _with_implicit(checks: tuple[Any, ...]) -> tuple[Any, ...]:
    """`checks` with the two guards added unless a critical check of the same type is there."""
    guarded = {type(check) for check in checks if check.severity == "critical"}
    return (*checks, *(guard.with_place(0, name) for name, guard in _IMPLICIT if type(guard) not in guarded))


def _sorted(issues: Sequence[PolicyIssue]) -> tuple[PolicyIssue, ...]:
    return tuple(sorted(set(issues), key=lambda issue: (issue.line, issue.where, issue.message)))
