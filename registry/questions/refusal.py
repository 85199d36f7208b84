"""Why a question is not answered: what was asked for is not there, or cannot be meant."""

from __future__ import annotations

INVALID = "invalid_params"
UNKNOWN = "unknown_service"
TIMED_OUT = "timed_out"
OUT_OF_RANGE = "out_of_range"
UNREADABLE = "journal_unreadable"


class Refusal(Exception):
    """One code (those of the socket: `unknown_service`, `invalid_params`, ...) and one sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
