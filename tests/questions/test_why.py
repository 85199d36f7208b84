"""Why: chains of causes in exact sentences, and what is not called a cause."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import msgspec
import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import (
    Check,
    Definition,
    Dependency,
    Policy,
    Ready,
    Reload,
    Restart,
    Stop,
)
from registry.core.lifecycle import Reason
from registry.core.projection import Projection
from registry.core.service import stop_due_ns
from registry.past.answers import answer
from registry.questions.refusal import Refusal
from registry.questions.why import Why, told, why_event, why_service

ANA = ev.Actor(uid=1000, pid=4711, program="psql")
BOB = ev.Actor(uid=7, pid=4712, program="circlectl")
HTTP = Check("http", "http://127.0.0.1:8080/", failures=3)
DB = Definition("db", ("./db",), 0)
WEB = Definition(
    "web",
    ("./web",),
    1,
    checks=(HTTP,),
    ready=Ready.SPAWN,
    stop=Stop(timeout_s=5.0),
    depends_on=(Dependency("db", restart=True),),
)
LONE = Definition("lone", ("./lone",), 2, stop=Stop(timeout_s=5.0))
LIMITED = Definition("limited", ("./limited",), 3, restart=Restart(limit=1, within_s=60.0))
NEVER = Definition("never", ("./never",), 4, restart=Restart(Policy.NEVER))
SLOW = Definition("slow", ("./slow",), 5, ready=Ready.NOTIFY, start_timeout_s=20.0)
CHECKED = Definition("checked", ("./checked",), 6, checks=(HTTP,), ready=Ready.HEALTH)
ALL = (DB, WEB, LONE, LIMITED, NEVER, SLOW, CHECKED)


class Records:
    """A journal in memory, as evidence."""

    def __init__(self, records: list[ev.Record]) -> None:
        self.records = records

    def record(self, seq: int) -> ev.Record | None:
        return self.records[seq - 1] if 0 < seq <= len(self.records) else None

    def newest(self, service: str, last: int | None = None) -> Iterator[ev.Record]:
        return (record for record in reversed(self.records[:last]) if record.service == service)


def ask(story, name: str | None = None, seq: int | None = None) -> Why:
    records = story.records[:seq] if seq else story.records
    projection = Projection()
    projection.fold(records)
    evidence = Records(records)
    if name is None:
        return why_event(records[-1], projection.services, evidence)
    return why_service(projection.services[name], projection.services, evidence)


def plain(answer: Why) -> list[str]:
    """The sentences alone: what it is, each `because`, `meanwhile:` and each of those, `next:`."""
    subject = answer.subject.partition(" since ")
    lines = [subject[0], *(link.sentence for link in answer.because)]
    lines += [f"meanwhile {link.sentence}" for link in answer.meanwhile]
    return [*lines, *([f"next {answer.next.sentence}"] if answer.next else [])]


def last(story, kind: type[ev.Event]) -> int:
    return max(record.seq for record in story.records if isinstance(record.event, kind))


@pytest.fixture
def begun(story):
    """A registry that has declared everything, and started nothing."""
    story.say(ev.JournalCreated("golden-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    for definition in ALL:
        story.define(definition, cause)
    return story


def start(story, name: str, pid: int = 41) -> None:
    story.tell(name, inp.Start(reason=Reason.AUTOSTART, cause=2))
    story.spawn(name, pid)


def both_up(story) -> None:
    start(story, "db")
    start(story, "web", 42)


# --- the situations -------------------------------------------------------------------------------


def _waits(story):
    story.tell("web", inp.Start(reason=Reason.AUTOSTART, cause=2))


def _waits_for_one_that_was_stopped(story):
    start(story, "db")
    story.tell("db", inp.Stop(actor=ANA))
    story.end("db", 0)
    story.tell("web", inp.Start(reason=Reason.AUTOSTART, cause=2))


def _stopped_with_what_it_follows(story):
    both_up(story)
    story.tell("db", inp.Stop(actor=ANA))
    story.end("db", 0)
    story.look("web")
    story.end("web", signal=15)


def _check_failed(story):
    both_up(story)
    story.probe("web", "http", "+---")
    story.end("web", 0)


def _killed_from_outside(story):
    start(story, "lone")
    story.wait(60)
    story.end("lone", signal=9)


def _killed_twice_from_outside(story):
    _killed_from_outside(story)
    story.spawn("lone", 43)
    story.end("lone", signal=9)


def _killed_by_us(story):
    start(story, "lone")
    story.tell("lone", inp.Stop(actor=ANA))
    story.wait(5)
    story.end("lone", signal=9)


def _stopped_by_an_operator(story):
    start(story, "lone")
    story.tell("lone", inp.Stop(actor=ANA))


def _stopped_with_the_registry(story):
    start(story, "lone")
    story.tell("lone", inp.Stop(reason=Reason.SHUTDOWN))
    story.end("lone", 0)


def _applied_anew(story):
    story.tell("lone", inp.Start(reason=Reason.AUTOSTART, actor=ANA))


def _started_while_it_stops(story):
    _stopped_by_an_operator(story)
    story.tell("lone", inp.Start(actor=BOB))


def _started_while_it_stopped(story):
    _started_while_it_stops(story)
    story.end("lone", 0)


def _stopped_while_it_stopped_for_a_restart(story):
    start(story, "lone")
    story.tell("lone", inp.Restart(actor=ANA), inp.Stop(actor=BOB))
    story.end("lone", 0)


def _reset_while_it_stopped(story):
    _stopped_by_an_operator(story)
    story.tell("lone", inp.Reset(actor=BOB))
    story.wait(5)
    story.end("lone", signal=9)


def _reset_while_its_restart_waits(story):
    _killed_twice_from_outside(story)
    story.tell("lone", inp.Reset(actor=BOB))


def _redefined_while_it_stopped(story):
    _stopped_by_an_operator(story)
    story.define(msgspec.structs.replace(LONE, cmd=("./lone", "-v")), len(story.records), BOB)
    story.end("lone", 0)


def _stopped_once_its_dependents_had(story):
    """By one operator those, by another it."""
    both_up(story)
    story.tell("web", inp.Stop(actor=ANA))
    story.tell("db", inp.Stop(actor=BOB))
    story.end("web", 0)
    story.look("db")
    story.end("db", 0)


def _sent_a_signal_by_an_operator(story):
    start(story, "never")
    story.tell("never", inp.Signal(signal="SIGKILL", actor=BOB))
    story.tell("never", inp.RequestCarriedOut(run=1, request=len(story.records)))
    story.end("never", signal=9)


def _sent_another_signal_by_an_operator(story):
    start(story, "never")
    story.tell("never", inp.Signal(signal="SIGUSR1", actor=BOB))
    story.tell("never", inp.RequestCarriedOut(run=1, request=len(story.records)))
    story.end("never", signal=9)


def _a_signal_that_did_not_reach_it(story):
    start(story, "never")
    story.tell("never", inp.Signal(signal="SIGKILL", actor=BOB))
    request = inp.RequestCarriedOut(run=1, request=len(story.records), error="not permitted")
    story.tell("never", request)
    story.end("never", signal=9)


def _ended_by_the_signal_of_its_reload(story):
    definition = msgspec.structs.replace(NEVER, reload=Reload(signal="SIGHUP"))
    story.define(definition, len(story.records), ANA)
    start(story, "never")
    story.tell("never", inp.Reload(actor=BOB))
    story.tell("never", inp.RequestCarriedOut(run=1, request=len(story.records)))
    story.end("never", signal=1)


def _adopted(story):
    start(story, "lone")
    story.begin("boot-1", 400, fresh=False)
    story.tell("lone", inp.ProcessFound(run=1, pid=41))


def _gave_up(story):
    start(story, "limited")
    story.end("limited", 3)
    story.spawn("limited", 43)
    story.end("limited", 4)


def _spawn_failed(story):
    story.tell("lone", inp.Start(actor=ANA))
    story.tell(
        "lone",
        inp.SpawnRefused(
            run=1, reason=Reason.PROGRAM_MISSING, message="./lone: there is no such program"
        ),
    )


def _applied(story):
    start(story, "lone")
    changed = msgspec.structs.replace(LONE, cmd=("./lone", "--new"))
    story.define(changed, len(story.records), ANA)
    story.tell("lone", inp.Renew(actor=ANA))
    story.end("lone", signal=15)
    story.spawn("lone", 43)


def _never_again(story):
    start(story, "never")
    story.end("never", 137)


def _lost(story):
    start(story, "never")
    story.begin("boot-2", 400, fresh=False)
    story.tell("never", inp.ProcessLost(run=1))


def _starting(story):
    start(story, "slow")


def _start_timed_out(story):
    start(story, "slow")
    story.wait(20)
    story.tell("slow", inp.StartTimerDue(run=1))


def _ready_by_its_check(story):
    start(story, "checked")
    story.probe("checked", "http", "-+")


def _not_ready_by_its_check(story):
    start(story, "checked")
    story.probe("checked", "http", "-")


def _completed_by_policy(story):
    start(story, "never")
    story.end("never", 0)


AUTOSTART = ["it starts with the registry (autostart)", "the registry started (pid 300)"]
BY_ANA = "it was stopped by uid 1000 (psql, pid 4711)"
OF_BOB = "by uid 7 (circlectl, pid 4712)"
KILLED_FROM_OUTSIDE = [
    "never is Failed",
    "it was ended by SIGKILL, not sent by the registry: the kernel kills so where memory runs out,"
    " and so does kill -9 (run 1)",
    "next nothing until circlectl start never: its restart policy is Never",
]

TABLE: list[tuple[Callable, str, list[str]]] = [
    (
        _waits,
        "web",
        [
            "web is Stopped, and waits,",
            "it waits for db to be ready (it is stopped)",
            "db, on which web depends, is Stopped",
            "it was declared",
            "the registry started (pid 300)",
            "next it is started as soon as that is so",
        ],
    ),
    (
        _waits_for_one_that_was_stopped,
        "web",
        [
            "web is Stopped, and waits,",
            "it waits for db to be ready (it is stopped)",
            "db, on which web depends, is Stopped",
            "it was stopped by uid 1000 (psql, pid 4711)",
            "next it is started as soon as that is so",
        ],
    ),
    (
        _stopped_with_what_it_follows,
        "web",
        [
            "web is Stopped, and waits,",
            "it waits for db to be ready (it is stopped)",
            "db, on which web depends, is Stopped",
            "it was stopped by uid 1000 (psql, pid 4711)",
            "next it is started as soon as that is so",
        ],
    ),
    (
        _check_failed,
        "web",
        [
            "web is Starting",
            "its restart policy (Always) starts it again at once",
            "its check http http://127.0.0.1:8080/ failed 3 times in a row (connection refused)",
            "next its process is made",
        ],
    ),
    (
        _killed_from_outside,
        "lone",
        [
            "lone is Starting",
            "its restart policy (Always) starts it again at once",
            "it was ended by SIGKILL, not sent by the registry: the kernel kills so where memory runs out,"
            " and so does kill -9 (run 1)",
            "next its process is made",
        ],
    ),
    (
        _killed_twice_from_outside,
        "lone",
        [
            "lone is Restarting",
            "its restart policy (Always) starts it again after DELAY s, attempt 2 in a row",
            "it was ended by SIGKILL, not sent by the registry: the kernel kills so where memory runs out,"
            " and so does kill -9 (run 2)",
            "next it is started again, attempt 2 in a row",
        ],
    ),
    (
        _killed_by_us,
        "lone",
        [
            "lone is Stopped",
            "it was ended by SIGKILL from the registry, after its stop timeout of 5 s (run 1)",
            "it was stopped by uid 1000 (psql, pid 4711)",
            "next nothing until circlectl start lone",
        ],
    ),
    (
        _stopped_by_an_operator,
        "lone",
        [
            "lone is Stopping",
            "it was stopped by uid 1000 (psql, pid 4711)",
            "next SIGKILL for what is left of it; then it stays down",
        ],
    ),
    (
        _stopped_with_the_registry,
        "lone",
        [
            "lone is Stopped",
            "it was stopped for the end of the registry",
            "next it starts with the next registry (autostart)",
        ],
    ),
    (
        _applied_anew,
        "lone",
        [
            "lone is Starting",
            "it was started as declared (autostart) by uid 1000 (psql, pid 4711)",
            "next its process is made",
        ],
    ),
    (
        _started_while_it_stops,
        "lone",
        [
            "lone is Stopping",
            BY_ANA,
            f"next SIGKILL for what is left of it; then it is started again, as asked {OF_BOB} (event 14)",
        ],
    ),
    (
        _started_while_it_stopped,
        "lone",
        ["lone is Starting", f"it was started {OF_BOB}", "next its process is made"],
    ),
    (
        _stopped_while_it_stopped_for_a_restart,
        "lone",
        ["lone is Stopped", f"it was stopped {OF_BOB}", "next nothing until circlectl start lone"],
    ),
    (
        _reset_while_it_stopped,
        "lone",
        [
            "lone is Stopped",
            "it was ended by SIGKILL from the registry, after its stop timeout of 5 s (run 1)",
            BY_ANA,
            "next nothing until circlectl start lone",
        ],
    ),
    (
        _reset_while_its_restart_waits,
        "lone",
        [
            "lone is Restarting",
            "its restart policy (Always) starts it again after DELAY s, attempt 2 in a row",
            "it was ended by SIGKILL, not sent by the registry: the kernel kills so where memory"
            " runs out, and so does kill -9 (run 2)",
            "next it is started again",
        ],
    ),
    (
        _redefined_while_it_stopped,
        "lone",
        ["lone is Stopped", BY_ANA, "next nothing until circlectl start lone"],
    ),
    (
        _stopped_once_its_dependents_had,
        "db",
        [
            "db is Stopped",
            "those that depend on it had stopped",
            f"it was stopped {OF_BOB}",
            "next nothing until circlectl start db",
        ],
    ),
    (
        _sent_a_signal_by_an_operator,
        "never",
        [
            "never is Failed",
            "it was ended by SIGKILL, which the registry had sent it (run 1)",
            f"it was to be sent SIGKILL {OF_BOB}",
            "next nothing until circlectl start never: its restart policy is Never",
        ],
    ),
    (_sent_another_signal_by_an_operator, "never", KILLED_FROM_OUTSIDE),
    (_a_signal_that_did_not_reach_it, "never", KILLED_FROM_OUTSIDE),
    (
        _ended_by_the_signal_of_its_reload,
        "never",
        [
            "never is Failed",
            "it was ended by SIGHUP, which the registry had sent it (run 1)",
            f"it was to reload {OF_BOB}",
            "next nothing until circlectl start never: its restart policy is Never",
        ],
    ),
    (
        _adopted,
        "lone",
        ["lone is Running", "it became ready (run 1)", *AUTOSTART],
    ),
    (
        _gave_up,
        "limited",
        [
            "limited is Failed",
            "it had been restarted once within 60 s, which is its limit",
            "it exited with code 4 (run 2)",
            "next nothing until circlectl start limited (or reset)",
        ],
    ),
    (
        _spawn_failed,
        "lone",
        [
            "lone is Failed",
            "it could not be started: ./lone: there is no such program",
            "it was started by uid 1000 (psql, pid 4711)",
            "next nothing until that is mended, and circlectl start lone",
        ],
    ),
    (
        _applied,
        "lone",
        [
            "lone is Running",
            "it became ready (run 2)",
            "it was restarted as it was declared differently by uid 1000 (psql, pid 4711)",
        ],
    ),
    (
        _never_again,
        "never",
        [
            "never is Failed",
            "it exited with code 137, by which a shell tells of SIGKILL (run 1)",
            "next nothing until circlectl start never: its restart policy is Never",
        ],
    ),
    (
        _lost,
        "never",
        [
            "never is Failed",
            "it ended while no registry watched it, how is not known (run 1)",
            "next nothing until circlectl start never: its restart policy is Never",
        ],
    ),
    (
        _starting,
        "slow",
        [
            "slow is Starting",
            *AUTOSTART,
            "next it waits for READY=1 from the service; else it is stopped as failed",
        ],
    ),
    (
        _start_timed_out,
        "slow",
        [
            "slow is Stopping",
            "it was not ready within its start timeout of 20 s",
            *AUTOSTART,
            "next SIGKILL for what is left of it; then it has failed, and its restart policy decides",
        ],
    ),
    (
        _ready_by_its_check,
        "checked",
        ["checked is Running", "it became ready (run 1)", *AUTOSTART],
    ),
    (
        _not_ready_by_its_check,
        "checked",
        [
            "checked is Starting",
            *AUTOSTART,
            "next it waits for the first success of http (http://127.0.0.1:8080/);"
            " else it is stopped as failed",
        ],
    ),
    (
        _completed_by_policy,
        "never",
        [
            "never is Stopped",
            "it exited with code 0 (run 1)",
            "next nothing: it has done what it was to do",
        ],
    ),
]


@pytest.mark.parametrize(
    ("happens", "name", "sentences"), TABLE, ids=[each[0].__name__ for each in TABLE]
)
def test_a_service_is_where_it_is_because(begun, happens, name, sentences):
    happens(begun)
    found = ask(begun, name)
    said = plain(found)
    if begun.records and "DELAY" in "".join(sentences):
        delay = begun.records[last(begun, ev.RestartScheduled) - 1].event.delay_s
        sentences = [each.replace("DELAY", f"{delay:.3g}") for each in sentences]
    assert said == sentences


def test_a_restart_whose_row_was_forgotten_is_told_without_a_number(begun):
    _killed_twice_from_outside(begun)
    begun.tell("lone", inp.Reset(actor=ANA))
    answer = ask(begun, "lone")
    assert plain(answer)[-1] == "next it is started again"
    assert answer.next is not None
    assert answer.next.at is not None


def test_what_is_due_is_told_with_its_time(begun):
    _stopped_by_an_operator(begun)
    service = begun.services["lone"]
    found = ask(begun, "lone")
    due_ns = begun.now.at_ns + stop_due_ns(service, service.moved_ns) - begun.now.mono_ns
    assert found.next is not None
    assert found.next.at is not None
    assert due_ns == begun.now.at_ns + 5_000_000_000
    assert f"next: {found.next.sentence}, {found.next.at[11:19]}Z" in list(told(found))


def test_that_a_later_registry_found_it_alive_is_said_of_a_run(begun):
    _adopted(begun)
    assert ", and" not in ask(begun, "lone").subject
    assert (
        "(the registry that took over found it alive at 2026-01-02 03:0"
        in ask(begun, "lone").subject
    )


def test_why_it_was_so_then_is_answered_of_that_moment(begun):
    _check_failed(begun)
    unhealthy = last(begun, ev.BecameUnhealthy)
    assert plain(ask(begun, "web", seq=unhealthy))[:2] == [
        "web is Stopping",
        "its check http http://127.0.0.1:8080/ failed 3 times in a row (connection refused)",
    ]


def test_an_event_has_its_own_why(begun):
    _check_failed(begun)
    scheduled = last(begun, ev.RestartScheduled)
    found = ask(begun, seq=scheduled)
    assert found.subject.startswith(f"event {scheduled} of web, 2026-01-02 03:0")
    assert found.subject.endswith(": its restart policy (Always) starts it again at once")
    assert plain(found)[1:] == [
        "its check http http://127.0.0.1:8080/ failed 3 times in a row (connection refused)"
    ]
    assert found.next is None


@pytest.mark.parametrize("word", [inp.Start(actor=BOB), inp.Restart(actor=BOB)])
def test_the_end_of_what_stops_is_owed_to_what_made_it_stop_whatever_was_said_meanwhile(
    begun, word
):
    _stopped_by_an_operator(begun)
    begun.tell("lone", word)
    begun.wait(5)
    begun.end("lone", signal=9)
    found = ask(begun, seq=last(begun, ev.Exited))
    killed = "it was ended by SIGKILL from the registry, after its stop timeout of 5 s (run 1)"
    assert found.subject.endswith(killed)
    assert [link.sentence for link in found.because] == [BY_ANA]


def test_a_run_that_was_lost_while_it_stopped_is_so_for_what_made_it_stop(begun):
    _started_while_it_stops(begun)
    begun.begin("boot-1", 400, fresh=False)
    begun.tell("lone", inp.ProcessLost(run=1))
    found = ask(begun, seq=last(begun, ev.Lost))
    assert [link.sentence for link in found.because] == [BY_ANA]


# --- because, and meanwhile -----------------------------------------------------------------------


def test_a_coincidence_is_told_and_not_called_a_cause(begun):
    """db fails and is up again a second before web fails."""
    both_up(begun)
    begun.end("db", 7)
    begun.spawn("db", 43)
    begun.wait(1)
    begun.end("web", 3)
    found = ask(begun, "web")
    assert [link.sentence for link in found.because][-1] == "it exited with code 3 (run 1)"
    assert not any("db" in link.sentence for link in found.because)
    assert [link.sentence for link in found.meanwhile] == ["db exited with code 7 (run 1)"]
    lines = list(told(found))
    at = lines.index("meanwhile, not recorded as a cause:")
    assert all("db" not in line for line in lines[:at])
    assert lines[at + 1].startswith("  db exited with code 7 (run 1) (event ")


def test_what_is_long_past_or_of_others_is_no_meanwhile(begun):
    both_up(begun)
    start(begun, "lone")
    begun.end("db", 7)
    begun.spawn("db", 43)
    begun.wait(120)
    begun.end("lone", 7)
    begun.end("web", 3)
    assert ask(begun, "web").meanwhile == ()


def test_a_restart_that_follows_a_dependency_has_it_as_its_cause(begun):
    both_up(begun)
    begun.tell("db", inp.Restart(actor=ANA))
    begun.end("db", signal=15)
    begun.spawn("db", 43)
    begun.look("web")
    found = ask(begun, "web")
    assert plain(found)[:3] == [
        "web is Stopping",
        "it follows what it depends on",
        "db, on which web depends, became ready (run 2)",
    ]
    assert "it was restarted by uid 1000 (psql, pid 4711)" in plain(found)
    assert found.meanwhile == ()


def test_the_last_words_of_the_run_are_told(begun):
    start(begun, "never")
    begun.end("never", 3)
    ended = last(begun, ev.Exited)
    begun.tell(
        "never", inp.OutputEnded(run=1, lines=("hello", "bad\x1b[2J"), dropped=0, cause=ended)
    )
    found = ask(begun, "never")
    assert found.said is not None
    assert found.said["lines"] == ("hello", "bad\x1b[2J")
    assert list(told(found))[-4:-1] == ["said last, run 1:", "  | hello", r"  | bad\x1b[2J"]


def test_nothing_that_came_from_outside_is_shown_raw(begun):
    begun.tell("lone", inp.Start(actor=ev.Actor(1, 2, "\x1b]0;x\x07")))
    begun.tell("lone", inp.SpawnRefused(run=1, reason=Reason.EXEC_FAILED, message="bad\n\x1b[2J"))
    for line in told(ask(begun, "lone")):
        assert line.isprintable()


def test_every_service_of_every_moment_and_every_event_has_an_answer(golden):
    """Whatever the journal holds: a chain that ends, sentences that are lines."""
    for count in range(1, len(golden) + 1):
        projection = Projection()
        projection.fold(golden[:count])
        evidence = Records(golden[:count])
        answers = [why_event(golden[count - 1], projection.services, evidence)]
        answers += [
            why_service(service, projection.services, evidence)
            for service in projection.services.values()
        ]
        for found in answers:
            assert len(set(found.chain)) == len(found.chain)
            assert all(line.isprintable() for line in told(found))
            assert msgspec.convert(msgspec.to_builtins(found), Why) == found


# --- from a journal on disk -----------------------------------------------------------------------


def test_a_journal_answers_as_its_records_do(begun, opened):
    _gave_up(begun)
    journal = opened(begun.records)
    told_ = json.loads(answer(journal, "why", b'{"service": "limited"}'))
    assert told_ == json.loads(msgspec.json.encode(ask(begun, "limited")))
    seq = last(begun, ev.RestartScheduled)
    told_ = json.loads(answer(journal, "why", b'{"seq": %d}' % seq))
    assert told_ == json.loads(msgspec.json.encode(ask(begun, seq=seq)))


def test_an_event_that_is_not_there_is_refused(begun, opened):
    journal = opened(begun.records)
    for seq, sentence in (
        (0, "there is no event 0: events are numbered from 1"),
        (99, f"there is no event 99: the last is event {len(begun.records)}"),
    ):
        with pytest.raises(Refusal) as refused:
            answer(journal, "why", b'{"seq": %d}' % seq)
        assert refused.value.message == sentence
