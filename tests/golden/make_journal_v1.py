"""The story that journal-v1.db tells: every type of event, on fixed clocks, decided by the core.

`python tests/golden/make_journal_v1.py` writes journal-v1.db and journal-v1.json. Once schema 1 is
released neither is ever made again: they are what later versions must still read alike.
"""

from __future__ import annotations

import asyncio
import json
from itertools import groupby
from pathlib import Path

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.checks import Tally, count
from registry.core.decision import Place, decide
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
)
from registry.core.dependencies import Graph, around
from registry.core.lifecycle import Reason
from registry.core.projection import Projection
from registry.core.service import Service, evolve
from registry.journal import Journal
from registry.questions.records import event_record, service_record
from registry.questions.timeline import line

FOLDER = Path(__file__).parent
NS = 1_000_000_000
BEGIN_NS = 1_767_322_800 * NS  # 2026-01-02T03:00:00Z
OPERATOR = ev.Actor(uid=0, pid=4711, program="circlectl")
STRANGER = ev.Actor(uid=1000)

DEFINITIONS = (
    Definition("migrate", ("./manage", "migrate"), 0, restart=Restart(Policy.NEVER)),
    Definition(
        "web",
        ("gunicorn", "app:main"),
        1,
        checks=(
            Check("http", "http://127.0.0.1:8080/health", failures=2),
            Check("queue", "cmd:./queue-is-short", on_failure=OnFailure.REPORT, failures=1),
        ),
        env_names=("MODE",),
        env_digest="5e0c",
        start_timeout_s=20.0,
    ),
    Definition(
        "worker", ("./work",), 2, restart=Restart(Policy.ON_FAILURE, limit=2, within_s=60.0)
    ),
    Definition("mailer", ("./nowhere",), 3),
    Definition("cache", ("./cache", "--port=1"), 4, autostart=False, success_exit_codes=(0, -15)),
)

SYSTEM = (
    Definition("db", ("./db",), 5, ready=Ready.NOTIFY, checks=(Check("beat", "heartbeat:"),)),
    Definition("setup", ("./setup",), 6, oneshot=True, depends_on=(Dependency("db"),)),
    Definition(
        "app",
        ("./app",),
        7,
        restart=Restart(memory_max=100 << 20),
        reload=Reload(signal="SIGHUP"),
        depends_on=(
            Dependency("db", restart=True),
            Dependency("setup", Condition.COMPLETED),
        ),
    ),
)


