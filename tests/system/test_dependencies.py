"""Many services as one system: who waits, who follows, who stops first; each cell of the README's table.

Nearly every service here is the same program: it is ready as soon as there is a file NAME.go where it is
`late`, and ends as soon as there is a file NAME.end where it `lingers`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform("linux")

LAUNCHER = Path(__file__).parents[1] / "crash" / "launcher.py"
UNIT = """
import os, signal, socket, sys, time

name = os.environ["CIRCLEOSD_SERVICE"]

def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def end(_number, _frame):
    if "lingers" in sys.argv:
        await_file(f"{name}.end")
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else end)
with open("ran", "a") as ran:
    ran.write(f"{name}\\n")
if "late" in sys.argv:
    await_file(f"{name}.go")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"""
DEPENDENTS = """
[[service]]
name = "stays"
cmd = ["sleep", "1000"]
depends_on = {{ db = "{condition}" }}
[[service]]
name = "follows"
cmd = ["sleep", "1000"]
depends_on = {{ db = {{ condition = "{condition}", restart = true }} }}
[[service]]
name = "waits"
cmd = ["sleep", "1000"]
autostart = {autostart}
depends_on = ["db"]
"""
"""Two that run while `db` is not ready, and one that waits for it."""
JOB = """
[[service]]
name = "{name}"
oneshot = true
cmd = ["sh", "-c", "echo {name} >> ran; while test -e {name}.hold; do sleep 0.02; done; ! test -e {name}.bad"]
"""


def unit(box, name: str, keys: str = "", *habits: str) -> str:
    """A service that says when it is ready."""
    path = box.folder / "unit.py"
    if not path.exists():
        box.program("unit", UNIT)
    command = ", ".join(f'"{word}"' for word in (sys.executable, "-I", "-S", str(path), *habits))
    return f'[[service]]\nname = "{name}"\ncmd = [{command}]\nready = "notify"\n{keys}\n'


def sleeper(name: str, keys: str = "") -> str:
    """A service that is ready as soon as it executes."""
    return f'[[service]]\nname = "{name}"\ncmd = ["sleep", "1000"]\n{keys}\n'


def let(box, name: str) -> None:
    """Let something happen that waits for a file."""
    (box.folder / name).touch()


def ran(box) -> Counter[str]:
    """How often each service was executed."""
    return Counter(box.lines("ran"))


def seqs(box, service: str, type: str) -> list[int]:
    """The numbers of a service's events of a type."""
    return [event["seq"] for event in box.events(service, type)]


def where(box, *names: str) -> list[tuple[str, int | None]]:
    """Status and run of services."""
    records = {record["name"]: record for record in box.data("list_services")}
    return [(records[name]["status"], records[name]["run"]) for name in names]


def wait_waiting(box, name: str, what: str) -> None:
    """Until a service says that this is what it waits for, and that it is still wanted."""
    record = box.wait_status(name, "Stopped", waiting_for=what)
    assert (record["wanted"], record["reason"], record["pid"]) == ("up", "waiting", None)


def die_at(box, point: str) -> None:
    """Start the registry, to be killed at a moment of its work."""
    box.start(program=(str(LAUNCHER),), CIRCLEOSD_CRASH=point)


def wait_dead(box) -> None:
    assert box.daemon.wait(10) == -signal.SIGKILL


# --- the table: a dependency, those that wait for it, those that run, and those that follow it ---------


def test_when_it_gets_ready_those_that_wait_start_and_those_that_run_stay(box):
    dependents = DEPENDENTS.format(condition="started", autostart="true")
    box.configure(unit(box, "db", "", "late") + dependents)
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    wait_waiting(box, "waits", "db to be ready")
    assert box.service("db")["status"] == "Starting"
    let(box, "db.go")
    assert box.wait_status("waits", "Running")["waiting_for"] is None
    assert where(box, "stays", "follows", "waits") == [("Running", 1)] * 3
    (ready,) = box.events("db", "became_ready")
    met, spawned = box.events("waits", "dependencies_met")[0], box.last("waits", "spawned")
    assert (met["cause"], spawned["cause"]) == (ready["seq"], met["seq"])


