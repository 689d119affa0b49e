"""The parts that need no server: names, configuration, the format of attestations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import signing
import yaml
from conftest import LEAKED, PLUGIN, RELEASE, STRANGER, prepare
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow_lipschitz_gate.attestation import LIMIT, Malformed, read_attestation
from mlflow_lipschitz_gate.config import VARIABLE, config_from, load_config
from mlflow_lipschitz_gate.keys import read_trust
from mlflow_lipschitz_gate.names import Aliases, NamePatterns
from mlflow_lipschitz_gate.refusals import GateConfigError
from servers import write_config

VECTORS = PLUGIN.parent.parent / "tests" / "registry" / "vectors"

LOOKS = [
    "\u0441hampion",  # Cyrillic es
    "\uff23\uff28\uff21\uff2d\uff30\uff29\uff2f\uff2e",  # full width
    "ch\u0430mp\u0456\u043en",
    "champi0n",
    "champ1on",
    "champlon",
    "charnpion",
    "ch\u00e1mpion",
    "champi\u00f8n",
    "champ\u0131on",
    "champ\u200bion",
    "champ\u3164ion",
    "\U0001d4b8\U0001d4bd\U0001d4b6\U0001d4c2\U0001d4c5\U0001d4be\u2134\U0001d4c3",  # mathematical script
    "\u1d04\u029c\u1d00\u1d0d\u1d18\u026a\u1d0f\u0274",  # small capitals
    "\u13df\u13bb\u13aa\u13b7\u13e2\u13a5\u13be\u13c1",  # Cherokee
    "champi\u05e1n",  # one Hebrew letter
]


@pytest.mark.parametrize("alias", LOOKS, ids=ascii)
def test_look_alikes_are_seen(alias: str) -> None:
    aliases = Aliases(("production", "champion"))
    assert aliases.looks_like(alias) == "champion"
    assert not aliases.same(alias)


@pytest.mark.parametrize(
    "alias",
    [
        "challenger",
        "champion2",
        "blue",
        "champ",
        "\u043e\u0441\u043d\u043e\u0432\u043d\u043e\u0439",
        "\u4e2d" * 8,
        "prod",
        "",
    ],
    ids=ascii,
)
def test_other_aliases_are_left_alone(alias: str) -> None:
    aliases = Aliases(("production", "champion"))
    assert aliases.looks_like(alias) is None
    assert not aliases.same(alias)


def test_name_patterns() -> None:
    names = NamePatterns(("prod.*", "scorer-?"))
    assert [
        n for n in ("prod.", "prod.a", "PROD.a", "\u0440rod.a", "scorer-1", " scorer-1 ") if not names.match(n)
    ] == []
    assert [
        n
        for n in ("dev.a", "prods", "a.prod.a", "scorer-", "scorer-12", "\u4e2d\u4e2d\u4e2d\u4e2d.a")
        if names.match(n)
    ] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def test_a_good_configuration(folder: Path) -> None:
    config = load_config(folder / "gate.yaml")
    assert set(config.trust().keys) == {signing.key_id(RELEASE), signing.key_id(LEAKED)}
    assert config.policy_for("anything") is not None


def test_another_spelling_of_a_name_has_no_other_policy(folder: Path) -> None:
    policies = [{"models": "prod.*", "name": "strict"}, {"models": "*", "name": "lax"}]
    config = load_config(write_config(folder, policies=policies))
    for name in ("prod.x", "Prod.x", "PROD.x", "pr\u043ed.x", "pr0d.x", "prod.x "):
        assert config.names.match(name), ascii(name)
        assert config.policy_for(name).name == "strict", ascii(name)  # type: ignore[union-attr]
    assert config.policy_for("produce").name == "lax"  # type: ignore[union-attr]


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "unknown key": ({"protekt": {}}, "protekt"),
    "no keys": ({"trusted_keys": []}, "trusted_keys"),
    "keys missing": ({"trusted_keys": None}, "trusted_keys"),
    "key file absent": ({"trusted_keys": ["keys/absent.pub"]}, "cannot be read"),
    "folder without keys": ({"trusted_keys": ["."]}, "no *.pub"),
    "nothing protected": ({"protect": {}}, "nothing is protected"),
    "stage unknown": ({"protect": {"stages": ["Live"]}}, "'Live' is no stage"),
    "alias impossible": ({"protect": {"aliases": ["a b"]}}, "'a b'"),
    "alias empty": ({"protect": {"aliases": [""]}}, "aliases"),
    "pattern with a set": ({"protect": {"names": ["prod[12]"]}}, "patterns know"),
    "alias a number": ({"protect": {"aliases": [1]}}, "aliases"),
    "no policy": ({"policies": []}, "policies"),
    "digest malformed": ({"policies": [{"digests": ["sha256:1"]}]}, "64 hexadecimal"),
    "digests empty": ({"policies": [{"digests": []}]}, "empty list of digests"),
    "version text": ({"policies": [{"min_version": "3"}]}, "min_version"),
    "age zero": ({"max_age_days": 0}, "max_age_days"),
    "age infinite": ({"max_age_days": float("inf")}, "max_age_days"),
    "list absent": ({"revoked": ["absent.yaml"]}, "absent.yaml"),
    "override without users": ({"override": {"users": [], "log": "o"}}, "override.users"),
    "override without log": ({"override": {"users": ["a"]}}, "override.log"),
    "log in no folder": ({"override": {"users": ["a"], "log": "no/such/folder"}}, "cannot be written"),
    "another version": ({"apiVersion": "mlflow-lipschitz/v2"}, "apiVersion"),
    "policy for a set of models": ({"policies": [{"models": "prod[12]"}]}, "patterns know"),
    "limits": ({"limits": {"bytes": 0}}, "limits.bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_configuration_is_refused(folder: Path, case: str) -> None:
    changed, reason = BROKEN[case]
    with pytest.raises(GateConfigError, match=None) as caught:
        load_config(write_config(folder, **changed))
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: 1\na: 2", "{", "\x00", "!!python/object:os.system {}", "&a [*a]"])
def test_what_is_no_configuration_is_refused(folder: Path, text: str) -> None:
    path = folder / "gate.yaml"
    path.write_text(text)
    with pytest.raises(GateConfigError):
        load_config(path)


def test_a_duplicate_key_deep_inside_is_refused(folder: Path) -> None:
    path = folder / "gate.yaml"
    path.write_text(path.read_text().replace("protect:\n", "protect:\n  names: ['*']\n"))
    with pytest.raises(GateConfigError, match="given twice"):
        load_config(path)


def test_a_configuration_has_to_be_named(tmp_path: Path) -> None:
    for environment in ({}, {VARIABLE: ""}, {VARIABLE: str(tmp_path / "absent.yaml")}, {VARIABLE: str(tmp_path)}):
        with pytest.raises(GateConfigError):
            config_from(environment)


@pytest.mark.parametrize(
    "text",
    ["revoked: []", "apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\nrevoked: [{keyid: 'sha256:1', reason: x}]",
     "apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\nrevoked: [{keyid: '" + "sha256:" + "0" * 64 + "', reason: ' '}]",
     "apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\nrevoked: {}\n", "x: 1\nx: 2"],
)  # fmt: skip
def test_a_revocation_list_that_is_understood_in_part_is_refused(folder: Path, text: str) -> None:
    (folder / "revoked.yaml").write_text(text)
    with pytest.raises(GateConfigError):
        load_config(folder / "gate.yaml")


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "ec.pub").write_bytes(pem)
    private = RELEASE.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "private.pub").write_bytes(private)
    (tmp_path / "both.pub").write_bytes(signing.write_public(RELEASE, tmp_path / "x.pem").read_bytes() + private)
    for name in ("ec.pub", "private.pub", "both.pub"):
        with pytest.raises(GateConfigError):
            read_trust([tmp_path / name], [])


FILES = {"MLmodel": b"x", "data/a.bin": b"y"}


def test_a_good_attestation_by_two_keys(tmp_path: Path) -> None:
    content = signing.envelope(signing.statement(FILES, "m", "1"), STRANGER, RELEASE)
    trust = read_trust([signing.write_public(RELEASE, tmp_path / "r.pub")], [])
    found = read_attestation(content)
    assert found.signature_problems(trust) == []
    assert set(found.files) == set(FILES)


def malformed() -> dict[str, bytes]:
    said = signing.statement(FILES, "m", "1")
    good = json.loads(signing.envelope(said, RELEASE))
    row = good["signatures"][0]

    def changed(**more: object) -> bytes:
        return json.dumps({**good, **more}).encode()

    def signed(statement: dict[str, object]) -> bytes:
        return signing.envelope(statement, RELEASE)

    return {
        "too large": b" " * (LIMIT + 1),
        "duplicate key": json.dumps(good)[:-1].encode() + b', "payloadType": "x"}',
        "surplus key": changed(more=1),
        "no signatures": changed(signatures=[]),
        "too many": changed(signatures=[{**row, "keyid": f"sha256:{n:064x}"} for n in range(17)]),
        "same key twice": changed(signatures=[row, row]),
        "surplus in signature": changed(signatures=[{**row, "x": 1}]),
        "short key id": changed(signatures=[{**row, "keyid": "sha256:1"}]),
        "short signature": changed(signatures=[{**row, "sig": "AAAA"}]),
        "unpadded": changed(payload=good["payload"].rstrip("=") + "A"),
        "newline in base64": changed(payload=good["payload"][:4] + "\n" + good["payload"][4:]),
        "other type": changed(payloadType="text/plain"),
        "no subject": signed({**said, "subject": []}),
        "unsorted": signed({**said, "subject": said["subject"][::-1]}),
        "surplus in statement": signed({**said, "x": 1}),
        "other statement": signed({**said, "predicateType": "urn:other"}),
        "version a number": signed(
            {**said, "predicate": {**said["predicate"], "model": {**said["predicate"]["model"], "version": 1}}}
        ),
        "no verdict": signed({**said, "predicate": {k: v for k, v in said["predicate"].items() if k != "verdict"}}),
        "verdict a list": signed({**said, "predicate": {**said["predicate"], "verdict": []}}),
        "no object": b"3",
    }


@pytest.mark.parametrize("case", malformed())
def test_malformed_attestations_are_refused(case: str) -> None:
    with pytest.raises(Malformed):
        read_attestation(malformed()[case])


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the product's test vectors are not beside the plugin")
def test_the_products_own_vectors() -> None:
    trust = read_trust([VECTORS / "trusted.pub"], [])
    good = read_attestation((VECTORS / "attestation.json").read_bytes())
    assert good.signature_problems(trust) == []
    assert good.files == {p.relative_to(VECTORS / "files").as_posix(): signing.sha256(p.read_bytes())
                          for p in (VECTORS / "files").rglob("*") if p.is_file()}  # fmt: skip
    bad = sorted((VECTORS / "bad").glob("*.json"))
    assert bad
    for path in bad:
        try:
            problems = read_attestation(path.read_bytes()).signature_problems(trust)
        except Malformed:
            continue
        assert problems, path.name


def test_the_plugin_does_not_load_the_product() -> None:
    import subprocess

    loaded = "[m for m in ('torch', 'onnx', 'mlflow_lipschitz') if m in sys.modules]"
    code = f"import sys, mlflow_lipschitz_gate.config, mlflow_lipschitz_gate.attestation; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PLUGIN, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_configuration_is_read(tmp_path: Path) -> None:
    """The one in the README has to be one that works."""
    text = (PLUGIN / "README.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n", 1)[1].split("```", 1)[0]
    prepare(tmp_path)
    names = yaml.safe_load(example)
    for name in names["trusted_keys"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        signing.write_public(RELEASE, tmp_path / name)
    (tmp_path / "gate.yaml").write_text(example)
    assert load_config(tmp_path / "gate.yaml").file.protect.aliases
