"""Ed25519 keys: making them, reading them, and naming each by its fingerprint.

A private key is a PKCS#8 PEM file only its owner may read, a public key a SubjectPublicKeyInfo PEM file: what `openssl
pkey` writes and reads. Keys come from files, or as PEM text from a variable, which is how secrets reach a CI job.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.registry.dsse import PAYLOAD_TYPE, Signature, pre_authentication_encoding

SIGNING_KEY = "LIPSCHITZ_SIGNING_KEY"
TRUSTED_KEYS = "LIPSCHITZ_TRUSTED_KEYS"

PRIVATE_FILE = "lipschitz-signing-key.pem"
PUBLIC_FILE = "lipschitz-signing-key.pub"

_PEM_LIMIT = 1 << 20
_PUBLIC_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_TOO_OPEN = stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with; `raw` are its 32 bytes."""

    raw: bytes

    @property
    def keyid(self) -> str:
        """`sha256:` and the hex SHA-256 of the 32 bytes."""
        return "sha256:" + hashlib.sha256(self.raw).hexdigest()

    def verifies(self, payload: bytes, signature: Signature, payload_type: str = PAYLOAD_TYPE) -> bool:
        """Whether `signature` is this key's over `payload` in a DSSE envelope for documents of this type."""
        signed = pre_authentication_encoding(payload, payload_type)
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature.sig, signed)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key. It is never shown: its text is its fingerprint."""

    _key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return PublicKey(self._key.public_key().public_bytes(*raw))

    def sign(self, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> Signature:
        """The signature of a DSSE envelope around `payload`."""
        return Signature(self.public.keyid, self._key.sign(pre_authentication_encoding(payload, payload_type)))

    def __repr__(self) -> str:
        return f"SigningKey({self.public.keyid})"


def new_keys(directory: str | Path) -> tuple[Path, Path, str]:
    """Make a key pair in `directory`: the private file (mode 0600), the public file, and the key's id.

    Raises UsageError when one of the files exists, for a key that is overwritten is lost, or cannot be written.
    """
    folder = Path(directory)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    keyid = SigningKey(key).public.keyid
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PRIVATE_FILE, PUBLIC_FILE):
            if (folder / name).exists():
                raise UsageError(f"{folder / name} exists and is kept: give another folder with --out")
        _write_new(folder / PRIVATE_FILE, private, 0o600)
        _write_new(folder / PUBLIC_FILE, b"# key id %s\n" % keyid.encode() + public, 0o644)
    except OSError as error:
        raise UsageError(f"keys cannot be written to {folder}: {error.strerror}") from error
    return folder / PRIVATE_FILE, folder / PUBLIC_FILE, keyid


def signing_key(source: str | Path | None = None, environment: Mapping[str, str] | None = None) -> SigningKey | None:
    """The key to sign with: of the file `source`, else of the variable LIPSCHITZ_SIGNING_KEY; None when there is neither.

    The variable holds a path or the PEM text itself; an empty one counts as absent, which is what CI systems hand to jobs
    that may not see a secret. Raises UsageError when the key named cannot be used: nothing is then left unsigned silently.
    """
    if source is not None:
        return _private(Path(source))
    text = (os.environ if environment is None else environment).get(SIGNING_KEY, "").strip()
    if not text:
        return None
    return _parsed_private(text.encode(), SIGNING_KEY) if text.startswith("-----BEGIN") else _private(Path(text))


def public_keys(sources: Sequence[str | Path]) -> tuple[PublicKey, ...]:
    """All keys of these files, each a bundle of one or more PEM public keys, and of the `*.pub` files of these folders.

    Raises UsageError when a source cannot be read or holds no Ed25519 key.
    """
    keys: dict[bytes, PublicKey] = {}
    for source in sources:
        for path in _key_files(Path(source)):
            for key in parsed_public(_read(path), str(path)):
                keys[key.raw] = key
    return tuple(keys.values())


def parsed_public(content: bytes, where: str) -> tuple[PublicKey, ...]:
    """The public keys in PEM text; UsageError when there is none, or one of another kind."""
    blocks = _PUBLIC_PEM.findall(content)
    if not blocks or len(blocks) != content.count(b"-----BEGIN"):
        raise UsageError(
            f"{where} must hold PEM public keys (-----BEGIN PUBLIC KEY-----) and nothing else: the .pub file that "
            "mlflow-lipschitz keys new writes"
        )
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    keys = []
    for block in blocks:
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{where} holds a public key that cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{where} holds a {type(key).__name__}; attestations are signed with Ed25519")
        keys.append(PublicKey(key.public_bytes(*raw)))
    return tuple(keys)


def _key_files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    found = sorted(source.glob("*.pub"))
    if not found:
        raise UsageError(f"the folder {source} holds no *.pub file")
    return found


def _private(path: Path) -> SigningKey:
    content = _read(path)
    if sys.platform != "win32" and path.stat().st_mode & _TOO_OPEN:
        raise UsageError(f"{path} can be read or changed by others, so it is no secret: chmod 600 {path}")
    return _parsed_private(content, str(path))


def _parsed_private(content: bytes, where: str) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UsageError(f"{where} is encrypted with a password: give the decrypted key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # The reason is not repeated: it may quote what stands in the file.
        raise UsageError(
            f"{where} holds no private key in PEM (PKCS#8): make one with mlflow-lipschitz keys new"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{where} holds a key of another kind; attestations are signed with Ed25519")
    return SigningKey(key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_PEM_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be read: {error.strerror}") from error
    if len(content) > _PEM_LIMIT:
        raise UsageError(f"{path} is larger than any key file")
    return content


def _write_new(path: Path, content: bytes, mode: int) -> None:
    # O_EXCL: neither a file nor a link that appeared meanwhile is written through.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        if sys.platform != "win32":
            os.fchmod(descriptor, mode)
        stream.write(content)
