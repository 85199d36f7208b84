"""A fleet of services of all bad habits, in a folder: their configuration, its changes, and the registry.

A steady service runs for good when it is left alone: it is what runs in a quiet moment. The others never come to rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.crash import world as crash
from tests.soak.habits import HABITS
from tests.soak.sight import keepers, kill, service_processes

HERE = Path(__file__).parent
STEADY, RESTLESS = "steady", "restless"
SIZE_MAX, FILES_MAX = 256_000, 3
LOG_OF_A_SERVICE_MAX = FILES_MAX * (SIZE_MAX + 2**14 + SIZE_MAX // 4 + 2**16)
"""Bytes: each file may go on for a line of 16 KiB, and beside it lies an index (README, Logs)."""
TMP = "tmp"
"""The folder for what is temporary: TMPDIR of registry and keeper."""
EXTRAS = 8
"""Services that only changed configurations have."""
OF = 200
"""The services of which the numbers below speak."""


class Kind(NamedTuple):
    """Services of one habit: how many of 200, who runs them, what else their definition says.

    `program` is a habit of the crash rounds or of the soak, or a whole command where it is a list. In `keys` {name}
    is the service's name, {port} a port of its own, {check} the command of a check.
    """

    number: int
    program: str | list[str]
    keys: str = ""
    address: str = ""
    tag: str = RESTLESS


def _check(target: str, more: str = 'interval = "1s", timeout = "300ms", failures = 2') -> str:
    return f'health_check = {{ target = "{target}", {more} }}'


CALM = 'interval = "1s", timeout = "3s", failures = 50'
"""A steady service is not to be restarted because the machine was busy."""
PORT = "{port}"

KINDS: dict[str, Kind] = {
    "rest": Kind(18, "rest", tag=STEADY),
    "plain": Kind(6, "accept", _check("unix:at/{name}", CALM), "unix:at/{name}", STEADY),
    "web": Kind(6, "serve", _check("http://127.0.0.1:{port}/", CALM), PORT, STEADY),
    "inner": Kind(4, "serve", _check("http+unix:at/{name}:/", CALM), "unix:at/{name}", tag=STEADY),
    "port": Kind(4, "accept", _check("tcp:127.0.0.1:{port}", CALM), PORT, STEADY),
    "asked": Kind(4, "rest", _check("cmd:true", CALM), tag=STEADY),
    "beats": Kind(6, "beat", 'ready = "notify"\n' + _check("heartbeat:", CALM), tag=STEADY),
    "saver": Kind(4, "save", 'ready = "notify"', tag=STEADY),
    "held": Kind(4, "hold", 'sockets = { main = "unix:at/{name}" }', "unix:at/{name}", STEADY),
    "needs": Kind(4, "rest", 'depends_on = { plain-0 = "healthy" }', tag=STEADY),
    "crash": Kind(20, "crash"),
    "instant": Kind(10, ["false"]),
    "hopeless": Kind(6, ["false"], 'restart = { limit = 3, within = "1m" }'),
    "missing": Kind(2, ["./nothing-here"]),
    "slow": Kind(14, "slow"),
    "deaf": Kind(6, "deaf"),
    "fork": Kind(8, "fork"),
    "leave": Kind(8, "leave"),
    "flood": Kind(5, "flood"),
    "endless": Kind(4, "go_on"),
    "flap": Kind(6, "vanish", _check("unix:at/{name}"), "unix:at/{name}"),
    "shaky": Kind(6, "vanish", _check("tcp:127.0.0.1:{port}"), PORT),
    "liar": Kind(7, "lie", _check("http://127.0.0.1:{port}/"), PORT),
    "rogue": Kind(4, "rest", _check("cmd:{check}")),
    "skips": Kind(6, "beat_badly", _check("heartbeat:", 'interval = "1s", timeout = "500ms"')),
    "talker": Kind(8, "talk", 'ready = "notify"\nstart_timeout = "3s"\n' + _check("heartbeat:")),
    "grower": Kind(6, "grow", "restart = { memory_max = 30_000_000 }"),
    "once": Kind(6, "once", 'oneshot = true\nrestart = "OnFailure"'),
    "follows": Kind(
        8, "rest", "depends_on = { crash-0 = { restart = true }, once-0 = {} }", tag=RESTLESS
    ),
}


def names(services: int) -> dict[str, str]:
    """That many services, or a few more: their kinds by their names, each kind at least once."""
    return {
        f"{kind}-{n}": kind
        for kind, each in KINDS.items()
        for n in range(max(1, round(each.number * services / OF)))
    }


class Fleet(crash.World):
    """The folder and its registry."""

    def __init__(self, folder: Path, services: int) -> None:
        self._ports = iter(_free_ports(len(names(services))))
        self._port_of: dict[str, str] = {}
        super().__init__(folder, names(services))
        self.drop_ins = folder / "etc" / "services.d"
        self.drop_ins.mkdir()
        (folder / TMP).mkdir()

    @property
    def steady(self) -> list[str]:
        """The names of the services that run in a quiet moment."""
        return [name for name, kind in self.services.items() if KINDS[kind].tag == STEADY]

    def _services(self) -> str:
        return self._head() + "".join(map(self._section, self.services.items()))

    def _head(self) -> str:
        hear = json.dumps([*_python(), str(HERE / "habits.py"), "hear", str(self.folder)])
        return (
            f'[registry]\nsocket = "{self.socket}"\n'
            '[defaults]\nstop = "1s"\nrestart = { delay = "1s", delay_max = "30s" }\n'
            f"logs = {{ size_max = {SIZE_MAX}, files_max = {FILES_MAX} }}\n"
            '[[hook]]\non = ["gave_up", "became_unhealthy", "memory_exceeded"]\n'
            f'timeout = "1s"\ncmd = {hear}\n'
        )

    def _section(self, service: tuple[str, str]) -> str:
        name, kind = service
        each = KINDS[kind]
        if (PORT in each.keys or each.address == PORT) and name not in self._port_of:
            self._port_of[name] = str(next(self._ports))
        command = json.dumps(self._command(each))
        text = f'\n[[service]]\nname = "{{name}}"\ntags = ["{each.tag}"]\ncmd = {command}\n{each.keys}\n'
        check = " ".join([*_python(), str(HERE / "habits.py"), "probe", str(self.folder)])
        for key, value in (
            ("{name}", name),
            (PORT, self._port_of.get(name, "")),
            ("{check}", check),
        ):
            text = text.replace(key, value)
        return text

    def _command(self, kind: Kind) -> list[str]:
        if isinstance(kind.program, list):
            return kind.program
        script = HERE / "habits.py" if kind.program in HABITS else crash.HERE / "habits.py"
        address = [kind.address] if kind.address else []
        return [*_python(), str(script), kind.program, str(self.folder), *address]

    # --- changes of the configuration -------------------------------------------------------------

    def declare(self) -> None:
        """The configuration of every quiet moment."""
        for path in self.drop_ins.iterdir():
            path.unlink()
        _replace(self.configuration, self._services())

    def change(self, chance: Random, *, wrong: bool) -> None:
        """Another configuration: services changed, gone and added; where it is to be `wrong`, it is refused."""
        sections = [self._head()]
        for service in self.services.items():
            if chance.random() < 0.03 and service[0] not in ("plain-0", "crash-0", "once-0"):
                continue
            text = self._section(service)
            if chance.random() < 0.05:
                text += f'env = {{ CHANGED = "{chance.random()}" }}\n'
            elif chance.random() < 0.1:
                text += f"nice = {chance.randint(0, 3)}\n"
            elif chance.random() < 0.1:
                text += f'start_timeout = "{chance.randint(20, 90)}s"\n' * ("start" not in text)
            sections.append(text)
        _replace(self.configuration, "".join(sections))
        added = [
            self._section((f"extra-{n}", chance.choice(["rest", "crash", "flood", "slow"])))
            for n in range(EXTRAS)
            if chance.random() < 0.5
        ]
        nonsense = "\nsuch = nonsense\n" if wrong else ""
        _replace(self.drop_ins / "extra.toml", "".join(added) + nonsense)

    # --- processes --------------------------------------------------------------------------------

    def keeper(self) -> int | None:
        """The keeper's pid, where there is one."""
        found = keepers(self.folder)
        return found[-1] if found else None

    def kill_the_keeper(self) -> None:
        """End it as a crash would."""
        if (pid := self.keeper()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_a_service(self, chance: Random) -> None:
        """End one process of a service as a crash would."""
        if found := service_processes(self.socket):
            kill(chance.choice(sorted(found)))


def _replace(path: Path, text: str) -> None:
    """Write a file that is read at any moment: as a whole."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def _python() -> list[str]:
    return [sys.executable, "-I", "-S"]


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has just now."""
    held = []
    for _ in range(count):
        held.append(socket.socket(socket.AF_INET))
        held[-1].bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
