"""What can be wrong with a journal, in one sentence."""


class JournalError(Exception):
    """A journal cannot be opened, read or trusted; the text says which, why and what to do."""


class JournalDamaged(JournalError):
    """It is ours, but cannot be read to its end: `salvage` keeps what can."""


class Compacted(JournalError):
    """What was asked for is of before the first event that there is, number `first`."""

    def __init__(self, message: str, first: int) -> None:
        super().__init__(message)
        self.first = first
