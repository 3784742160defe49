"""Two ledgers compared: tests paired, each compared in all that the ledger holds, one cause told once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from pytest_agenttrace.ledger import Ledger, TestFacts
from pytest_agenttrace.report.cost import added, known_part, rows_of, total_of
from pytest_agenttrace.report.differences import LEVELS, Comparison, Difference, Found, Row, Spent, Tests
from pytest_agenttrace.report.growth import growth, judged_rows
from pytest_agenttrace.report.limits import budgets
from pytest_agenttrace.report.renaming import renamed, renamed_nodes, renamed_tests
from pytest_agenttrace.report.requests import Requests
from pytest_agenttrace.report.structure import FAILING, deeds, of_the_run, outcomes, stayed_away, traced
from pytest_agenttrace.report.wording import counted, listed, signed_tokens, signed_usd, tokens, usd
from pytest_agenttrace.usage import exact_decimals

__all__ = ["TOLERANCE", "compare", "sums"]

# Percent that a node may use more in a test. Growth within it is told all the same.
TOLERANCE = Decimal(5)
_NAMES = 5


@dataclass(frozen=True, slots=True)
class _Paired:
    """Tests that both ledgers have, by their new names; and those that only one has."""

    old: Mapping[str, TestFacts]
    new: Mapping[str, TestFacts]
    names: Mapping[str, str]
    gone: tuple[str, ...]
    come: tuple[str, ...]


def compare(old: Ledger, new: Ledger, tolerance: Decimal = TOLERANCE) -> Comparison:
    """What is otherwise in the new ledger; `tolerance` in percent."""
    pairs = _pair(old, new)
    found: dict[Found, list[str]] = {}
    requests = Requests()
    rows: list[Row] = []
    judged: list[Row] = []
    for test, was in pairs.old.items():
        now = pairs.new[test]
        names = renamed_nodes(was, now)
        for before, other in names.items():
            if before.rpartition("|")[0] not in names:
                text = f"node {before!r} is {other!r} now, and did what it did"
                found.setdefault(Found("breaking", "node renamed", other, text), []).append(test)
        was = renamed(was, names)
        of_both = rows_of(test, was, now) if _comparable(was, now) else []
        for one in (*outcomes(was, now), *(_inside(was, now) if of_both else ())):
            found.setdefault(one, []).append(test)
        if of_both:
            rows += of_both
            judged += [row for row in judged_rows(of_both) if not _fell_by_failing(row, now)]
            requests.compare(test, was, now)
            for one in known_part(was, now, tolerance):
                found.setdefault(one, []).append(test)
    gone, not_run = _gone(pairs, old, new)
    differences = [
        *(_of_tests(one, tests, rows) for one, tests in found.items()),
        *gone,
        *(_of_run(one) for one in budgets(old.run.budgets, new.run.budgets)),
        *(_of_run(one) for one in of_the_run(old.run, new.run)),
        *growth(judged, pairs.old, pairs.new, tolerance),
        *requests.differences(),
        *_told(old, new, pairs),
    ]
    total, nodes = sums(rows)
    return Comparison(
        1,
        tolerance,
        Tests(len(pairs.old), len(pairs.come), len(pairs.gone) - not_run, not_run),
        tuple(_obstacles(old, new, pairs)),
        tuple(sorted(differences, key=lambda difference: LEVELS.index(difference.level))),
        total,
        nodes,
        tuple(rows),
    )


def _pair(old: Ledger, new: Ledger) -> _Paired:
    names = renamed_tests(old.tests, new.tests)
    was = {names.get(name, name): facts for name, facts in old.tests.items()}
    return _Paired(
        {name: facts for name, facts in was.items() if name in new.tests},
        new.tests,
        names,
        tuple(name for name in was if name not in new.tests),
        tuple(name for name in new.tests if name not in was),
    )


def _comparable(old: TestFacts, new: TestFacts) -> bool:
    """A test that was skipped has no numbers; one that is not traced any more is told as that."""
    return "skipped" not in (old.outcome, new.outcome) and (traced(new) or not traced(old))


def _inside(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    yield from deeds(old, new)
    yield from budgets(old.budgets, new.budgets, ended=new.outcome not in FAILING)


def _fell_by_failing(row: Row, new: TestFacts) -> bool:
    """Whether a node used less because its test failed: no good news."""
    less = row.old is not None and row.new is not None and (row.new.tokens or 0) < (row.old.tokens or 0)
    return new.outcome in FAILING and less


def _of_tests(found: Found, tests: list[str], rows: Iterable[Row]) -> Difference:
    """With what it costs, where a node came or went."""
    evidence = list(found.evidence)
    if found.kind in ("node appeared", "node vanished"):
        of_it = [row for row in rows if row.node == found.node and row.test in tests]
        spent = added(row.new or row.old or Spent(None, total_of(TestFacts("run")).usage, None, 0) for row in of_it)
        sign = 1 if found.kind == "node appeared" else -1
        if spent.tokens != 0:
            count = None if spent.tokens is None else sign * spent.tokens
            cost = None if spent.cost is None else sign * spent.cost
            evidence.append(f"{signed_tokens(count)} tokens, {signed_usd(cost)}")
    return Difference(found.level, found.kind, found.node, found.text, tuple(tests), tuple(evidence))


def _of_run(found: Found) -> Difference:
    return Difference(found.level, found.kind, found.node, found.text, (), found.evidence)


def _gone(pairs: _Paired, old: Ledger, new: Ledger) -> tuple[list[Difference], int]:
    """Tests that are not there any more, unless the run was not to come to them; with the number of the latter."""
    away = [name for name in pairs.gone if stayed_away(name, old.tests[name], new.run)]
    broken = [name for name in pairs.gone if name not in away and name.partition("::")[0] in new.run.broken]
    left = [name for name in pairs.gone if name not in away and name not in broken]
    found = []
    if left:
        found.append(
            Difference("breaking", "test vanished", None, f"{counted(len(left), 'test')} vanished", tuple(left))
        )
    if broken:
        text = f"{counted(len(broken), 'test')} vanished with files that could not be collected"
        found.append(Difference("breaking", "test vanished", None, text, tuple(broken)))
    if away:
        why = new.run.part or new.run.stopped or "collected, and not run"
        text = f"{counted(len(away), 'test')} not run: {why}"
        found.append(Difference("informational", "test not run", None, text, tuple(away)))
    return found, len(away)


def _told(old: Ledger, new: Ledger, pairs: _Paired) -> Iterator[Difference]:
    """What is only news: new tests and names, versions, recordings of another day."""
    if pairs.come:
        spent = added(total_of(new.tests[name]) for name in pairs.come)
        text = f"{counted(len(pairs.come), 'new test')}: {tokens(spent.tokens)} tokens, {usd(spent.cost)}"
        yield Difference("informational", "test new", None, text, pairs.come)
        failed = tuple(name for name in pairs.come if new.tests[name].outcome in FAILING)
        if failed:
            text = f"{counted(len(failed), 'new test')} failed"
            yield Difference("breaking", "outcome", None, text, failed)
        for name in pairs.come:
            for found in budgets((), new.tests[name].budgets):
                yield Difference(found.level, found.kind, found.node, found.text, (name,), found.evidence)
    if pairs.names:
        each = [f"{name} is {other} now" for name, other in pairs.names.items()]
        more = [f"and {len(each) - _NAMES} more"] if len(each) > _NAMES else []
        text = each[0] if len(each) == 1 else f"{counted(len(each), 'test')} renamed"
        evidence = (*each[:_NAMES], *more) if len(each) > 1 else ()
        yield Difference("informational", "test renamed", None, text, tuple(pairs.names.values()), evidence)
    for package in dict.fromkeys([*old.versions, *new.versions]):
        was, now = old.versions.get(package), new.versions.get(package)
        if was != now:
            text = f"{package} {was or '(not there)'} -> {now or '(not there)'}"
            yield Difference("informational", "version", None, text, (), (), was, now)
    again = tuple(name for name, facts in pairs.old.items() if _days(facts) != _days(pairs.new[name]) != set())
    if again:
        yield Difference("informational", "recorded anew", None, f"{counted(len(again), 'test')} recorded anew", again)
    if old.run.stopped is not None or old.run.part is not None:
        text = f"the old run was not whole: {old.run.stopped or old.run.part}"
        yield Difference("informational", "old run", None, text, ())


def _days(facts: TestFacts) -> set[str]:
    return {call.priced_at for call in facts.calls if call.priced_at is not None}


def _obstacles(old: Ledger, new: Ledger, pairs: _Paired) -> Iterator[str]:
    """Why nobody can vouch for the new run."""
    if not old.tests:
        yield "the old ledger has no tests: nothing to compare with"
    elif not new.tests:
        yield "the new ledger has no tests"
    elif not pairs.old:
        yield "the new ledger has none of the old one's tests"
    elif all(pairs.new[test].outcome == "skipped" for test in pairs.old) and any(
        facts.outcome != "skipped" for facts in pairs.old.values()
    ):
        yield "all tests were skipped in the new run: nothing to compare"
    if new.run.stopped is not None:
        left = counted(len(new.run.not_run), "test")
        yield f"the new run was stopped ({new.run.stopped}): {left} not run, nobody can vouch for them"
    if new.run.broken:
        yield f"files that could not be collected: {listed(new.run.broken, _NAMES)}"


def sums(rows: Iterable[Row]) -> tuple[Row, tuple[Row, ...]]:
    """The sum of all tests, and one for each node, in the order in which they are met."""
    groups: dict[str | None, list[Row]] = {None: []}
    for row in rows:
        groups.setdefault(row.node, []).append(row)
    made = [_sum(node, of_it) for node, of_it in groups.items()]
    return made[0], tuple(made[1:])


def _sum(node: str | None, rows: list[Row]) -> Row:
    was, now = ([spent for row in rows if (spent := getattr(row, side)) is not None] for side in ("old", "new"))
    parts = [[row.by_tokens for row in rows], [row.by_prices for row in rows]]
    with exact_decimals():
        money = [
            None if None in part else sum((value for value in part if value is not None), Decimal(0)) for part in parts
        ]
    return Row(
        None, node, added(was) if was or node is None else None, added(now) if now or node is None else None, *money
    )
