"""What can be wrong with a journal, in one sentence."""


class JournalError(Exception):
    """A journal cannot be opened, read or trusted; the text says which, why and what to do."""


class JournalDamaged(JournalError):
    """It is ours, but cannot be read to its end: `salvage` keeps what can."""
