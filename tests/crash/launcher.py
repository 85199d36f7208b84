"""Runs the registry with a fault point: CIRCLEOSD_CRASH="before append:3" kills it at its third append.

The production code knows nothing of this: the functions named in POINTS are wrapped from outside, here.
A name that is no longer there ends the launcher with a sentence, whether it was asked for or not.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

VARIABLE = "CIRCLEOSD_CRASH"

POINTS: dict[str, tuple[str, str]] = {
    "append": ("registry.journal.journal", "Journal.append"),
    "spawn": ("registry.host.gate", "Approach.spawn"),
    "keep": ("registry.keeper.client", "Keeper.keep"),
    "gate": ("registry.host.gate", "open_gate"),
    "stop": ("registry.host.process", "Runner.stop"),
    "escalation": ("registry.host.process", "Runner._kill"),
    "reaped": ("registry.host.process", "Runner._child_ended"),
    "release": ("registry.keeper.client", "Keeper.release"),
    "connect": ("registry.keeper.client", "Keeper.connect"),
    "declare": ("registry.recovery", "declare"),
    "adopt": ("registry.host.machine", "Machine.adopt"),
    "leftovers": ("registry.host.process", "Runner.adopt_leftovers"),
    "autostart": ("registry.recovery", "begin"),
    "reconsider": ("registry.registry", "Registry.reconsider_all"),
}
"""What can be died at, before and after: the function by its module and its name there."""

MOMENTS = tuple(f"{when} {name}" for name in POINTS for when in ("before", "after"))


def main() -> None:
    """Wrap what is asked for, then be the registry."""
    moment, _, number = os.environ.pop(VARIABLE, "").partition(":")
    found = {name: _find(*place) for name, place in POINTS.items()}
    if moment:
        when, _, name = moment.partition(" ")
        owner, attribute = found[name]
        function = getattr(owner, attribute)
        setattr(owner, attribute, _dying(function, int(number), is_before=when == "before"))
    importlib.import_module("registry.__main__").main()


def _find(module: str, name: str) -> tuple[Any, str]:
    """The module or class that holds the function, and the function's name in it."""
    owner: Any = importlib.import_module(module)
    *path, attribute = name.split(".")
    for step in path:
        owner = getattr(owner, step, None)
    if not callable(getattr(owner, attribute, None)):
        sys.exit(f"fault point: there is no {name} in {module} any more; mend POINTS in {__file__}")
    return owner, attribute


def _dying(function: Callable[..., Any], number: int, *, is_before: bool) -> Callable[..., Any]:
    calls = 0

    def die_if_due() -> None:
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def begin() -> None:
        nonlocal calls
        calls += 1
        if is_before:
            die_if_due()

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin()
            result = await function(*args, **kwargs)
            die_if_due()
            return result
    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin()
            result = function(*args, **kwargs)
            die_if_due()
            return result

    return wrapped


if __name__ == "__main__":
    main()
