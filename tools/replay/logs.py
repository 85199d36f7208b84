"""The lines that services wrote, put among the events by time: from folders of log files, wherever they lie."""

from __future__ import annotations

import errno
import heapq
import resource
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.core.events import Record
from registry.journal.opening import Connection
from registry.journal.read import Selection, last_seq, pages, service_names
from registry.logs.archive import Log, WrittenLine, names
from registry.questions.choice import ALL, Choice
from registry.questions.records import event_record, rfc3339
from registry.questions.timeline import line, log_line

_AT_ONCE = 1000
_encode = msgspec.json.Encoder().encode


class LineRecord(msgspec.Struct, frozen=True):
    """A line of a log, for --json. `at` and `run` are null where no index tells; `hint`: then or some time after."""

    service: str
    at: str | None
    run: int | None
    hint: bool
    line: str


class LogsError(Exception):
    """Log files that cannot be read, in one sentence."""


class Said(NamedTuple):
    """A line of a service's log."""

    service: str
    written: WrittenLine


class Logs:
    """The logs of some services in some folders, open; a context manager. `remarks` tell what is known less well.

    Raises LogsError for a folder that cannot be read, or holds no log of these services.
    """

    def __init__(self, folders: Sequence[Path], services: Collection[str]) -> None:
        self._opened = ExitStack()
        self._logs: list[tuple[str, Path, Log]] = []
        _allow_many_files()
        try:
            for folder in folders:
                self._open(folder, services)
        except OSError as error:
            self._opened.close()
            raise _complaint(error) from None
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def _open(self, folder: Path, services: Collection[str]) -> None:
        there = names(folder)
        wanted = [name for name in there if name in services]
        if not wanted:
            told = (
                f"it has {', '.join(f'{name}.log' for name in there[:8])}" if there else "no .log"
            )
            raise LogsError(f"{folder} holds no log of these services: {told}; name their folder")
        for name in wanted:
            path = folder / f"{name}.log"
            log = Log(path)
            self._opened.callback(log.close)
            self._logs.append((name, path, log))

    def among(
        self, journal: Connection, selection: Selection, choice: Choice = ALL
    ) -> Iterator[Record | Said]:
        """The events and lines of a selection, in the order of time; what is of one time: the event first.

        Of events only those that are asked for, of lines all.
        """
        streams = [_events(journal, selection, choice)]
        streams += [_lines(name, log, selection) for name, _, log in self._logs]
        return (each for _, each in heapq.merge(*streams, key=itemgetter(0)))

    def remarks(self) -> Iterator[str]:
        """What is to be said of the lines that were given out."""
        by_name = sorted({str(path.parent) for _, path, log in self._logs if log.is_by_name})
        for folder in by_name:
            yield f"{folder}: copied, so an index is taken for that of the file that it is named after"
        for _, path, log in self._logs:
            if log.untimed:
                yield (
                    f"{path}: no index tells when {log.untimed} of its lines were written:"
                    " they stand after what precedes them in their file"
                )


def _allow_many_files() -> None:
    """A log is several files, and all are open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _complaint(error: OSError) -> LogsError:
    if error.errno == errno.EMFILE:
        return LogsError("there are more log files than may be open at once; choose with --service")
    return LogsError(f"--logs {error.filename}: it cannot be read: {error.strerror}")


def _events(
    journal: Connection, selection: Selection, choice: Choice
) -> Iterator[tuple[int, Record | Said]]:
    """Each event with the time to sort by, which does not go back where the clock did."""
    order_ns = 0
    for records in pages(journal, selection):
        for record in records:
            order_ns = max(order_ns, record.at_ns)
            if choice.takes(record):
                yield order_ns, record


def _lines(name: str, log: Log, selection: Selection) -> Iterator[tuple[int, Record | Said]]:
    for written in log.lines(selection.first_ns, selection.last_ns):
        yield written.order_ns, Said(name, written)


def text(
    journal: Connection, logs: Logs, selection: Selection, choice: Choice = ALL
) -> Iterator[str]:
    """Events and lines for people, many at a time."""
    seq_width = len(str(last_seq(journal)))
    width = max(map(len, selection.services or service_names(journal)), default=1)
    rows = (
        line(event_record(each), seq_width=seq_width, service_width=width)
        if isinstance(each, Record)
        else _row(each, seq_width, width)
        for each in logs.among(journal, selection, choice)
    )
    return _joined(rows)


def _row(said: Said, seq_width: int, service_width: int) -> str:
    words, at_ns, is_hint, *_ = said.written
    at = rfc3339(at_ns) if at_ns is not None else None
    return log_line(
        words, said.service, at, is_hint=is_hint, seq_width=seq_width, service_width=service_width
    )


def json(
    journal: Connection, logs: Logs, selection: Selection, choice: Choice = ALL
) -> Iterator[str]:
    """The same as lines of JSON, many at a time: an event has a `seq`, a line of a log a `line`."""
    rows = (
        _encode(event_record(each) if isinstance(each, Record) else _record(each)).decode()
        for each in logs.among(journal, selection, choice)
    )
    return _joined(rows)


def _record(said: Said) -> LineRecord:
    words, at_ns, is_hint, run, _ = said.written
    at = rfc3339(at_ns) if at_ns is not None else None
    return LineRecord(said.service, at, run, is_hint, words)


def _joined(rows: Iterable[str]) -> Iterator[str]:
    rows = iter(rows)
    while some := list(islice(rows, _AT_ONCE)):
        yield "\n".join(some)