@pytest.mark.parametrize("how", ["it fails", "an operator restarts it"])
def test_when_it_is_restarted_followers_restart_once_it_is_ready_again(box, how):
    dependents = DEPENDENTS.format(condition="ready", autostart="false")
    box.configure(unit(box, "db", "", "late") + dependents)
    let(box, "db.go")
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    (box.folder / "db.go").unlink()
    if how == "it fails":
        os.kill(box.service("db")["pid"], signal.SIGKILL)
    else:
        box.data("restart", service="db")
    box.wait_status("db", "Starting", run=2)
    box.data("start", service="waits")
    wait_waiting(box, "waits", "db to be ready")
    assert where(box, "stays", "follows") == [("Running", 1)] * 2
    let(box, "db.go")
    box.wait_status("waits", "Running", run=1)
    box.wait_status("follows", "Running", run=2)
    assert where(box, "stays") == [("Running", 1)]
    again = seqs(box, "db", "became_ready")[1]
    (followed,) = box.events("follows", "restart_requested")
    assert (followed["reason"], followed["cause"]) == ("dependency", again)


def test_when_an_operator_stops_it_followers_stop_with_it_and_the_answer_names_who_runs_on(box):
    dependents = DEPENDENTS.format(condition="started", autostart="true")
    box.configure(unit(box, "db", "", "late") + dependents)
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    (answer,) = box.data("stop", service="db")
    assert answer["dependents"] == ["stays"]
    wait_waiting(box, "follows", "db to be started (it is stopped)")
    wait_waiting(box, "waits", "db to be ready (it is stopped)")
    assert where(box, "stays") == [("Running", 1)]
    box.data("start", service="db")
    box.wait_status("follows", "Running", run=2)
    wait_waiting(box, "waits", "db to be ready")
    let(box, "db.go")
    box.wait_status("waits", "Running", run=1)
    assert where(box, "db", "stays", "follows") == [("Running", 2), ("Running", 1), ("Running", 2)]


def test_a_stop_names_who_needs_the_service_through_a_oneshot(box):
    job = JOB.format(name="migrate") + 'depends_on = ["db"]\n'
    needs = '[[service]]\nname = "web"\ncmd = ["sleep", "1000"]\ndepends_on = ["migrate"]\n'
    box.configure(unit(box, "db") + job + needs)
    box.start()
    box.wait_status("web", "Running")
    (answer,) = box.data("stop", service="db")
    assert answer["dependents"] == ["web"]


def test_who_follows_a_follower_stays_up_while_that_waits_and_is_restarted_when_it_is_back(box):
    followers = DEPENDENTS.format(condition="ready", autostart="true")
    second = """
[[service]]
name = "second"
cmd = ["sleep", "1000"]
depends_on = { follows = { condition = "ready", restart = true } }
"""
    box.configure(unit(box, "db") + followers + second)
    box.start()
    box.wait_status("second", "Running")
    box.data("stop", service="db", wait=True)
    wait_waiting(box, "follows", "db to be ready (it is stopped)")
    assert where(box, "second") == [("Running", 1)]
    box.data("start", service="db")
    box.wait_status("follows", "Running", run=2)
    box.wait_status("second", "Running", run=2)


def test_when_it_gave_up_those_that_wait_say_why_and_those_that_run_stay(box):
    once = 'restart = { limit = 1, within = "10m" }'
    dependents = DEPENDENTS.format(condition="started", autostart="true")
    box.configure(unit(box, "db", once, "late") + dependents)
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    os.kill(box.service("db")["pid"], signal.SIGKILL)
    box.wait_status("db", "Starting", run=2)
    box.wait_status("follows", "Running", run=2)
    os.kill(box.service("db")["pid"], signal.SIGKILL)
    box.wait_status("db", "Failed", reason="restart_limit")
    wait_waiting(box, "waits", "db to be ready (it failed: restart limit)")
    assert where(box, "stays", "follows") == [("Running", 1), ("Running", 2)]


def test_when_its_oneshot_failed_those_that_run_stay_and_a_start_runs_it_again(box):
    box.configure(
        JOB.format(name="db") + DEPENDENTS.format(condition="completed", autostart="false")
    )
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    let(box, "db.bad")
    (record,) = box.data("start", service="waits", wait=True)
    assert (record["status"], record["wanted"]) == ("Running", "up"), "it had completed"
    box.data("stop", service="waits", wait=True)
    (record,) = box.data("start", service="db", wait=True)
    assert (record["status"], record["reason"]) == ("Failed", "exit_code")
    (record,) = box.data("start", service="waits", wait=True)
    assert (record["status"], record["waiting_for"]) == (
        "Stopped",
        "db to be completed (it failed: exit code)",
    )
    assert ran(box) == {"db": 3}, "who starts a service starts what it needs"
    assert where(box, "stays", "follows") == [("Running", 1)] * 2
    (box.folder / "db.bad").unlink()
    (record,) = box.data("start", service="waits", wait=True)
    assert (record["status"], record["run"]) == ("Running", 2)
    box.wait_status("follows", "Running", run=2)
    assert (ran(box), where(box, "stays")) == ({"db": 4}, [("Running", 1)])


