"""Whose signatures count: trusted Ed25519 keys, less what is revoked. Read from files each time they are needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mlflow_lipschitz_gate.refusals import GateConfigError
from mlflow_lipschitz_gate.strict import read_yaml

KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")
_BEGIN = b"-----BEGIN"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Trust:
    """Keys by id (`sha256:` and the digest of the 32 raw bytes), and what is revoked, each with the reason given."""

    keys: dict[str, Ed25519PublicKey]
    revoked_keys: dict[str, str]
    revoked_attestations: dict[str, str]

    def holds(self, keyid: str, signature: bytes, message: bytes) -> bool:
        """Whether the trusted key `keyid` made `signature` over `message`."""
        try:
            self.keys[keyid].verify(signature, message)
        except InvalidSignature:
            return False
        return True


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def read_trust(keys: Sequence[Path], revoked: Sequence[Path]) -> Trust:
    """Read PEM files (or folders of `*.pub`) and revocation lists. Raises GateConfigError when any cannot be used."""
    trusted = {key_id(key): key for source in keys for path in _files(source) for key in _public_keys(path)}
    by_kind: dict[str, dict[str, str]] = {"keyid": {}, "attestation": {}}
    for path in revoked:
        for kind, digest, reason in _revocations(path):
            by_kind[kind].setdefault(digest, reason)
    return Trust(trusted, by_kind["keyid"], by_kind["attestation"])


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    found = sorted(source.glob("*.pub"))
    if not found:
        raise GateConfigError(f"the folder {source} holds no *.pub file, so no key would be trusted")
    return found


def _public_keys(path: Path) -> list[Ed25519PublicKey]:
    content = _read(path)
    blocks = _PEM.findall(content)
    if not blocks or len(blocks) != content.count(_BEGIN):
        raise GateConfigError(f"{path} must hold public keys in PEM and no other key: the .pub file of keys new")
    keys = []
    for block in blocks:
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise GateConfigError(f"{path} holds a key that cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise GateConfigError(f"{path} holds a key of another kind; attestations are signed with Ed25519")
        keys.append(key)
    return keys


def _revocations(path: Path) -> list[tuple[str, str, str]]:
    """Rows (kind, digest, reason) of one list; a list understood in part would let through what the rest revokes."""
    try:
        data = read_yaml(_read(path).decode("utf-8-sig"))
    except ValueError as error:
        raise GateConfigError(f"the revocation list {path} cannot be read: {error}") from error
    head = {"apiVersion": "mlflow-lipschitz/v1", "kind": "RevocationList"}
    if not isinstance(data, dict) or {k: v for k, v in data.items() if k != "revoked"} != head:
        raise GateConfigError(f"{path} must say apiVersion: mlflow-lipschitz/v1, kind: RevocationList and revoked")
    rows = data.get("revoked")
    if not isinstance(rows, list):
        raise GateConfigError(f"{path}: revoked must be a list")
    return [_revocation(path, number, row) for number, row in enumerate(rows, start=1)]


def _revocation(path: Path, number: int, row: object) -> tuple[str, str, str]:
    for kind in ("keyid", "attestation"):
        if isinstance(row, dict) and row.keys() == {kind, "reason"}:
            digest, reason = row[kind], row["reason"]
            good = isinstance(digest, str) and KEY_ID.fullmatch(digest)
            if good and isinstance(reason, str) and reason.strip():
                return kind, digest, reason
    raise GateConfigError(
        f"{path}, entry {number}: it needs a reason, and a keyid or an attestation (sha256: and 64 hexadecimal digits)"
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except OSError as error:
        raise GateConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LIMIT:
        raise GateConfigError(f"{path} is larger than {_LIMIT} bytes")
    return content
