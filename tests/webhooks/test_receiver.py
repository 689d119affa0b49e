"""The receiver: who is believed, what is kept, what is done; against a real store and as a process that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from fastapi import FastAPI
from mlflow.tracking import MlflowClient
from mlflow.webhooks.delivery import _generate_hmac_signature

import mlflow_lipschitz
from mlflow_lipschitz.cli.__main__ import run
from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.trust import TrustSources
from mlflow_lipschitz.webhooks import handling
from mlflow_lipschitz.webhooks import receiver as receiver_module
from mlflow_lipschitz.webhooks.deliveries import (
    ALIAS_CREATED,
    TOLERANCE_SECONDS,
    VERSION_CREATED,
    BadDelivery,
    Delivery,
    read_delivery,
)
from mlflow_lipschitz.webhooks.handling import ReceiverSettings, TryAgain, handle, standing_aliases
from mlflow_lipschitz.webhooks.queue import Queue
from mlflow_lipschitz.webhooks.receiver import Worker, receiver
from tests.registry.evidence import POLICY, record
from tests.registry.keyring import key, private_file, public_file
from tests.registry.stores import artifact_folder, fresh_name, log_onnx


@pytest.fixture(autouse=True)
def _the_package_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits and receivers run in processes of their own, in other folders: they load what this process has loaded."""
    monkeypatch.setenv("PYTHONPATH", str(Path(mlflow_lipschitz.__file__).parent.parent))


SECRET, NOW = "a secret of the webhook", 1_800_000_000.0


def sent(event: str, data: dict[str, Any], *, secret: str = SECRET, now: float = NOW) -> tuple[dict[str, str], bytes]:
    """Headers and body as MLflow's own code makes them."""
    entity, action = event.split(".")
    body = json.dumps({"entity": entity, "action": action, "timestamp": "t", "data": data})
    delivery_id, timestamp = str(uuid.uuid4()), str(int(now))
    signature = _generate_hmac_signature(secret, delivery_id, timestamp, body)
    headers = {"x-mlflow-delivery-id": delivery_id, "x-mlflow-timestamp": timestamp, "x-mlflow-signature": signature}
    return headers, body.encode()


ALIAS = {"name": "scorer", "alias": "champion", "version": "3"}


def test_a_delivery_of_mlflow_is_read() -> None:
    headers, body = sent(ALIAS_CREATED, ALIAS)
    found = read_delivery(headers, body, SECRET, now=NOW)
    assert found == Delivery(headers["x-mlflow-delivery-id"], ALIAS_CREATED, "scorer", "3", "champion")
    headers, body = sent("registered_model.created", {"name": "scorer"})
    assert read_delivery(headers, body, SECRET, now=NOW) is None


@pytest.mark.parametrize(
    "change", ["secret", "body", "id", "time", "none", "empty", "version", "old", "future", "text"]
)
def test_who_does_not_know_the_secret_is_refused(change: str) -> None:
    headers, body = sent(ALIAS_CREATED, ALIAS, secret="guess" if change == "secret" else SECRET)
    now = NOW
    if change == "body":
        body = body.replace(b'"3"', b'"4"')
    elif change == "id":
        headers["x-mlflow-delivery-id"] += "0"
    elif change == "time":
        headers["x-mlflow-timestamp"] = str(int(NOW) + 1)
    elif change == "none":
        del headers["x-mlflow-signature"]
    elif change == "empty":
        headers = {}
    elif change == "version":
        headers["x-mlflow-signature"] = headers["x-mlflow-signature"].replace("v1,", "v2,")
    elif change == "old":
        now = NOW + TOLERANCE_SECONDS + 1
    elif change == "future":
        now = NOW - TOLERANCE_SECONDS - 1
    elif change == "text":
        headers["x-mlflow-signature"] = "v1,é"
    with pytest.raises(BadDelivery) as caught:
        read_delivery(headers, body, SECRET, now=now)
    assert caught.value.status == 401


@pytest.mark.parametrize("data", [{}, [], {"name": "a"}, {"name": "a", "alias": "b", "version": "x"}, None])
def test_what_mlflow_does_not_send_is_refused(data: Any) -> None:
    with pytest.raises(BadDelivery) as caught:
        headers, body = sent(ALIAS_CREATED, data)
        read_delivery(headers, body, SECRET, now=NOW)
    assert caught.value.status == 400


def delivery(number: int = 0, **more: Any) -> Delivery:
    return Delivery(f"id-{number}", more.pop("event", VERSION_CREATED), more.pop("name", "m"), "1", **more)


