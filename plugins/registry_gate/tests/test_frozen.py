"""How a worker learns which files are frozen: from the workers beside it at once, from other machines within a second."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from conftest import prepare
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow_lipschitz_gate import frozen as frozen_module
from mlflow_lipschitz_gate.config import load_config
from mlflow_lipschitz_gate.frozen import FrozenPlaces
from mlflow_lipschitz_gate.gated_store import gated
from mlflow_lipschitz_gate.registrations import START, VARIABLE, Registrations


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{path}").engine.dispose()
    return path


class Machine:
    """A worker with the gate, a second one beside it, and another machine's server on the same database without a gate."""

    def __init__(self, folder: Path) -> None:
        uri = f"sqlite:///{folder}/mlflow.db"
        config = load_config(prepare(folder))
        self.store: Any = gated(SqlAlchemyStore(uri), config, Registrations())
        self.beside: Any = gated(SqlAlchemyStore(uri), config, Registrations())
        self.elsewhere = SqlAlchemyStore(uri)
        self.elsewhere.create_registered_model("m")
        self.frozen = FrozenPlaces(self.store.lipschitz_registrations)
        self.statements: list[str] = []
        sqlalchemy.event.listen(self.store.engine, "before_cursor_execute", self._count)

    def _count(self, *args: Any) -> None:
        self.statements.append(args[2])

    def is_frozen(self, uri: str) -> bool:
        try:
            self.frozen.write(uri, "", "to write").refuse()
        except MlflowException:
            return True
        return False

    def tell(self, text: str) -> None:
        """Write into the shared file as a worker beside this one would, or one that broke off."""
        registrations = self.beside.lipschitz_registrations
        registrations._writer.write(text.encode())
        registrations.stamp[:START] = os.urandom(START)

    def looks(self) -> None:
        """Have a fresh look, and hold the thread that looks ahead."""
        self.is_frozen("s3://b/none")
        self.statements.clear()


