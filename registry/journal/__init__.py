"""The only room with SQL: schema, the append-only table of events, reading and verifying it.

`Journal`, which writes, is loaded when it is first named: who only reads has no need of asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from registry.journal.errors import JournalDamaged, JournalError
from registry.journal.schema import SQLITE_VERSION

if TYPE_CHECKING:
    from registry.journal.journal import Journal

__all__ = ["SQLITE_VERSION", "Journal", "JournalDamaged", "JournalError"]


def __getattr__(name: str) -> Any:
    if name == "Journal":
        from registry.journal.journal import Journal

        return Journal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
