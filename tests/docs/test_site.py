"""The site builds strictly and offline, loads nothing from elsewhere, and its generated pages say all that the code knows."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mlflow_lipschitz.cli.__main__ import cli
from mlflow_lipschitz.policy import policy_schema
from mlflow_lipschitz.policy_models import CHECK_MODELS
from tests.docs.blocks import blocks_of
from tests.docs.commands import ROOT, environment
from tests.operators import FAMILIES

# Where something of another site would be loaded from; links that a reader may click are no such place.
_ATTRIBUTE = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=|<link\b[^>]*\bhref=|@import\s+|url\("
_LOADED = re.compile(rf"""(?:{_ATTRIBUTE})["']?(?:https?:)?//[^"')\s]+""")
_CANONICAL = re.compile(r'<link\b[^>]*\brel="?(?:canonical|next|prev)"?[^>]*>')


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, with the pages that are generated for it."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("reference", "__pycache__"))
    shutil.copy2(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    runpy.run_path(str(ROOT / "docs" / "generate.py"))["write"](folder / "docs")
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    if sys.version_info < (3, 11):
        pytest.skip("Zensical needs Python 3.11")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(sources: Path) -> Path:
    done = build(sources)
    assert done.returncode == 0, done.stdout + done.stderr
    return sources / "site"


def named(entries: Any) -> Iterator[str]:
    """Every file that the navigation names."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries if isinstance(entries, list) else entries.values():
            yield from named(entry)


def test_every_page_is_in_the_navigation_and_in_the_site(sources: Path, site: Path) -> None:
    navigation = list(named(yaml.safe_load((sources / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(sources / "docs").as_posix() for path in (sources / "docs").rglob("*.md")}
    assert set(navigation) == written
    assert len(navigation) == len(set(navigation))
    for name in navigation:
        page = "index.html" if name == "index.md" else f"{name.removesuffix('.md')}/index.html"
        assert (site / page).is_file(), name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    found = {}
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css"):
            text = _CANONICAL.sub("", path.read_text(encoding="utf-8"))
            if _LOADED.search(text):
                found[path.name] = _LOADED.findall(text)
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.com/a.js"></script>',
        "<link rel=stylesheet href=//fonts.example.com/css>",
        "@import 'https://example.com/a.css'",
        "background: url(http://example.com/a.png)",
    ],
)
def test_what_would_be_loaded_is_seen(text: str) -> None:
    assert _LOADED.search(text)
    assert not _LOADED.search(text.replace("https:", "").replace("http:", "").replace("//", "assets/"))


def test_examples_are_shown_as_they_are(site: Path) -> None:
    page = (site / "how-to" / "monotonicity" / "index.html").read_text(encoding="utf-8")
    assert "larger-costs-more" in page
    assert "8&lt;" not in page


def test_a_broken_link_fails_the_build(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("site", ".cache"))
    page = folder / "docs" / "faq.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[nowhere](nowhere.md)\n", encoding="utf-8")
    done = build(folder)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout + done.stderr


# The generated pages.


def page_of(sources: Path, name: str) -> str:
    return (sources / "docs" / "reference" / name).read_text(encoding="utf-8")


def test_the_policy_reference_has_every_key_and_check(sources: Path) -> None:
    text, schema = page_of(sources, "policy.md"), policy_schema()
    keys = {name for part in [schema, *schema["$defs"].values()] for name in part.get("properties", {})}
    assert {name for name in keys if f"| `{name}` |" not in text} == set()
    assert {kind for kind in CHECK_MODELS if f"### {kind} " not in text} == set()
    fields = [field for part in schema["$defs"].values() for field in part.get("properties", {}).values()]
    said = [" ".join(field["description"].split()).replace("|", "\\|") for field in fields if "description" in field]
    assert [sentence for sentence in said if sentence not in text] == []


def test_the_operator_reference_has_every_operator(sources: Path) -> None:
    from importlib import import_module

    from mlflow_lipschitz.engine.rules.curves.table import CURVES
    from mlflow_lipschitz.engine.rules.registry import RULES

    words = set(re.findall(r"\w+", page_of(sources, "operators.md")))
    onnx = {name for module in FAMILIES for name in import_module(f"mlflow_lipschitz.frontends.{module}").ROWS}
    assert onnx | set(CURVES) | {op.__name__ for op in RULES} <= words


def every_command(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from every_command(child, f"{path} {name}")


def test_the_command_reference_has_every_command_and_option(sources: Path) -> None:
    sections = page_of(sources, "commands.md").split("\n## ")
    for path, command in every_command(cli, "mlflow-lipschitz"):
        section = next(part for part in sections if part.startswith(f"{path}\n"))
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        assert [name for name in options if name not in section] == []


def test_generated_pages_hold_no_code_to_run(sources: Path) -> None:
    for path in (sources / "docs" / "reference").glob("*.md"):
        assert {info for _, info, _ in blocks_of(path)} <= {"text"}
