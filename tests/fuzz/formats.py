"""The small formats that come from outside, each with its own reader; an input's first byte says which it is.

/proc, marks of processes, env files, times, URLs, names of services and signals, what an earlier program left.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from unittest import mock

import msgspec

from registry import house
from registry.api.actions import ApiError
from registry.api.commands import _signal_name
from registry.api.names import select
from registry.core.definition import Definition
from registry.core.projection import Projection
from registry.host import adoption, cgroup, http_probe, proc
from registry.host.launch import LaunchError, read_env_file
from registry.host.systemd import Systemd
from registry.questions.moments import moment
from registry.questions.records import rfc3339
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

NOW_NS = 1_767_225_600_000_000_000
JOURNAL = "0123456789abcdef"
_FIELDS = b" S 1 41 41 0 -1 4194304 " + b" ".join(b"%d" % n for n in range(10, 53)) + b"\n"

Judges = dict[str, Callable[[bytes], None]]


def _stat(data: bytes) -> None:
    """A program may call itself anything but NUL, 15 bytes of it (prctl(2), PR_SET_NAME)."""
    comm = data.replace(b"\0", b"")[:15]
    with mock.patch.object(proc, "_read", return_value=b"41 (" + comm + b")" + _FIELDS):
        found = proc.stat(41)
    assert found is not None
    assert (found.comm, found.state, found.parent) == (comm.decode(errors="replace"), "S", 1)
    assert found.start_time == 22


def _mark(data: bytes) -> None:
    """A process writes into its environment what it likes, a run's mark among it."""
    stat = proc.Stat(41, "x", "S", 1, 41, 41, 0, 1, 5, 0)
    with mock.patch.object(proc, "_read", return_value=b"A=1\0" + data + b"\0B"):
        mark = proc.mark(41)
    found = adoption.Survey({}, [])
    adoption._enter(found, (mark or "").split("/"), JOURNAL, stat)
    for _service, run in found.runs:
        assert 0 <= run < 2**63, "a run that no journal can hold"


