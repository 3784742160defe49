"""What pytest is told on its command line and in its configuration: options, ini keys, and what they mean together."""

from __future__ import annotations

import os
import shlex
import sys
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.inifile import ConfigurationError, find_project, unquoted

if TYPE_CHECKING:
    import pytest

    from pytest_agenttrace.budgets.limits import Limit
    from pytest_agenttrace.budgets.project import ProjectBudgets
    from pytest_agenttrace.prices import Prices
    from pytest_agenttrace.replay import Mode, Spending
    from pytest_agenttrace.testrun import Keep

__all__ = [
    "ASCII",
    "OptionError",
    "add_options",
    "ascii_only",
    "baseline_of",
    "budgets_of",
    "cassettes_of",
    "check_options",
    "early_key",
    "keep_of",
    "ledger_of",
    "max_age_of",
    "mode_of",
    "only_looked_at",
    "prices_of",
    "run_limits_of",
    "spending_of",
    "wants_gate",
]


# What xdist's controller tells its workers of its terminal.
ASCII = "agenttrace_ascii"


class OptionError(ValueError):
    """An option or an ini key that cannot be meant."""


def add_options(parser: pytest.Parser) -> None:
    """Every option and ini key. Raises `OptionError` where another plugin has one of their names."""
    group = parser.getgroup("agenttrace", "traced workflows: replay, budgets (pytest-agenttrace)")
    try:
        group.addoption(
            "--agenttrace-record",
            action="store_true",
            default=False,
            help="Call the real Gemini API and record the selected tests' cassettes anew. Needs a key, costs money.",
        )
        group.addoption(
            "--agenttrace-record-missing",
            action="store_true",
            default=False,
            help="Replay what the cassettes hold, and call the real Gemini API for the rest, which is recorded.",
        )
        group.addoption(
            "--agenttrace-record-limit",
            metavar="USD",
            default=None,
            help="While recording, stop before the call that would pass this sum.",
        )
        group.addoption(
            "--agenttrace-adopt",
            action="store_true",
            default=False,
            help="Replay by node and order, whatever the requests' bodies, and write the new requests beside the old "
            "replies: for a client's new version. Calls nobody, costs nothing.",
        )
        group.addoption(
            "--agenttrace-unused",
            action="store_true",
            default=False,
            help="After a run of the whole suite, list the cassettes no test has used. Deletes nothing.",
        )
        group.addoption(
            "--agenttrace-budget",
            metavar="LIMIT",
            action="append",
            default=[],
            help="What all tests together may use: 0.50 or cost=0.50 (USD), tokens=500000. One for each; beats "
            "[tool.agenttrace.budgets.run] of pyproject.toml.",
        )
        group.addoption(
            "--agenttrace-slack",
            action="store_true",
            default=False,
            help="At the end, name the limits of which no test has used half, with what would do.",
        )
        group.addoption(
            "--agenttrace-ledger",
            metavar="FILE",
            default=None,
            help="Write the results of the run as JSON: per test, node and call what ran, what it used and cost.",
        )
        group.addoption(
            "--agenttrace-keep",
            metavar="WHICH",
            default="failed",
            help="Whose MLflow stores are kept, below pytest's temporary root: those of failed tests (failed, the "
            "default), of all that passed or failed (all), or none.",
        )
        group.addoption(
            "--agenttrace-baseline",
            metavar="FILE",
            default=None,
            help="Compare the run with a ledger of an earlier one, and fail on what --agenttrace-fail-on names.",
        )
        group.addoption(
            "--agenttrace-update-baseline",
            action="store_true",
            default=False,
            help="Write the baseline from this run, if it is green. A part of the suite updates its own tests only.",
        )
        group.addoption(
            "--agenttrace-fail-on",
            choices=("breaking", "cost", "request", "informational", "never"),
            default="cost",
            help="The least level of differences that fails (default: cost).",
        )
        group.addoption(
            "--agenttrace-tolerance",
            metavar="PERCENT",
            default="5%",
            help="How much more a node may use in a test before it is told as cost (default: 5%%).",
        )
        parser.addini(
            "agenttrace_cassettes",
            "folder of the cassettes, relative to rootdir (default: cassettes)",
            default="cassettes",
        )
        parser.addini(
            "agenttrace_max_age",
            "whole days after which a recording is named at the end of the run (default: never)",
            # So that pytest's own TOML table takes a number.
            type=_number(),
            default=None,
        )
        parser.addini(
            "agenttrace_prices",
            "file that pins or overrides prices, relative to rootdir (default: none, the table of genai-prices)",
            default="",
        )
        parser.addini(
            "agenttrace_dummy_key",
            "put a dummy GOOGLE_API_KEY in the environment from the start, for models built at import "
            "(un-skips tests that skip without a key)",
            type="bool",
            default=False,
        )
    except ValueError as error:
        raise OptionError(
            f"pytest-agenttrace: another plugin has one of its names: {error}. "
            "Uninstall one of the two, or leave this one out with -p no:agenttrace."
        ) from None


