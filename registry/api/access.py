"""Who may ask for what: the kernel's word about a peer against the role of an action.

* The registry's own user and root may everything; anybody else what `[access]` grants to his user or to one
  of his groups. Who is not named there may only report for a service, from a process that its run holds.
* Roles are granted by words: `user:NAME`, `group:NAME`, `uid:N`, `gid:N`. Names become numbers when they
  are set, not when somebody asks. A name that does not exist grants nothing.
"""

from __future__ import annotations

import grp
import logging
import pwd
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import msgspec

from registry.api.actions import Action, ApiError, ErrorCode, Params, Role

ROOT_UID = 0
GRANTABLE = (Role.OBSERVE, Role.OPERATE, Role.ADMIN)
"""The roles of `[access]`; each includes those before it."""

_log = logging.getLogger(__name__)


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end, as the kernel saw it when the connection was made.

    `pid` is None where the kernel does not tell it (or not in our pid namespace), `program` (the
    process's comm) where the process could not be looked at any more. `groups` are the supplementary ones.
    """

    uid: int
    gid: int
    pid: int | None
    program: str | None
    groups: frozenset[int] = frozenset()


class Access:
    """The rule for one registry: `own_uid` is its user, `owner_of` names the service that holds a pid."""

    def __init__(
        self,
        own_uid: int,
        owner_of: Callable[[int], str | None],
        granted: Mapping[Role, Iterable[str]] | None = None,
    ) -> None:
        self._all_powerful = frozenset((ROOT_UID, own_uid))
        self._owner_of = owner_of
        self._holders: dict[Role, _Holders] = {}
        self._warned: set[str] = set()
        self.set(granted or {})

    def set(self, granted: Mapping[Role, Iterable[str]]) -> None:
        """From now on these words hold these roles. Warns, once each, of names that do not exist."""
        warnings: set[str] = set()
        self._holders = {role: _named(role, granted.get(role, ()), warnings) for role in GRANTABLE}
        for warning in sorted(warnings - self._warned):
            _log.warning("%s", warning)
        self._warned = warnings

    def holds(self, peer: Peer, role: Role) -> bool:
        """Whether `peer` has `role` or one that includes it. Who may operate may report for services, too."""
        if peer.uid in self._all_powerful:
            return True
        least = Role.OPERATE if role is Role.SERVICE else role
        enough = GRANTABLE[GRANTABLE.index(least) :]
        return any(peer in self._holders[each] for each in enough)

    def allow(self, peer: Peer, action: Action, params: Params) -> None:
        """Return when `peer` may ask `action` with `params`; else raise ApiError(FORBIDDEN)."""
        if self.holds(peer, action.role):
            return
        if action.role is not Role.SERVICE:
            raise ApiError(
                ErrorCode.FORBIDDEN,
                f"{_who(peer)} may not ask for {action.name}: "
                f"[access] {action.role} names neither the user nor one of its groups",
            )
        service = getattr(params, "service", None)
        owner = None if peer.pid is None else self._owner_of(peer.pid)
        if service is None or owner != service:
            raise ApiError(
                ErrorCode.FORBIDDEN,
                f"{_who(peer)} may ask for {action.name} only from a process of that service, "
                f"or as one whom [access] {Role.OPERATE} names",
            )


class _Holders(msgspec.Struct, frozen=True):
    """Who is named for one role."""

    uids: frozenset[int]
    gids: frozenset[int]

    def __contains__(self, peer: Peer) -> bool:
        return (
            peer.uid in self.uids or peer.gid in self.gids or not self.gids.isdisjoint(peer.groups)
        )


def _named(role: Role, words: Iterable[str], warnings: set[str]) -> _Holders:
    """Whom `words` name; a warning for each that names nobody."""
    uids: set[int] = set()
    gids: set[int] = set()
    for word in words:
        kind, _, name = word.partition(":")
        number = _number(kind, name)
        if number is None:
            warnings.add(f"[access] {role}: there is no '{word}' here, so it grants nothing")
        else:
            (uids if kind in ("user", "uid") else gids).add(number)
    return _Holders(frozenset(uids), frozenset(gids))


def _number(kind: str, name: str) -> int | None:
    """The uid or gid that `kind:name` stands for, None where there is no such user or group."""
    try:
        match kind:
            case "user":
                return pwd.getpwnam(name).pw_uid
            case "group":
                return grp.getgrnam(name).gr_gid
            case "uid" | "gid" if name.isdecimal():
                return int(name)
    except KeyError:
        return None
    return None


@lru_cache(maxsize=256)  # whoever is refused again and again is not to cost a look-up each time
def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _who(peer: Peer) -> str:
    name = _user_name(peer.uid)
    return f"user {peer.uid} ({name})" if name else f"user {peer.uid}"
