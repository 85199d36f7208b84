"""What has to hold after a round, judged from processes, files, definitions and what was acknowledged.

The registry is not asked. A Violation says what is wrong, with the last rows of the service concerned.
"""

from __future__ import annotations

import gzip
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import msgspec

from registry.journal.opening import open_for_reading
from registry.journal.read import Selection, last_seq, pages, verify
from tests.crash.commander import TICK_NS, Sent
from tests.crash.world import (
    HABITS,
    NEEDS,
    SETTLED_WITHIN_S,
    Key,
    Seen,
    World,
    followed,
    follows,
    kin,
)

ROWS_SHOWN = 15
UP, DOWN, NOTHING = frozenset({"up"}), frozenset({"down"}), frozenset[str]()
STAMPED = ("late", "setup")
"""The habits that write down when they are as others need them."""


class Violation(AssertionError):
    """A promise was broken."""


class Before(msgspec.Struct):
    """How things were when a round began: the main processes, and how often each service was executed.

    `unanswered` are the commands of the round before that nobody answered. Where one of them was committed and
    stops a run that takes its time, that service looked settled, and what follows comes only now.
    """

    mains: dict[str, Key]
    executions: dict[str, int]
    unanswered: list[Sent]


class Judge:
    """Remembers from round to round what each service ought to be: `wanted` holds what is possible."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.wanted = dict.fromkeys(world.services, UP)
        self._is_first = True
        self._unanswered: list[Sent] = []

    def look(self) -> Before:
        """How things are now."""
        mains = {seen.service: seen.key for seen in self._world.processes() if seen.is_main}
        services = self._world.services
        executions = {name: len(self._world.executions(name)) for name in services}
        return Before(mains, executions, self._unanswered)

    def after_round(
        self, before: Before, sent: list[Sent], began_s: float, *, both_died: bool
    ) -> float:
        """Wait until everything is settled and judge it; how long that took from `began_s` on, in seconds."""
        for each in sent:
            self.wish(each.service, each.verb, is_certain=each.seq is not None)
        executions = {name: len(self._world.executions(name)) for name in self._world.services}
        began_s = max([began_s, *(each.answered_s for each in sent)])
        self._await_settled(before, sent, executions, began_s, both_died=both_died)
        settled_s = time.monotonic() - began_s
        self._judge_doubled()
        self._judge_order()
        self._judge_journal(sent)
        self._judge_logs(both_died=both_died)
        self._is_first = False
        self._unanswered = [each for each in sent if each.seq is None]
        return settled_s

    # --- what is wanted ---------------------------------------------------------------------------

    def wish(self, name: str, verb: str, *, is_certain: bool) -> None:
        """Take in a command; who starts a service starts what it needs."""
        was = self.wanted[name]
        self.wanted[name] = (DOWN if verb == "stop" else UP) | (NOTHING if is_certain else was)
        if verb == "stop":
            return
        # of one that is as it is needed, what it needs itself is left as it is
        was_down = was == DOWN or verb in ("start", "restart")
        for need in NEEDS.get(name, ()):
            self.wish(need, "need", is_certain=is_certain and was_down)

    def possible(self, name: str) -> frozenset[str]:
        """How it may be once all is settled: what is wanted up, and depends on one that may be down, may wait."""
        possible = self.wanted[name]
        for need in NEEDS.get(name, ()):
            if self._world.services[need] != "setup" and "down" in self.possible(need):
                possible |= DOWN
            if follows(name) and self.wanted[need] == DOWN:
                possible -= UP
        return possible

    # --- processes --------------------------------------------------------------------------------

    def _await_settled(
        self,
        before: Before,
        sent: list[Sent],
        executions: dict[str, int],
        began_s: float,
        *,
        both_died: bool,
    ) -> None:
        while True:
            late = time.monotonic() - began_s > SETTLED_WITHIN_S
            seen: dict[str, list[Seen]] = {name: [] for name in self._world.services}
            for process in self._world.processes():
                seen[process.service].append(process)
            wrong = self._first_wrong(seen, before, sent, executions, both_died=both_died)
            if wrong is None:
                return
            if late:
                name, what = wrong
                raise self.violation(name, f"{what}, after {SETTLED_WITHIN_S:.1f} s", seen[name])
            if not self._world.is_up():
                raise self.violation(None, "the last daemon died")
            time.sleep(0.03)

    def _first_wrong(
        self,
        seen: dict[str, list[Seen]],
        before: Before,
        sent: list[Sent],
        executions: dict[str, int],
        *,
        both_died: bool,
    ) -> tuple[str, str] | None:
        for name, habit in self._world.services.items():
            of_it = [each for each in sent if each.service == name]
            count = len(self._world.executions(name))
            if habit in ("once", "setup"):
                executed = count - before.executions[name] - self._is_first
                wrong = _wrong_once(
                    seen[name], executed, of_it, both_died=both_died, is_oneshot=habit == "setup"
                )
            elif HABITS[habit].is_steady:
                wrong = (
                    wrong_steady(seen[name], self.possible(name), habit)
                    or self._unexecuted(seen[name], name)
                    or (self._unheard(seen[name], name) if habit == "late" else None)
                    or wrong_age(seen, name)
                    or wrong_number(before, count, seen[name], sent, name, both_died=both_died)
                )
            else:
                wrong = wrong_restless(
                    seen[name], self.wanted[name], runs_on=count > executions[name]
                )
            if wrong is not None:
                return name, wrong
        return None

    def _judge_doubled(self) -> None:
        for line in self._world.lines("doubled"):
            raise self.violation(line.split("/")[1], f"two runs at once: {line}")
        for name in self._world.services:
            marks = Counter(line.split()[0] for line in self._world.executions(name))
            if twice := [mark for mark, count in marks.items() if count > 1]:
                raise self.violation(name, f"executed twice: {twice}")

    def _judge_order(self) -> None:
        """Whoever depends on others was born only while these were as it needs them."""
        for name, needs in NEEDS.items():
            for need in needs:
                stamps = [
                    (word, int(at_ns))
                    for word, at_ns in map(str.split, self._world.lines(f"met/{need}"))
                ]
                for line in self._world.executions(name):
                    mark, _pid, tick = line.split()
                    if self._world.services[need] in STAMPED and not was_up(stamps, int(tick)):
                        raise self.violation(name, f"{mark} was born while {need} was not ready")

    # --- the journal ------------------------------------------------------------------------------

    def _unexecuted(self, seen: list[Seen], name: str) -> str | None:
        """None where its main process, if any, has said that it executes: only then it is counted."""
        said = {line.split()[1] for line in self._world.executions(name)}
        silent = [each.pid for each in seen if each.is_main and str(each.pid) not in said]
        return f"{silent} have not said that they execute" if silent else None

    def _unheard(self, seen: list[Seen], name: str) -> str | None:
        """None where that it is ready, which its main process says itself, is in the journal."""
        question = "SELECT 1 FROM events WHERE service = ? AND run = ? AND type = 'became_ready'"
        with closing(open_for_reading(self._world.journal)) as journal:
            runs = [each.run for each in seen if each.is_main]
            late = [run for run in runs if not journal.execute(question, (name, run)).fetchone()]
        return f"nobody has heard that run {late} is ready" if late else None

    def _judge_journal(self, sent: list[Sent]) -> None:
        connection = open_for_reading(self._world.journal)
        try:
            verdict = verify(connection)
            if verdict.trouble is not None:
                raise self.violation(None, f"the journal does not verify: {verdict.trouble}")
            question = "SELECT service FROM events WHERE seq = ?"
            for each in sent:
                if each.seq is None:
                    continue
                row = connection.execute(question, (each.seq,)).fetchone()
                # what is up already, but for what it needs, is answered by the start of that
                if row is None or row[0] not in kin(each.service):
                    raise self.violation(
                        each.service, f"acknowledged, but not in the journal: {each}; found {row}"
                    )
            question = (
                "SELECT service, run FROM events WHERE type = 'spawned'"
                " GROUP BY service, run HAVING count(*) > 1"
            )
            for service, run in connection.execute(question):
                raise self.violation(service, f"run {run} was spawned twice")
        finally:
            connection.close()

    # --- numbered lines ---------------------------------------------------------------------------

    def _judge_logs(self, *, both_died: bool) -> None:
        for name, habit in self._world.services.items():
            if habit in ("write", "talk"):
                self._judge_log(name, both_died=both_died)

    def _judge_log(self, name: str, *, both_died: bool) -> None:
        running = {str(s.run) for s in self._world.processes() if s.service == name}
        promised = {
            path.suffix[1:]: int.from_bytes(path.read_bytes(), "little")
            for path in (self._world.folder / "said").glob(f"{name}.*")
        }
        deadline = time.monotonic() + 3
        while True:
            logged: dict[str, int] = {}
            trouble = _fold_lines(log_lines(self._world, name), logged)
            # what is written is moved within a moment; the count is stored just after the line is
            missing = [
                run
                for run, count in promised.items()
                if not count <= logged.get(run, 0) and not (both_died and run not in running)
            ]
            if trouble is None and not missing:
                break
            if time.monotonic() > deadline:
                lost = [
                    f"run {run}: {promised[run]} lines written, {logged.get(run, 0)} logged"
                    for run in missing
                ]
                raise self.violation(name, "lines: " + "; ".join(filter(None, [trouble, *lost])))
            time.sleep(0.03)
        # judged: neither the files of ended runs nor their lines are needed any more
        for run in promised.keys() - running:
            (self._world.folder / "said" / f"{name}.{run}").unlink(missing_ok=True)

    # --- telling ----------------------------------------------------------------------------------

    def violation(self, name: str | None, what: str, seen: list[Seen] | None = None) -> Violation:
        """What is wrong, with what the journal and the registry's own log say."""
        rows = "\n".join(self._rows(name)) if self._world.journal.exists() else "no journal"
        wanted = f", wanted {'|'.join(sorted(self.wanted[name]))}" if name else ""
        processes = "".join(f"\n  {each}" for each in seen or [])
        return Violation(
            f"{name or 'the registry'}{wanted}: {what}{processes}"
            f"\n--- last rows\n{rows}\n--- its log\n{self._world.said()}"
        )

    def _rows(self, name: str | None) -> list[str]:
        connection = open_for_reading(self._world.journal)
        try:
            since = 0 if name else last_seq(connection) - ROWS_SHOWN
            selection = Selection(after=since, services=(name,) if name else ())
            records = [record for page in pages(connection, selection) for record in page]
        finally:
            connection.close()
        return [
            f"{r.seq} {r.decision} {r.service} run {r.run} {r.event.TYPE} {r.event}"[:300]
            for r in records[-ROWS_SHOWN:]
        ]


