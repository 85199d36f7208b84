"""Hooks: who is told of what, in what bounds, and that nothing of it comes back to the registry."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from registry.core.events import Actor, GaveUp, OutputEnded, Record, RegistryStopped
from registry.core.lifecycle import Reason, State
from registry.host import hooks as hooks_module
from registry.host.hooks import QUEUE_MAX, RUNNING_MAX, Hook, Hooks, environment
from registry.questions.records import event_record

DROPPED = f"Hooks dropped, since {QUEUE_MAX} wait already: "
TAGS = {"web": ("front",), "db": ("back",)}


def gave_up(service: str | None = "web", seq: int = 7) -> Record:
    event = GaveUp(
        source=State.FAILED,
        dest=State.FAILED,
        reason=Reason.RESTART_LIMIT,
        restarts=5,
        within_s=10.0,
    )
    return Record(seq, 1, 2, seq, service, 3, seq - 1, Actor(1000, 9, "x"), event)


def other(event: RegistryStopped | OutputEnded, service: str | None) -> Record:
    return Record(8, 1, 2, 8, service, None, None, None, event)


def hook(*services: str, name: str = "tell", on: tuple[str, ...] = ("gave_up",)) -> Hook:
    return Hook(on=on, cmd=(name, "http://secret"), services=services, timeout_s=5.0)


class Stage(logging.Handler):
    """Runs no command: it notes what it is asked to run, and gives what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, bytes]] = []
        self.outcome: int | Exception = 0
        self.says = b""
        self.go = asyncio.Event()
        self.go.set()
        self.running = 0
        self.cancelled = 0
        self.changed = asyncio.Event()
        self.made: list[Hooks] = []

    def hooks(self, *hooks: Hook, tags_of: Callable = lambda name: TAGS.get(name, ())) -> Hooks:
        self.made.append(Hooks(hooks, self.run, tags_of))
        return self.made[-1]

    async def run(self, hook: Hook, told: bytes, said: bytearray) -> int:
        said += self.says
        self.told.append((hook.cmd[0], told))
        self.running += 1
        self.changed.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def emit(self, record: logging.LogRecord) -> None:
        self.changed.set()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.told]

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(8):
            while not true():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    logging.getLogger(hooks_module.__name__).addHandler(made)
    yield made
    logging.getLogger(hooks_module.__name__).removeHandler(made)
    for hooks in made.made:
        await hooks.close()


async def test_a_hook_reads_one_line_the_event_as_the_socket_has_it(stage):
    stage.hooks(hook()).committed(gave_up())
    await stage.until(lambda: stage.told)
    [(_, told)] = stage.told
    assert told.count(b"\n") == 1
    assert told.endswith(b"\n")
    event = msgspec.to_builtins(event_record(gave_up()))
    assert json.loads(told) == {"event": event, "host": socket.gethostname()}
    assert environment(told) == {"CIRCLEOSD_EVENT": "gave_up", "CIRCLEOSD_SERVICE": "web"}


async def test_an_event_of_no_service_leaves_its_variable_out(stage):
    stage.hooks(hook(on=("registry_stopped",))).committed(other(RegistryStopped(), None))
    await stage.until(lambda: stage.told)
    assert environment(stage.told[0][1]) == {"CIRCLEOSD_EVENT": "registry_stopped"}


@pytest.mark.parametrize(
    ("services", "told"),
    [
        ((), ["web", "web@1", "db", "gone", None]),
        (("db",), ["db"]),
        (("web",), ["web", "web@1"]),
        (("web@1",), ["web@1"]),
        (("all",), ["web", "web@1", "db", "gone"]),
        (("web*",), ["web", "web@1"]),
        (("WEB", "d?"), ["db"]),
        (("tag:front",), ["web"]),
        (("tag:back", "gone"), ["db", "gone"]),
        (("tag:nothing",), []),
        (("*",), ["web", "web@1", "db", "gone"]),
    ],
)
async def test_services_are_names_globs_or_tags_and_none_is_all(stage, services, told):
    hooks = stage.hooks(hook(*services))
    for service in ("web", "web@1", "db", "gone", None):
        hooks.committed(gave_up(service))
    await hooks.close(within_s=5)
    assert [json.loads(each)["event"]["service"] for _, each in stage.told] == told


async def test_a_hook_is_told_of_its_types_alone_and_once_though_named_twice(stage):
    hooks = stage.hooks(
        hook(name="first", on=("gave_up", "gave_up")),
        hook(name="second", on=("output_ended", "gave_up")),
        hook(name="third", on=("output_ended",)),
    )
    hooks.committed(gave_up())
    hooks.committed(other(RegistryStopped(), None))
    await hooks.close(within_s=5)
    assert stage.names == ["first", "second"]


async def test_an_event_that_no_hook_wants_costs_no_question_and_no_task(stage):
    def tags_of(name):
        raise AssertionError(name)

    hooks = stage.hooks(hook("tag:front"), tags_of=tags_of)
    before = asyncio.all_tasks()
    hooks.committed(other(OutputEnded(), "web"))
    assert asyncio.all_tasks() == before
    assert stage.told == []


async def test_hooks_that_are_set_replace_those_before_but_not_what_waits(stage):
    hooks = stage.hooks(hook(name="old"))
    hooks.committed(gave_up())
    hooks.set([hook(name="new")])
    hooks.committed(gave_up())
    await hooks.close(within_s=5)
    assert stage.names == ["old", "new"]


async def test_four_run_at_once_and_the_others_in_their_order(stage):
    hooks = stage.hooks(hook())
    stage.go.clear()
    for seq in range(1, 11):
        hooks.committed(gave_up(seq=seq))
    await stage.until(lambda: stage.running == RUNNING_MAX)
    for _ in range(10):
        await asyncio.sleep(0)
    assert stage.running == RUNNING_MAX == len(stage.told)
    stage.go.set()
    await hooks.close(within_s=5)
    assert [json.loads(told)["event"]["seq"] for _, told in stage.told] == list(range(1, 11))


