"""Where a service's output goes: the log file that a definition's `logs` stand for."""

from __future__ import annotations

import os

import msgspec

from registry.core.definition import Logs


class LogTarget(msgspec.Struct, frozen=True):
    """The file `path`, rotated at `size_max` bytes, `files_max` files in all."""

    path: str
    size_max: int
    files_max: int

    @classmethod
    def of(cls, logs: Logs, service: str) -> LogTarget:
        """The target of `service`: `dir`/NAME.log."""
        return cls(os.path.join(logs.dir, f"{service}.log"), logs.size_max, logs.files_max)
