"""Text from outside, made harmless to whoever shows it: terminals, logs, and CI systems that read commands from logs."""

from __future__ import annotations

import re
import unicodedata

# C: control, format (bidirectional overrides among them), surrogate, private, unassigned. Zl, Zp: line separators.
_INVISIBLE = ("Zl", "Zp")
# GitHub's runner takes `::name::` at the start of a line, and `##[name]` anywhere in it, for a command.
_COMMAND = re.compile(r"^(\s*)::|##\[", re.MULTILINE)


def one_line(text: object) -> str:
    """`text` on one line without any character that is not shown as itself: a newline becomes `\\n`, ESC `\\x1b`."""
    return _COMMAND.sub(_defused, "".join(_shown(character) for character in str(text)))


def safe_lines(text: object) -> str:
    """Like `one_line`, but line breaks stay; every line after the first is indented, so that none can pass for ours."""
    first, *others = str(text).split("\n")
    return "\n".join([one_line(first), *(f"  {one_line(line.strip(' '))}" for line in others)])


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category.startswith("C") or category in _INVISIBLE:
        return character.encode("unicode_escape").decode("ascii")
    return character


def _defused(match: re.Match[str]) -> str:
    return "##\\[" if match.group() == "##[" else f"{match.group(1)}\\::"
