"""A runner of composite actions for tests: what GitHub's runner does with `run:` steps, without a container and without GitHub.

Inputs, `${{ … }}`, `if:`, environments, outputs, summaries and exit codes are as GitHub documents them. Steps that use another
action are named as not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_TOKEN = re.compile(r"\s*('(?:[^']|'')*'|&&|\|\||==|!=|!|\(|\)|[A-Za-z_][\w.-]*)")
_STATUS = ("always", "success", "failure", "cancelled")


@dataclass
class Finished:
    """What a job sees of an action."""

    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return not any(self.codes.values())

    @property
    def annotations(self) -> list[str]:
        return [line for line in self.log.splitlines() if re.match(r"::(error|warning|notice)[ :]", line)]


def run_action(
    folder: Path, inputs: Mapping[str, str], workspace: Path, environment: Mapping[str, str], token: str = "secret"
) -> Finished:
    """Run the action in `folder` as a step of a job in `workspace`."""
    action = yaml.safe_load((folder / "action.yml").read_text(encoding="utf-8"))
    context: dict[str, Any] = {"github": {"token": token}, "steps": {}}
    unknown = set(inputs) - set(action["inputs"])
    missing = [n for n, i in action["inputs"].items() if i.get("required") and not inputs.get(n)]
    assert not unknown and not missing, (unknown, missing)
    context["inputs"] = {
        name: inputs.get(name, filled(str(given.get("default", "")), context, failed=False))
        for name, given in action["inputs"].items()
    }
    done = Finished()
    for number, step in enumerate(action["runs"]["steps"]):
        name = step.get("name", str(number))
        if not wanted(step.get("if", "success()"), context, failed=not done.succeeded):
            done.skipped.append(name)
        elif "uses" in step:
            done.not_run.append(step["uses"].split("@")[0])
        else:
            _run_step(name, step, (context, done), workspace, {**environment, "GITHUB_ACTION_PATH": str(folder)})
    for name, output in action["outputs"].items():
        done.outputs[name] = filled(output["value"], context, failed=False)
    return done


def _run_step(
    name: str, step: Mapping[str, Any], state: tuple[dict[str, Any], Finished], workspace: Path, base: Mapping[str, str]
) -> None:
    context, done = state
    scratch = workspace.parent / f"runner-{len(done.codes)}-{workspace.name}"
    scratch.mkdir(exist_ok=True)
    files = {v: scratch / v.lower() for v in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV")}
    for path in files.values():
        path.write_text("")
    own = {n: filled(str(v), context, failed=not done.succeeded) for n, v in step.get("env", {}).items()}
    place = {"GITHUB_WORKSPACE": str(workspace), "RUNNER_TEMP": str(scratch), "GITHUB_ACTIONS": "true", "CI": "true"}
    script = scratch / "script.sh"
    script.write_text(filled(step["run"], context, failed=False))
    assert step["shell"] == "bash"
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=workspace,
        env={**clean(os.environ), **place, **{n: str(p) for n, p in files.items()}, **base, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    done.codes[name] = ended.returncode
    done.log += ended.stdout
    done.summary += files["GITHUB_STEP_SUMMARY"].read_text()
    if "id" in step:
        context["steps"][step["id"]] = {"outputs": outputs_in(files["GITHUB_OUTPUT"].read_text())}


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a surrounding CI sets, and with this Python as `python`."""
    kept = {n: v for n, v in environment.items() if not n.startswith(("GITHUB_", "INPUT_", "RUNNER_", "LIPSCHITZ_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


def outputs_in(text: str) -> dict[str, str]:
    """`name=value` lines and `name<<end` blocks; the last one of a name counts."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if re.match(r"[^=]+<<", line):
            name, end = line.split("<<", 1)
            block: list[str] = []
            for inner in lines:
                if inner == end:
                    break
                block.append(inner)
            found[name] = "\n".join(block)
        elif "=" in line:
            name, value = line.split("=", 1)
            found[name] = value
    return found


def filled(text: str, context: Mapping[str, Any], *, failed: bool) -> str:
    """`text` with its expressions evaluated."""
    return _EXPRESSION.sub(lambda match: as_text(value_of(match[1], context, failed=failed)), text)


def wanted(condition: str, context: Mapping[str, Any], *, failed: bool) -> bool:
    """Whether a step with this `if:` runs; one that asks for no status wants success."""
    inner = _EXPRESSION.fullmatch(condition.strip())
    text = inner[1] if inner else condition
    asked = any(f"{name}(" in text for name in _STATUS)
    return (asked or not failed) and bool(value_of(text, context, failed=failed))


def as_text(value: Any) -> str:
    return {True: "true", False: "false", None: ""}.get(value, str(value)) if not isinstance(value, str) else value


def value_of(text: str, context: Mapping[str, Any], *, failed: bool) -> Any:
    """Value of an expression of comparisons, `&&`, `||`, `!`, names, texts and status functions."""
    reader = _Reader(_TOKEN.findall(text), context, failed)
    value = reader.either()
    assert not reader.tokens, f"not understood: {text}"
    return value


@dataclass
class _Reader:
    """What is left of an expression, read from the left."""

    tokens: list[str]
    context: Mapping[str, Any]
    failed: bool

    def either(self) -> Any:
        left = self._both()
        while self.tokens[:1] == ["||"]:
            self.tokens.pop(0)
            right = self._both()
            left = left or right
        return left

    def _both(self) -> Any:
        left = self._compared()
        while self.tokens[:1] == ["&&"]:
            self.tokens.pop(0)
            right = self._compared()
            left = left and right
        return left

    def _compared(self) -> Any:
        left = self._primary()
        while self.tokens and self.tokens[0] in ("==", "!="):
            equal = self.tokens.pop(0) == "=="
            left = (as_text(left) == as_text(self._primary())) == equal
        return left

    def _primary(self) -> Any:
        token = self.tokens.pop(0)
        if token == "!":
            return not self._primary()
        if token == "(":
            inner = self.either()
            assert self.tokens.pop(0) == ")"
            return inner
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if self.tokens[:2] == ["(", ")"]:
            del self.tokens[:2]
            return {"always": True, "success": not self.failed, "failure": self.failed, "cancelled": False}[token]
        value: Any = self.context
        for part in token.split("."):
            value = value.get(part, "") if isinstance(value, Mapping) else ""
        return value
