"""Exceptions to exit codes and short messages; and the noise of libraries, turned down."""

from __future__ import annotations

import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from mlflow_lipschitz.errors import Interrupted, LipschitzError
from mlflow_lipschitz.plain_text import one_line, safe_lines

PASSED, BLOCKED, USAGE, FAILED = 0, 1, 2, 3


def exit_code_of(command: Callable[[], Any], *, verbose: bool = False) -> int:
    """Run `command` and return its exit code; an exception becomes a message on stderr and a code other than 0."""
    try:
        code = command()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        # What was typed is repeated there; the lines themselves are click's.
        click.echo("\n".join(one_line(line) for line in shown.getvalue().splitlines()), err=True)
        return USAGE if isinstance(error, click.UsageError) else FAILED
    except (click.Abort, KeyboardInterrupt) as error:
        # click turns every interruption into an Abort.
        cause = error if isinstance(error, Interrupted) else error.__cause__
        told = str(cause) if isinstance(cause, Interrupted) else "nothing was decided, so nothing is passed"
        click.echo(f"interrupted: {safe_lines(told)}", err=True)
        return FAILED
    except LipschitzError as error:
        return _told(str(error), error.exit_code, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - the last line of defense: whatever it was, CI must not read it as passed
        hint = "" if verbose else " (mlflow-lipschitz --verbose … shows where)"
        return _told(f"unexpected {type(error).__name__}: {_first_line(error)}{hint}", FAILED, verbose=verbose)
    return code if isinstance(code, int) else FAILED


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep log lines, warnings and progress bars of MLflow, torch and others off a terminal that shows an audit."""
    before = logging.root.manager.disable
    # By level and not by name: torch sets the levels of its loggers when it is imported, which is later.
    logging.disable(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            # The warnings that say something about the audit: the engine goes on with less at a time, or measures rows again.
            warnings.filterwarnings("always", message="out of GPU memory")
            warnings.filterwarnings("always", message="the journal's record")
            yield
    finally:
        logging.disable(before)


def _told(message: str, code: int, *, verbose: bool) -> int:
    if verbose:
        click.echo(safe_lines(traceback.format_exc()), err=True)
    click.echo(f"error: {safe_lines(message)}", err=True)
    return code


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
