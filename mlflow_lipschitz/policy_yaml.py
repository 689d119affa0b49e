"""YAML text to plain values with a line number for every one of them; anything ambiguous is refused.

Scalars follow the YAML 1.2 core schema, not PyYAML's 1.1: `no`, `on` and `1:30` are text, `1e-3` is a number. A policy
is read by people who decide with it, so what could be read two ways (duplicate keys, aliases, merge keys, tags) is an
error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from mlflow_lipschitz.errors import PolicyIssue

Path = tuple[str | int, ...]

MAX_DEPTH = 16
MAX_CHARACTERS = 1_000_000

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Document:
    """Plain values of a YAML text: dict, tuple, str, int, float, bool or None; lines count from 1."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    issues: tuple[PolicyIssue, ...] = ()

    def line_of(self, path: Path) -> int:
        """Line of the value at `path`, or of its nearest ancestor that the text holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(text: str) -> Document:
    """Read one YAML document. Bad text does not raise: `issues` says all that is wrong, `data` what could be read."""
    if len(text) > MAX_CHARACTERS:
        return Document(None, issues=(PolicyIssue(0, "", f"longer than {MAX_CHARACTERS} characters"),))
    try:
        issues = tuple(_event_issues(text))
        if issues:
            return Document(None, issues=issues)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return Document(None, issues=(PolicyIssue(mark.line + 1 if mark else 0, "", f"not YAML: {error.problem}"),))
    except yaml.YAMLError as error:
        return Document(None, issues=(PolicyIssue(0, "", f"not YAML: {str(error).splitlines()[0]}"),))
    if node is None:
        return Document(None, issues=(PolicyIssue(1, "", "the policy is empty"),))
    reader = _Reader()
    data = reader.read(node, ())
    return Document(data, reader.lines, tuple(reader.issues))


def _event_issues(text: str) -> Iterator[PolicyIssue]:
    """What has to be refused before nodes are built: afterwards aliases are expanded and tags are applied."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.AliasEvent):
            yield PolicyIssue(line, "", f"alias *{event.anchor} is not allowed: write the value out")
        tag = getattr(event, "tag", None)
        if tag:
            yield PolicyIssue(line, "", f"tag {tag} is not allowed: write plain values")
        if depth > MAX_DEPTH:
            yield PolicyIssue(line, "", f"nested deeper than {MAX_DEPTH} levels")
            return


def _line(item: yaml.Node | yaml.Event) -> int:
    return item.start_mark.line + 1 if item.start_mark else 0


class _Reader:
    """One walk over the nodes, collecting lines and issues on the way."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.issues: list[PolicyIssue] = []

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.read(child, (*path, index)) for index, child in enumerate(node.value))
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._issue(line, path, "a key must be plain text")
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._issue(line, path, "merge keys (<<) are not allowed: write the values out")
            elif key in values:
                self._issue(line, (*path, key), f"duplicate key, first given on line {self.lines[(*path, key)]}")
            else:
                self.lines[(*path, key)] = line
                values[key] = self.read(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = node.value
        if node.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) > 18:
                self._issue(_line(node), path, "number out of range")
                return 0
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _issue(self, line: int, path: Path, message: str) -> None:
        self.issues.append(PolicyIssue(line, format_path(path), message))


def format_path(path: Path) -> str:
    """`("checks", 0, "max")` as `checks[0].max`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def yaml_scalar(text: str) -> str:
    """Text as it is written in a policy: bare where that is safe, as a JSON string (valid YAML) otherwise."""
    words = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    bare = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", text) and text.lower() not in words
    return text if bare else json.dumps(text)
