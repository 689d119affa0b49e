"""Small checks that rebuild a JSON value from the parts they know.

A check takes a value and returns a copy made of nothing but what it allows, or raises Unexpected. Fields nobody asked
for are not copied, so they cannot reach the reader of the copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], Any]


class Unexpected(ValueError):
    """The value is not of the form the check allows; the message says where and what."""


def integer(value: Any) -> int:
    """A whole number that fits in 64 bits; JSON's true is none."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise _not(value, "a whole number")
    return value


def count(value: Any) -> int:
    """A whole number that is not negative."""
    if integer(value) < 0:
        raise _not(value, "a size")
    return value


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _not(value, "true or false")
    return value


def number(value: Any) -> int | float | str:
    """A number; torch writes infinities and NaN as words."""
    if type(value) in (int, float) or value in ("Infinity", "-Infinity", "NaN"):
        return value
    raise _not(value, "a number")


def anything_as(constant: Any) -> Check:
    """Whatever stands there, `constant` replaces it."""
    return lambda _: constant


def exactly(constant: Any) -> Check:
    """`constant` and nothing else."""

    def check(value: Any) -> Any:
        if type(value) is not type(constant) or value != constant:
            raise _not(value, repr(constant))
        return constant

    return check


def text(pattern: str | re.Pattern[str], forbidden: Callable[[str], bool] = lambda _: False) -> Check:
    """Text that matches `pattern` from end to end and is not `forbidden`."""
    compiled = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value) or forbidden(value):
            raise _not(value, "a text of the expected form")
        return value

    return check


def optional(check: Check) -> Check:
    """null, or what `check` allows."""
    return lambda value: None if value is None else check(value)


def list_of(check: Check) -> Check:
    """A list of what `check` allows."""

    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _not(value, "a list")
        return [check(element) for element in value]

    return checked


def mapping(key_check: Check, check: Check) -> Check:
    """An object with any number of keys of one kind."""
    return lambda value: {key_check(key): _at(key, check, element) for key, element in _object(value).items()}


def record(fields: dict[str, Check], *, extra: dict[str, Check] | None = None) -> Check:
    """An object with all `fields`, and those of `extra` that are there; other fields are left out of the copy."""

    def check(value: Any) -> dict[str, Any]:
        found = _object(value)
        missing = fields.keys() - found.keys()
        if missing:
            raise Unexpected(f"no field {min(missing)!r}")
        known = {**fields, **(extra or {})}
        return {key: _at(key, known[key], found[key]) for key in known if key in found}

    return check


def union(**checks: Check) -> Check:
    """An object with exactly one key, which says what the value is."""

    def check(value: Any) -> dict[str, Any]:
        found = _object(value)
        if len(found) != 1 or not found.keys() <= checks.keys():
            raise Unexpected(f"an entry of the kind {', '.join(sorted(map(str, found)))[:80]!r}")
        ((key, element),) = found.items()
        return {key: _at(key, checks[key], element)}

    return check


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _not(value, "an object")
    return value


def _at(key: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except Unexpected as error:
        raise Unexpected(f"{str(key)[:80]}: {error}") from None


def _not(value: Any, wanted: str) -> Unexpected:
    return Unexpected(f"{str(value)[:80]!r} is not {wanted}")
