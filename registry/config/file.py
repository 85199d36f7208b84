"""The file as a whole: read, parsed and turned into one `Config`, or refused with every reason."""

from __future__ import annotations

import os
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import NoReturn

import msgspec
import tomli

from registry.config import values
from registry.config.complaints import Complaint, ConfigError, Sheet
from registry.config.lines import Place, line_of
from registry.config.section import Item, Section
from registry.config.services import Service, read_defaults, read_services
from registry.core.definition import Definition

LOCAL_FILE = Path("etc/services.toml")
SYSTEM_FILE = Path("/etc/circleosd/services.toml")

_DIGEST_BYTES = 16


class Durability(StrEnum):
    """What the journal survives: `full` a power cut, `normal` the registry's own death."""

    FULL = "full"
    NORMAL = "normal"


class OnSigterm(StrEnum):
    """What SIGTERM does to the services: `stop` them, or `keep` them for the next registry."""

    STOP = "stop"
    KEEP = "keep"


class RegistrySettings(msgspec.Struct, frozen=True):
    """The control socket (path, permission bits, group by name or number), and what SIGTERM means."""

    socket: str = "/tmp/service-registry.sock"
    socket_mode: int = 0o600
    socket_group: str | None = None
    on_sigterm: OnSigterm = OnSigterm.STOP


class JournalSettings(msgspec.Struct, frozen=True):
    """Where the journal is (absolute), and what it survives."""

    path: str
    durability: Durability = Durability.FULL


class Config(msgspec.Struct, frozen=True):
    """A file without a fault. `text` is the file as read: later complaints find their lines in it.

    The values of `env` are in `environments`, by service, and nowhere else.
    """

    file: Path
    root: Path
    registry: RegistrySettings
    journal: JournalSettings
    definitions: tuple[Definition, ...]
    environments: dict[str, dict[str, str]]
    text: str


def default_path() -> Path:
    """The file that is read when none is named; `ConfigError` where there is none."""
    for file in (LOCAL_FILE, SYSTEM_FILE):
        if file.exists():
            return file
    sentence = (
        f"no configuration: there is neither ./{LOCAL_FILE} nor {SYSTEM_FILE}; "
        "make one of them or name a file with --config"
    )
    raise ConfigError(Complaint("", 0, None, None, sentence))


def load(path: Path) -> Config:
    """Read `path`. Everything wrong with it is in one `ConfigError`."""
    text = _text(path)
    data = _parsed(path, text)
    sheet = Sheet(path, text)
    config = interpret(sheet, path, text, data)
    if complaints := sheet.complaints():
        raise ConfigError(*complaints)
    return config


def with_digests(config: Config, key: bytes) -> Config:
    """`config` with the digest of each service's environment in its definition."""
    definitions = tuple(
        msgspec.structs.replace(each, env_digest=digest_env(key, config.environments[each.name]))
        for each in config.definitions
    )
    return msgspec.structs.replace(config, definitions=definitions)


def digest_env(key: bytes, env: dict[str, str]) -> str:
    """A digest that shows a change of `env` and, without `key` (64 bytes at most), nothing else."""
    words = msgspec.json.encode(sorted(env.items()))
    return blake2b(words, key=key, digest_size=_DIGEST_BYTES).hexdigest()


def line_of_key(lines: dict[Place, int], definition: Definition, key: str) -> int:
    """The line of a service's `key`, else of that in `[defaults]`, else of the service.

    `lines` is `lines_of` the configuration's text.
    """
    own = ("service", definition.position)
    places = (place for place in ((*own, key), ("defaults", key)) if place in lines)
    return line_of(lines, next(places, own))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        _refuse(path, 0, f"cannot be read: {reason}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(path, line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")


def _parsed(path: Path, text: str) -> dict[str, object]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        _refuse(path, error.lineno, f"not valid TOML: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        _refuse(path, 0, f"not valid TOML: {error}")


def _refuse(path: Path, line: int, message: str) -> NoReturn:
    raise ConfigError(Complaint(str(path), line, None, None, message)) from None


def interpret(sheet: Sheet, path: Path, text: str, data: dict[str, object]) -> Config:
    """What the parsed `data` of `path` means; worth nothing where `sheet` has complaints after it."""
    whole = Section(sheet, Item(data, ()))
    registry = whole.sub("registry")
    root = _root(registry, path)
    settings = _registry(registry, root)
    journal = _journal(whole.sub("journal"), root)
    services = _services(sheet, whole, root)
    whole.close()
    return Config(
        file=path,
        root=root,
        registry=settings,
        journal=journal,
        definitions=tuple(service.definition for service in services),
        environments={service.definition.name: service.environment for service in services},
        text=text,
    )


def _root(section: Section, path: Path) -> Path:
    """What relative paths are relative to, links left as they are."""
    folder = Path(os.path.abspath(path)).parent
    usual = folder.parent if folder.name == "etc" else folder
    return Path(section.take("root", values.path(folder), str(usual)))


def _registry(section: Section, root: Path) -> RegistrySettings:
    plain = RegistrySettings()
    settings = RegistrySettings(
        socket=section.take("socket", values.socket_path(root), plain.socket),
        socket_mode=section.take("socket_mode", values.octal("0600"), plain.socket_mode),
        socket_group=section.take("socket_group", values.account, plain.socket_group),
        on_sigterm=section.take("on_sigterm", values.choice(OnSigterm), plain.on_sigterm),
    )
    section.close()
    return settings


def _journal(section: Section, root: Path) -> JournalSettings:
    plain = JournalSettings(str(root / "var" / "registry.db"))
    settings = JournalSettings(
        path=section.take("path", values.path(root), plain.path),
        durability=section.take("durability", values.choice(Durability), plain.durability),
    )
    section.close()
    return settings


def _services(sheet: Sheet, whole: Section, root: Path) -> list[Service]:
    defaults = whole.item("defaults")
    shared = read_defaults(sheet, defaults, root) if defaults else {}
    services = whole.item("service")
    return read_services(sheet, services, shared, root) if services else []