# --- starting ------------------------------------------------------------------------------------------


def test_services_start_side_by_side_each_after_what_it_needs(box):
    box.configure(
        unit(box, "d", 'depends_on = ["b", "c"]')
        + unit(box, "b", 'depends_on = ["a"]', "late")
        + unit(box, "c", 'depends_on = ["a"]', "late")
        + unit(box, "a", "", "late")
        + sleeper("apart")
    )
    box.start()
    box.wait_status("apart", "Running")
    assert [record["waiting_for"] for record in box.data("list_services")] == [
        "b to be ready (it waits, too)",
        "a to be ready",
        "a to be ready",
        None,
        None,
    ]
    let(box, "a.go")
    for name in ("b", "c"):
        box.wait_status(name, "Starting")
    let(box, "c.go")
    box.wait_status("c", "Running")
    wait_waiting(box, "d", "b to be ready")
    let(box, "b.go")
    box.wait_status("d", "Running")
    for dependent, dependency in (("d", "b"), ("d", "c"), ("b", "a"), ("c", "a")):
        (spawned,) = seqs(box, dependent, "spawned")
        assert seqs(box, dependency, "became_ready")[0] < spawned
    assert ran(box) == dict.fromkeys("abcd", 1)
    box.verify()


def test_what_is_waited_for_is_told_with_the_reason_why_it_does_not_come(box):
    once = 'restart = { limit = 1, within = "10m" }'
    box.configure(
        sleeper("down", "autostart = false")
        + '[[service]]\nname = "missing"\ncmd = ["./nowhere"]\n'
        + '[[service]]\nname = "ill"\ncmd = ["false"]\nrestart = "Never"\nready = "notify"\n'
        + f'[[service]]\nname = "loop"\ncmd = ["false"]\nready = "notify"\n{once}\n'
        + sleeper("a", 'depends_on = ["missing"]')
        + sleeper("b", 'depends_on = ["ill"]')
        + sleeper("c", 'depends_on = ["loop"]')
        + sleeper("d", 'depends_on = ["a"]')
        + sleeper("e", 'depends_on = ["down"]\nautostart = false')
    )
    box.start()
    wait_waiting(box, "a", "missing to be ready (it failed: program missing)")
    wait_waiting(box, "b", "ill to be ready (it failed: exit code)")
    wait_waiting(box, "c", "loop to be ready (it failed: restart limit)")
    wait_waiting(box, "d", "a to be ready (it waits, too)")
    box.data("start", service="e", wait=True)
    box.data("stop", service=["down", "e"], wait=True)
    assert box.service("e")["waiting_for"] is None, "nobody wants it"


def test_started_is_enough_where_that_is_asked(box):
    box.configure(unit(box, "db", "", "late") + sleeper("web", 'depends_on = { db = "started" }'))
    box.start()
    box.wait_status("web", "Running")
    assert box.service("db")["status"] == "Starting"
    assert seqs(box, "db", "spawned") < seqs(box, "web", "spawned")


def test_healthy_waits_for_checks_that_fail_and_then_heal(box):
    check = '{ target = "cmd:test -e well", interval = "50ms", on_failure = "report" }'
    box.configure(
        sleeper("db", f'ready = "spawn"\nhealth_check = {check}')
        + sleeper("web", 'depends_on = { db = "healthy" }')
    )
    box.start()
    box.wait_status("db", "Running", health="unhealthy")
    wait_waiting(box, "web", "db to be healthy")
    let(box, "well")
    box.wait_status("web", "Running")
    (healthy,) = seqs(box, "db", "became_healthy")
    (spawned,) = seqs(box, "web", "spawned")
    assert healthy < spawned
    assert where(box, "db") == [("Running", 1)]


