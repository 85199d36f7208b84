"""Records as rows and back, and the chain of hashes over them.

hash = BLAKE2b-160 of the previous row's hash and every other column of this one, as one JSON array.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any

import msgspec

from registry.core.digest import blake2b
from registry.core.events import TYPES, Actor, Event, Record
from registry.journal.errors import JournalDamaged, JournalError

Row = tuple[Any, ...]

NO_HASH = ""
_encode = msgspec.json.Encoder().encode


class _Decoders(dict[str, msgspec.json.Decoder[Event]]):
    """By the name of what they decode; made when first needed, as those of all take a hundredth of a boot."""

    def __missing__(self, kind: str) -> msgspec.json.Decoder[Event]:
        made = self[kind] = msgspec.json.Decoder(TYPES[kind])
        return made


_decoders = _Decoders()
_decode_actor = msgspec.json.Decoder(Actor).decode


def chain_hash(previous: str, columns: Row) -> str:
    """The hash of a row: over the hash before it and all its other columns."""
    return blake2b(previous.encode() + b"\n" + _encode(columns), digest_size=20).hexdigest()


def to_rows(records: Iterable[Record], previous: str) -> list[Row]:
    """Rows with their hashes, the first of which follows `previous`."""
    rows = []
    for record in records:
        columns = _columns(record)
        previous = chain_hash(previous, columns)
        rows.append((*columns, previous))
    return rows


def _columns(record: Record) -> Row:
    actor = _text(record.actor) if record.actor is not None else None
    return (
        record.seq,
        record.at_ns,
        record.mono_ns,
        record.decision,
        record.service,
        record.run,
        record.type,
        record.cause,
        actor,
        _text(record.event),
    )


def _text(value: Actor | Event) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:  # a path or a program's name is bytes that need not be UTF-8
        return _encode(_readable(msgspec.to_builtins(value))).decode()


def _readable(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_readable(key): _readable(each) for key, each in value.items()}
        case list() | tuple():
            return [_readable(each) for each in value]
        case _:
            return value


_Columns = tuple[int, int, int, int, str | None, int | None, str, int | None, str | None, str, str]
"""What a row is made of. The table is STRICT, but in a damaged file one bit makes an integer a float."""
_SHAPES = frozenset(
    (int, int, int, int, service, run, str, cause, actor, str, str)
    for service in (str, NoneType)
    for run in (int, NoneType)
    for cause in (int, NoneType)
    for actor in (str, NoneType)
)
"""The same as the types that a row may have: to compare them takes a tenth of the time."""


def to_record(row: Row) -> Record:
    """A row as the record that it holds. Raises JournalError where it holds none."""
    try:
        if tuple(map(type, row)) not in _SHAPES:
            row = msgspec.convert(row, _Columns)  # which says what is wrong
        seq, at_ns, mono_ns, decision, service, run, kind, cause, actor, body, _hash = row
        event = _decoders[kind].decode(body)
        who = _decode_actor(actor) if actor is not None else None
    except KeyError:
        raise JournalError(
            f"event {seq} is of the type '{kind}', which this version does not know;"
            " read this journal with the version that wrote it"
        ) from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JournalDamaged(f"event {row[0]} ({row[6]}) cannot be read: {error}") from None
    return Record(seq, at_ns, mono_ns, decision, service, run, cause, who, event)
