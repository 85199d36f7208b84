"""The files as a whole: read, parsed and turned into one `Config`, or refused with every reason.

Beside the main file NAME.toml a folder NAME.d may hold drop-ins, `*.toml`, read in the order of their names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import tomli

from registry.config import values
from registry.config.complaints import Complaint, ConfigError, Finder, Sheet, Source
from registry.config.dependencies import resolve
from registry.config.hooks import Hook, read_hooks
from registry.config.lines import Place
from registry.config.section import Item, Section
from registry.config.services import read_defaults, read_services
from registry.core.definition import Definition
from registry.core.digest import blake2b

LOCAL_FILE = Path("etc/services.toml")
SYSTEM_FILE = Path("/etc/circleosd/services.toml")

_DIGEST_BYTES = 16
_MODE_OF_ALL = 0o666
_LISTS = ("service", "hook")
_MAIN_ONLY = frozenset(["registry", "journal", "access", "defaults"])
_DROP_IN_HOLDS = "a drop-in holds [[service]] and [[hook]] only"


class Durability(StrEnum):
    """What the journal survives: `full` a power cut, `normal` the registry's own death."""

    FULL = "full"
    NORMAL = "normal"


class OnSigterm(StrEnum):
    """What SIGTERM does to the services: `stop` them, or `keep` them for the next registry."""

    STOP = "stop"
    KEEP = "keep"


class RegistrySettings(msgspec.Struct, frozen=True):
    """The control socket (path, permission bits, group by name or number), and what SIGTERM means.

    Where `[access]` names anybody, the socket lets everybody in unless `socket_mode` says otherwise: who
    may what is then decided for each request, by the kernel's word on who asks.
    """

    socket: str = "/tmp/service-registry.sock"
    socket_mode: int = 0o600
    socket_group: str | None = None
    on_sigterm: OnSigterm = OnSigterm.STOP


JOURNAL_SIZE_MIN = 10**7
"""The smallest size that a journal may be held to: what it begins with, and some history, have to fit."""


class JournalSettings(msgspec.Struct, frozen=True):
    """Where the journal is (absolute), what it survives, how long events stay in it and how large it may get (bytes).

    None is without a limit.
    """

    path: str
    durability: Durability = Durability.FULL
    keep_s: float | None = None
    max_size: int | None = 10**9


class AccessSettings(msgspec.Struct, frozen=True):
    """Who may look, run services and change what there is: "user:NAME", "group:NAME", "uid:N", "gid:N"."""

    observe: tuple[str, ...] = ()
    operate: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """Files without a fault. The values of `env` are in `environments`, by service, and nowhere else.

    `sources` are the files as read, the main one first: later complaints find their lines in them, with
    `places` and `hook_places`, where each service and each hook is declared. `folder` is that of the
    drop-ins, there or not.
    """

    file: Path
    folder: Path
    root: Path
    registry: RegistrySettings
    journal: JournalSettings
    access: AccessSettings
    definitions: tuple[Definition, ...]
    environments: dict[str, dict[str, str]]
    hooks: tuple[Hook, ...]
    hook_places: tuple[Place, ...]
    sources: tuple[Source, ...]
    places: dict[str, Place]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read."""
        return tuple(source.file for source in self.sources)


class Lines:
    """Where the keys of a configuration stand. Scans a file when it is first asked for it."""

    def __init__(self, config: Config) -> None:
        self._places = config.places
        self._finder = Finder(*config.sources)

    def of_key(self, service: str, key: str) -> tuple[str, int]:
        """File and line of a service's `key`, else of that in `[defaults]`, else of the service."""
        own = self._places[service]
        places = (place for place in ((*own, key), ("defaults", key)) if self._finder.holds(place))
        return self.of(next(places, own))

    def of(self, place: Place) -> tuple[str, int]:
        """File and line of any place, or of what is around it."""
        _, file, line = self._finder.line(place)
        return file, line


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
    """Read `path` and its drop-ins. Everything wrong with them is in one `ConfigError`."""
    wrong: list[Complaint] = []
    sources = [Source(path, _text(path)), *_drop_ins(drop_in_folder(path), wrong)]
    data = [_parsed(source, wrong) for source in sources]
    if wrong:
        raise ConfigError(*wrong)
    sheet = Sheet(*sources)
    config = interpret(sheet, sources, data)
    if complaints := sheet.complaints():
        raise ConfigError(*complaints)
    return config


def drop_in_folder(path: Path) -> Path:
    """Where the drop-ins of the main file `path` are: etc/services.d for etc/services.toml."""
    return path.parent / f"{path.stem}.d"


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