def wrong_steady(seen: list[Seen], wanted: frozenset[str], habit: str) -> str | None:
    """None where it is down, or runs as one whole run, as it is wanted."""
    if not seen:
        return None if "down" in wanted else "forgotten: it is wanted and has no process"
    if "up" not in wanted:
        return "it was stopped, and its processes are still there"
    mains = [each for each in seen if each.is_main]
    if len(mains) != 1 or len({each.run for each in seen}) != 1:
        return f"{len(mains)} main processes"
    if len(seen) != HABITS[habit].processes:
        return f"{len(seen)} processes where there should be {HABITS[habit].processes}"
    return None


def wrong_number(
    before: Before,
    count: int,
    seen: list[Seen],
    sent: list[Sent],
    name: str,
    *,
    both_died: bool = False,
) -> str | None:
    """None where it is the same process as before, or another one because somebody asked for it, or for one that
    it is connected with.

    However many commands of the round before nobody answered, one run at most was still to come of them.
    """
    main = next((each for each in seen if each.is_main), None)
    was, now = before.mains.get(name), main.key if main is not None else None
    related = kin(name)
    late = [each for each in before.unanswered if each.service in related]
    begun = [each for each in sent if each.service in related and each.begins]
    grown = count - before.executions[name]
    most = len(begun) + len({each.service for each in late}) + (not before.executions[name])
    # what one says that is `late` may die with both: then its start times out, and it has another
    if grown > most and not (both_died and len(related) > 1):
        return f"executed {grown} times, and at most {most} times it was to"
    of_it = [each for each in sent if each.service in followed(name)]
    ends = [each for each in (*late, *of_it) if each.ends and each.service in followed(name)]
    if follows(name):
        ends += late + begun  # what it follows may only have waited
    if was not in (None, now) and not ends:
        return f"nobody stopped it, and its process was {was} and is {now}"
    # what ran when a stop or restart came ends, and has not yet; but a stop may wait for others, and be taken back
    ended = [
        each
        for each in of_it
        if each.seq is not None
        and each.service == name
        and (each.verb == "restart" or (each.verb == "stop" and len(related) == 1))
    ]
    if main is not None and ended and main.start_time < ended[-1].sent_tick:
        return f"its process is still {now}, after {ended[-1]} at tick {ended[-1].sent_tick}"
    return None


