"""The commands of `agenttrace` that are about workflows in YAML."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["validate"]


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> None:
    """Check workflow FILEs: nothing is run, and nothing but the files is read.

    Prints a line for each valid file on stdout, and everything that is wrong with the others on stderr, each with its
    line and column. Exits with 0 where all are valid, 1 where one is not, 2 where the command is used wrongly.
    """
    from pytest_agenttrace.workflow import ConfigError, load_config

    wrong = 0
    for file in files:
        try:
            config = load_config(file)
        except ConfigError as error:
            wrong += 1
            click.echo(str(error), err=True)
            continue
        parts = [_counted(len(config.nodes), "node"), _counted(len(config.edges), "edge")]
        parts.append(_counted(len(config.state.fields), "state field"))
        click.echo(f"{file}: valid: {', '.join(parts)}")
        for note in config.notes:
            click.echo(f"{note}")
    if wrong:
        raise SystemExit(1)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
