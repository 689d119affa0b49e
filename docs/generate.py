"""Writes docs/reference/: the policy file from its pydantic models, operators from the lowering tables, commands from click.

    python docs/generate.py && zensical build --strict

The pages are made anew for every build and are not kept in git, so they cannot be out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A Markdown table; cells are on one line, and a bar in them does not end them."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |\n" for row in lines
    )


# The policy file.


def kind_of(schema: dict[str, Any], sections: dict[str, Any]) -> str:
    """What may be written, in words, from JSON Schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        kind = sections.get(name, {}).get("properties", {}).get("type", {}).get("const")
        return f"[{kind or name}](#{kind or name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(kind_of(part, sections) for part in schema[key]))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "[lower, upper]"
        return f"list of {kind_of(schema.get('items', {}), sections)}"
    if schema.get("type") == "object":
        return f"name: {kind_of(schema.get('additionalProperties') or {}, sections)}"
    words = {
        "string": "text",
        "number": "number",
        "integer": "whole number",
        "null": "null",
        "boolean": "true or false",
    }
    return words.get(schema.get("type", ""), "value") + limits_of(schema)


def limits_of(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " " + ", ".join(said) if said else ""


def fields(schema: dict[str, Any], sections: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))

    def rows() -> Iterator[tuple[str, ...]]:
        for name, value in schema["properties"].items():
            given = value.get("default")
            shown = "see there" if isinstance(given, dict) and given else f"`{json.dumps(given)}`"
            default = "required" if name in required else shown if "default" in value else "–"
            yield f"`{name}`", kind_of(value, sections), default, value.get("description", "")

    return table(("key", "value", "default", "meaning"), rows())


def policy_page() -> str:
    from mlflow_lipschitz.gate.explain import CHECK_TYPES, explain
    from mlflow_lipschitz.policy import policy_schema
    from mlflow_lipschitz.policy_models import CHECK_MODELS

    schema = policy_schema()
    checks = {model.__name__: kind for kind, model in CHECK_MODELS.items()}
    sections = {name: part for name, part in schema["$defs"].items() if "properties" in part}
    text = (
        "# Policy file\n\n"
        "YAML; unknown keys, duplicate keys, aliases and numbers that are not finite are refused, all at once, with"
        " line numbers: `mlflow-lipschitz policy check FILE`. `mlflow-lipschitz policy schema` prints the JSON Schema this page is"
        " made from, for editors. `points_at_least` (1) and `certified_fraction_at_least` (1.0) are added as critical where no"
        " critical check of these types is given.\n\n## The file\n\n" + fields(schema, sections)
    )
    # In the order in which the file names them; what only another section names comes last.
    named = [str(value.get("$ref", "")).rpartition("/")[2] for value in schema["properties"].values()]
    for name, part in sorted(
        sections.items(), key=lambda item: named.index(item[0]) if item[0] in named else len(named)
    ):
        if name not in checks:
            text += f"\n## {name}\n\n{part.get('description', '')}\n\n{fields(part, sections)}"
    text += "\n## Checks\n\n" + table(
        ("type", "passes when"), [(f"[`{k}`](#{k})", CHECK_MODELS[k].__doc__ or "") for k in CHECK_TYPES]
    )
    for name, kind in sorted(checks.items(), key=lambda item: CHECK_TYPES.index(item[1])):
        body = explain(kind).split("\n\n", 1)[1]
        titled = "\n\n".join(f"**{part.partition(': ')[0]}.** {part.partition(': ')[2]}" for part in body.split("\n\n"))
        text += f"\n### {kind} {{ #{kind} }}\n\n{titled}\n\n{fields(sections[name], sections)}"
    return text


# The operators.


def operators_page() -> str:
    from mlflow_lipschitz.engine.rules.curves.table import CURVES
    from mlflow_lipschitz.engine.rules.registry import RULES
    from tests.operators import operator_table

    rules = [
        (f"`{op.__name__}`", f"`{type(rule).__name__}`")
        for op, rule in sorted(RULES.items(), key=lambda i: i[0].__name__)
    ]
    return (
        "# Supported operators\n\n"
        "Every model becomes ONNX, and ONNX becomes a graph of the core operators below. An operator that is"
        " not here is refused with the node's name, where it comes from in your model, and what to do about it;"
        " `mlflow-lipschitz support MODEL_URI` lists the nodes of one model. *Exact*: the bound loses nothing there. *Relaxed*: the"
        " operator is enclosed between planes, and what that loses shows in the gap.\n\n" + operator_table() + "\n\n"
        "## Core operators and their rules\n\n" + table(("operator", "rule"), rules) + "\n"
        f"## Curves\n\n{len(CURVES)} elementwise curves, each with its derivative curve: "
        + ", ".join(f"`{name}`" for name in sorted(CURVES))
        + ".\n"
    )


# The command line.


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from commands(child, f"{path} {name}")


def cli_page() -> str:
    from mlflow_lipschitz.cli.__main__ import cli

    text = (
        "# Commands\n\nExit codes: 0 passed; 1 blocked by the policy, promotion refused, or property violated; 2 usage, policy or"
        " data error; 3 the audit itself failed, or nothing was decided. Never 0 on an error.\n"
    )
    for path, command in commands(cli, "mlflow-lipschitz"):
        context = click.Context(command, info_name=path)
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        options = [(f"`{record[0]}`", record[1]) for record in records if record]
        usage = command.get_usage(context).partition(": ")[2]
        text += f"\n## {path}\n\n{command.help or ''}\n\n```text\n{' '.join(usage.split())}\n```\n\n"
        text += table(("option", "meaning"), options) if options else ""
    return text


PAGES = {"policy.md": policy_page, "operators.md": operators_page, "commands.md": cli_page}


def write(folder: Path) -> None:
    """Write every page into `folder`/reference."""
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / "reference" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write(Path(__file__).parent)
