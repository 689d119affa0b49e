"""`junit.xml`: one test case per check, readable by every CI system."""

from __future__ import annotations

from xml.etree import ElementTree

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import ReportContent, number


def junit_xml(content: ReportContent) -> str:
    """JUnit XML. A failed check that does not block under the policy passes and tells its message in system-out.

    `one_line` also escapes every character that XML cannot hold.
    """
    checks = content.verdict.checks
    broken = [c for c in checks if c.status == "error"]
    failed = [c for c in checks if c.blocking and c.status != "error"]
    suite = ElementTree.Element(
        "testsuite",
        name=one_line(f"mlflow-lipschitz {content.model}"),
        tests=str(len(checks)),
        failures=str(len(failed)),
        errors=str(len(broken)),
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", name=one_line(check.id), classname=one_line(check.type))
        detail = f"{check.message} (observed {number(check.observed)}, threshold {number(check.threshold)})"
        advice = content.advice.get(check.id, "")
        detail += f" Next: {advice}" if advice else ""
        if check in broken:
            ElementTree.SubElement(case, "error", message=one_line(check.message)).text = one_line(detail)
        elif check in failed:
            ElementTree.SubElement(case, "failure", message=one_line(check.message)).text = one_line(detail)
        else:
            ElementTree.SubElement(case, "system-out").text = one_line(detail)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