def test_the_queue_keeps_order_drops_duplicates_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue = Queue(path)
    assert [queue.add(delivery(n)) for n in (0, 1, 0)] == [True, True, False]
    assert queue.take(ALIAS_CREATED) is None
    first = queue.take(VERSION_CREATED)
    assert first == delivery(0)
    # A process that dies here has acknowledged two deliveries and finished none.
    queue = Queue(path)
    assert queue.restart() == 1
    assert queue.take(VERSION_CREATED) == delivery(0)
    queue.finish(delivery(0), "passed")
    assert not queue.add(delivery(0))
    assert queue.take(VERSION_CREATED) == delivery(1)
    queue.postpone(delivery(1), 3600.0, "later")
    assert queue.take(VERSION_CREATED) is None
    assert queue.tries(delivery(1)) == 1
    assert queue.counts() == {"done": 1, "waiting": 1}
    assert queue.outcomes() == {"id-0": "passed"}


def test_a_queue_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, and long enough to show it")
    for place in (tmp_path, tmp_path / "text", tmp_path / "no" / "such" / "folder"):
        with pytest.raises(UsageError, match="--queue FILE"):
            Queue(place)


def settings(tmp_path: Path, **more: Any) -> ReceiverSettings:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    trust = TrustSources((public_file(1, tmp_path),))
    return ReceiverSettings(**{"policy": policy, "aliases": ("champion",), "trust": trust, **more})


def alias_on(name: str, alias: str = "champion") -> Delivery:
    MlflowClient().set_registered_model_alias(name, alias, "1")
    return Delivery(str(uuid.uuid4()), ALIAS_CREATED, name, "1", alias)


def held(name: str) -> dict[str, str]:
    return dict(MlflowClient().get_registered_model(name).aliases)


def told(name: str) -> dict[str, Any]:
    return dict(json.loads(MlflowClient().get_model_version(name, "1").tags[tags.RECEIVER]))


