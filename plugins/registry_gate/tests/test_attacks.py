"""Ways around the gate, each refused with 403, which no MLflow client retries, and with the command that would open it."""

from __future__ import annotations

import base64
import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests
from conftest import LEAKED, RELEASE, STRANGER
from servers import Setup
from signing import POLICY, envelope, key_id, text
from world import AJAX, API, PROXY, Version, World, assert_refused

# Two servers cover each choice once. The other combinations run by hand: LIPSCHITZ_GATE_LONG=1.
SETUPS = [Setup(), Setup("gunicorn", auth=True, database="postgres")]
if os.environ.get("LIPSCHITZ_GATE_LONG"):
    SETUPS = [
        Setup(stack, auth=auth, database=database)
        for stack in ("uvicorn", "gunicorn")
        for database in ("sqlite", "postgres")
        for auth in (False, True)
    ]
pytestmark = pytest.mark.parametrize("server", SETUPS, indirect=True, ids=str)

SET_ALIAS, STAGE = "registered-models/alias", "model-versions/transition-stage"
LOOK_ALIKES = [
    "\u0441hampion",
    "\uff23HAMPION",
    "ch\u0430mp\u0456\u043en",
    "champi0n",
    "charnpion",
    "ch\u00e1mpion",
    "champ\u0131on",
]


def raw(world: World, path: str, body: dict[str, Any]) -> requests.Response:
    """Send a path exactly as written: requests would tidy it."""
    request = requests.Request("POST", world.server.url, json=body, auth=world.server.auth)
    prepared = world.session.prepare_request(request)
    prepared.url = world.server.url + path
    return world.session.send(prepared, timeout=60)


def test_an_audited_version_may_pass(world: World) -> None:
    version = world.audited()
    world.done(world.set_alias(version))
    assert world.holder(version.name) == version.version
    world.done(world.set_stage(version))
    read = world.read(version)
    assert read["current_stage"] == "Production"
    assert not [tag for tag in read["tags"] if tag["key"].startswith("lipschitz.gate")]


@pytest.mark.parametrize("alias", ["champion", "Champion", "CHAMPION"])
def test_an_alias_in_any_case(world: World, alias: str) -> None:
    version = world.new_version()
    assert_refused(
        world.set_alias(version, alias), "no audit is on record", f"models:/{version.name}/{version.version}"
    )
    assert world.holder(version.name, alias) is None


@pytest.mark.parametrize("alias", LOOK_ALIKES, ids=ascii)
def test_an_alias_that_looks_like_a_protected_one(world: World, alias: str) -> None:
    version = world.audited()
    assert_refused(world.set_alias(version, alias), "looks like")
    assert world.holder(version.name, alias) is None


def test_stages_in_any_case_and_both_spellings_of_fields(world: World) -> None:
    version = world.new_version()
    for stage in ("Production", "production", "PRODUCTION"):
        for more in ({}, {"archive_existing_versions": True}, {"archiveExistingVersions": True}):
            response = world.post(STAGE, {**version.who, "stage": stage, **more})
            assert_refused(response, "the stage Production")
    assert world.read(version)["current_stage"] == "None"


@pytest.mark.parametrize("base", [API, AJAX])
def test_both_bases(world: World, base: str) -> None:
    version = world.new_version()
    assert_refused(world.set_alias(version, base=base))
    assert_refused(world.set_stage(version, base=base))


