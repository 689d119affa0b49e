"""The gate as an operator and as a data scientist meet it: starting, overriding, racing, being killed, and not being in the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from conftest import RELEASE, needed, prepare
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.store.model_registry.file_store import FileStore
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow_lipschitz_gate.config import load_config
from mlflow_lipschitz_gate.gated_store import gated
from mlflow_lipschitz_gate.install import checked_config
from mlflow_lipschitz_gate.registrations import START, VARIABLE, Registrations
from servers import Server, Setup, command, environment, free_port, serving, write_config
from signing import envelope
from urllib3.connectionpool import HTTPConnectionPool
from world import API, World, assert_refused

AUTH = Setup(auth=True, workers=1)


def test_without_a_configuration_the_server_does_not_start(tmp_path: Path) -> None:
    """One message and exit 1, before any worker exists: nothing answers and nothing is restarted for ever."""
    words = command(Setup(), tmp_path, f"sqlite:///{tmp_path}/mlflow.db", free_port())
    env = environment(tmp_path, None)
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "mlflow-lipschitz-gate: the server does not start." in done.stderr
    assert "LIPSCHITZ_GATE_CONFIG is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_cannot_work_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepare(tmp_path)
    monkeypatch.setenv("LIPSCHITZ_GATE_CONFIG", str(config))
    write_config(tmp_path, override={"users": ["admin"], "log": "override.jsonl"})
    with pytest.raises(SystemExit, match="lipschitz-gate-auth"):
        checked_config(with_users=False)
    write_config(tmp_path, trusted_keys=[])
    with pytest.raises(SystemExit, match="trusted_keys"):
        checked_config(with_users=True)
    write_config(tmp_path)
    for name, said in (
        ("_MLFLOW_SERVER_ARTIFACTS_ONLY", "--artifacts-only"),
        ("MLFLOW_ENABLE_WORKSPACES", "workspaces"),
    ):
        with monkeypatch.context() as context, pytest.raises(SystemExit, match=said):
            context.setenv(name, "true")
            checked_config(with_users=True)


def test_ways_to_write_that_are_not_known_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer MLflow with a side door: no server is better than one that does not know it."""
    monkeypatch.setenv("LIPSCHITZ_GATE_CONFIG", str(prepare(tmp_path)))
    with monkeypatch.context() as context, pytest.raises(SystemExit, match="promote_model_version"):
        context.setattr(AbstractStore, "promote_model_version", lambda self: None, raising=False)
        checked_config(with_users=True)
    with monkeypatch.context() as context, pytest.raises(SystemExit, match="move_artifacts"):
        context.setattr(ArtifactRepository, "move_artifacts", lambda self: None, raising=False)
        checked_config(with_users=True)


def test_stores_that_were_not_tried_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spellings that are one row, or a replica that is behind: the gate would look at one thing and MLflow at another."""
    monkeypatch.setenv("LIPSCHITZ_GATE_CONFIG", str(prepare(tmp_path)))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    main, replica = f"sqlite:///{tmp_path}/main.db", f"sqlite:///{tmp_path}/replica.db"
    SqlAlchemyStore(replica)  # a replica has the tables
    behind, other = SqlAlchemyStore(main, read_db_uri=replica), SqlAlchemyStore(main)
    other.db_type = "mysql"
    for store, said in ((behind, "replica"), (other, "in mysql"), (FileStore(str(tmp_path)), "FileStore")):
        monkeypatch.setattr(handlers, "_model_registry_store", store)
        with pytest.raises(SystemExit, match=said):
            checked_config(with_users=True)
        with pytest.raises(MlflowException, match=said):
            gated(store, load_config(tmp_path / "gate.yaml"), Registrations())
    monkeypatch.setattr(handlers, "_model_registry_store", SqlAlchemyStore(main))
    checked_config(with_users=True)


def test_a_worker_whose_shared_file_is_gone_keeps_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tidies up temporary files stops no worker."""
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    registrations = Registrations()
    before = registrations.stamp[:]
    registrations.announce(["s3://bucket/a"])
    assert registrations.since(START)[0] == ["s3://bucket/a"]
    assert registrations.stamp[:] != before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    needed(AUTH)
    folder = tmp_path_factory.mktemp("server")
    config = prepare(folder, override={"users": ["admin"], "log": "override.jsonl"})
    with serving(AUTH, folder, config) as server:
        yield World(server, RELEASE)


def test_an_override_leaves_a_line(world: World) -> None:
    version = world.new_version()
    log = world.server.folder / "override.jsonl"
    assert_refused(world.set_alias(version))
    assert log.read_text() == ""
    world.done(world.set_alias(version, headers={"X-Lipschitz-Override": "incident 4711"}))
    assert world.holder(version.name) == version.version
    line = json.loads(log.read_text())
    assert (line["user"], line["reason"]) == ("admin", "incident 4711")
    assert line["what"] == f"the alias champion for version {version.version} of {version.name}"


