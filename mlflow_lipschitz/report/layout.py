"""What a page is made of: sections of text, figures and tables, as plain values for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_lipschitz.report.drawing import Plot


@dataclass(frozen=True)
class Table:
    """A table with a header; cells are text or numbers. `closed`: what the fold is called that it is behind, if it is."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    closed: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot with what it says, and the same as a table."""

    plot: Plot
    caption: str
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A heading with text, notes in a list, figures, pictures side by side, tables and parts; `absent` says why there are none."""

    title: str
    lead: str = ""
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    parts: Sequence[Section] = ()
    absent: str = ""