PATHS = [
    "//api/2.0/mlflow/{0}",
    "/api//2.0/mlflow/{0}",
    "/api/2.0/mlflow//{0}",
    "/api/2.0/mlflow/./{0}",
    "/api/2.0/mlflow/x/../{0}",
    "/%61pi/2.0/mlflow/{0}",
    "/api/2.0/mlflow/{0}%2f",
    "/api/2.0/mlflow/{0}/",
    "/api%2f2.0%2fmlflow/{0}",
    "/ajax-api/2.0/mlflow/{0}?x=1",
    "/api/2.0/mlflow/{0};x=1",
    "/api/2.0/mlflow/{0}%3fx",
    "/API/2.0/mlflow/{0}",
    "/api/2.0/mlflow/%2e%2e/mlflow/{0}",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_any_spelling(world: World, path: str) -> None:
    version = world.new_version()
    for route, more in ((SET_ALIAS, {"alias": "champion"}), (STAGE, {"stage": "Production"})):
        response = raw(world, path.format(route), {**version.who, **more})
        # Some spellings lead nowhere. None of them leads in.
        assert response.status_code in (403, 404, 405, 308), response.text
        if response.status_code == 403 and world.server.auth is None:
            assert_refused(response)
    assert world.holder(version.name) is None
    assert world.read(version)["current_stage"] == "None"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_other_methods(world: World, method: str) -> None:
    version = world.new_version()
    body = {**version.who, "alias": "champion", "stage": "Production"}
    for route in (SET_ALIAS, STAGE):
        world.call(method, f"{API}/{route}", json=body, params=body)
    assert world.holder(version.name) is None
    assert world.read(version)["current_stage"] == "None"


def test_creating_in_a_protected_name(world: World) -> None:
    name = world.new_name("prod.")
    version = world.new_version()
    run = world.new_run_version()
    body = {"name": name, "source": f"models:/{version.model_id}", "model_id": version.model_id}
    assert_refused(world.post("model-versions/create", body), "only a copy of an audited version")
    body = {"name": name, "source": f"mlflow-artifacts:/{run.path}", "run_id": run.run_id}
    assert_refused(world.post("model-versions/create", body))
    body = {"name": name, "source": f"runs:/{run.run_id}/model", "run_id": run.run_id}
    assert_refused(world.post("model-versions/create", body))


def test_copying_into_a_protected_name(world: World) -> None:
    name = world.new_name("prod.")
    version = world.new_version()
    world.done(world.set_alias(version, "blue"))
    for source in (f"models:/{version.name}/{version.version}", f"models:/{version.name}@blue"):
        assert_refused(world.post("model-versions/create", {"name": name, "source": source}), f"--to {name}")
    good = world.audited()
    source = {"source": f"models:/{good.name}/{good.version}"}
    made = world.done(world.post("model-versions/create", {"name": name, **source}))["model_version"]
    # The copy may also hold the alias: the attestation is found through the versions it is a copy of.
    world.done(world.post(SET_ALIAS, {"name": name, "version": made["version"], "alias": "champion"}))
    assert world.holder(name) == made["version"]


def test_a_protected_name_in_another_case_or_script(world: World) -> None:
    version = world.new_version()
    for start in ("Prod.", "\u0440rod."):
        name = world.new_name(start)
        body = {"name": name, "source": f"models:/{version.name}/{version.version}"}
        assert_refused(world.post("model-versions/create", body))


def test_renaming(world: World) -> None:
    version = world.new_version()
    rename = "registered-models/rename"
    for base in (API, AJAX):
        assert_refused(
            world.post(rename, {"name": version.name, "new_name": "prod.renamed"}, base=base), "protected name"
        )
        # MLflow itself takes no camel case here; what counts is that it does not lead in either.
        answer = world.post(rename, {"name": version.name, "newName": "prod.renamed"}, base=base)
        assert answer.status_code in (400, 403), answer.text
    empty = world.new_name("prod.")
    assert_refused(world.post(rename, {"name": empty, "new_name": world.new_name() + "x"}))
    good = world.audited()
    world.done(world.set_alias(good))
    assert_refused(world.post(rename, {"name": good.name, "new_name": good.name + "x"}), "holds the protected alias")


def test_tags_open_nothing(world: World) -> None:
    version, good = world.new_version(), world.audited()
    tags = {t["key"]: t["value"] for t in world.read(good)["tags"]}
    forged = {"lipschitz.verdict": "passed", "lipschitz.attestation": "sha256:" + "0" * 64, **tags}
    for key, value in forged.items():
        world.tag(version, value, key)
    # Its tags now lead to the attestation of another version.
    assert_refused(world.set_alias(version), "it is for version")
    assert_refused(world.set_stage(version), "it is for version")


@pytest.mark.parametrize("run_id", ["", "../../etc", "0" * 32, "x" * 500, "0/../../a", "%2e%2e"])
def test_tags_that_point_nowhere(world: World, run_id: str) -> None:
    version = world.new_version()
    world.tag(version, run_id)
    assert_refused(world.set_alias(version))


def expired() -> dict[str, str]:
    now = datetime.now(timezone.utc)
    return {"created": text(now - timedelta(days=20)), "expires": text(now - timedelta(hours=1))}


def aged() -> dict[str, str]:
    now = datetime.now(timezone.utc)
    return {"created": text(now - timedelta(days=31)), "expires": text(now + timedelta(days=59))}


def early() -> dict[str, str]:
    now = datetime.now(timezone.utc)
    return {"created": text(now + timedelta(days=1)), "expires": text(now + timedelta(days=59))}


STATEMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": (expired(), "it is valid from"),
    "too-old": (aged(), "30 days at most"),
    "not-yet": (early(), "it is valid from"),
    "blocked": ({"verdict": {"status": "blocked"}}, "its verdict is 'blocked'"),
    "another-policy": ({"policy": {**POLICY, "name": "lenient"}}, "'credit-scorer' is required"),
    "older-policy": ({"policy": {**POLICY, "version": "2"}}, "3 is required"),
    "policy-without-number": ({"policy": {**POLICY, "version": "3-rc"}}, "3 is required"),
    "said-unsigned": ({"signature": "none"}, "not 'ed25519'"),
    "local-time": ({"created": "2026-01-01T00:00:00+02:00"}, "no time in UTC"),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_statements_that_do_not_fit(world: World, case: str) -> None:
    changed, reason = STATEMENTS[case]
    assert_refused(world.set_alias(world.audited(**changed)), reason)


def test_another_version_of_the_same_model(world: World) -> None:
    first = world.audited()
    second = world.new_version(first.name, b"other weights")
    run_id = next(t["value"] for t in world.read(first)["tags"] if t["key"] == "lipschitz.run_id")
    world.tag(second, run_id)
    assert_refused(world.set_alias(second), "it is for version 1")


def test_an_attestation_that_names_this_version_and_other_files(world: World) -> None:
    version = world.new_version()
    said = world.statement_for(version)
    said["subject"][0]["digest"]["sha256"] = "0" * 64
    world.record(version, envelope(said, RELEASE))
    assert_refused(world.set_alias(version), "the model's files are not the audited ones: MLmodel")


def test_untrusted_and_revoked_keys(world: World) -> None:
    version = world.new_version()
    said = world.statement_for(version)
    world.record(version, envelope(said, STRANGER))
    assert_refused(world.set_alias(version), "not a trusted key")
    world.record(version, envelope(said, LEAKED))
    assert_refused(world.set_alias(version), "revoked: laptop lost")
    world.record(version, json.dumps(said, sort_keys=True, separators=(",", ":")).encode())
    assert_refused(world.set_alias(version), "UNSIGNED")


def test_a_trusted_name_on_a_strangers_signature(world: World) -> None:
    version = world.new_version()
    forged = json.loads(envelope(world.statement_for(version), STRANGER))
    forged["signatures"][0]["keyid"] = key_id(RELEASE)
    world.record(version, json.dumps(forged).encode())
    assert_refused(world.set_alias(version), "its signature is not one of")


def test_flipped_bits(world: World) -> None:
    version = world.new_version()
    good = envelope(world.statement_for(version), RELEASE)
    payload = bytearray(base64.b64decode(json.loads(good)["payload"]))
    for place in (3, len(payload) // 2, len(payload) - 3):
        payload[place] ^= 1
        changed = {**json.loads(good), "payload": base64.b64encode(payload).decode()}
        world.record(version, json.dumps(changed).encode())
        assert_refused(world.set_alias(version))
        payload[place] ^= 1
    for content in (good[:-1], b"", b"[]", b"{}", b"\xff\xfe", good + b" {}", b"[" * 100_000):
        world.record(version, content)
        assert_refused(world.set_alias(version))


def test_a_revocation_counts_at_once(world: World) -> None:
    version = world.audited()
    world.done(world.set_alias(version))
    path = world.server.folder / "revoked.yaml"
    before = path.read_text()
    try:
        path.write_text(before + f"  - {{keyid: '{key_id(RELEASE)}', reason: test}}\n")
        assert_refused(world.set_alias(version), "revoked: test")
        path.write_text("apiVersion: [")
        assert_refused(world.set_alias(version), "cannot read its keys")
    finally:
        path.write_text(before)


def test_the_attestation_is_deleted(world: World) -> None:
    version = world.audited()
    run_id = next(t["value"] for t in world.read(version)["tags"] if t["key"] == "lipschitz.run_id")
    world.done(world.call("DELETE", f"{PROXY}/0/{run_id}/artifacts/lipschitz/attestation.json"))
    assert_refused(world.set_alias(version), "lipschitz/attestation.json")


def spellings(path: str) -> list[str]:
    head, _, tail = path.rpartition("/")
    return [
        path,
        f"{head}//{tail}",
        f"/{path}",
        f"{head}/./{tail}",
        f"{head}/x/../{tail}",
        path.replace("models", "%6dodels"),
        path.replace("models", "%256dodels"),
        path.replace("/", "%2f"),
        f"{head}/%2e/{tail}",
    ]


def test_files_of_registered_versions_are_frozen(world: World) -> None:
    for version in (world.new_version(), world.new_run_version()):
        target = f"{version.path}/MLmodel"
        before = (world.server.files / target).read_bytes()
        for method in ("PUT", "DELETE"):
            for path in spellings(target):
                for base in (PROXY, PROXY.replace("/api", "/ajax-api")):
                    request = requests.Request(method, world.server.url, data=b"evil", auth=world.server.auth)
                    prepared = world.session.prepare_request(request)
                    prepared.url = f"{world.server.url}{base}/{path}"
                    answer = world.session.send(prepared, timeout=60)
                    assert answer.status_code in (400, 403, 404, 405), (method, path, answer.status_code, answer.text)
        assert_refused(world.put(target, b"evil"), "files of a registered model version")
        assert_refused(world.put(f"{version.path}/extra.py", b"evil"))
        assert (world.server.files / target).read_bytes() == before
        for above in (version.path, version.path.rpartition("/")[0], version.path.split("/")[0]):
            assert_refused(world.call("DELETE", f"{PROXY}/{above}"))
        assert (world.server.files / target).read_bytes() == before


def test_frozen_by_the_other_ways_to_upload(world: World) -> None:
    run = world.new_run_version()
    params = {"run_uuid": run.run_id, "path": "model/MLmodel"}
    assert_refused(world.post("upload-artifact", {"x": 1}, base=AJAX, params=params))
    for step in ("create", "complete", "abort"):
        body = {"path": "MLmodel", "num_parts": 1, "upload_id": "1", "parts": [{"part_number": 1, "etag": "x"}]}
        answer = world.call("POST", f"/api/2.0/mlflow-artifacts/mpu/{step}/{run.path}", json=body)
        assert answer.status_code >= 400
    # What is next to the model in the same run is not part of it.
    world.done(world.put(f"0/{run.run_id}/artifacts/plots/roc.png", b"png"))
    world.done(world.call("DELETE", f"{PROXY}/0/{run.run_id}/artifacts/plots/roc.png"))


def test_an_upload_that_began_before_registration(world: World) -> None:
    """The bytes trickle in while the version is registered, audited and promoted."""
    name = world.new_name()
    made = world.done(world.post("logged-models", {"experiment_id": "0", "name": "m"}))["model"]["info"]
    path = made["artifact_uri"].removeprefix("mlflow-artifacts:/")
    world.done(world.put(f"{path}/MLmodel", b"good"))
    body = {"name": name, "source": f"models:/{made['model_id']}", "model_id": made["model_id"]}

    def trickle() -> Any:
        yield b"evil"
        answer = requests.post(
            f"{world.server.url}{API}/model-versions/create", json=body, auth=world.server.auth, timeout=60
        )
        assert answer.ok, answer.text
        yield b"evil"

    answer = world.put(f"{path}/MLmodel", trickle())
    assert answer.status_code == 403, answer.text
    assert (world.server.files / path / "MLmodel").read_bytes() == b"good"


def test_files_changed_behind_the_servers_back(world: World) -> None:
    version = world.audited()
    world.done(world.set_alias(version))
    place = world.server.files / version.path
    (place / "data" / "model.onnx").write_bytes(b"evil")
    assert_refused(world.set_alias(version), "data/model.onnx")
    assert_refused(world.set_stage(version), "data/model.onnx")
    (place / "data" / "model.onnx").write_bytes(b"weights")
    (place / "extra.py").write_bytes(b"evil")
    assert_refused(world.set_alias(version), "extra.py")
    (place / "extra.py").unlink()
    (place / "extra.py").symlink_to("/etc/passwd")
    assert_refused(world.set_alias(version), "is a link")
    (place / "extra.py").unlink()
    world.done(world.set_stage(version))


def test_a_version_registered_by_the_address_of_its_run(world: World) -> None:
    """`runs:/…` stays in the registry as it is, and MLflow's client lays the files of a logged model over those of the run."""
    first = world.new_run_version()
    body = {"name": first.name, "source": f"runs:/{first.run_id}/model", "run_id": first.run_id}
    made = world.done(world.post("model-versions/create", body))["model_version"]
    world.done(world.call("DELETE", f"{API}/model-versions/delete", json=first.who))
    version = Version(first.name, made["version"], None, first.path, first.files, first.run_id)
    assert_refused(world.put(f"{first.path}/MLmodel", b"evil"))
    world.record(version, envelope(world.statement_for(version), RELEASE))
    assert_refused(world.set_alias(version), "stands for other places")
    assert_refused(world.set_stage(version), "stands for other places")
    # Neither is a copy of it any better.
    name = world.new_name()
    source = f"models:/{version.name}/{version.version}"
    copy = world.done(world.post("model-versions/create", {"name": name, "source": source}))["model_version"]
    body = {"name": name, "version": copy["version"], "alias": "champion"}
    assert_refused(world.post(SET_ALIAS, body), "stands for other places")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("{folder}/elsewhere", "none of the stores"),
        ("mlflow-artifacts:/x?y=1", "'?'"),
        ("s3://theirs/x", "none of the"),
    ],
)
def test_files_in_a_store_of_somebodys_own(world: World, location: str, said: str) -> None:
    """Whoever chooses the store may change it after the promotion, or answer the server and the client differently."""
    body = {"name": world.new_name("experiment"), "artifact_location": location.format(folder=world.server.folder)}
    experiment = world.done(world.post("experiments/create", body))["experiment_id"]
    made = world.done(world.post("logged-models", {"experiment_id": experiment, "name": "m"}))["model"]["info"]
    name = world.new_name()
    source = {"source": f"models:/{made['model_id']}", "model_id": made["model_id"]}
    world.done(world.post("model-versions/create", {"name": name, **source}))
    version = Version(name, "1", made["model_id"], "", {"MLmodel": b"x"})
    world.record(version, envelope(world.statement_for(version), RELEASE))
    assert_refused(world.set_alias(version), said)


