"""The keys of a service, of its own or of `[defaults]`: what they mean, which do not go together.

What a service's own words say is refused where it makes no sense; what merely comes from `[defaults]`
and does not concern it is left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from registry.config import values
from registry.config.addresses import address, target
from registry.config.lines import Place
from registry.config.section import Item, Section
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Limits,
    Logs,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
    Socket,
    Stop,
)

COUNTED_RLIMITS = {
    "nice": (0, 40),
    "nofile": (1, 2**30),
    "nproc": (0, 2**30),
    "rtprio": (0, 99),
    "sigpending": (0, 2**30),
}
"""The limits of setrlimit(2) that are plain numbers, the least and the most of each."""

RLIMITS: dict[str, Callable[[object], int]] = {
    "as": values.size(0),
    "core": values.size(0),
    "cpu": values.whole_seconds,
    "data": values.size(0),
    "fsize": values.size(0),
    "memlock": values.size(0),
    "msgqueue": values.size(0),
    "rss": values.size(0),
    "stack": values.size(0),
    **{name: values.whole(*bounds) for name, bounds in COUNTED_RLIMITS.items()},
}
"""All of them, by their names in lower case."""

CAPABILITIES = (
    *("CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF"),
    *("CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"),
    *("CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE"),
    *("CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN"),
    *("CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP"),
    *("CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT"),
    *("CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE"),
    *("CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG"),
    "CAP_WAKE_ALARM",
)
"""What capabilities(7) knows."""
_CAPABILITIES = values.each(
    values.word(
        CAPABILITIES, 'the name of a capability, such as "CAP_NET_BIND_SERVICE"', prefix="CAP_"
    ),
    '["CAP_NET_BIND_SERVICE"]',
)
_ACCOUNTS = values.each(values.account, '["adm", "ssl-cert"]')
_STOP, _NO_LIMITS = Stop(), Limits()


class Need(msgspec.Struct, frozen=True):
    """One element of `depends_on` as written, before anybody has looked who that is."""

    service: str
    condition: Condition | None
    restart: bool
    place: Place


class Service(msgspec.Struct, frozen=True):
    """A definition, and beside it what is not journaled (the values of its `env`) or not resolved yet."""

    definition: Definition
    environment: dict[str, str]
    needs: tuple[Need, ...] = ()


def read_shared(section: Section, plain: Definition, root: Path) -> Service:
    """Every key that `[defaults]` may hold, over the built-in defaults of `plain`."""
    environment = section.inner("env", _environment, dict[str, str]())
    oneshot = section.take("oneshot", values.boolean, plain.oneshot)
    checks = _checks(section, oneshot, root)
    definition = msgspec.structs.replace(
        plain,
        restart=_restart(section.sub("restart"), oneshot),
        stop=section.inner("stop", _stop, _STOP),
        checks=checks,
        cwd=section.take("cwd", values.path(root), str(root)),
        env_names=tuple(environment),
        env_file=section.take("env_file", values.path(root), None),
        umask=section.take("umask", values.octal("022"), plain.umask),
        autostart=section.take("autostart", values.boolean, plain.autostart),
        essential=section.take("essential", values.boolean, plain.essential),
        success_exit_codes=section.take(
            "success_exit_codes", values.exit_codes, plain.success_exit_codes
        ),
        start_timeout_s=section.take(
            "start_timeout", values.positive_duration, plain.start_timeout_s
        ),
        logs=section.inner("logs", lambda logs: _logs(logs, root), _plain_logs(root)),
        ready=_ready(section, oneshot, checks),
        oneshot=oneshot,
        tags=section.take("tags", values.each(values.label, '["front", "eu"]'), plain.tags),
        reload=_reload(section, root),
    )
    return Service(_privileges(section, definition), environment)


def read_own(section: Section, service: Service, root: Path) -> Service:
    """The keys that belong to one service alone, over what it shares with others."""
    sockets = section.inner("sockets", lambda sockets: _sockets(sockets, root), ())
    definition = msgspec.structs.replace(service.definition, sockets=sockets)
    return msgspec.structs.replace(service, definition=definition, needs=_needs(section))


def _privileges(section: Section, definition: Definition) -> Definition:
    """Whom it runs as, and what it may."""
    return msgspec.structs.replace(
        definition,
        user=section.take("user", values.account, None),
        group=section.take("group", values.account, None),
        groups=section.take("groups", _ACCOUNTS, None),
        limits=section.inner("limits", _limits, _NO_LIMITS),
        nice=section.take("nice", values.whole(-20, 19), None),
        oom_score_adj=section.take("oom_score_adj", values.whole(-1000, 1000), None),
        no_new_privs=section.take("no_new_privs", values.boolean, definition.no_new_privs),
        capabilities=section.take("capabilities", _CAPABILITIES, None),
    )


def _environment(env: Section) -> dict[str, str]:
    environment = env.each(values.variable)
    for name in environment:
        if not name or "=" in name or "\0" in name:
            env.refuse("the name of a variable is not empty and holds no '=' and no NUL", name)
    return environment


def _ready(section: Section, oneshot: bool, checks: tuple[Check, ...]) -> Ready | None:
    ready: Ready | None = section.take("ready", values.choice(Ready), None)
    if oneshot and ready not in (None, Ready.SPAWN):
        nonsense = f'a oneshot runs to its end and is never "{ready}"; leave ready out'
    elif ready is Ready.HEALTH and not checks:
        nonsense = 'there is no check to wait for; add health_check = "..." or leave ready out'
    else:
        return ready
    if not section.inherited("ready"):
        section.refuse(nonsense, "ready")
    return None


def _restart(section: Section, oneshot: bool) -> Restart:
    plain = Restart(policy=Policy.NEVER if oneshot else Policy.ALWAYS)
    policy = section.take("policy", values.choice(Policy), plain.policy)
    delay = section.take("delay", values.duration, None)
    delay_max = section.take("delay_max", values.duration, None)
    limit = section.take("limit", values.whole(1), None)
    within = section.take("within", values.positive_duration, None)
    memory_max = section.take("memory_max", values.size(), None)
    section.close()
    if oneshot and policy is Policy.ALWAYS:
        policy = _oneshot_policy(section)
    if delay is not None and delay_max is not None and delay > delay_max:
        section.refuse("is longer than delay_max; raise delay_max or lower delay", "delay")
    if policy is Policy.NEVER and section.inherited("limit") and not section.inherited("policy"):
        limit = within = None  # a limit among the defaults is for the services that restart
    else:
        _limit(section, policy)
    return Restart(policy, *_delays(delay, delay_max), limit, within, memory_max)


def _oneshot_policy(section: Section) -> Policy:
    """What "Always" means where it merely comes from the defaults."""
    if not section.inherited("policy"):
        section.refuse('a oneshot that ended clean is done; write "OnFailure" or "Never"', "policy")
    return Policy.ON_FAILURE


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
        remedy = (
            "leave one of them out"
            if section.given("policy")
            else 'which is that of a oneshot; add policy = "OnFailure"'
        )
        section.refuse(f'has no effect with policy "Never"; {remedy}', "limit")
    elif section.given("limit") and not section.given("within"):
        section.refuse('needs within, too: add for example within = "10m"', "limit")
    elif section.given("within") and not section.given("limit"):
        section.refuse("needs limit, too: add for example limit = 20", "within")


def _stop(section: Section) -> Stop:
    stop = Stop(
        signal=section.take("signal", values.signal_name, _STOP.signal),
        timeout_s=section.take("timeout", values.duration, _STOP.timeout_s),
    )
    section.close()
    return stop


def _reload(section: Section, root: Path) -> Reload | None:
    item = section.item("reload")
    if item is None:
        return None
    table = section.of(item)
    signal = table.take("signal", values.signal_name, None)
    cmd = table.take("cmd", values.command(root), Reload().cmd)
    table.close()
    if table.given("signal") and table.given("cmd"):
        table.refuse("a reload is a signal or a command; leave one of them out", "cmd")
    elif not table.given("signal") and not table.given("cmd"):
        table.refuse('says nothing; write "SIGHUP" or a command such as ["nginx", "-s", "reload"]')
    return Reload(signal, cmd)


@functools.cache
def _plain_logs(root: Path) -> Logs:
    return Logs(dir=str(root / "var" / "log"))


def _logs(section: Section, root: Path) -> Logs | None:
    plain = _plain_logs(root)
    enabled = section.take("enabled", values.switch, True)
    logs = Logs(
        dir=section.take("dir", values.path(root), plain.dir),
        size_max=section.take("size_max", values.size(), plain.size_max),
        files_max=section.take("files_max", values.whole(1, 10_000), plain.files_max),
    )
    section.close()
    return logs if enabled else None


def _limits(section: Section) -> Limits:
    rlimits = {
        name: section.take(name, values.limited(parse), None) for name, parse in RLIMITS.items()
    }
    limits = Limits(
        rlimits={name: limit for name, limit in rlimits.items() if section.given(name)},
        memory_max=section.take("memory_max", values.limited(values.size()), None),
        cpu_max=section.take("cpu_max", values.limited(values.cpus), None),
        pids_max=section.take("pids_max", values.limited(values.whole(1, 2**22)), None),
    )
    section.close()
    return limits


def _sockets(section: Section, root: Path) -> tuple[Socket, ...]:
    sockets = section.each(address(root))
    for name in sockets:
        try:
            values.socket_name(name)
        except values.Wrong as wrong:
            section.refuse(str(wrong), name)
    return tuple(Socket(name, where) for name, where in sockets.items())


def _needs(section: Section) -> tuple[Need, ...]:
    item = section.item("depends_on")
    if item is None:
        return ()
    if isinstance(item.value, list):
        each = [Item(value, (*item.place, n)) for n, value in enumerate(item.value)]
        names = [section.parse(element, _dependency_name, None) for element in each]
        return tuple(
            Need(name, None, False, element.place)
            for name, element in zip(names, each, strict=True)
            if name is not None
        )
    if not isinstance(item.value, dict):
        section.parse(item, _no_list, None)
        return ()
    table = section.of(item)
    return tuple(_need(table, name, element) for name, element in table.items().items())


def _no_list(value: object) -> None:
    names = [value] if isinstance(value, str) and value else ["db"]
    raise values.wanted(value, f"a list of names: {json.dumps(names)}")


def _dependency_name(value: object) -> str:
    if not isinstance(value, str):
        raise values.wanted(value, 'the name of a service, or depends_on = { db = "ready" }')
    return values.text(value)


def _need(section: Section, name: str, item: Item) -> Need:
    condition = values.choice(Condition)
    if not isinstance(item.value, dict):
        return Need(name, section.parse(item, condition, None), False, item.place)
    table = section.of(item)
    need = Need(
        name,
        table.take("condition", condition, None),
        table.take("restart", values.boolean, False),
        item.place,
    )
    table.close()
    return need


def _checks(section: Section, oneshot: bool, root: Path) -> tuple[Check, ...]:
    item = section.item("health_check")
    if item is None:
        return ()
    each = item.value if isinstance(item.value, list) else [item]
    sections = [section.of(check) for check in each]
    if section.place != ("defaults",):  # there a table may leave the target to the services
        for check in sections:
            check.need("target", 'target = "http://127.0.0.1:8000/"')
    checks = _named([_check(check, root) for check in sections], sections)
    if not oneshot or not checks:
        return checks
    if not section.inherited("health_check"):
        section.refuse(
            "a oneshot ends before it could be asked; leave one of them out", "health_check"
        )
    return ()


def _check(section: Section, root: Path) -> Check:
    plain = Check(name="", target="")
    check = Check(
        name=section.take("name", values.label, plain.name),
        target=section.take("target", target(root), plain.target),
        interval_s=section.take("interval", values.positive_duration, plain.interval_s),
        timeout_s=section.take("timeout", values.positive_duration, plain.timeout_s),
        failures=section.take("failures", values.whole(1), plain.failures),
        successes=section.take("successes", values.whole(1), plain.successes),
        on_failure=section.take("on_failure", values.choice(OnFailure), plain.on_failure),
        signal=section.take("signal", values.signal_name, plain.signal),
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
    scheme = check.target.partition(":")[0].replace("+", "-")
    name, number = scheme, 1
    while name in taken:
        number += 1
        name = f"{scheme}-{number}"
    taken.add(name)
    return msgspec.structs.replace(check, name=name)
