"""JSON that can be read in one way only: what signatures cover and what decides must not mean two things to two readers."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """The one spelling of `value`: keys sorted by code point, no whitespace, UTF-8, shortest decimal of each number.

    Raises ValueError for infinities and NaN, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def strict_object(content: bytes, *, limit: int) -> dict[str, Any]:
    """The JSON object in `content`.

    Raises ValueError when it is longer than `limit` bytes, not UTF-8, not one object, nested too deeply to read, or has a
    key twice, a NaN or an infinity in it.
    """
    if len(content) > limit:
        raise ValueError(f"it has {len(content)} bytes, more than the {limit} that are read")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_distinct, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def canonical_object(content: bytes, *, limit: int) -> dict[str, Any]:
    """Like `strict_object`, for bytes that have to be the canonical spelling of what they say."""
    value = strict_object(content, limit=limit)
    try:
        canonical = canonical_json(value)
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair") from error
    if canonical != content:
        raise ValueError("its bytes are not the canonical JSON of what they say")
    return value


def only_keys(value: object, keys: set[str], what: str) -> Mapping[str, Any]:
    """`value` as an object with exactly these keys; ValueError otherwise."""
    if not isinstance(value, dict) or value.keys() != keys:
        raise ValueError(f"{what} must have exactly the keys {', '.join(sorted(keys))}")
    return value


def strict_base64(text: object, what: str) -> bytes:
    """Standard base64 with padding, in the only spelling of its bytes; ValueError otherwise."""
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        content = None
    if content is None or base64.b64encode(content).decode() != text:
        raise ValueError(f"{what} is not base64")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return value


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