@pytest.mark.parametrize("number", [" 1", "+1", "01", "\u0661"], ids=ascii)
def test_a_version_number_in_another_spelling(world: World, number: str) -> None:
    version, good = world.new_version(), world.audited()
    for one, status in ((version, 403), (good, 200)):
        assert world.post(SET_ALIAS, {"name": one.name, "version": number, "alias": "champion"}).status_code == status
        assert world.post(STAGE, {"name": one.name, "version": number, "stage": "Production"}).status_code == status
    assert world.holder(good.name) == "1"


def test_a_version_registered_under_a_percent_encoded_address(world: World) -> None:
    """What is hashed is what the server serves: the decoded path."""
    first = world.new_run_version()
    encoded = first.path.replace("/model", "/mod%65l")
    body = {"name": first.name, "source": f"mlflow-artifacts:/{encoded}", "run_id": first.run_id}
    made = world.done(world.post("model-versions/create", body))["model_version"]
    world.done(world.call("DELETE", f"{API}/model-versions/delete", json=first.who))
    version = Version(first.name, made["version"], None, first.path, first.files, first.run_id)
    assert_refused(world.put(f"{first.path}/MLmodel", b"evil"))
    world.record(version, envelope(world.statement_for(version), RELEASE))
    (world.server.files / first.path / "MLmodel").write_bytes(b"evil")
    assert_refused(world.set_alias(version), "MLmodel")


