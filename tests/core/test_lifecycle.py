"""The full square of states, triggers and situations: machine, compiled table and design say the same.

DESIGN below is the lifecycle as data, written by hand; nothing in it is taken from the code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.dependencies import Around
from registry.core.events import TYPES, Moved
from registry.core.lifecycle import (
    COMMANDS,
    FOR_A_PERSON,
    MACHINE,
    MOVES,
    PASSING,
    ROWS,
    Reason,
    State,
    event_type,
    is_legal,
    move,
)
from registry.core.service import Service
from registry.questions.diagram import state_diagram

README = Path(__file__).parents[2] / "README.md"


class Situation(NamedTuple):
    """What a guard may look at, besides the state."""

    wanted: bool
    removing: bool
    reason: Reason
    bound: str | None
    given: Any


CONDITIONS: dict[str, Callable[[Situation], bool]] = {
    "": lambda _s: True,
    "clean": lambda s: s.given.group_empty and _is_clean(s.given),
    "not clean": lambda s: s.given.group_empty and not _is_clean(s.given),
    "leftovers": lambda s: not s.given.group_empty,
    "a check restarts": lambda s: s.given.restarts,
    "a check reports": lambda s: not s.given.restarts,
    "bound for Stopped": lambda s: s.bound == "Stopped",
    "bound for Starting, free": lambda s: s.bound == "Starting" and not s.given.waits,
    "bound for Starting, waits": lambda s: s.bound == "Starting" and s.given.waits,
    "bound for Failed": lambda s: s.bound == "Failed",
    "free": lambda s: not s.given.waits,
    "waits": lambda s: s.given.waits,
    "waits, and did not": lambda s: s.given.waits and not (s.wanted and s.reason is Reason.WAITING),
    "is to stop, and to stay declared": lambda s: not s.wanted and not s.removing,
    "stays declared": lambda s: not s.removing,
    "held, a new word": lambda s: s.given.held and (s.wanted or _removes_now(s)),
    "not held": lambda s: not s.given.held,
    "a new word: up": lambda s: not s.removing and not (s.bound == "Starting" and s.wanted),
    "a new word: down": lambda s: not (s.bound == "Stopped" and not s.wanted) or _removes_now(s),
    "wanted": lambda s: s.wanted,
    "the run it knows": lambda s: s.given.run == 1,
    "a later run": lambda s: s.given.run > 1,
}

DESIGN: list[tuple[str, str, str, str]] = [
    # trigger, from, to, when
    ("start", "Stopped Failed Restarting", "Starting", "free"),
    ("start", "Stopped Failed Restarting", "Stopped", "waits, and did not"),
    ("start", "Starting", "Starting", "is to stop, and to stay declared"),
    ("start", "Running", "Running", "is to stop, and to stay declared"),
    ("start", "Stopping", "Stopping", "a new word: up"),
    ("restart", "Stopped Failed Restarting", "Starting", "free"),
    ("restart", "Stopped Failed Restarting", "Stopped", "waits, and did not"),
    ("restart", "Starting Running", "Stopping", "stays declared"),
    ("restart", "Stopping", "Stopping", "a new word: up"),
    ("dependencies_met", "Stopped", "Starting", ""),
    ("stop", "Starting Running", "Stopping", "not held"),
    ("stop", "Starting", "Starting", "held, a new word"),
    ("stop", "Running", "Running", "held, a new word"),
    ("dependents_gone", "Starting Running", "Stopping", ""),
    ("stop", "Failed Restarting", "Stopped", ""),
    ("stop", "Stopped", "Stopped", "wanted"),
    ("stop", "Stopping", "Stopping", "a new word: down"),
    ("reset", "Failed", "Stopped", ""),
    ("reset", "Stopped", "Stopped", ""),
    ("reset", "Starting", "Starting", ""),
    ("reset", "Running", "Running", ""),
    ("reset", "Stopping", "Stopping", ""),
    ("reset", "Restarting", "Restarting", ""),
    ("restart_due", "Restarting", "Starting", "free"),
    ("restart_due", "Restarting", "Stopped", "waits"),
    ("spawned", "Starting", "Starting", ""),
    ("spawn_failed", "Starting", "Failed", ""),
    ("became_ready", "Starting", "Running", ""),
    ("start_timed_out", "Starting", "Stopping", ""),
    ("stop_announced", "Starting", "Starting", ""),
    ("stop_announced", "Running", "Running", ""),
    ("stop_timed_out", "Starting Running", "Stopping", ""),
    ("memory_exceeded", "Starting Running", "Stopping", ""),
    ("became_unhealthy", "Running", "Stopping", "a check restarts"),
    ("became_unhealthy", "Running", "Running", "a check reports"),
    ("exited", "Starting Running", "Stopped", "clean"),
    ("exited", "Starting Running", "Failed", "not clean"),
    ("exited", "Starting Running", "Stopping", "leftovers"),
    ("exited", "Stopping", "Stopping", ""),
    ("lost", "Starting Running", "Failed", "not clean"),
    ("lost", "Starting Running", "Stopping", "leftovers"),
    ("lost", "Stopping", "Stopping", ""),
    ("group_emptied", "Stopping", "Stopped", "bound for Stopped"),
    ("group_emptied", "Stopping", "Starting", "bound for Starting, free"),
    ("group_emptied", "Stopping", "Stopped", "bound for Starting, waits"),
    ("group_emptied", "Stopping", "Failed", "bound for Failed"),
    ("restart_scheduled", "Stopped Failed", "Restarting", ""),
    ("gave_up", "Stopped Failed", "Failed", ""),
    ("adopted", "Starting", "Starting", "the run it knows"),
    ("adopted", "Running", "Running", "the run it knows"),
    ("adopted", "Stopping", "Stopping", "the run it knows"),
    ("adopted", "Stopped Starting Running Stopping Failed Restarting", "Starting", "a later run"),
    ("defined", "Stopped", "Stopped", ""),
    ("redefined", "Stopped", "Stopped", ""),
    ("redefined", "Starting", "Starting", ""),
    ("redefined", "Running", "Running", ""),
    ("redefined", "Stopping", "Stopping", ""),
    ("redefined", "Failed", "Failed", ""),
    ("redefined", "Restarting", "Restarting", ""),
    ("removed", "Stopped Failed Restarting", "Stopped", ""),
]

EXITS = [
    inp.ProcessExited(run=1, exit_code=code, signal=signal, group_empty=empty, **more)
    for empty in (True, False)
    for code, signal, more in (
        (0, None, {}),
        (1, None, {}),
        (3, None, {}),
        (None, 9, {}),
        (None, 15, {}),
        (0, None, {"never_ran": True}),
        (0, None, {"launch_failure": Reason.EXEC_FAILED}),
    )
]
STOPS = [
    SimpleNamespace(reason=reason, held=held)
    for reason in (Reason.REQUESTED, Reason.REMOVED)
    for held in (True, False)
]
AROUND = [Around(waits=True), Around()]
GIVEN: dict[str, list[Any]] = {
    "start": AROUND,
    "restart": AROUND,
    "restart_due": AROUND,
    "group_emptied": AROUND,
    "stop": STOPS,
    "adopted": [inp.ProcessFound(run=1, pid=5), inp.RunFound(run=2, pid=5, start_time=5)],
    "exited": EXITS,
    "lost": [inp.ProcessLost(run=1, group_empty=empty) for empty in (True, False)],
    "became_unhealthy": [SimpleNamespace(restarts=restarts) for restarts in (True, False)],
}
TRIGGERS = sorted({row[0] for row in DESIGN})
# exit code 3 and SIGTERM end well by this definition; SIGKILL and 1 do not
DEFINITION = Definition(name="web", cmd=("./web",), success_exit_codes=(0, 3, -15))


def _is_clean(given: Any) -> bool:
    if isinstance(given, inp.ProcessLost) or given.never_ran or given.launch_failure:
        return False
    return given.exit_code in (0, 3) or given.signal == 15


def _removes_now(situation: Situation) -> bool:
    return situation.given.reason is Reason.REMOVED and not situation.removing


def _situations(trigger: str, state: State) -> Iterator[Situation]:
    bounds = ("Stopped", "Starting", "Failed") if state is State.STOPPING else (None,)
    reasons = (Reason.WAITING, Reason.REQUESTED) if state is State.STOPPED else (Reason.REQUESTED,)
    for situation in itertools.starmap(
        Situation,
        itertools.product(
            (True, False), (True, False), reasons, bounds, GIVEN.get(trigger, [None])
        ),
    ):
        if not (situation.wanted and situation.removing):  # what is to be removed is not wanted
            yield situation


def _expected(trigger: str, state: State, situation: Situation) -> State | None:
    dests = [
        dest
        for row_trigger, sources, dest, when in DESIGN
        if row_trigger == trigger and state.value in sources.split()
        if CONDITIONS[when](situation)
    ]
    assert len(dests) <= 1, f"the design is of two minds about {trigger} in {state}: {dests}"
    return State(dests[0]) if dests else None


def _service(state: State, situation: Situation) -> Service:
    bound = State(situation.bound) if situation.bound else None
    return Service(
        DEFINITION,
        state=state,
        reason=situation.reason,
        run=1,
        wanted=situation.wanted,
        removing=situation.removing,
        bound=bound,
    )


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_machine_and_table_move_as_designed_in_every_situation(trigger: str, state: State) -> None:
    for situation in _situations(trigger, state):
        expected = _expected(trigger, state, situation)
        service = _service(state, situation)
        assert (move(service, trigger, situation.given), situation) == (expected, situation)
        assert service.state is (expected or state)
        by_machine: Any = _service(state, situation)
        MACHINE.events[trigger].trigger(by_machine, by_machine, situation.given)
        assert (by_machine.state, situation) == (service.state, situation)
        if expected is not None:
            assert is_legal(event_type(trigger), state, expected)


def test_the_table_for_replay_has_the_designed_moves_and_no_others() -> None:
    designed: dict[tuple[str, State], set[State]] = {}
    for trigger, sources, dest, _when in DESIGN:
        for source in sources.split():
            designed.setdefault((event_type(trigger), State(source)), set()).add(State(dest))
    assert {key: set(dests) for key, dests in MOVES.items()} == designed


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_table_allows_no_move_that_the_machine_cannot_make(trigger: str, state: State) -> None:
    made = {_expected(trigger, state, situation) for situation in _situations(trigger, state)}
    for dest in State:
        assert is_legal(event_type(trigger), state, dest) is (dest in made)


def test_the_machine_knows_no_other_trigger_and_no_other_state() -> None:
    assert sorted(MACHINE.events) == TRIGGERS
    assert {State[name] for name in MACHINE.states} == set(State)


def test_every_row_is_journaled_as_a_type_that_carries_its_move() -> None:
    for trigger, *_ in ROWS:
        assert issubclass(TYPES[event_type(trigger)], Moved), trigger


def test_every_type_that_carries_a_move_has_a_row() -> None:
    journaled = {event_type(trigger) for trigger, *_ in ROWS}
    assert {name for name, kind in TYPES.items() if issubclass(kind, Moved)} == journaled


def test_only_commands_are_journaled_as_requested() -> None:
    assert set(COMMANDS) == {"start", "stop", "restart", "reset"}
    assert [event_type(trigger) for trigger in COMMANDS] == [f"{t}_requested" for t in COMMANDS]
    assert event_type("exited") == "exited"


def test_a_type_that_nobody_knows_is_not_legal() -> None:
    assert not is_legal("was_loved", State.STOPPED, State.STOPPED)


def test_what_passes_by_itself_is_not_left_to_a_person() -> None:
    assert not PASSING & FOR_A_PERSON
    assert Reason.PROGRAM_MISSING in FOR_A_PERSON


def test_services_share_the_machine_without_sharing_a_state() -> None:
    one, other = (Service(Definition(name=name, cmd=("x",))) for name in ("one", "other"))
    assert move(one, "start", Around()) is State.STARTING
    assert other.state is State.STOPPED


# --- the diagram ----------------------------------------------------------------------------------


def test_the_diagram_has_one_arrow_for_each_pair_of_states_that_the_design_connects() -> None:
    arrows = [line.strip() for line in state_diagram().splitlines() if " --> " in line]
    drawn = {}
    for arrow in arrows[1:]:
        pair, triggers = arrow.split(": ")
        assert pair not in drawn
        drawn[pair] = set(triggers.split(", "))
    designed: dict[str, set[str]] = {}
    for trigger, sources, dest, _when in DESIGN:
        for source in sources.split():
            designed.setdefault(f"{source} --> {dest}", set()).add(trigger)
    assert drawn == designed
    assert arrows[0] == "[*] --> Stopped"


def test_the_diagram_is_the_same_each_time() -> None:
    assert state_diagram() == state_diagram()
    assert state_diagram().startswith("stateDiagram-v2\n")
    assert state_diagram().endswith("\n")


def test_the_readme_shows_the_diagram_of_this_machine() -> None:
    """Between the markers stands what `state_diagram()` returns, in a fence called mermaid."""
    text = README.read_text() if README.is_file() else ""
    assert text.count("<!-- diagram -->") == text.count("<!-- /diagram -->") == 1
    block = text.split("<!-- diagram -->")[1].split("<!-- /diagram -->")[0]
    assert block.strip() == f"```mermaid\n{state_diagram()}```"
