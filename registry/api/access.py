"""Who may ask for what: the kernel's word about a peer against the role of an action.

The registry's own user and root may everything. Everybody else may only report for a service, and only
from a process that this service's run holds.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from registry.api.actions import Action, ApiError, ErrorCode, Params, Role

ROOT_UID = 0


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end, as the kernel saw it when the connection was made.

    `pid` is None where the kernel does not tell it (or not in our pid namespace), `program` (the
    process's comm) where the process could not be looked at any more.
    """

    uid: int
    gid: int
    pid: int | None
    program: str | None


class Access:
    """The rule for one registry: `own_uid` is its user, `owner_of` names the service that holds a pid."""

    def __init__(self, own_uid: int, owner_of: Callable[[int], str | None]) -> None:
        self._all_powerful = frozenset((ROOT_UID, own_uid))
        self._owner_of = owner_of

    def allow(self, peer: Peer, action: Action, params: Params) -> None:
        """Return when `peer` may ask `action` with `params`; else raise ApiError(FORBIDDEN)."""
        if peer.uid in self._all_powerful:
            return
        if action.role is not Role.SERVICE:
            raise ApiError(
                ErrorCode.FORBIDDEN,
                f"user {peer.uid} may not ask for {action.name}: "
                "only the registry's own user and root may",
            )
        service = getattr(params, "service", None)
        owner = None if peer.pid is None else self._owner_of(peer.pid)
        if service is None or owner != service:
            raise ApiError(
                ErrorCode.FORBIDDEN,
                f"user {peer.uid} may ask for {action.name} only from a process of that service",
            )
