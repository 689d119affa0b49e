"""Keys: made once, kept secret, named by fingerprint; and never taken for granted when they cannot be read."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.registry.dsse import Signature
from mlflow_lipschitz.registry.keys import PRIVATE_FILE, SigningKey, new_keys, public_keys, signing_key
from mlflow_lipschitz.registry.trust import TrustSources, trust_from
from tests.registry.keyring import key, private_file, private_pem, public_file, revocation_list

PAYLOAD = b'{"a":1}'
posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes are those of POSIX")


def test_a_new_pair_signs_and_is_recognized(tmp_path: Path) -> None:
    private, public, keyid = new_keys(tmp_path / "keys")
    signer = signing_key(private, {})
    (trusted,) = public_keys([public])
    assert signer is not None
    assert signer.public == trusted
    assert keyid == trusted.keyid == "sha256:" + hashlib.sha256(trusted.raw).hexdigest()
    assert keyid in public.read_text()
    assert trusted.verifies(PAYLOAD, signer.sign(PAYLOAD))
    assert not trusted.verifies(PAYLOAD + b" ", signer.sign(PAYLOAD))
    assert not trusted.verifies(PAYLOAD, Signature(keyid, bytes(64)))


def test_two_pairs_are_two_keys_and_neither_is_overwritten(tmp_path: Path) -> None:
    _, _, first = new_keys(tmp_path / "a")
    _, _, second = new_keys(tmp_path / "b")
    assert first != second
    before = (tmp_path / "a" / PRIVATE_FILE).read_bytes()
    with pytest.raises(UsageError, match="exists and is kept"):
        new_keys(tmp_path / "a")
    assert (tmp_path / "a" / PRIVATE_FILE).read_bytes() == before


@posix
def test_the_private_file_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private, _, _ = new_keys(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_private_key_that_others_can_read_or_change_is_none(tmp_path: Path, mode: int) -> None:
    path = private_file(1, tmp_path)
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        signing_key(path, {})


def test_where_the_signing_key_comes_from(tmp_path: Path) -> None:
    path, other = private_file(1, tmp_path), private_file(2, tmp_path)
    named = {"LIPSCHITZ_SIGNING_KEY": str(path)}
    told = {"LIPSCHITZ_SIGNING_KEY": private_pem(1).decode()}
    for environment in (named, told):
        found = signing_key(None, environment)
        assert found is not None
        assert found.public == key(1).public
    first = signing_key(other, named)
    assert first is not None
    assert first.public == key(2).public
    assert signing_key(None, {}) is None
    assert signing_key(None, {"LIPSCHITZ_SIGNING_KEY": " "}) is None


def _password() -> bytes:
    encrypted = serialization.BestAvailableEncryption(b"secret")
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)


def _elliptic() -> bytes:
    private = ec.generate_private_key(ec.SECP256R1())
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no private key"),
        (b"\xff\x00", "no private key"),
        (private_pem(1)[:60], "no private key"),
        (_password(), "encrypted"),
        (_elliptic(), "Ed25519"),
    ],
    ids=["empty", "binary", "cut", "password", "elliptic"],
)
def test_what_is_no_signing_key_is_said_and_not_shown(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=reason) as error:
        signing_key(path, {})
    assert "PRIVATE KEY" not in str(error.value)
    with pytest.raises(UsageError, match="cannot be read"):
        signing_key(tmp_path / "absent.pem", {})


def test_a_key_is_never_shown() -> None:
    assert repr(key(1)) == f"SigningKey({key(1).public.keyid})"
    assert private_pem(1).decode().splitlines()[1] not in repr(key(1)) + str(key(1))
    assert isinstance(key(1), SigningKey)


def test_bundles_and_folders_of_public_keys(tmp_path: Path) -> None:
    first, second = public_file(1, tmp_path), public_file(2, tmp_path)
    bundle = tmp_path / "all.txt"
    bundle.write_bytes(b"# ours\n" + first.read_bytes() + second.read_bytes())
    both = {key(1).public, key(2).public}
    assert (
        set(public_keys([bundle])) == set(public_keys([tmp_path])) == set(public_keys([first, second, first])) == both
    )


@pytest.mark.parametrize(
    "content", [b"", b"hello", private_pem(1), b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_public_key_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="public key"):
        public_keys([path])
    (tmp_path / "mixed.pub").write_bytes(public_file(1, tmp_path).read_bytes() + content)
    if content.startswith(b"-----BEGIN"):
        with pytest.raises(UsageError):
            public_keys([tmp_path / "mixed.pub"])


def test_an_elliptic_public_key_is_refused(tmp_path: Path) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    path = tmp_path / "key.pub"
    path.write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="Ed25519"):
        public_keys([path])


def test_trust_from_options_and_environment(tmp_path: Path) -> None:
    first, second = public_file(1, tmp_path), public_file(2, tmp_path)
    environment = {"LIPSCHITZ_TRUSTED_KEYS": os.pathsep.join([str(first), str(second)])}
    assert {k.keyid for k in trust_from(None, environment).keys} == {key(1).public.keyid, key(2).public.keyid}
    # Options stand in place of the variable: whoever names keys means these.
    assert [k.keyid for k in trust_from(TrustSources(keys=(first,)), environment).keys] == [key(1).public.keyid]
    told = {"LIPSCHITZ_TRUSTED_KEYS": first.read_text()}
    assert trust_from(None, told).keys == (key(1).public,)
    assert trust_from(None, {}).keys == ()


@pytest.mark.parametrize("variable", ["LIPSCHITZ_TRUSTED_KEYS", "LIPSCHITZ_REVOKED_KEYS"])
@pytest.mark.parametrize("text", ["", "  ", os.pathsep])
def test_a_variable_that_is_set_and_empty_turns_nothing_off(variable: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{variable} is set and empty"):
        trust_from(None, {variable: text})


def test_trust_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for sources in (
        TrustSources(keys=(tmp_path / "absent.pub",)),
        TrustSources(keys=(tmp_path / "empty",)),
        TrustSources(revoked=(tmp_path / "absent.yaml",)),
    ):
        with pytest.raises(UsageError):
            trust_from(sources, {})
    with pytest.raises(UsageError):
        trust_from(None, {"LIPSCHITZ_TRUSTED_KEYS": str(tmp_path / "absent.pub")})


def test_revocations_add_up(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = revocation_list(tmp_path, [{"keyid": key(1).public.keyid, "reason": "lost"}])
    second = revocation_list(tmp_path / "b", [{"attestation": "sha256:" + "0" * 64, "reason": "wrong rows"}])
    found = trust_from(TrustSources(revoked=(first,)), {"LIPSCHITZ_REVOKED_KEYS": str(second)}).revocations
    assert found.keys == {key(1).public.keyid: "lost"}
    assert found.attestations == {"sha256:" + "0" * 64: "wrong rows"}


_HEAD = "apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("[]", "must say"),
        (_HEAD, "must say"),
        (_HEAD + "revoked: all", "list"),
        (_HEAD + "revoked: []\nrevoked: []", "duplicate"),
        (_HEAD + "revoked: []\nnote: x", "must say"),
        (_HEAD.replace("v1", "v2") + "revoked: []", "must say"),
        (_HEAD + "revoked: [{keyid: 'sha256:abc', reason: x}]", "64 hexadecimal"),
        (_HEAD + f"revoked: [{{keyid: 'sha256:{'A' * 64}', reason: x}}]", "64 hexadecimal"),
        (_HEAD + f"revoked: [{{keyid: 'sha256:{'a' * 64}'}}]", "entry 1"),
        (_HEAD + f"revoked: [{{keyid: 'sha256:{'a' * 64}', reason: ' '}}]", "no reason"),
        (_HEAD + f"revoked: [{{keyid: 'sha256:{'a' * 64}', attestation: 'sha256:{'a' * 64}', reason: x}}]", "entry 1"),
        (_HEAD + "revoked: [7]", "entry 1"),
    ],
)
def test_a_list_that_is_understood_in_part_is_not_used(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "revoked.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        trust_from(TrustSources(revoked=(path,)), {})


def test_an_empty_list_revokes_nothing(tmp_path: Path) -> None:
    (tmp_path / "revoked.yaml").write_text(_HEAD + "revoked: []\n")
    assert trust_from(TrustSources(revoked=(tmp_path / "revoked.yaml",)), {}).revocations.keys == {}
