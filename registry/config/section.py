"""A table of the file while it is read: every key is taken once, and what nobody took is unknown.

The one rule of shape lives here: a short form is the table with one named key. So do `[defaults]`:
tables merge key by key under a service's own. Each value keeps its place through both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from registry.config.complaints import Sheet, dotted, suggestion
from registry.config.lines import Place
from registry.config.values import Wrong, found

T = TypeVar("T")

_SHORT_FORMS = {"restart": "policy", "stop": "timeout", "logs": "enabled"}


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
    for key in defaults.keys() & own.keys():
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
        if item is None:
            return default
        try:
            return parse(item.value)
        except Wrong as wrong:
            self._sheet.refuse(item.place, self._service, str(wrong))
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

    def of(self, item: Item) -> Section:
        """A table inside this one."""
        return Section(self._sheet, item, self._service)

    def each(self, parse: Callable[[object], T]) -> dict[str, T]:
        """A table whose keys are the user's own."""
        values: dict[str, T] = {}
        for key, item in self._items.items():
            try:
                values[key] = parse(item.value)
            except Wrong as wrong:
                self._sheet.refuse(item.place, self._service, str(wrong))
        return values

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

    def close(self) -> None:
        """Complain about every key that nobody took."""
        for key, item in self._items.items():
            if key not in self._known:
                hint = suggestion(key, self._known)
                self._sheet.note(
                    item.place, self._service, f"unknown key '{dotted(item.place)}'{hint}"
                )