def test_others_may_not_override(world: World) -> None:
    version = world.new_version()
    user = {"username": "bob", "password": "a-long-password-for-bob"}
    world.done(world.call("POST", "/api/2.0/mlflow/users/create", json=user))
    grant = {"name": version.name, "username": "bob", "permission": "MANAGE"}
    world.post("registered-models/permissions/create", grant)
    bob = World(world.server, RELEASE)
    bob.session.auth = (user["username"], user["password"])
    before = (world.server.folder / "override.jsonl").read_text()
    answer = bob.set_alias(version, headers={"X-Lipschitz-Override": "please"})
    assert answer.status_code == 403, answer.text
    assert world.holder(version.name) is None
    assert (world.server.folder / "override.jsonl").read_text() == before


def test_an_override_that_cannot_be_logged_is_none(world: World) -> None:
    version = world.new_version()
    log = world.server.folder / "override.jsonl"
    kept = log.read_text()
    log.unlink()
    log.mkdir()
    try:
        answer = world.set_alias(version, headers={"X-Lipschitz-Override": "incident"})
    finally:
        log.rmdir()
        log.write_text(kept)
    assert_refused(answer, "cannot be written")
    assert world.holder(version.name) is None


@contextmanager
def client_of(server: Server) -> Iterator[mlflow.MlflowClient]:
    """MLflow's own client, and the whole of `mlflow`, on this server."""
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    with pytest.MonkeyPatch.context() as patch:
        if server.auth is not None:
            patch.setenv("MLFLOW_TRACKING_USERNAME", server.auth[0])
            patch.setenv("MLFLOW_TRACKING_PASSWORD", server.auth[1])
        mlflow.set_tracking_uri(server.url)
        mlflow.set_registry_uri(server.url)
        try:
            yield mlflow.MlflowClient()
        finally:
            mlflow.set_tracking_uri(before[0])
            mlflow.set_registry_uri(before[1])


@contextmanager
def sent_requests() -> Iterator[list[str]]:
    """Every request that leaves this process, each try of a client that tries again counted."""
    found: list[str] = []
    plain = HTTPConnectionPool.urlopen

    def noted(self: Any, method: str, url: str, *args: Any, **more: Any) -> Any:
        found.append(f"{method} {url}")
        return plain(self, method, url, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPConnectionPool, "urlopen", noted)
        yield found


def test_a_refusal_is_one_request_and_names_the_command(world: World) -> None:
    """After an answer of 500 MLflow's client would try again for minutes. A denial is final, and says what to run."""
    version = world.new_version()
    prod = world.new_name("prod.")
    with client_of(world.server) as client:
        attempts = {
            "registered-models/alias": lambda: client.set_registered_model_alias(version.name, "champion", "1"),
            "registered-models/alias ": lambda: client.set_registered_model_alias(version.name, "champi0n", "1"),
            "transition-stage": lambda: client.transition_model_version_stage(version.name, "1", "Production"),
            "model-versions/create": lambda: client.copy_model_version(f"models:/{version.name}/1", prod),
            "registered-models/rename": lambda: client.rename_registered_model(version.name, "prod.new"),
        }
        for path, attempt in attempts.items():
            with sent_requests() as requests_, pytest.raises(MlflowException) as caught:
                attempt()
            assert len([one for one in requests_ if path.strip() in one]) == 1, requests_
            assert "mlflow-lipschitz promote" in str(caught.value), path
        assert_refused(world.set_alias(version), f"mlflow-lipschitz audit models:/{version.name}/1", "--alias champion")
        assert_refused(world.set_stage(version), "--stage Production")
        copied = {"name": prod, "source": f"models:/{version.name}/1"}
        assert_refused(world.post("model-versions/create", copied), f"--to {prod}")


def train_and_register(client: mlflow.MlflowClient) -> None:
    """What training scripts do with a tracking server and a registry where nothing is protected."""
    from sklearn.linear_model import LinearRegression

    name = "scripted"
    with mlflow.start_run(run_name="training", experiment_id="0") as run:
        mlflow.log_params({"a": 1})
        mlflow.log_metric("loss", 0.5)
        info = mlflow.sklearn.log_model(
            LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]),
            name="model",
            registered_model_name=name,
            pip_requirements=["scikit-learn"],
        )
        mlflow.log_text("after", "notes.txt")
    version = str(info.registered_model_version)
    assert int(mlflow.register_model(info.model_uri, name).version) == 2
    client.set_registered_model_alias(name, "challenger", version)
    client.set_model_version_tag(name, version, "stage", "candidate")
    client.update_model_version(name, version, "a description")
    path = mlflow.artifacts.download_artifacts(f"models:/{name}@challenger")
    assert (Path(path) / "MLmodel").is_file()
    copied = client.copy_model_version(f"models:/{name}/{version}", "copied")
    assert client.get_model_version("copied", copied.version).run_id == run.info.run_id
    client.transition_model_version_stage(name, version, "Staging")
    client.rename_registered_model("copied", "renamed")
    client.delete_registered_model_alias(name, "challenger")
    with pytest.raises(MlflowException, match="not found"):
        client.set_registered_model_alias(name, "challenger", "99")


