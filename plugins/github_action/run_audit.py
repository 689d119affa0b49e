"""Run the audit as a step of a job: outputs, summary and exit code. Python's own library, and the installed command.

Fails closed: the verdict is `error` until an audit says otherwise, and it counts only if the exit code says the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

PASSED, BLOCKED, USAGE, FAILED = 0, 1, 2, 3
VERDICTS = {PASSED: "passed", BLOCKED: "blocked", FAILED: "error"}
TAIL = 4000
# `-m` would look for modules in the workspace first, and so run what a pull request puts there under the name of a library.
START = "import sys; sys.path[:] = [p for p in sys.path if p]; from mlflow_lipschitz.cli.__main__ import main; main()"


def main() -> int:
    """The exit code of the audit; 0 for a blocked model where the step is to fail on errors only."""
    given = {name: os.environ.get(f"INPUT_{name}", "") for name in ("FAIL_ON", "POLICY", "OUT", "MODEL_URI")}
    if given["FAIL_ON"] not in ("blocked", "error"):
        sys.stdout.write("::error title=fail-on::the input fail-on must be 'blocked' or 'error'\n")
        return finish(USAGE, {}, given)
    with tempfile.TemporaryDirectory() as scratch:
        said, shown = Path(scratch) / "outputs", Path(scratch) / "summary"
        for path in (said, shown):
            path.touch()
        environment = {**os.environ, "GITHUB_OUTPUT": str(said), "GITHUB_STEP_SUMMARY": str(shown)}
        code, tail = run(command(os.environ), environment)
        values, summary = parsed(said.read_text(encoding="utf-8")), shown.read_text(encoding="utf-8")
    if not summary:  # it ended before it could say anything to GitHub
        summary = f"## ERROR\n\nThe audit could not be completed, so nothing is passed.\n\n{code_block(tail)}\n"
        sys.stdout.write(f"::error title=audit failed::{escaped(tail)}\n")
    append("GITHUB_STEP_SUMMARY", summary)
    if VERDICTS.get(code, "error") != values.get("verdict", "error"):
        sys.stdout.write("::error title=audit failed::the exit code and the verdict of the audit do not agree\n")
        values, code = {}, FAILED
    return finish(code, {**values, "summary-text": summary}, given)


def command(environment: Mapping[str, str]) -> list[str]:
    """The audit's command line. Options and values are one argument each, so that no value can be taken for an option."""
    options = {
        "--policy": "POLICY",
        "--data": "DATA",
        "--tracking-uri": "TRACKING_URI",
        "--device": "DEVICE",
        "--chunk-size": "CHUNK_SIZE",
        "--out": "OUT",
    }
    arguments = [sys.executable, "-c", START, "audit", "--format=github"]
    for option, name in options.items():
        value = environment.get(f"INPUT_{name}", "")
        arguments += [f"{option}={value}"] if value else []
    arguments += ["--resume"] if environment.get("INPUT_RESUME") == "true" else []
    return [*arguments, "--", environment.get("INPUT_MODEL_URI", "")]


def run(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code, and the end of what was said on stderr, which is shown as well."""
    child = subprocess.Popen(arguments, env=dict(environment), stderr=subprocess.PIPE, text=True, errors="replace")
    assert child.stderr is not None
    # A cancelled job: the audit keeps its finished rows and ends its run, and this step goes on to say so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: child.terminate())
    tail = ""
    for line in child.stderr:
        sys.stderr.write(line)
        tail = (tail + line)[-TAIL:]
    return child.wait(), tail


def finish(code: int, values: Mapping[str, str], given: Mapping[str, str]) -> int:
    """Write the step's outputs; the exit code of the step."""
    out = Path(given["OUT"] or ".")
    verdict = VERDICTS.get(code, "error") if values.get("verdict") else "error"
    outputs = {
        "verdict": verdict,
        "exit-code": str(code),
        "run-id": values.get("run-id", ""),
        "attestation": values.get("attestation", ""),
        "directory": str(out) if given["OUT"] and out.is_dir() and any(out.iterdir()) else "",
        # Without a verdict, what lies there may be of another audit.
        "report": existing(out / "report.html") if values.get("verdict") else "",
        "sarif": placed_sarif(out, given["POLICY"]) if values.get("verdict") else "",
        "summary": kept_summary(values.get("summary-text", "")),
    }
    append("GITHUB_OUTPUT", "".join(output(name, value) for name, value in outputs.items()))
    if code == BLOCKED and given["FAIL_ON"] == "error":
        return PASSED
    return code if code in (PASSED, BLOCKED, USAGE, FAILED) else FAILED


def placed_sarif(out: Path, policy: str) -> str:
    """The audit's SARIF with the policy's path in the repository; its path, or nothing."""
    source = out / "audit.sarif"
    if not source.is_file():
        return ""
    log = json.loads(source.read_text(encoding="utf-8"))
    for result in log["runs"][0]["results"]:
        for location in result["locations"]:
            location["physicalLocation"]["artifactLocation"]["uri"] = in_workspace(policy)
    goal = out / "github.sarif"
    goal.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return str(goal)


def in_workspace(path: str) -> str:
    """`path` as code scanning wants it: relative to the workspace, with forward slashes."""
    workspace = Path(os.environ.get("GITHUB_WORKSPACE", ".")).resolve()
    full = (workspace / path).resolve()
    return full.relative_to(workspace).as_posix() if full.is_relative_to(workspace) else full.name


def kept_summary(text: str) -> str:
    """A file with the summary, for the comment; it outlives this step, not the job."""
    if not text:
        return ""
    folder = Path(os.environ.get("RUNNER_TEMP") or tempfile.gettempdir())
    path = folder / f"lipschitz-summary-{uuid.uuid4().hex}.md"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parsed(text: str) -> dict[str, str]:
    """Outputs in the form `name<<end`, lines, `end`."""
    values, lines = {}, iter(text.splitlines())
    for line in lines:
        name, _, end = line.partition("<<")
        value = []
        for inner in lines:
            if inner == end:
                break
            value.append(inner)
        values[name] = "\n".join(value)
    return values


def output(name: str, value: str) -> str:
    """One output in that form; the end cannot be foreseen by whoever chose the value."""
    end = f"end-{uuid.uuid4().hex}"
    return f"{name}<<{end}\n{value}\n{end}\n"


def existing(path: Path) -> str:
    return str(path) if path.is_file() else ""


def append(variable: str, text: str) -> None:
    path = os.environ.get(variable)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def escaped(text: str) -> str:
    return text.strip().replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def code_block(text: str) -> str:
    """`text` as it is, between fences longer than any in it, so that it cannot end the block."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.strip()}\n{fence}"


if __name__ == "__main__":
    sys.exit(main())
