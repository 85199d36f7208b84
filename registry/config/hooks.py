"""`[[hook]]`: which command is told which events of which services."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from registry.config import values
from registry.config.complaints import Sheet, suggestion
from registry.config.dependencies import nobody, services_by_name
from registry.config.lines import Place
from registry.config.section import Item, Section
from registry.config.services import Declared, elements
from registry.core.events import TYPES, RegistryStopped

_ALL, _TAG = "all", "tag:"
TOLD = [name for name in TYPES if name != RegistryStopped.TYPE]
"""The types of events that a hook can be told: all but the last one, after which nothing runs."""
_GLOB_SIGNS = frozenset("*?[")


class Hook(msgspec.Struct, frozen=True):
    """`cmd`, run in the folder `cwd` for at most `timeout_s` after each event whose type is in `on`.

    `services` are names (that of instances means each of them), globs, "tag:NAME" and "all"; empty means
    every event, also those that are of no service.
    """

    on: tuple[str, ...]
    cmd: tuple[str, ...]
    services: tuple[str, ...] = ()
    timeout_s: float = 10.0
    cwd: str = "/"


def read_hooks(
    sheet: Sheet, lists: Sequence[Item], declared: Sequence[Declared], root: Path
) -> list[tuple[Hook, Place]]:
    """Every `[[hook]]` of every file, in order, and where it is."""
    items = [each for list_ in lists for each in elements(sheet, list_, "hook")]
    return [(_hook(Section(sheet, item), declared, root), item.place) for item in items]


def _hook(section: Section, declared: Sequence[Declared], root: Path) -> Hook:
    plain = Hook(on=(), cmd=(), cwd=str(root))
    section.need("on", 'on = ["gave_up", "became_unhealthy"]')
    section.need("cmd", 'cmd = ["./scripts/tell-us"]')
    hook = Hook(
        on=section.take("on", _event_types, plain.on),
        cmd=section.take("cmd", values.command(root), plain.cmd),
        services=section.take("services", _services(declared), plain.services),
        timeout_s=section.take("timeout", values.positive_duration, plain.timeout_s),
        cwd=plain.cwd,
    )
    section.close()
    return hook


def _event_types(value: object) -> tuple[str, ...]:
    types = values.each(values.word(TOLD, "the type of an event"), '["gave_up"]')(value)
    if not types:
        raise values.Wrong('is empty; name types of events, as in ["gave_up"]')
    return types


def _services(declared: Sequence[Declared]) -> Callable[[object], tuple[str, ...]]:
    """Names, globs and tags; a name or a tag that no service has is refused."""
    by_name = services_by_name(declared)
    tags = {tag for each in declared for s in each.services for tag in s.definition.tags}
    are_sound = all(each.is_sound for each in declared)

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise values.wanted(value, 'names of services, globs or "tag:NAME"')
        word = values.text(value)
        if word.startswith(_TAG):
            tag = word.removeprefix(_TAG)
            if tag not in tags and are_sound:
                hint = suggestion(tag, tags, otherwise="; give it to a service or leave it out")
                raise values.Wrong(f"no service has the tag '{tag}'{hint}")
        elif word != _ALL and word not in by_name and not _GLOB_SIGNS & set(word):
            raise values.Wrong(nobody(word, by_name))
        return word

    return values.each(parse, '["web", "db-*", "tag:front"]')
