"""What an invariant says where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


class Violation(AssertionError):
    """A sentence that does not hold, and of which service."""

    def __init__(self, sentence: str, service: str | None, detail: str) -> None:
        super().__init__(f"{sentence}\n  {detail}")
        self.sentence = sentence
        self.service = service


def broken(rule: Callable[..., Any], service: str | None, detail: str) -> NoReturn:
    """Raise the violation of a rule."""
    raise Violation(" ".join((rule.__doc__ or "").split()), service, detail)
