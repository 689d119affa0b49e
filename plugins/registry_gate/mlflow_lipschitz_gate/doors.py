"""Passing a protected door: verify, open, verify again, and close when the files changed meanwhile.

A mark on the version says that a door is being opened. It is set before and taken away after, so a server that is killed in
between finds the mark when it starts again and finishes the second look.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException

from mlflow_lipschitz_gate.config import GateConfig
from mlflow_lipschitz_gate.overrides import override_reason, record_override
from mlflow_lipschitz_gate.refusals import audit_and_promote, denied
from mlflow_lipschitz_gate.verification import problems_with, subject_of

MARK = "lipschitz.gate.opening-"
COPY_MARK = MARK + "copy"
_logger = logging.getLogger("mlflow_lipschitz_gate")
T = TypeVar("T")


@dataclass(frozen=True)
class Door:
    """One way for a version into a protected place.

    Attributes:
        name, version: the version that wants to pass.
        alias, stage: what it wants; exactly one is given.
        close: puts things back as they were.
    """

    name: str
    version: str
    alias: str | None
    stage: str | None
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
    store.plain.set_model_version_tag(door.name, door.version, ModelVersionTag(door.mark, "1"))
    try:
        result = open_()
        try:
            _demand(store, config, door)
        except MlflowException:
            door.close()
            raise
        return result
    finally:
        unmark(store, door.name, door.version, door.mark)


def alias_door(store: Any, config: GateConfig, name: str, alias: str, version: str) -> Door:
    """The door of an alias. It closes by giving the alias back to its last holder when that one still holds up."""
    before = _holder(store, name, alias)

    def close() -> None:
        if _holder(store, name, alias) != version:
            return  # somebody else's promotion came after; it is looked at on its own
        if before not in (None, version) and not _problems(store, config, name, str(before)):
            store.plain.set_registered_model_alias(name, alias, before)
        else:
            store.plain.delete_registered_model_alias(name, alias)

    return Door(name, version, alias, None, close)


def stage_door(store: Any, config: GateConfig, name: str, stage: str, version: str) -> Door:
    """The door of a stage. It closes by moving the version back and bringing back what was archived for it."""
    there = [str(v.version) for v in store.search_model_versions(_by_name(name), 1000) if v.current_stage == stage]
    before = store.get_model_version(name, version).current_stage

    def close() -> None:
        back = "None" if before == stage else before
        store.plain.transition_model_version_stage(name, version, back, False)
        for other in there:
            if other != version and not _problems(store, config, name, other):
                store.plain.transition_model_version_stage(name, other, stage, False)

    return Door(name, version, None, stage, close)


def finish_interrupted(store: Any, config: GateConfig, marked: list[tuple[str, str, str]]) -> None:
    """Look again at the doors that were being opened when a server was killed.

    Args:
        marked: name, version and key of each mark.
    """
    for name, version, key in marked:
        if _problems(store, config, name, version):
            _take_back(store, name, version, key)
            _logger.warning(
                "took back %s of version %s of %s: a server was stopped while opening it", key, version, name
            )
        if key != COPY_MARK or not _gone(store, name, version):
            unmark(store, name, version, key)


def _take_back(store: Any, name: str, version: str, key: str) -> None:
    kind, _, target = key.removeprefix(MARK).partition(":")[0].partition(".")
    if kind == "copy":
        store.plain.delete_model_version(name, version)
    elif kind == "stage" and store.get_model_version(name, version).current_stage == target:
        store.plain.transition_model_version_stage(name, version, "Archived", False)
    elif kind == "alias" and _holder(store, name, target) == version:
        store.plain.delete_registered_model_alias(name, target)


def _gone(store: Any, name: str, version: str) -> bool:
    try:
        store.get_model_version(name, version)
    except MlflowException:
        return True
    return False


def _by_name(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"name={quote}{name}{quote}"


def _problems(store: Any, config: GateConfig, name: str, version: str) -> list[str]:
    try:
        return problems_with(subject_of(store, name, version), config, name)
    except MlflowException as error:
        return [f"the version cannot be read: {error}"]


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
    except MlflowException:
        return None


def unmark(store: Any, name: str, version: str, mark: str) -> None:
    """Take a mark away. One that stays does no harm: it makes the next start look again."""
    try:
        store.plain.delete_model_version_tag(name, version, mark)
    except MlflowException as error:
        _logger.warning("the mark %s on version %s of %s stays: %s", mark, version, name, error)
