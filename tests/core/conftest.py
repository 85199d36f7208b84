"""A service in a world of its own: a virtual clock, a journal in memory, and a fold that must agree.

Every input goes through `World.give`, which holds each decision to the laws that all of them share.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from registry.core import checks as tallies
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import Check, Definition, Policy, Restart
from registry.core.duties import Duties, duties
from registry.core.lifecycle import Reason, State, is_legal
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import Service

JOURNAL_ID = "journal-1"
UTC_AHEAD_NS = 1_700_000_000 * NS


class World:
    """One service, declared at once; `records` is its journal so far."""

    def __init__(self, definition: Definition, name: str = JOURNAL_ID) -> None:
        self.journal_id = name
        self.mono_ns = 1000 * NS
        self.records: list[ev.Record] = []
        self.projection = Projection()
        self.service = Service(definition=definition)
        self._tallies: dict[tuple[int, str], tallies.Tally] = {}
        self.give(inp.Define(definition=definition, digest="digest-1"))

    # --- what every decision is held to -----------------------------------------------------------

    def give(self, given: inp.Input) -> list[ev.Record]:
        """Decide, check the laws of every decision, fold; the new records."""
        before = copy.deepcopy(self.service)
        state = before.state
        now = ev.Now(self.mono_ns + UTC_AHEAD_NS, self.mono_ns)
        new = decide(self.service, given, Place(now, len(self.records) + 1, self.journal_id))
        assert new or self.service == before, "an ignored input changed the service"
        for place, record in enumerate(new, len(self.records) + 1):
            assert record.seq == place
            assert record.decision == len(self.records) + 1
            assert record.cause is None or record.cause < record.seq
            assert record.actor == getattr(given, "actor", None)
            if isinstance(record.event, ev.Moved):
                assert record.event.source is state
                assert is_legal(record.type, state, record.event.dest)
                state = record.event.dest
        for earlier, later in itertools.pairwise(new):
            assert later.cause == earlier.seq
        self.records += new
        self.projection.fold(new)
        assert self.projection.services.get(self.service.name) == (
            None if new and new[-1].type == "removed" else self.service
        )
        return new

    def seen(self, given: inp.Input) -> list[str]:
        """The types of what `give` journals."""
        return [record.type for record in self.give(given)]

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.mono_ns += round(seconds * NS)

    # --- what may be said to it, about the present run --------------------------------------------

    def start(self) -> list[ev.Record]:
        return self.give(inp.Start())

    def stop(self) -> list[ev.Record]:
        return self.give(inp.Stop())

    def restart(self) -> list[ev.Record]:
        return self.give(inp.Restart())

    def spawn(self) -> list[ev.Record]:
        run = self.service.run + 1
        return self.give(
            inp.SpawnSucceeded(run=run, pid=1000 + run, start_time=5, digest=self.service.digest)
        )

    def refuse(self, reason: Reason, message: str = "no") -> list[ev.Record]:
        return self.give(inp.SpawnRefused(run=self.service.run + 1, reason=reason, message=message))

    def gate(self) -> list[ev.Record]:
        return self.give(inp.GateOpened(run=self.service.run))

    def exit(self, code: int | None = 0, **fields: Any) -> list[ev.Record]:
        return self.give(inp.ProcessExited(run=self.service.run, exit_code=code, **fields))

    def empty(self, killed: int = 0) -> list[ev.Record]:
        return self.give(inp.GroupGone(run=self.service.run, killed=killed))

    def probe(self, *, ok: bool, check: str = "beat") -> list[ev.Record]:
        """One more result of a check, counted as the prober counts it."""
        run, at_ns = self.service.run, self.mono_ns + UTC_AHEAD_NS
        error = None if ok else "refused"
        before = self._tallies.get((run, check))
        tally, probed = tallies.count(
            before, run=run, check=check, ok=ok, error=error, latency_ns=1, at_ns=at_ns
        )
        self._tallies[run, check] = tally
        return self.give(probed)

    def due(self) -> list[ev.Record]:
        """Let time pass until the timer that its duties ask for, and let it ring."""
        timer = self.duties.timer
        assert timer is not None, "no timer is under way"
        self.mono_ns = max(self.mono_ns, timer.due_ns)
        return self.give(timer.due)

    # --- short ways to where a test begins --------------------------------------------------------

    def run(self) -> None:
        """From anywhere below: started, spawned, and ready."""
        self.start()
        self.spawn()
        self.gate()
        for check in self.service.definition.checks:
            self.probe(ok=True, check=check.name)
        assert self.service.state is State.RUNNING

    def crash(self, code: int = 1) -> list[ev.Record]:
        """Spawn the next run (after its timer, if it waits for one) and let it exit before it is forgiven."""
        if self.service.state is State.RESTARTING:
            self.due()
        self.spawn()
        self.gate()
        return self.exit(code)

    # --- what can be asked of it ------------------------------------------------------------------

    @property
    def duties(self) -> Duties:
        return duties(self.service)

    @property
    def where(self) -> tuple[State, Reason]:
        return self.service.state, self.service.reason

    def refold(self, upto: int | None = None) -> Projection:
        """A projection from the journal's beginning."""
        projection = Projection()
        projection.fold(self.records[:upto])
        return projection


def _define(checks: tuple[str, ...] = (), **fields: Any) -> Definition:
    restart = {key: fields.pop(key) for key in Restart.__struct_fields__ if key in fields}
    restart["policy"] = Policy(restart.get("policy", Policy.ALWAYS))
    return Definition(
        name=fields.pop("name", "web"),
        cmd=("./web",),
        restart=Restart(**restart),
        checks=tuple(
            check if isinstance(check, Check) else Check(check, "unix:/s") for check in checks
        ),
        **fields,
    )


@pytest.fixture
def define() -> Callable[..., Definition]:
    """A definition from plain fields; those of its restart are given by their own names."""
    return _define


@pytest.fixture
def world() -> Callable[..., World]:
    """A world made of the fields of a definition."""

    def make(journal_id: str = JOURNAL_ID, **fields: Any) -> World:
        return World(_define(**fields), journal_id)

    return make
