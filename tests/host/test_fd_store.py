"""Descriptors that services store: held twice, given in order, one open file once, and never leaked."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.host import fd_store
from registry.host.fd_store import STORED_MAX, FdStore


class HoldingKeeper:
    """Holds what it is handed, as the real one does."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}
        self.refuses: OSError | None = None

    def hold(self, service: str, slot: str, fd: int, /, *, meta: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        os.fstat(fd)  # it is open
        self.held[service, slot] = meta

    def drop(self, service: str, slot: str) -> None:
        del self.held[service, slot]


@pytest.fixture
def keeper() -> HoldingKeeper:
    return HoldingKeeper()


@pytest.fixture
def store(keeper: HoldingKeeper) -> Iterator[FdStore]:
    made = FdStore(keeper.hold, keeper.drop)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = len(os.listdir("/dev/fd"))
    yield
    assert len(os.listdir("/dev/fd")) <= before


def opened(folder: Path, name: str = "file") -> int:
    return os.open(folder / name, os.O_RDWR | os.O_CREAT)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def names(store: FdStore, service: str = "web") -> list[str]:
    return [name for name, _fd in store.of(service)]


def test_what_is_stored_is_given_in_the_order_in_which_it_came_and_held_by_the_keeper(
    store, keeper, tmp_path
):
    first, second, third = (opened(tmp_path, name) for name in "abc")
    store.add("web", "b", [first, second])
    store.add("db", "x", [third])
    assert store.of("web") == [("b", first), ("b", second)]
    assert store.of("db") == [("x", third)]
    assert store.of("nobody") == []
    assert sorted(keeper.held.values()) == ["b", "b", "x"]
    assert all(slot.startswith("stored:") for _service, slot in keeper.held)


def test_a_name_removes_all_that_are_called_so_and_no_others(store, keeper, tmp_path):
    fds = [opened(tmp_path, name) for name in "abc"]
    store.add("web", "gone", fds[:2])
    store.add("web", "stays", fds[2:])
    store.remove("web", "gone")
    store.remove("web", "unknown")
    store.remove("nobody", "gone")
    assert names(store) == ["stays"]
    assert [is_open(fd) for fd in fds] == [False, False, True]
    assert list(keeper.held.values()) == ["stays"]


def test_down_for_good_is_all_of_one_service(store, keeper, tmp_path):
    web, db = opened(tmp_path, "a"), opened(tmp_path, "b")
    store.add("web", "x", [web])
    store.add("db", "x", [db])
    store.clear("web")
    store.clear("web")
    assert (names(store), names(store, "db")) == ([], ["x"])
    assert (is_open(web), is_open(db)) == (False, True)
    assert list(keeper.held) == [("db", "stored:2")]


def test_what_is_closed_is_still_the_keeper_s(store, keeper, tmp_path):
    fd = opened(tmp_path)
    store.add("web", "x", [fd])
    store.close()
    assert not is_open(fd)
    assert list(keeper.held.values()) == ["x"]


def test_a_copy_that_comes_again_is_stored_once(store, tmp_path):
    """As after a crash, when the datagram that brought it is read a second time."""
    fd = opened(tmp_path)
    again = os.dup(fd)
    store.add("web", "x", [fd])
    store.add("web", "x", [again])
    assert store.of("web") == [("x", fd)]
    assert not is_open(again)
    store.add("db", "x", [os.dup(fd)])
    assert names(store, "db") == ["x"], "another service's is another thing"


@pytest.mark.platform("linux")
@pytest.mark.parametrize("query", [fd_store._F_DUPFD_QUERY, -1])
def test_what_has_no_inode_of_its_own_is_not_taken_for_another(store, monkeypatch, query):
    """Also where the kernel cannot tell whether two are one: before Linux 6.10."""
    monkeypatch.setattr(fd_store, "_F_DUPFD_QUERY", query)
    poll = select.epoll()
    events = [os.eventfd(0) for _ in range(2)]
    store.add("web", "x", [*events, os.dup(poll.fileno())])
    poll.close()
    assert len(store.of("web")) == 3


@pytest.mark.platform("linux")
def test_before_linux_6_10_one_file_is_stored_once(store, monkeypatch, tmp_path):
    monkeypatch.setattr(fd_store, "_F_DUPFD_QUERY", -1)
    fd = opened(tmp_path)
    store.add("web", "x", [fd, os.dup(fd)])
    assert store.of("web") == [("x", fd)]


def test_there_is_a_most_and_it_is_said(store, keeper, tmp_path, caplog):
    fds = [opened(tmp_path, str(number)) for number in range(STORED_MAX + 2)]
    store.add("web", "x", fds)
    assert [fd for _name, fd in store.of("web")] == fds[:STORED_MAX]
    assert [is_open(fd) for fd in fds[-3:]] == [True, False, False]
    assert len(keeper.held) == STORED_MAX
    assert f"web: no more than {STORED_MAX} descriptors are stored" in caplog.text


def test_what_the_keeper_cannot_hold_is_not_stored_and_it_is_said(store, keeper, tmp_path, caplog):
    keeper.refuses = OSError(24, "Too many open files")
    fds = [opened(tmp_path, name) for name in "ab"]
    store.add("web", "x", fds)
    assert store.of("web") == []
    assert not any(map(is_open, fds))
    assert "web: a descriptor cannot be stored: Too many open files" in caplog.text


def test_what_an_earlier_daemon_stored_is_taken_up_and_its_places_are_not_given_anew(
    store, keeper, tmp_path
):
    old, new = opened(tmp_path, "a"), opened(tmp_path, "b")
    keeper.held["web", "stored:7"] = "old"
    store.adopt("web", "stored:7", "old", old)
    store.add("web", "new", [new])
    assert store.of("web") == [("old", old), ("new", new)]
    assert set(keeper.held) == {("web", "stored:7"), ("web", "stored:8")}
    store.remove("web", "old")
    assert set(keeper.held) == {("web", "stored:8")}