class Story:
    """A registry without a world: what it is told, it decides; what is decided, it keeps."""

    def __init__(self) -> None:
        self.records: list[ev.Record] = []
        self.services: dict[str, Service] = {}
        self.graph = Graph()
        self.tallies: dict[tuple[str, str, int], Tally] = {}
        self.now = ev.Now(BEGIN_NS, 1000 * NS)

    def wait(self, seconds: float) -> None:
        """Let both clocks go on."""
        passed_ns = int(seconds * NS)
        self.now = ev.Now(self.now.at_ns + passed_ns, self.now.mono_ns + passed_ns)

    def set_clock_back(self, seconds: int) -> None:
        """Somebody sets the wall clock; CLOCK_BOOTTIME goes on."""
        self.now = ev.Now(self.now.at_ns - seconds * NS, self.now.mono_ns)

    def say(self, event: ev.Event) -> int:
        """An event of the registry itself; its number."""
        seq = len(self.records) + 1
        record = ev.Record(
            seq, self.now.at_ns, self.now.mono_ns, seq, None, None, None, None, event
        )
        for service in self.services.values():
            evolve(service, record)
        self.records.append(record)
        return seq

    def resync(self, name: str, events: int) -> None:
        """The whole state of a service, in place of events that could not be written."""
        service, seq = self.services[name], len(self.records) + 1
        event = ev.Resynced(events=events, state=json.loads(msgspec.json.encode(service)))
        now = self.now
        record = ev.Record(seq, now.at_ns, now.mono_ns, seq, name, service.run, None, None, event)
        evolve(service, record)
        self.records.append(record)

    def begin(self, boot: str, pid: int, *, fresh: bool) -> int:
        """A registry takes the journal up; the number of the event that says so."""
        self.tallies.clear()
        return self.say(ev.RegistryStarted(boot, "pid:[4026531836]", pid, "0.1.0", fresh))

    def define(self, definition: Definition, cause: int, actor: ev.Actor | None = None) -> None:
        """A service is declared, or declared differently."""
        self.services.setdefault(definition.name, Service(definition=definition))
        self.graph.declare(definition)
        digest = f"{definition.name}-{len(definition.cmd)}"
        self.tell(
            definition.name,
            inp.Define(definition=definition, digest=digest, cause=cause, actor=actor),
        )

    def tell(self, name: str, *inputs: inp.Input) -> None:
        """What arrives at a service, a thousandth of a second apart."""
        for given in inputs:
            self.wait(0.001)
            self._decide(name, given, None)

    def together(self, *steps: tuple[str, inp.Input]) -> None:
        """What arrives for several services, and is decided together."""
        self.wait(0.001)
        first = len(self.records) + 1
        for name, given in steps:
            self._decide(name, given, first)

    def _decide(self, name: str, given: inp.Input, decision: int | None) -> None:
        service, seq = self.services[name], len(self.records) + 1
        neighbours = around(service, self.services, self.graph)
        self.records += decide(
            service, given, Place(self.now, seq, "golden-1", decision, neighbours)
        )

    def look(self, name: str) -> None:
        """A service looks again at its neighbours, because of the latest event."""
        self.tell(name, inp.Reconsider(cause=len(self.records)))

    def spawn(self, name: str, pid: int) -> None:
        """A process waits at the gate, and is let through."""
        run = self.services[name].run + 1
        digest = self.services[name].digest
        self.tell(name, inp.SpawnSucceeded(run=run, pid=pid, start_time=pid * 10, digest=digest))
        self.tell(name, inp.GateOpened(run=run))

    def end(self, name: str, exit_code: int | None = None, **how: object) -> None:
        """The main process of the present run is gone."""
        given = {"run": self.services[name].run, "exit_code": exit_code, **how}
        self.tell(name, msgspec.convert(given, inp.ProcessExited))

    def probe(self, name: str, check: str, results: str) -> None:
        """Results of a check, `+` or `-`, ten seconds apart."""
        for result in results:
            self.wait(10)
            run, ok = self.services[name].run, result == "+"
            tally, probed = count(
                self.tallies.get((name, check, run)),
                run=run,
                check=check,
                ok=ok,
                error=None if ok else "connection refused",
                latency_ns=2_000_000,
                at_ns=self.now.at_ns,
            )
            self.tallies[name, check, run] = tally
            self.tell(name, probed)


def tell_story() -> list[ev.Record]:
    """All of it, from the first registry to a fifth that still runs."""
    story = Story()
    _first_start(story)
    _troubles(story)
    _orders(story)
    _second_registry(story)
    _shutdown(story)
    _third_registry(story)
    _a_copy(story)
    _a_system(story)
    _a_system_in_trouble(story)
    return story.records


