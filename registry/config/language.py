"""Every key of services.toml once: what it takes, in words and as a schema, its default, what it means.

schema.py makes of it what editors and readers are shown. The file itself is read by file.py, services.py and
keys.py; tests/config/test_schema.py compares the two, key by key and default by default.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from registry.config import values
from registry.config.addresses import SCHEMES
from registry.config.file import (
    JOURNAL_SIZE_MIN,
    Durability,
    JournalSettings,
    OnSigterm,
    RegistrySettings,
)
from registry.config.hooks import TOLD, Hook
from registry.config.keys import CAPABILITIES, COUNTED_RLIMITS, RLIMITS
from registry.config.services import INSTANCES_MAX, OF_ONE
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Logs,
    OnFailure,
    Policy,
    Ready,
    Restart,
    Stop,
)

Schema = dict[str, Any]


class Key(msgspec.Struct, frozen=True):
    """One key: what it takes, in words and as a schema, and what it means.

    `default` is written as in TOML; where there is no such value, `otherwise` says what holds without the
    key. `table` are the keys of its table form, `is_listed` where a list of those is taken, too.
    """

    takes: str
    schema: Schema
    meaning: str
    default: str | None = None
    otherwise: str = ""
    table: dict[str, Key] = {}
    needed: bool = False
    is_listed: bool = False


def language() -> dict[str, Key]:
    """The tables of the file by their names, with all their keys."""
    service = _service()
    shared = {name: key for name, key in service.items() if name not in OF_ONE}
    return {
        "registry": Key("table", {}, "The registry itself.", table=_registry()),
        "journal": Key("table", {}, "Where and how all that happens is kept.", table=_journal()),
        "access": Key(
            "table", {}, "Who may what, besides the registry's own user and root.", table=_access()
        ),
        "defaults": Key(
            "table",
            {},
            f"Keys of a service, all but {', '.join(OF_ONE)}, for every service; tables merge key by key.",
            table=_without_targets(shared),
        ),
        "service": Key("`[[service]]`", {}, "A service.", table=service, is_listed=True),
        "hook": Key(
            "`[[hook]]`", {}, "A command that is told of events.", table=_hook(), is_listed=True
        ),
    }


def _without_targets(shared: dict[str, Key]) -> dict[str, Key]:
    """A check among the defaults may leave its target to the services."""
    check = shared["health_check"]
    target = msgspec.structs.replace(check.table["target"], needed=False)
    table = {**check.table, "target": target}
    return {**shared, "health_check": msgspec.structs.replace(check, table=table)}


def _registry() -> dict[str, Key]:
    plain = RegistrySettings()
    takes, sigterm = _words(OnSigterm)
    return {
        "root": _text(
            "path",
            "What relative paths are relative to.",
            otherwise="the folder of the file, or the one above where that is `etc`",
        ),
        "socket": _text("path", "The control socket, 107 bytes at most.", f'"{plain.socket}"'),
        "socket_mode": Key(
            "octal digits",
            _OCTAL,
            "Whom the socket lets in.",
            otherwise=f'`"{plain.socket_mode:04o}"`; `"0666"` where `[access]` names anybody',
        ),
        "socket_group": Key(
            "group", _ACCOUNT, "The group of the socket.", otherwise="the registry's own"
        ),
        "on_sigterm": Key(
            takes,
            sigterm,
            "Whether SIGTERM stops the services, or leaves them running for the next registry.",
            f'"{plain.on_sigterm}"',
        ),
    }


def _journal() -> dict[str, Key]:
    plain = JournalSettings("")
    takes, durability = _words(Durability)
    return {
        "path": _text("path", "The journal.", '"var/registry.db"'),
        "durability": Key(
            takes,
            durability,
            "Whether it survives a power cut, or only the registry's own death.",
            f'"{plain.durability}"',
        ),
        "keep": Key(
            'duration or `"unlimited"`',
            _or_unlimited(_DURATION),
            "How long events stay in it; older ones are removed, a thousand at least at a time.",
            '"unlimited"',
        ),
        "max_size": Key(
            'size or `"unlimited"`',
            _or_unlimited(_size_from(JOURNAL_SIZE_MIN)),
            "About how large it gets; then its oldest events are removed, whatever their age.",
            f'"{(plain.max_size or 0) // 10**9}GB"',
        ),
    }


def _access() -> dict[str, Key]:
    meanings = {
        "observe": "Who may look.",
        "operate": "Who may start, stop, restart and reload, too.",
        "admin": "Who may do everything.",
    }
    takes = 'list of `"user:NAME"`, `"group:NAME"`, `"uid:N"`, `"gid:N"`'
    return {name: Key(takes, _GRANTEES, meaning, "[]") for name, meaning in meanings.items()}


def _hook() -> dict[str, Key]:
    plain = Hook(on=(), cmd=())
    types = {**_once({"enum": TOLD}), "minItems": 1}
    return {
        "on": Key("list of types of events", types, "The events that it is told.", needed=True),
        "cmd": Key(
            "list of strings",
            _COMMAND,
            "Program and arguments; the event is its input, as JSON.",
            needed=True,
        ),
        "services": Key(
            'list of names, globs and `"tag:NAME"`',
            _once(_TEXT),
            "The services whose events are meant.",
            otherwise="all",
        ),
        "timeout": _duration("How long it may take.", plain.timeout_s),
    }


def _service() -> dict[str, Key]:
    return {**_what(), **_when(), **_how(), **_whom(), **_health()}


def _what() -> dict[str, Key]:
    """What it is."""
    instances = _number(
        1,
        INSTANCES_MAX,
        "Declares it so many times, as NAME@1 and so on; `{instance}` in its strings is the number.",
        otherwise="one service of that name",
    )
    return {
        "name": Key("name", _NAME, "Letters, digits, `.`, `_`, `-`; 64 at most.", needed=True),
        "cmd": Key(
            "list of strings",
            _COMMAND,
            "Program and arguments, without a shell; a program without a slash is looked up in PATH.",
            needed=True,
        ),
        "instances": instances,
        "tags": Key(
            "list of names",
            _once(_NAME),
            "Names under which it can be meant together with others, as `tag:NAME`.",
            "[]",
        ),
        "cwd": _text("path", "The folder that it runs in.", '"."'),
        "env": Key(
            "table of strings",
            {"type": "object", "additionalProperties": {"type": "string"}},
            "Its environment, over a small clean one.",
            "{}",
        ),
        "env_file": _text(
            "path", "A file of lines KEY=VALUE, read at each start; `env` goes over it."
        ),
        "logs": Key(
            "true, false or a table",
            _FLAG,
            "Whether its output is kept, and how.",
            "true",
            table=_logs(),
        ),
    }


def _logs() -> dict[str, Key]:
    plain = Logs("")
    return {
        "enabled": _flag("Whether its output is kept.", True),
        "dir": _text("path", "The folder of NAME.log.", '"var/log"'),
        "size_max": Key("size", _SIZE, "When a file is rotated.", f'"{plain.size_max // 10**6}MB"'),
        "files_max": Key(
            "number",
            _whole_number(1, 10_000),
            "How many files are kept, the present one included.",
            str(plain.files_max),
        ),
    }


def _when() -> dict[str, Key]:
    """When it starts, and when it counts as started."""
    plain = Definition(name="", cmd=())
    takes, ready = _words(Ready)
    return {
        "autostart": _flag("Whether it starts with the registry.", plain.autostart),
        "depends_on": Key(
            "list of names, or table by name",
            {"anyOf": [_once(_TEXT), _needs()]},
            'What has to be `"started"`, `"ready"`, `"healthy"` or `"completed"` before it starts; '
            '`{ db = { condition = "ready", restart = true } }` follows restarts and stops of db, too.',
            otherwise='nothing; a name alone means `"ready"`, that of a oneshot `"completed"`',
        ),
        "ready": Key(
            takes,
            ready,
            "When it is ready: it says so (sd_notify), all its checks succeed, or its program executes.",
            otherwise='`"health"` where there are checks, else `"spawn"`',
        ),
        "start_timeout": _duration("How long getting ready may take.", plain.start_timeout_s),
        "oneshot": _flag("Runs to its end once, as a migration does.", plain.oneshot),
        "essential": _flag("Whether the registry ends when it is finally gone.", plain.essential),
    }


def _needs() -> Schema:
    _, condition = _words(Condition)
    table = {
        "type": "object",
        "properties": {"condition": condition, "restart": _FLAG},
        "additionalProperties": False,
    }
    return {"type": "object", "additionalProperties": {"anyOf": [condition, table]}}


def _how() -> dict[str, Key]:
    """How it is started again, stopped, reloaded."""
    plain = Definition(name="", cmd=())
    takes, policy = _words(Policy)
    return {
        "restart": Key(
            f"{takes}, or a table",
            policy,
            "When it is started again.",
            f'"{plain.restart.policy}"',
            table=_restart(),
        ),
        "stop": Key(
            "duration or a table",
            _DURATION,
            "How it is stopped.",
            _shown_s(plain.stop.timeout_s),
            table=_stop(),
        ),
        "reload": Key(
            "signal, list of strings, or a table",
            {"anyOf": [_SIGNAL, _COMMAND]},
            "How it is told to read its own files again: by a signal, or a command.",
            table={
                "signal": Key("signal", _SIGNAL, "The signal to its main process."),
                "cmd": Key("list of strings", _COMMAND, "The command, run as the service is."),
            },
        ),
        "success_exit_codes": Key(
            "list of numbers and signals",
            _list({"anyOf": [_whole_number(0, 255), _SIGNAL]}),
            "How it may end and count as clean; 0 always does.",
            "[0]",
        ),
    }


def _restart() -> dict[str, Key]:
    plain = Restart()
    takes, policy = _words(Policy)
    return {
        "policy": Key(
            takes, policy, 'After which ends; `"Never"` for a oneshot.', f'"{plain.policy}"'
        ),
        "delay": _duration(
            "Before the second restart in a row; it doubles each time.", plain.delay_s
        ),
        "delay_max": _duration("The longest delay.", plain.delay_max_s),
        "limit": _count("So many restarts within `within` are the most; then it gives up."),
        "within": _duration("The window of `limit`."),
        "memory_max": Key(
            "size",
            _SIZE,
            "Restarted when its processes together hold more; looked at now and then.",
        ),
    }


def _stop() -> dict[str, Key]:
    plain = Stop()
    return {
        "signal": Key("signal", _SIGNAL, "The signal that asks it to end.", f'"{plain.signal}"'),
        "timeout": _duration("After that, SIGKILL to all that is left of it.", plain.timeout_s),
    }


def _whom() -> dict[str, Key]:
    """Whom it runs as, and what it is given and may."""
    plain = Definition(name="", cmd=())
    sockets = {
        "type": "object",
        "propertyNames": _whole_match(values.SOCKET_NAME.pattern),
        "additionalProperties": _TEXT,
    }
    return {
        "user": Key(
            "name or number", _ACCOUNT, "The user that it runs as.", otherwise="the registry's own"
        ),
        "group": Key("name or number", _ACCOUNT, "Its group.", otherwise="the user's"),
        "groups": Key(
            "list of names and numbers",
            _once(_ACCOUNT),
            "Its supplementary groups.",
            otherwise="the user's",
        ),
        "umask": Key("octal digits", _OCTAL, "Its umask.", f'"{plain.umask:03o}"'),
        "sockets": Key(
            'table of `"HOST:PORT"`, `"[HOST]:PORT"`, `"unix:PATH"`',
            sockets,
            "Listening sockets that the registry opens, keeps over restarts and passes by name (LISTEN_FDS);"
            " 253 at most, with what it has stored.",
            "{}",
        ),
        "limits": Key("table", {}, "What it may use.", "{}", table=_limits()),
        "nice": _number(-20, 19, "Its niceness.", "the registry's own"),
        "oom_score_adj": _number(
            -1000, 1000, "How early the kernel kills it for memory.", "the registry's own"
        ),
        "no_new_privs": _flag("Whether no program of it can gain privileges.", plain.no_new_privs),
        "capabilities": Key(
            "list of names",
            _once({"enum": list(CAPABILITIES)}),
            "The only capabilities that it has, as capabilities(7) names them; `[]` is none.",
            otherwise="as they are",
        ),
    }


_OF_RLIMITS = {
    "as": "Bytes of address space.",
    "core": "Bytes of a core dump.",
    "cpu": "Seconds of CPU.",
    "data": "Bytes of data segment.",
    "fsize": "Bytes of a file that it writes.",
    "memlock": "Bytes locked in memory.",
    "msgqueue": "Bytes in POSIX message queues.",
    "nice": "20 less the lowest niceness that it may take.",
    "nofile": "Open descriptors.",
    "nproc": "Processes of its user.",
    "rss": "Bytes resident; Linux ignores it.",
    "rtprio": "Real-time priority.",
    "sigpending": "Queued signals.",
    "stack": "Bytes of stack.",
}


def _limits() -> dict[str, Key]:
    unlimited = 'or `"unlimited"`'
    limits = {name: _rlimit(name, unlimited) for name in RLIMITS}
    cpus = {"type": "number", "minimum": values.CPUS_MIN, "maximum": values.NUMBER_MAX}
    of_cgroup = {
        "memory_max": Key(
            f"size {unlimited}",
            _or_unlimited(_SIZE),
            "Bytes of memory, of all its processes (cgroup).",
        ),
        "cpu_max": Key(
            f"number {unlimited}", _or_unlimited(cpus), "CPUs, of all its processes (cgroup)."
        ),
        "pids_max": Key(
            f"number {unlimited}",
            _or_unlimited(_whole_number(1, 2**22)),
            "Its processes and threads (cgroup).",
        ),
    }
    return {**limits, **of_cgroup}


def _rlimit(name: str, unlimited: str) -> Key:
    if bounds := COUNTED_RLIMITS.get(name):
        takes, shape = "number", _whole_number(*bounds)
    elif name == "cpu":
        takes, shape = "duration", _DURATION
    else:
        takes, shape = "size", _size_from(0)
    return Key(
        f"{takes} {unlimited}",
        _or_unlimited(shape),
        _OF_RLIMITS[name],
        otherwise="the registry's own",
    )


def _health() -> dict[str, Key]:
    plain = Check(name="", target="")
    takes, on_failure = _words(OnFailure)
    table = {
        "name": Key("name", _NAME, "What it is called.", otherwise="its scheme"),
        "target": Key(
            "target",
            _TARGET,
            "`unix:PATH`, `tcp:HOST:PORT`, `http://...`, `https://...`, `http+unix:PATH:/URL`, "
            "`cmd:COMMAND` or `heartbeat:`.",
            needed=True,
        ),
        "interval": _duration("How often it is asked, or a heartbeat is due.", plain.interval_s),
        "timeout": _duration(
            "How long an answer may take, or how late a heartbeat may be.", plain.timeout_s
        ),
        "failures": _count("So many in a row make it unhealthy.", plain.failures),
        "successes": _count("So many in a row make it healthy.", plain.successes),
        "on_failure": Key(takes, on_failure, "What comes of that.", f'"{plain.on_failure}"'),
        "signal": Key(
            "signal",
            _SIGNAL,
            'What ends a run that this check fails, such as `"SIGABRT"`.',
            otherwise="`stop.signal`",
        ),
    }
    return {
        "health_check": Key(
            "target, table, or a list of those",
            _TARGET,
            "How it is seen to be well.",
            otherwise="no check",
            table=table,
            is_listed=True,
        )
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _once(items: Schema) -> Schema:
    return {**_list(items), "uniqueItems": True}


def _words(kind: type[StrEnum]) -> tuple[str, Schema]:
    words = [str(each) for each in kind]
    return " or ".join(f'`"{word}"`' for word in words), {"enum": words}


def _whole_number(least: int, most: int = values.NUMBER_MAX) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _whole_match(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _size_from(least: int) -> Schema:
    return {"anyOf": [_whole_match(values.SIZE.pattern), _whole_number(least, values.SIZE_MAX)]}


def _or_unlimited(shape: Schema) -> Schema:
    return {"anyOf": [shape, {"const": "unlimited"}]}


_TEXT: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_NAME = _whole_match(values.NAME.pattern)
_OCTAL = _whole_match(values.OCTAL.pattern)
_ACCOUNT: Schema = {"anyOf": [_TEXT, _whole_number(0, 2**32 - 2)]}
_DURATION: Schema = {
    "anyOf": [
        _whole_match(values.DURATION.pattern),
        {"type": "number", "minimum": 0, "maximum": values.LONGEST_S},
    ]
}
_SIZE = _size_from(values.SIZE_MIN)
_SIGNAL = _whole_match("(?:SIG)?[A-Z][A-Z0-9+-]*")
_COMMAND: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_GRANTEES = _once(_whole_match(f"(?:{'|'.join(values.GRANTEES)}):.+"))
_TARGET = _whole_match(f"(?:{'|'.join(SCHEMES)}).*".replace("+", "\\+"))


def _shown_s(seconds: float) -> str:
    """A duration as TOML."""
    milliseconds = round(seconds * 1000)
    return f'"{milliseconds // 1000}s"' if milliseconds % 1000 == 0 else f'"{milliseconds}ms"'


def _shown_flag(flag: bool) -> str:
    return "true" if flag else "false"


def _duration(meaning: str, seconds: float | None = None) -> Key:
    default = None if seconds is None else _shown_s(seconds)
    return Key("duration", _DURATION, meaning, default)


def _flag(meaning: str, default: bool) -> Key:
    return Key("true or false", _FLAG, meaning, _shown_flag(default))


def _text(takes: str, meaning: str, default: str | None = None, otherwise: str = "") -> Key:
    return Key(takes, _TEXT, meaning, default, otherwise)


def _number(least: int, most: int, meaning: str, otherwise: str = "") -> Key:
    return Key(f"{least} to {most}", _whole_number(least, most), meaning, otherwise=otherwise)


def _count(meaning: str, default: int | None = None, otherwise: str = "") -> Key:
    shown = None if default is None else str(default)
    return Key("number", _whole_number(1), meaning, shown, otherwise)
