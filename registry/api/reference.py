"""The tables of the README that are made from the code: actions, errors, capabilities."""

from __future__ import annotations

from registry.api.actions import ACTIONS, Action
from registry.api.protocol import RPC_CODES
from registry.host.capabilities import FALLBACKS


def actions_table() -> str:
    """Every action: what it takes, what it does, what it answers."""
    rows = [
        f"| `{action.name}` | {_params(action)} | {action.summary} | `{action.answer}` |"
        for action in ACTIONS.values()
    ]
    return "\n".join(["| action | parameters | what it does | data |", "|---|---|---|---|", *rows])


def _params(action: Action) -> str:
    fields = action.params.__struct_fields__
    optional = len(action.params.__struct_defaults__)
    needed = len(fields) - optional
    shown = [f"`{name}`" if i < needed else f"[`{name}`]" for i, name in enumerate(fields)]
    return ", ".join(shown)


def errors_table() -> str:
    """Every error code with its JSON-RPC number."""
    rows = [f"| `{code.value}` | {number} |" for code, number in RPC_CODES.items()]
    return "\n".join(["| code | JSON-RPC |", "|---|---|", *rows])


def capabilities_table() -> str:
    """What the registry uses of the machine, and what it does where that is missing."""
    rows = [f"| `{name}` | {what} | {other} |" for name, (what, other) in FALLBACKS.items()]
    return "\n".join(["| name | what is used | without it |", "|---|---|---|", *rows])
