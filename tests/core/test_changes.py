"""What a new definition changes, which of it a run takes up as it goes on, and what an apply starts anew."""

from __future__ import annotations

import msgspec
import pytest

from registry.core import inputs as inp
from registry.core.changes import changed_keys, keys_for_a_new_run
from registry.core.definition import (
    HEARTBEAT,
    Check,
    Definition,
    Dependency,
    Limits,
    Logs,
    Ready,
    Reload,
    Restart,
    Socket,
    Stop,
)
from registry.core.lifecycle import Reason, State

OLD = Definition("web", ("./web",))
IN_PLACE = {
    "position": 3,
    "restart": Restart(delay_s=9.0),
    "stop": Stop("SIGINT", 1.0),
    "checks": (Check("beat", "unix:/s"),),
    "autostart": False,
    "success_exit_codes": (0, 3),
    "start_timeout_s": 1.0,
    "essential": True,
    "ready": Ready.HEALTH,
    "oneshot": True,
    "depends_on": (Dependency("db"),),
    "tags": ("front",),
    "reload": Reload(signal="SIGHUP"),
}
BY_A_NEW_RUN = {
    "cmd": ("./other",),
    "cwd": "/srv",
    "env_names": ("MODE",),
    "env_digest": "5e0c",
    "env_file": "/etc/env",
    "user": "www-data",
    "group": "www-data",
    "umask": 0o077,
    "logs": Logs("/var/log"),
    "sockets": (Socket("http", "127.0.0.1:80"),),
    "limits": Limits(pids_max=3),
    "groups": ("www-data",),
    "nice": 5,
    "oom_score_adj": 5,
    "no_new_privs": True,
    "capabilities": (),
    "instance_of": "web",
    "instance": 1,
}
KEYS = {"checks": "health_check", "env_names": "env", "env_digest": "env"} | {
    "start_timeout_s": "start_timeout"
}


def types(records):
    return [record.type for record in records]


def renewed(w, **fields):
    """Declare it anew, and let it be renewed, as an apply does."""
    definition = msgspec.structs.replace(w.service.definition, **fields)
    define = inp.Define(definition=definition, digest=f"digest-{len(w.records)}")
    return types(w.give(define)), types(w.give(inp.Renew()))


def test_every_field_of_a_definition_but_its_name_is_of_one_kind() -> None:
    fields = set(Definition.__struct_fields__) - {"name"}
    assert (set(IN_PLACE) | set(BY_A_NEW_RUN), set(IN_PLACE) & set(BY_A_NEW_RUN)) == (fields, set())


@pytest.mark.parametrize("field", [*IN_PLACE, *BY_A_NEW_RUN])
def test_a_changed_key_is_named_as_the_file_names_it(field):
    new = msgspec.structs.replace(OLD, **{field: (IN_PLACE | BY_A_NEW_RUN)[field]})
    key = KEYS.get(field, field)
    assert changed_keys(OLD, new) == (key,)
    assert keys_for_a_new_run(OLD, new) == ((key,) if field in BY_A_NEW_RUN else ())


def test_a_key_that_two_fields_hold_is_named_once():
    new = msgspec.structs.replace(OLD, env_names=("MODE",), env_digest="5e0c")
    assert changed_keys(OLD, new) == ("env",)
    assert changed_keys(OLD, OLD) == ()


def test_logs_are_taken_up_in_place_unless_they_begin_or_end():
    one = msgspec.structs.replace(OLD, logs=Logs("/var/log"))
    other = msgspec.structs.replace(OLD, logs=Logs("/var/log", files_max=9))
    assert keys_for_a_new_run(one, other) == ()
    assert keys_for_a_new_run(one, OLD) == keys_for_a_new_run(OLD, one) == ("logs",)


def test_readiness_is_taken_up_in_place_unless_a_run_is_to_be_listened_to_or_no_more():
    says = msgspec.structs.replace(OLD, ready=Ready.NOTIFY)
    assert keys_for_a_new_run(OLD, says) == keys_for_a_new_run(says, OLD) == ("ready",)


def test_a_heartbeat_is_taken_up_in_place_unless_a_run_is_to_beat_more_often_than_it_was_told():
    def beats(*intervals_s):
        checks = tuple(Check(f"beat{s}", HEARTBEAT, interval_s=s) for s in intervals_s)
        return msgspec.structs.replace(OLD, checks=checks)

    for old, new in ((OLD, beats(5)), (beats(5), beats(2)), (beats(5), beats(9, 2))):
        assert keys_for_a_new_run(old, new) == ("health_check",)
        assert keys_for_a_new_run(new, old) == ()
    assert keys_for_a_new_run(beats(5), beats(5, 9)) == ()


# --- an apply -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", IN_PLACE)
def test_what_can_change_in_place_restarts_nothing(world, field):
    w = world()
    w.run()
    assert renewed(w, **{field: IN_PLACE[field]}) == (["redefined"], [])
    assert w.where == (State.RUNNING, Reason.READY)


