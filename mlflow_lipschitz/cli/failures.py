"""Exceptions to exit codes and short messages; and the noise of libraries, turned down."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import click

from mlflow_lipschitz.errors import LipschitzError

PASSED, BLOCKED, USAGE, FAILED = 0, 1, 2, 3


def exit_code_of(command: Callable[[], Any], *, verbose: bool = False) -> int:
    """Run `command` and return its exit code; an exception becomes a message on stderr and a code other than 0."""
    try:
        code = command()
    except click.UsageError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        error.show()
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: nothing was decided, so nothing is passed", err=True)
        return FAILED
    except LipschitzError as error:
        return _told(str(error), error.exit_code, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - the last line of defense: whatever it was, CI must not read it as passed
        hint = "" if verbose else " (mlflow-lipschitz --verbose … shows where)"
        return _told(f"unexpected {type(error).__name__}: {_first_line(error)}{hint}", FAILED, verbose=verbose)
    return code if isinstance(code, int) else FAILED


def quiet_libraries() -> None:
    """Keep the log lines of MLflow and its database migrations off a terminal that shows an audit."""
    for name in ("mlflow", "alembic", "great_expectations", "torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore")
    # The one warning that says something about the audit: the engine goes on with less at a time.
    warnings.filterwarnings("always", message="out of GPU memory")


def _told(message: str, code: int, *, verbose: bool) -> int:
    if verbose:
        click.echo(traceback.format_exc(), err=True)
    click.echo(f"error: {message}", err=True)
    return code


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
