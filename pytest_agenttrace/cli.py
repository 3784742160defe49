"""The command `agenttrace`: what is asked of recordings without running a test. Thin: rooms below do the work."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_agenttrace.diffing import diff
from pytest_agenttrace.inifile import ConfigurationError, Project, find_project
from pytest_agenttrace.workflow_commands import validate

if TYPE_CHECKING:
    from pytest_agenttrace.calls import ModelCall
    from pytest_agenttrace.prices import Comparison, Row

__all__ = ["main"]

_CASSETTES = click.argument("cassettes", nargs=-1, type=click.Path(exists=True, path_type=Path))


class _Commands(click.Group):
    """Says in a line what cannot be said: a full disk, a closed terminal, letters that a terminal does not have."""

    def invoke(self, ctx: click.Context) -> object:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # click's own to tell
                raise
            named = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{named}{error.strerror or error}") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-agenttrace", prog_name="agenttrace")
def main() -> None:
    """Recorded agent runs: what they cost, and would cost."""


@main.group()
def prices() -> None:
    """What recorded calls cost: pinned, and compared."""


@prices.command()
@_CASSETTES
@click.option("--file", "given", type=click.Path(path_type=Path, dir_okay=False), help="The file of prices to write.")
def lock(cassettes: tuple[Path, ...], given: Path | None) -> None:
    """Write the prices in force when CASSETTES (files, folders; by default the project's own) were recorded.

    What the file holds is never changed, so entries by hand stay; to renew one, delete it and lock again.
    """
    from pytest_agenttrace.prices import PricesError, used_by
    from pytest_agenttrace.prices import lock as write

    project = _project()
    named = project.get("agenttrace_prices", "")
    file = given if given is not None else project.root / (named or "prices.yaml")
    calls = list(_calls(_files(cassettes, project)))
    try:
        done = write(file, [used_by(call) for call in calls])
    except PricesError as error:
        raise click.UsageError(str(error)) from None
    models = "1 model" if done.models == 1 else f"{done.models} models"
    click.echo(f"{_shown(file)}: {models}, {done.added or 'nothing'} added")
    for names in done.unpriced:
        click.echo(f"no price to pin for {names}")
    if not named:
        click.echo(f'It holds once pytest\'s configuration says: agenttrace_prices = "{_below(file, project.root)}"')


@prices.command()
@_CASSETTES
@click.option("--model", "models", multiple=True, metavar="NEW | OLD=NEW", help="Another model, for all or for one.")
@click.option("--date", help='At the prices of this day: 2026-01-31, or "today".')
@click.option("--json", "as_json", is_flag=True, help="As JSON, amounts as text.")
def compare(cassettes: tuple[Path, ...], models: tuple[str, ...], date: str | None, as_json: bool) -> None:
    """What CASSETTES (files, folders; by default the project's own) have cost, and would cost on another model or
    another day, by node and model. Without --model and --date: today."""
    from pytest_agenttrace.prices import PricesError, price_call, read_prices
    from pytest_agenttrace.prices import compare as compared
    from pytest_agenttrace.repricing import what_if

    project = _project()
    calls = list(_calls(_files(cassettes, project)))
    named = project.get("agenttrace_prices", "")
    try:
        instead = what_if(_models(models), date if date is not None or models else "today")
        instead.check(calls)
        price = read_prices(project.root / named) if named else price_call
    except PricesError as error:
        raise click.UsageError(str(error)) from None
    except (LookupError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    found = compared(((call, instead.of(call)) for call in calls), price)
    click.echo("\n".join(_as_json(found) if as_json else _as_text(found)))


@main.group()
def report() -> None:
    """What pytest --agenttrace-ledger has written."""


@report.command()
@click.argument("ledgers", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write."
)
def merge(ledgers: tuple[Path, ...], output: Path) -> None:
    """Make one ledger of the LEDGERS of a suite's shards, each named once.

    Exit codes: 0, 1 where all tests together have exceeded the budget of the whole run (the ledger is written), 2 for
    what cannot be meant.
    """
    from pytest_agenttrace.ledger import LedgerError, read_ledger, write_ledger
    from pytest_agenttrace.ledger import merge as merged
    from pytest_agenttrace.report import exceeded, overrun

    files = {path.resolve(): path for path in ledgers}
    if len(files) < len(ledgers):
        raise click.UsageError("a ledger is named twice")
    try:
        whole = merged({path: read_ledger(path) for path in files.values()})
        write_ledger(output, whole)
    except LedgerError as error:
        raise click.UsageError(str(error)) from None
    tests = f"{len(whole.tests)} test{'' if len(whole.tests) == 1 else 's'}"
    click.echo(f"{_shown(output)}: {tests} of {len(ledgers)} ledger{'' if len(ledgers) == 1 else 's'}")
    over = [f"whole {overrun(budget)}" for budget in whole.run.budgets if exceeded(budget)]
    for line in over:
        click.echo(line, err=True)
    if over:
        raise SystemExit(1)


main.add_command(diff)
main.add_command(validate)


def _project() -> Project:
    try:
        return find_project(Path.cwd())
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _models(given: tuple[str, ...]) -> str | dict[str, str] | None:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [pair.partition("=") for pair in given]
    if any(not (old and equals and new) for old, equals, new in pairs):
        raise click.UsageError("--model: give one model for all, or OLD=NEW for each")
    named = [old for old, _, _ in pairs]
    if len(set(named)) < len(named):
        twice = next(old for old in named if named.count(old) > 1)
        raise click.UsageError(f"--model: {twice} is replaced twice")
    return {old: new for old, _, new in pairs}


def _files(given: Sequence[Path], project: Project) -> list[Path]:
    """Cassettes: the files given, and those in the folders given or in the project's own."""
    folder = project.root / project.get("agenttrace_cassettes", "cassettes")
    if not given and not folder.is_dir():
        raise click.UsageError(f"no folder {_shown(folder)}: name the cassettes, or run this in the project's folder")
    found: dict[Path, None] = {}
    for path in given or (folder,):
        inner = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        found |= dict.fromkeys(file for file in inner if not file.name.endswith(".partial.yaml"))
    if not found:
        raise click.UsageError(f"no cassettes in {', '.join(map(_shown, given or (folder,)))}")
    return list(found)


def _calls(files: Sequence[Path]) -> Iterator[ModelCall]:
    """The answered calls to a model that cassettes hold; counting tokens is free."""
    from pytest_agenttrace.calls import ModelCall
    from pytest_agenttrace.replay import CassetteError, call_of, read_recordings

    for file in files:
        try:
            recorded = read_recordings(file) or ()
        except CassetteError as error:
            raise click.UsageError(str(error)) from None
        for call in (call_of(entry) for entry in recorded if entry.request.endpoint is not None):
            if call.answered and call.model is not None and call.endpoint.method != "countTokens":
                yield ModelCall(call.model, call.node, call.caller.namespace, call.usage, call=call)


def _as_json(found: Comparison) -> list[str]:
    rows = [_plain(row) for row in found.rows]
    total = {name: value for name, value in _plain(found.total).items() if name not in ("node", "model", "as")}
    return [json.dumps({"rows": rows, "total": total, "unknown": list(found.unknown)}, indent=2, ensure_ascii=False)]


def _plain(row: Row) -> dict[str, object]:
    money = {"before": row.before, "after": row.after, "difference": row.difference}
    return {
        "node": row.node,
        "model": row.model,
        "as": row.priced_as,
        "calls": row.calls,
        "tokens": row.tokens,
        **{name: None if amount is None else format(amount, "f") for name, amount in money.items()},
    }


def _as_text(found: Comparison) -> Iterator[str]:
    """Columns: words to the left, numbers to the right; `-` is unknown."""
    head = ("node", "model", "calls", "tokens", "recorded", "then", "difference")
    table = [head, *(_cells(row) for row in found.rows), ("total", "", *_cells(found.total)[2:])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        sized = list(zip(line, widths, strict=True))
        words, numbers = sized[:2], sized[2:]
        cells = [*(cell.ljust(width) for cell, width in words), *(cell.rjust(width) for cell, width in numbers)]
        yield "  ".join(cells).rstrip()
    hints: dict[str, None] = {}
    for text in found.unknown:
        said, _, hint = text.partition("\n")
        yield said
        hints |= dict.fromkeys([hint] if hint else [])
    # The lines to add are the same for each node.
    yield from hints


def _cells(row: Row) -> tuple[str, ...]:
    from pytest_agenttrace.usage import format_tokens, format_usd

    model = row.model or "-"
    amounts = ("-" if amount is None else format_usd(amount) for amount in (row.before, row.after))
    change = row.difference
    sign = "+" if change is not None and change > 0 else ""
    return (
        row.node or "(no node)",
        model if row.priced_as == row.model else f"{model} as {row.priced_as}",
        str(row.calls),
        "-" if row.tokens is None else format_tokens(row.tokens),
        *amounts,
        "-" if change is None else f"{sign}{format_usd(change)}",
    )


def _below(file: Path, root: Path) -> str:
    absolute = file.absolute()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _shown(path: Path) -> str:
    return _below(path, Path.cwd())


if __name__ == "__main__":
    main()
