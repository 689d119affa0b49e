"""Install the version of mlflow-lipschitz that the action was asked for. Python's own library only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

# A version and nothing else: pip takes options and addresses where it takes versions.
VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?")


def main() -> int:
    """Exit code of pip, or 2 for what is no version."""
    version = os.environ.get("INPUT_VERSION", "")
    if not VERSION.fullmatch(version):
        sys.stdout.write("::error title=version::the input version must be a version such as 0.1.0, or 'installed'\n")
        return 2
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", f"mlflow-lipschitz=={version}"]
    # Not in the workspace: a folder `pip` in it would be run in the place of pip.
    return subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