def _first_start(story: Story) -> None:
    story.say(ev.JournalCreated("golden-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    for definition in DEFINITIONS:
        story.define(definition, cause)
    for name in ("migrate", "web", "worker", "mailer"):
        story.tell(name, inp.Start(reason=Reason.AUTOSTART, cause=cause))
    story.tell(
        "mailer",
        inp.SpawnRefused(
            run=1, reason=Reason.PROGRAM_MISSING, message="./nowhere: there is no such program"
        ),
    )
    for pid, name in enumerate(("migrate", "web", "worker"), start=2341):
        story.spawn(name, pid)
    story.end("migrate", 0, usage={"user_s": 0.5, "system_s": 0.25, "memory_max": 9_000_000})
    story.probe("web", "queue", "+")
    story.probe("web", "http", "-+")


def _troubles(story: Story) -> None:
    for pid in (2350, 2351):  # crashes up to its limit
        story.wait(2)
        story.end("worker", 3)
        story.wait(0.6)
        story.tell("worker", inp.RestartTimerDue(run=story.services["worker"].run))
        story.spawn("worker", pid)
    story.end("worker", signal=11)
    story.probe("web", "queue", "-+")  # only reported
    story.probe("web", "http", "--")  # stopped for it, and started again
    story.end("web", signal=15, group_empty=False)
    story.wait(10)
    story.tell("web", inp.GroupGone(run=1, killed=2))
    story.spawn("web", 2360)
    story.wait(20)
    story.tell("web", inp.StartTimerDue(run=2))
    story.end("web", signal=15)
    story.wait(0.6)
    story.tell("web", inp.RestartTimerDue(run=2))
    story.spawn("web", 2361)
    story.end("web", 111, never_ran=True)
    story.spawn("web", 2362)
    story.probe("web", "queue", "+")
    story.probe("web", "http", "+")


def _orders(story: Story) -> None:
    story.tell("cache", inp.Start(actor=OPERATOR))
    story.spawn("cache", 2370)
    story.tell("cache", inp.Restart(actor=OPERATOR))
    story.tell("cache", inp.Stop(actor=STRANGER))  # the last word wins
    story.end("cache", signal=15)
    story.tell("cache", inp.Start(actor=OPERATOR))
    story.spawn("cache", 2371)
    story.tell("worker", inp.Reset(actor=OPERATOR), inp.Start(actor=OPERATOR))
    story.spawn("worker", 2372)
    story.tell("mailer", inp.Reset(actor=OPERATOR), inp.Remove(actor=OPERATOR))
    story.set_clock_back(30)
    story.define(
        msgspec.structs.replace(DEFINITIONS[4], cmd=("./cache", "--port=1", "--verbose\x1b[2J")),
        cause=len(story.records),
        actor=OPERATOR,
    )


def _second_registry(story: Story) -> None:
    """The first one was killed; meanwhile worker ended, and nobody saw how."""
    story.wait(5)
    story.begin("boot-1", 301, fresh=False)
    story.tell("web", inp.ProcessFound(run=story.services["web"].run, pid=2362))
    story.tell("cache", inp.ProcessFound(run=story.services["cache"].run, pid=2371))
    story.tell("worker", inp.ProcessLost(run=story.services["worker"].run))
    story.spawn("worker", 2380)


def _shutdown(story: Story) -> None:
    story.wait(3600)
    for name in ("web", "worker", "cache"):
        story.tell(name, inp.Stop(reason=Reason.SHUTDOWN, actor=OPERATOR))
        story.end(name, signal=15)
    story.say(ev.RegistryStopped())


def _third_registry(story: Story) -> None:
    story.wait(86400)
    cause = story.begin("boot-2", 302, fresh=True)
    for name in ("web", "worker"):
        story.tell(name, inp.Start(reason=Reason.AUTOSTART, cause=cause))
        story.spawn(name, 500 + len(name))
    story.probe("web", "queue", "+")
    story.probe("web", "http", "+")
    story.wait(31)
    story.end("worker", 7)
    story.spawn("worker", 520)
    story.end("worker", 7)  # waits for its next restart


def _a_copy(story: Story) -> None:
    """The file was copied, and is another registry's; then the disk was full for a while."""
    story.wait(600)
    story.say(ev.JournalCopied(journal_id="golden-2", source="/srv/first/var/registry.db"))
    story.begin("boot-2", 303, fresh=True)
    run = story.services["web"].run
    story.tell("web", inp.RunFound(run=run + 1, pid=610, start_time=6100))
    story.tell("web", inp.OutputEnded(run=run, cause=None, lines=("Out of cheese.",), dropped=12))
    story.resync("web", events=3)
    story.say(ev.RegistryStopped(kept=True))


def _a_system(story: Story) -> None:
    """A later version of the registry: services that depend on each other, and say how they are."""
    story.wait(60)
    cause = story.begin("boot-2", 304, fresh=False)
    story.tell("web", inp.ProcessFound(run=story.services["web"].run, pid=610))
    for definition in SYSTEM:
        story.define(definition, cause)
    because = len(story.records) + 1
    story.together(
        ("app", inp.Start(actor=OPERATOR)),
        ("db", inp.Start(actor=OPERATOR, reason=Reason.REQUIRED, cause=because)),
        ("setup", inp.Start(actor=OPERATOR, reason=Reason.REQUIRED, cause=because)),
    )
    story.spawn("db", 700)
    story.tell(
        "db",
        inp.NotifiedWatchdog(run=1, interval_s=2.5),
        inp.NotifiedExtension(run=1, seconds=120.0),
        inp.NotifiedMain(run=1, pid=701, start_time=7010),
        inp.NotifiedReady(run=1),
    )
    story.look("setup")
    story.spawn("setup", 702)
    story.end("setup", 0)
    story.look("app")
    story.spawn("app", 703)
    _asked(story, inp.Signal(signal="SIGUSR1", actor=OPERATOR), None)
    _asked(story, inp.Reload(actor=OPERATOR), "its main process is gone")


def _asked(story: Story, command: inp.Command, error: str | None) -> None:
    story.tell("app", command)
    request = len(story.records)
    run = story.services["app"].run
    story.tell("app", inp.RequestCarriedOut(run=run, request=request, error=error))


def _a_system_in_trouble(story: Story) -> None:
    story.wait(60)
    story.tell("db", inp.Restart(actor=OPERATOR))
    story.end("db", signal=15)
    story.spawn("db", 710)
    story.tell("db", inp.NotifiedReady(run=2))
    story.look("app")  # it follows
    story.end("app", signal=15)
    story.spawn("app", 711)
    story.tell("app", inp.MemoryFound(run=2, bytes=130 << 20))
    story.end("app", signal=15)
    story.spawn("app", 712)
    story.tell("app", inp.NotifiedStopping(run=3))
    story.wait(10)
    story.tell("app", inp.StopTimerDue(run=3))
    story.end("app", signal=9)
    story.wait(1)
    story.tell("app", inp.RestartTimerDue(run=3))
    story.spawn("app", 713)
    other = msgspec.structs.replace(SYSTEM[2], cmd=("./app", "--new"))
    story.define(other, cause=len(story.records), actor=OPERATOR)
    story.tell("app", inp.Renew(actor=OPERATOR))
    story.end("app", signal=15)
    story.spawn("app", 714)
    story.together(("app", inp.Stop(actor=OPERATOR)), ("db", inp.Stop(actor=OPERATOR)))
    story.end("app", signal=15)
    story.look("db")
    story.end("db", signal=15)
    story.tell("app", inp.Start(reason=Reason.REDEFINED))  # waits on


def answers(records: list[ev.Record]) -> dict[str, object]:
    """What a reader must say of this journal, in plain JSON values."""
    projection = Projection()
    projection.fold(records)
    return {
        "services": msgspec.to_builtins(
            [service_record(s, projection.services) for s in projection.in_order()]
        ),
        "timeline": [line(event_record(record)) for record in records],
    }


async def write_journal(path: Path, records: list[ev.Record]) -> None:
    """Append decision by decision, as a registry does, and close in order."""
    journal = await Journal.open(path, durability="normal")
    try:
        for _, decided in groupby(records, key=lambda record: record.decision):
            await journal.append(list(decided))
    finally:
        await journal.close()


def main() -> None:
    """Write both files."""
    path = FOLDER / "journal-v1.db"
    path.unlink(missing_ok=True)
    records = tell_story()
    asyncio.run(write_journal(path, records))
    text = json.dumps(answers(records), indent=1, ensure_ascii=True)
    path.with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
