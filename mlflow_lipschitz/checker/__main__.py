"""`python -m mlflow_lipschitz.checker FOLDER`: re-prove the certificates in a folder, where nothing but NumPy is installed."""

from __future__ import annotations

import sys
from pathlib import Path

from mlflow_lipschitz.checker.verification import recheck


def main(arguments: list[str]) -> int:
    """0 when every claim was proved again, 1 when one was not, 2 for anything that cannot be read."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflow_lipschitz.checker FOLDER\n")
        return 2
    try:
        found = recheck(Path(arguments[0]))
    except (ValueError, OSError, KeyError, TypeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for problem in (*found.refuted, *found.unproved):
        sys.stdout.write(f"NOT PROVED  {problem}\n")
    for claim, count in found.checked.items():
        sys.stdout.write(f"{claim}: {count} points\n")
    sys.stdout.write("all claims proved again\n" if found.holds else "not all claims could be proved again\n")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
