"""How a worker learns which files are frozen: from the workers beside it at once, from other machines within a second."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from conftest import prepare
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
from mlflow.server import handlers
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow_lipschitz_gate import frozen as frozen_module
from mlflow_lipschitz_gate.config import load_config
from mlflow_lipschitz_gate.frozen import FrozenPlaces
from mlflow_lipschitz_gate.gated_store import gated
from mlflow_lipschitz_gate.places import Places, _upwards, key_if_possible
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
        """Have a fresh look, and count statements from here on."""
        self.is_frozen("s3://b/none")
        self.statements.clear()


@pytest.fixture
def machine(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    shared = tmp_path / "registrations"
    shared.write_bytes(bytes(START))
    monkeypatch.setenv(VARIABLE, str(shared))
    shutil.copy(empty, tmp_path / "mlflow.db")
    found = Machine(tmp_path)
    monkeypatch.setattr(handlers, "_get_model_registry_store", lambda: found.store)
    yield found
    # No thread may live on and look at whatever store the next test has.
    monkeypatch.setattr(frozen_module, "_AWAKE_SECONDS", -1.0)
    assert until(lambda: not found.frozen._awake)


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

    @sqlalchemy.event.listens_for(machine.store.engine, "commit")
    def away(_: Any) -> None:
        raise ConnectionError("the database is away")

    with pytest.raises(MlflowException):
        machine.store.create_model_version("m", "s3://b/one")
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


@pytest.mark.usefixtures("_asked_only")
def test_what_a_request_hears_during_a_look_is_not_lost(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.looks()
    read = machine.frozen._read

    def slow_read() -> Any:
        found = read()
        machine.beside.lipschitz_registrations.announce(["s3://b/meanwhile"])
        assert machine.is_frozen("s3://b/meanwhile")
        return found

    machine.frozen._seen = None
    monkeypatch.setattr(machine.frozen, "_read", slow_read)
    machine.frozen._look(0)
    assert machine.is_frozen("s3://b/meanwhile")
    monkeypatch.setattr(machine.frozen, "_read", read)
    machine.frozen._look(0)
    assert not machine.is_frozen("s3://b/meanwhile"), (
        "it was gone before the next look, and the counts are as they were"
    )


@pytest.mark.usefixtures("_asked_only")
def test_what_is_told_while_a_worker_reads_is_heard_next_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.looks()
    registrations, later = machine.frozen._registrations, iter(["s3://b/late"])
    since = registrations.since

    def slow_since(position: int) -> Any:
        found = since(position)
        if uri := next(later, None):
            machine.beside.lipschitz_registrations.announce([uri])
        return found

    monkeypatch.setattr(registrations, "since", slow_since)
    machine.beside.lipschitz_registrations.announce(["s3://b/first"])
    assert machine.is_frozen("s3://b/first")
    assert machine.is_frozen("s3://b/late")


@pytest.mark.usefixtures("_asked_only")
def test_a_look_whose_end_fails_does_not_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.looks()
    machine.elsewhere.create_model_version("m", "s3://b/far")
    registrations, calls = machine.frozen._registrations, iter((False, True))
    since = registrations.since

    def broken(position: int) -> Any:
        if next(calls, False):
            raise OSError("the shared file cannot be read")
        return since(position)

    monkeypatch.setattr(registrations, "since", broken)
    with pytest.raises(OSError, match="shared file"):
        machine.frozen._look(0)
    machine.frozen._look(0)
    assert machine.is_frozen("s3://b/far")


def test_a_look_counts_from_its_beginning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(frozen_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    monkeypatch.setattr(machine.frozen, "_stay_awake", lambda: None)
    read = machine.frozen._read

    def slow_read() -> Any:
        now[0] += 2.0
        return read()

    monkeypatch.setattr(machine.frozen, "_read", slow_read)
    machine.frozen._look(0)
    assert not machine.frozen.is_fresh()


@pytest.mark.usefixtures("_asked_only")
def test_a_run_that_cannot_be_asked_for_stops_the_look(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would count as thawed otherwise. A run that is gone has none."""
    errors = iter((TEMPORARILY_UNAVAILABLE, RESOURCE_DOES_NOT_EXIST))

    def get_run(_: str) -> Any:
        if (code := next(errors, None)) is not None:
            raise MlflowException("no such luck", code)
        return SimpleNamespace(info=SimpleNamespace(artifact_uri="s3://b/run"))

    monkeypatch.setattr(handlers, "_get_tracking_store", lambda: SimpleNamespace(get_run=get_run))
    machine.looks()
    machine.store.create_model_version("m", f"runs:/{'0' * 32}/model")
    with pytest.raises(MlflowException, match="no such luck"):
        machine.frozen.write("s3://b/none", "", "to write").refuse()
    assert not machine.is_frozen("s3://b/run/model")


