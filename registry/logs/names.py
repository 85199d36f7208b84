"""The names of a log's files: NAME.log, then NAME.log.1, NAME.log.2.gz, ... the highest is the oldest.

Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import os

GZ = ".gz"


def rotated(path: str) -> list[tuple[int, str]]:
    """The rotated files of the log `path`, newest (lowest number) first, each number once.

    A number that has a plain and a compressed file is that of one whose compression was killed at its
    very end: the compressed one is whole.
    """
    return sorted(dict(sorted(rotated_all(path), key=lambda found: found[1])).items())


def rotated_all(path: str) -> list[tuple[int, str]]:
    """The rotated files of `path`, in no order, a number twice where a compression was killed."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except FileNotFoundError:
        return []
    return [
        (number, os.path.join(folder, other))
        for other in names
        if other.startswith(f"{name}.") and (number := _number(other[len(name) + 1 :]))
    ]


def is_leftover(name: str, other: str) -> bool:
    """Whether `other` is what an unfinished compression of the log called `name` wrote."""
    tail = other[len(name) + 1 :]
    return (
        other.startswith(f"{name}.")
        and tail.endswith(".gz.tmp")
        and tail.removesuffix(".gz.tmp").isdigit()
    )


def _number(tail: str) -> int:
    """The number that a name ends in; 0 where it is not that of a rotated file."""
    digits = tail.removesuffix(GZ)
    if not (digits.isascii() and digits.isdigit()) or digits[0] == "0":
        return 0
    # Number 1 is never compressed, so NAME.log.1.gz is somebody else's.
    return 0 if digits == "1" and digits != tail else int(digits)
