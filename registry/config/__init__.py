"""`services.toml` turned into definitions, every complaint with its place.

One rule of shape: a key has a short form for the usual case and a table for the rest, and the short
form equals the table with one named key. Unknown keys are errors at every depth. Everything wrong
is reported at once. Nothing here looks at the machine beyond the file: what only the machine can
tell (programs, users, folders) is for `registry.validate`.
"""

from registry.config.complaints import Complaint, ConfigError
from registry.config.file import (
    Config,
    Durability,
    JournalSettings,
    OnSigterm,
    RegistrySettings,
    default_path,
    digest_env,
    line_of_key,
    load,
    with_digests,
)
from registry.config.lines import lines_of

__all__ = [
    "Complaint",
    "Config",
    "ConfigError",
    "Durability",
    "JournalSettings",
    "OnSigterm",
    "RegistrySettings",
    "default_path",
    "digest_env",
    "line_of_key",
    "lines_of",
    "load",
    "with_digests",
]