def test_completed_waits_for_a_clean_end(box):
    box.configure(
        '[[service]]\nname = "copy"\nrestart = { policy = "OnFailure", delay = "10ms" }\n'
        'cmd = ["sh", "-c", "echo copy >> ran; sleep 0.05; test -e well"]\n'
        + sleeper("web", 'depends_on = { copy = "completed" }')
    )
    box.start()
    wait_waiting(box, "web", "copy to be completed")
    box.wait_lines("ran", 2)
    assert box.service("web")["status"] == "Stopped"
    let(box, "well")
    box.wait_status("web", "Running")
    assert box.service("copy")["reason"] == "completed"


def test_who_starts_a_service_starts_what_it_needs_even_if_the_registry_dies_at_once(box):
    off = "autostart = false"
    box.configure(
        unit(box, "disk", off, "late")
        + unit(box, "db", f'{off}\ndepends_on = ["disk"]')
        + unit(box, "web", f'{off}\ndepends_on = ["db"]')
        + sleeper("other", off)
    )
    box.start()
    box.data("start", service="web")
    box.kill()
    box.start()
    wait_waiting(box, "web", "db to be ready (it waits, too)")
    box.wait_status("disk", "Starting")
    for name, reason in (("disk", "required"), ("db", "waiting")):
        (asked,) = box.events(name, "start_requested")
        (cause,) = seqs(box, "web", "start_requested")
        assert (asked["reason"], asked["cause"]) == (reason, cause)
        assert asked["actor"]["uid"] == os.getuid()
    let(box, "disk.go")
    box.wait_status("web", "Running")
    assert where(box, "other") == [("Stopped", None)]
    assert ran(box) == {"disk": 1, "db": 1, "web": 1}


def test_a_start_with_wait_of_one_that_needs_another_answers_when_both_are_up(box):
    off = "autostart = false"
    box.configure(unit(box, "db", off) + unit(box, "web", f'{off}\ndepends_on = ["db"]'))
    box.start()
    (record,) = box.data("start", service="web", wait=True)
    assert (record["name"], record["status"]) == ("web", "Running")
    assert where(box, "db") == [("Running", 1)]


# --- stopping ------------------------------------------------------------------------------------------


def chain(box, *habits: str, keys: str = "") -> str:
    """`web` needs `app`, `app` needs `db`."""
    return "".join(
        unit(box, name, f"{keys}\n{needs}", *habits)
        for name, needs in (
            ("web", 'depends_on = ["app"]'),
            ("app", 'depends_on = ["db"]'),
            ("db", ""),
        )
    )


def assert_in_reverse(box) -> None:
    """Each was gone before the stop of what it depends on began."""
    for dependent, dependency in (("web", "app"), ("app", "db")):
        gone = seqs(box, dependent, "group_emptied")[-1]
        begun = seqs(box, dependency, "dependents_gone")[-1]
        ended = seqs(box, dependency, "exited")[-1]
        assert gone < begun < ended


def test_a_stop_with_dependents_stops_them_first(box):
    box.configure(chain(box) + sleeper("other"))
    box.start()
    box.wait_status("web", "Running")
    box.data("stop", service="db", with_dependents=True, wait=True)
    assert where(box, "web", "app", "db", "other") == [("Stopped", 1)] * 3 + [("Running", 1)]
    assert_in_reverse(box)
    assert {box.service(name)["wanted"] for name in ("web", "app", "db")} == {"down"}


def test_sigterm_stops_all_in_reverse_and_a_second_one_hurries_those_too_that_wait_to_stop(box):
    box.configure(chain(box, "deaf", keys='stop = "60s"'))
    box.start()
    box.wait_status("web", "Running")
    box.daemon.terminate()
    box.wait_status("web", "Stopping")
    for name, what in (("app", "web to stop"), ("db", "app to stop")):
        record = box.wait_status(name, "Running", waiting_for=what)
        assert record["wanted"] == "down"
    box.daemon.terminate()
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    box.start()
    assert_in_reverse(box)


def test_one_that_was_to_stop_and_is_started_again_runs_on(box):
    box.configure(chain(box, "lingers"))
    box.start()
    box.wait_status("web", "Running")
    box.data("stop", service="app", with_dependents=True)
    box.wait_status("app", "Running", wanted="down", waiting_for="web to stop")
    box.data("start", service="app")
    let(box, "web.end")
    box.wait_status("web", "Stopped")
    box.data("restart", service="web", wait=True)
    assert where(box, "web", "app") == [("Running", 2), ("Running", 1)]