def _drop_ins(folder: Path, wrong: list[Complaint]) -> list[Source]:
    """Those that can be read; why others cannot goes to `wrong`."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "it has to be a folder of *.toml files"
        wrong.append(_complaint(folder, 0, f"cannot be read: {_reason(error)}; {remedy}"))
        return []
    sources = []
    for name in names:
        if name.endswith(".toml") and not name.startswith("."):
            try:
                sources.append(Source(folder / name, _text(folder / name)))
            except ConfigError as error:
                wrong += error.complaints
    return sources


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(_complaint(path, 0, f"cannot be read: {_reason(error)}")) from None
    try:
        return data.decode("utf-8-sig")  # some editors put a byte order mark before it
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError(_complaint(path, line, message)) from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _parsed(source: Source, wrong: list[Complaint]) -> dict[str, object]:
    """What is in a file; why it is no TOML goes to `wrong`."""
    try:
        return tomli.loads(source.text)
    except tomli.TOMLDecodeError as error:
        line, message = error.lineno, f"{error.msg} (column {error.colno})"
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        line, message = 0, str(error)
    wrong.append(_complaint(source.file, line, f"not valid TOML: {message}"))
    return {}


def _complaint(path: Path, line: int, message: str) -> Complaint:
    return Complaint(str(path), line, None, None, message)


def interpret(sheet: Sheet, sources: Sequence[Source], data: Sequence[dict[str, object]]) -> Config:
    """What the parsed `data` of `sources` means; worth nothing where `sheet` has complaints after it."""
    path = sources[0].file
    whole = Section(sheet, Item(data[0], ()))
    registry = whole.sub("registry")
    root = _root(registry, path)
    access = _access(whole.sub("access"))
    settings = _registry(registry, root, access)
    journal = _journal(whole.sub("journal"), root)
    defaults = whole.item("defaults")
    shared = read_defaults(sheet, defaults, root) if defaults else {}
    parts = [whole, *(_drop_in(sheet, n, each) for n, each in enumerate(data) if n)]
    lists = {key: [item for part in parts if (item := part.item(key))] for key in _LISTS}
    declared = read_services(sheet, lists["service"], shared, root)
    services = resolve(sheet, declared)
    hooks = read_hooks(sheet, lists["hook"], declared, root)
    for part in parts:
        part.close()
    return Config(
        file=path,
        folder=drop_in_folder(path),
        root=root,
        registry=settings,
        journal=journal,
        access=access,
        definitions=tuple(service.definition for service in services),
        environments={service.definition.name: service.environment for service in services},
        hooks=tuple(hook for hook, _ in hooks),
        hook_places=tuple(place for _, place in hooks),
        sources=tuple(sources),
        places={s.definition.name: each.place for each in declared for s in each.services},
    )


def _drop_in(sheet: Sheet, number: int, data: dict[str, object]) -> Section:
    """A drop-in without what only the main file may hold."""
    for key in _MAIN_ONLY & data.keys():
        sheet.note((number, key), None, f"[{key}] belongs in the main file; {_DROP_IN_HOLDS}")
    rest = {key: value for key, value in data.items() if key not in _MAIN_ONLY}
    return Section(sheet, Item(rest, (number,)))


def _root(section: Section, path: Path) -> Path:
    """What relative paths are relative to, links left as they are."""
    folder = Path(os.path.abspath(path)).parent
    usual = folder.parent if folder.name == "etc" else folder
    return Path(section.take("root", values.path(folder), str(usual)))


def _registry(section: Section, root: Path, access: AccessSettings) -> RegistrySettings:
    plain = RegistrySettings()
    names_anybody = any((access.observe, access.operate, access.admin))
    mode = _MODE_OF_ALL if names_anybody else plain.socket_mode
    settings = RegistrySettings(
        socket=section.take("socket", values.socket_path(root), plain.socket),
        socket_mode=section.take("socket_mode", values.octal("0600"), mode),
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
        keep_s=section.take("keep", values.limited(values.positive_duration), plain.keep_s),
        max_size=section.take(
            "max_size", values.limited(values.size(JOURNAL_SIZE_MIN)), plain.max_size
        ),
    )
    section.close()
    return settings


def _access(section: Section) -> AccessSettings:
    whom = values.each(values.grantee, '["user:ana", "group:ops"]')
    access = AccessSettings(
        observe=section.take("observe", whom, ()),
        operate=section.take("operate", whom, ()),
        admin=section.take("admin", whom, ()),
    )
    section.close()
    return access
