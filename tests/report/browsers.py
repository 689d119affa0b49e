"""A real browser for the tests of pages, and axe-core where a package brings it; each with the reason where it is missing."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_AXE = ("axe_core_python", "axe_playwright_python", "axe_selenium_python")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips the test where Playwright or Chromium is not installed."""
    reason = "Playwright for Python is not installed: pip install 'mlflow-lipschitz[test]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(_NAMES)})")
    with api.sync_playwright() as playwright:
        # A container has no user namespaces for the sandbox; the only pages opened are ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def axe_source() -> str:
    """The text of axe-core; skips the test where no package brings it."""
    for name in _AXE:
        found = importlib.util.find_spec(name)
        for folder in found.submodule_search_locations or () if found else ():
            for path in sorted(Path(folder).rglob("axe*.js")):
                return path.read_text(encoding="utf-8")
    pytest.skip(f"no package with axe-core is installed ({', '.join(_AXE)})")


@dataclass
class Watched:
    """A page, and everything on it that should not happen: messages on the console, dialogs, requests of the
    page and of the frames in it."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    framed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, browser: Any, width: int, scheme: str) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        watched = cls(context.new_page())
        page = watched.page
        page.on("console", lambda message: watched.messages.append(message.text))
        page.on("pageerror", lambda error: watched.messages.append(str(error)))
        page.on("dialog", lambda dialog: (watched.messages.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: watched._note(request))
        return watched

    def _note(self, request: Any) -> None:
        (self.framed if request.frame.parent_frame else self.requests).append(request.url)


OVERFLOW = """() => {
  const root = document.documentElement;
  return root.scrollWidth - root.clientWidth;
}"""
"""How many pixels wider than its window a page is."""

OPEN_ALL = "() => { for (const fold of document.querySelectorAll('details')) fold.open = true; }"

SERIOUS = """async () => {
  const found = await axe.run(document, {resultTypes: ['violations']});
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`);
}"""