@pytest.mark.usefixtures("_asked_only")
def test_a_new_worker_reads_the_database_and_not_all_that_was_ever_told(machine: Machine) -> None:
    machine.store.create_model_version("m", "s3://b/old")
    machine.store.delete_model_version("m", "1")
    machine.store.create_model_version("m", "s3://b/new")
    late = FrozenPlaces(machine.store.lipschitz_registrations)
    assert late._heard == machine.store.lipschitz_registrations.end
    machine.frozen = late
    machine.frozen._stay_awake = lambda: None  # type: ignore[method-assign]
    assert (machine.is_frozen("s3://b/old"), machine.is_frozen("s3://b/new")) == (False, True)


def test_workers_that_were_forked_read_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn --preload: each child has the parent's open files, and their position with it."""
    shared = tmp_path / "registrations"
    shared.write_bytes(bytes(START))
    monkeypatch.setenv(VARIABLE, str(shared))
    registrations = Registrations()
    uris = [f"s3://b/{number}" for number in range(200)]
    registrations.announce(uris)
    child = os.fork()
    wrong = [n for n in range(3000) if registrations.since(START)[0] != uris]
    if not child:
        os._exit(bool(wrong))
    assert (wrong, os.waitpid(child, 0)[1]) == ([], 0)


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


def test_addresses_of_runs_that_name_no_file_stop_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a run, no run, and another spelling: each is read, and each is told without failing the registration."""
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri="s3://b/run"))
    monkeypatch.setattr(handlers, "_get_tracking_store", lambda: SimpleNamespace(get_run=lambda _: run))
    run_id = "0" * 32
    machine.looks()
    for uri in (f"runs:/{run_id}", "runs:/", "runs:", f"RUNS:/{run_id}/", f"runs://profile/{run_id}/m"):
        machine.store.create_model_version("m", uri)
        assert not machine.is_frozen("s3://b/other")
    assert machine.is_frozen("s3://b/run/anything")

    def away(_: str) -> Any:
        raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(handlers, "_get_tracking_store", lambda: SimpleNamespace(get_run=away))
    machine.store.lipschitz_registrations.announce([f"RUNS:/{run_id}/m"])


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


def test_what_lies_in_what() -> None:
    places = Places(["s3://b/x", "s3://b/x-1", "s3://b/x/deep/er", "s3://b/y/z"], frozenset({"s3://b"}))
    places.add("s3://b/y/a")
    places.add("s3://b")
    places.add("s3://b/x01")
    for target, touched in {
        "s3://b/x/deep": {"s3://b/x", "s3://b/x/deep/er"},
        "s3://b/x": {"s3://b/x", "s3://b/x/deep/er"},
        "s3://b/x-1/f": {"s3://b/x-1"},
        "s3://b/x0": set(),
        "s3://b/y": {"s3://b/y/z", "s3://b/y/a"},
        "s3://b/y/": set(),
        "s3://b/z": set(),
        "s3://c": set(),
        "s3://b": {"s3://b/x01", "s3://b/x", "s3://b/x-1", "s3://b/x/deep/er", "s3://b/y/z", "s3://b/y/a"},
    }.items():
        assert places.touched_by(target) == touched, target


def test_an_endless_address_takes_little_memory() -> None:
    """Each letter a folder: all folders of 60 kB are a gigabyte."""
    endless = "a/" * 30_000
    places = Places(["s3://b/x"], frozenset())
    tracemalloc.start()
    try:
        assert places.touched_by(f"s3://b/x/{endless}f") == {"s3://b/x"}
        assert places.touched_by(f"s3://b/y/{endless}f") == set()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        assert len(list(_upwards(f"s3://b/x/{endless}f", 10))) < 10
    finally:
        tracemalloc.stop()
    assert key_if_possible(f"s3://b/{endless}") is None
    assert key_if_possible(f"s3://b/{endless[:8000]}") is not None


def test_a_full_disk_does_not_fail_a_registration(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    registrations = machine.store.lipschitz_registrations
    nearly = SimpleNamespace(write=lambda data: machine.beside.lipschitz_registrations._writer.write(data[:5]))
    for number, writer in enumerate((open("/dev/full", "wb", buffering=0), nearly)):  # noqa: SIM115
        monkeypatch.setattr(registrations, "_writer", writer)
        machine.looks()
        caplog.clear()
        machine.store.create_model_version("m", f"s3://b/full{number}")
        assert "hear late" in caplog.text
        assert until(lambda n=number: machine.is_frozen(f"s3://b/full{n}"))
    machine.beside.create_model_version("m", "s3://b/after")
    assert machine.is_frozen("s3://b/after"), "a line that broke off hides none after it"