def test_an_alias_nothing_vouches_for_is_removed_and_it_says_so(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    event = alias_on(name, "Champion")
    assert "no audit is on record" in handle(event, settings(tmp_path))
    assert held(name) == {}
    assert "no audit is on record" in told(name)["because"][0]
    assert f"mlflow-lipschitz promote models:/{name}/1 --alias Champion" in told(name)["then"]
    # A duplicate finds nothing left to do.
    assert handle(event, settings(tmp_path)) == "the alias has moved since"


def test_an_alias_with_a_signed_audit_stays(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    record(name, tmp_path / "evidence", key=key(1))
    event = alias_on(name)
    for _ in range(2):
        assert handle(event, settings(tmp_path)) == "vouched for"
    assert held(name) == {"champion": 1} or held(name) == {"champion": "1"}


@pytest.mark.parametrize("forged", ["unsigned", "stranger", "blocked", "files", "policy"])
def test_an_alias_with_evidence_that_does_not_hold_is_removed(store: str, tmp_path: Path, forged: str) -> None:
    name = fresh_name()
    info = log_onnx(name)
    signer = {"unsigned": None, "stranger": key(2)}.get(forged, key(1))
    record(name, tmp_path / "evidence", key=signer, status="blocked" if forged == "blocked" else "passed")
    how = settings(tmp_path)
    if forged == "files":
        (artifact_folder(MlflowClient(), info.model_id) / "model.onnx").write_bytes(b"evil")
    if forged == "policy":
        how.policy.write_text(POLICY.replace("500.0", "1.0"))
    assert handle(alias_on(name), how).startswith("removed the alias")
    assert held(name) == {}


def test_a_remark_goes_when_it_no_longer_fits(store: str, tmp_path: Path) -> None:
    name, how = fresh_name(), settings(tmp_path)
    log_onnx(name)
    assert handle(alias_on(name), how).startswith("removed")
    record(name, tmp_path / "evidence", key=key(1))
    # An audit alone does not bring the alias back, so the remark about it stays until the alias is there again.
    handling._unsay(Delivery("x", VERSION_CREATED, name, "1"), how, failures_only=True)
    assert "removed" in told(name)
    assert handle(alias_on(name), how) == "vouched for"
    assert tags.RECEIVER not in MlflowClient().get_model_version(name, "1").tags


def test_a_store_that_hiccups_takes_no_alias_away(store: str, tmp_path: Path) -> None:
    """Files that cannot be read are tried again; only what stays unreadable counts as missing."""
    name = fresh_name()
    info = log_onnx(name)
    record(name, tmp_path / "evidence", key=key(1))
    place = artifact_folder(MlflowClient(), info.model_id)
    event = alias_on(name)
    away = place.rename(place.with_name("away"))
    with pytest.raises(TryAgain):
        handle(event, settings(tmp_path), last_try=False)
    assert "champion" in held(name)
    away.rename(place)
    assert handle(event, settings(tmp_path), last_try=False) == "vouched for"
    place.rename(away)
    assert handle(event, settings(tmp_path)).startswith("removed the alias")
    assert held(name) == {}


def test_other_aliases_and_other_models_are_left_alone(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    assert handle(alias_on(name, "blue"), settings(tmp_path)) == "not a guarded alias"
    assert handle(alias_on(name), settings(tmp_path, models="other-*")) == "not a model of this receiver"
    assert set(held(name)) == {"blue", "champion"}


def test_a_lost_delivery_is_made_up_for(store: str, tmp_path: Path) -> None:
    name = fresh_name("lost")
    log_onnx(name)
    alias_on(name)
    found = [d for d in standing_aliases(settings(tmp_path, models="lost-*")) if d.name == name]
    assert [(d.version, d.alias) for d in found] == [("1", "champion")]


def test_a_store_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    event = Delivery("x", ALIAS_CREATED, "m", "1", "champion")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TryAgain):
            handle(event, settings(tmp_path, tracking_uri=uri))


def test_an_audit_that_cannot_begin_is_said_on_the_version(store: str, tmp_path: Path) -> None:
    """Exit code 2 of a real audit in a process of its own: the policy is not one."""
    name = fresh_name()
    log_onnx(name)
    how = settings(tmp_path, tracking_uri=store)
    how.policy.write_text("nonsense: true")
    assert handle(Delivery("x", VERSION_CREATED, name, "1"), how).startswith("refused")
    found = MlflowClient().get_model_version(name, "1").tags
    assert found[tags.VERDICT] == "error"
    assert "refused" in found[tags.RECEIVER]


def test_a_new_version_is_audited_signed_and_may_then_hold_the_alias(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    how = settings(tmp_path, tracking_uri=store, sign_key=private_file(1, tmp_path))
    MlflowClient().set_model_version_tag(name, "1", tags.RECEIVER, "the audit was stopped")
    assert handle(Delivery("x", VERSION_CREATED, name, "1"), how) == "passed"
    assert tags.RECEIVER not in MlflowClient().get_model_version(name, "1").tags
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "passed"
    assert handle(alias_on(name), how) == "vouched for"
    assert "champion" in held(name)


def test_over_http(store: str, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue.db")
    app = receiver(queue, settings(tmp_path, models="nothing-*"), SECRET)
    with listening(app) as url:
        headers, body = sent(ALIAS_CREATED, ALIAS, now=time.time())
        for queued in (True, False):
            answer = requests.post(f"{url}/webhook", data=body, headers=headers, timeout=30)
            assert (answer.status_code, answer.json()) == (200, {"queued": queued})
        assert requests.post(f"{url}/webhook", data=body, timeout=30).status_code == 401
        assert requests.post(f"{url}/webhook", data=b" " * ((1 << 20) + 1), timeout=30).status_code == 413
        assert requests.get(f"{url}/webhook", timeout=30).status_code == 405
        headers, body = sent("prompt.created", {"name": "p"}, now=time.time())
        assert requests.post(f"{url}/webhook", data=body, headers=headers, timeout=30).json() == {"queued": False}
        wait_until(lambda: queue.counts() == {"done": 1})
        assert requests.get(f"{url}/health", timeout=30).json() == {"done": 1}


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application on a port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def test_an_alias_does_not_wait_for_an_audit(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an audit takes its time, an alias on the same version is examined, and taken back."""
    auditing, over = threading.Event(), threading.Event()

    def slow(event: Delivery, how: ReceiverSettings, *, last_try: bool) -> str:
        if event.event == ALIAS_CREATED:
            return handle(event, how, last_try=last_try)
        auditing.set()
        over.wait(60)
        return "passed"

    monkeypatch.setattr(receiver_module, "handle", slow)
    name, queue = fresh_name("slow"), Queue(tmp_path / "queue.db")
    log_onnx(name)
    with listening(receiver(queue, settings(tmp_path, models="slow-*"), SECRET)):
        queue.add(Delivery("audit", VERSION_CREATED, name, "1"))
        wait_until(auditing.is_set)
        queue.add(alias_on(name))
        wait_until(lambda: held(name) == {})
        over.set()
        wait_until(lambda: "audit" in queue.outcomes())


def test_a_worker_survives_a_queue_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a locked file ends no worker: what was acknowledged is worked on once it is over."""
    monkeypatch.setattr(receiver_module, "_PAUSE_SECONDS", 0.05)
    queue, fails = Queue(tmp_path / "queue.db"), ["take", "finish", "take"]
    for method in ("take", "finish"):
        plain = getattr(queue, method)

        def failing(*args: Any, plain: Any = plain, method: str = method) -> Any:
            if fails and fails[0] == method:
                fails.pop(0)
                raise sqlite3.OperationalError("disk is full")
            return plain(*args)

        monkeypatch.setattr(queue, method, failing)
    with listening(receiver(queue, settings(tmp_path, models="nothing-*", aliases=()), SECRET)) as url:
        queue.add(delivery(0))
        wait_until(lambda: "id-0" in queue.outcomes())
        assert not fails
        assert requests.get(f"{url}/health", timeout=30).json() == {"done": 1}


def test_an_audit_does_not_inherit_the_secret(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit's process is replaced by one that tells its environment; it ends like one that was refused."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nenv\nexit 2\n")
    program.chmod(0o755)
    name = fresh_name()
    log_onnx(name)
    monkeypatch.setenv("LIPSCHITZ_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("LIPSCHITZ_OTHER", "kept")
    monkeypatch.setattr(sys, "executable", str(program))
    said = handle(Delivery("x", VERSION_CREATED, name, "1"), settings(tmp_path, tracking_uri=store))
    assert "LIPSCHITZ_OTHER=kept" in said and "LIPSCHITZ_WEBHOOK_SECRET" not in said


def test_a_worker_gives_up_on_an_audit_and_never_on_an_alias(store: str, tmp_path: Path) -> None:
    queue, how = Queue(tmp_path / "queue.db"), settings(tmp_path, tracking_uri="http://127.0.0.1:9")
    for event in (delivery(0), delivery(1, event=ALIAS_CREATED, alias="champion")):
        worker = Worker(queue, how, event.event)
        queue.add(event)
        queue.take(event.event)
        for _ in range(2):
            worker._again(event, "no answer")
            assert queue.counts()["waiting"] == 1
            with queue._connection() as connection:
                connection.execute("update deliveries set not_before = 0")
            queue.take(event.event)
        worker._again(event, "no answer")
        assert queue.counts().get("waiting", 0) == (event.event == ALIAS_CREATED)
    assert queue.outcomes()["id-0"].startswith("gave up")


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def process(words: list[str], env: dict[str, str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def up() -> bool:
            assert running.poll() is None
            with suppress(requests.RequestException):
                return requests.get(f"{url}/health", timeout=5).ok
            return False

        wait_until(up, 90)
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.send_signal(signal.SIGKILL)
        running.wait()


def test_killed_at_a_random_moment_it_loses_no_delivery(store: str, tmp_path: Path) -> None:
    """Whatever was acknowledged before SIGKILL is worked on after the next start, and no unaudited version keeps its alias."""
    kills = int(os.environ.get("LIPSCHITZ_KILLS", "2"))
    how, queue_file = settings(tmp_path), tmp_path / "queue.db"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, env = f"http://127.0.0.1:{port}", {**os.environ, "LIPSCHITZ_WEBHOOK_SECRET": SECRET}
    prefix = fresh_name("killed")
    words = [sys.executable, "-m", "mlflow_lipschitz.cli", "serve", "--policy", str(how.policy), "--alias", "champion"]
    words += ["--queue", str(queue_file), "--port", str(port), "--tracking-uri", store, "--models", f"{prefix}-*"]
    words += ["--trusted-key", str(how.trust.keys[0])]
    acknowledged, names = set(), []
    client, generator = MlflowClient(), random.Random(5)
    for number in range(kills):
        with process(words, env, url):
            for _ in range(4):
                name = f"{prefix}-{uuid.uuid4().hex[:8]}"
                client.create_registered_model(name)
                client.create_model_version(name, source=f"{tmp_path.as_uri()}/{number}")
                names.append(name)
                event = alias_on(name)
                told = {"name": event.name, "alias": event.alias, "version": event.version}
                headers, body = sent(ALIAS_CREATED, told, now=time.time())
                if requests.post(f"{url}/webhook", data=body, headers=headers, timeout=30).ok:
                    acknowledged.add(headers["x-mlflow-delivery-id"])
            time.sleep(generator.random() * 0.5)
    assert len(acknowledged) == 4 * kills
    with process(words, env, url):
        wait_until(lambda: acknowledged <= set(Queue(queue_file).outcomes()), 120 + 20 * kills)
    assert [name for name in names if held(name)] == []


def test_serve_says_what_is_missing_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = settings(tmp_path)
    for name in ("LIPSCHITZ_WEBHOOK_SECRET", "LIPSCHITZ_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    words = ["serve", "--policy", str(how.policy), "--queue", str(tmp_path / "queue.db"), "--alias", "champion"]
    assert run(words) == 2
    assert "LIPSCHITZ_WEBHOOK_SECRET is not set" in capsys.readouterr().err
    monkeypatch.setenv("LIPSCHITZ_WEBHOOK_SECRET", SECRET)
    assert run(words) == 2
    assert "no trusted key is configured" in capsys.readouterr().err
