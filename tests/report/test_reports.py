"""Every format tells the verdict, and no name can leave the place it is printed in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import click
import numpy as np
import pytest

from mlflow_lipschitz.cli.output import check_lines
from mlflow_lipschitz.report.content import number, verdict_word
from mlflow_lipschitz.report.github import github_annotations
from mlflow_lipschitz.report.html import report_html
from mlflow_lipschitz.report.junit import junit_xml
from mlflow_lipschitz.report.plots import HEIGHT, interval_plot
from mlflow_lipschitz.report.sarif import sarif_json
from mlflow_lipschitz.report.summary import SIZE_LIMIT, summary_markdown
from tests.report.samples import EVIL, content, mixed, outcome


class Tags(HTMLParser):
    """Collects elements and attributes, and checks that every opened element is closed."""

    VOID = ("meta", "br", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_file_without_links_or_scripts() -> None:
    text = report_html(mixed())
    parsed = Tags(text)
    assert parsed.open == []
    assert parsed.names.isdisjoint({"script", "iframe", "link", "img", "object", "a"})
    assert parsed.attributes.isdisjoint({"href", "src", "onload", "onclick"})
    assert "http" not in text
    assert "url(" not in text


def test_html_shows_names_as_text() -> None:
    parsed = Tags(report_html(mixed()))
    assert "<script>alert('x')</script>" in parsed.text
    assert "message of good" in parsed.text


def test_html_without_anything_optional() -> None:
    bare = replace(content(outcome("good"), status="passed"), counterexamples=(), derivatives={}, explanations={})
    parsed = Tags(report_html(bare))
    assert "Where it breaks" not in parsed.text
    assert "Passed" in parsed.text


@pytest.mark.parametrize("status", ["passed", "blocked", "error"])
def test_the_headline_is_the_verdict(status: str) -> None:
    shown = content(outcome("good"), status=status)
    assert f'<h1 class="{status}">{shown.headline}' in report_html(shown)
    assert summary_markdown(shown).startswith(f"## {status.upper()}")


def test_summary_escapes_names_and_keeps_its_table() -> None:
    text = summary_markdown(mixed())
    assert "<script" not in text
    assert "<svg" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert columns == {7}
    assert len(rows) == 2 + len(mixed().verdict.checks)


def test_summary_stays_small_with_thousands_of_checks() -> None:
    text = summary_markdown(content(*(outcome(f"check-{i}", status="violated") for i in range(3000))))
    assert len(text.encode()) <= SIZE_LIMIT
    assert "cut; see report.html" in text


def test_junit_counts_what_decides() -> None:
    suite = ElementTree.fromstring(junit_xml(mixed()))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "1")
    kinds = [case[0].tag for case in suite]
    assert kinds == ["system-out", "failure", "system-out", "system-out", "error"]


def test_what_blocks_is_a_failure_in_every_report() -> None:
    """`fail_on: warning`: a warning decides, so no report may call it one."""
    shown = content(outcome("unknown", severity="warning", status="undecided", blocking=True))
    suite = ElementTree.fromstring(junit_xml(shown))
    assert (suite.get("failures"), suite[0][0].tag) == ("1", "failure")
    assert json.loads(sarif_json(shown))["runs"][0]["results"][0]["level"] == "error"
    assert github_annotations(shown)[0].startswith("::error ")
    assert verdict_word(shown.verdict.checks[0]) == "FAIL"
    assert click.unstyle(check_lines(shown)[0]).split()[:2] == ["FAIL", "unknown"]
    assert "| FAIL |" in summary_markdown(shown)
    assert shown.verdict.metrics()["lipschitz/checks_failed_critical"] == 1.0


HIDING = "r1\x1b[2J\nok    everything\r\u202epassed: models:/x/1\u2028::stop-commands::abc ##[add-mask]x\x9b1m"


def test_text_from_outside_cannot_forge_or_hide_a_line() -> None:
    shown = replace(content(outcome(HIDING, status="violated")), model=HIDING)
    lines = [click.unstyle(line) for line in check_lines(shown)]
    texts = [*lines, *github_annotations(shown), *summary_markdown(shown).split("\n"), sarif_json(shown)]
    texts += [ElementTree.fromstring(junit_xml(shown))[0].get("name", ""), Tags(report_html(shown)).text]
    for text in texts:
        assert not set(text.strip("\n")) & set("\x1b\r\u202e\u2028\x9b"), text
        assert "##[" not in text
    assert all("\n" not in line for line in lines)
    assert not any(line.strip().startswith("::") for line in [*lines, *summary_markdown(shown).split("\n")])


def test_junit_survives_characters_that_xml_forbids() -> None:
    suite = ElementTree.fromstring(junit_xml(content(outcome("bell\x07\ud800"))))
    assert suite[0].get("name") == "bell\\x07\\ud800"


def test_sarif_points_at_policy_lines() -> None:
    log = json.loads(sarif_json(mixed()))
    assert log["version"] == "2.1.0"
    results = log["runs"][0]["results"]
    assert [r["level"] for r in results] == ["error", "warning", "note", "error"]
    lines = [r["locations"][0]["physicalLocation"].get("region", {}).get("startLine") for r in results]
    assert lines == [12, 13, 14, None]
    rules = {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]}
    assert {r["ruleId"] for r in results} <= rules


def test_github_annotations_are_one_line_each_and_cannot_be_forged() -> None:
    lines = github_annotations(mixed())
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning", "::notice"]
    assert all("\n" not in line for line in lines)
    assert lines[0].startswith(
        "::error file=policy.yaml,line=12,title=<script>alert('x')</script>|`*\"&%0A\\%3A%3Aerror"
    )
    assert ",line=" not in lines[1]


def test_github_shows_ten_of_each_kind() -> None:
    failed = [outcome(f"c{i}", status="violated") for i in range(15)]
    warned = [outcome(f"w{i}", severity="warning", status="undecided") for i in range(12)]
    lines = github_annotations(content(*failed, *warned))
    assert sum(line.startswith("::error") for line in lines) == 10
    assert sum(line.startswith("::warning") for line in lines) == 10


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.23456, "1.235"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
        (None, "–"),
        ("text", "text"),
        (7, "7"),
        (0.0, "0"),
    ],
)
def test_numbers_for_people(value: object, shown: str) -> None:
    assert number(value) == shown


def test_an_errored_check_is_an_error_whatever_its_severity() -> None:
    assert verdict_word(outcome("x", severity="info", status="error")) == "ERROR"
    assert verdict_word(outcome("x", severity="warning", status="undecided")) == "warn"


def plotted_heights(svg: str) -> list[tuple[float, float]]:
    pattern = r'<line class="certified"[^>]*y1="([\d.]+)" y2="([\d.]+)"'
    return [(float(low), float(high)) for low, high in re.findall(pattern, svg)]


def test_plots_order_rows_and_stay_inside_their_frame() -> None:
    upper, lower = np.array([3.0, np.inf, 1.0]), np.array([1.0, -np.inf, 0.5])
    bars = plotted_heights(interval_plot(lower, upper, ["certified"] * 3, label="bound", limit=2.0))
    assert len(bars) == 3
    tops = [top for _, top in bars]
    assert tops[0] > tops[1] >= tops[2] - 1  # SVG grows downwards; the infinite bar touches the frame
    assert all(0 <= y <= HEIGHT for bar in bars for y in bar)


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [np.inf, np.inf]])
def test_plots_of_degenerate_data(values: list[float]) -> None:
    svg = interval_plot(np.array(values), np.array(values), ["certified"] * len(values), label=EVIL)
    assert "nan" not in svg
    assert "<script" not in svg
    assert len(plotted_heights(svg)) == len(values)
