"""What is done about a delivery: audit the new version; take back an alias that no valid attestation vouches for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import LipschitzError, RegistryError
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.store import client_for, store_errors
from mlflow_lipschitz.registry.trust import TrustSources, trust_from
from mlflow_lipschitz.registry.verification import Subject, examined, verified
from mlflow_lipschitz.webhooks.deliveries import ALIAS_CREATED, SECRET, Delivery

_SHOWN = 4000
# How a remark about a removed alias begins: JSON with "removed" as its first key.
_REMOVED = '{"removed"'
_logger = logging.getLogger(__name__)


class TryAgain(Exception):
    """The store or the audit failed in a way that may pass."""


@dataclass(frozen=True)
class ReceiverSettings:
    """What the receiver does.

    Attributes:
        policy: the policy file new versions are audited under, and that a guarded alias demands.
        data: rows to audit; None takes each model's input example.
        aliases: the guarded aliases, compared without case. models: pattern of registered model names.
        sign_key, trust: as for `audit` and `verify`. allow_unsigned: for trying out without keys.
        audit_seconds: an audit that takes longer is stopped and counts as failed.
    """

    policy: Path
    data: Path | None = None
    aliases: tuple[str, ...] = ()
    models: str = "*"
    tracking_uri: str | None = None
    sign_key: Path | None = None
    trust: TrustSources = field(default_factory=TrustSources)
    allow_unsigned: bool = False
    audit_seconds: float = 3600.0

    def guards(self, alias: str) -> bool:
        """Whether `alias` may stay only on audited versions."""
        return alias.casefold() in {name.casefold() for name in self.aliases}


def handle(delivery: Delivery, settings: ReceiverSettings, *, last_try: bool = True) -> str:
    """Do what the delivery calls for and say what was done. Done twice it changes nothing more.

    Args:
        last_try: whether what cannot be read now counts as missing; otherwise it is tried again.

    Raises TryAgain when the store did not answer, or the audit itself failed.
    """
    if not fnmatchcase(delivery.name, settings.models):
        return "not a model of this receiver"
    if delivery.event == ALIAS_CREATED:
        guarded = delivery.alias is not None and settings.guards(delivery.alias)
        return _judge_alias(delivery, settings, last_try=last_try) if guarded else "not a guarded alias"
    return _audit(delivery, settings)


def standing_aliases(settings: ReceiverSettings) -> Iterator[Delivery]:
    """A delivery for each guarded alias there is: MLflow tries three times and keeps no history, so some may be lost.

    Raises RegistryError when the registry cannot be read.
    """
    with store_errors("list the registered models"):
        client, token = client_for(settings.tracking_uri), None
        while True:
            page = client.search_registered_models(page_token=token)
            for model in page:
                for alias, version in client.get_registered_model(model.name).aliases.items():
                    if settings.guards(alias) and fnmatchcase(model.name, settings.models):
                        moment = datetime.now(timezone.utc).isoformat()
                        yield Delivery(
                            f"sweep {moment} {model.name}@{alias}", ALIAS_CREATED, model.name, str(version), alias
                        )
            token = page.token
            if not token:
                return


def report_failure(delivery: Delivery, settings: ReceiverSettings, reason: str) -> None:
    """Say on the version that its audit failed, so that nobody takes silence for consent."""
    with store_errors(f"tag {delivery.name} version {delivery.version}"):
        client = client_for(settings.tracking_uri)
        client.set_model_version_tag(delivery.name, delivery.version, tags.VERDICT, "error")
        client.set_model_version_tag(delivery.name, delivery.version, tags.RECEIVER, reason[:_SHOWN])


def _audit(delivery: Delivery, settings: ReceiverSettings) -> str:
    """In a process of its own: a model that makes the audit run out of memory or time takes nothing else with it."""
    words = [sys.executable, "-m", "mlflow_lipschitz.cli", "audit", f"models:/{delivery.name}/{delivery.version}"]
    words += ["--policy", str(settings.policy)]
    words += ["--data", str(settings.data)] if settings.data else []
    words += ["--sign-key", str(settings.sign_key)] if settings.sign_key else []
    words += ["--tracking-uri", settings.tracking_uri] if settings.tracking_uri else []
    for option, paths in (("--trusted-key", settings.trust.keys), ("--revoked", settings.trust.revoked)):
        words += [word for path in paths for word in (option, str(path))]
    try:
        done = subprocess.run(
            words,
            env={name: value for name, value in os.environ.items() if name != SECRET},
            capture_output=True,
            text=True,
            timeout=settings.audit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"the audit was stopped after {settings.audit_seconds:g} s"
        report_failure(delivery, settings, reason)
        return reason
    said = (done.stdout + done.stderr).strip()[-_SHOWN:]
    if done.returncode in (0, 1):
        _unsay(delivery, settings, failures_only=True)
        return "passed" if done.returncode == 0 else "blocked"
    if done.returncode != 2:
        raise TryAgain(f"the audit ended with exit code {done.returncode}: {said}")
    report_failure(delivery, settings, f"the audit was refused: {said}")
    return f"refused: {said}"


def _judge_alias(delivery: Delivery, settings: ReceiverSettings, *, last_try: bool) -> str:
    alias = str(delivery.alias)
    problems = _problems(delivery, settings, last_try=last_try)
    if not problems:
        _unsay(delivery, settings)
        return "vouched for"
    try:
        with store_errors("reach the registry"):
            client = client_for(settings.tracking_uri)
        held = str(client.get_registered_model(delivery.name).aliases.get(alias)) == delivery.version
        if held:
            # Said first: a receiver that dies in between finds the alias again and says it once more.
            _say(client, delivery, alias, problems)
            client.delete_registered_model_alias(delivery.name, alias)
    except (MlflowException, RegistryError, OSError) as error:
        raise TryAgain(f"the alias {alias} of {delivery.name} cannot be looked at: {error}") from error
    return f"removed the alias: {'; '.join(problems)}" if held else "the alias has moved since"


def _problems(delivery: Delivery, settings: ReceiverSettings, *, last_try: bool) -> list[str]:
    """Why the version may not hold the alias. What cannot be read in the end vouches for nothing."""
    try:
        subject = Subject(f"models:/{delivery.name}/{delivery.version}", settings.tracking_uri)
        wanted = load_policy(settings.policy)
        with examined(subject, trust_from(settings.trust), wanted) as found:
            if verified(found, allow_unsigned=settings.allow_unsigned):
                return []
            problems = [finding.text for finding in found.findings if finding.ok is False]
            return problems or ["it is not signed by a trusted key"]
    except RegistryError as error:
        if not last_try:
            # A store that hiccups takes no model out of production.
            raise TryAgain(str(error)) from error
        return [str(error)]
    except LipschitzError as error:
        return [str(error)]


def _unsay(delivery: Delivery, settings: ReceiverSettings, *, failures_only: bool = False) -> None:
    """Take the receiver's remark off a version that it no longer fits.

    Args:
        failures_only: leave the remark that an alias was removed, which an audit alone does not bring back.
    """
    try:
        with store_errors(f"untag {delivery.name} version {delivery.version}"):
            client = client_for(settings.tracking_uri)
            said = client.get_model_version(delivery.name, delivery.version).tags.get(tags.RECEIVER)
            if said is not None and not (failures_only and said.startswith(_REMOVED)):
                client.delete_model_version_tag(delivery.name, delivery.version, tags.RECEIVER)
    except RegistryError as error:
        # A remark is for people: one that stays is no reason to audit once more.
        _logger.warning("%s", error)


def _say(client: MlflowClient, delivery: Delivery, alias: str, problems: list[str]) -> None:
    uri = f"models:/{delivery.name}/{delivery.version}"
    told = {
        "removed": alias,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "because": problems,
        "then": f"mlflow-lipschitz audit {uri} --policy POLICY.yaml, and mlflow-lipschitz promote {uri} --alias {alias}",
    }
    client.set_model_version_tag(delivery.name, delivery.version, tags.RECEIVER, json.dumps(told)[:_SHOWN])