_KEEP: tuple[Keep, ...] = ("failed", "all", "none")
_MODES: dict[str, Mode] = {"record": "record", "record_missing": "missing", "adopt": "adopt"}


def mode_of(config: pytest.Config) -> Mode:
    """What cassettes are opened for; `check_options` has seen that no two are asked for."""
    return next((mode for name, mode in _MODES.items() if config.getoption(f"agenttrace_{name}")), "replay")


def check_options(config: pytest.Config) -> None:
    """Raises `OptionError` for the first option or ini key that cannot be meant."""
    asked = [f"--agenttrace-{name.replace('_', '-')}" for name in _MODES if config.getoption(f"agenttrace_{name}")]
    if len(asked) > 1:
        raise OptionError(f"{' and '.join(asked)} exclude each other: give one of them")
    for name in ("ledger", "baseline"):
        _check_rootdir(config, f"--agenttrace-{name}", config.getoption(f"agenttrace_{name}"))
    cassettes_of(config)
    max_age_of(config)
    early_key(config)
    ledger_of(config)
    keep_of(config)
    baseline_of(config)
    limit = config.getoption("agenttrace_record_limit")
    if limit is None:
        return
    if mode_of(config) not in ("record", "missing"):
        raise OptionError("--agenttrace-record-limit: nothing is recorded; add --agenttrace-record-missing")
    try:
        usd = Decimal(limit)
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0:
        raise OptionError(f"--agenttrace-record-limit: {limit!r} is no sum of USD, such as 0.50")


def _check_rootdir(config: pytest.Config, option: str, value: str | None) -> None:
    """pytest looks for its rootdir before it knows a plugin's options: what follows one after a space, and exists, is a
    place of tests to it. Raises `OptionError` where another project's configuration, or none, is read for that."""
    if not value or config.option.rootdir or config.option.inifilename:
        return
    given = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.invocation_params.args]
    if (option, value) not in pairwise(map(str, given)):
        return
    here = config.invocation_params.dir
    path = here / value
    named = config.args if config.args_source == config.ArgsSource.ARGS else []
    places = [here / arg.partition("::")[0] for arg in named]
    folders = [place if place.is_dir() else place.parent for place in places if place.exists()]
    home = Path(os.path.commonpath(folders or [here]))
    if not path.exists() or path.parent.is_relative_to(home):
        return
    try:
        meant = find_project(home).file
    except ConfigurationError:
        return
    if meant is None or meant != config.inipath:
        raise OptionError(
            f"{option} {value}: pytest takes the file for a place of tests, and its rootdir is {config.rootpath}:\n"
            f"  write {option}={value}"
        )


def _number() -> Any:
    """The type of an ini key that is a whole number; pytest knows one since 8.4."""
    import pytest

    return "int" if pytest.version_tuple[:2] >= (8, 4) else "string"


def cassettes_of(config: pytest.Config) -> str:
    """The folder of the cassettes, relative to rootdir. Raises `OptionError` where something else is there."""
    name = unquoted(_ini(config, "agenttrace_cassettes")) or "cassettes"
    if (config.rootpath / name).exists() and not (config.rootpath / name).is_dir():
        raise OptionError(f"agenttrace_cassettes: {name} is a file: name the folder of the cassettes")
    return name


def _ini(config: pytest.Config, key: str) -> str:
    """The text of an ini key, "" where it is not given; pytest's own words where it has another type."""
    try:
        value = config.getini(key)
    except Exception as error:  # which kind depends on pytest's version
        raise OptionError(str(error)) from None
    return "" if value is None else str(value).strip()


def keep_of(config: pytest.Config) -> Keep:
    """Whose stores are kept: "failed", "all" or "none"."""
    asked = config.getoption("agenttrace_keep")
    for known in _KEEP:
        if asked == known:
            return known
    raise OptionError(f"--agenttrace-keep: {asked!r} is none of {', '.join(_KEEP)}")


def max_age_of(config: pytest.Config) -> int | None:
    """Days a recording may be old; None for any."""
    try:
        days = _ini(config, "agenttrace_max_age")
    except OptionError as error:
        raise OptionError(f"agenttrace_max_age is no whole number of days: {error}") from None
    if days and not days.isdecimal():
        raise OptionError(f"agenttrace_max_age: {days!r} is no whole number of days")
    return int(days) if days else None


