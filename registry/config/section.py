"""A table of the file while it is read: every key is taken once, and what nobody took is unknown.

The one rule of shape lives here: a short form is the table with one named key. So do `[defaults]`:
tables merge key by key under a service's own. Each value keeps its place through both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from registry.config.complaints import Sheet, dotted, suggestion
from registry.config.lines import Place
from registry.config.values import Wrong, WrongElements, found

T = TypeVar("T")
U = TypeVar("U")

_SHORT_FORMS = {"restart": "policy", "stop": "timeout", "logs": "enabled"}
_ALTERNATIVES = frozenset(["reload"])  # of tables of alternatives a service's own is the whole
_INSTANCE = "{instance}"
_BROUGHT_ALONG = {
    **dict.fromkeys(["command", "exec", "execstart"], "cmd"),
    **dict.fromkeys(["environment", "envs", "vars"], "env"),
    "environmentfile": "env_file",
    **dict.fromkeys(["workingdir", "workingdirectory", "directory", "chdir"], "cwd"),
    **dict.fromkeys(["after", "requires", "wants", "bindsto", "needs"], "depends_on"),
    **dict.fromkeys(["autorestart", "respawn"], "restart"),
    "restartsec": "restart.delay",
    **dict.fromkeys(["startretries", "startlimitburst"], "restart.limit"),
    **dict.fromkeys(["startsecs", "timeoutstartsec"], "start_timeout"),
    **dict.fromkeys(["stopgraceperiod", "stopwaitsecs", "timeoutstopsec"], "stop"),
    **dict.fromkeys(["stopsignal", "killsignal"], "stop.signal"),
    **dict.fromkeys(["execreload", "reloadsignal"], "reload"),
    **dict.fromkeys(["numprocs", "replicas", "scale"], "instances"),
    "exitcodes": "success_exit_codes",
    **dict.fromkeys(["stdoutlogfile", "standardoutput", "logging"], "logs"),
    "ulimits": "limits",
    "limitnofile": "limits.nofile",
    "nonewprivileges": "no_new_privs",
    "oomscoreadjust": "oom_score_adj",
    **dict.fromkeys(["capadd", "ambientcapabilities"], "capabilities"),
    "type": "oneshot",
}
"""Keys as systemd, supervisord and Compose have them, in lower case and without `_`, and what is meant here."""


class Item(NamedTuple):
    """A value and where it stands."""

    value: object
    place: Place


Table = dict[str, Item]


def table_of(item: Item) -> Table | None:
    """The keys of a table, each with its place; None when it is no table."""
    if not isinstance(item.value, dict):
        return None
    return {
        key: value if isinstance(value, Item) else Item(value, (*item.place, key))
        for key, value in item.value.items()
    }


def expand(table: Table) -> Table:
    """The keys of a service, or of `[defaults]`, with short forms as the tables they stand for."""
    expanded = dict(table)
    for key, named in _SHORT_FORMS.items():
        if key in table:
            expanded[key] = _as_table(table[key], named)
    if logs := expanded.get("logs"):
        # Who writes a table of logs wants logs, whatever the defaults say.
        keys = {"enabled": Item(True, logs.place), **(table_of(logs) or {})}
        expanded["logs"] = Item(keys, logs.place)
    if checks := table.get("health_check"):
        expanded["health_check"] = _checks(checks)
    if reload := table.get("reload"):
        named = "cmd" if isinstance(reload.value, list) else "signal"
        expanded["reload"] = _as_table(reload, named)
    return expanded


def _as_table(item: Item, named: str) -> Item:
    table = table_of(item)
    return Item({named: item} if table is None else table, item.place)


def _checks(item: Item) -> Item:
    """A list of checks as tables, or the one table."""
    if not isinstance(item.value, list):
        return _as_table(item, "target")
    each = [Item(value, (*item.place, number)) for number, value in enumerate(item.value)]
    return Item([_as_table(check, "target") for check in each], item.place)


def merge(defaults: Table, own: Table) -> Table:
    """A service's keys over those of `[defaults]`, both expanded."""
    merged = {**defaults, **own}
    for key in (defaults.keys() & own.keys()) - _ALTERNATIVES:
        merged[key] = _over(defaults[key], own[key])
    if "health_check" not in own and "health_check" in defaults:
        shared = table_of(defaults["health_check"])
        if shared is not None and "target" not in shared:
            del merged["health_check"]  # settings for checks, and this service has none
    return merged


def _over(under: Item, over: Item) -> Item:
    below = table_of(under)
    if below is None:
        return over
    if isinstance(over.value, list):
        each = [item for item in over.value if isinstance(item, Item)]
        return Item([_over(under, item) for item in each], over.place)
    above = table_of(over)
    return over if above is None else Item({**below, **above}, over.place)


def with_instance(item: Item, number: int) -> Item:
    """`item` with `{instance}` in its strings and keys replaced by `number`."""
    return _replaced(item, str(number))


