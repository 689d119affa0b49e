"""The commands that repeat an audit and check its evidence again."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from mlflow_lipschitz.report.content import ReportContent


@dataclass(frozen=True)
class Command:
    """What it is for, and what to type."""

    purpose: str
    text: str


def commands(content: ReportContent) -> list[Command]:
    """For this model and policy; ROWS and RUN_ID stand for what a report cannot know."""
    model = shlex.quote(content.model)
    pinned = re.search(r"mlflow-lipschitz (\d[\w.]*)", content.facts.get("versions", ""))
    release = f"mlflow-lipschitz=={pinned.group(1)}" if pinned else "mlflow-lipschitz"
    found = [
        Command("the same release", f"pip install {release}"),
        Command(
            "fetch the evidence; RUN_ID is the version's tag lipschitz.run_id",
            "mlflow artifacts download --run-id RUN_ID --artifact-path lipschitz --dst-path evidence",
        ),
        Command(
            "prove every claim again, with NumPy alone and without the model",
            "python -m mlflow_lipschitz.checker evidence/lipschitz",
        ),
        Command(
            "repeat the audit; ROWS is the file of the rows",
            f"mlflow-lipschitz audit {model} --policy evidence/lipschitz/policy.yaml --data ROWS",
        ),
    ]
    if content.model.startswith("models:/"):
        check = f"mlflow-lipschitz verify {model} --recheck-certificates"
        found.insert(1, Command("signature, digests of the model's files, expiry, and all claims again", check))
    return found
