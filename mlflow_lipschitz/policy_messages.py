"""From what pydantic refuses, and from what only the whole file shows, to issues an author can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from mlflow_lipschitz.errors import PolicyIssue
from mlflow_lipschitz.policy_models import CHECK_MODELS
from mlflow_lipschitz.policy_yaml import Document, Path, format_path

_WORDING = {
    "too_short": "must not be empty",
    "too_long": "must be two numbers, [lower, upper]",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "string_type": "must be text (quote a number that is meant as text)",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}


def did_you_mean(word: str, known: Sequence[str], *, list_all: bool = False) -> str:
    """The tail of a message about an unknown `word`: the nearest known one, else (if asked) all, else nothing."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if list_all else ""


def validation_issues(error: ValidationError, document: Document, root: type[BaseModel]) -> list[PolicyIssue]:
    """One issue per thing pydantic refused, at the line of the offending key."""
    issues = []
    for item in error.errors(include_url=False):
        path = _path_in(document.data, item["loc"])
        if item["type"] == "too_short" and item["input"]:
            continue  # a list is too short only because its items were refused, which is reported already
        if item["type"] == "missing" and isinstance(item["loc"][-1], int):
            place, message = path, "must be two numbers, [lower, upper]"
        elif item["type"] == "missing":
            place, message = path[:-1], f"required key {path[-1]!r} is missing"
        elif item["type"] == "union_tag_not_found":
            place, message = path, "required key 'type' is missing"
        elif item["type"] == "union_tag_invalid":
            place = (*path, "type")
            given = str(item["ctx"]["tag"])
            message = f"unknown check type {given!r}" + did_you_mean(given, tuple(CHECK_MODELS), list_all=True)
        elif item["type"] == "extra_forbidden":
            place = path
            message = "unknown key" + did_you_mean(str(path[-1]), _keys_at(root, item["loc"]), list_all=True)
        else:
            place, message = path, _message(item)
        issues.append(PolicyIssue(document.line_of(place), _where(document.data, place), message))
    return issues


def _message(item: Mapping[str, Any]) -> str:
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    message = _WORDING.get(item["type"], str(item["msg"]))
    message = message.replace("Input should be", "must be").replace("String should", "must")
    value = item["input"]
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
        return f"{message}, not {value}"
    return f"{message}, not {value!r}" if isinstance(value, str | int | float) else message


def _path_in(data: Any, location: Sequence[str | int]) -> Path:
    """`location` without the parts pydantic adds for union branches, which are no keys of the file."""
    path: Path = ()
    for index, part in enumerate(location):
        last = index == len(location) - 1
        in_mapping = isinstance(data, dict) and part in data
        if in_mapping or (isinstance(data, tuple) and isinstance(part, int) and part < len(data)):
            path, data = (*path, part), data[part]
        elif isinstance(data, dict) and last and isinstance(part, str) and not _is_branch(part):
            path = (*path, part)
    return path


def _is_branch(part: str) -> bool:
    return part in CHECK_MODELS or part in ("number", "text", "per_feature", "[key]")


def _where(data: Any, path: Path) -> str:
    """The path, with the check's own id where it has one: people think in ids, not in positions."""
    text = format_path(path)
    if len(path) >= 2 and path[0] == "checks":
        check = data["checks"][path[1]]
        if isinstance(check, dict) and isinstance(check.get("id"), str):
            text = format_path((f"checks[{check['id']}]", *path[2:]))
    return text


def _keys_at(root: type[BaseModel], location: Sequence[str | int]) -> tuple[str, ...]:
    """The keys allowed in the section that holds the last part of `location`."""
    model = root
    for part in location[:-1]:
        if part in CHECK_MODELS:
            model = CHECK_MODELS[str(part)]
        elif isinstance(part, str) and part != "checks":
            section = model.model_fields[part].annotation
            assert isinstance(section, type) and issubclass(section, BaseModel)
            model = section
    return tuple(info.alias or name for name, info in model.model_fields.items())


def cross_issues(document: Document) -> Iterator[PolicyIssue]:
    """What only the whole file shows. Works on raw values, so that it is reported together with everything else."""
    yield from _check_issues(document)
    radius = _get(document.data, "perturbation", "radius")
    if isinstance(radius, dict):
        path: Path = ("perturbation", "scale")
        if _get(document.data, *path) == "standardized":
            message = "a radius per feature is in raw units: write one radius, or leave scale out"
            yield PolicyIssue(document.line_of(path), format_path(path), message)


def _check_issues(document: Document) -> Iterator[PolicyIssue]:
    checks = _get(document.data, "checks")
    sample = _get(document.data, "inputs", "points", "sample")
    baseline = _get(document.data, "model", "baseline")
    first_line: dict[str, int] = {}
    for index, check in enumerate(checks if isinstance(checks, tuple) else ()):
        if not isinstance(check, dict):
            continue
        check_id, kind, least = check.get("id"), check.get("type"), check.get("min")
        line = document.line_of(("checks", index, "id"))
        if isinstance(check_id, str):
            if check_id in first_line:
                message = f"duplicate id {check_id!r}, first used on line {first_line[check_id]}"
                yield PolicyIssue(line, f"checks[{index}].id", message)
            first_line.setdefault(check_id, line)
        if kind == "no_regression" and baseline is None:
            message = "no_regression needs model.baseline, for example models:/name@champion"
            yield PolicyIssue(document.line_of(("checks", index)), _where(document.data, ("checks", index)), message)
        if kind == "points_at_least" and type(sample) is int and type(least) is int and sample < least:
            path: Path = ("checks", index, "min")
            message = f"can never pass: inputs.points.sample draws only {sample} rows"
            yield PolicyIssue(document.line_of(path), _where(document.data, path), message)


def _get(data: Any, *path: str | int) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data
