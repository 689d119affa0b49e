"""Keys for tests, the same in every run, and where to put them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlflow_lipschitz.registry.keys import SigningKey


def key(number: int) -> SigningKey:
    """A key that `number` determines."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def public_file(number: int, folder: Path) -> Path:
    """The public half of `key(number)` as a file."""
    raw = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32).public_key()
    path = folder / f"key-{number}.pub"
    path.write_bytes(raw.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return path


def private_pem(number: int) -> bytes:
    """The private half of `key(number)` in PEM."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_file(number: int, folder: Path) -> Path:
    """The private half of `key(number)` as a file that only its owner may read."""
    path = folder / f"key-{number}.pem"
    path.write_bytes(private_pem(number))
    path.chmod(0o600)
    return path


def revocation_list(folder: Path, entries: Sequence[dict[str, str]]) -> Path:
    """A revocation list of these entries."""
    rows = "".join(f"  - {{{', '.join(f'{k}: {v!r}' for k, v in entry.items())}}}\n" for entry in entries)
    path = folder / "revoked.yaml"
    path.write_text(f"apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\nrevoked:\n{rows or '  []'}")
    return path