# --- kill -9 of the registry in each phase -------------------------------------------------------------


def test_killed_while_a_service_waits(box):
    box.configure(unit(box, "db", "", "late") + unit(box, "web", 'depends_on = ["db"]'))
    box.start()
    wait_waiting(box, "web", "db to be ready")
    box.wait_lines("ran", 1)
    box.kill()
    box.start()
    wait_waiting(box, "web", "db to be ready")
    box.kill()
    let(box, "db.go")  # it says so to nobody but the keeper
    box.start()
    box.wait_status("web", "Running", run=1)
    assert ran(box) == {"db": 1, "web": 1}
    box.verify()


@pytest.mark.parametrize("point", ["before spawn:2", "after spawn:2", "before gate:2"])
def test_killed_between_the_dependency_being_ready_and_the_start_of_who_waited(box, point):
    box.configure(unit(box, "db", "", "late") + unit(box, "web", 'depends_on = ["db"]'))
    die_at(box, point)
    wait_waiting(box, "web", "db to be ready")
    let(box, "db.go")
    wait_dead(box)
    box.start()
    box.wait_status("web", "Running")
    assert ran(box) == {"db": 1, "web": 1}
    assert len(seqs(box, "db", "became_ready")) == 1
    box.verify()


def test_killed_while_a_stop_is_held(box):
    box.configure(chain(box, "lingers"))
    box.start()
    box.wait_status("web", "Running")
    box.data("stop", service="db", with_dependents=True)
    for _ in range(2):
        box.wait_status("web", "Stopping")
        box.wait_status("app", "Running", wanted="down", waiting_for="web to stop")
        box.wait_status("db", "Running", wanted="down", waiting_for="app to stop")
        box.kill()
        box.start()
    let(box, "web.end")
    box.wait_status("web", "Stopped")
    box.wait_status("app", "Stopping")
    box.kill()
    let(box, "app.end")
    let(box, "db.end")
    box.start()
    for name in ("app", "db"):
        box.wait_status(name, "Stopped", wanted="down", reason="requested")
    assert ran(box) == dict.fromkeys(("web", "app", "db"), 1)
    box.verify()


@pytest.mark.parametrize(
    "point", ["before stop:2", "after stop:2", "before spawn:4", "before gate:4"]
)
def test_killed_while_a_service_follows_the_restart_of_another(box, point):
    box.configure(unit(box, "db") + unit(box, "web", "depends_on = { db = { restart = true } }"))
    die_at(box, point)
    box.wait_status("web", "Running")
    box.data("restart", service="db")
    wait_dead(box)
    box.start()
    box.wait_lines("ran", 4)
    for name in ("db", "web"):
        box.wait_status(name, "Running")
    assert ran(box) == {"db": 2, "web": 2}
    box.data("restart", service="db")
    box.wait_lines("ran", 6)
    box.wait_status("web", "Running")
    assert ran(box) == {"db": 3, "web": 3}
    box.verify()


# --- oneshots ------------------------------------------------------------------------------------------


def test_a_oneshot_runs_at_a_fresh_boot_and_not_after_a_crash_an_upgrade_or_keeping_services(box):
    box.configure(JOB.format(name="migrate") + unit(box, "web", 'depends_on = ["migrate"]'))
    box.start()
    box.wait_status("web", "Running")
    record = box.service("migrate")
    assert (record["status"], record["reason"]) == ("Stopped", "completed")
    first, begun = seqs(box, "migrate", "exited") + seqs(box, "web", "spawned")
    assert first < begun
    box.kill()
    box.start()
    box.upgrade()
    box.data("shutdown", keep_services=True)
    assert box.daemon.wait(10) == 0
    box.start()
    os.kill(box.service("web")["pid"], signal.SIGKILL)
    box.wait_status("web", "Running", run=2)
    box.data("restart", service="web", wait=True)
    assert ran(box) == {"migrate": 1, "web": 3}, "nor because a dependent restarts"
    assert box.service("migrate")["reason"] == "completed"
    assert box.stop() == 0
    box.start()
    box.wait_status("web", "Running", run=4)
    assert ran(box) == {"migrate": 2, "web": 4}
    first, begun = seqs(box, "migrate", "exited")[-1], seqs(box, "web", "spawned")[-1]
    assert first < begun
    box.data("start", service="migrate", wait=True)
    assert ran(box) == {"migrate": 3, "web": 4}, "by hand it runs again"


