"""From `[defaults]` and `[[service]]` to definitions: what keys mean, which do not go together."""

from __future__ import annotations

from pathlib import Path

import msgspec

from registry.config import values
from registry.config.complaints import Sheet
from registry.config.section import Item, Section, Table, expand, merge, table_of
from registry.core.definition import Check, Definition, Logs, OnFailure, Policy, Restart, Stop


class Service(msgspec.Struct, frozen=True):
    """A definition, and beside it what is never journaled: the values of its `env`."""

    definition: Definition
    environment: dict[str, str]


def read_defaults(sheet: Sheet, item: Item, root: Path) -> Table:
    """The keys of `[defaults]`, complained about once and not once per service."""
    keys = expand(table_of(item) or {})
    section = Section(sheet, Item(keys, item.place) if isinstance(item.value, dict) else item)
    _read(section, Definition(name="", cmd=()), root)
    section.close()
    return keys


def read_services(sheet: Sheet, item: Item, defaults: Table, root: Path) -> list[Service]:
    """Every `[[service]]`, in the order of the file."""
    if not isinstance(item.value, list):
        shown = values.found(item.value)
        sheet.refuse(item.place, None, f"found {shown}; write [[service]] above each service")
        return []
    services = []
    numbers: dict[str, int] = {}
    for position, value in enumerate(item.value):
        place = (*item.place, position)
        service = _service(sheet, Item(value, place), defaults, root)
        name = service.definition.name
        if name and numbers.setdefault(name, position + 1) != position + 1:
            first = f"service number {numbers[name]} of this file has this name, too"
            sheet.refuse((*place, "name"), name, f"{first}; choose another")
        services.append(service)
    return services


def _service(sheet: Sheet, item: Item, defaults: Table, root: Path) -> Service:
    own = table_of(item)
    position = item.place[-1]
    assert isinstance(position, int)
    shown = _usable_name(own or {}) or f"#{position + 1}"
    keys = Item(merge(defaults, expand(own)), item.place) if own is not None else item
    section = Section(sheet, keys, shown)
    if own is None:
        return Service(Definition(name="", cmd=()), {})
    section.need("name", 'name = "..."')
    section.need("cmd", 'cmd = ["program", "argument"]')
    definition = Definition(
        name=section.take("name", values.service_name, ""),
        cmd=section.take("cmd", values.command(root), ()),
        position=position,
    )
    definition, environment = _read(section, definition, root)
    section.close()
    return Service(definition, environment)


def _usable_name(own: Table) -> str | None:
    try:
        return values.label(own["name"].value) if "name" in own else None
    except values.Wrong:
        return None


def _read(section: Section, plain: Definition, root: Path) -> tuple[Definition, dict[str, str]]:
    """Every key that `[defaults]` may hold, over the built-in defaults of `plain`."""
    environment = _environment(section.sub("env"))
    definition = msgspec.structs.replace(
        plain,
        restart=_restart(section.sub("restart")),
        stop=_stop(section.sub("stop")),
        checks=_checks(section, root),
        cwd=section.take("cwd", values.path(root), str(root)),
        env_names=tuple(environment),
        env_file=section.take("env_file", values.path(root), None),
        user=section.take("user", values.account, None),
        group=section.take("group", values.account, None),
        umask=section.take("umask", values.octal("022"), plain.umask),
        autostart=section.take("autostart", values.boolean, plain.autostart),
        essential=section.take("essential", values.boolean, plain.essential),
        success_exit_codes=section.take(
            "success_exit_codes", values.exit_codes, plain.success_exit_codes
        ),
        start_timeout_s=section.take(
            "start_timeout", values.positive_duration, plain.start_timeout_s
        ),
        logs=_logs(section.sub("logs"), root),
    )
    return definition, environment


def _environment(env: Section) -> dict[str, str]:
    environment = env.each(values.variable)
    for name in environment:
        if not name or "=" in name or "\0" in name:
            env.refuse("the name of a variable is not empty and holds no '=' and no NUL", name)
    return environment


