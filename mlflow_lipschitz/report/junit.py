"""`junit.xml`: one test case per check, readable by every CI system."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mlflow_lipschitz.report.content import ReportContent, number

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(content: ReportContent) -> str:
    """JUnit XML. A failed check that does not block (warning, info) passes and tells its message in system-out."""
    checks = content.verdict.checks
    broken = [c for c in checks if c.status == "error"]
    failed = [c for c in checks if not c.passed and c.status != "error" and c.severity == "critical"]
    suite = ElementTree.Element(
        "testsuite",
        name=_text(f"mlflow-lipschitz {content.model}"),
        tests=str(len(checks)),
        failures=str(len(failed)),
        errors=str(len(broken)),
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", name=_text(check.id), classname=_text(check.type))
        detail = f"{check.message} (observed {number(check.observed)}, threshold {number(check.threshold)})"
        if check in broken:
            ElementTree.SubElement(case, "error", message=_text(check.message)).text = _text(detail)
        elif check in failed:
            ElementTree.SubElement(case, "failure", message=_text(check.message)).text = _text(detail)
        else:
            ElementTree.SubElement(case, "system-out").text = _text(detail)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _text(value: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", value)
