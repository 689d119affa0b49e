"""The report in a real browser, alone. In MLflow's own viewer: registry/test_live_server.py, which has a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_lipschitz.report.html import report_html
from tests.report.browsers import OPEN_ALL, OVERFLOW, SERIOUS, Watched, axe_source, chromium
from tests.report.samples import IMAGE, full


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 rows, every figure, every status, NaN and infinities, and a name that is markup."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_html(full(5000)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(600, "light"), (600, "dark"), (1400, "light"), (1400, "dark")])
def test_alone_it_is_quiet_fits_and_asks_for_nothing(browser: Any, report: Path, width: int, scheme: str) -> None:
    watched = Watched.of(browser, width, scheme)
    page = watched.page
    page.goto(report.as_uri())
    assert page.evaluate(OVERFLOW) == 0
    page.evaluate(OPEN_ALL)
    assert page.evaluate(OVERFLOW) == 0
    assert page.locator("img, script").count() == 0
    assert IMAGE in page.inner_text("body")
    assert page.locator("h1").inner_text().endswith("Blocked: at least one check that decides is not proved.")
    # Every plot has a size, a name, and no mark outside its frame by more than a label's width.
    sizes = page.evaluate("() => [...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.ariaLabel])")
    assert all(size > 0 and label for size, label in sizes)
    color = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (color == "rgb(255, 255, 255)") == (scheme == "light")
    assert watched.messages == []
    assert watched.requests == [report.as_uri()]
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, report: Path, scheme: str) -> None:
    source = axe_source()
    context = browser.new_context(viewport={"width": 620, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(report.as_uri())
    page.evaluate(OPEN_ALL)
    page.evaluate(source)
    assert page.evaluate(SERIOUS) == []
    context.close()


def test_it_prints(browser: Any, report: Path) -> None:
    watched = Watched.of(browser, 600, "dark")
    watched.page.goto(report.as_uri())
    watched.page.emulate_media(media="print")
    assert watched.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert watched.page.pdf().startswith(b"%PDF")
    watched.page.context.close()