def test_promotions_that_race_a_swap_of_the_files(world: World) -> None:
    """No promotion that began after the swap goes through, and none leaves the alias on files it has seen changed."""
    rounds, workers = (100, 16) if os.environ.get("LIPSCHITZ_GATE_LONG") else (16, 8)
    version = world.audited()
    place = world.server.files / version.path / "data" / "model.onnx"
    swapped = threading.Event()

    def promote(number: int) -> tuple[bool, int]:
        if number == rounds // 2:
            place.write_bytes(b"evil")
            swapped.set()
        late = swapped.is_set()
        answer = world.set_alias(version)
        # Two requests that insert one alias: MLflow answers the second one with its database's words, gate or not.
        assert answer.status_code in (200, 403) or "INSERT INTO registered_model_aliases" in answer.text
        return late, answer.status_code

    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(promote, range(rounds)))
    assert {status for late, status in answers if late} == {403}
    assert_refused(world.set_alias(version), "data/model.onnx")


def test_no_swap_through_the_server(world: World) -> None:
    version = world.audited()
    # Requests that insert one alias side by side are answered by MLflow with its database's words, gate or not.
    assert world.set_alias(version).ok

    def attempt(number: int) -> int:
        if number % 2:
            return world.put(f"{version.path}/data/model.onnx", b"evil").status_code
        answer = world.set_alias(version)
        assert answer.ok, answer.text
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(16)))
    assert answers == [200, 403] * 8
    assert world.holder(version.name) == version.version


KILLED = """
    import json, os, signal, sqlite3, sys
    from flask import Flask
    from mlflow.server import handlers
    from mlflow_lipschitz_gate.config import config_from
    from mlflow_lipschitz_gate.gated_store import GatedStore
    from mlflow_lipschitz_gate.install import install

    install(config_from(), Flask("x"))

    def die_at(method, file):
        real = getattr(plain, method)

        def opened(*args, **kwargs):
            real(*args, **kwargs)
            open(file, "wb").write(b"evil")
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(plain, method, opened)

    def is_open(name):
        with sqlite3.connect(os.environ["_MLFLOW_SERVER_FILE_STORE"].removeprefix("sqlite:///")) as db:
            alias = db.execute("select count(*) from registered_model_aliases where name = ?", [name]).fetchone()
            stage = db.execute(
                "select count(*) from model_versions where name = ? and current_stage = 'Production'", [name]
            ).fetchone()
            copy = db.execute("select count(*) from model_versions where name = 'prod.killed'").fetchone()
        return [*alias, *stage, *copy]

    ways = {
        "set_registered_model_alias": lambda name: store.set_registered_model_alias(name, "champion", "1"),
        "transition_model_version_stage": lambda name: store.transition_model_version_stage(name, "1", "Production", True),
        "create_model_version": lambda name: store.copy_model_version(store.get_model_version(name, "1"), "prod.killed"),
    }
    died = []
    for (method, call), (name, file) in zip(ways.items(), json.loads(sys.argv[1])):
        if not (child := os.fork()):
            store = handlers._get_model_registry_store()
            plain = next(kind for kind in type(store).__mro__ if kind not in (type(store), GatedStore))
            die_at(method, file)
            call(name)
            os._exit(1)
        died.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), is_open(name)])

    def shown(store):
        found = [(m, v) for m in store.search_registered_models() for v in store.search_model_versions(f"name='{m.name}'")]
        return [[v.name, v.current_stage, [*store.get_registered_model(m.name).aliases], sorted(v.tags)] for m, v in found]

    print(json.dumps([died, shown(handlers._get_model_registry_store())]))
"""