async def test_one_that_comes_just_as_the_last_ends_is_told_too(stage):
    hooks = stage.hooks(hook())
    for turns in range(12):
        before = len(stage.told)
        for seq in range(RUNNING_MAX):
            hooks.committed(gave_up(seq=seq))
        for _ in range(turns):
            await asyncio.sleep(0)
        hooks.committed(gave_up())
        await stage.until(lambda before=before: len(stage.told) == before + RUNNING_MAX + 1)


async def test_what_does_not_fit_into_the_queue_is_dropped_and_told_once_a_while(
    stage, caplog, monkeypatch
):
    monkeypatch.setattr(hooks_module, "TELL_S", 0.05)
    hooks = stage.hooks(hook())
    stage.go.clear()
    for _ in range(RUNNING_MAX):
        hooks.committed(gave_up())
    await stage.until(lambda: stage.running == RUNNING_MAX)
    for _ in range(QUEUE_MAX):
        hooks.committed(gave_up())
    assert caplog.messages == []
    for _ in range(30):
        hooks.committed(gave_up())
    assert caplog.messages == [DROPPED + "1"]
    await stage.until(lambda: len(caplog.messages) == 2)
    hooks.committed(gave_up())
    stage.go.set()
    await hooks.close(within_s=5)
    assert caplog.messages == [DROPPED + "1", DROPPED + "29", DROPPED + "1"]
    assert len(stage.told) == RUNNING_MAX + QUEUE_MAX


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (3, "ended with exit code 3"),
        (-9, "was ended by signal 9"),
        (TimeoutError(), "was killed: it took longer than 5 s"),
        (FileNotFoundError(2, "No such file"), "could not be run: [Errno 2] No such file"),
        (RuntimeError("odd"), "could not be run: odd"),
    ],
)
async def test_a_hook_that_fails_is_one_line_and_never_tried_again(stage, caplog, outcome, said):
    stage.outcome = outcome
    hooks = stage.hooks(hook("no"), hook())
    hooks.committed(gave_up())
    hooks.committed(gave_up(None, seq=8))
    await hooks.close(within_s=5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages == [
        f"[[hook]] (tell; gave_up of web, event 7) {said}",
        f"[[hook]] (tell; gave_up, event 8) {said}",
    ]
    assert len(stage.told) == 2


async def test_a_hook_that_fails_is_told_with_its_place_and_its_last_words(stage, caplog):
    stage.outcome, stage.says = 1, b"begun\nno such \x1b[2Jhost \xff\n \n"
    hooks = stage.hooks(msgspec.structs.replace(hook(), place="etc/services.toml:7"))
    hooks.committed(gave_up())
    await hooks.close(within_s=5)
    assert caplog.messages == [
        "etc/services.toml:7: [[hook]] (tell; gave_up of web, event 7) ended with exit code 1, "
        r"said last: no such \x1b[2Jhost " + "\ufffd"
    ]


async def test_a_hook_that_ends_well_is_not_spoken_of(stage, caplog):
    hooks = stage.hooks(hook())
    hooks.committed(gave_up())
    await hooks.close(within_s=5)
    assert caplog.messages == []
    assert stage.names == ["tell"]


async def test_an_event_that_cannot_be_written_as_json_is_one_hook_s_trouble(stage, caplog):
    hooks = stage.hooks(hook(on=("output_ended", "gave_up")))
    hooks.committed(other(OutputEnded(lines=("\ud800",)), "web"))
    hooks.committed(gave_up())
    await hooks.close(within_s=5)
    assert "could not be run" in caplog.messages[0]
    assert stage.names == ["tell"]


async def test_whatever_goes_wrong_in_matching_is_not_raised(stage, caplog):
    def tags_of(name):
        raise KeyError(name)

    hooks = stage.hooks(hook("tag:front", name="broken"), hook(), tags_of=tags_of)
    hooks.committed(gave_up())
    await hooks.close(within_s=5)
    assert caplog.messages == ["[[hook]] (broken; gave_up of web, event 7) cannot be told"]
    assert stage.names == ["tell"]


async def test_closing_cancels_what_runs_forgets_what_waits_and_leaves_no_task(stage, caplog):
    before = asyncio.all_tasks()
    hooks = stage.hooks(hook())
    stage.go.clear()
    for _ in range(QUEUE_MAX):
        hooks.committed(gave_up())
    await stage.until(lambda: stage.running == RUNNING_MAX)
    await hooks.close()
    assert (stage.cancelled, stage.running) == (RUNNING_MAX, 0)
    assert asyncio.all_tasks() == before
    hooks.committed(gave_up())
    assert asyncio.all_tasks() == before
    assert len(stage.told) == RUNNING_MAX
    assert caplog.messages == []


async def test_closing_before_anything_began_leaves_no_task(stage):
    before = asyncio.all_tasks()
    hooks = stage.hooks(hook())
    hooks.committed(gave_up())
    await hooks.close()
    assert asyncio.all_tasks() == before
    assert stage.told == []


async def test_closing_gives_what_is_under_way_no_longer_than_it_says(stage):
    hooks = stage.hooks(hook())
    stage.go.clear()
    hooks.committed(gave_up())
    await hooks.close(within_s=0.05)
    assert stage.cancelled == 1


async def test_what_was_dropped_last_is_told_at_the_end(stage, caplog):
    hooks = stage.hooks(hook())
    for _ in range(QUEUE_MAX + 5):
        hooks.committed(gave_up())
    await hooks.close()
    assert caplog.messages == [DROPPED + "1", DROPPED + "4"]
