"""The answer of `list_services`: a row for each service, encoded anew only where it may have changed.

Of a thousand services few move between two questions. A row follows from its service alone, but for those that wait:
what they wait for is said by how others are.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from registry.core.events import Defined, Record, Redefined, Removed
from registry.core.lifecycle import Reason
from registry.core.service import UP, Service
from registry.questions.records import service_record
from registry.registry import Registry

_encode = msgspec.json.Encoder().encode


class Listing:
    """All services as the file lists them, as of the committed projection."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._as_of = (-1, 0)
        self._rows: dict[str, bytes] = {}
        self._waiting: set[str] = set()
        self._answer = msgspec.Raw(b"[]")

    def answer(self) -> msgspec.Raw:
        """One line of JSON."""
        as_of = self._registry.as_of
        if as_of != self._as_of:
            records = self._registry.moved_since(self._as_of)
            self._as_of = as_of
            if records is None or any(map(_changes_rows, records)):
                self._begin()
            else:
                self._encode({*self._waiting, *(each.service for each in records if each.service)})
            self._answer = msgspec.Raw(b"[%b]" % b",".join(self._rows.values()))
        return self._answer

    def _begin(self) -> None:
        names = [service.name for service in self._registry.committed.in_order()]
        self._rows = dict.fromkeys(names, b"")
        self._waiting.clear()
        self._encode(names)

    def _encode(self, names: Iterable[str]) -> None:
        services = self._registry.committed.services
        for name in names:
            service = services[name]
            self._rows[name] = _encode(service_record(service, services))
            if _may_wait(service):
                self._waiting.add(name)
            else:
                self._waiting.discard(name)


def _changes_rows(record: Record) -> bool:
    """Whether there are others than before, or in another order."""
    return isinstance(record.event, Defined | Redefined | Removed)


def _may_wait(service: Service) -> bool:
    return service.reason is Reason.WAITING or (service.state in UP and not service.wanted)
