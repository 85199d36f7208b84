"""How much time has passed between events: CLOCK_BOOTTIME within a boot, UTC from one boot to the next. Pure.

So a wall clock that somebody sets lengthens nothing and shortens nothing, and time never runs back.
"""

from __future__ import annotations

from registry.core.events import Now, Record, RegistryStarted


class Elapsed:
    """Nanoseconds from a beginning on: `now_ns` is how many had passed at the record that was taken last.

    `boot_id` is that of the beginning, where it is known.
    """

    def __init__(self, beginning: Now, boot_id: str | None) -> None:
        self.now_ns = 0
        self._at_ns, self._mono_ns = beginning.at_ns, beginning.mono_ns
        self._boot_id = boot_id

    def take(self, record: Record) -> int:
        """Go on to a record; how much has passed since the beginning."""
        self.now_ns += self.passed_ns(record)
        self._at_ns, self._mono_ns = record.at_ns, record.mono_ns
        if isinstance(record.event, RegistryStarted):
            self._boot_id = record.event.boot_id
        return self.now_ns

    def passed_ns(self, record: Record) -> int:
        """How much passes between the latest record and this one."""
        event = record.event
        if isinstance(event, RegistryStarted) and self._boot_id not in (None, event.boot_id):
            return self.utc_until_ns(record.at_ns)
        passed_ns = record.mono_ns - self._mono_ns
        return passed_ns if passed_ns > 0 else 0

    def until_ns(self, moment: Now) -> int:
        """How much passes between the latest record and a moment of the same boot."""
        return max(0, moment.mono_ns - self._mono_ns)

    def utc_until_ns(self, at_ns: int) -> int:
        """How much passes between the latest record and a time in UTC."""
        return max(0, at_ns - self._at_ns)
