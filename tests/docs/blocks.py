"""Code blocks of a Markdown page, run in order as a reader would type them.

| block | what is done |
|---|---|
| `sh` | run; every command has to succeed |
| `console` | lines after `$ ` are run; the other lines have to be in the output, in order, `…` standing for any text |
| `python` | run as a script; with a title, written to a file of that name |
| `yaml` | written to a file (its title); policies and revocation lists also have to be valid |
| `json` | has to be JSON |
| `text` with the title "output" | its lines have to be in the output of the block before, as in `console` |
| `text` | is no code |

In a `console` block a command that fails has to be followed by `$ echo $?`. A block that includes a file of examples/ is that
file, which tests/docs/test_examples.py runs. `<!-- skip: next "reason" -->` before a block says why it cannot run here. A block
without a language, as README.md has them, is `sh`; with `$ ` at its beginning it is output, and its figures are not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

import yaml
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from sybil.parsers.markdown.skip import SkipParser

from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.revocation import read_revocations
from tests.docs.commands import ROOT, Shell

INCLUDED = re.compile(r'--8<-- "(examples/[\w.-]+)"')
_TITLE = re.compile(r'title="([^"]+)"')

# Lines that need another machine than this: a new environment and an index to install from, or a test run inside itself.
INSTALLING = re.compile(r"^(pip install|python3? -m venv|source \S+/bin/activate)\b[^&]*(&& )?")
DEVELOPING = "pip install -c constraints.txt -e '.[test]' && pytest"


@dataclass
class Reader:
    """Whoever works through a page: a shell, the last output, and names that a page takes for granted in Python."""

    shell: Shell
    preamble: str = ""
    printed: str = ""
    skipped: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Run every block of the page; AssertionError names the page, the line and what happened."""
        for example in _document(path, self._evaluate).examples():
            try:
                example.evaluate()
            except SkipTest as skipped:
                self.skipped.append(str(skipped))

    def _evaluate(self, example: Example) -> None:
        language, _, rest = example.region.lexemes["info"].strip().partition(" ")
        source = example.region.lexemes["source"]
        named = _TITLE.search(rest)
        place = f"{Path(example.path).name}:{example.line}"
        self._block(language, named.group(1) if named else "", source, place)

    def _block(self, language: str, title: str, source: str, place: str) -> None:
        if INCLUDED.search(source):
            included = INCLUDED.search(source).group(1)  # type: ignore[union-attr]
            assert (ROOT / included).is_file(), f"{place}: {included} is not there"
        elif language == "console":
            self._console(source, place)
        elif (language, title) == ("text", "output"):
            _matches(source.splitlines(), self.printed, place)
        elif not language and source.startswith("$ "):
            _matches(re.sub(r"\d[\d.]*", "…", source).splitlines(), self.printed, place)
        elif language in ("sh", ""):
            self._shell(source, place)
        elif language == "python":
            self._python(title, source, place)
        elif language == "yaml":
            self._yaml(title, source)
        elif language == "json":
            json.loads(source)
        else:
            assert language == "text", f"{place}: nobody knows how to run a block of {language!r}"

    def _shell(self, source: str, place: str) -> None:
        lines = source.strip().splitlines()
        script = "\n".join(INSTALLING.sub("", line) for line in lines if line != DEVELOPING)
        code, self.printed = self.shell.run(script)
        assert code == 0, f"{place}: exit code {code}\n{self.printed}"

    def _console(self, source: str, place: str) -> None:
        commands = list(_typed(source))
        code = 0
        for number, (command, expected) in enumerate(commands):
            code, self.printed = self.shell.run(command, strict=False, last=code)
            following = commands[number + 1][0] if number + 1 < len(commands) else ""
            assert code == 0 or following == "echo $?", f"{place}: {command}: exit code {code}\n{self.printed}"
            _matches(expected, self.printed, f"{place}: {command}")

    def _python(self, title: str, source: str, place: str) -> None:
        path = self.shell.where / (title or "block.py")
        path.write_text(source if title else self.preamble + source, encoding="utf-8")
        if not title:
            code, self.printed = self.shell.run("python block.py")
            assert code == 0, f"{place}: exit code {code}\n{self.printed}"

    def _yaml(self, title: str, source: str) -> None:
        kind = yaml.safe_load(source).get("kind", "")
        path = self.shell.where / (title or {"AuditPolicy": "policy.yaml"}.get(kind, "block.yaml"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        if kind == "AuditPolicy":
            load_policy(path)
        elif kind == "RevocationList":
            read_revocations([path])


def blocks_of(path: Path) -> list[tuple[int, str, str]]:
    """(line, info, source) of every block of a page; runs nothing."""
    found = []
    for example in _document(path, lambda example: None).examples():
        if "info" in example.region.lexemes:
            lexemes = example.region.lexemes
            found.append((example.line, lexemes["info"].strip(), str(lexemes["source"])))
    return found


def _document(path: Path, evaluate: Callable[[Example], None]) -> Document:
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))

    def parse(document: Document) -> Iterator[Region]:
        for region in lexer(document):
            region.parsed, region.evaluator = region.lexemes["source"], evaluate
            yield region

    return Sybil(parsers=[parse, SkipParser()]).parse(path)


def _typed(source: str) -> Iterator[tuple[str, list[str]]]:
    """Commands and the lines printed after each; `> ` continues a command."""
    command: list[str] = []
    printed: list[str] = []
    for line in source.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), printed
            command, printed = [line[2:]], []
        elif line.startswith("> ") and not printed:
            command.append(line[2:])
        else:
            printed.append(line)
    if command:
        yield "\n".join(command), printed


def _matches(expected: list[str], printed: str, place: str) -> None:
    lines = iter(" ".join(line.split()) for line in printed.splitlines())
    for wanted in expected:
        pattern = ".*".join(map(re.escape, " ".join(wanted.split()).split("…")))
        found = any(re.fullmatch(pattern, line) for line in lines)
        assert found, f"{place}: the page shows {wanted!r}, and this was printed:\n{printed}"
