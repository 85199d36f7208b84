"""Opening a journal file that may be live, a copy, or read-only, and asking it.

Nothing is changed where the journal lies, no file is made beside it, and never is it opened with
immutable=1, which leaves the -wal out. Whatever SQLite complains of is a JournalError.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry.core.events import RegistryStopped
from registry.journal.errors import JournalDamaged, JournalError
from registry.journal.rows import Row
from registry.journal.schema import APPLICATION_ID, SCHEMA_VERSION, UNREADABLE, complaint_of

Connection = sqlite3.Connection
"""An open journal, for those who know no SQL: to be handed to the functions of this package, and closed."""

_COPIES_MAX = 5
# https://www.sqlite.org/fileformat2.html: "File format read version", 2 for WAL; and the -wal's header
_READ_VERSION_OFFSET, _READ_VERSION_WAL = 19, b"\x02"
_WAL_HEADER_BYTES = 32
# "The database header": the size of a page, where 1 stands for 65,536, and of the file in pages, which counts
# where two counters are the same
_MAGIC, _HEADER_BYTES = b"SQLite format 3\0", 100
_PAGE_BYTES, _CHANGES, _PAGES, _PAGES_AS_OF = (
    slice(16, 18),
    slice(24, 28),
    slice(28, 32),
    slice(92, 96),
)


def open_for_reading(path: Path) -> Connection:
    """A read-only connection to a journal. Raises JournalError in one sentence.

    SQLite makes a -wal and a -shm where they are missing, and leaves them there. So the file itself is
    read only where both exist, as beside every live journal; else a private copy is, as where its end is cut off.
    """
    try:
        _refuse_other_than_a_file(path)
        return _open_in_place(path) or open_copy(path)
    except UNREADABLE as error:
        raise JournalError(
            f"{path}: it cannot be read as a journal: {complaint_of(error)}"
        ) from None
    except OSError as error:
        raise JournalError(f"{path}: it cannot be read: {error.strerror}") from None


def _refuse_other_than_a_file(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise JournalError(f"{path}: there is no such file; name a journal") from None
    if stat.S_ISDIR(found.st_mode):
        raise JournalError(f"{path}: this is a folder; name a journal, which is a file")
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path}: this is no ordinary file; name a journal")
    if found.st_size == 0:
        raise JournalError(f"{path}: this file is empty, so it is not a journal")


def _open_in_place(path: Path) -> Connection | None:
    """None where that would make files beside the journal, or is not possible."""
    if _is_in_wal_mode(path) and not all(_beside(path, name).exists() for name in ("-wal", "-shm")):
        return None
    try:
        return _connect(path, path)
    except sqlite3.OperationalError:  # a -shm that may not be used
        return None
    except sqlite3.DatabaseError:
        if is_cut(path):
            return None
        raise


def open_copy(path: Path) -> Connection:
    """A connection to a copy; once SQLite has it open, the copy needs no name any more.

    A copy whose end is cut off is as long as it was: of one that is shorter SQLite reads nothing. Raises
    JournalError, UNREADABLE.
    """
    import tempfile

    try:
        with tempfile.TemporaryDirectory(prefix="circle-replay-") as folder:
            copy = Path(folder) / "journal.db"
            _copy_whole(path, copy)
            if is_cut(copy):
                with suppress(OSError):  # its header may be damaged, and name any size
                    os.truncate(copy, _bytes_by_header(copy))
            return _connect(copy, path)
    except OSError as error:
        raise JournalError(
            f"{path}: no copy of it can be made to read: {error.strerror} ({error.filename});"
            " TMPDIR names the folder for it"
        ) from None


def _connect(file: Path, path: Path) -> Connection:
    uri = f"{file.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        check_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _copy_whole(path: Path, copy: Path) -> None:
    """Copy a journal and its -wal as they were between two checkpoints of whoever writes them."""
    for _ in range(_COPIES_MAX):
        before = _generation(path)
        for suffix in ("", "-wal"):
            _copy_or_remove(_beside(path, suffix), _beside(copy, suffix))
        if _generation(path) == before:
            return
    raise JournalError(
        f"{path}: it changes while it is copied;"
        " read it as a user who may use its -shm, or copy it while it is quiet"
    )


def _copy_or_remove(source: Path, copy: Path) -> None:
    import shutil

    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError:
        copy.unlink(missing_ok=True)


def _generation(path: Path) -> tuple[int, int, bytes]:
    """What differs after a checkpoint; frames appended to the same -wal do no harm to a copy."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, _bytes(_beside(path, "-wal"), 0, _WAL_HEADER_BYTES)


def is_cut(path: Path) -> bool:
    """Whether a file is shorter than it says."""
    return path.stat().st_size < _bytes_by_header(path)


def _bytes_by_header(path: Path) -> int:
    header = _bytes(path, 0, _HEADER_BYTES)
    if not header.startswith(_MAGIC) or header[_CHANGES] != header[_PAGES_AS_OF]:
        return 0
    page_bytes = int.from_bytes(header[_PAGE_BYTES])
    return int.from_bytes(header[_PAGES]) * (65_536 if page_bytes == 1 else page_bytes)


def _is_in_wal_mode(path: Path) -> bool:
    return _bytes(path, _READ_VERSION_OFFSET, 1) == _READ_VERSION_WAL


def _bytes(path: Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), count, offset)
    except FileNotFoundError:
        return b""


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def check_schema(connection: Connection, path: Path) -> None:
    """Raise JournalError unless this is a journal of a version that we know."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == tables == 0:
        raise JournalError(
            f"{path}: this SQLite file holds nothing, as a young journal does without its -wal;"
            f" copy {path.name}-wal along, or name another journal"
        )
    refuse_stranger(path, application=application, version=version)


def refuse_stranger(path: Path, *, application: int, version: int) -> None:
    """Raise JournalError for a file of another program, or of a later version of this one; or JournalDamaged."""
    if application != APPLICATION_ID:
        raise JournalError(f"{path}: this SQLite file is not a journal of the Service Registry")
    if version < 1:
        raise JournalDamaged(f"{path}: its header was damaged: it names schema {version}")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION});"
            " use that version, or name another journal"
        )


def doubt(connection: Connection, path: Path) -> str | None:
    """A sentence where newer events may be missing: the -wal that would hold them is not there.

    A live journal has one, as has one whose registry was killed; after an orderly stop none is needed.
    """
    if not _is_in_wal_mode(path) or _bytes(_beside(path, "-wal"), 0, 1):
        return None
    with suppress(JournalError):  # where its end is damaged, what is asked will say so
        rows = ask(connection, "SELECT type FROM events ORDER BY seq DESC LIMIT 1")
        if rows == [(RegistryStopped.TYPE,)]:
            return None
    name = _beside(path, "-wal").name
    return f"no {name} beside it: if it was copied without, newer events may be missing"


def ask(
    connection: Connection, question: str, values: tuple[Any, ...] = (), *, after: int = 0
) -> list[Row]:
    """All rows that answer a question. Raises JournalDamaged; `after` is the event that was read last."""
    try:
        return connection.execute(question, values).fetchall()
    except UNREADABLE as error:
        where = f"after event {after} " if after > 0 else ""
        raise JournalDamaged(f"{where}the file cannot be read: {complaint_of(error)}") from None
