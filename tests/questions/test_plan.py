"""What a new configuration would change, told before it does: of services as they are, in every state."""

from __future__ import annotations

import msgspec
import pytest

from registry.core.definition import Check, Definition, Dependency, Logs, Stop
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.questions.plan import Change, Plan, plan

ENDS = "its run ends, another begins"
NEVER_RESTARTED: dict[str, dict[str, object]] = {
    "not running": {"state": State.STOPPED, "pid": None},
    "waiting": {"state": State.STOPPED, "pid": None, "reason": Reason.WAITING},
    "about to restart": {"state": State.RESTARTING, "pid": None},
    "stopping": {"state": State.STOPPING},
    "to be stopped, and held": {"wanted": False},
    "failed, and then stopped": {"state": State.FAILED, "pid": None, "wanted": False},
}


def declared(name: str, *needs: Dependency, **fields: object) -> Definition:
    return Definition(name, ("./serve",), depends_on=needs, **fields)  # type: ignore[arg-type]


def follows(name: str) -> Dependency:
    return Dependency(name, restart=True)


def running(definition: Definition, **fields: object) -> Service:
    usual = {"state": State.RUNNING, "wanted": True, "run": 1, "pid": 100}
    return Service(definition, **usual | fields)  # type: ignore[arg-type]


def other(definition: Definition, **fields: object) -> Definition:
    return msgspec.structs.replace(definition, **(fields or {"cmd": ("./other",)}))


def planned(services: list[Service], *definitions: Definition) -> tuple[Change, ...]:
    return plan({service.name: service for service in services}, definitions).changes


WEB = declared("web", logs=Logs("/log"))


def test_what_is_as_it_was_changes_nothing() -> None:
    assert plan({"web": running(WEB)}, [WEB]) == Plan()


def test_another_order_in_the_file_is_no_change() -> None:
    assert planned([running(WEB)], other(WEB, position=7)) == ()


def test_services_are_told_in_the_order_of_the_file_and_those_that_are_gone_last() -> None:
    before = [running(declared("gone")), running(WEB)]
    changes = planned(before, declared("new"), other(WEB, tags=("a",)), declared("newer"))
    told = [(each.service, each.change) for each in changes]
    assert told == [("new", "add"), ("web", "change"), ("newer", "add"), ("gone", "remove")]


def test_what_a_run_takes_up_as_it_goes_on_restarts_nothing() -> None:
    new = other(WEB, stop=Stop("SIGINT"), checks=(Check("up", "unix:/s"),))
    assert planned([running(WEB)], new) == (Change("web", "change", ("stop", "health_check")),)


def test_what_only_a_new_run_takes_up_is_named_beside_all_that_differs() -> None:
    new = other(WEB, cmd=("./other",), env_digest="5e0c", tags=("a",))
    change = Change("web", "change", ("cmd", "env", "tags"), ("cmd", "env"), ENDS)
    assert planned([running(WEB)], new) == (change,)


@pytest.mark.parametrize("how", NEVER_RESTARTED)
def test_one_without_a_run_that_is_to_go_on_is_not_started_anew(how: str) -> None:
    service = running(WEB, **NEVER_RESTARTED[how])
    assert planned([service], other(WEB)) == (Change("web", "change", ("cmd",), ("cmd",)),)


def test_a_failed_one_is_started_whatever_was_changed_but_its_place() -> None:
    failed = running(WEB, state=State.FAILED, pid=None)
    change = Change("web", "change", ("tags",), (), "it had failed, and is started")
    assert planned([failed], other(WEB, tags=("a",))) == (change,)
    assert planned([failed], other(WEB, position=2)) == ()


def test_a_run_that_was_started_by_an_earlier_definition_is_told_though_nothing_differs_now() -> (
    None
):
    new = other(WEB)
    behind = running(new, run_definition=WEB)
    assert planned([behind], new) == (Change("web", "change", ("cmd",), ("cmd",), ENDS),)


def test_a_run_whose_first_definition_comes_back_goes_on() -> None:
    behind = running(other(WEB), run_definition=WEB)
    assert planned([behind], WEB) == (Change("web", "change", ("cmd",)),)


def test_one_whose_run_is_ending_already_takes_up_the_rest_by_itself() -> None:
    new = other(WEB)
    ending = running(new, state=State.STOPPING, run_definition=WEB)
    assert planned([ending], new) == ()


@pytest.mark.parametrize(("pid", "restarts"), [(100, "its run ends"), (None, None)])
def test_one_that_is_removed_says_whether_a_run_ends(pid: int | None, restarts: str | None) -> None:
    assert planned([running(WEB, pid=pid)]) == (Change("web", "remove", restarts=restarts),)


def test_one_that_is_still_being_removed_is_added_when_it_comes_back() -> None:
    leaving = running(WEB, state=State.STOPPING, wanted=False, removing=True)
    assert planned([leaving], WEB) == (Change("web", "add"),)


# --- who follows ----------------------------------------------------------------------------------


def test_who_follows_one_that_is_started_anew_is_named_with_it_and_so_is_who_follows_him() -> None:
    db, app, page = declared("db"), declared("app", follows("db")), declared("page", follows("app"))
    changes = planned([running(each) for each in (page, app, db)], page, app, other(db))
    assert [(each.service, each.restarts) for each in changes] == [
        ("page", "follows app"),
        ("app", "follows db"),
        ("db", ENDS),
    ]


def test_who_only_depends_on_it_does_not_follow() -> None:
    db, app = declared("db"), declared("app", Dependency("db"))
    changes = planned([running(db), running(app)], other(db), app)
    assert [each.service for each in changes] == ["db"]


def test_one_that_follows_and_is_changed_itself_is_told_once_with_its_own_reason() -> None:
    db, app = declared("db"), declared("app", follows("db"))
    changes = planned([running(db), running(app)], other(db), other(app))
    assert [(each.service, each.restarts) for each in changes] == [("db", ENDS), ("app", ENDS)]


def test_a_follower_whose_other_keys_change_in_place_follows() -> None:
    db, app = declared("db"), declared("app", follows("db"))
    changes = planned([running(db), running(app)], other(db), other(app, tags=("a",)))
    assert changes[1] == Change("app", "change", ("tags",), (), "follows db")


def test_one_that_does_not_run_follows_nobody() -> None:
    db, app = declared("db"), declared("app", follows("db"))
    stopped = running(app, state=State.STOPPED, pid=None, wanted=False)
    assert [each.service for each in planned([running(db), stopped], other(db), app)] == ["db"]


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_follows_only_whom_it_followed_from_its_beginning_and_still_does(
    before: bool, after: bool
) -> None:
    db = declared("db")
    old, new = (declared("app", Dependency("db", restart=restart)) for restart in (before, after))
    changes = planned([running(db), running(old)], other(db), new)
    assert changes[1] == Change("app", "change", ("depends_on",))
    behind = running(new, run_definition=old)
    assert [each.service for each in planned([running(db), behind], other(db), new)] == ["db"]
