"""Which aliases, stages and model names are protected, whatever way they are spelled.

Some databases compare names without case and without accents, and people read `сhampion` (with a Cyrillic letter) as
`champion`. So each protected name becomes a pattern that also matches what looks like it. Visual classes follow the idea of
Unicode TR 39; the sets here are our own, small, and err towards refusing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

# For each ASCII letter, letters of other scripts that look like it in lower or upper case (written after case folding).
_TWINS = {
    "a": "αаɑ\u13aaд", "b": "βвьбъы\u13cf\u13f4", "c": "ϲсςцç\u13df", "d": "ԁδձ\u13a0\u13e7",
    "e": "εеҽєэɛ\u13ac", "f": "ғϝք", "g": "ցɡ\u13c0\u13fb", "h": "һнηհ\u13bb\u13c2",
    "i": "ιіїӏıլւ\u13a5\u13de", "j": "јյϳ\u13ab", "k": "κкҝ\u13e6", "l": "ιіӏılլւ\u13de", "m": "μмϻ\u13b7",
    "n": "ηνпинлողռրң\u13c1", "o": "οоσօθծ\u13be", "p": "ρрքթ\u13e2", "q": "ԛգզվ", "r": "гґяɾ\u13a1\u13d2",
    "s": "ѕςտ\u13da\u13d5", "t": "τтէ\u13a2", "u": "υμսմицս", "v": "νυѵ\u13d9", "w": "ωԝшщѡա\u13b3\u13d4",
    "x": "χхӽճ", "y": "γυуүұ\u13a9\u13bd", "z": "ζʐ\u13c3", "0": "οо", "1": "ιіӏ", "3": "зэ", "6": "б",
}  # fmt: skip
_ASCII_TWINS = {"i": "l1", "l": "i1", "1": "il", "o": "0", "0": "o"}
_DIGRAPHS = {"m": "rn", "w": "vv", "d": "cl"}
_KNOWN = frozenset("".join(_TWINS.values()))
# Stands for a letter of a script we have no table for: it may look like anything.
_ANY = "\uffff"
_SINGLE_LETTER = re.compile(r"LATIN (?:\w+ )*?LETTER (?:\w+ )*?([A-Z])(?: |$)")
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")


def skeleton(text: str) -> str:
    """`text` without case, accents, invisible characters and font variants; unknown scripts become a wildcard."""
    found = []
    for char in unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold()):
        category = unicodedata.category(char)
        if category in ("Mn", "Me", "Cf", "Cc") or char in _FILLERS:
            continue
        found.append(char if char.isascii() or char in _KNOWN else _folded(char))
    return "".join(found)


def _folded(char: str) -> str:
    name = unicodedata.name(char, "")
    if letter := _SINGLE_LETTER.match(name):
        return letter.group(1).lower()
    script = name.partition(" ")[0]
    # Letters of scripts with a table that are not in it look like no ASCII letter.
    return char if script in ("GREEK", "CYRILLIC", "ARMENIAN") else _ANY


def _class_of(char: str) -> str:
    folded = skeleton(char) or char
    options = []
    for one in folded:
        members = re.escape(one + _ASCII_TWINS.get(one, "") + _TWINS.get(one, "") + _ANY)
        pair = _DIGRAPHS.get(one)
        options.append(f"(?:[{members}]|{pair})" if pair else f"[{members}]")
    return "".join(options)


@dataclass(frozen=True)
class Aliases:
    """The protected aliases."""

    names: tuple[str, ...]

    @cached_property
    def _patterns(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        return tuple((name, re.compile("".join(_class_of(char) for char in name))) for name in self.names)

    def same(self, alias: str) -> bool:
        """Whether `alias` is a protected one, in any case."""
        return alias.casefold() in {name.casefold() for name in self.names}

    def looks_like(self, alias: str) -> str | None:
        """The protected alias that `alias` looks like without being it; None when there is none."""
        if self.same(alias):
            return None
        reduced = skeleton(alias)
        if reduced.count(_ANY) * 2 > len(reduced):
            return None
        return next((name for name, pattern in self._patterns if pattern.fullmatch(reduced)), None)


@dataclass(frozen=True)
class NamePatterns:
    """Names of registered models, with `*` for any text and `?` for one character."""

    patterns: tuple[str, ...]

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(_glob(pattern) for pattern in self.patterns)

    def match(self, name: str) -> bool:
        """Whether `name`, or what it looks like, fits a pattern."""
        # A wildcard letter would make every name of a foreign script fit "?????"-like literals: drop it here.
        # Some databases compare without regard to spaces at the end.
        reduced = skeleton(name).replace(_ANY, " ").strip()
        return any(pattern.fullmatch(reduced) for pattern in self._compiled)


def _glob(pattern: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(char) or _class_of(char) for char in pattern), re.DOTALL)


def canonical_stage(stage: str, protected: Sequence[str]) -> str | None:
    """The protected stage that MLflow would store for `stage`; None when it is not protected or no stage at all."""
    wanted = stage.casefold()
    return next((known for known in protected if known.casefold() == wanted), None)
