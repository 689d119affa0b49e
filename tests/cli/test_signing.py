"""Keys, signed audits, verify and promote as a user types them: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.certificates.io import CERTIFICATES, GRAPH, NUMBERS, read_arrays, sha256_of, write_arrays
from mlflow_lipschitz.registry import tags
from tests.cli.conftest import Answer
from tests.registry.keyring import key, private_file, public_file, revocation_list
from tests.registry.stores import artifact_folder, fresh_name, log_onnx, rows

Command = Callable[..., Answer]
pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def uri() -> str:
    name = fresh_name("signed")
    log_onnx(name)
    return f"models:/{name}/1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, points=rows())
    return path


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return public_file(1, tmp_path)


@pytest.fixture
def audited(command: Command, uri: str, data: Path, policy: Path, tmp_path: Path) -> str:
    """A version with a signed, passed audit, whose artifacts are also in tmp_path / "out"."""
    signed = ("--sign-key", private_file(1, tmp_path))
    answer = command("audit", uri, "--policy", policy, "--data", data, "--out", tmp_path / "out", *signed)
    assert answer.code == 0, answer.err
    assert f"attestation: signed by {key(1).public.keyid}" in answer.out
    return uri


def version_of(uri: str):
    return MlflowClient().get_model_version(*uri.removeprefix("models:/").split("/"))


def lines(answer: Answer) -> dict[str, list[str]]:
    """The words that begin the lines of `verify`, by topic."""
    found: dict[str, list[str]] = {}
    for line in answer.out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("ok", "FAIL", "–"):
            found.setdefault(rest.split()[0], []).append(word)
    return found


def test_keys_are_made_once(command: Command, tmp_path: Path) -> None:
    answer = command("keys", "new", "--out", tmp_path / "keys")
    assert answer.code == 0
    keyid = answer.out.split()[2]
    assert keyid.startswith("sha256:")
    assert "--sign-key" in answer.out
    assert "PRIVATE KEY" not in answer.out
    assert keyid in (tmp_path / "keys" / "lipschitz-signing-key.pub").read_text()
    again = command("keys", "new", "--out", tmp_path / "keys")
    assert again.code == 2
    assert "exists and is kept" in again.err


def test_unsigned_is_said_everywhere(command: Command, uri: str, data: Path, policy: Path, tmp_path: Path) -> None:
    answer = command("audit", uri, "--policy", policy, "--data", data, "--out", tmp_path / "out")
    assert answer.code == 0
    assert "attestation: UNSIGNED" in answer.out
    for name in ("report.html", "summary.md"):
        assert "UNSIGNED" in (tmp_path / "out" / name).read_text()
    version = version_of(uri)
    assert "UNSIGNED" in version.tags[tags.ATTESTATION]
    assert "UNSIGNED" in version.description
    promoted = command("promote", uri, "--alias", "champion")
    assert promoted.code == 0
    assert "UNSIGNED" in promoted.out
    as_json = command("audit", uri, "--policy", policy, "--data", data, "--format", "json")
    assert json.loads(as_json.out)["attestation"]["signature"] == "UNSIGNED"


def test_signed_is_said_everywhere(audited: str, tmp_path: Path) -> None:
    keyid = key(1).public.keyid
    for name in ("report.html", "summary.md", "attestation.json"):
        text = (tmp_path / "out" / name).read_text()
        assert keyid in text
        assert "UNSIGNED" not in text
    version = version_of(audited)
    assert keyid in version.tags[tags.ATTESTATION]
    assert keyid in version.description


def test_a_signed_audit_is_verified_and_promoted(
    command: Command, audited: str, public: Path, policy: Path, tmp_path: Path
) -> None:
    trusted = ("--trusted-key", public)
    answer = command("verify", audited, "--policy", policy, *trusted)
    assert answer.code == 0, answer.out
    assert set(lines(answer)) == {
        "attestation",
        "signature",
        "identity",
        "files",
        "verdict",
        "policy",
        "time",
        "evidence",
    }
    assert {word for words in lines(answer).values() for word in words} == {"ok"}
    assert answer.out.splitlines()[-1] == f"verified: {audited}"
    promoted = command("promote", audited, "--alias", "champion", *trusted)
    assert promoted.code == 0
    assert f"signed by {key(1).public.keyid}" in promoted.out
    name = audited.removeprefix("models:/").split("/")[0]
    assert command("verify", f"models:/{name}@champion", *trusted).code == 0

    copied = command("promote", audited, "--to", f"prod-{name}", "--alias", "live", *trusted)
    assert copied.code == 0
    copy = command("verify", f"models:/prod-{name}@live", *trusted)
    assert copy.code == 0
    assert f"a copy of {name} version 1" in copy.out


def test_a_file_or_a_folder_is_verified_without_a_store(
    command: Command, audited: str, public: Path, tmp_path: Path
) -> None:
    trusted = ("--trusted-key", public)
    for target in (tmp_path / "out", tmp_path / "out" / "attestation.json"):
        answer = command("verify", target, *trusted, "--tracking-uri", "http://127.0.0.1:9")
        assert answer.code == 0, answer.out
        assert (lines(answer)["files"], lines(answer)["evidence"]) == (["–"], ["ok"])
    alone = tmp_path / "alone.json"
    shutil.copy(tmp_path / "out" / "attestation.json", alone)
    assert lines(command("verify", alone, *trusted))["evidence"] == ["–"]
    (tmp_path / "out" / "summary.md").write_text("all is well")
    changed = command("verify", tmp_path / "out", *trusted)
    assert changed.code == 1
    assert "summary.md is missing or has changed" in changed.out


def test_each_way_to_fail_has_its_line(
    command: Command, audited: str, public: Path, strict_policy: Path, tmp_path: Path
) -> None:
    trusted = ("--trusted-key", public)
    other = command("verify", audited, "--policy", strict_policy, *trusted)
    assert (other.code, lines(other)["policy"]) == (1, ["ok", "FAIL"])
    stranger = command("verify", audited, "--trusted-key", public_file(2, tmp_path))
    assert (stranger.code, lines(stranger)["signature"]) == (1, ["FAIL"])
    assert stranger.out.splitlines()[-1] == f"not verified: {audited}"
    lost = revocation_list(tmp_path, [{"keyid": key(1).public.keyid, "reason": "laptop lost"}])
    revoked = command("verify", audited, "--revoked", lost, *trusted)
    assert (revoked.code, lines(revoked)["signature"]) == (1, ["FAIL"])
    assert "laptop lost" in revoked.out
    files = artifact_folder(MlflowClient(), version_of(audited).source.removeprefix("models:/"))
    (files / "extra.txt").write_text("x")
    changed = command("verify", audited, *trusted)
    assert (changed.code, lines(changed)["files"]) == (1, ["FAIL"])


def test_without_a_trusted_key_nothing_is_verified(command: Command, audited: str) -> None:
    answer = command("verify", audited)
    assert answer.code == 1
    assert "UNVERIFIED" in answer.out
    assert "--trusted-key" in answer.out
    allowed = command("verify", audited, "--allow-unsigned")
    assert allowed.code == 0
    assert allowed.out.splitlines()[-1] == f"holds, but not signed by a trusted key: {audited}"


def test_an_unsigned_audit_opens_nothing_once_a_key_is_trusted(
    command: Command, uri: str, data: Path, policy: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("audit", uri, "--policy", policy, "--data", data).code == 0
    assert command("verify", uri, "--allow-unsigned").code == 0
    assert command("verify", uri, "--allow-unsigned", "--trusted-key", public).code == 1
    refused = command("promote", uri, "--alias", "champion", "--trusted-key", public)
    assert refused.code == 1
    assert "UNSIGNED" in refused.err
    monkeypatch.setenv("LIPSCHITZ_TRUSTED_KEYS", str(public))
    assert command("promote", uri, "--alias", "champion").code == 1
    assert command("promote", uri, "--alias", "champion", "--dry-run").code == 1


def test_an_alias_after_a_pass_needs_a_trusted_signature_too(
    command: Command, uri: str, data: Path, policy: Path, public: Path, tmp_path: Path
) -> None:
    policy.write_text(policy.read_text() + "gate: {on_pass: {alias: certified}}\n")
    told = ("audit", uri, "--policy", policy, "--data", data, "--trusted-key", public)
    unsigned = command(*told)
    assert unsigned.code == 3
    assert "UNSIGNED" in unsigned.err
    name = uri.removeprefix("models:/").split("/")[0]
    assert MlflowClient().get_registered_model(name).aliases == {}
    signed = command(*told, "--sign-key", private_file(1, tmp_path))
    assert signed.code == 0
    assert set(MlflowClient().get_registered_model(name).aliases) == {"certified"}


@pytest.mark.parametrize("option", ["--sign-key", "--trusted-key", "--revoked"])
def test_keys_that_cannot_be_read_are_2_before_any_work(
    command: Command, uri: str, data: Path, policy: Path, tmp_path: Path, option: str
) -> None:
    answer = command("audit", uri, "--policy", policy, "--data", data, option, tmp_path / "absent")
    assert answer.code == 2
    assert "absent" in answer.err
    assert tags.RUN_ID not in version_of(uri).tags
    if option != "--sign-key":
        assert command("promote", uri, "--alias", "champion", option, tmp_path / "absent").code == 2
        assert command("verify", uri, option, tmp_path / "absent").code == 2


@pytest.mark.parametrize(
    ("target", "code"),
    [("absent.json", 2), ("models:/absent/1", 3), ("models:/absent@champion", 3), ("s3://bucket/x", 2)],
)
def test_what_is_not_there_is_never_verified(command: Command, public: Path, target: str, code: int) -> None:
    assert command("verify", target, "--trusted-key", public).code == code


def test_what_was_never_audited_is_not_verified(command: Command, uri: str, public: Path, tmp_path: Path) -> None:
    answer = command("verify", uri, "--trusted-key", public)
    assert answer.code == 1
    assert "no audit is on record" in answer.out
    (tmp_path / "junk.json").write_text("\x1b[2J{}")
    junk = command("verify", tmp_path / "junk.json", "--trusted-key", public)
    assert junk.code == 1
    assert "\x1b[2J" not in junk.out


def test_verify_proves_every_bound_again(command: Command, audited: str, public: Path, tmp_path: Path) -> None:
    for target in (audited, tmp_path / "out"):
        answer = command("verify", target, "--trusted-key", public, "--recheck-certificates")
        assert answer.code == 0, answer.out
        assert "lipschitz_upper: 8 points proved again" in answer.out


def test_a_bound_that_does_not_follow_is_not_verified(
    command: Command, audited: str, public: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    arrays = read_arrays(folder / NUMBERS)
    arrays["lipschitz_upper"] = arrays["lipschitz_upper"] * 0.99
    write_arrays(folder / NUMBERS, arrays)
    described = json.loads((folder / CERTIFICATES).read_text())
    described["files"][NUMBERS] = sha256_of(folder / NUMBERS)
    (folder / CERTIFICATES).write_text(json.dumps(described))
    answer = command("verify", folder, "--trusted-key", public, "--recheck-certificates")
    assert answer.code == 1
    refused = [line for line in answer.out.splitlines() if line.startswith("FAIL")]
    assert any("lipschitz_upper is claimed to be" in line for line in refused)
    assert any("has changed" in line for line in refused), "the attestation knows the file's digest"


def test_certificates_that_cannot_be_checked_fail(command: Command, audited: str, public: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / GRAPH).unlink()
    answer = command("verify", tmp_path / "out", "--trusted-key", public, "--recheck-certificates")
    assert answer.code == 1 and "cannot be checked" in answer.out
    alone = tmp_path / "alone.json"
    shutil.copy(tmp_path / "out" / "attestation.json", alone)
    assert command("verify", alone, "--trusted-key", public, "--recheck-certificates").code == 1
