"""`mlflow-lipschitz`: options and arguments only; what a command does is in commands.py, imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlflow_lipschitz import __version__
from mlflow_lipschitz.cli.failures import exit_code_of, quiet_libraries

_POLICY = click.Path(dir_okay=False, path_type=Path)
_tracking_uri = click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow tracking store; default: MLFLOW_TRACKING_URI, else MLflow's own default.",
)
_trust_pickle = click.option(
    "--trust-pickle", is_flag=True, help="Load pickled models. Loading one runs whatever code it holds."
)

_FILE = click.Path(dir_okay=False, path_type=Path)
_sign_key = click.option(
    "--sign-key",
    type=_FILE,
    help="Private key that signs the attestation; default: LIPSCHITZ_SIGNING_KEY, else UNSIGNED.",
)
_trusted_keys = click.option(
    "--trusted-key",
    "trusted_keys",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Public key, or folder of *.pub files, whose signatures count; repeatable. Default: LIPSCHITZ_TRUSTED_KEYS.",
)
_revoked = click.option(
    "--revoked", type=_FILE, multiple=True, help="Revocation list; repeatable. LIPSCHITZ_REVOKED_KEYS is read as well."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mlflow-lipschitz")
@click.option("--verbose", is_flag=True, help="Show tracebacks and the log lines of MLflow.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """Certified bounds as an MLflow gate. Exit codes: 0 passed, 1 blocked, 2 usage or policy error, 3 audit failed."""
    if not verbose:
        context.with_resource(quiet_libraries())


@cli.command()
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default="mlflow-lipschitz-demo")
def demo(directory: Path) -> int:
    """Train, register, audit and promote two versions of a small model; one of them is blocked."""
    from mlflow_lipschitz.cli import commands

    return commands.demo(directory)


@cli.command()
@click.argument("model_uri")
@click.option("--policy", type=_POLICY, required=True, help="Policy file (YAML).")
@click.option("--data", type=click.Path(path_type=Path), help="Rows to audit: .csv, .parquet, .json, .npz.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--format", "style", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep all artifacts in this directory.")
@click.option("--resume", is_flag=True, help="Go on from the finished points in --out.")
@click.option("--chunk-size", type=click.IntRange(min=1), help="Rows worked on at a time; bounds the memory.")
@_trust_pickle
@_sign_key
@_trusted_keys
@_revoked
@_tracking_uri
def audit(**options: Any) -> int:
    """Audit MODEL_URI (models:/name/3, models:/name@alias, runs:/…) against a policy."""
    from mlflow_lipschitz.cli import commands

    return commands.audit(commands.AuditRequest(**options))


@cli.command()
@click.argument("model_uri")
@click.option("--alias", help="Alias to set on the version, such as champion.")
@click.option("--stage", help="Stage to move the version to (deprecated in MLflow).")
@click.option("--to", "target", metavar="NAME", help="Registered model to copy the version to.")
@click.option("--policy", type=_POLICY, help="Policy that has to have been passed; without it, any policy will do.")
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@_trusted_keys
@_revoked
@_tracking_uri
def promote(**options: Any) -> int:
    """Promote MODEL_URI if, and only if, a passed audit of exactly these files is on record."""
    from mlflow_lipschitz.cli import commands

    return commands.promote(commands.PromoteRequest(**options))


@cli.command()
@click.argument("target", metavar="ATTESTATION_OR_MODEL_URI")
@click.option("--policy", type=_POLICY, help="Policy that has to have been passed; without it, any policy will do.")
@click.option("--allow-unsigned", is_flag=True, help="Say 0 although no signature could be checked, if all else holds.")
@click.option("--recheck-certificates", is_flag=True, help="Prove every bound again, with the independent checker.")
@_trusted_keys
@_revoked
@_tracking_uri
def verify(**options: Any) -> int:
    """Check an attestation: signature, revocation, identity, files, policy, expiry, evidence; one line for each.

    TARGET is an attestation.json, the folder of an audit, or a registered version, whose files are then hashed anew.
    Exit codes: 0 everything holds, 1 something does not or is not signed by a trusted key, 2 usage error, 3 unreadable store.
    """
    from mlflow_lipschitz.cli import signing

    return signing.verify(signing.VerifyRequest(**options))


@cli.group()
def keys() -> None:
    """Keys that sign attestations."""


@keys.command("new")
@click.option(
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="Folder; default: this one.",
)
def new_keys(directory: Path) -> int:
    """Make an Ed25519 key pair: a private file to sign with, a public one to trust."""
    from mlflow_lipschitz.cli import signing

    return signing.new_keys(directory)


@cli.group()
def policy() -> None:
    """Validate, propose and describe policy files."""


@policy.command()
@click.argument("paths", metavar="PATH...", type=_POLICY, nargs=-1, required=True)
def check(paths: tuple[Path, ...]) -> int:
    """Validate policy files; every error at once, with its line."""
    from mlflow_lipschitz.cli import commands

    return commands.policy_check(paths)


@policy.command()
@click.argument("model_uri")
@click.option("--data", type=click.Path(path_type=Path), help="Rows to measure on; default: the model's input example.")
@click.option("--points", type=click.IntRange(min=1), default=100, show_default=True, help="How many rows to measure.")
@click.option("--output", help="Index or name of the judged output, or margin; default: the only one, else margin.")
@click.option("--out", type=_FILE, help="Write the policy to this new file; default: print it.")
@_trust_pickle
@_tracking_uri
def init(**options: Any) -> int:
    """Propose a policy for MODEL_URI: every threshold measured, with a comment that says where it comes from.

    A sample of the data is bounded as an audit would bound it; where a champion of the model has passed an audit, its policy and
    its bounds are what thresholds follow.
    """
    from mlflow_lipschitz.cli import proposing

    return proposing.policy_init(proposing.PolicyInitRequest(**options))


@policy.command()
def schema() -> int:
    """Print the JSON Schema of policy files, for editors."""
    from mlflow_lipschitz.cli import commands

    return commands.policy_schema()


@cli.command()
@click.argument("model_uri")
@_trust_pickle
@_tracking_uri
def support(model_uri: str, trust_pickle: bool, tracking_uri: str | None) -> int:
    """List the nodes of MODEL_URI: bounded exactly, by a relaxation, or not at all."""
    from mlflow_lipschitz.cli import commands

    return commands.support(commands.ModelRequest(model_uri, trust_pickle, tracking_uri))


@cli.command("verify-property")
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("property_file", metavar="PROPERTY", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write sat, unsat or unknown, and the inputs."
)
@click.option("--chunk-size", type=click.IntRange(min=1), help="Linear forms in flight; bounds the memory.")
def verify_property(**options: Any) -> int:
    """Prove a VNN-LIB PROPERTY of an ONNX MODEL, or find an input that contradicts it.

    Exit codes: 0 certified, 1 violated, 2 usage error, 3 undecided or failed.
    """
    from mlflow_lipschitz.cli import properties

    return properties.verify_property(properties.PropertyRequest(**options))


@cli.command()
@click.option("--policy", type=_POLICY, required=True, help="Policy that new versions are audited under.")
@click.option("--data", type=click.Path(path_type=Path), help="Rows to audit; default: each model's input example.")
@click.option("--alias", "aliases", multiple=True, help="Alias that is taken back from unaudited versions; repeatable.")
@click.option("--models", default="*", show_default=True, help="Registered models to look after (*, ?).")
@click.option("--queue", type=_FILE, default="lipschitz-queue.db", show_default=True, help="Where deliveries are kept.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5055, show_default=True)
@click.option("--allow-unsigned", is_flag=True, help="Without keys, for trying out: unsigned attestations count.")
@_sign_key
@_trusted_keys
@_revoked
@_tracking_uri
def serve(**options: Any) -> int:
    """Receive MLflow's webhooks: audit new versions, take guarded aliases back from versions no audit vouches for.

    LIPSCHITZ_WEBHOOK_SECRET holds the secret of the webhook.
    """
    from mlflow_lipschitz.cli import serving

    return serving.serve(serving.ServeRequest(**options))


@cli.command()
@click.argument("check_type", required=False)
def explain(check_type: str | None) -> int:
    """Say what a check's number means and does not mean; without an argument, list the checks."""
    from mlflow_lipschitz.cli import commands

    return commands.explain(check_type)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises, never 0 on an error."""
    verbose = "--verbose" in arguments
    return exit_code_of(
        lambda: cli.main(args=list(arguments), prog_name="mlflow-lipschitz", standalone_mode=False), verbose=verbose
    )


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