def test_the_gates_own_marks_are_nobody_elses(world: World) -> None:
    version = world.new_version()
    for key in ("lipschitz.gate.opening-copy", "lipschitz.gate.opening-alias.champion:1"):
        body = {**version.who, "key": key, "value": "1"}
        assert_refused(world.post("model-versions/set-tag", body))
        assert_refused(world.call("DELETE", f"{API}/model-versions/delete-tag", json=body))
    tags = [{"key": "lipschitz.gate.opening-copy", "value": "1"}, {"key": "kept", "value": "1"}]
    body = {"name": version.name, "source": f"models:/{version.name}/{version.version}", "tags": tags}
    made = world.done(world.post("model-versions/create", body))["model_version"]
    assert [tag["key"] for tag in made["tags"]] == ["kept"]


def test_what_is_not_protected_goes_through(world: World) -> None:
    version = world.new_version()
    world.done(world.set_alias(version, "challenger"))
    world.done(world.set_stage(version, "Staging"))
    world.done(world.set_stage(version, "Archived"))
    assert world.set_stage(version, "Nowhere").status_code == 400
    assert world.set_alias(version, "la test").status_code == 400
    name = version.name + "-renamed"
    world.done(world.post("registered-models/rename", {"name": version.name, "new_name": name}))
    # Taking away is never refused.
    good = world.audited()
    world.done(world.set_alias(good))
    body = {"name": good.name, "alias": "champion"}
    world.done(world.call("DELETE", f"{API}/registered-models/alias", json=body))
    world.done(world.call("DELETE", f"{API}/registered-models/delete", json={"name": good.name}))
