"""The exit statuses: systemctl's where it has them, else those of sysexits.h."""

from __future__ import annotations

WELL = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
UNKNOWN_SERVICE = 4
UNAVAILABLE = 69
"""EX_UNAVAILABLE: no registry answers."""
NO_PERMISSION = 77
"""EX_NOPERM."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
UNREAD = 141
"""128 + SIGPIPE: whoever read the output has gone."""

_BY_CODE = {
    "invalid_params": USAGE,
    "unknown_service": UNKNOWN_SERVICE,
    "not_running": UNAVAILABLE,
    "disconnected": UNAVAILABLE,
    "no_permission": NO_PERMISSION,
    "forbidden": NO_PERMISSION,
}

HELP = """\b
Exit status:
    0  well: the command succeeded, the services named to status are Running
    1  the command failed, or with --wait did not end as asked in time
    2  wrong usage
    3  status NAME: at least one is not Running
    4  there is no service of that name
   69  the registry is not running, or went away
   77  permission denied
   78  validate: the configuration is wrong
  130  interrupted
  141  the reader of the output has gone"""


def of_error(code: str) -> int:
    """The exit status for an error of the registry."""
    return _BY_CODE.get(code, FAILED)
