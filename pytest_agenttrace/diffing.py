"""The command `agenttrace diff`."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import click

from pytest_agenttrace.ledger import LedgerError, read_ledger
from pytest_agenttrace.placing import put_text
from pytest_agenttrace.projectfile import ProjectError
from pytest_agenttrace.report import (
    FAIL_ON,
    TOLERANCE,
    FailOn,
    Verdict,
    as_json,
    as_markdown,
    as_text,
    compare,
    judge,
    read_tolerance,
    traffic_of,
)

__all__ = ["diff"]

_LEDGER = click.Path(path_type=Path)


def _tolerance(context: click.Context, option: click.Parameter, value: str) -> Decimal:
    try:
        return read_tolerance(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


@click.command()
@click.argument("old", type=_LEDGER)
@click.argument("new", type=_LEDGER)
@click.option("--fail-on", type=click.Choice(FAIL_ON), default="cost", show_default=True, help="What exits with 1.")
@click.option(
    "--tolerance", callback=_tolerance, default=f"{TOLERANCE}%", show_default=True, help="Growth that is forgiven."
)
@click.option(
    "--format",
    "how",
    type=click.Choice(("text", "json", "markdown")),
    default="text",
    show_default=True,
    help="What is printed.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The file to write it to.")
@click.option("--verbose", "-v", is_flag=True, help="Every test by name, all news.")
def diff(
    old: Path, new: Path, fail_on: FailOn, tolerance: Decimal, how: str, output: Path | None, verbose: bool
) -> None:
    """Compare the ledgers OLD and NEW, per test and node.

    Exit codes: 0 nothing at or above --fail-on, 1 findings (or a run that nobody can vouch for), 2 for what cannot be
    meant.
    """
    if output is not None and output.resolve() in (old.resolve(), new.resolve()):
        raise click.UsageError(f"--output {output}: is one of the ledgers compared: name another file")
    try:
        verdict = judge(compare(read_ledger(old), read_ledger(new), tolerance), fail_on)
    except LedgerError as error:
        raise click.UsageError(str(error)) from None
    text = _shown(verdict, how, verbose)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            put_text(output, text)
        except OSError as error:
            raise click.UsageError(f"{output}: cannot be written: {error.strerror or error}") from None
        click.echo(verdict.text)
    sys.exit(1 if verdict.failed else 0)


def _shown(verdict: Verdict, how: str, verbose: bool) -> str:
    if how == "json":
        return as_json(verdict)
    if how == "markdown":
        try:
            return as_markdown(verdict, traffic_of(Path.cwd()))
        except ProjectError as error:
            raise click.UsageError(str(error)) from None
    return "\n".join(as_text(verdict, all_names=verbose)) + "\n"