def wrong_restless(seen: list[Seen], wanted: frozenset[str], *, runs_on: bool) -> str | None:
    """None where it goes on to run, or is down, as it is wanted."""
    if "up" in wanted and runs_on:
        return None
    if "down" in wanted and not seen:
        return None
    return "it was stopped, and goes on" if wanted == DOWN else "forgotten: it runs no more"


def _wrong_once(
    seen: list[Seen], executed: int, sent: list[Sent], *, both_died: bool, is_oneshot: bool
) -> str | None:
    """None where it was executed for each command; -1 is an autostart without its execution."""
    least = sum(each.seq is not None for each in sent)
    # and a oneshot that is gone, nobody knows how, has failed, and is started again
    if executed > len(sent) and not (both_died and is_oneshot):
        return f"executed {executed} times for {len(sent)} commands"
    # without anybody left to tell that it never ran, a run that is gone counts as one that ran
    if executed < least and not both_died:
        return f"executed {executed} times, {least} times it was to"
    return "it does not end" if seen else None


def wrong_age(seen: dict[str, list[Seen]], name: str) -> str | None:
    """None where it is younger than what it follows."""
    for followed_one in NEEDS.get(name, ()) if follows(name) else ():
        born = {each.service: each.start_time for each in seen[name] + seen[followed_one]}
        if born.get(name, 0) < born.get(followed_one, 0) and name in born:
            return f"it was not restarted after {followed_one}, which it follows"
    return None


