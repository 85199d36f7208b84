"""Somebody who sends start, stop and restart all the time, and writes down what was acknowledged."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from random import Random

import msgspec

from tests.crash.world import World, dependents

ANSWER_S = 15.0
PAUSE_S = 0.005
WITH_DEPENDENTS = 0.5
"""How often those that depend on one are stopped with it."""
VERBS = ("start", "stop", "restart", "restart")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""In such steps since boot /proc tells when a process was born."""


class Sent(msgspec.Struct, frozen=True):
    """A command that reached the registry; `seq` is None where no answer came, so it may have happened or not.

    `sent_tick`: no process that was born before this tick was born of it.
    """

    verb: str
    service: str
    seq: int | None
    sent_tick: int
    answered_s: float

    @property
    def begins(self) -> bool:
        """Whether it leads to a run."""
        return self.verb in ("start", "restart")

    @property
    def ends(self) -> bool:
        """Whether the run that there is when it comes is to end."""
        return self.verb in ("stop", "restart")

    def __str__(self) -> str:
        return f"{self.verb} ({'unanswered' if self.seq is None else f'acknowledged: {self.seq}'})"


class Commander(threading.Thread):
    """Commands `services` until `stop()`; `sent` is what came of it, in order."""

    def __init__(self, world: World, services: list[str], chance: Random, pause_s: float) -> None:
        super().__init__(daemon=True)  # who is interrupted does not wait for it
        self.sent: list[Sent] = []
        self.acknowledged = threading.Event()
        self._world = world
        self._services = services
        self._chance = chance
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._due = {name: max(1, len(world.executions(name))) for name in services}

    def stop(self) -> None:
        """Come to an end, and wait for that."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """One command after the other."""
        while not self._ended.wait(self._chance.uniform(0, self._pause_s)):
            service = self._chance.choice(self._services)
            verb = self._chance.choice(VERBS)
            if self._world.services[service] in ("once", "setup"):
                # asked again before it ran, one execution would do for two commands
                if len(self._world.executions(service)) < self._due[service]:
                    continue
                verb = "restart"
            names = [service]
            if verb == "stop" and self._chance.random() < WITH_DEPENDENTS:
                names += dependents(service)
            self._send(verb, names)

    def _send(self, verb: str, names: list[str]) -> None:
        """Send a command for the first of them, and in the case of several for all of its dependents, too."""
        service = names[0]
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_S)
            try:
                client.connect(str(self._world.socket))
            except OSError:
                time.sleep(PAUSE_S)  # nobody is there just now
                return
            executed = len(self._world.executions(service))
            sent_tick = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // TICK_NS
            request: dict[str, object] = {"action": verb, "service": service}
            if len(names) > 1:
                request["with_dependents"] = True
            seqs = _seqs_of_answer(client, request)
        if seqs == {}:  # refused
            return
        self._due[service] = executed + (seqs is not None)
        answered_s = time.monotonic()
        # of its dependents those are answered for that were not at rest
        for name in names if seqs is None else seqs:
            seq = None if seqs is None else seqs[name]
            self.sent.append(Sent(verb, name, seq, sent_tick, answered_s))
        if seqs is not None:
            self.acknowledged.set()


def _seqs_of_answer(client: socket.socket, request: dict[str, object]) -> dict[str, int] | None:
    """The numbers of the events that a command led to, by service; none where it was refused, None where
    no answer came.
    """
    try:
        client.sendall(json.dumps(request).encode() + b"\n")
        with client.makefile("rb") as answers:
            line = answers.readline()
    except ConnectionError:
        line = b""
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    if answer["ok"]:
        return {item["name"]: int(item["seq"]) for item in answer["data"]}
    if answer["error"]["code"] in ("outcome_unknown", "partial_failure"):
        return None
    return {}
