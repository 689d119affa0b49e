"""Every format tells the verdict, and no name can leave the place it is printed in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import click
import jsonschema
import pytest

from mlflow_lipschitz.cli.output import check_lines
from mlflow_lipschitz.report.content import ReportContent, number, verdict_word
from mlflow_lipschitz.report.github import github_annotations
from mlflow_lipschitz.report.html import report_html
from mlflow_lipschitz.report.junit import junit_xml
from mlflow_lipschitz.report.sarif import sarif_json
from mlflow_lipschitz.report.summary import SIZE_LIMIT, short_markdown, summary_markdown
from tests.report.samples import IMAGE, content, full, mixed, outcome

MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LOCATION = {
    "type": "object",
    "required": ["physicalLocation"],
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string", "pattern": "^[A-Za-z0-9%/:._~-]+$"}},
                },
                "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1}}},
            },
        }
    },
}
SARIF_ESSENTIALS = {
    "type": "object",
    "required": ["$schema", "version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "rules"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "properties": {"shortDescription": MESSAGE, "help": MESSAGE},
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {"type": "object", "required": ["executionSuccessful"]},
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message", "ruleId", "level", "locations"],
                            "properties": {
                                "message": MESSAGE,
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "locations": {"type": "array", "items": LOCATION},
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What SARIF 2.1.0 demands of the parts of a log that this package writes, in its own words (OASIS, 27 March 2020, §3.13 ff.)."""


class Tags(HTMLParser):
    """Collects elements and attributes, and checks that every opened element is closed."""

    VOID = ("meta", "br")

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
    assert parsed.names.isdisjoint({"script", "iframe", "link", "img", "image", "object", "embed", "a", "use", "base"})
    assert parsed.attributes.isdisjoint({"href", "src", "srcset", "xlink:href", "onload", "onclick", "onerror"})
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text.replace("&#39;", "'")


def test_every_figure_is_there_and_its_names_are_text() -> None:
    text = report_html(full())
    parsed = Tags(text)
    assert parsed.open == []
    assert parsed.names.isdisjoint({"script", "img", "image", "a"})
    assert parsed.text.count(IMAGE) > 20
    assert "<img" not in text
    assert "Not in this report" not in parsed.text
    for title in ("Bounds per row", "How far the decision holds", "Directions", "Sensitivity to each feature"):
        assert title in parsed.text
    for title in ("Rows to look at", "Against the baseline", "Where the bound comes from", "Evidence for"):
        assert title in parsed.text
    coordinates = re.findall(r' (?:x|y|x1|x2|y1|y2|width|height|d|cx|cy|r)="([^"]*)"', text)
    assert len(coordinates) > 100
    assert not [value for value in coordinates if re.search("nan|inf", value, re.IGNORECASE)]


def test_what_blocks_is_read_first_with_what_to_do_next() -> None:
    shown = replace(
        content(
            outcome("noted", severity="warning", status="undecided"), outcome("good"), outcome("bad", status="violated")
        ),
        advice={"bad": "Train again.", "noted": "Lower the radius."},
    )
    text = Tags(report_html(shown)).text
    text = text[text.index("Checks") :]
    places = [text.index(word) for word in ("bad", "Train again.", "noted", "Lower the radius.", "good")]
    assert places == sorted(places)
    assert [check.id for check in shown.failing] == ["bad", "noted"]
    assert "1 of 3 checks block it" in shown.decision
    summary = summary_markdown(shown)
    assert summary.index("| bad |") < summary.index("| noted |") < summary.index("| good |")
    assert "Next for bad: Train again." in summary
    assert "`bad` (critical): violated. Train again." in "\n".join(short_markdown(shown))


def test_a_card_says_limit_observed_rows_and_the_policy_line() -> None:
    text = Tags(report_html(full())).text
    assert "The output changes by at most 2 per unit of perturbation" in text
    assert "1.25, limit 2" in text
    assert "look at row 7" in text
    assert "Train with weight decay." in text


def test_five_thousand_rows_make_a_small_file_that_says_what_it_leaves_out() -> None:
    text = report_html(full(5000, "age"))
    assert len(text.encode()) < 1_000_000
    assert "240 of 5,000 rows, sorted: the 60 worst" in text
    assert "The 50 worst of 5,000 rows" in text


def test_the_commands_name_the_model_quoted_for_a_shell() -> None:
    text = Tags(report_html(replace(full(), model="models:/a b;rm -rf/1"))).text
    assert "mlflow-lipschitz verify 'models:/a b;rm -rf/1' --recheck-certificates" in text
    assert "pip install mlflow-lipschitz==0.1.0" in text
    assert "python -m mlflow_lipschitz.checker" in text


def test_references_are_evidence_and_never_conformity() -> None:
    text = Tags(report_html(full())).text
    for name in ("ISO/IEC 24029-2", "2024/1689", "article 15", "NIST AI RMF"):
        assert name in text
    assert "no conformity with a standard or a law follows" in text
    assert not re.search(r"(?<!non-)\b(compliant|certified by|conforms)", text)


def test_html_shows_names_as_text() -> None:
    parsed = Tags(report_html(mixed()))
    assert "<script>alert('x')</script>" in parsed.text
    assert "message of good" in parsed.text


def test_html_without_anything_optional() -> None:
    bare = replace(content(outcome("good"), status="passed"), counterexamples=(), derivatives={}, explanations={})
    parsed = Tags(report_html(bare))
    assert "Where it breaks" not in parsed.text
    assert "Passed" in parsed.text
    for title in ("How far the decision holds", "Directions", "Rows to look at", "Against the baseline"):
        assert f"{title}: " in parsed.text
    assert "it was not computed for this report" in parsed.text


@pytest.mark.parametrize("status", ["passed", "blocked", "error"])
def test_the_headline_is_the_verdict(status: str) -> None:
    shown = content(outcome("good"), status=status)
    parsed = Tags(report_html(shown))
    heading = parsed.text.index(shown.headline)
    assert heading < parsed.text.index("Checks")
    assert shown.decision in parsed.text
    assert ("may not be promoted" in shown.decision) == (status != "passed")
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
    results = log["runs"][0]["results"]
    found = {r["locations"][0]["physicalLocation"].get("region", {}).get("startLine"): r["level"] for r in results}
    assert found == {12: "error", 13: "warning", 14: "note", None: "error"}


@pytest.mark.parametrize("shown", [mixed(), full(), content(outcome("good"), status="passed")])
def test_sarif_keeps_the_essentials_of_its_standard(shown: ReportContent) -> None:
    log = json.loads(sarif_json(replace(shown, policy_file="policies\\my policy 100%.yaml")))
    jsonschema.validate(log, SARIF_ESSENTIALS)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [result["ruleId"] for result in run["results"]]
    uris = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert uris <= {"policies/my%20policy%20100%25.yaml"}
    prints = [result["partialFingerprints"]["check/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)
    assert len(run["results"]) == len(shown.failing)


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
        (float("nan"), "not a number"),
    ],
)
def test_numbers_for_people(value: object, shown: str) -> None:
    assert number(value) == shown


def test_an_errored_check_is_an_error_whatever_its_severity() -> None:
    assert verdict_word(outcome("x", severity="info", status="error")) == "ERROR"
    assert verdict_word(outcome("x", severity="warning", status="undecided")) == "warn"
