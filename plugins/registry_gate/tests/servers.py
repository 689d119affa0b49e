"""Live servers: `mlflow server` in a process of its own, with the plugin found through its entry points."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLUGIN = Path(__file__).parent.parent
DISTRIBUTION = "mlflow-lipschitz-gate"
ADMIN = ("admin", "a-long-password-for-tests")


def plugin_path(folder: Path) -> str:
    """What PYTHONPATH needs so that a new Python finds the plugin and its entry points; empty when it is installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution(DISTRIBUTION)
        return ""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"mlflow_lipschitz_gate-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["mlflow.app"].items()]
    (info / "entry_points.txt").write_text("[mlflow.app]\n" + "\n".join(lines) + "\n")
    return os.pathsep.join([str(PLUGIN), str(folder)])


@dataclass(frozen=True)
class Setup:
    """One way of running the server."""

    stack: str = "uvicorn"
    auth: bool = False
    database: str = "sqlite"
    gate: bool = True
    workers: int = 2

    def __str__(self) -> str:
        return f"{self.stack}-{self.database}{'-auth' if self.auth else ''}{'' if self.gate else '-plain'}"


@dataclass
class Server:
    url: str
    folder: Path
    auth: tuple[str, str] | None
    process: subprocess.Popen[bytes]

    @property
    def files(self) -> Path:
        """The artifact store, behind the server's back."""
        return self.folder / "artifacts"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, **changed: object) -> Path:
    """A gate configuration in `folder`, where keys/release.pub and revoked.yaml are."""
    config: dict[str, object] = {
        "apiVersion": "mlflow-lipschitz/v1",
        "kind": "GateConfig",
        "protect": {"aliases": ["champion"], "stages": ["Production"], "names": ["prod.*"]},
        "policies": [{"name": "credit-scorer", "min_version": 3}],
        "trusted_keys": ["keys"],
        "revoked": ["revoked.yaml"],
        "max_age_days": 30,
        **changed,
    }
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return path


def command(setup: Setup, folder: Path, database: str, port: int) -> list[str]:
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--workers", str(setup.workers)]
    if setup.gate:
        words += ["--app-name", "lipschitz-gate-auth" if setup.auth else "lipschitz-gate"]
    elif setup.auth:
        words += ["--app-name", "basic-auth"]
    if setup.stack == "gunicorn":
        words += ["--gunicorn-opts", "--log-level warning"]
    return words


def environment(folder: Path, config: Path | None, **more: str) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_", "LIPSCHITZ_", "PYTEST_"))}
    found |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-for-tests",
        "MLFLOW_AUTH_CONFIG_PATH": str(_auth_config(folder)),
        "PYTHONWARNINGS": "ignore",
        **more,
    }
    if path := plugin_path(folder / "site"):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [path, found.get("PYTHONPATH")]))
    if config is not None:
        found["LIPSCHITZ_GATE_CONFIG"] = str(config)
    return found


def _auth_config(folder: Path) -> Path:
    """Basic-auth that remembers a password for a while: hashing it at every call is most of what these tests would do."""
    path = folder / "auth.ini"
    path.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\nauth_cache_ttl_seconds = 600\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return path


@contextlib.contextmanager
def serving(setup: Setup, folder: Path, config: Path | None, database: str | None = None) -> Iterator[Server]:
    """A server that answers; killed with everything it started at the end."""
    server = start(setup, folder, config, database)
    try:
        yield server
    finally:
        stop(server)


def start(setup: Setup, folder: Path, config: Path | None, database: str | None = None) -> Server:
    port = free_port()
    words = command(setup, folder, database or f"sqlite:///{folder}/mlflow.db", port)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            env=environment(folder, config),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", folder, ADMIN if setup.auth else None, process)
    try:
        _wait(server)
    except BaseException:
        stop(server)
        raise
    return server


def _wait(server: Server) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(f"{server.url}/health", timeout=5).ok:
                return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{server.log}")


def stop(server: Server, how: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, how)
    server.process.wait(timeout=20)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of a new PostgreSQL database on a port of its own."""
    # PostgreSQL does not run as root, and nobody else may enter a test's own folder.
    data, port = Path(tempfile.mkdtemp(prefix="gate-postgres-")), free_port()
    run: list[str] = []
    if os.geteuid() == 0:
        run = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(data, 65534, 65534)
    binary = Path(shutil.which("initdb") or "").resolve().parent
    made = [*run, str(binary / "initdb"), "-D", str(data), "-A", "trust", "-U", "mlflow", "-E", "UTF8", "--locale=C"]
    subprocess.run(made, check=True, capture_output=True, cwd=data)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
    process = subprocess.Popen(
        [*run, str(binary / "postgres"), "-D", str(data), *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=data,
    )
    try:
        for _ in range(100):
            ready = subprocess.run(
                [str(binary / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)], capture_output=True
            )
            if ready.returncode == 0:
                break
            time.sleep(0.1)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(data, ignore_errors=True)
