"""All services, from committed events: what every answer is made of. Nothing answers from live machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.service import Service, evolve, restored

FOLD = 2
"""Raised whenever the same events come to something else than before, or to more: what an earlier version kept of
its fold does not count any more. tests/golden shows when.
"""


class Projection(msgspec.Struct):
    """The fold of a journal up to `seq`.

    `orderly` says that its last registry stopped every service and ended, or that there was none.
    `last_runs` are those of services that are no longer declared.
    """

    seq: int = 0
    journal_id: str = ""
    started: ev.RegistryStarted | None = None
    started_at_ns: int = 0
    orderly: bool = True
    services: dict[str, Service] = {}
    last_runs: dict[str, int] = {}

    def fold(self, records: Iterable[ev.Record]) -> None:
        """Take in further records, in order. An event that nobody knows is an error, not a gap."""
        services, removed, seq = self.services, ev.Removed, self.seq
        try:
            for record in records:
                service = services.get(record.service or "")
                if service is None or type(record.event) is removed:
                    self._fold_one(record)
                else:  # all but a few
                    evolve(service, record)
                seq = record.seq
        finally:
            self.seq = seq

    def _fold_one(self, record: ev.Record) -> None:
        event = record.event
        match event:
            case ev.JournalCreated() | ev.JournalCopied():
                self.journal_id = event.journal_id
            case ev.RegistryStarted():
                self.started, self.started_at_ns, self.orderly = event, record.at_ns, False
                for service in self.services.values():
                    evolve(service, record)
            case ev.RegistryStopped():
                self.orderly = not event.kept
            case ev.JournalCompacted():
                pass  # nothing that is known is known less
            case ev.Removed():
                self.remove(record.service or "")
            case _:
                evolve(self._service(record), record)

    def _service(self, record: ev.Record) -> Service:
        name = record.service or ""
        if name not in self.services:
            match record.event:
                case ev.Defined(definition=definition):
                    self.add(definition)
                case ev.Resynced() as event:  # it stands for how it was declared, too
                    self.add(restored(event).definition)
        return self.services[name]

    def add(self, definition: Definition) -> Service:
        """A service that is declared now; the numbers of its earlier runs, if any, are not used again."""
        service = Service(definition=definition, run=self.last_runs.pop(definition.name, 0))
        self.services[definition.name] = service
        return service

    def remove(self, name: str) -> None:
        """Forget a service, but for the number of its last run."""
        gone = self.services.pop(name, None)
        if gone is not None:
            self.last_runs[name] = gone.run

    def in_order(self) -> Iterator[Service]:
        """The services as the file lists them."""
        return iter(sorted(self.services.values(), key=lambda service: service.definition.position))
