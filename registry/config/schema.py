"""The JSON Schema for editors and the README's table of keys, both made from the language's keys (language.py).

`python -m registry.config.schema` prints the schema (draft 7, which editors of TOML take), as
etc/services.schema.json holds it. It knows the shape of each value; what does not go together, and what
one service says of another, only the registry itself can tell.
"""

from __future__ import annotations

import json

import tomli

from registry.config.language import Key, Schema, language

DRAFT = "http://json-schema.org/draft-07/schema#"


def main() -> None:
    """Print the schema."""
    print(json.dumps(schema(), indent=2))


def schema() -> Schema:
    """The JSON Schema of services.toml and of its drop-ins."""
    return {
        "$schema": DRAFT,
        "title": "CircleOSD Service Registry: services.toml",
        **_object(language()),
    }


def key_table() -> str:
    """Every key as a Markdown table: what it takes, its default, what it means."""
    rows = [_row(path, key) for path, key in keys().items() if not path.startswith("defaults.")]
    return "\n".join(["| key | takes | default | meaning |", "|---|---|---|---|", *rows])


def keys() -> dict[str, Key]:
    """Every key by its path, as in "service.restart.limit"; keys that the user makes up are left out."""
    found: dict[str, Key] = {}
    _walk("", language(), found)
    return found


def _walk(around: str, table: dict[str, Key], found: dict[str, Key]) -> None:
    for name, key in table.items():
        found[around + name] = key
        _walk(f"{around}{name}.", key.table, found)


def _row(path: str, key: Key) -> str:
    return f"| `{path}` | {key.takes} | {_shown_default(key)} | {key.meaning} |"


def _shown_default(key: Key) -> str:
    if key.needed:
        return "needed"
    return f"`{key.default}`" if key.default is not None else key.otherwise or "none"


def _object(table: dict[str, Key]) -> Schema:
    shape: Schema = {
        "type": "object",
        "properties": {name: _property(key) for name, key in table.items()},
        "additionalProperties": False,
    }
    if needed := [name for name, key in table.items() if key.needed]:
        shape["required"] = needed
    return shape


def _property(key: Key) -> Schema:
    described: Schema = {"description": key.meaning}
    if key.default is not None:
        described["default"] = tomli.loads(f"value = {key.default}")["value"]
    return {**described, **_shape(key)}


def _shape(key: Key) -> Schema:
    """The short form, the table, or a list of either."""
    forms = [form for form in (key.schema, _object(key.table) if key.table else {}) if form]
    one = forms[0] if len(forms) == 1 else {"anyOf": forms}
    if not key.is_listed:
        return one
    many: Schema = {"type": "array", "items": one}
    return {"anyOf": [*forms, many]} if key.schema else many


if __name__ == "__main__":
    main()