def ledger_of(config: pytest.Config) -> Path | None:
    """The file that the run's ledger is written to; None where it is not. Raises `OptionError`."""
    given = config.getoption("agenttrace_ledger")
    if given is None:
        return None
    path: Path = config.invocation_params.dir / given
    if not given or path.is_dir():
        raise OptionError(f"--agenttrace-ledger: {given!r} is no file to write: name one, such as ledger.json")
    from pytest_agenttrace.ledger import not_ours

    if (why := not_ours(path)) is not None:
        raise OptionError(f"--agenttrace-ledger: {given} {why}")
    baseline = config.getoption("agenttrace_baseline")
    if baseline and os.path.realpath(path) == os.path.realpath(config.invocation_params.dir / baseline):
        raise OptionError(f"--agenttrace-ledger and --agenttrace-baseline name one file, {given}: give each its own")
    return path


def baseline_of(config: pytest.Config) -> Path | None:
    """The file of the baseline; None where nothing is compared. Raises `OptionError`."""
    given, update = config.getoption("agenttrace_baseline"), config.getoption("agenttrace_update_baseline")
    if given is None:
        if update:
            raise OptionError("--agenttrace-update-baseline: of which file? Name it with --agenttrace-baseline FILE")
        return None
    path: Path = config.invocation_params.dir / given
    if not given or path.is_dir():
        raise OptionError(f"--agenttrace-baseline: {given!r} is no file: name one, such as baseline.json")
    if not path.exists() and not update and not only_looked_at(config):
        raise OptionError(
            f"--agenttrace-baseline: no file {given}: write it with\n"
            f"  pytest --agenttrace-baseline {given} --agenttrace-update-baseline"
        )
    return path


def wants_gate(config: pytest.Config) -> bool:
    """Whether the run as a whole is compared, or told to GitHub, whose steps have these variables."""
    told = bool(os.environ.get("GITHUB_STEP_SUMMARY")) or os.environ.get("GITHUB_ACTIONS") == "true"
    return told or baseline_of(config) is not None


def only_looked_at(config: pytest.Config) -> bool:
    """Whether no test is to run: `--help`, `--collect-only` and their like."""
    asked = (
        "help",
        "version",
        "collectonly",
        "markers",
        "showfixtures",
        "show_fixtures_per_test",
        "setuponly",
        "setupplan",
    )
    return any(getattr(config.option, name, False) for name in asked)


def prices_of(config: pytest.Config) -> Prices | None:
    """The project's own file of prices; None where there is none. Raises `OptionError`."""
    name = unquoted(_ini(config, "agenttrace_prices"))
    if not name:
        return None
    from pytest_agenttrace.prices import PricesError, read_prices

    try:
        return read_prices(config.rootpath / name)
    except PricesError as error:
        raise OptionError(f"agenttrace_prices: {error}") from None


def budgets_of(config: pytest.Config) -> ProjectBudgets | None:
    """The budgets in pyproject.toml; None where there are none. Raises `OptionError` with all that is wrong."""
    from pytest_agenttrace.projectfile import ProjectError, read_project

    try:
        file = read_project(config.rootpath)
        if file is None:
            return None
        from pytest_agenttrace.budgets.project import read_budgets

        return read_budgets(file)
    except ProjectError as error:
        raise OptionError(str(error)) from None


def run_limits_of(config: pytest.Config, budgets: ProjectBudgets | None) -> list[Limit]:
    """The budget of the whole run: the option's for each metric, else the project's. Raises `OptionError`."""
    given = config.getoption("agenttrace_budget")
    if not given:
        return [] if budgets is None else list(budgets.run)
    from pytest_agenttrace.budgets.limits import BudgetError, closest
    from pytest_agenttrace.budgets.whole_run import parse_run_budget

    try:
        return closest([parse_run_budget(given), () if budgets is None else budgets.run])
    except BudgetError as error:
        raise OptionError("\n".join(f"--agenttrace-budget: {problem}" for problem in error.problems)) from None


def spending_of(config: pytest.Config, parts: Path) -> Spending | None:
    """What the run may spend on recording, added up in a folder of its own; None for any sum."""
    from pytest_agenttrace.replay import Spending

    limit = config.getoption("agenttrace_record_limit")
    return None if limit is None else Spending(Decimal(limit), parts / "spent")


def ascii_only(config: pytest.Config) -> bool:
    """Whether the terminal cannot show the lines that trees are drawn with. xdist's workers are told."""
    given = getattr(config, "workerinput", None)
    if given is not None:
        return bool(given.get(ASCII, False))
    encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"
    try:
        "├└│─".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def early_key(config: pytest.Config) -> bool:
    """Whether a dummy key stands in from the start. Raises `OptionError` for what is neither true nor false."""
    try:
        return bool(config.getini("agenttrace_dummy_key"))
    except Exception as error:
        raise OptionError(f"agenttrace_dummy_key is neither true nor false: {error}") from None
