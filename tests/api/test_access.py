"""Who may ask for what."""

from __future__ import annotations

import pytest

from registry.api.access import Access, Peer
from registry.api.actions import ACTIONS, ApiError, ErrorCode, HeartbeatParams, NoParams, Params

OWN_UID, OTHER_UID = 1000, 1001
PIDS = {50: "web", 51: "db"}


def allowed(peer: Peer, action: str, params: Params) -> bool:
    """Whether it is; a refusal is checked to be one that says who may not do what."""
    try:
        Access(OWN_UID, PIDS.get).allow(peer, ACTIONS[action], params)
    except ApiError as error:
        refusal = error
    else:
        return True
    assert refusal.code is ErrorCode.FORBIDDEN
    assert f"user {peer.uid} may " in refusal.message
    assert action in refusal.message
    return False


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("uid", [OWN_UID, 0])
def test_the_registry_s_own_user_and_root_may_everything(uid, action):
    assert allowed(Peer(uid, 5, None, None), action, NoParams())


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "heartbeat"])
def test_others_may_ask_for_no_action_of_the_owner(action):
    assert not allowed(Peer(OTHER_UID, 5, 50, "web"), action, NoParams())
    assert not allowed(Peer(OTHER_UID, 5, 50, "web"), action, HeartbeatParams("web"))


@pytest.mark.parametrize(
    ("pid", "service", "expected"),
    [(50, "web", True), (51, "web", False), (52, "web", False), (None, "web", False)],
)
def test_others_may_report_only_for_the_service_that_holds_them(pid, service, expected):
    assert allowed(Peer(OTHER_UID, 5, pid, None), "heartbeat", HeartbeatParams(service)) is expected


def test_a_report_for_no_service_is_nobody_s():
    assert not allowed(Peer(OTHER_UID, 5, 52, None), "heartbeat", NoParams())