@pytest.mark.parametrize("field", BY_A_NEW_RUN)
def test_what_only_a_new_run_can_take_up_restarts_it(world, field):
    w = world()
    w.run()
    assert renewed(w, **{field: BY_A_NEW_RUN[field]}) == (["redefined"], ["restart_requested"])
    assert w.where == (State.STOPPING, Reason.REDEFINED)
    w.exit(0)
    w.spawn()
    w.gate()
    assert w.seen(inp.Renew()) == []


def test_a_definition_by_itself_restarts_nothing_and_the_run_keeps_what_it_was_started_with(world):
    w = world()
    w.run()
    old = w.service.definition
    w.give(inp.Define(definition=msgspec.structs.replace(old, cmd=("./other",)), digest="2"))
    assert w.where == (State.RUNNING, Reason.READY)
    assert w.service.run_definition == old
    assert (w.service.run_digest, w.service.digest) == ("digest-1", "2")
    w.give(inp.Define(definition=msgspec.structs.replace(old, cmd=("./third",)), digest="3"))
    assert w.service.run_definition == old
    w.exit(1)
    w.spawn()
    assert (w.service.run_definition, w.service.run_digest) == (None, "3")


def test_one_that_is_declared_back_as_it_runs_is_not_restarted(world):
    w = world()
    w.run()
    old = w.service.definition
    w.give(inp.Define(definition=msgspec.structs.replace(old, cmd=("./other",)), digest="2"))
    w.give(inp.Define(definition=old, digest="digest-1"))
    assert w.service.run_definition is None
    assert w.seen(inp.Renew()) == []


def test_a_renewal_is_because_of_what_the_run_was_started_with_however_often_it_was_declared(world):
    w = world()
    w.run()
    old = w.service.definition
    w.give(inp.Define(definition=msgspec.structs.replace(old, cmd=("./other",)), digest="2"))
    assert renewed(w, tags=("a",))[1] == ["restart_requested"]


def test_the_definition_of_a_run_is_forgotten_with_it(world):
    w = world(policy="Never")
    w.run()
    old = w.service.definition
    w.give(inp.Define(definition=msgspec.structs.replace(old, cmd=("./other",)), digest="2"))
    w.exit(0)
    assert w.service.run_definition is None


def test_one_that_had_failed_is_tried_again_by_its_new_definition(world):
    w = world()
    w.start()
    w.refuse(Reason.PROGRAM_MISSING)
    assert renewed(w, cmd=("./there",))[1] == ["start_requested"]
    assert w.where == (State.STARTING, Reason.REDEFINED)


@pytest.mark.parametrize("change", [{"checks": ()}, {"ready": Ready.SPAWN}])
def test_one_that_waited_for_checks_alone_is_ready_once_it_need_not(world, change):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    w.gate()
    w.probe(ok=False)
    assert renewed(w, **change) == (["redefined"], ["became_ready"])
    assert w.where == (State.RUNNING, Reason.READY)


def test_one_that_still_waits_for_checks_is_not_ready_by_a_renewal(world):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    w.gate()
    assert renewed(w, checks=(Check("other", "unix:/o"),))[1] == []
    assert w.where == (State.STARTING, Reason.REQUESTED)


RESTS = {
    "never started": lambda w: None,
    "stopped": lambda w: (w.run(), w.stop(), w.exit(0)),
    "completed": lambda w: (w.run(), w.exit(0)),
    "failed, then stopped": lambda w: (w.start(), w.refuse(Reason.CWD_MISSING), w.stop()),
    "failed while it was stopped": lambda w: (w.run(), w.stop(), w.exit(1)),
    "stopping": lambda w: (w.run(), w.stop()),
    "spawning": lambda w: w.start(),
}


@pytest.mark.parametrize("place", RESTS)
def test_a_renewal_starts_nothing_that_is_not_wanted_or_has_ended_well(world, place):
    w = world(policy="OnFailure")
    RESTS[place](w)
    assert renewed(w, cmd=("./other",))[1] == []


def test_one_whose_stop_is_held_is_not_restarted_by_a_renewal(system, define):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    other = msgspec.structs.replace(s["db"].definition, cmd=("./other",))
    s.give("db", s.defined(other), ("db", inp.Renew()))
    assert s.where("db") == (State.RUNNING, Reason.REQUESTED)
    s.settle()
    assert s.running() == set()


def test_one_that_failed_while_its_stop_was_held_is_not_started_by_a_renewal(system):
    s = system(db=("", {"policy": "Never"}), web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    s.crash("db")
    other = msgspec.structs.replace(s["db"].definition, cmd=("./other",))
    s.give("db", s.defined(other), ("db", inp.Renew()))
    assert s.where("db") == (State.FAILED, Reason.EXIT_CODE)