def test_a_start_with_wait_of_a_oneshot_answers_when_it_has_completed(box):
    slow = 'cmd = ["sh", "-c", "sleep 0.2; echo done >> ran"]\noneshot = true\nautostart = false'
    box.configure(f'[[service]]\nname = "migrate"\n{slow}\n')
    box.start()
    (record,) = box.data("start", service="migrate", wait=True)
    assert box.lines("ran") == ["done"]
    assert (record["status"], record["reason"]) == ("Stopped", "completed")


def test_a_oneshot_that_is_killed_with_the_registry_is_waited_for(box):
    """What nobody saw end has not completed; one that runs on is the same run."""
    box.configure(JOB.format(name="migrate") + sleeper("web", 'depends_on = ["migrate"]'))
    let(box, "migrate.hold")
    box.start()
    box.wait_lines("ran", 1)
    wait_waiting(box, "web", "migrate to be completed")
    box.kill()
    box.start()
    wait_waiting(box, "web", "migrate to be completed")
    (box.folder / "migrate.hold").unlink()
    box.wait_status("web", "Running")
    assert ran(box) == {"migrate": 1}


# --- restart = true ------------------------------------------------------------------------------------


FOLLOW = "depends_on = {{ {} = {{ restart = true }} }}"


def test_a_chain_of_followers_restarts_each_of_them_once(box):
    box.configure(
        unit(box, "a")
        + unit(box, "b", FOLLOW.format("a"))
        + unit(box, "c", FOLLOW.format("b"))
        + unit(box, "both", "depends_on = { a = { restart = true }, b = { restart = true } }")
        + unit(box, "other")
    )
    box.start()
    names = ("a", "b", "c", "both")
    for runs in (1, 2, 3):
        for name in names:
            box.wait_for(
                lambda name=name, runs=runs: len(seqs(box, name, "became_ready")) == runs,
                f"run {runs} of {name} is ready",
            )
        box.data("restart", service="other", wait=True)  # what else is to come comes before
        assert ran(box) == {**dict.fromkeys(names, runs), "other": runs + 1}
        box.data("restart", service="a")


def test_a_dependency_that_is_restarted_while_a_dependent_is_starting(box):
    box.configure(
        unit(box, "db")
        + unit(box, "stays", 'depends_on = ["db"]', "late")
        + unit(box, "follows", FOLLOW.format("db"), "late")
    )
    box.start()
    for name in ("stays", "follows"):
        box.wait_status(name, "Starting")
    box.wait_lines("ran", 3)
    box.data("restart", service="db")
    box.wait_status("follows", "Starting", run=2)
    let(box, "stays.go")
    let(box, "follows.go")
    for name in ("stays", "follows"):
        box.wait_status(name, "Running")
    assert ran(box) == {"db": 2, "stays": 1, "follows": 2}


def test_a_reset_of_a_dependency_that_failed_stops_nobody(box):
    once = 'restart = { policy = "Never" }'
    box.configure(unit(box, "db", once) + unit(box, "web", FOLLOW.format("db")))
    box.start()
    box.wait_status("web", "Running")
    os.kill(box.service("db")["pid"], signal.SIGKILL)
    box.wait_status("db", "Failed")
    box.data("reset", service="db", wait=True)
    box.data("reset", service="web", wait=True)  # whatever else was to come would come before
    assert where(box, "db", "web") == [("Stopped", 1), ("Running", 1)]
    assert len(seqs(box, "web", "exited")) == 0


def test_an_essential_service_that_waits_is_not_gone(box):
    box.configure(
        unit(box, "db", "", "late") + sleeper("web", 'essential = true\ndepends_on = ["db"]')
    )
    box.start()
    wait_waiting(box, "web", "db to be ready")
    let(box, "db.go")
    box.wait_status("web", "Running")
    assert box.daemon.poll() is None


# --- what can never come true --------------------------------------------------------------------------


def test_a_circle_is_refused_and_spelled_out(box):
    path = box.configure(
        sleeper("web", 'depends_on = ["app"]')
        + sleeper("app", 'depends_on = { db = "started" }')
        + sleeper("db", 'depends_on = ["web"]')
    )
    for arguments in (("--validate",), ()):
        status, errors = box.run(*arguments, "--config", "etc/services.toml")
        assert status == 78
        assert "web needs app, app needs db, db needs web: break the circle" in errors
        assert f"{path.name}:" in errors
