"""Models, versions and attestations on a live server, by plain HTTP."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers import Server
from signing import envelope, statement

API, AJAX = "/api/2.0/mlflow", "/ajax-api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True)
class Version:
    """A registered version, the path of its files in the artifact store, and the files."""

    name: str
    version: str
    model_id: str | None
    path: str
    files: dict[str, bytes]
    run_id: str | None = None

    @property
    def who(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}


@dataclass
class World:
    server: Server
    key: Ed25519PrivateKey
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.auth = self.server.auth

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.session.request(method, self.server.url + path, timeout=60, **more)

    def post(self, path: str, body: dict[str, Any], *, base: str = API, **more: Any) -> requests.Response:
        return self.call("POST", f"{base}/{path}", json=body, **more)

    def done(self, response: requests.Response) -> dict[str, Any]:
        assert response.status_code == 200, (response.status_code, response.text)
        return dict(response.json()) if response.content and response.text.startswith("{") else {}

    def put(self, path: str, content: bytes, **more: Any) -> requests.Response:
        return self.call("PUT", f"{PROXY}/{path}", data=content, **more)

    def new_run(self) -> str:
        made = self.done(self.post("runs/create", {"experiment_id": "0", "start_time": 1, "run_name": "r"}))
        return str(made["run"]["info"]["run_id"])

    def new_name(self, start: str = "model") -> str:
        name = f"{start}{uuid.uuid4().hex[:8]}"
        self.done(self.post("registered-models/create", {"name": name}))
        return name

    def new_version(self, name: str | None = None, content: bytes = b"weights") -> Version:
        """A logged model with files, registered."""
        name = name or self.new_name()
        made = self.done(self.post("logged-models", {"experiment_id": "0", "name": "m"}))["model"]["info"]
        model_id, path = made["model_id"], made["artifact_uri"].removeprefix("mlflow-artifacts:/")
        files = {"MLmodel": b"flavors: {}\n", "data/model.onnx": content}
        for file, data in files.items():
            self.done(self.put(f"{path}/{file}", data))
        ready = {"model_id": model_id, "status": "LOGGED_MODEL_READY"}
        self.done(self.call("PATCH", f"{API}/logged-models/{model_id}", json=ready))
        body = {"name": name, "source": f"models:/{model_id}", "model_id": model_id}
        made = self.done(self.post("model-versions/create", body))["model_version"]
        return Version(name, made["version"], model_id, path, files)

    def new_run_version(self, name: str | None = None, content: bytes = b"weights") -> Version:
        """A model among the artifacts of a run, registered the old way."""
        name, run_id = name or self.new_name(), self.new_run()
        path = f"0/{run_id}/artifacts/model"
        files = {"MLmodel": b"flavors: {}\n", "model.pkl": content}
        for file, data in files.items():
            self.done(self.put(f"{path}/{file}", data))
        body = {"name": name, "source": f"mlflow-artifacts:/{path}", "run_id": run_id}
        made = self.done(self.post("model-versions/create", body))["model_version"]
        return Version(name, made["version"], None, path, files, run_id)

    def statement_for(self, version: Version, **changed: Any) -> dict[str, Any]:
        return statement(version.files, version.name, version.version, version.model_id, **changed)

    def record(self, version: Version, content: bytes) -> str:
        """Put an attestation into a new run and point the version at it; the run's id."""
        run_id = self.new_run()
        self.done(self.put(f"0/{run_id}/artifacts/lipschitz/attestation.json", content))
        self.tag(version, run_id)
        return run_id

    def tag(self, version: Version, run_id: str, key: str = "lipschitz.run_id") -> None:
        self.done(self.post("model-versions/set-tag", {**version.who, "key": key, "value": run_id}))

    def audited(self, name: str | None = None, **changed: Any) -> Version:
        version = self.new_version(name)
        self.attest(version, **changed)
        return version

    def attest(self, version: Version, **changed: Any) -> str:
        """A signed attestation on record for the version."""
        return self.record(version, envelope(self.statement_for(version, **changed), self.key))

    def set_alias(self, version: Version, alias: str = "champion", **more: Any) -> requests.Response:
        return self.post("registered-models/alias", {**version.who, "alias": alias}, **more)

    def set_stage(self, version: Version, stage: str = "Production", **more: Any) -> requests.Response:
        return self.post("model-versions/transition-stage", {**version.who, "stage": stage}, **more)

    def holder(self, name: str, alias: str = "champion") -> str | None:
        found = self.call("GET", f"{API}/registered-models/alias", params={"name": name, "alias": alias})
        return str(found.json()["model_version"]["version"]) if found.ok else None

    def read(self, version: Version) -> dict[str, Any]:
        found = self.call("GET", f"{API}/model-versions/get", params=version.who)
        return dict(self.done(found)["model_version"])


def assert_refused(response: requests.Response, *words: str) -> None:
    """HTTP 403, which clients do not retry, as JSON that an MLflow client shows, with what to run."""
    assert response.status_code == 403, (response.status_code, response.text)
    assert response.json()["error_code"] == "PERMISSION_DENIED"
    message = response.json()["message"]
    assert "mlflow-lipschitz audit" in message or "mlflow-lipschitz promote" in message, message
    for word in words:
        assert word in message, message
