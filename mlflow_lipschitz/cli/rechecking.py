"""`verify --recheck-certificates`: every bound of an audit proved again by the independent checker, as findings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_lipschitz.checker.verification import recheck
from mlflow_lipschitz.registry.checking import Finding
from mlflow_lipschitz.report.progress import progress

if TYPE_CHECKING:
    from mlflow_lipschitz.registry.vouching import FoundAudit

_SHOWN = 5
_TOPIC = "certificates"


def recheck_findings(found: FoundAudit) -> tuple[Finding, ...]:
    """One finding for each kind of claim, and one for each of the first claims that do not follow. What cannot be checked fails."""
    if found.folder is None or found.attestation is None:
        return (Finding(_TOPIC, "there are none to check: give the folder of the audit, or the model's URI", False),)
    try:
        return tuple(_findings(found.folder, found.attestation.predicate.get("graph")))
    except (ValueError, OSError, KeyError) as error:
        return (Finding(_TOPIC, f"they cannot be checked: {error}", False),)


def _findings(folder: Path, graph: str | None) -> Iterator[Finding]:
    with progress("proving again") as report:
        report(0, 0, math.inf)  # how many there are is in the files
        done = recheck(folder, progress=lambda points, total: report(points, total, math.inf))
    if done.graph_sha256 != graph:
        yield Finding(_TOPIC, "they are about another graph than the attestation", False)
    for problem in done.refuted[:_SHOWN]:
        yield Finding(_TOPIC, str(problem), False)
    if len(done.refuted) > _SHOWN:
        yield Finding(_TOPIC, f"{len(done.refuted) - _SHOWN} more claims do not follow", False)
    if done.unproved:
        named = ", ".join(done.unproved[:_SHOWN])
        more = f" and {len(done.unproved) - _SHOWN} more" if len(done.unproved) > _SHOWN else ""
        yield Finding(_TOPIC, f"rows {named}{more}: the audit reports closer bounds than its certificates prove", False)
    for claim, count in done.checked.items():
        yield Finding(_TOPIC, f"{claim}: {count} points proved again", None if done.refuted else True)
    if not done.checked:
        yield Finding(_TOPIC, "they claim nothing", False)
