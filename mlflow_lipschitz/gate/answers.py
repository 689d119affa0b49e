"""What great_expectations answered, read without trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Random identifiers, and tracebacks with the paths of the machine they were made on.
_DROPPED = ("id", "batch_id", "active_batch_id", "exception_traceback")


@dataclass(frozen=True)
class Answer:
    """What great_expectations said about one check. `error` is empty unless its evaluation raised.

    `unexpected` is the number of rows that fail, None for checks that are not made row by row.
    """

    check_id: str
    success: bool
    error: str = ""
    unexpected: int | None = None


def answer_of(item: Any) -> Answer:
    """The answer in one ExpectationValidationResult."""
    meta = item.expectation_config.meta or {}
    raised = raised_message(item.exception_info or {})
    unexpected = item.result.get("unexpected_count") if item.result else None
    return Answer(str(meta.get("check_id", "")), item.success is True and not raised, raised, unexpected)


def raised_message(info: Mapping[str, Any]) -> str:
    """The message of what an evaluation raised, or nothing. The info is flat, or one such mapping per metric."""
    parts = [info] if "raised_exception" in info else [part for part in info.values() if isinstance(part, Mapping)]
    return "; ".join(str(part.get("exception_message")) for part in parts if part.get("raised_exception"))


def without_ids(value: Any) -> Any:
    """A JSON value without what differs from run to run, so that the same audit writes the same files."""
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items() if key not in _DROPPED}
    return [without_ids(item) for item in value] if isinstance(value, list) else value
