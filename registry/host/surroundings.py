"""What a run is given besides its process: a notification socket, listening sockets, stored descriptors.

All of it is held by the keeper, too, so that it outlives the daemon. What services say on their notification
sockets becomes observations; what changes nothing durable (beats, the words of STATUS) is only remembered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from registry.core import inputs as inp
from registry.core.definition import HEARTBEAT, Definition
from registry.host import activation, proc
from registry.host.activation import Sockets
from registry.host.fd_store import FdStore
from registry.host.health import Prober
from registry.host.launch import Launch
from registry.host.notify import KEPT_AS, Done, Notice, Notices
from registry.host.process import Runner

NOTIFY_FOLDER = "notify"
_LISTENING = activation.kept_as("")
_NOT_WELL = "the service itself said that it is not well"
NEWS_MAX = 20
"""How often a run may say something new that is journaled, before it has to wait for its next word."""
NEWS_S = 1.0
"""How long it then waits; so often it may go on for ever."""


_log = logging.getLogger(__name__)


class Holder(Protocol):
    """What is needed of the keeper."""

    def hold(self, service: str, slot: str, fd: int, meta: str = "") -> None:
        """Hold a descriptor, too, from now on."""

    def drop(self, service: str, slot: str) -> None:
        """Let go of it."""


Observe = Callable[[str, inp.Observation, Done | None], None]
"""Takes service, observation, and what is to be called once what follows from it is committed."""


class Held(Protocol):
    """A descriptor that the keeper has held for a service."""

    @property
    def service(self) -> str: ...

    @property
    def slot(self) -> str: ...

    @property
    def meta(self) -> str: ...

    @property
    def fd(self) -> int: ...


class Note(Protocol):
    """What a service said while no daemon was there."""

    @property
    def service(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def session(self) -> int: ...

    @property
    def text(self) -> bytes: ...

    @property
    def fds(self) -> tuple[int, ...]: ...


class Said(msgspec.Struct):
    """What the present run, whose processes carry `mark`, last said about itself.

    `beats` and `triggers`: it did so when nobody listened, as its checks had not begun anew. `ended` is the
    main process of a run that ended while no daemon was there: what it said before counts. `latest` is what it
    said that is journaled, by kind; at `news_s` of the loop's time it would have come at the pace allowed.
    """

    run: int
    mark: str
    ended: int | None = None
    status: str | None = None
    errno: int | None = None
    reloading: bool = False
    beats: bool = False
    triggers: bool = False
    latest: dict[type[inp.Observation], inp.Observation] = {}
    news_s: float = 0.0


class Surroundings:
    """The sockets and stored descriptors of all services, and what comes in by them."""

    def __init__(
        self, folder: Path, keeper: Holder, runner: Runner, prober: Prober, observe: Observe
    ) -> None:
        self._runner = runner
        self._prober = prober
        self._observe = observe
        self._said: dict[str, Said] = {}
        self._sockets = Sockets(keeper.hold, keeper.drop)
        self._store = FdStore(keeper.hold, keeper.drop)
        self._drop = keeper.drop
        self._notices = Notices(
            folder / NOTIFY_FOLDER,
            is_member=self._is_member,
            on_notice=self._take,
            hold=keeper.hold,
            drop=keeper.drop,
        )

    def equip(self, definition: Definition, launch: Launch) -> Launch:
        """The launch with all that its run is given, its `env` included. Raises OSError with a sentence."""
        name, env = definition.name, launch.env
        own_pid: tuple[str, ...] = ()
        if definition.is_notified:
            env["NOTIFY_SOCKET"] = self._notices.open(name, launch.uid)
        else:
            self._notices.close_service(name)
        beats = [check.interval_s for check in definition.checks if check.target == HEARTBEAT]
        if beats:
            env["WATCHDOG_USEC"] = str(int(min(beats) * 1_000_000))
            own_pid += ("WATCHDOG_PID",)
        named = [*self._sockets.ensure(definition, launch.uid), *self._store.of(name)]
        if named:
            env.update(activation.listen_variables(named))
            own_pid += ("LISTEN_PID",)
        descriptors = tuple(fd for _name, fd in named)
        return msgspec.structs.replace(launch, own_pid=own_pid, descriptors=descriptors)

    def begin(self, service: str, run: int, mark: str, *, ended: int | None = None) -> None:
        """A run of it is under way, or has `ended` as that process: what it says is said by this one."""
        self._said[service] = Said(run, mark, ended)

    def watched(self, service: str) -> None:
        """Its checks have begun: what it said to them before is told to them now."""
        said = self._said.get(service)
        if said is not None and (said.beats or said.triggers):
            self._tell_checks(service, said, beats=said.beats, triggers=said.triggers)

    def said(self, service: str) -> Said | None:
        """What its present or latest run last said about itself."""
        return self._said.get(service)

    def listen(self, definition: Definition, uid: int) -> None:
        """A run of it lives: where nobody kept its notification socket, it has another at the same path."""
        if not definition.is_notified:
            return
        try:
            self._notices.open(definition.name, uid)
        except OSError as error:
            _log.warning("%s", error.strerror or error)

    def rest(self, service: str) -> None:
        """Nothing of it runs, or is to: what is for its runs is given up."""
        self._sockets.close_service(service)
        self._store.clear(service)

    def forget(self, service: str) -> None:
        """It is no longer declared."""
        self.rest(service)
        self._notices.close_service(service)
        self._said.pop(service, None)

    def adopt(self, held: Sequence[Held], services: Iterable[str]) -> None:
        """Take up what the keeper has held; what is of nobody any more is let go."""
        known = set(services)
        for each in held:
            if each.slot == KEPT_AS:
                self._notices.adopt(each.service, each.fd)
            elif each.slot.startswith(_LISTENING):
                name = each.slot.removeprefix(_LISTENING)
                self._sockets.adopt(each.service, name, each.meta, each.fd)
            else:
                self._store.adopt(each.service, each.slot, each.meta, each.fd)
        for service in {each.service for each in held} - known:
            self.forget(service)

    def hear_late(self, notes: Sequence[Note], done: Done) -> None:
        """What services said while no daemon was there; `done` is called once all of it is committed."""
        remaining = len(notes)

        def one_done() -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                done()

        for note in notes:
            try:
                self._notices.deliver(
                    note.service, note.pid, note.uid, note.session, note.text, note.fds, one_done
                )
            except Exception:
                _log.exception("What %s said while nobody was there got lost", note.service)
                one_done()

    def hear(self, service: str) -> None:
        """Read what a service has said by now."""
        self._notices.read(service)

    def close(self) -> None:
        """Give back our descriptors; what the keeper holds stays."""
        self._notices.close()
        self._sockets.close()
        self._store.close()

    def _is_member(self, service: str, pid: int, _uid: int, session: int) -> bool:
        """A process that is gone by now is told by its session, or by having been the main process.

        One that has left its session and its parents behind, as daemons do, has its mark.
        """
        said = self._said.get(service)
        if said is None:
            return False
        leader = self._runner.leader_of(service, said.run)
        if leader is None:
            return said.ended is not None and said.ended in (pid, session)
        is_told = leader in (pid, session) or self._runner.owner_of(pid) == service
        return is_told or _mark_of(pid) == said.mark

    def _take(
        self, service: str, notice: Notice, _pid: int, fds: tuple[int, ...], done: Done
    ) -> None:
        said = self._said[service]  # whose processes are known has a run
        self._remember(said, notice)
        if notice.removes:
            self._store.remove(service, notice.fd_name)
        self._store.add(service, notice.fd_name, fds)
        self._tell_checks(service, said, beats=notice.beats, triggers=notice.triggers)
        observations = self._observations(service, said.run, notice)
        if not observations:
            done()
            return
        done = _paced(said, observations, done)
        *first, last = observations
        for each in first:
            self._observe(service, each, None)
        self._observe(service, last, done)

    def _tell_checks(self, service: str, said: Said, *, beats: bool, triggers: bool) -> None:
        if beats:
            said.beats = not self._prober.beat(service)
        if triggers:
            said.triggers = not self._prober.trigger(service, _NOT_WELL)

    def _remember(self, said: Said, notice: Notice) -> None:
        if notice.status is not None:
            said.status = notice.status or None
        if notice.errno is not None:
            said.errno = notice.errno or None
        if notice.reloading or notice.ready:
            said.reloading = notice.reloading

    def _observations(self, service: str, run: int, notice: Notice) -> list[inp.Observation]:
        found: list[inp.Observation] = []
        if notice.main_pid is not None:
            main = self._runner.change_main(service, run, notice.main_pid)
            if main is not None:
                found.append(inp.NotifiedMain(run=run, pid=main[0], start_time=main[1]))
        if notice.watchdog_s is not None:
            found.append(inp.NotifiedWatchdog(run=run, interval_s=notice.watchdog_s))
        if notice.ready:
            found.append(inp.NotifiedReady(run=run))
        if notice.stopping:
            found.append(inp.NotifiedStopping(run=run))
        if notice.extend_s is not None:  # of what it has just begun, too
            found.append(inp.NotifiedExtension(run=run, seconds=notice.extend_s))
        return found


def _paced(said: Said, observations: Sequence[inp.Observation], done: Done) -> Done:
    """`done`, held back where a run says new things faster than is good for the journal: it waits for itself only.

    None of it is lost, and its order stays: the next is left on the socket, which lets its sender wait, too.
    """
    news = [each for each in observations if said.latest.get(type(each)) != each]
    if not news:
        return done
    said.latest |= {type(each): each for each in news}
    loop = asyncio.get_running_loop()
    said.news_s = max(said.news_s, loop.time()) + NEWS_S
    wait_s = said.news_s - loop.time() - NEWS_MAX * NEWS_S
    return done if wait_s <= 0 else partial(_later, min(wait_s, NEWS_S), done)


def _later(wait_s: float, done: Done) -> None:
    asyncio.get_running_loop().call_later(wait_s, done)


def _mark_of(pid: int) -> str | None:
    try:
        return proc.mark(pid)
    except OSError:
        return None
