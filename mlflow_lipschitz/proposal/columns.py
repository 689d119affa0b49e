"""What the columns of a table are, as far as data and signature tell: which of them can move, and how far."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from mlflow_lipschitz.audited_rows import AuditedRows
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.policy_yaml import yaml_scalar

Kind = Literal["constant", "code", "whole", "real"]

_ENOUGH_ROWS = 10
"""From this many rows on, two values in all are a yes and a no; in fewer rows they may be chance."""

_FEW_VALUES = 10
"""Whole numbers that the signature declares as such and that take no more values than this are taken for codes."""

_CODE_TYPES = ("boolean", "string", "binary")
_WHOLE_TYPES = ("integer", "long")


@dataclass(frozen=True)
class Column:
    """One column of numbers. `why` says, for people, what in the data makes it of this kind."""

    name: str
    kind: Kind
    low: float
    high: float
    why: str

    @property
    def moves(self) -> bool:
        return self.kind in ("whole", "real")

    @property
    def domain(self) -> str:
        """The range of the data widened by a tenth, as YAML; whole for whole numbers, and not below 0 where no value is."""
        margin = (self.high - self.low) / 10
        low, high = self.low - margin, self.high + margin
        low = max(low, 0.0) if self.low >= 0 else low
        high = min(high, 0.0) if self.high <= 0 else high
        if self.kind == "whole":
            return f"[{math.floor(low)}, {math.ceil(high)}]"
        return f"[{outward(low)}, {outward(high, up=True)}]"


def columns_of(rows: AuditedRows, signature: Any, movable: Collection[str]) -> tuple[Column, ...]:
    """The columns of `rows` that are in `movable`; none where a row is no list of columns but an image or the like."""
    if rows.points.ndim != 2:
        return ()
    types = _types(signature)
    return tuple(
        _column(name, rows.points[:, i], types.get(name, ""), varies=bool(rows.scale[i] > 0))
        for i, name in enumerate(rows.feature_names)
        if name in movable
    )


def _column(name: str, values: np.ndarray, declared: str, *, varies: bool) -> Column:
    low, high, distinct = float(values.min()), float(values.max()), np.unique(values)
    whole = bool(np.all(values == np.round(values)))
    shown = f"{low:g} to {high:g}"
    if declared in _CODE_TYPES:
        return Column(name, "code", low, high, f"{declared} by the signature")
    if not varies:
        return Column(name, "constant", low, high, f"always {low:g}" if low == high else "constant up to rounding")
    if len(distinct) == 2 and len(values) >= _ENOUGH_ROWS:
        return Column(name, "code", low, high, f"two values: {low:g} and {high:g}")
    if declared in _WHOLE_TYPES and len(distinct) <= _FEW_VALUES:
        return Column(name, "code", low, high, f"{declared} by the signature, {len(distinct)} values")
    if whole and len(distinct) > 2:
        return Column(name, "whole", low, high, f"{shown}, whole numbers")
    return Column(name, "real", low, high, shown)


def _types(signature: Any) -> dict[str, str]:
    inputs = getattr(signature, "inputs", None)
    if inputs is None or inputs.is_tensor_spec() or not inputs.has_input_names():
        return {}
    return {str(column.name): str(getattr(column.type, "name", column.type)) for column in inputs.inputs}


def outward(value: float, *, up: bool = False) -> str:
    """At most three significant digits, rounded away from the data."""
    if value == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    rounded = (math.ceil if up else math.floor)(value / unit) * unit
    return f"{float(f'{rounded:.6g}'):g}"


def immutable_lines(columns: Sequence[Column], looked_up: Sequence[str], every: Sequence[str]) -> str:
    """The `immutable` entry, one name or pattern a line, each with its reason; empty where all columns move.

    Args:
        looked_up: names that the model looks up: categories, codes, tokens.
        every: all names of the model, so that a pattern is used only where it stands for immutable columns alone.
    """
    reasons = {column.name: column.why for column in columns if not column.moves}
    reasons |= dict.fromkeys(looked_up, "looked up by the model: categories do not move")
    lines = []
    for pattern, names in _patterns(tuple(reasons), {*every, *reasons}).items():
        why = reasons[names[0]] if len(names) == 1 else f"{len(names)} columns, such as {names[0]}: {reasons[names[0]]}"
        lines.append(f"    - {yaml_scalar(pattern)}  # {one_line(why)}\n")
    return "  immutable:\n" + "".join(lines) if lines else ""


def _patterns(names: tuple[str, ...], every: Collection[str]) -> dict[str, list[str]]:
    """`country_*` for columns of one prefix, where the pattern matches immutable columns only; else the names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix = name.rpartition("_")[0]
        pattern = f"{prefix}_*" if prefix and not set("[]*?") & set(prefix) else name
        groups.setdefault(pattern, []).append(name)
    found: dict[str, list[str]] = {}
    for pattern, members in groups.items():
        stands_for = {name for name in every if fnmatchcase(name, pattern)}
        if len(members) > 1 and stands_for == set(members):
            found[pattern] = members
        else:
            found |= {name: [name] for name in members}
    return found


def domain_lines(columns: Sequence[Column], source: str) -> str:
    """The `domain` entry, one feature a line; empty where nothing moves."""
    moving = [column for column in columns if column.moves]
    lines = [f"    {yaml_scalar(c.name)}: {c.domain}  # {c.why}\n" for c in moving]
    return (
        f"  domain:  # ranges in {source}, a tenth wider; a row outside is refused\n" + "".join(lines) if lines else ""
    )
