"""The lifecycle as a picture: the machine's rows as a Mermaid state diagram, for the README.

One arrow for each pair of states that a row connects, labelled with every trigger that leads along it.
"""

from __future__ import annotations

from registry.core.lifecycle import MACHINE, State


def state_diagram() -> str:
    """The Mermaid source of the diagram: arrows by the order of the states, triggers by that of the rows."""
    arrows = _arrows()
    pairs = [(source, dest) for source in State for dest in State if (source, dest) in arrows]
    lines = [
        "stateDiagram-v2",
        f"    [*] --> {State[str(MACHINE.initial)].value}",
        *(f"    {pair[0].value} --> {pair[1].value}: {', '.join(arrows[pair])}" for pair in pairs),
    ]
    return "\n".join(lines) + "\n"


def _arrows() -> dict[tuple[State, State], list[str]]:
    """The triggers that lead from one state to another; two rows of one trigger are one."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for trigger, event in MACHINE.events.items():
        for source, transitions in event.transitions.items():
            for dest in dict.fromkeys(str(transition.dest) for transition in transitions):
                arrows.setdefault((State[source], State[dest]), []).append(trigger)
    return arrows
