"""Whether every service settles: looked at again and again while it does not, all of them now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from registry.core.definition import Definition
from registry.core.lifecycle import State
from registry.core.service import Service
from tests.simulation import invariants as inv
from tests.simulation.kernel import Kernel
from tests.simulation.life import Life
from tests.simulation.loop import NS, VirtualLoop

EVERY_S = 15.0
ALL_EVERY_S = 3600.0
GRACE_S = 30.0
"""What is overdue for longer will not come: the slowest disk takes less."""
FEW = 16
"""With no more services than these all are looked at each time."""

_UNDER_WAY = (State.STARTING, State.STOPPING, State.RESTARTING)


class Patience:
    """How long each service of a world has been overdue. `life` is that of the daemon, `hold` applies a rule."""

    def __init__(
        self,
        loop: VirtualLoop,
        kernel: Kernel,
        life: Callable[[], Life | None],
        hold: Callable[..., None],
        *,
        stalls: bool,
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._life = life
        self._hold = hold
        self._stalls = stalls
        self._overdue: dict[str, tuple[str, int]] = {}
        self._doubtful: dict[str, None] = {}
        self._is_looking = False

    def begin(self) -> None:
        """From now on all of them are looked at now and then."""
        self._loop.after(ALL_EVERY_S, self.begin)
        life = self._life()
        if life is not None and life.is_up:
            self.doubt(life.registry.committed.services)

    def begin_anew(self) -> None:
        """Another daemon has its own time for everything."""
        self._overdue.clear()
        self._doubtful.clear()

    def doubt(self, names: Iterable[str]) -> None:
        """Something happened to these services."""
        self._doubtful.update(dict.fromkeys(names))
        if self._doubtful and not self._is_looking:
            self._is_looking = True
            self._loop.after(EVERY_S, self._look)

    def _look(self) -> None:
        self._is_looking = False
        life = self._life()
        if life is None or not life.is_up or life.dead:
            return
        services = life.registry.committed.services
        for name in [name for name in self._overdue if name not in services]:
            del self._overdue[name]
        names = list(services if len(services) <= FEW else self._doubtful)
        self._doubtful.clear()
        for name in names:
            service = services.get(name)
            if service is not None and self._is_doubtful(service, life):
                self._doubtful[name] = None
        self.doubt(())

    def _is_doubtful(self, service: Service, life: Life) -> bool:
        name, services, now_ns = service.name, life.registry.committed.services, self._loop.now_ns
        why = inv.overdue(service, services, self._kernel, self._kernel.now().mono_ns)
        known = self._overdue.get(name)
        if why is None or now_ns < life.stalled_until_ns:
            self._overdue.pop(name, None)
        elif known is None or known[0] != why:
            self._overdue[name] = (why, now_ns)
        elif now_ns - known[1] > self._patience_ns(service.definition):
            self._hold(inv.every_service_settles, name, why, (now_ns - known[1]) / NS)
        is_to_stop = service.state is State.RUNNING and not service.wanted
        is_under_way = service.state in _UNDER_WAY or service.ending_ns is not None or is_to_stop
        return why is not None or is_under_way

    def _patience_ns(self, definition: Definition) -> int:
        """A daemon that stood still gives a run its start timeout again."""
        again_s = definition.start_timeout_s if self._stalls else 0.0
        return int((GRACE_S + again_s) * NS)
