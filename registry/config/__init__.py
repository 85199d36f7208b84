"""`services.toml` turned into definitions, every complaint with its place.

One rule of shape: a key has a short form for the usual case and a table for the rest, and the short
form equals the table with one named key. Unknown keys are errors at every depth. Everything wrong
is reported at once. Nothing here looks at the machine beyond the file: what only the machine can
tell (programs, users, folders) is for `registry.validate`.
"""

from registry.config.complaints import Complaint, ConfigError, Source
from registry.config.file import (
    AccessSettings,
    Config,
    Durability,
    JournalSettings,
    Lines,
    OnSigterm,
    RegistrySettings,
    default_path,
    digest_env,
    load,
    with_digests,
)
from registry.config.hooks import Hook

__all__ = [
    "AccessSettings",
    "Complaint",
    "Config",
    "ConfigError",
    "Durability",
    "Hook",
    "JournalSettings",
    "Lines",
    "OnSigterm",
    "RegistrySettings",
    "Source",
    "default_path",
    "digest_env",
    "load",
    "with_digests",
]
