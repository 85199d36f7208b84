"""What services say by sd_notify: any datagram, read, told to a service in any state, decided and journaled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import cast

from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import Check, Definition, Ready
from registry.core.duties import duties
from registry.core.events import Now, Record
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import Service, start_due_ns, stop_due_ns
from registry.host.notify import NOTICE_MAX, STATUS_MAX, STORED, Notice, parse
from registry.host.surroundings import Said, Surroundings
from registry.journal.rows import to_record, to_rows
from tests.fuzz.chunks import chance_of
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

BETWEEN = b"\n--\n"
"""Stands between two datagrams of one input."""
KEYS = (
    b"READY=1 STOPPING=1 RELOADING=1 STATUS=well ERRNO=2 MAINPID=4711 EXTEND_TIMEOUT_USEC=5000000 WATCHDOG=1"
    b" WATCHDOG=trigger WATCHDOG_USEC=2000000 FDSTORE=1 FDNAME=listen FDSTOREREMOVE=1 BARRIER=1 MONOTONIC_USEC=1"
    b" NOTIFYACCESS=all BUSERROR=x VARLINKERROR=y EXIT_STATUS=3 FDPOLL=0"
).split()
_VALUES = (b"", b"0", b"1", b"01", b"-1", b"+1", b" 1", b"18446744073709551615", b"18446744073709551614",
           b"99999999999999999999", b"4095", b"2147483648", b"x" * 300, "\u202e\u00e9".encode(), b"a:b")  # fmt: skip


def recipe() -> Recipe:
    """Every key, alone and together."""
    seeds = [*KEYS, b"\n".join(KEYS), b"READY=1\nSTATUS=a\nMAINPID=2\0", BETWEEN.join(KEYS)]
    return Recipe(seeds, [*KEYS, *(key.partition(b"=")[0] + b"=" for key in KEYS), BETWEEN], _fresh)


def _fresh(chance: Random) -> bytes:
    def line() -> bytes:
        key = chance.choice(KEYS)
        return (
            key if chance.random() < 0.6 else key.partition(b"=")[0] + b"=" + chance.choice(_VALUES)
        )

    datagrams = [[line() for _ in range(chance.randrange(5))] for _ in range(chance.randint(1, 4))]
    return BETWEEN.join(chance.choice((b"\n", b"\r\n")).join(each) for each in datagrams)


@contextmanager
def judging() -> Iterator[Judge]:
    """Nobody but the core; time stands still within an input."""

    def judge(data: bytes) -> None:
        chance = chance_of(data)
        service, records = _service(chance)
        said = Said(1, "mark")
        for datagram in data.split(BETWEEN):
            notice = parse(datagram)
            judge_notice(notice, datagram)
            _tell(service, said, notice, records)
        told = to_rows(records, "")
        assert [to_record(row) for row in told] == records, (
            "the journal would not read it back alike"
        )
        projection = Projection()
        projection.fold(records)
        assert projection.services == {service.name: service}, "its fold is another service"

    yield judge


def judge_notice(notice: Notice, datagram: bytes) -> None:
    """Hold what was understood to what Notice promises."""
    assert notice.status is None or len(notice.status) <= STATUS_MAX
    assert notice.status is None or notice.status.isprintable() or not notice.status
    assert notice.errno is None or 0 <= notice.errno <= 4095
    assert notice.main_pid is None or 0 < notice.main_pid < 2**31
    assert notice.extend_s is None or 0 < notice.extend_s < 2**64
    assert notice.watchdog_s is None or 0 <= notice.watchdog_s < 2**64
    assert 0 < len(notice.fd_name) <= 255
    assert ":" not in notice.fd_name
    assert notice.fd_name.isprintable()
    assert not (notice.stores and notice.removes)
    assert not notice.removes or b"FDNAME=" in datagram
    assert notice == Notice(barrier=True) or not notice.barrier
    if len(datagram) > NOTICE_MAX + 1:
        assert notice == Notice(fd_name=STORED), "more than a datagram holds was understood"
    json.dumps([notice.status, notice.fd_name])


def _service(chance: Random) -> tuple[Service, list[Record]]:
    """A service somewhere in its first run."""
    definition = Definition(
        "web", ("./web",), checks=(Check("beat", "heartbeat:"),), ready=chance.choice(list(Ready))
    )
    service, records = Service(definition=definition), list[Record]()
    steps: list[inp.Input] = [
        inp.Define(definition=definition, digest="d"),
        inp.Start(),
        inp.SpawnSucceeded(run=1, pid=41, start_time=5, digest="d"),
        inp.GateOpened(run=1),
        inp.NotifiedReady(run=1),
        inp.Stop(),
        inp.ProcessExited(run=1, exit_code=0),
    ]
    for given in steps[: chance.randint(1, len(steps))]:
        _decide(service, given, records)
    return service, records


def _decide(service: Service, given: inp.Input, records: list[Record]) -> None:
    now = Now(1_767_225_600 * NS, 1000 * NS)
    records += decide(service, given, Place(now, len(records) + 1, "journal"))


class _Quiet:
    """Stands for what Surroundings knows besides: a runner whose members are those with even pids."""

    _runner = SimpleNamespace(
        change_main=lambda _service, _run, pid: None if pid % 2 else (pid, 77)
    )


def _tell(service: Service, said: Said, notice: Notice, records: list[Record]) -> None:
    quiet = cast(Surroundings, _Quiet())
    Surroundings._remember(quiet, said, notice)
    for given in Surroundings._observations(quiet, service.name, said.run, notice):
        _decide(service, given, records)
    duties(service)
    if service.watched_ns is not None:
        assert start_due_ns(service) >= 0
    if service.ending_ns is not None:
        assert stop_due_ns(service, service.ending_ns) >= 0


TARGET = Target(
    "notices",
    "a datagram is understood or not, within the bounds of Notice; what follows is decided, journaled and read back"
    " alike, and nothing raises",
    recipe,
    judging,
    {
        "lines": lambda size: b"READY=1\n" * (size // 8),
        "a long line": lambda size: b"STATUS=" + "\u202e".encode() * (size // 3),
    },
)
