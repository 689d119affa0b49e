"""Keep one comment on the pull request up to date. Python's own library only.

A comment that cannot be written is a warning: it decides nothing, and pull requests from forks have no right to write any.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PAGES, PER_PAGE = 20, 100
LIMIT = 60_000  # characters; GitHub takes 65,536
SECONDS = 30


def main() -> int:
    """0 in any case."""
    number = pull_request()
    if number is None:
        sys.stdout.write("no pull request: no comment\n")
        return 0
    try:
        write(number, body())
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).replace("%", "%25")
        sys.stdout.write(f"::warning title=comment::the comment could not be written: {reason}\n")
    return 0


def pull_request() -> int | None:
    """Number of the pull request that the job is for."""
    path = os.environ.get("GITHUB_EVENT_PATH", "")
    if not path or not Path(path).is_file():
        return None
    event = json.loads(Path(path).read_text(encoding="utf-8"))
    number = event.get("pull_request", {}).get("number")
    return number if isinstance(number, int) else None


def marker() -> str:
    """What tells this job's comment from others; it is not shown."""
    names = [os.environ.get(name, "") for name in ("GITHUB_WORKFLOW", "GITHUB_JOB", "INPUT_POLICY")]
    return f"<!-- mlflow-lipschitz {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]} -->"


def body() -> str:
    """The comment: the marker, the audit's summary, and which run of the workflow it is from."""
    environment = os.environ.get
    path = environment("SUMMARY", "")
    text = Path(path).read_text(encoding="utf-8") if path else "## ERROR\n\nThe audit did not take place.\n"
    place = f"{environment('GITHUB_SERVER_URL', '')}/{environment('GITHUB_REPOSITORY', '')}"
    run = f"{place}/actions/runs/{environment('GITHUB_RUN_ID', '')}"
    return f"{marker()}\n{text[:LIMIT]}\n\n[{environment('GITHUB_SHA', '')[:12]}]({run})\n"


def write(number: int, text: str) -> None:
    """Change our comment, or add it."""
    comments = f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    ours = next((c["id"] for c in existing(f"{comments}/{number}/comments") if is_ours(c)), None)
    if ours is None:
        call("POST", f"{comments}/{number}/comments", {"body": text})
    else:
        call("PATCH", f"{comments}/comments/{int(ours)}", {"body": text})


def is_ours(comment: dict[str, Any]) -> bool:
    """Anybody can write the marker; the text of a person is never replaced."""
    return comment["user"]["type"] == "Bot" and comment["body"].startswith(marker())


def existing(path: str) -> list[dict[str, Any]]:
    """All comments of the pull request, page by page."""
    found: list[dict[str, Any]] = []
    for page in range(1, PAGES + 1):
        part = call("GET", f"{path}?per_page={PER_PAGE}&page={page}")
        found += part
        if len(part) < PER_PAGE:
            break
    return found


def call(method: str, path: str, content: dict[str, str] | None = None) -> Any:
    """One request to GitHub's API."""
    request = urllib.request.Request(
        os.environ.get("GITHUB_API_URL", "https://api.github.com") + path,
        method=method,
        data=None if content is None else json.dumps(content).encode(),
        headers={
            "Authorization": f"Bearer {os.environ.get('GITHUB_TOKEN', '')}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        },
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
