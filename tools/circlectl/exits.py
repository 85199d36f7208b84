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
INVALID_CONFIG = 78
"""EX_CONFIG; the registry itself and `--validate` end with it, too."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
UNREAD = 141
"""128 + SIGPIPE: whoever read the output has gone."""

_BY_CODE = {
    "invalid_params": USAGE,
    "unknown_service": UNKNOWN_SERVICE,
    "service_not_running": NOT_RUNNING,
    "not_running": UNAVAILABLE,
    "disconnected": UNAVAILABLE,
    "no_permission": NO_PERMISSION,
    "forbidden": NO_PERMISSION,
    "invalid_config": INVALID_CONFIG,
}

HELP = """\b
Exit status:
    0  well: the command succeeded, the services named to status are Running
    1  the command failed, or with --wait did not end as asked in time;
       check: a check failed
    2  wrong usage; plan --detailed-exitcode: something would change
    3  status, signal, reload: at least one is not Running
    4  there is no service of that name
   69  the registry is not running, or went away
   77  permission denied
   78  validate, plan, apply: the configuration is wrong
  130  interrupted
  141  the reader of the output has gone"""


def of_code(code: str) -> int:
    """The exit status for an error with this code."""
    return _BY_CODE.get(code, FAILED)
