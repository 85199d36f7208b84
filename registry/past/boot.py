"""Reading how a start of the registry went: its events from that start on, as many as it takes."""

from __future__ import annotations

from registry.journal.opening import Connection
from registry.journal.read import Selection, fold, pages, start_up_to
from registry.questions.boot import Beginning, Boot
from registry.questions.refusal import INVALID, Refusal


def boot(journal: Connection, last: int, name: str | None = None) -> Boot:
    """The latest start of the registry up to event `last`, with the critical chain of `name`, or of what was done last.

    Raises Refusal where there is no start, JournalError.
    """
    started = start_up_to(journal, last)
    if started is None:
        message = f"no start of the registry is in the journal up to event {last}"
        raise Refusal(INVALID, message)
    beginning = Beginning(fold(journal, started.seq), started)
    for records in pages(journal, Selection(after=started.seq)):
        beginning.fold(records)
        if beginning.is_over:
            break
    return beginning.answer(name)