@pytest.fixture
def machine(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    shared = tmp_path / "registrations"
    shared.write_bytes(bytes(START))
    monkeypatch.setenv(VARIABLE, str(shared))
    shutil.copy(empty, tmp_path / "mlflow.db")
    found = Machine(tmp_path)
    monkeypatch.setattr(handlers, "_get_model_registry_store", lambda: found.store)
    return found


@pytest.fixture
def _asked_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a request looks at the database, and what was seen is fresh for as long as a test takes."""
    monkeypatch.setattr(frozen_module, "_SECONDS", 1e6)
    monkeypatch.setattr(machine.frozen, "_stay_awake", lambda: None)


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.usefixtures("_asked_only")
@pytest.mark.parametrize("who", ["store", "beside"])
def test_a_registration_on_this_machine_is_known_at_once_and_without_a_question(machine: Machine, who: str) -> None:
    machine.looks()
    assert not machine.is_frozen("s3://b/one/MLmodel")
    getattr(machine, who).create_model_version("m", "s3://b/one")
    machine.statements.clear()
    assert machine.is_frozen("s3://b/one/MLmodel")
    assert machine.is_frozen("s3://b")  # a folder above it
    assert not machine.is_frozen("s3://b/two")
    assert machine.statements == []


@pytest.mark.usefixtures("_asked_only")
def test_what_only_the_database_can_tell_is_asked_there(machine: Machine, tmp_path: Path) -> None:
    """The place of a run takes a query, and a line that broke off may be any place."""

    def add_unheard(name: str) -> None:
        machine.elsewhere.create_model_version("m", f"s3://b/{name}")

    for name, said in (("run", "null\n"), ("broken", '"s3://b/bro\n'), ("odd", "7\n")):
        machine.looks()
        add_unheard(name)
        assert not machine.is_frozen(f"s3://b/{name}"), "nobody told"
        machine.tell(said)
        assert machine.is_frozen(f"s3://b/{name}")
    machine.looks()
    machine.store.create_model_version("m", "runs:/0123/model")
    assert (tmp_path / "registrations").read_bytes().splitlines()[-1] == b"null"


@pytest.mark.usefixtures("_asked_only")
def test_a_line_is_not_read_before_it_ends(machine: Machine) -> None:
    machine.looks()
    machine.tell('"s3://b/')
    assert not machine.is_frozen("s3://b/slow")
    machine.tell('slow"\n')
    assert machine.is_frozen("s3://b/slow")
    assert not machine.is_frozen("s3://b/other")


@pytest.mark.usefixtures("_asked_only")
def test_what_failed_is_not_announced(machine: Machine) -> None:
    machine.looks()
    with pytest.raises(MlflowException):
        machine.store.create_model_version("no such model", "s3://b/one")
    assert not machine.is_frozen("s3://b/one")


@pytest.mark.usefixtures("_asked_only")
def test_what_is_told_during_a_look_is_not_lost(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look may have read the table before the version was in it."""
    read, told = machine.frozen._read, iter((None, "s3://b/known", "runs:/0123/model"))

    def slow_read() -> Any:
        found = read()
        if uri := next(told, None):
            machine.elsewhere.create_model_version("m", uri.replace("runs:/", "s3://b/"))
            machine.beside.lipschitz_registrations.announce([uri])
        return found

    monkeypatch.setattr(machine.frozen, "_read", slow_read)
    machine.looks()
    machine.store.lipschitz_registrations.announce(["runs:/to/look"])
    assert machine.is_frozen("s3://b/known")
    machine.store.lipschitz_registrations.announce(["runs:/to/look"])
    assert not machine.is_frozen("s3://b/0123/model"), "read before it was registered"
    assert machine.is_frozen("s3://b/0123/model"), "what only the database can tell was told meanwhile"


def test_other_machines_are_known_within_seconds_and_deleted_versions_thaw(machine: Machine) -> None:
    machine.looks()
    machine.elsewhere.create_model_version("m", "s3://b/far")
    assert until(lambda: machine.is_frozen("s3://b/far"))
    machine.elsewhere.delete_model_version("m", "1")
    assert until(lambda: not machine.is_frozen("s3://b/far"))


def test_a_version_that_comes_and_goes_between_two_looks_thaws(machine: Machine) -> None:
    """The counts by which a look knows that nothing changed are then as they were."""
    machine.looks()
    machine.store.create_model_version("m", "s3://b/short")
    assert machine.is_frozen("s3://b/short")
    machine.store.delete_model_version("m", "1")
    assert until(lambda: not machine.is_frozen("s3://b/short"))


def test_the_thread_that_looks_ahead_survives_the_database_and_ends_when_nobody_asks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_module, "_SECONDS", 0.05)
    machine.looks()
    read, failures = machine.frozen._read, []

    def away() -> Any:
        failures.append(1)
        raise ConnectionError("the database is away")

    monkeypatch.setattr(machine.frozen, "_read", away)
    assert until(lambda: len(failures) > 3)
    with pytest.raises(ConnectionError):  # closed, not open
        machine.is_frozen("s3://b/none")
    monkeypatch.setattr(machine.frozen, "_read", read)
    machine.statements.clear()
    assert until(lambda: bool(machine.statements))
    assert machine.frozen._awake
    monkeypatch.setattr(frozen_module, "_AWAKE_SECONDS", 0.0)
    assert until(lambda: not machine.frozen._awake)
    monkeypatch.setattr(frozen_module, "_AWAKE_SECONDS", 600.0)
    machine.is_frozen("s3://b/none")
    machine.statements.clear()
    assert until(lambda: bool(machine.statements))


IMPOSSIBLE = ("mlflow-artifacts:/0//a%00", "/a/../b\0", "s3://[x", "file://elsewhere/x", "file:///a//\ud800")


def test_a_version_of_an_impossible_place_stops_nobody(machine: Machine) -> None:
    """MLflow refuses such sources, and a database may hold some all the same."""
    for number, uri in enumerate(IMPOSSIBLE[:4]):
        with machine.elsewhere.engine.begin() as connection:
            connection.execute(
                sqlalchemy.text(
                    "insert into model_versions (name, version, source, current_stage, creation_time, workspace) "
                    "values ('m', :version, :uri, 'None', 5, 'default')"
                ),
                {"version": number + 50, "uri": uri},
            )
    machine.store.lipschitz_registrations.announce(IMPOSSIBLE)
    machine.store.create_model_version("m", "s3://b/good")
    assert not machine.is_frozen("s3://b/none")
    assert machine.is_frozen("s3://b/good")


def test_a_full_disk_does_not_fail_a_registration(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    registrations = machine.store.lipschitz_registrations
    monkeypatch.setattr(registrations, "_writer", open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    machine.looks()
    machine.store.create_model_version("m", "s3://b/full")
    assert "hear late" in caplog.text
    assert until(lambda: machine.is_frozen("s3://b/full"))