def _restart(section: Section) -> Restart:
    plain = Restart()
    policy = section.take("policy", values.choice(Policy), plain.policy)
    delay = section.take("delay", values.duration, None)
    delay_max = section.take("delay_max", values.duration, None)
    limit = section.take("limit", values.whole(1), None)
    within = section.take("within", values.positive_duration, None)
    section.close()
    if delay is not None and delay_max is not None and delay > delay_max:
        section.refuse("is longer than delay_max; raise delay_max or lower delay", "delay")
    if policy is Policy.NEVER and section.inherited("limit") and not section.inherited("policy"):
        limit = within = None  # a limit among the defaults is for the services that restart
    else:
        _limit(section, policy)
    return Restart(policy, *_delays(delay, delay_max), limit, within)


def _delays(delay_s: float | None, delay_max_s: float | None) -> tuple[float, float]:
    """Where only one of the two is given, the other's default gives way to it."""
    plain = Restart()
    if delay_s is None:
        delay_s = plain.delay_s if delay_max_s is None else min(plain.delay_s, delay_max_s)
    if delay_max_s is None:
        delay_max_s = max(plain.delay_max_s, delay_s)
    return delay_s, delay_max_s


def _limit(section: Section, policy: Policy) -> None:
    """Complain about a limit that can have no effect."""
    if policy is Policy.NEVER and section.given("limit"):
        section.refuse('has no effect with policy "Never"; leave one of them out', "limit")
    elif section.given("limit") and not section.given("within"):
        section.refuse('needs within, too: add for example within = "10m"', "limit")
    elif section.given("within") and not section.given("limit"):
        section.refuse("needs limit, too: add for example limit = 20", "within")


def _stop(section: Section) -> Stop:
    plain = Stop()
    stop = Stop(
        signal=section.take("signal", values.signal_name, plain.signal),
        timeout_s=section.take("timeout", values.duration, plain.timeout_s),
    )
    section.close()
    return stop


def _logs(section: Section, root: Path) -> Logs | None:
    plain = Logs(dir=str(root / "var" / "log"))
    enabled = section.take("enabled", values.switch, True)
    logs = Logs(
        dir=section.take("dir", values.path(root), plain.dir),
        size_max=section.take("size_max", values.size, plain.size_max),
        files_max=section.take("files_max", values.whole(1, 10_000), plain.files_max),
    )
    section.close()
    return logs if enabled else None


def _checks(section: Section, root: Path) -> tuple[Check, ...]:
    item = section.item("health_check")
    if item is None:
        return ()
    each = item.value if isinstance(item.value, list) else [item]
    sections = [section.of(check) for check in each]
    if section.place != ("defaults",):  # there a table may leave the target to the services
        for check in sections:
            check.need("target", 'target = "http://127.0.0.1:8000/"')
    return _named([_check(check, root) for check in sections], sections)


def _check(section: Section, root: Path) -> Check:
    plain = Check(name="", target="")
    check = Check(
        name=section.take("name", values.label, plain.name),
        target=section.take("target", values.target(root), plain.target),
        interval_s=section.take("interval", values.positive_duration, plain.interval_s),
        timeout_s=section.take("timeout", values.positive_duration, plain.timeout_s),
        failures=section.take("failures", values.whole(1), plain.failures),
        successes=section.take("successes", values.whole(1), plain.successes),
        on_failure=section.take("on_failure", values.choice(OnFailure), plain.on_failure),
    )
    section.close()
    return check


def _named(checks: list[Check], sections: list[Section]) -> tuple[Check, ...]:
    """Names for the checks that have none (their scheme, `-2` and so on); names are used once."""
    taken: set[str] = set()
    for check, section in zip(checks, sections, strict=True):
        if check.name and check.name in taken:
            section.refuse("another check of this service has this name; choose another", "name")
        taken.add(check.name)
    return tuple(check if check.name else _with_free_name(check, taken) for check in checks)


def _with_free_name(check: Check, taken: set[str]) -> Check:
    scheme = check.target.partition(":")[0]
    name, number = scheme, 1
    while name in taken:
        number += 1
        name = f"{scheme}-{number}"
    taken.add(name)
    return msgspec.structs.replace(check, name=name)
