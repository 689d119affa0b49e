"""The job's script: audits one version and fails the run unless it passes. Report and evidence are in the MLflow run.

With --out, a folder on a disk that outlives the run, an audit that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlflow

import mlflow_lipschitz as ml


def main() -> None:
    """Raises SystemExit with the verdict unless the model passed; an error of the audit is raised as it is."""
    parser = argparse.ArgumentParser()
    for name in ("model", "policy", "data"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("out", "registry-uri"):
        parser.add_argument(f"--{name}")
    asked = parser.parse_args()
    if asked.registry_uri:
        mlflow.set_registry_uri(asked.registry_uri)
    unfinished = asked.out is not None and (Path(asked.out) / "work" / "journal.json").is_file()
    options = ml.AuditOptions(resume=unfinished)
    result = ml.audit(asked.model, asked.data, asked.policy, out=asked.out, options=options)
    for check in result.verdict.checks:
        print(f"{check.status:<10} {check.id}: {check.message}")
    print(f"{result.verdict.status}: run {result.run_id}, evidence in {result.directory}")
    if result.verdict.status != "passed":
        raise SystemExit(f"{asked.model} is {result.verdict.status}")


if __name__ == "__main__":
    main()
