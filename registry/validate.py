"""What `--validate` does: a file judged by itself and by this machine, everything wrong at once.

What only the machine can tell is an error here. The daemon asks for the same complaints and warns:
the service concerned fails with its reason, the others run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from registry.config import Complaint, Config, ConfigError, line_of_key, lines_of, load
from registry.host.launch import obstacles

EX_CONFIG = 78
"""The exit status for a wrong configuration, as sysexits.h has it."""


def validate(path: Path) -> int:
    """Say what is wrong with `path` (stderr), or that nothing is. Returns the exit status."""
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    if complaints := machine_complaints(config, os.environ):
        print(*complaints, sep="\n", file=sys.stderr)
        return EX_CONFIG
    count = len(config.definitions)
    print(f"{path}: {count} service{'' if count == 1 else 's'}, all well")
    return 0


def machine_complaints(config: Config, inherited: Mapping[str, str]) -> tuple[Complaint, ...]:
    """What keeps services from running here; `inherited` is the registry's own environment."""
    found = [
        (definition, error)
        for definition in config.definitions
        for error in obstacles(definition, config.environments[definition.name], inherited)
    ]
    if not found:
        return ()
    file, lines = str(config.file), lines_of(config.text)
    return tuple(
        Complaint(
            file,
            line_of_key(lines, definition, error.key),
            definition.name,
            error.key,
            f"{error.key}: {error.message}",
        )
        for definition, error in found
    )
