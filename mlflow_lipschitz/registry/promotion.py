"""Opening the door: an alias, a stage or a copy, for exactly the bytes that passed an audit.

Nothing on the model version is believed; see vouching.py for what is. All checks come before the first change and are made
again after it; see transition.py for how a refusal or a crash leaves every alias where it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PromotionRefused, UsageError
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import ModelReference, client_for
from mlflow_lipschitz.registry.transition import Target, carry_out
from mlflow_lipschitz.registry.trust import ENVIRONMENT, Trust, TrustSources, trust_from
from mlflow_lipschitz.registry.vouching import NotVouched, VouchedAudit, vouching_audit


@dataclass(frozen=True)
class PromotionResult:
    """What was done, or with `dry_run` what would be done.

    `name` and `version` are of the version that now holds the alias or the stage: the copy, when one was made. `policy`
    is the reference (`name@version sha256:…`) of the policy that was passed.
    """

    name: str
    version: str
    source: str
    alias: str | None
    stage: str | None
    attestation: str
    signature: str
    policy: str
    dry_run: bool

    def __str__(self) -> str:
        """Two lines for people. The second names the policy, for any policy opens the door unless one was asked for."""
        target = [f"alias {self.alias}"] * bool(self.alias) + [f"stage {self.stage}"] * bool(self.stage)
        done = "would be" if self.dry_run else "is now"
        place = f"{self.name} version {self.version}"
        return (
            f"{self.source} {done} {' and '.join(target) or 'a copy'} of {place} ({self.signature} {self.attestation})\n"
            f"policy passed: {self.policy}"
        )


@dataclass(frozen=True)
class PromotionOptions:
    """How a promotion is carried out.

    Attributes:
        dry_run: check everything, change nothing.
        tracking_uri: MLflow store; None takes MLflow's current one.
        trust: whose signatures count; by default what the environment says, see `trust_from`.
    """

    dry_run: bool = False
    tracking_uri: str | None = None
    trust: TrustSources = ENVIRONMENT


def promote(
    model_uri: str,
    *,
    alias: str | None = None,
    stage: str | None = None,
    to: str | None = None,
    policy: str | Path | AuditPolicy | None = None,
    options: PromotionOptions | None = None,
) -> PromotionResult:
    """Promote a registered version whose passed audit of exactly these files is on record.

    Args:
        model_uri: `models:/name/1` or `models:/name@alias`.
        alias: alias to set. stage: stage to move to (deprecated in MLflow). to: registered model to copy to;
        together with alias or stage, these go to the copy.
        policy: the policy that has to have been passed (a file, YAML text, or a loaded one), compared by its digest;
        None accepts any and names it in the result.
    Raises:
        PolicyError: `policy` cannot be read.
        PromotionRefused: with everything that is missing and the command that would supply it.
        UsageError: no target, both an alias and a stage, or a URI without name and version.
        RegistryError: the store cannot be read or written.
    """
    if bool(alias) + bool(stage) > 1 or not (alias or stage or to):
        raise UsageError("say where to: one of alias (--alias NAME) and stage (--stage NAME), or a copy (--to NAME).")
    options = options or PromotionOptions()
    wanted = policy if policy is None or isinstance(policy, AuditPolicy) else load_policy(policy)
    gate = _Gate(client_for(options.tracking_uri), trust_from(options.trust), wanted, options.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        source, path = fetch(model_uri, directory=Path(scratch), tracking_uri=options.tracking_uri)
        if source.name is None or source.version is None or not _names_a_version(model_uri):
            raise UsageError(f"{model_uri!r} is not a registered version. Use models:/NAME/VERSION.")
        vouched = gate.vouched(source, path, Path(scratch) / "evidence")
    place = (to or source.name, "(new)" if to else source.version)
    if not options.dry_run:
        place = carry_out(Target(alias, stage, to), source, vouched, gate.client, lambda *at: gate.recheck(source, *at))
    return PromotionResult(
        name=place[0],
        version=place[1],
        source=f"models:/{source.name}/{source.version}",
        alias=alias,
        stage=stage,
        attestation=vouched.attestation.digest,
        signature=vouched.signature,
        policy=vouched.policy.reference,
        dry_run=options.dry_run,
    )


@dataclass(frozen=True)
class _Gate:
    """What decides, as it was when the promotion began."""

    client: MlflowClient
    trust: Trust
    wanted: AuditPolicy | None
    tracking_uri: str | None

    def vouched(self, reference: ModelReference, path: Path, scratch: Path) -> VouchedAudit:
        """The audit of `reference` that vouches for the files in `path`; PromotionRefused when there is none."""
        try:
            found = vouching_audit(reference, path, self.client, scratch, self.trust)
        except NotVouched as error:
            raise _refused(reference, error.problems) from error
        if self.wanted is not None and found.policy.digest != self.wanted.digest:
            raise _refused(
                reference, [f"it passed {found.policy.reference}, and {self.wanted.reference} is what it has to pass"]
            )
        return found

    def recheck(self, source: ModelReference, name: str, version: str) -> None:
        """Download what was promoted and all evidence once more: the files may have been swapped since the first look."""
        with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
            try:
                _, path = fetch(f"models:/{name}/{version}", directory=scratch, tracking_uri=self.tracking_uri)
                self.vouched(source, path, Path(scratch) / "evidence")
            except PromotionRefused as error:
                raise PromotionRefused(f"{error}\nIt changed while it was promoted, so that was taken back.") from error


def _names_a_version(uri: str) -> bool:
    """`models:/NAME/VERSION` or `models:/NAME@ALIAS`; a logged model's id alone may stand for several versions."""
    path = uri.removeprefix("models:/")
    return path != uri and ("/" in path or "@" in path)


def _refused(reference: ModelReference, problems: Sequence[str]) -> PromotionRefused:
    place = f"models:/{reference.name}/{reference.version}"
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return PromotionRefused(
        f"{place} may not be promoted:\n{listed}\nAudit it: mlflow-lipschitz audit {place} --policy POLICY.yaml "
        "--data ROWS"
    )
