"""The commands that only ask: list, status, health, check, version, validate."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

import registry
from registry.client import DEFAULT_TIMEOUT_S, Client, RegistryError

from . import exits, words
from .screen import GAP, Screen
from .session import (
    EVERYTHING,
    PAST_TIMEOUT_S,
    SELECTION,
    Session,
    any_names,
    at,
    common,
    complete_service,
    is_selection,
    names,
    note,
    now,
    services,
    write,
)
from .words import NONE, Record, escaped

if TYPE_CHECKING:
    from registry.questions.graph import Branch

CHECK_TIMEOUT_S = 600.0
"""How long the answer of checks may take; each of them ends after its own `timeout`."""

NO_SERVICES = "no services are defined; declare some in the configuration file"
NONE_THEN = "no service was declared"
NO_CHECKS = "no checks are declared; give a service a health_check in the configuration file"

_FOUND_BY = {
    "cgroup": "its cgroup",
    "session": "its session, its group, and CIRCLEOSD_RUN in its environment",
}
_LABEL_WIDTH = 12

LAST_LINES = 5
"""Lines of last words that are shown; --json has all that there are."""

_LIST = ("NAME", "STATUS", "HEALTH", "PID", "RESTARTS", "SINCE", "DETAIL")
_HEALTH = ("NAME", "CHECK", "HEALTH", "LATENCY", "LAST", "DETAIL")
_RESULTS = ("NAME", "CHECK", "TARGET", "RESULT", "MS", "ERROR")
_TARGET_MIN = 20


@click.command("list")
@at
@common
@click.pass_obj
def list_(session: Session, at: str | None) -> int:
    """Show every service in a line.

    With --at as they were then, by the journal.

    \b
    Examples:
      circlectl list
      circlectl list --at "2 hours ago"
      circlectl list --json | jq -r '.[] | select(.status != "Running").name'
    """
    records, then = _records(session, at)
    session.show(records, lambda: _dated(then, _list(session.screen, records, _seen(then))))
    return exits.WELL


def _records(session: Session, at: str | None) -> tuple[list[Record], Record | None]:
    """Every service as of now, or of then, and when that is."""
    answer = session.past("list_services", at)
    return (answer, None) if at is None else (answer["services"], answer["moment"])


def _dated(then: Record | None, lines: Iterable[str]) -> Iterator[str]:
    """Lines about a time, below one that says which."""
    if then:
        yield words.as_of(then)
    for line in lines:
        yield NONE_THEN if then and line == NO_SERVICES else line


def _seen(then: Record | None) -> datetime:
    """The time that ages are measured from."""
    return words.moment(then["asked"]) if then and then["asked"] else now()


def _list(screen: Screen, records: list[Record], at: datetime) -> list[str]:
    if not records:
        return [NO_SERVICES]
    return screen.table(_LIST, [_list_row(record, at) for record in records])


def _list_row(record: Record, at: datetime) -> list[str]:
    return [
        escaped(record["name"]),
        escaped(record["status"]),
        escaped(record["health"]),
        escaped(record["pid"]),
        escaped(record["restarts"]),
        words.age(record["since"], at),
        words.detail(record, at),
    ]


@click.command(epilog=SELECTION)
@any_names
@at
@common
@click.pass_obj
def status(session: Session, names: tuple[str, ...], at: str | None) -> int:
    """Show services in detail, or how all of them are.

    Without NAME it counts them, and names those that are not well before it lists all. With --at it shows
    what the journal knows of then.

    The exit status is 0 when all that were named are Running, 3 when one is not (a service that is
    Stopped because it completed counts as not running), 4 when one is unknown. Without NAME it is 0.

    \b
    Examples:
      circlectl status
      circlectl status web db
      circlectl status web --at 03:14
      circlectl status web >/dev/null || circlectl start web
    """
    is_written = at is not None or _is_journal_written(session)
    if not names:
        records, then = _records(session, at)
        session.show(
            records,
            lambda: _dated(then, _summary(session.screen, records, _seen(then), is_written)),
        )
        return exits.WELL
    found, unknown = _found(session, names, at)
    if found:
        data = found[0] if names == (found[0]["name"],) else found
        others = {} if session.json else _neighbours(session, found, at)
        then = found[0].get("moment")
        session.show(
            data, lambda: _dated(then, _blocks(session.screen, found, others, _seen(then)))
        )
    for error in unknown:
        session.complain(error)
    if unknown:
        return exits.UNKNOWN_SERVICE
    return exits.WELL if all(r["status"] == "Running" for r in found) else exits.NOT_RUNNING


@click.command(epilog=SELECTION)
@any_names
@at
@click.option("--dot", is_flag=True, help="For Graphviz.")
@click.option("--mermaid", is_flag=True, help="For Mermaid, as in Markdown.")
@common
@click.pass_obj
def graph(
    session: Session, names: tuple[str, ...], at: str | None, dot: bool, mermaid: bool
) -> int:
    """Show who depends on whom, and whether that is met.

    Below each service is what it needs, and on which condition. With NAME only those, and what they need.

    \b
    Examples:
      circlectl graph
      circlectl graph web --at 03:14
      circlectl graph --dot | dot -Tsvg > services.svg
    """
    forms = {"--dot": dot, "--mermaid": mermaid, "--json": session.json}
    if len(several := [form for form, is_asked in forms.items() if is_asked]) > 1:
        raise click.UsageError(f"{several[0]} goes without {several[1]}: an answer has one form")
    form = "dot" if dot else "mermaid" if mermaid else None
    asked = {} if not names or EVERYTHING in names else {"service": list(names)}
    answer = session.past("graph", at, **asked)
    session.show(answer, lambda: _graph(session.screen, answer, form))
    return exits.WELL


def _graph(screen: Screen, answer: Record, form: str | None) -> Iterator[str]:
    """The picture, or the text of one."""
    import msgspec  # as the answer is read by the type that the questions give it

    from registry.questions import graph as pictures

    nodes = msgspec.convert(answer["services"], list[pictures.Node])
    if form is not None:
        yield pictures.dot(nodes) if form == "dot" else pictures.mermaid(nodes)
        return
    lines = {} if screen.has_boxes else {"last": "`- ", "other": "|- ", "pipe": "|  "}
    branches = (_branch(screen, each) for each in pictures.tree(nodes, **lines))
    yield from _dated(answer["moment"], branches if nodes else [NO_SERVICES])


def _branch(screen: Screen, branch: Branch) -> str:
    node, need = branch.node, branch.need
    state = screen.state(escaped(node.status))
    record = {"name": node.name, "reason": node.reason}
    why = "" if node.status == "Running" else f", {words.reason(record)}"
    again = " (as above)" if branch.again else ""
    if need is None:
        return f"{branch.prefix}{screen.bold(escaped(node.name))}: {state}{why}{again}"
    follows = ", whose restarts it follows" if need.restart else ""
    unmet = "" if need.met else f" ({screen.state('not met')})"
    name = f"{escaped(node.name)} {escaped(need.condition)}{follows}{unmet}"
    return f"{branch.prefix}{name}: {state}{why}{again}"


@click.command()
@click.argument("what", metavar="NAME|seq:N", shell_complete=complete_service)
@at
@common
@click.pass_obj
def why(session: Session, what: str, at: str | None) -> int:
    """Say why a service is as it is, or why an event happened.

    NAME is one service: a pattern, tag:TAG, all, or what instances have in common is refused with those it means.

    The causes come newest first. "because" is said of recorded causes, of orders that decided what came, and of
    waiting that the rules impose. What merely happened to a dependency within the minute before is told as "meanwhile".

    \b
    Examples:
      circlectl why web
      circlectl why web --at 03:14
      circlectl why seq:1284
    """
    with session.client(PAST_TIMEOUT_S) as client:
        answer = client.call("why", service=what, **({} if at is None else {"at": at}))
    session.show(answer, lambda: _why(session.screen, answer))
    return exits.WELL


def _why(screen: Screen, answer: Record) -> Iterator[str]:
    """The lines of the answer, each wrapped behind its own beginning."""
    import msgspec  # as the answer is read by the type that the questions give it

    from registry.questions.why import Why, told

    for line in told(msgspec.convert(answer, Why)):
        text = line.lstrip()
        indent = len(line) - len(text)
        yield line[:indent] + screen.wrapped(indent + 2 * bool(indent), text)


def _is_journal_written(session: Session) -> bool:
    """Whether what happens is on disk; that it is not concerns every service, and is said."""
    since = session.call("version").get("degraded_since")
    if since:
        note(f"journal degraded since {escaped(since)}, not crash-safe: commands are refused")
    return not since


def _found(
    session: Session, names: Sequence[str], at: str | None
) -> tuple[list[Record], list[RegistryError]]:
    """What the registry knows of the services named, and its complaints about those it does not know."""
    found: dict[str, Record] = {}
    unknown = []
    with session.client(DEFAULT_TIMEOUT_S if at is None else PAST_TIMEOUT_S) as client:
        for word in dict.fromkeys(names):
            try:
                records = _meant(client, word) if at is None else _meant_then(client, word, at)
                found |= {record["name"]: record for record in records}
            except RegistryError as error:
                if error.code != "unknown_service":
                    raise
                unknown.append(error)
    return list(found.values()), unknown


def _meant(client: Client, word: str) -> list[Record]:
    """The services that one word means; which several those are, `health` tells."""
    if word == EVERYTHING:
        several = client.call("list_services")
    elif is_selection(word):
        several = client.call("health", service=[word])
    else:
        try:
            return [client.call("status", service=word)]
        except RegistryError as error:
            if error.code != "unknown_service":
                raise
            several = _instances(client, word, error)
    return [client.call("status", service=record["name"]) for record in several]


def _meant_then(client: Client, word: str, at: str) -> list[Record]:
    """The services that one word meant at a time."""
    several = client.call("list_services", service=word, at=at)["services"]
    return [client.call("status", service=record["name"], at=at) for record in several]


def _instances(client: Client, word: str, error: RegistryError) -> list[Record]:
    """The instances of a service, or the complaint that there is none."""
    several: list[Record] = client.call("list_services")
    found = [record for record in several if record["name"].startswith(f"{word}@")]
    if not found:
        raise error
    return found


def _neighbours(session: Session, records: list[Record], at: str | None) -> dict[str, Record]:
    """Every service, where one of `records` depends on another."""
    if not any((record.get("definition") or {}).get("depends_on") for record in records):
        return {}
    return {each["name"]: each for each in _records(session, at)[0]}


def _summary(
    screen: Screen, records: list[Record], at: datetime, is_written: bool
) -> Iterator[str]:
    if not records:
        yield NO_SERVICES
        return
    counts = Counter(record["status"] for record in records).most_common()
    total = f"{len(records)} service{'' if len(records) == 1 else 's'}"
    yield f"{total}: {', '.join(f'{count} {escaped(state)}' for state, count in counts)}"
    ill = [record for record in records if not words.is_well(record)]
    if ill:
        yield "not well:"
    else:
        yield "all is well" if is_written else "every service is well, the journal is not"
    for record in ill:
        yield f"  {screen.bold(escaped(record['name']))}: {_trouble(screen, record, at)}"
    yield ""
    yield from _list(screen, records, at)


def _trouble(screen: Screen, record: Record, at: datetime) -> str:
    if record["status"] == "Running":
        return f"{screen.state('Running')}, {screen.state(escaped(record['health']))}"
    return f"{screen.state(escaped(record['status']))}, {words.detail(record, at)}"


def _blocks(
    screen: Screen, records: list[Record], others: Mapping[str, Record], at: datetime
) -> Iterator[str]:
    for number, record in enumerate(records):
        if number:
            yield ""
        yield from _block(screen, record, others, at)


def _block(
    screen: Screen, record: Record, others: Mapping[str, Record], at: datetime
) -> Iterator[str]:
    """Everything that is known of one service."""
    since = f"since {words.time_of(record['since'])} ({words.age(record['since'], at)} ago)"
    state = screen.state(escaped(record["status"]))
    yield f"{screen.bold(escaped(record['name']))}: {state}" + (
        f" {since}" if record["since"] else ""
    )
    for label, text in (*_condition(screen, record, at), *_declared(screen, record, others, at)):
        yield f"  {label:{_LABEL_WIDTH - 2}}{text}"
    if events := record.get("events"):
        yield "  events"
        for seq, time, _service, kind, rest in map(words.event, events):
            yield from screen.row([f"    {seq:>6}", time, f"{kind:17}"], rest)


def _condition(screen: Screen, record: Record, at: datetime) -> Iterator[tuple[str, str]]:
    """How a service is, and how it was."""
    yield (
        "reason",
        screen.wrapped(_LABEL_WIDTH, words.detail({**record, "message": None}, at)),
    )  # which has its own line
    if record.get("message"):
        yield "", screen.wrapped(_LABEL_WIDTH, escaped(record["message"]))
    if record.get("status_text"):
        yield "says", screen.wrapped(_LABEL_WIDTH, escaped(record["status_text"]))
    if record.get("errno"):
        yield "errno", _errno(record["errno"])
    yield "wanted", escaped(record["wanted"])
    yield "pid", escaped(record["pid"])
    yield "run", escaped(record["run"])
    if record.get("memory") is not None:
        yield "memory", words.size(record["memory"])
    if record.get("found_by"):
        yield "found by", _FOUND_BY.get(record["found_by"], escaped(record["found_by"]))
    yield "health", screen.state(escaped(record["health"]))
    for check in record.get("checks") or ():
        yield "", _check(screen, check, at)
    yield "last exit", words.last_exit(record.get("last_exit"), at)
    yield from _last_words(screen, record.get("last_words"), at)
    yield "restarts", escaped(record["restarts"])


def _declared(
    screen: Screen, record: Record, others: Mapping[str, Record], at: datetime
) -> Iterator[tuple[str, str]]:
    """What is declared of a service, in short; `circlectl show` has all of it."""
    name, definition = escaped(record["name"]), record.get("definition") or {}
    label = "needs"
    for dependency in definition.get("depends_on") or ():
        yield label, _need(screen, dependency, others.get(dependency["service"]), at)
        label = ""
    if definition.get("tags"):
        yield "tags", escaped(", ".join(definition["tags"]))
    if definition.get("cmd"):
        room = screen.width and screen.width - _LABEL_WIDTH
        yield "command", screen.cut(words.command_line(definition["cmd"]), room)
    kept = "logs" not in definition or definition["logs"]
    yield "logs", f"circlectl logs {name}" if kept else "not kept (logs = false)"


def _need(screen: Screen, dependency: Record, target: Record | None, at: datetime) -> str:
    """A dependency, what it has to be, and how it is."""
    needed = f"{escaped(dependency['service'])} {escaped(dependency['condition'])}"
    follows = ", whose restarts it follows" if dependency["restart"] else ""
    is_ = "gone" if target is None else screen.state(escaped(target["status"]))
    why = f", {words.detail(target, at)}" if target and target["status"] != "Running" else ""
    return f"{needed}{follows}: {is_}{why}"


def _errno(number: int) -> str:
    """An error of the system by its number, its name and its words."""
    name = errno.errorcode.get(number)
    return f"{number} ({name}: {os.strerror(number)})" if name else str(number)


def _last_words(screen: Screen, words_: Record | None, at: datetime) -> Iterator[tuple[str, str]]:
    """What the latest run that ended ill said at its end."""
    if words_ is None:
        return
    lost = f", {words_['dropped']} bytes of output lost" if words_["dropped"] else ""
    yield "said last", f"run {words_['run']}, {words.age(words_['at'], at)} ago{lost}"
    for line in words_["lines"][-LAST_LINES:]:
        yield "", screen.wrapped(_LABEL_WIDTH, escaped(line))


def _check(screen: Screen, check: Record, at: datetime) -> str:
    parts = [screen.state(escaped(check["health"]))]
    if check["error"]:
        parts.append(escaped(check["error"]))
    if check["latency_ms"] is not None:
        parts.append(_latency(check))
    if check["last_at"]:
        parts.append(f"{words.age(check['last_at'], at)} ago")
    return f"{escaped(check['name'])} ({escaped(check['target'])}): {', '.join(parts)}"


def _latency(check: Record) -> str:
    latency_ms = check["latency_ms"]
    return NONE if latency_ms is None else f"{latency_ms:.3g} ms"


@click.command(epilog=SELECTION)
@any_names
@common
@click.pass_obj
def health(session: Session, names: tuple[str, ...]) -> int:
    """Show what the checks say, of NAME or of all that have some.

    \b
    Examples:
      circlectl health
      circlectl health web --json
    """
    asked = {} if not names or EVERYTHING in names else {"service": list(names)}
    records = session.call("health", **asked)
    shown = [record for record in records if asked or record["checks"]]
    nothing = NO_CHECKS if records else NO_SERVICES
    session.show(records, lambda: _health(session.screen, shown, now()) if shown else [nothing])
    return exits.WELL


def _health(screen: Screen, records: list[Record], at: datetime) -> list[str]:
    rows = [row for record in records for row in _health_rows(record, at)]
    return screen.table(_HEALTH, rows)


def _health_rows(record: Record, at: datetime) -> Iterable[list[str]]:
    name = escaped(record["name"])
    if not record["checks"]:
        yield [name, NONE, NONE, NONE, NONE, "no check is declared"]
    for check in record["checks"]:
        target = escaped(check["target"])
        yield [
            name,
            escaped(check["name"]),
            escaped(check["health"]),
            _latency(check),
            words.age(check["last_at"], at),
            f"{escaped(check['error'])} ({target})" if check["error"] else target,
        ]


@click.command(epilog=SELECTION)
@names
@common
@click.pass_obj
def check(session: Session, names: tuple[str, ...]) -> int:
    """Carry out the checks of services once, now.

    The results are told, and count for nothing: no service is restarted for them. The exit status is 0
    when every check succeeded, 1 when one failed or none is declared.

    \b
    Examples:
      circlectl check web
      circlectl check all --json | jq '.[].checks[] | select(.ok | not)'
    """
    if not names:
        raise click.UsageError(f"name the services to check, or {EVERYTHING}")
    with session.client(CHECK_TIMEOUT_S) as client:
        records = client.call("check", service=services(names))
    session.show(records, lambda: _results(session.screen, records))
    succeeded = all(each["ok"] for record in records for each in record["checks"])
    return exits.WELL if succeeded else exits.FAILED


def _results(screen: Screen, records: list[Record]) -> list[str]:
    rows = [_result(record, each) for record in records for each in record["checks"]]
    room = _room(screen, rows)
    rows = [[*row[:2], screen.cut_middle(row[2], room), *row[3:]] for row in rows]
    return screen.table(_RESULTS, rows)


def _room(screen: Screen, rows: list[list[str]]) -> int:
    """The columns that the others leave to the targets, where no error stands beside them."""
    widths = [max(map(len, column)) for column in zip(_RESULTS, *rows, strict=True)]
    if screen.width is None:
        return widths[2]
    others = sum(widths[:2] + widths[3:5]) + len(_RESULTS[-1]) + len(GAP) * len(widths[:-1])
    return max(_TARGET_MIN, screen.width - others)


def _result(record: Record, each: Record) -> list[str]:
    return [
        escaped(record["name"]),
        escaped(each["name"]),
        escaped(each["target"]),
        "ok" if each["ok"] else "failed",
        f"{each['latency_ms']:.1f}",
        escaped(each["error"]) if each["error"] else "",
    ]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Add Python, platform and capabilities.")
@common
@click.pass_obj
def version(session: Session, everything: bool) -> int:
    """Show the versions of circlectl and the registry.

    \b
    Examples:
      circlectl version
      circlectl version --all
    """
    if not session.json:
        write([f"circlectl {registry.__version__}"])
    data = session.call("version", all=everything)
    session.show(data, lambda: _version(data))
    return exits.WELL


def _version(data: Record) -> Iterator[str]:
    yield f"registry {escaped(data['version'])}"
    for key, value in data.items():
        if key == "capabilities":
            yield "  capabilities"
            yield from map(_capability, value)
        elif key != "version":
            yield f"  {escaped(key.replace('_', ' ')):16}{escaped(value)}"


def _capability(found: Record) -> str:
    """What this machine can do, or what is done instead."""
    has, words_key = ("yes", "what") if found["available"] else ("no", "otherwise")
    return f"    {escaped(found['name']):14}{has:5}{escaped(found[words_key])}"


@click.command()
@click.argument("file", required=False, type=click.Path())
@common
@click.pass_obj
def validate(session: Session, file: str | None) -> int:
    """Judge a configuration file.

    It does what `service-registry --validate` does, and needs no running registry.

    The exit status is 0 when all is well with FILE (by default the file that the registry would
    take), 78 when something is wrong; all of it is said at once.

    \b
    Examples:
      circlectl validate
      circlectl validate etc/services.toml
    """
    import subprocess  # not needed by any other command, and slow to load

    chosen = ["--config", file] if file else []
    command = [sys.executable, "-P", "-m", "registry", "--validate", *chosen]
    complaints = subprocess.PIPE if session.json else None
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=complaints, text=True
    )
    valid = done.returncode == 0
    data = {"valid": valid, "complaints": (done.stderr or "").splitlines()}
    session.show(data, done.stdout.splitlines)
    return done.returncode