def was_up(stamps: list[tuple[str, int]], tick: int) -> bool:
    """Whether what is needed was up at some moment of a clock tick."""
    began_ns, ended_ns = tick * TICK_NS, (tick + 1) * TICK_NS
    before = [word for word, at_ns in stamps if at_ns < began_ns]
    within = [word for word, at_ns in stamps if began_ns <= at_ns < ended_ns]
    return "up" in (*before[-1:], *within)


def log_lines(world: World, name: str) -> Iterator[str]:
    """All lines of a service's log, oldest first, rotated and compressed files included.

    A number with a plain and a compressed file is that of one whose compression was killed at its end.
    """
    named = re.compile(rf"{re.escape(name)}\.log(?:\.(\d+)(?:\.gz)?)?")
    found = {}
    for path in sorted((world.folder / "var" / "log").iterdir()):
        if match := named.fullmatch(path.name):
            found[int(match[1] or 0)] = path
    for _number, path in sorted(found.items(), reverse=True):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # renamed just now: the next look shows it
            continue
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        yield from data.decode().splitlines(keepends=True)


def _fold_lines(lines: Iterator[str], logged: dict[str, int]) -> str | None:
    """Take in numbered lines; what is wrong with their order, or None. The first run may have lost its head."""
    for line in lines:
        if not line.endswith("\n"):
            return None  # the last line, being written
        words = line.split()
        if len(words) != 4:
            return f"a broken line: {line!r}"
        run, number = words[1].rpartition("/")[2], int(words[3])
        if logged and number != logged.get(run, 0) + 1:
            return f"run {run}: line {number} comes after line {logged.get(run, 0)}"
        logged[run] = number
    return None
