"""One run of one test: what it holds, how it is judged, and what its reports tell. Knows nothing of pytest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_agenttrace.session.state import CassetteUse
from pytest_agenttrace.settings import Finding, Settings

if TYPE_CHECKING:
    from pytest_agenttrace.budgets.limits import Limit, Use
    from pytest_agenttrace.calls import Pricer
    from pytest_agenttrace.capture import AgentTrace, Verdict
    from pytest_agenttrace.ledger import BudgetFacts, FindingFacts, TestFacts
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.store import Kept, MlflowStore
    from pytest_agenttrace.trace import Trace

__all__ = ["Keep", "Run"]

# Whose stores are kept.
Keep = Literal["failed", "all", "none"]

_FAILED = ("failed", "error")
_FAULT = "pytest-agenttrace could not judge this test, which is a fault of its own"


@dataclass
class Run:
    """What one run of one test holds; made anew for each rerun."""

    store: MlflowStore | None = None
    cassette: GeminiCassette | None = None
    trace: AgentTrace | None = None
    settings: Settings | None = None
    limits: list[Limit] | None = None
    # What a run of its fixtures' used of the test's limits, where it has none of its own.
    read: tuple[Use, ...] = ()
    # Whether replies nobody asked for are judged with the test, or over all tests that name its cassette.
    own: bool = True
    # Days a recording may be old; None for any.
    max_age: int | None = None
    # What the run's calls cost, by the project's own file of prices or by the table.
    price: Pricer | None = None
    keep: Keep = "failed"
    kept: Kept | None = None
    # Whether the call phase came to its end.
    called: bool = False
    # Whether its store is closed, and whether it failed: of a run that several tests read.
    over: bool = False
    failed: bool = False
    verdict: Verdict | None = None
    use: CassetteUse | None = None
    _ended: bool = False
    # How much had been asked of the cassette when the test was judged.
    _asked: int = 0
    _incomplete: str | None = None
    # Why the store of a run could be neither kept nor held when it ended.
    _unkept: Exception | None = None
    # What a ledger will say of it, as long as nothing else is asked.
    _noted: TestFacts | None = None

    @property
    def idle(self) -> bool:
        """Whether the test used none of our fixtures."""
        return self.cassette is None and self.store is None

    @property
    def uses(self) -> tuple[Use, ...]:
        """What was used of each limit of the test, as it was judged last."""
        return (*(self.verdict.uses if self.verdict is not None else ()), *self.read)

    @property
    def _price(self) -> Pricer:
        from pytest_agenttrace.prices import price_call

        return price_call if self.price is None else self.price

    @property
    def over_limit(self) -> bool:
        """Whether a call was not made because it would have cost too much."""
        return self.cassette is not None and any(miss.limit for miss in self.cassette.misses)

    def stop(self, *, failed: bool) -> None:
        """The body ended by an error; `failed` where that is a failed assertion."""
        if self.cassette is not None:
            self._incomplete = self.cassette.incomplete if failed else self.cassette.give_up()

    def judge(self, *, ended: bool) -> Verdict | None:
        """What is wrong with the test once its body has ended: by itself, or by an error."""
        if self.idle:
            return None
        self._ended = ended
        self.verdict = self._judged()
        if self.cassette is not None:
            self._asked, self.cassette.after_body = self.cassette.asked, True
        return self.verdict

    def judge_again(self) -> list[str]:
        """What is wrong beside that once the fixtures are torn down: what they ask for counts, and may be one thing
        too many."""
        cassette, before = self.cassette, self.verdict
        if cassette is None or before is None:
            return []
        if cassette.recording and self.trace is not None:
            with suppress(Exception):  # told where the trace is judged; the order of a file is no reason to fail
                cassette.place(self.trace.places())
        verdict = before
        if cassette.asked != self._asked or any(reply.teardown for reply in cassette.unused):
            cassette.closing = True
            verdict = self.verdict = self._judged()
        self.use = self._left(cassette)
        return [text for text in verdict.failures if text not in before.failures]

    def _judged(self) -> Verdict:
        from pytest_agenttrace.budgets.limits import unjudged
        from pytest_agenttrace.capture import Verdict, judge
        from pytest_agenttrace.store import StoreError

        tolerance = (self.settings or Settings()).tolerance
        limits = self.limits or ()
        given = {"limits": limits, "tolerance": tolerance, "ended": self._ended, "own": self.own}
        try:
            return judge(self.trace, self.cassette, self.store, **given)  # type: ignore[arg-type]  # as it takes them
        except StoreError as error:
            return Verdict((str(error),), (), (), (), unjudged(limits))
        except Exception as error:  # an error in a hook would end the whole run
            fault = f"{_FAULT}: {type(error).__name__}: {error}"
            return Verdict((fault,), (), (), (), unjudged(limits))

    def _left(self, cassette: GeminiCassette) -> CassetteUse:
        """What is left of the cassette, for those that share it."""
        tolerance = (self.settings or Settings()).tolerance
        kinds = [name for name in ("allow", "warn") if (None, "unused") in getattr(tolerance, name)]
        complete = self._ended and not cassette.misses and cassette.incomplete is None
        judged = complete and not cassette.recording
        unused = {str(reply.number): [reply.text, reply.request] for reply in cassette.unused} if judged else {}
        used = cassette.used if judged and unused and not self.own else {}
        kind = kinds[0] if kinds else ""
        return CassetteUse(str(cassette.path), not self.own, complete, kind, unused, used, cassette.recording)

    # What a ledger says of it.

    def note(self, root: Path, scratch: Path) -> None:
        """Hold the facts of a test while its store can be read. Paths are told below `root`, and none below `scratch`,
        which is another one in each run."""
        self._noted = self._facts(root, scratch)

    def noted(self, root: Path, scratch: Path) -> TestFacts:
        """The facts of a test that is over, what its fixtures have asked for in teardown included."""
        from pytest_agenttrace.ledger import TestFacts
        from pytest_agenttrace.store import StoreError

        asked_since = self.cassette is not None and self.cassette.asked != self._asked
        if not self.idle and (self._noted is None or asked_since):
            with suppress(StoreError):  # nobody has read it since
                return self._facts(root, scratch)
        noted = self._noted or TestFacts(outcome="run")
        return dataclasses.replace(noted, findings=self._found(scratch), budgets=self._weighed())

    def _facts(self, root: Path, scratch: Path) -> TestFacts:
        from pytest_agenttrace.ledger import TestFacts, facts_of
        from pytest_agenttrace.prices import Prices

        trace = self._seen()
        bill = (self.price if isinstance(self.price, Prices) else Prices()).bill
        facts = TestFacts(outcome="run") if trace is None else facts_of(trace, self._price, bill)
        path = self.cassette.path if self.cassette is not None else None
        return dataclasses.replace(
            facts,
            cassette=None if path is None else _below(path, root),
            findings=self._found(scratch),
            budgets=self._weighed(),
        )

    def _seen(self) -> Trace | None:
        """What was traced and sent, whichever of our fixtures the test has used."""
        from pytest_agenttrace.forest import build_trace

        if self.trace is not None:
            return self.trace.peek()
        spans = self.store.spans() if self.store is not None else ()
        calls = self.cassette.calls if self.cassette is not None else ()
        return build_trace(spans, calls, self._price) if spans or calls else None

    def _weighed(self) -> tuple[BudgetFacts, ...]:
        """Each limit of the test, and how much of it was used."""
        from pytest_agenttrace.ledger import BudgetFacts

        return tuple(BudgetFacts(use.node, use.metric, use.limit, use.used) for use in self.uses)

    def _found(self, scratch: Path) -> tuple[FindingFacts, ...]:
        """What the witnesses disagreed on, and what became of it."""
        from pytest_agenttrace.ledger import FindingFacts

        found = (
            FindingFacts(
                finding.kind, finding.node, finding.text.partition("\n")[0].replace(str(scratch), "..."), judged
            )
            for finding, judged in self._findings()
        )
        return tuple(sorted(found, key=lambda fact: (fact.kind, fact.node or "", fact.text)))

    def _findings(self) -> Iterator[tuple[Finding, Literal["failed", "warned", "allowed"]]]:
        if self.verdict is None:
            return
        failed = (self.settings or Settings()).tolerance.failing(self.verdict.findings)
        for finding in self.verdict.findings:
            yield finding, "failed" if finding in failed else "warned" if finding in self.verdict.warned else "allowed"

    # What the reports tell.

    def told(self, *, failed: bool) -> dict[str, Any]:
        """What the call's report carries to the end of the run."""
        findings = list(self._findings())
        # What a test allows, or expects, is no news at the end.
        misses = self.cassette.misses if failed and self.cassette is not None else ()
        told: dict[str, Any] = {
            "warned": [finding.kind for finding, judged in findings if judged == "warned"],
            "forgiven": [finding.kind for finding, judged in findings if judged == "allowed"],
            "misses": [[miss.edit, miss.caller.node, miss.cause, miss.advice] for miss in misses],
        }
        if not failed and self._incomplete is not None:  # a failure shows it by itself
            told["incomplete"] = self._incomplete
        if differences := self._cost_differences():
            told["costs"] = differences
        return told

    def _cost_differences(self) -> list[list[str]]:
        """What MLflow prices otherwise than we do, by model."""
        from pytest_agenttrace.store import StoreError

        if self.trace is None:
            return []
        try:
            return [[found.model, str(found)] for found in self.trace.cost_differences()]
        except StoreError:  # told as the test's own failure
            return []

    def bill(self, *, untraced: bool) -> dict[str, Any]:
        """What the test has used; empty where it asked for nothing, and where it only sent and did not trace, unless
        that is wanted too (`untraced`)."""
        from pytest_agenttrace.budgets.whole_run import bill_of, unknown_bill
        from pytest_agenttrace.store import StoreError

        traced = self.trace is not None
        if self.idle or not (traced or untraced):
            return {}
        try:
            trace = self._seen()
        except StoreError as error:  # told as the test's own failure
            return unknown_bill(str(error)) if untraced else {}
        return {} if trace is None else bill_of(trace, self._price, traced=traced)

    def nodes(self) -> list[str]:
        """The nodes that ran, at any depth."""
        from pytest_agenttrace.store import StoreError

        try:
            trace = None if self.idle else self._seen()
        except StoreError:  # told as the test's own failure
            trace = None
        return [] if trace is None else sorted({execution.node for execution in trace.below()})

    def told_at_last(self) -> dict[str, Any]:
        """What the teardown's report carries."""
        told: dict[str, Any] = {}
        if self.keep == "all" and self.kept is not None and not self.kept.empty:  # a failure names its own
            told["kept"] = str(self.kept.path.parent)
        if self.cassette is None or self.use is None:
            return told
        from pytest_agenttrace.rerecord import made

        told["cassette"] = self.use.plain()
        if self.cassette.recording:
            told["recorded"] = made(self.cassette, self._price).plain()
        elif self.max_age is not None and (days := self.cassette.age) is not None and days > self.max_age:
            told["aged"] = {str(self.cassette.path): days}
        if self.cassette.mode == "adopt":
            told["adopted"] = [[str(self.cassette.path), *change] for change in self.cassette.adopted]
        return told

    def keep_store(self, outcome: str) -> Kept | None:
        """Keep the store of a test, or of a run that several tests read, where that is asked for, or hold it for those
        that are still to come. Raises StoreError."""
        failed = outcome in _FAILED
        if self.store is None or self.keep == "none" or (self.keep == "failed" and not failed):
            return None
        if self._unkept is not None:
            raise self._unkept
        if not (self.over and self.kept is not None):
            trace = self.trace.peek() if self.trace is not None else None
            self.kept = self.store.keep(outcome=outcome, trace=trace)
        elif failed:
            self.kept.read_by_failed_test()
        return self.kept

    def hold_store(self, outcome: str) -> None:
        """The same where a run has ended that tests are still to read: one of them may fail."""
        try:
            if self.keep_store(outcome) is None and self.store is not None and self.keep == "failed":
                self.store.hold()
        except Exception as error:  # no fault of the run: told where a test asks for its store
            self._unkept = error

    def kept_at_last(self) -> Iterator[tuple[str, str]]:
        """The store of a test whose teardown has failed, where it was not kept before."""
        if self.kept is not None:
            return
        try:
            kept = self.keep_store("error")
        except Exception as error:  # an error in a hook would end the whole run
            yield "Captured findings", str(error)
        else:
            yield from _told_of(kept)

    def sections(
        self,
        *,
        outcome: str,
        drawn: bool,
        verbosity: int,
        shown: str,
        ascii_only: bool = False,
        about: Sequence[str] | None = None,
    ) -> Iterator[tuple[str, str]]:
        """What a test needs beside its message, which is `shown`: misses its own error hides, the tree, redirects, the
        store. A title and a text each. `about` are the nodes to mark, by default those the verdict names."""
        from pytest_agenttrace.store import StoreError

        told = [self.verdict.text] if self.verdict is not None and self.verdict.failures else []
        parts: list[tuple[str, str]] = []
        kept = None
        try:
            kept = self.keep_store(outcome)
            if drawn or outcome in _FAILED:
                parts = list(self._drawn(verbosity, about, ascii_only))
        except (StoreError, OSError) as error:
            told.append(str(error))
        except Exception as error:  # an error in a hook would end the whole run
            told.append(f"the trace could not be drawn: {type(error).__name__}: {error}")
        if self._incomplete is not None:
            told.append(self._incomplete)
        yield from (("Captured findings", text) for text in dict.fromkeys(told) if text not in shown)
        yield from parts
        if drawn or outcome in _FAILED:
            yield from _told_of(kept)

    def _drawn(self, verbosity: int, about: Sequence[str] | None, ascii_only: bool) -> Iterator[tuple[str, str]]:
        """The tree, HTTP that is none of the model's, what a recording has changed, and what the code asked of MLflow
        and did not get."""
        trace = self.trace.peek() if self.trace is not None else None
        if trace is not None:
            depth = 0 if verbosity < 0 else 2 if verbosity > 1 else 1
            if about is None:
                about = self.verdict.about if self.verdict is not None else ()
            yield "Captured trace", trace.drawn(about=about, depth=depth, ascii_only=ascii_only)
        if self.cassette is not None and (gate := self.cassette.gate) is not None:
            yield "Captured order", f'replies were released by seed {gate.seed}; again: order="shuffle:{gate.seed}"'
        if self.cassette is not None and self.cassette.others:
            yield "Captured other HTTP", "\n".join(map(str, self.cassette.others))
        if self.cassette is not None and self.cassette.recording:
            from pytest_agenttrace.rerecord import old_and_new

            if lines := old_and_new(self.cassette, self._price):
                yield "Captured recording", "\n".join(lines)
        if self.store is not None and self.store.requested:
            yield "Captured requests to MLflow", "\n".join(map(_answered, self.store.requested))


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _told_of(kept: Kept | None) -> Iterator[tuple[str, str]]:
    """The command that opens a kept store."""
    if kept is not None and not kept.empty:
        yield "Captured store", "\n".join(filter(None, [kept.command, kept.lacks]))


def _answered(request: str) -> str:
    off = "autolog(" in request or request.endswith(".disable()")
    answer = "tracing was switched off" if off else "redirected to the temporary store"
    return f"{request}: {answer}"
