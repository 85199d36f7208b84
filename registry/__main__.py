"""The command `service-registry`: arguments, exit codes, one sentence for what cannot be."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from registry import __version__, stdout

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_PROGRAM = "service-registry"
EX_UNAVAILABLE = 69  # sysexits.h: journal or socket is held, or cannot be used
EX_CONFIG = 78

_NO_WATCHFILES = (
    "--watch needs the package watchfiles; install it with: "
    "pip install 'circleosd-service-registry[watch]'"
)

_EPILOG = """\
exit status: 0 ended orderly, 2 wrong usage, 10 an essential service is gone, 69 journal or socket
held by another or not usable, 74 standard output cannot be written, 78 wrong configuration. SIGTERM or
Ctrl-C stops every service and ends; a second one hurries. SIGHUP takes the configuration up anew, as
circlectl apply does.
"""


def main() -> None:
    """Run the registry, or only validate its configuration."""
    gc.disable()  # until the daemon has begun: hardly anything of that is garbage
    _import_asyncio_without_tls()
    stdout.stand_in()
    with stdout.answering(_PROGRAM):  # --help, --version
        options = _parser().parse_args()
    try:
        status = _run(options)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _import_asyncio_without_tls() -> None:
    """asyncio imports OpenSSL if it can, some 5 MB; nobody here has TLS by it (`host/tls.py`)."""
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


class _Parser(argparse.ArgumentParser):
    """One that does not pass over an answer that cannot be written."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_PROGRAM,
        description="Supervise the services that a configuration file declares.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="default: ./etc/services.toml, else /etc/circleosd/services.toml",
    )
    parser.add_argument("--validate", action="store_true", help="only check the configuration")
    parser.add_argument(
        "--starts", action="store_true", help=argparse.SUPPRESS
    )  # before an upgrade
    parser.add_argument(
        "--watch", action="store_true", help="apply the configuration whenever its files change"
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "time", "json"),
        default="text",
        help="of the log on stderr; time is text with the time (UTC) before it",
    )
    parser.add_argument("--version", action="version", version=f"service-registry {__version__}")
    return parser


def _run(options: argparse.Namespace) -> int:
    from registry.config import ConfigError, default_path, load
    from registry.validate import validate

    try:
        path = options.config or default_path()
        if options.validate:
            with stdout.answering(_PROGRAM):
                return validate(path)
        config = load(path)
    except ConfigError as error:
        _refuse(str(error), options)
        return EX_CONFIG
    if options.starts:
        import registry.daemon  # noqa: F401  everything that it needs can be imported

        return 0
    if options.watch and importlib.util.find_spec("watchfiles") is None:
        _refuse(_NO_WATCHFILES, options)
        return EX_UNAVAILABLE
    return _serve(config, path, options.log_format, watches=options.watch)


def _refuse(told: str, options: argparse.Namespace) -> None:
    """Say why nothing begins, in the form of the log; as text each line stands by itself."""
    from registry.daemon_log import Format, formatted

    format_ = Format(options.log_format)
    if format_ is Format.TEXT or options.validate:
        print(told, file=sys.stderr)
        return
    for line in told.splitlines():
        sys.stderr.write(formatted(format_, "ERROR", line, time.time()))


def _serve(config: object, path: Path, log_format: str, *, watches: bool) -> int:
    from registry.api.unix_socket import SocketError
    from registry.config import Config
    from registry.daemon import HEARD, Upgrade, serve
    from registry.daemon_log import DaemonLog, Format
    from registry.host import child_signals, heap
    from registry.house import Held, leave, make_room
    from registry.journal import JournalError

    assert isinstance(config, Config)
    count = len(config.definitions)
    # before any thread is there: until the daemon listens, and while it becomes another program, they wait
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    child_signals.block()
    heap.share()
    make_room(count)
    log = DaemonLog(Format(log_format))
    log.start()
    try:
        shown = f"Loaded {count} service{'' if count == 1 else 's'} from {path}"
        status = serve(config, shown, watches=watches)
    except Upgrade as upgrade:
        log.stop()
        arguments = [sys.executable, *sys.orig_argv[1:]]
        upgrade.spawning.execv(sys.executable, arguments, upgrade.left, leave)
    except (Held, JournalError, SocketError, OSError, ValueError) as error:
        # one sentence: nothing is gained by a traceback of what only a person can mend
        logging.getLogger("registry").log(logging.ERROR, "%s", error)
        status = EX_UNAVAILABLE
    log.stop()
    return status


if __name__ == "__main__":
    main()
