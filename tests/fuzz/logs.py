"""Damaged log files and indexes: read by lines, time and run, followed, and written on."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

from registry.api.growth import Source, read
from registry.logs.compress import compress
from registry.logs.index import MAGIC, RECORD, Index, index_path, owner_of
from registry.logs.names import GZ
from registry.logs.read import (
    LAST_BYTES,
    LAST_LINES,
    TAIL_MAX,
    Line,
    Selection,
    last_words,
    select,
    select_and_follow,
    tail,
    tail_and_follow,
)
from registry.logs.spans import _joined
from registry.questions.records import rfc3339
from tests.fuzz import script
from tests.fuzz.chunks import chance_of
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

NS = 1_000_000_000
BEGAN_NS = 1_767_225_600 * NS
LINES = 30
"""Of each file; runs wrote them in turn, a new one after LINES_OF_RUN."""
LINES_OF_RUN = 12
NAMES = ("web.log", "web.log.1", f"web.log.2{GZ}")
TURNS_MAX = 50
"""Reads of a follower after which it has caught up, or never does."""


class _Files(NamedTuple):
    """A log in a folder: its paths, files and indexes in turn, and what was in them."""

    path: Path
    paths: list[Path]
    whole: list[bytes]


@contextmanager
def judging() -> Iterator[Judge]:
    """A log of three files, one of them compressed, each with its index."""
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        files = _write(Path(folder))
        written = set(_texts())
        dirty: set[int] = set()

        def judge(data: bytes) -> None:
            damaged = script.damage(data, files.whole)
            changed = {n for n, part in enumerate(damaged) if part != files.whole[n]}
            for number in changed | dirty:
                script.put(files.paths[number], damaged[number])
            dirty.clear()
            dirty.update(changed)
            chance = chance_of(data)
            # the odd ones are indexes: damage to them alone makes no line another
            _judge_reading(files.path, chance, written if all(n % 2 for n in changed) else None)
            if chance.random() < 0.2:
                _judge_writing(files, chance)
                dirty.add(1)

        yield judge


def _texts(number: int | None = None) -> list[str]:
    numbers = range(len(NAMES)) if number is None else [number]
    return [f"file {n} line {line} {'x' * (line % 50)}" for n in numbers for line in range(LINES)]


def _write(folder: Path) -> _Files:
    paths = []
    for number, name in reversed(list(enumerate(NAMES))):
        plain, index = (
            folder / name.removesuffix(GZ),
            Path(index_path(str(folder / NAMES[0]), number)),
        )
        plain.touch()
        writer = Index(str(index))
        writer.open(plain.stat().st_ino, 0)
        _fill(plain, writer, number)
        if name.endswith(GZ):
            _compress(plain, folder / name)
        paths += [index, folder / name]
    paths.reverse()
    return _Files(folder / NAMES[0], paths, [path.read_bytes() for path in paths])


def _fill(plain: Path, writer: Index, number: int) -> None:
    with plain.open("ab", buffering=0) as file:
        for line, text in enumerate(_texts(number)):
            at_ns = BEGAN_NS + ((len(NAMES) - number) * LINES + line) * NS
            writer.note(file.tell(), 1 + (len(NAMES) - number) + line // LINES_OF_RUN, at_ns)
            file.write(f"{text}\n".encode())
    writer.close()


def _compress(plain: Path, target: Path) -> None:
    with plain.open("rb") as source, target.open("wb") as packed:
        compress(source.fileno(), packed.fileno())
    plain.unlink()


# --- what is judged -------------------------------------------------------------------------------


def _judge_reading(path: Path, chance: Random, written: set[str] | None) -> None:
    """One question, of those that a client or the daemon asks."""
    count, selection = chance.choice((1, 7, 200, 100_000)), _selection(chance)
    match chance.randrange(5):
        case 0:
            _judge_lines(tail(path, count), count, written)
        case 1:
            chosen = select(path, count, selection)
            _judge_chosen(chosen, count, selection, written)
            if selection == Selection() and written is not None:
                told = tail(path, count)
                assert [each.text for each in chosen] == told, "two ways of reading disagree"
        case 2:
            words = last_words(path, chance.randint(0, 9))
            assert len(words) <= LAST_LINES
            assert sum(len(word.encode()) for word in words) <= LAST_BYTES
        case 3:
            read([Source("web", path, selection), Source("db", path)], count)
        case _:
            _judge_following(path, count, selection if chance.random() < 0.5 else None)


def _judge_following(path: Path, count: int, selection: Selection | None) -> None:
    if selection is None:
        told, follower = tail_and_follow(path, count)
        found = len(told)
    else:
        chosen, follower = select_and_follow(path, count, selection)
        found = len(chosen)
    try:
        assert found <= count
        for _ in range(TURNS_MAX):
            if not follower.read_new() and not follower.behind:
                return
        raise AssertionError("it follows without an end")
    finally:
        follower.close()


def _selection(chance: Random) -> Selection:
    def at_ns() -> int | None:
        return chance.choice(
            (None, BEGAN_NS + chance.randrange(5 * LINES) * NS, -(2**63), 2**63 - 1)
        )

    return (
        Selection()
        if chance.random() < 0.3
        else Selection(at_ns(), at_ns(), chance.choice((None, 1, 4, 2**63)))
    )


def _judge_lines(lines: list[str], count: int, written: set[str] | None) -> None:
    assert len(lines) <= count
    assert sum(map(len, lines)) <= 2 * TAIL_MAX
    assert written is None or written.issuperset(lines), "a line that nobody wrote"


def _judge_chosen(
    chosen: list[Line], count: int, selection: Selection, written: set[str] | None
) -> None:
    _judge_lines([each.text for each in chosen], count, written)
    for each in chosen:
        assert None in (selection.run, each.run) or selection.run == each.run, "of another run"


def _judge_writing(files: _Files, chance: Random) -> None:
    """The keeper goes on with the index as it finds it; nothing of it ends the keeper."""
    index = Index(str(files.paths[1]))
    index.open(os.stat(files.path).st_ino, chance.choice((0, 10, 1 << 20)))
    offset = 0
    for _ in range(chance.randint(1, 40)):
        offset += chance.randint(0, 5000)
        index.note(offset, chance.randint(1, 3), BEGAN_NS + chance.randint(-NS, NS))
    index.is_crowded(1 << 20)
    index.close()
    assert files.paths[1].stat().st_size < (1 << 17)
    assert RECORD.size == 32


# --- the index alone ------------------------------------------------------------------------------


@contextmanager
def judging_index() -> Iterator[Judge]:
    """What an index says, without any file: records as far as they make sense."""

    def judge(data: bytes) -> None:
        size = chance_of(data).choice((0, 1, 1000, 2**32, 2**63))
        owner_of(data)
        found = _joined(data[: len(data) // RECORD.size * RECORD.size], size)
        for before, after in itertools.pairwise(found):
            assert before.start <= before.end == after.start
        assert not found or found[-1].end == size
        for span in found:
            assert span.first_ns is not None
            assert span.first_ns <= span.last_ns
            for selection in (Selection(0, BEGAN_NS, 1), Selection(BEGAN_NS, None, None)):
                selection.takes(span)
            rfc3339(span.first_ns)

    yield judge


def recipe_of_index() -> Recipe:
    """Records in order, out of order, and of times and places beyond all bounds."""

    def fresh(chance: Random) -> bytes:
        offset, at_ns, records = 0, BEGAN_NS, b""
        for _ in range(chance.randrange(12)):
            offset += chance.choice((0, 1, 100, 2**62))
            at_ns += chance.choice((0, NS, -NS, 2**59))
            last_ns = at_ns + chance.choice((0, NS, -NS))
            run = chance.choice((0, 1, 2**64 - 1))
            records += RECORD.pack(offset % 2**64, _signed(at_ns), _signed(last_ns), run)
        return records

    return Recipe([fresh(Random(number)) for number in range(20)], [MAGIC], fresh)


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


INDEX = Target(
    "index",
    "an index gives spans that follow each other up to the size of its file, whatever is in it; nothing is raised",
    recipe_of_index,
    judging_index,
    {"records": lambda size: RECORD.pack(0, BEGAN_NS, BEGAN_NS, 1) * (size // RECORD.size)},
)
TARGET = Target(
    "logs",
    "a damaged log or index gives lines, or fewer of them, within the bounds of an answer; damage to an index alone"
    " invents none; nothing is raised and reading ends",
    lambda: script.recipe(2 * len(NAMES)),
    judging,
)