def _env_file(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        found = read_env_file(str(path))
    except LaunchError as error:
        _judge_sentence(error.message)
        return
    for name, value in found.items():
        assert name
        assert "=" not in name
        assert "\0" not in name + value


def _judge_sentence(text: str) -> None:
    assert "\n" not in text


def _moment(data: bytes) -> None:
    found = moment(data.decode(errors="surrogateescape"), NOW_NS)
    if found is not None:
        assert -(2**63) <= found.first_ns <= found.last_ns < 2**63
        rfc3339(found.first_ns)


def _url(data: bytes) -> None:
    with suppress(ValueError):  # what the caller takes for "no such URL"
        request = http_probe._request(data.decode(errors="replace"))
        assert request.head.count(b"\r\n\r\n") == 1
        assert request.head.count(b"\r\n") == 6, "a URL that writes lines of the request"


def _names(data: bytes) -> None:
    projection = Projection()
    for number, name in enumerate(("web", "x@1", "x@2")):
        projection.add(Definition(name, ("./x",), number, tags=("a",)))
    with suppress(ApiError):
        select(data.decode(errors="replace").split("\n"), projection)
    with suppress(ApiError):
        _signal_name(data.decode(errors="replace"))


def _cgroups(data: bytes) -> None:
    """Names of cgroups and mount points are anybody's; the kernel escapes them in octal (proc(5))."""
    texts = [*data.decode(errors="replace").replace("\n", "").split("---"), "/", "/"]
    root, point = (
        "".join(c if c not in " \t\\" else f"\\{ord(c):03o}" for c in text) for text in texts[1:3]
    )
    mount = f"36 35 0:31 {root} {point} rw - cgroup2 cgroup2 rw"
    found = cgroup.own_path(f"0::{texts[0]}\n", f"22 1 0:5 / / rw - ext4 x rw\n{mount}\n")
    assert found is None or ".." not in found.relative_to(texts[2]).parts or ".." in texts[2]


def _inherited(data: bytes) -> None:
    """Descriptors of an earlier program; here none is open. setenv(3) itself never frees what it was given."""
    text = data.replace(b"\0", b"").decode(errors="replace")
    with (
        mock.patch.object(os, "environ", {house.INHERITED: text}),
        mock.patch.object(os, "set_inheritable", _closed),
    ):
        assert house.Inherited.take() is None


def _closed(descriptor: int, _inheritable: bool) -> None:
    if not -(2**31) <= descriptor < 2**31:
        raise OverflowError("signed integer is greater than maximum")
    raise OSError(9, "Bad file descriptor")


def _manager(data: bytes) -> None:
    text, _, pid = data.decode(errors="replace").partition(":")
    found = Systemd({"WATCHDOG_USEC": text, "WATCHDOG_PID": pid})
    assert found.watchdog_s is None or found.watchdog_s > 0
    found.variables()


def _writer(data: bytes, folder: Path) -> None:
    Path(folder, "registry.id").write_bytes(data)
    found = house.remembered(folder)
    assert found is None or found.wrote(folder) in (True, False)


def _judges(folder: Path) -> Judges:
    return {
        "stat": _stat,
        "mark": _mark,
        "env_file": lambda data: _env_file(data, folder / "env"),
        "moment": _moment,
        "url": _url,
        "names": _names,
        "cgroup": _cgroups,
        "inherited": _inherited,
        "manager": _manager,
        "writer": lambda data: _writer(data, folder),
    }


SEEDS: dict[str, tuple[bytes, ...]] = {
    "stat": (b"sh", b"a) R 2 (b", b"((()))", b"tab\t \n x", b"\xff\xfe(", b")"),
    "mark": (
        f"{proc.MARK}={JOURNAL}/web/7".encode(),
        f"{proc.MARK}={JOURNAL}/web/7/check".encode(),
        f"{proc.MARK}={JOURNAL}/web/\u00b2".encode(),
    ),
    "env_file": (b"A=1\nexport B='two'\n# no\n\nC=\"x=y\"\n", b"\xef\xbb\xbfA=1\r\nB=\x00\n"),
    "moment": (b"2026-01-02T03:04:05.678+01:00", b"03:14:07", b"2.5 hours ago", b"0001-01-01T00:00:00+23:59"),
    "url": (b"http://h:80/p?q=%20#f", b"https://[::1]:443/", b"http://\xc3\xa9.x/\xc3\xa9", b"http://h/\r\nX: y"),
    "names": (b"web", b"tag:a\nx\n*", b"[!a-\n?@1", b"SIGRTMIN+3", b"9"),
    "cgroup": (b"/a/registry---/a---/sys/fs/cgroup x", b"/a/../b---/---/x", b"/registry---/---/sys"),
    "inherited": (b"5:6", "\u00b2:3".encode(), b"99999999999:1", b"1" * 5000 + b":1"),
    "manager": (b"3000000:", b"1" * 400 + b":", b"1" * 5000, "\u0663:".encode()),
    "writer": (
        msgspec.json.encode({"journal_id": "a", "started": {"boot_id": "b", "pid_namespace": "n", "pid": 1,
                             "version": "1", "fresh": True, "path": "/x", "device": 1, "inode": 2}}),
        b'{"journal_id":' + b"[" * 3000,
    ),
}  # fmt: skip
NAMES = tuple(SEEDS)


def recipe() -> Recipe:
    """A few of each format; which one it is goes before them."""
    seeds = [bytes([NAMES.index(name)]) + seed for name in NAMES for seed in SEEDS[name]]
    words = [seed for each in SEEDS.values() for seed in each] + [b"\xc2\xb2", b"/", b" ago", b"@"]

    def fresh(chance: Random) -> bytes:
        damaged = plain.make(chance)
        return bytes([chance.randrange(len(NAMES))]) + damaged[1:]

    plain = Recipe(seeds, words)
    return Recipe(seeds, words, fresh)


@contextmanager
def judging() -> Iterator[Judge]:
    """A folder for those that are files."""
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        judges = _judges(Path(folder))

        def judge(data: bytes) -> None:
            judges[NAMES[(data[:1] or b"\0")[0] % len(NAMES)]](data[1:])

        yield judge


def _family(name: str, unit: bytes) -> Callable[[int], bytes]:
    return lambda size: bytes([NAMES.index(name)]) + unit * (size // len(unit))


TARGET = Target(
    "formats",
    "whatever stands in /proc, an environment, an env file, a time, a URL or a name, it is understood or refused in"
    " the way of its reader; nothing else is raised",
    recipe,
    judging,
    {
        "lines of an env file": _family("env_file", b"KEY=VALUE\n"),
        "a long name": _family("names", b"a"),
        "a glob": _family("names", b"["),
        "many names": _family("names", b"web\n"),
    },
)