def _replaced(item: Item, word: str) -> Item:
    value = item.value
    if isinstance(value, str):
        return Item(value.replace(_INSTANCE, word), item.place)
    if isinstance(value, list):
        return Item([_replaced_element(each, item.place, word) for each in value], item.place)
    table = table_of(item)
    if table is None:
        return item
    changed = {key.replace(_INSTANCE, word): _replaced(each, word) for key, each in table.items()}
    return Item(changed, item.place)


def _replaced_element(value: object, place: Place, word: str) -> object:
    """An element of a list; one that has a place of its own keeps it."""
    if isinstance(value, Item):
        return _replaced(value, word)
    return _replaced(Item(value, place), word).value


def instance_places(item: Item) -> list[Place]:
    """Where `{instance}` is written in `item`."""
    value = item.value
    if isinstance(value, str):
        return [item.place] if _INSTANCE in value else []
    if isinstance(value, list):
        each = [value if isinstance(value, Item) else Item(value, item.place) for value in value]
        return [place for element in each for place in instance_places(element)]
    places = []
    for key, inner in (table_of(item) or {}).items():
        places += [inner.place] if _INSTANCE in key else instance_places(inner)
    return places


def _places(place: Place, wrong: Wrong) -> list[tuple[Place, Wrong]]:
    """What is wrong with the value at `place`, and where in it."""
    if isinstance(wrong, WrongElements):
        return [((*place, number), each) for number, each in wrong.elements]
    return [(place, wrong)]


@functools.cache
def _flattened() -> dict[str, str]:
    """The keys of a service's tables as one word, such as stop_timeout, and what is meant by each."""
    from registry.config.language import language  # it is made of those who read by sections

    tables = language()["service"].table
    return {f"{key}_{sub}": f"{key}.{sub}" for key in tables for sub in tables[key].table}


class Section:
    """One table. `service` is whose it is, for complaints."""

    def __init__(self, sheet: Sheet, item: Item, service: str | None = None) -> None:
        self.place = item.place
        self._sheet = sheet
        self._service = service
        self._known: list[str] = []
        table = table_of(item)
        if table is None:
            sheet.refuse(item.place, service, f"found {found(item.value)}, want a table")
        self._items: Mapping[str, Item] = table or {}

    def item(self, key: str) -> Item | None:
        """The value of `key` as it stands in the file, which makes the key a known one."""
        self._known.append(key)
        return self._items.get(key)

    def take(self, key: str, parse: Callable[[object], T], default: T) -> T:
        """The value of `key`, or `default` where it is absent or (with a complaint) wrong."""
        item = self.item(key)
        return default if item is None else self.parse(item, parse, default)

    def parse(self, item: Item, parse: Callable[[object], T], default: T) -> T:
        """What `item`, something in this table, comes to; `default` where (with a complaint) it is wrong."""
        try:
            return parse(item.value)
        except Wrong as wrong:
            for place, each in _places(item.place, wrong):
                self._sheet.refuse(place, self._service, str(each))
            return default

    def need(self, key: str, example: str) -> None:
        """Complain where `key` is absent."""
        if key not in self._items:
            name = dotted((*self.place, key))
            self._sheet.note(self.place, self._service, f"{name} is missing; add {example}")

    def sub(self, key: str) -> Section:
        """The table under `key`; an empty one where it is absent."""
        item = self.item(key)
        empty: dict[str, Item] = {}
        return self.of(item or Item(empty, (*self.place, key)))

    def inner(self, key: str, read: Callable[[Section], T], default: U) -> T | U:
        """What `read` makes of the table under `key`, or `default` where it is absent."""
        item = self.item(key)
        return default if item is None else read(self.of(item))

    def of(self, item: Item) -> Section:
        """A table inside this one."""
        return Section(self._sheet, item, self._service)

    def each(self, parse: Callable[[object], T]) -> dict[str, T]:
        """A table whose keys are the user's own."""
        read = {key: self.parse(item, parse, None) for key, item in self._items.items()}
        return {key: value for key, value in read.items() if value is not None}

    def items(self) -> Mapping[str, Item]:
        """Everything in a table whose keys are the user's own."""
        return self._items

    def given(self, key: str) -> bool:
        """Whether `key` is there, right or wrong."""
        return key in self._items

    def inherited(self, key: str) -> bool:
        """Whether `key` comes from `[defaults]`."""
        return key in self._items and self._items[key].place[0] == "defaults"

    def refuse(self, message: str, *keys: str) -> None:
        """Note a nonsense combination of `keys`, at the one that this table itself gives."""
        places = [self._items[key].place for key in keys if key in self._items]
        own = [place for place in places if place[0] != "defaults"]
        self._sheet.refuse((own or places or [self.place])[0], self._service, message)

    def _hint(self, key: str) -> str:
        meant = _BROUGHT_ALONG.get(key.lower().replace("_", ""), "")
        meant = meant or _flattened().get(key.lower().replace("-", "_"), "")
        if meant.partition(".")[0] in self._known:
            return f", did you mean '{meant}'?"
        return suggestion(key, self._known)

    def close(self) -> None:
        """Complain about every key that nobody took."""
        for key, item in self._items.items():
            if key not in self._known:
                hint = self._hint(key)
                self._sheet.note(
                    item.place, self._service, f"unknown key '{dotted(item.place)}'{hint}"
                )
