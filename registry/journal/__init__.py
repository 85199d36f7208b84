"""The only room with SQL: schema, the append-only table of events, reading and verifying it."""

from registry.journal.errors import JournalDamaged, JournalError
from registry.journal.journal import Journal
from registry.journal.schema import SQLITE_VERSION

__all__ = ["SQLITE_VERSION", "Journal", "JournalDamaged", "JournalError"]
