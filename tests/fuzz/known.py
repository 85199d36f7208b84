"""Inputs that once broke a promise, each with what it broke: they are judged in every run of the tests."""

from __future__ import annotations

import json

from tests.fuzz.formats import JOURNAL, NAMES
from tests.fuzz.journals import BODY
from tests.fuzz.keeping import LOG
from tests.fuzz.script import step


def _format(name: str, text: str) -> bytes:
    return bytes([NAMES.index(name)]) + text.encode()


def _column(kind: int, which: int, value: bytes) -> bytes:
    return bytes([kind << 4 | which]) + value


def _message(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _kept(run: int) -> bytes:
    return _message(type="keep", service="w", run=run, output=True, log=LOG, fds=1)


def _each_way(data: bytes) -> list[bytes]:
    """The same a few times: what follows it only changes the chance that belongs to it."""
    return [data + b" " * more for more in range(7)]


KNOWN: dict[str, list[bytes]] = {
    "answers": [
        # the second answer was taken for the first where both came in one piece
        *_each_way(
            b"HTTP/1.1 204 No Cote\n\r\nHTTP/1.1 101 Ss\r\nUpgrade:w\r\nConnection:upgrade\r\n\n"
        )
    ],
    "rows": [
        # one bit makes an integer of SQLite's a float; the table's being STRICT does not help
        _column(3, 1, b""),
        _column(1, BODY, b"12345678"),
        # a name with a line end, which was told as it is
        _column(4, 4, b"a\nb"),
        # a run without a number, which the fold could not do without
        _column(8, 5, b"5"),
        # a body so deep that its decoder gives up
        _column(4, BODY, b'{"a":' + b"[" * 3000),
        # a restart that is due in the year 345925
        b'I{"attempt":1,"delay_s":0.0,"due_ns":10852429496729635000000,"source":"Failed","dest":"Restarting",'
        b'"reason":"unhealthy"}',
    ],
    "journal": [
        # pages of the file that form a ring: the replay of it had no end
        *_each_way(b"\n\x05\x02\x07\0\0\0\x80\xba\x01\x01N\0\0\0\x01N\0\0\0\x01N\0\0"),
        # a bit in the number of the schema: negative, which no migration begins with
        *_each_way(step(1, 0, 60, 0x80, 0xBF)),
        # a row that says it is longer than all memory
        *_each_way(b"\x00\x02\xaf\xf6\xda\xb3\x00\x12\x02\x00\x19\xaf8v\xff0\xda\xb3\x19\xafv\xff"),
        # a name that became a number
        *_each_way(b"\x01\x00\\\x87\x7f$\x01|\xab\x84\x1a\xda"),
    ],
    "logs": [
        # a compressed file that holds more than it says
        *_each_way(step(2, 4, 0x54, 0, 0x95)),
    ],
    "keeper": [
        # the number of a run that no index can hold
        *(way for run in (2**64, -1) for way in _each_way(_kept(run))),
    ],
    "told": [
        _message(type="kept", service="w", run=1, log=8, fds=0),
        _message(type="kept", service="w", run=1, log="\ud800", fds=0),
        _message(
            type="note", service="", pid=9, uid=0, session=9, at_mono_ns=7, text="\u0100", fds=0
        ),
    ],
    "formats": [
        # more hours than a float holds
        _format("moment", f"{'1' * 400} hours ago"),
        # a service may give its processes any mark: here the number of a run that int() refuses, and one too high
        _format("mark", f"CIRCLEOSD_RUN={JOURNAL}/web/\u00b2"),
        _format("mark", f"CIRCLEOSD_RUN={JOURNAL}/web/{'9' * 30}"),
        _format("mark", f"CIRCLEOSD_RUN={JOURNAL}/web/{'9' * 5000}"),
        # a glob whose translation takes the square of its length, while nobody else is answered
        _format("names", "[" * 20_000),
        _format("inherited", "\u00b2:8"),
        _format("inherited", "99999999999:8"),
        _format("manager", "1" * 4301 + ":"),
        _format("manager", "1" * 400 + ":"),
        _format("writer", '{"journal_id":' + "[" * 3000),
    ],
}
