"""What a test did, then and now: its outcome, nodes, edges, tools, errors, replies, findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from pytest_agenttrace.ledger import ExecutionFacts, FindingFacts, RunFacts, TestFacts
from pytest_agenttrace.report.differences import Found, Level
from pytest_agenttrace.report.wording import counted, cut

__all__ = ["FAILING", "cut_short", "deeds", "of_the_run", "outcomes", "traced"]

FAILING = ("failed", "error")
_ENDS = {"STOP", "FINISH_REASON_STOP", None}


def outcomes(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """How the test ended, and whether it was traced at all."""
    if old.outcome != new.outcome:
        was, now = old.outcome, new.outcome
        if now in FAILING and was not in FAILING:
            why = (f"{cut(finding.text)} [{finding.kind}]" for finding in new.findings if finding.judged == "failed")
            yield Found("breaking", "outcome", None, f"{was} -> {now}", tuple(why))
        elif was in FAILING:
            yield Found("informational", "outcome", None, f"{was} -> {now}")
        else:
            left_out = ": its numbers are not compared" if "skipped" in (was, now) else ""
            yield Found("informational", "outcome", None, f"{was} -> {now}{left_out}")
    if traced(old) and not traced(new) and new.outcome != "skipped":
        yield Found("breaking", "untraced", None, "nothing is traced any more")
    if old.cassette != new.cassette and None not in (old.cassette, new.cassette):
        yield Found("informational", "cassette", None, f"another cassette: {old.cassette} -> {new.cassette}")


def traced(facts: TestFacts) -> bool:
    """Whether anything is known of what the test did."""
    return bool(facts.nodes or facts.calls or facts.outline)


def deeds(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """What nodes did. Where a request found no reply, or a node newly fails, what is missing after that is no news."""
    short = cut_short(old, new)
    found = [
        *_nodes(old, new),
        *_edges(old, new),
        *_tools(old, new),
        *_errors(old, new),
        *_counts(old, new),
        *_order(old, new),
        *_ends(old, new),
        *_findings(old, new),
    ]
    yield from (one for one in found if not (short and one.kind in _OF_AN_EARLY_END))


def cut_short(old: TestFacts, new: TestFacts) -> bool:
    """Whether the new test ended before its end: what is not there any more has one cause, and it is told."""
    missed = any(finding.kind == "missing" and finding.judged == "failed" for finding in new.findings)
    return missed or any(found.kind == "error appeared" for found in _errors(old, new))


_OF_AN_EARLY_END = ("node vanished", "edge vanished", "tool vanished", "executions", "tool runs", "order", "retries")


def _nodes(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    for change, there, here in (("appeared", old, new), ("vanished", new, old)):
        for node in here.nodes:
            outer = node.rpartition("|")[0]
            # A subgraph that came or went took its own nodes with it.
            if node not in there.nodes and (not outer or outer in there.nodes or outer not in here.nodes):
                yield Found("breaking", f"node {change}", node, f"node {node!r} {change}")


def _edges(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    both = {None, *(node for node in old.nodes if node in new.nodes)}
    for change, there, here in (("appeared", old, new), ("vanished", new, old)):
        for start, end in here.edges:
            if start not in both or end not in both or (start, end) in there.edges:
                continue
            if not _bridged(start, end, there, both):
                text = f"edge {start or 'start'} -> {end} {change}"
                yield Found("breaking", f"edge {change}", end, text)


def _bridged(start: str | None, end: str, there: TestFacts, both: Collection[str | None]) -> bool:
    """Whether the other side has a node of its own in the place of this edge: then it came or went with that."""
    between = [inner for begin, inner in there.edges if begin == start and inner not in both]
    return any((inner, end) in there.edges for inner in between)


def _tools(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    was, now = _tools_of(old), _tools_of(new)
    for change, there, here in (("appeared", was, now), ("vanished", now, was)):
        for node, name in here:
            if (node, name) not in there and node in old.nodes and node in new.nodes:
                yield Found("breaking", f"tool {change}", node, f"{node}: tool {name!r} {change}")
    for (node, name), runs in now.items():
        before = was.get((node, name))
        if before is None or runs == before:
            continue
        if len(runs) != len(before):
            text = f"{node}: tool {name!r} ran {counted(len(runs), 'time')} instead of {len(before)}"
            yield Found("informational", "tool runs", node, text)
        else:
            yield Found("informational", "tool arguments", node, f"{node}: tool {name!r} got other arguments")


def _tools_of(facts: TestFacts) -> dict[tuple[str, str], list[Mapping[str, object]]]:
    found: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for execution in facts.executions:
        for tool in execution.tools:
            found.setdefault((execution.node, tool.name), []).append(tool.args)
    return found


def _errors(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """Errors of executions, and statuses other than success; error replies of the wire, but for injected ones."""
    was, now = _troubles(old), _troubles(new)
    for change, there, here in (("appeared", was, now), ("vanished", now, was)):
        for node, trouble in here:
            if (node, trouble) not in there and node in old.nodes and node in new.nodes:
                yield Found("breaking", f"error {change}", node, f"{node}: {trouble} {change}")
    before, after = _error_replies(old), _error_replies(new)
    for caller, status in dict.fromkeys([*after, *before]):
        if ((caller, status) in before) != ((caller, status) in after):
            change = "vanished" if (caller, status) in before else "appeared"
            text = f"{caller or '(no node)'}: error reply {status} {change}"
            yield Found("breaking", f"error reply {change}", caller, text)


def _troubles(facts: TestFacts) -> dict[tuple[str, str], None]:
    return {(done.node, _trouble(done)): None for done in facts.executions if done.error or done.status != "ok"}


def _trouble(execution: ExecutionFacts) -> str:
    return execution.error or f"status {execution.status!r}"


def _error_replies(facts: TestFacts) -> dict[tuple[str | None, int], None]:
    return {
        (call.node, call.status): None
        for call in facts.calls
        if call.injected is None and call.status is not None and call.status >= 400
    }


def _counts(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """How often a node ran, and retried. More of the same is told; what it costs is judged as cost."""
    for node, now in new.nodes.items():
        was = old.nodes.get(node)
        if was is None:
            continue
        if was.executions != now.executions:
            text = f"{node} ran {counted(now.executions, 'time')} instead of {was.executions}"
            yield Found("informational", "executions", node, text)
        before, after = was.attempts - was.executions, now.attempts - now.executions
        if before != after:
            level = "breaking" if 0 in (before, after) else "informational"
            text = f"{node} retried {counted(after, 'time')} instead of {before}"
            yield Found("breaking" if level == "breaking" else "informational", "retries", node, text)


def _order(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """The same executions, edges included, in another order."""
    if (
        old.trajectory != new.trajectory
        and Counter(old.trajectory) == Counter(new.trajectory)
        and set(old.edges) == set(new.edges)
    ):
        was, now = (" ".join(facts.trajectory) for facts in (old, new))
        yield Found("breaking", "order", None, "nodes ran in another order", (f"was {cut(was)}", f"now {cut(now)}"))


def _ends(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """Replies that did not come to their own end: cut, or blocked."""
    was, now = _ends_of(old), _ends_of(new)
    for node, reason in now:
        if (node, reason) not in was and (node is None or node in old.nodes):
            text = f"{node or '(no node)'}: a reply ended with {reason}"
            yield Found("breaking", "reply ended early", node, text)
    for node, reason in was:
        if (node, reason) not in now:
            yield Found("informational", "reply ended early", node, f"{node or '(no node)'}: no {reason} any more")


def _ends_of(facts: TestFacts) -> dict[tuple[str | None, str | None], None]:
    return {
        (call.node, call.finish_reason): None
        for call in facts.calls
        if call.injected is None and call.finish_reason not in _ENDS
    }


def _findings(old: TestFacts, new: TestFacts) -> Iterator[Found]:
    """Disagreements of the two witnesses that are warned of, or allowed: a number that should fall."""
    was, now = _judged(old), _judged(new)
    for key in dict.fromkeys([*was, *now]):
        before, after = was.get(key, 0), now.get(key, 0)
        if before != after:
            kind, node, judged = key
            text = f"{node or 'run'}: {kind} {judged} {counted(after, 'time')} instead of {before}"
            yield Found("informational", "findings", node, text)


def stayed_away(test: str, facts: TestFacts, run: RunFacts) -> bool:
    """Whether a test that a run does not have may be there still: it was not to run, or was not come to. A run that
    many tests read may be there where one of them did not run."""
    if not run.was_to_run(test) or test in run.not_run:
        return True
    return facts.outcome == "run" and bool(run.not_run or run.deselected)


def of_the_run(old: RunFacts, new: RunFacts) -> Iterator[Found]:
    """What no single test is to blame for."""
    was = {finding.text for finding in old.findings}
    for finding in new.findings:
        if finding.text not in was:
            level: Level = "breaking" if finding.judged == "failed" else "informational"
            yield Found(level, "findings", finding.node, finding.text)


def _judged(facts: TestFacts) -> Counter[tuple[str, str | None, str]]:
    def key(finding: FindingFacts) -> tuple[str, str | None, str]:
        return finding.kind, finding.node, finding.judged

    return Counter(map(key, (finding for finding in facts.findings if finding.judged != "failed")))