def test_killed_between_opening_and_the_second_look(world: World) -> None:
    """The worst moment: the door is open, the files were swapped, and the process dies. The next start takes it back."""
    folder, versions = world.server.folder, [world.audited() for _ in range(3)]
    env = environment(folder, folder / "gate.yaml") | {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(world.server.files),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    told = json.dumps([[v.name, str(world.server.files / v.path / "MLmodel")] for v in versions])
    words = [sys.executable, "-c", textwrap.dedent(KILLED), told]
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    died, rows = json.loads(done.stdout.splitlines()[-1])
    # Killed at the moment that matters: the door stood open.
    assert died == [[-9, [1, 0, 0]], [-9, [0, 1, 0]], [-9, [0, 0, 1]]]
    after = {row[0]: row for row in rows}
    alias, stage, copy = (v.name for v in versions)
    assert (after[alias][2], after[stage][1]) == ([], "Archived")
    assert "prod.killed" not in after
    assert not [tag for row in after.values() for tag in row[3] if tag.startswith("lipschitz.gate")]
    assert after[copy][2] == []


def masked(text: str, server: Server) -> str:
    """Without what differs between any two servers: ids, times, ports, names made up by the test."""
    text = text.replace(server.url, "URL").replace(str(server.folder), "FOLDER")
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", "TIME", text)
    text = re.sub(r"m-[0-9a-f]{32}|[0-9a-f]{32}|model[0-9a-f]{8}", "ID", text)
    text = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "TIME", text)
    return re.sub(r"\b1\d{12}\b", "TIME", text)


def test_unprotected_calls_answer_byte_for_byte_as_without_the_plugin(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Status, headers and body of every answer: to plain HTTP, and to a training script with MLflow's own client."""
    answers = []
    for gate in (False, True):
        folder = tmp_path_factory.mktemp("bytes")
        config = prepare(folder)
        with serving(Setup(gate=gate, workers=1), folder, config) as server:
            with client_of(server) as client, answered() as scripted:
                train_and_register(client)
            # Files go up side by side, so the order of these may differ.
            answers.append([masked(text, server) for text in _script(World(server, RELEASE))])
            answers[-1] += sorted(masked(text, server) for text in scripted)
    assert len(answers[0]) == len(answers[1]) > 80
    for without, having in zip(*answers, strict=True):
        assert having == without


@contextmanager
def answered() -> Iterator[list[str]]:
    """Every answer that `requests` gets in this process."""
    found: list[str] = []
    plain = requests.Session.send

    def noted(self: Any, request: Any, **more: Any) -> Any:
        answer = plain(self, request, **more)
        found.append(shown(request.method, request.path_url, answer))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "send", noted)
        yield found


def shown(method: str, path: str, answer: requests.Response) -> str:
    headers = {k.lower(): v for k, v in answer.headers.items() if k.lower() not in ("date", "content-length")}
    # The script packs the model's file anew each time, with times and addresses of its process in it.
    text = "its file" if path.endswith("/model.skops") and method == "GET" else answer.text
    return f"{method} {path} {answer.status_code} {sorted(headers.items())} {text}"


def _script(world: World) -> list[str]:
    found: list[str] = []
    plain = world.call

    def noted(method: str, path: str, **more: Any) -> Any:
        answer = plain(method, path, **more)
        found.append(shown(method, path, answer))
        return answer

    world.call = noted  # type: ignore[method-assign]
    for name in ("first", "second"):
        world.post("registered-models/create", {"name": name})
    version, run = world.new_version("first"), world.new_run_version("second")
    world.record(version, envelope(world.statement_for(version), RELEASE))
    for one in (version, run):
        world.set_alias(one, "blue")
        world.set_alias(one, "b l u e")
        world.set_alias(one, "latest")
        world.set_stage(one, "Staging")
        world.set_stage(one, "nowhere")
        world.holder(one.name, "blue")
        world.read(one)
        world.post("registered-models/rename", {"name": one.name, "new_name": "renamed"})
        world.post("registered-models/rename", {"name": "renamed", "new_name": one.name})
    world.post("model-versions/create", {"name": run.name, "source": f"models:/{version.name}/1"})
    world.post("model-versions/create", {"name": "absent", "source": f"models:/{version.name}/1"})
    world.post("registered-models/alias", {"name": version.name, "alias": "blue"})
    world.post("registered-models/alias", {"name": "absent", "alias": "blue", "version": "1"})
    world.call("GET", f"{API}/model-versions/search", params={"filter": f"name='{run.name}'"})
    world.call("GET", f"{API}/registered-models/search")
    world.put(f"0/{run.run_id}/artifacts/x.txt", b"x")
    world.call("GET", f"/api/2.0/mlflow-artifacts/artifacts/0/{run.run_id}/artifacts/x.txt")
    world.call("GET", "/api/2.0/mlflow-artifacts/artifacts", params={"path": f"0/{run.run_id}/artifacts"})
    world.put("../../x", b"x")
    world.call("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/0/{run.run_id}/artifacts/x.txt")
    world.call("DELETE", f"{API}/registered-models/delete", json={"name": run.name})
    return found
