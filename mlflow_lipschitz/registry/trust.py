"""Whose signatures count: the keys somebody configured, less the revoked ones; and what that says of one attestation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.registry.keys import TRUSTED_KEYS, PublicKey, parsed_public, public_keys
from mlflow_lipschitz.registry.revocation import REVOKED_KEYS, Revocations, read_revocations

if TYPE_CHECKING:
    from mlflow_lipschitz.registry.attestation import Attestation
    from mlflow_lipschitz.registry.dsse import Signature


@dataclass(frozen=True)
class TrustSources:
    """Where trust is read from.

    Attributes:
        keys: files or folders of public keys; in place of what LIPSCHITZ_TRUSTED_KEYS names.
        revoked: revocation lists; together with those that LIPSCHITZ_REVOKED_KEYS names.
    """

    keys: tuple[str | Path, ...] = ()
    revoked: tuple[str | Path, ...] = ()


ENVIRONMENT = TrustSources()
"""Nothing but what the environment's variables name."""


@dataclass(frozen=True)
class SignatureStatus:
    """What is known of an attestation's origin.

    Attributes:
        label: for people: `UNSIGNED`, `signed by sha256:…`, or `UNVERIFIED signature of sha256:…` where no key is trusted.
        verified_by: ids of the trusted, unrevoked keys whose signatures hold.
        problems: all that keeps the attestation from counting; empty when it counts, or when no key is trusted (trying out).
    """

    label: str
    verified_by: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trust:
    """The trusted keys and the revocations. Without any key everything is for trying out, and shown as such."""

    keys: tuple[PublicKey, ...] = ()
    revocations: Revocations = field(default_factory=Revocations)

    def status(self, attestation: Attestation) -> SignatureStatus:
        """Check every signature. One that claims a trusted key and fails spoils all: somebody changed the file."""
        revoked = self.revocations.attestations.get(attestation.digest)
        problems = [f"the attestation {attestation.digest} is revoked: {revoked}"] if revoked else []
        if not self.keys:
            problems += [p for s in attestation.signatures if (p := self._revoked(s))]
            return SignatureStatus(_untrusting(attestation), (), tuple(problems))
        if not attestation.signatures:
            problems.append("it is UNSIGNED, and trusted keys are configured: audit again with --sign-key")
            return SignatureStatus("UNSIGNED", (), tuple(problems))
        verified, damaged, reasons = self._sorted(attestation)
        problems += damaged if verified else [*damaged, *reasons]
        by = ", ".join(verified or (s.keyid for s in attestation.signatures))
        label = f"signed by {by}" if verified and not problems else f"REFUSED signature of {by}"
        return SignatureStatus(label, () if problems else verified, tuple(problems))

    def _sorted(self, attestation: Attestation) -> tuple[tuple[str, ...], list[str], list[str]]:
        """Ids whose signatures hold; those of trusted keys that do not; why the others do not count."""
        known = {key.keyid: key for key in self.keys}
        verified, damaged, reasons = [], [], []
        for signature in attestation.signatures:
            if revoked := self._revoked(signature):
                reasons.append(revoked)
            elif signature.keyid not in known:
                reasons.append(f"it is signed by {signature.keyid}, which is not a trusted key")
            elif known[signature.keyid].verifies(attestation.payload, signature):
                verified.append(signature.keyid)
            else:
                damaged.append(f"its signature is not the one of {signature.keyid} over these bytes")
        return tuple(verified), damaged, reasons

    def _revoked(self, signature: Signature) -> str:
        reason = self.revocations.keys.get(signature.keyid)
        return f"it is signed by {signature.keyid}, which is revoked: {reason}" if reason else ""


def trust_from(sources: TrustSources | None = None, environment: Mapping[str, str] | None = None) -> Trust:
    """Read the trusted keys and the revocation lists of `sources` and of the environment.

    LIPSCHITZ_TRUSTED_KEYS and LIPSCHITZ_REVOKED_KEYS hold paths, joined as in PATH; the first may hold PEM text instead.

    Raises UsageError when any of it cannot be read, or a variable is set and empty: trusting nobody by mistake would turn
    the signatures off.
    """
    sources = sources or TrustSources()
    environment = os.environ if environment is None else environment
    keys = public_keys(sources.keys) if sources.keys else _environment_keys(environment)
    lists = [*sources.revoked, *_paths(environment, REVOKED_KEYS)]
    return Trust(keys, read_revocations(lists))


def _environment_keys(environment: Mapping[str, str]) -> tuple[PublicKey, ...]:
    text = environment.get(TRUSTED_KEYS, "").strip()
    if text.startswith(("-----BEGIN", "#")):
        return parsed_public(text.encode(), TRUSTED_KEYS)
    return public_keys(_paths(environment, TRUSTED_KEYS))


def _paths(environment: Mapping[str, str], variable: str) -> Sequence[str]:
    text = environment.get(variable)
    if text is None:
        return ()
    paths = [part for part in text.strip().split(os.pathsep) if part]
    if not paths:
        raise UsageError(f"{variable} is set and empty: name the files, or unset it")
    return paths


def _untrusting(attestation: Attestation) -> str:
    if not attestation.signatures:
        return "UNSIGNED"
    return f"UNVERIFIED signature of {', '.join(s.keyid for s in attestation.signatures)}"
