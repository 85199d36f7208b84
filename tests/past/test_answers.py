"""What a journal answers about a moment: what the fold of everything until then comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from registry.core.events import BecameUnhealthy
from registry.core.projection import Projection
from registry.journal.opening import Connection, open_for_reading
from registry.past.answers import QUESTIONS, answer
from registry.questions.moments import Moment, moment
from registry.questions.records import last_exit, rfc3339, service_record
from registry.questions.refusal import Refusal


@pytest.fixture
def opened(journal) -> Iterator[Connection]:
    with closing(open_for_reading(journal)) as connection:
        yield connection


@pytest.fixture
def ask(opened):
    """The answer to a question, and what is refused as (code, message)."""

    def ask_(question: str, **params):
        try:
            return json.loads(answer(opened, question, json.dumps(params).encode()))
        except Refusal as refusal:
            return refusal.code, refusal.message

    return ask_


def after(story, seq) -> Projection:
    projection = Projection()
    projection.fold(story[:seq])
    return projection


def records_of(projection):
    services = projection.services
    return [msgspec.to_builtins(service_record(s, services)) for s in projection.in_order()]


def test_every_service_is_listed_as_each_event_left_it(ask, story):
    for seq in range(len(story) + 1):
        projection = after(story, seq)
        told = ask("list", at=seq)
        at = rfc3339(story[seq - 1].at_ns) if seq else None
        assert told["services"] == records_of(projection)
        is_supervised = not projection.orderly
        assert told["moment"] == {
            "seq": seq, "at": at, "asked": at, "supervised": is_supervised,
        }  # fmt: skip


def test_a_time_means_the_last_event_that_is_not_later(ask, story):
    asked = moment("2026-01-02T03:00:34Z", 0)
    assert asked is not None
    told = ask("list", at=list(asked))
    last = max(record.seq for record in story if record.at_ns <= asked.last_ns)
    assert told["moment"]["seq"] == last
    assert told["moment"]["asked"] == "2026-01-02T03:00:34.999999Z"
    assert told["services"] == records_of(after(story, last))


def test_services_are_named_as_in_every_command(ask):
    assert [each["name"] for each in ask("list", at=100, service="w*")["services"]] == [
        "web",
        "worker",
    ]


def test_a_service_is_told_in_detail_as_it_was(ask, story):
    told = ask("status", at=36, service="worker")
    assert told["status"] == "Failed"
    assert told["last_exit"] == last_exit(after(story, 36).services["worker"].last_exit)
    assert told["definition"]["restart"]["limit"] == 2
    assert [event["seq"] for event in told["events"]][-1] == 36
    assert max(event["seq"] for event in told["events"]) <= 36
    assert told["moment"]["seq"] == 36
    assert (told["memory"], told["found_by"], told["status_text"]) == (None, None, None)


def test_a_check_is_told_as_the_journal_knows_it(ask, story):
    seq = next(
        r.seq for r in story if isinstance(r.event, BecameUnhealthy) and r.event.check == "http"
    )
    (http, _queue) = ask("status", at=seq, service="web")["checks"]
    error = after(story, seq).services["web"].checks["http"].error
    assert http == {
        "name": "http", "target": "http://127.0.0.1:8080/health", "health": "unhealthy",
        "last_at": None, "latency_ms": None, "error": error,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("question", "params", "refused"),
    [
        ("list", {"at": 186}, ("invalid_params", "there is no event 186: the last is event 185")),
        (
            "status",
            {"at": 5, "service": "wbe"},
            ("unknown_service",
             "after event 5, 2026-01-02T03:00:00.003000Z: there is no service 'wbe', did you mean 'web'?"),
        ),
        (
            "status",
            {"at": 0, "service": "web"},
            ("unknown_service",
             "before all events: there is no service 'web', there are none at all"),
        ),
        ("list", {"at": 9, "service": "x*"}, ("unknown_service", "no service is called like 'x*'")),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_when_that_was(ask, question, params, refused):
    assert ask(question, **params) == refused


def test_each_question_takes_what_its_own_parameters_say(opened):
    for name, question in QUESTIONS.items():
        fields = msgspec.structs.fields(question.params)
        assert fields, name
        with pytest.raises(msgspec.ValidationError):
            answer(opened, name, b'{"at": "tomorrow", "service": 7}')


def test_a_moment_goes_over_the_wire_and_back():
    kind = QUESTIONS["list"].params
    for at in (7, Moment(-5, 7)):
        sent = msgspec.json.encode(kind(at))
        assert msgspec.json.decode(sent, type=kind).at == at  # type: ignore[attr-defined]


# --- services that were removed, and words that mean several -----------------------------------


def test_why_of_a_service_that_was_removed_tells_who_removed_it(ask):
    told = ask("why", service="mailer")
    assert told["subject"] == "mailer is no longer declared since 2026-01-02 03:02:05Z"
    assert [each["sentence"] for each in told["because"]] == [
        "it was removed by uid 0 (circlectl, pid 4711)"
    ]
    assert (told["chain"], told["status"]) == ([78], None)
    assert ask("why", service="mailer", at=77)["status"] == "Stopped"
    code, message = ask("why", service="mailer", at=3)
    assert (code, "there is no service 'mailer'" in message) == ("unknown_service", True)


def test_a_glob_also_means_services_that_were_removed(ask):
    assert [each["service"] for each in ask("history", service="m*")] == ["migrate", "mailer"]
    told = ask("report", service=["mail*"])["services"]
    assert [(each["service"], each["declared"]) for each in told] == [("mailer", False)]
    assert ask("boot", service="m*")["seq"], "it is of one service: of those that are declared"


def test_of_one_whose_removal_was_removed_too_no_more_is_said():
    compacted = Path(__file__).parents[1] / "golden" / "journal-v2.db"
    with closing(open_for_reading(compacted)) as connection:
        with pytest.raises(Refusal, match="when is no longer in the journal") as refused:
            answer(connection, "why", b'{"service": "mailer"}')
        assert refused.value.code == "unknown_service"
        assert answer(connection, "history", b'{"service": "mailer"}') != b"[]"


@pytest.mark.parametrize(
    ("word", "code", "words"),
    [
        ("w*", "invalid_params", "asked of one service, and 'w*' means web, worker; name one"),
        ("migrat?", "invalid_params", "'migrat?' means migrate; name one"),
        ("all", "invalid_params", "'all' means migrate, web, worker, "),
        ("x*", "unknown_service", "no service is called like 'x*'"),
        ("tag:x", "unknown_service", "no service has the tag 'x'"),
        ("wbe", "unknown_service", "there is no service 'wbe', did you mean 'web'?"),
    ],
)
def test_why_of_a_word_that_may_mean_several_names_them(ask, word, code, words):
    refused, message = ask("why", service=word)
    assert (refused, words in message) == (code, True)
