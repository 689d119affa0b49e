"""Passing a protected door: verify, open, verify again, and close when the files changed meanwhile.

A mark on the version says that a door is being opened. It is set before and taken away after, so a server that is killed in
between finds the mark when it starts again and finishes the second look.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException

from mlflow_lipschitz_gate.config import GateConfig
from mlflow_lipschitz_gate.overrides import override_reason, record_override
from mlflow_lipschitz_gate.refusals import audit_and_promote, denied
from mlflow_lipschitz_gate.verification import ABSENT, problems_with, subject_of

MARK = "lipschitz.gate.opening-"
COPY_MARK = MARK + "copy"
# A worker that set a mark and did not open its door within this time is dead.
_OLD_SECONDS = 600
_AGAIN_SECONDS = 1.0
_PAUSES = (0.1, 0.5, 2.0)
_logger = logging.getLogger("mlflow_lipschitz_gate")
T = TypeVar("T")


@dataclass(frozen=True)
class Door:
    """One way for a version into a protected place.

    Attributes:
        name, version: the version that wants to pass.
        alias, stage: what it wants; exactly one is given.
        is_open: whether it stands there now.
        close: puts things back as they were.
    """

    name: str
    version: str
    alias: str | None
    stage: str | None
    is_open: Callable[[], bool]
    close: Callable[[], None]

    @property
    def what(self) -> str:
        return f"{'the alias ' + self.alias if self.alias else f'the stage {self.stage}'} for version {self.version} of {self.name}"

    @cached_property
    def mark(self) -> str:
        """The tag that stands on the version while the door is being opened; one for each attempt, for they run side by side."""
        what = f"alias.{self.alias}" if self.alias else f"stage.{self.stage}"
        return f"{MARK}{what}:{secrets.token_hex(4)}"

    @property
    def option(self) -> str:
        return f"--alias {self.alias}" if self.alias else f"--stage {self.stage}"


def passing(store: Any, config: GateConfig, door: Door, open_: Callable[[], T]) -> T:
    """Open `door` when a signed audit vouches for the version, before and after. Raises MlflowException (403)."""
    if reason := override_reason():
        record_override(config, door.what, reason)
        return open_()
    _demand(store, config, door)
    store.plain.set_model_version_tag(door.name, door.version, ModelVersionTag(door.mark, marked_now()))
    try:
        result = open_()
        _demand(store, config, door)
    except BaseException:
        # Whatever it was, the second look did not end well: the door is left open only if a third one does.
        surely(lambda: _settle(store, config, door), f"{door.what} is looked at again")
        raise
    unmark(store, door.name, door.version, door.mark)
    return result


def _settle(store: Any, config: GateConfig, door: Door) -> None:
    good = not door.is_open()
    try:
        good = good or not _problems(store, config, door.name, door.version)
    finally:
        if not good:
            door.close()
        unmark(store, door.name, door.version, door.mark)


def surely(action: Callable[[], object], what: str) -> None:
    """Do what must not be left undone: now, or in a thread that tries until it is done, should the database not answer.

    A server that is killed before that finds the mark at its next start.
    """

    def again() -> None:
        for number in itertools.count():
            time.sleep(_AGAIN_SECONDS * min(2**number, 60))
            try:
                action()
            except Exception:  # a database that is away for an hour must not end this
                _logger.exception("%s, in vain", what)
            else:
                return

    try:
        action()
    except Exception:
        _logger.exception("%s, once more", what)
        threading.Thread(target=again, name="lipschitz-gate", daemon=True).start()


def marked_now() -> str:
    """The value of a mark: when it was set, in seconds since the epoch."""
    return str(int(time.time()))


def alias_door(store: Any, config: GateConfig, name: str, alias: str, version: str) -> Door:
    """The door of an alias. It closes by giving the alias back to its last holder when that one still holds up."""
    before = _holder(store, name, alias)

    def is_open() -> bool:
        # If it is another, somebody else's promotion came after; that one is looked at on its own.
        return _holder(store, name, alias) == version

    def close() -> None:
        if before not in (None, version) and not _problems(store, config, name, str(before)):
            store.plain.set_registered_model_alias(name, alias, before)
        else:
            store.plain.delete_registered_model_alias(name, alias)

    return Door(name, version, alias, None, is_open, close)


def stage_door(store: Any, config: GateConfig, name: str, stage: str, version: str) -> Door:
    """The door of a stage. It closes by moving the version back and bringing back what was archived for it."""
    there = [str(v.version) for v in store.search_model_versions(_by_name(name), 1000) if v.current_stage == stage]
    before = store.get_model_version(name, version).current_stage

    def is_open() -> bool:
        return _stage_of(store, name, version) == stage

    def close() -> None:
        back = "None" if before == stage else before
        store.plain.transition_model_version_stage(name, version, back, False)
        for other in there:
            if other != version and not _problems(store, config, name, other):
                store.plain.transition_model_version_stage(name, other, stage, False)

    return Door(name, version, None, stage, is_open, close)


def finish_interrupted(store: Any, config: GateConfig, marked: list[Mark]) -> None:
    """Look again at the doors that were being opened when a server was killed.

    Another worker may be opening one at this moment. Its mark stays until the door is open and was looked at, so that this
    worker's look does not replace the other's second one.
    """
    for mark in marked:
        if not _stands_open(store, mark):
            if mark.is_old and mark.kind != "copy":
                unmark(store, mark.name, mark.version, mark.key)
            continue
        if _problems(store, config, mark.name, mark.version):
            _take_back(store, mark)
            _logger.warning("took back %s: a server was stopped while opening it", mark)
            if mark.kind == "copy":
                continue  # tags of a deleted version cannot be taken away
        unmark(store, mark.name, mark.version, mark.key)


@dataclass(frozen=True)
class Mark:
    """A mark as it is found on a version."""

    name: str
    version: str
    key: str
    value: str

    @property
    def kind(self) -> str:
        return self.key.removeprefix(MARK).partition(":")[0].partition(".")[0]

    @property
    def target(self) -> str:
        return self.key.removeprefix(MARK).partition(":")[0].partition(".")[2]

    @property
    def is_old(self) -> bool:
        """Whether nobody can be about to open the door any more: it is opened within milliseconds of the mark."""
        return not self.value.isdigit() or time.time() - int(self.value) > _OLD_SECONDS


def _stands_open(store: Any, mark: Mark) -> bool:
    if mark.kind == "alias":
        return _holder(store, mark.name, mark.target) == mark.version
    stage = _stage_of(store, mark.name, mark.version)
    return stage is not None if mark.kind == "copy" else stage == mark.target


def _stage_of(store: Any, name: str, version: str) -> str | None:
    """None when there is no such version any more."""
    try:
        return str(store.get_model_version(name, version).current_stage)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def take_back_copy(store: Any, name: str, version: str) -> None:
    """Delete a version of a protected name that turned out to be none it may hold; one that is gone is no matter."""
    if _stage_of(store, name, version) is not None:
        store.plain.delete_model_version(name, version)


def _take_back(store: Any, mark: Mark) -> None:
    if mark.kind == "copy":
        take_back_copy(store, mark.name, mark.version)
    elif mark.kind == "stage":
        store.plain.transition_model_version_stage(mark.name, mark.version, "Archived", False)
    else:
        store.plain.delete_registered_model_alias(mark.name, mark.target)


def close_unvouched(store: Any, config: GateConfig, name: str) -> list[str]:
    """Look at every protected place that versions of `name` hold, and take back what nothing vouches for; says what."""
    closed = []
    for alias, version in store.get_registered_model(name).aliases.items():
        if config.aliases.same(alias) and _problems(store, config, name, str(version)):
            store.plain.delete_registered_model_alias(name, alias)
            closed.append(f"the alias {alias} of version {version}")
    for found in store.search_model_versions(_by_name(name), 1000):
        if found.current_stage in config.file.protect.stages and _problems(store, config, name, str(found.version)):
            store.plain.transition_model_version_stage(name, str(found.version), "Archived", False)
            closed.append(f"the stage {found.current_stage} of version {found.version}")
    for what in closed:
        _logger.warning("took back %s of %s: nothing vouches for it as it is now", what, name)
    return closed


def _by_name(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"name={quote}{name}{quote}"


def _problems(store: Any, config: GateConfig, name: str, version: str) -> list[str]:
    """As `problems_with`, for what stands open already: a database that is busy for a moment takes nothing back."""
    for pause in (*_PAUSES, None):
        try:
            return problems_with(subject_of(store, name, version), config, name)
        except MlflowException as error:
            if pause is None or error.error_code in ABSENT:
                return [f"the version cannot be read: {error}"]
            time.sleep(pause)
    raise AssertionError("the last try returns")


def _demand(store: Any, config: GateConfig, door: Door) -> None:
    subject = subject_of(store, door.name, door.version)
    if reasons := problems_with(subject, config, door.name):
        first = subject.line[-1]
        copied = (first.name, first.version) != (door.name, door.version)
        option = f"--to {door.name} {door.option}" if copied else door.option
        raise denied(door.what, reasons, audit_and_promote(subject.uri, option))


def _holder(store: Any, name: str, alias: str) -> str | None:
    try:
        return str(store.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


def unmark(store: Any, name: str, version: str, mark: str) -> None:
    """Take a mark away. One that stays does no harm: it makes the next start look again."""
    try:
        store.plain.delete_model_version_tag(name, version, mark)
    except MlflowException as error:
        _logger.warning("the mark %s on version %s of %s stays: %s", mark, version, name, error)
