"""Reading how a start of the registry went: its events from that start on, as many as it takes."""

from __future__ import annotations

from registry.journal.read import Connection, Selection, fold, pages, start_up_to
from registry.questions.boot import Beginning, Boot


def boot(journal: Connection, last: int, name: str | None = None) -> Boot | None:
    """The latest start of the registry up to event `last`, with the critical chain of `name`, or of what was done last.

    None where there is no start. Raises JournalError.
    """
    started = start_up_to(journal, last)
    if started is None:
        return None
    beginning = Beginning(fold(journal, started.seq), started)
    for records in pages(journal, Selection(after=started.seq)):
        beginning.fold(records)
        if beginning.is_over:
            break
    return beginning.answer(name)
