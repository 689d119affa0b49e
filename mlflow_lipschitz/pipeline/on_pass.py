"""What a policy asks for after a pass: an alias on the audited version, set only through the promotion's own checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_lipschitz.errors import AuditError, LipschitzError, UsageError
from mlflow_lipschitz.registry.promotion import PromotionOptions, PromotionResult, promote

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy
    from mlflow_lipschitz.registry.pull import PulledModel


def refuse_alias_without_version(policy: AuditPolicy, pulled: PulledModel) -> None:
    """Raises UsageError where `gate.on_pass.alias` could not be carried out: only a registered version has aliases."""
    alias = policy.gate.on_pass.alias
    if alias and (pulled.name is None or pulled.version is None):
        raise UsageError(
            f"the policy sets the alias {alias!r} after a pass, and {pulled.uri} is no registered version: audit "
            "models:/NAME/VERSION, or take gate.on_pass.alias out of the policy"
        )


def promoted_on_pass(
    policy: AuditPolicy, pulled: PulledModel, run_id: str, options: PromotionOptions
) -> PromotionResult | None:
    """Set the alias that `gate.on_pass` names, after the passed verdict was logged to `run_id`; None when it names none.

    The evidence is read back from the store and the files are hashed again: what was logged has to vouch, not what this
    process believes.

    Raises:
        AuditError: the alias was not set; the message says why. The audit stays on record as passed.
    """
    alias = policy.gate.on_pass.alias
    if alias is None:
        return None
    place = f"models:/{pulled.name}/{pulled.version}"
    try:
        return promote(place, alias=alias, policy=policy, options=options)
    except LipschitzError as error:
        raise AuditError(
            f"{place} passed, which run {run_id} records, and the alias {alias!r} was not set: {error}"
        ) from error
