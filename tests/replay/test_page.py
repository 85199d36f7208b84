"""The report and the picture as files: what they hold, what hostile text does to them (nothing), complaints."""

import base64
import json
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from circle_replay import page, pictures
from circle_replay.svg import COLOURS, LANES_MAX, MARKS, picture
from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.page import SCRIPTS, readable
from registry.questions.lanes import Lanes, lanes
from registry.questions.records import event_record
from registry.questions.timeline import happened

from .fleet import fleet

ROOT = Path(__file__).parents[2]
CHAR_PX = 6.2
"""At most, on the average."""
HOSTILE = "</script><script>alert(1)</script>\" onload='x' \ud800 \x00\x1b[31m\u2028 &lt; <!-- ]]> {{title}}"


def _columns(html: str) -> dict[str, Any]:
    (packed,) = re.findall(r'<script type="text/plain" id="story">([A-Za-z0-9+/=]*)</script>', html)
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def _sums(differences: list[int]) -> list[int]:
    total, sums = 0, []
    for each in differences:
        total += each
        sums.append(total)
    return sums


def _texts(columns: dict[str, Any], which: str) -> list[str]:
    """The words of events, put together again."""
    numbers = iter(columns[which]["numbers"])
    texts = []
    for what in columns[which]["what"]:
        first, *parts = columns["whats"][what][2].split("\0")
        texts.append(first + "".join(f"{next(numbers)}{part}" for part in parts))
    assert next(numbers, None) is None
    return texts


class _Tags(HTMLParser):
    """The tags of a document, and the attributes that fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [each for each in attrs if each[0] in ("src", "href", "srcset", "action")]
        self.fetched += [each for each in attrs if each[0].startswith("on") or each[0] == "style"]


# --- the report -----------------------------------------------------------------------------------


def test_the_report_holds_every_event_in_the_words_of_the_timeline(
    journal: Path, story: list[ev.Record], replay, tmp_path: Path
) -> None:
    assert replay(journal, "--html", tmp_path / "report.html")[:2] == (0, "")
    columns = _columns((tmp_path / "report.html").read_text())
    events = columns["events"]
    assert _sums(events["seq"]) == [record.seq for record in story]
    assert _sums(events["at"]) == [record.at_ns // 1000 for record in story]
    assert _texts(columns, "events") == [happened(event_record(record)) for record in story]
    services = [columns["services"][n - 1] if n else None for n in events["service"]]
    assert services == [record.service for record in story]
    causes = [
        seq - by if by else None
        for seq, by in zip(_sums(events["seq"]), events["cause"], strict=True)
    ]
    for record, cause in zip(story, causes, strict=True):
        is_owed = isinstance(record.event, ev.ProbeChanged) and record.event.ok
        assert cause == record.cause or is_owed
    said = [r.event.lines for r in story if isinstance(r.event, ev.OutputEnded) and r.event.lines]
    assert [tuple(lines) for _, *lines in columns["lines"]] == said


def test_the_report_is_one_file_that_fetches_nothing_and_runs_nothing_else(
    journal: Path, replay
) -> None:
    html = replay(journal, "--html", "-").out
    found = _Tags(html)
    assert found.fetched == []
    assert found.tags.count("script") == len(SCRIPTS) + 1
    assert {"link", "iframe", "img", "object"}.isdisjoint(found.tags)
    assert "default-src 'none'" in html
    assert "unsafe" not in html
    assert re.findall(r"https?://[^\s\"'<]*", html) == ["http://www.w3.org/2000/svg"]


def test_time_and_services_are_respected(journal: Path, replay) -> None:
    seen = ("--since", "2026-01-02T03:00:10Z", "--until", "2026-01-02T03:01:00Z", "-s", "worker")
    columns = _columns(replay(journal, "--html", "-", *seen).out)
    seqs = _sums(columns["events"]["seq"])
    told = [json.loads(row)["seq"] for row in replay(journal, "--json", *seen).out.splitlines()]
    assert set(told) <= set(seqs)
    assert columns["services"][: columns["lanes"]] == ["worker"]
    assert min(seqs) >= min(told) - 20
    assert max(seqs) <= max(told) + 20


def test_lines_of_log_files_are_in_the_report(replay, tmp_path: Path) -> None:
    golden = ROOT / "tests" / "golden"
    incident, logs = golden / "incident.db", golden / "incident-logs"
    answer = replay(incident, "--logs", logs, "--html", tmp_path / "report.html")
    assert answer.status == 0
    written = _columns((tmp_path / "report.html").read_text())["written"]
    assert written["text"].count("FATAL: run/db.lock exists: is another server using this data?")
    assert _sums(written["at"]) == sorted(_sums(written["at"]))
    texts = [
        row
        for row in replay(incident, "--logs", logs, "--json").out.splitlines()
        if '"line"' in row
    ]
    assert len(written["text"]) == len(texts)


def hostile_story() -> list[ev.Record]:
    """A service whose name and last words are those of an attacker; only a forged journal has such a name."""
    definition = Definition(name=HOSTILE, cmd=("x",))
    stopped = State.STOPPED
    defined = ev.Defined(
        source=stopped, dest=stopped, reason=Reason.DEFINED, definition=definition, digest=""
    )
    failing = ev.SpawnFailed(
        source=State.STARTING, dest=State.FAILED, reason=Reason.EXEC_FAILED, message=HOSTILE
    )
    starting = ev.StartRequested(source=stopped, dest=State.STARTING, reason=Reason.REQUESTED)
    events: list[ev.Event] = [
        ev.JournalCreated(journal_id="j", schema=1),
        defined,
        starting,
        failing,
        ev.OutputEnded(lines=(HOSTILE, "ordinary")),
    ]
    actor = ev.Actor(0, None, HOSTILE)
    return [
        ev.Record(i, i * 10**9, i, i, HOSTILE if i > 1 else None, None, None, actor, event)
        for i, event in enumerate(events, 1)
    ]


@pytest.fixture(scope="module")
def hostile() -> Lanes:
    return lanes(Projection(), hostile_story(), lambda _: ())


def test_hostile_names_and_lines_stay_text_in_the_report(hostile: Lanes) -> None:
    line = page.Line(HOSTILE, 3_000_000, HOSTILE)
    html = page.html(hostile, title=HOSTILE, lines=[line])
    html.encode()  # no half character is left
    tame = page.html(lanes(Projection(), fleet(1, 9), lambda _: ()), title="tame")
    assert _Tags(html).tags.count("script") == _Tags(tame).tags.count("script")
    assert _Tags(html).fetched == []
    assert "alert(1)</script>" not in html
    columns = _columns(html)
    assert columns["services"] == [readable(HOSTILE)]
    assert columns["lines"] == [[4, readable(HOSTILE), "ordinary"]]
    assert columns["written"]["text"] == [readable(HOSTILE)]


def test_very_long_lines_are_cut(hostile: Lanes) -> None:
    columns = _columns(page.html(hostile, title="x", lines=[page.Line("x", 1, "y" * 10_000)]))
    assert columns["written"]["text"] == ["y" * 500 + "…"]


def test_the_page_has_the_colours_of_the_picture() -> None:
    style = (ROOT / "registry" / "page" / "page.css").read_text()
    for state, colour in COLOURS.items():
        assert f"--{state}: light-dark({colour}," in style


# --- the picture ----------------------------------------------------------------------------------


def _svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def _words(svg: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_shows_services_legend_and_axis(journal: Path, replay, tmp_path: Path) -> None:
    assert replay(journal, "--svg", tmp_path / "lanes.svg").status == 0
    words = _words(_svg((tmp_path / "lanes.svg").read_text()))
    assert {"web", "worker", "app", "Failed", "Running", "restart", "gave up"} <= set(words)
    assert words[0] == "registry.db, 2026-01-02"
    assert any(re.fullmatch(r"2026-01-02 03:00:00.000 to .* UTC", each) for each in words)
    assert words[-1].startswith("8 services, 185 events") or re.match(
        r"\d+ services, 185", words[-1]
    )


def test_every_word_of_the_legend_is_within_the_picture(journal: Path, replay) -> None:
    svg = _svg(replay(journal, "--svg", "-").out)
    legend = [*COLOURS, *(words for words, _ in MARKS.values()), "registry began or ended"]
    ends = {
        each.text: float(each.attrib["x"]) + len(each.text or "") * CHAR_PX
        for each in svg.iter("{http://www.w3.org/2000/svg}text")
    }
    assert max(ends[words] for words in legend) <= float(svg.attrib["width"])


def test_a_picture_of_many_services_is_bounded_and_says_what_it_leaves_out() -> None:
    found = lanes(Projection(), fleet(200, 8000), lambda _: ())
    text = picture(found, title="fleet")
    svg = _svg(text)
    assert int(svg.attrib["height"]) < 1000
    assert len(text) < 400_000
    names = {lane.name for lane in found.lanes}
    shown = [word for word in _words(svg) if word in names]
    assert len(shown) == LANES_MAX
    assert shown == sorted(shown, key=[lane.name for lane in found.lanes].index)
    assert _words(svg)[-1].startswith("200 services, 8,000 events; 160 services with less trouble")


def test_hostile_names_stay_text_in_the_picture(hostile: Lanes) -> None:
    text = picture(hostile, title=HOSTILE)
    text.encode()
    svg = _svg(text)  # XML holds no control characters
    assert {each.tag.rpartition("}")[2] for each in svg.iter()} <= {
        "svg", "title", "defs", "pattern", "rect", "path", "text",
    }  # fmt: skip
    assert readable(HOSTILE) in _words(svg)[0]


def test_a_single_moment_makes_a_picture_too(write: Callable[..., Path], story, replay) -> None:
    journal = write(story[:1])
    assert _svg(replay(journal, "--svg", "-").out).attrib["width"] == "1200"
    assert _columns(replay(journal, "--html", "-").out)["lanes"] == 0


# --- complaints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (
            ["--html", "no/such/folder/x.html"],
            1,
            "no/such/folder/x.html: it cannot be written: No such file or directory",
        ),
        (["--svg", "."], 1, ".: it cannot be written: Is a directory"),
        (["--html", "-", "--at", "seq:1"], 2, "--html goes without --at: it is a picture"),
        (["--svg", "-", "--json"], 2, "--svg goes without --json: it is a picture"),
        (["--svg", "-", "--logs", "."], 2, "--svg goes without --logs: a picture holds no lines"),
        (["--html", "-", "--since", "2030-01-01 00:00:00"], 1, "it has no event of that time"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    journal: Path, replay, options: list[str], status: int, sentence: str
) -> None:
    answer = replay(journal, *options)
    assert answer[:2] == (status, "")
    assert sentence in answer.err.splitlines()[-1]


def test_more_events_than_a_browser_can_show_are_refused_but_for_some_services(
    journal: Path, replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "EVENTS_MAX", 184)
    answer = replay(journal, "--html", "-")
    assert answer[:2] == (1, "")
    assert (
        "185 events are more than one picture can show (184): choose some by --since" in answer.err
    )
    assert replay(journal, "--html", "-", "-s", "web").status == 0


def test_no_more_lines_of_logs_are_kept_than_the_last(
    replay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pictures, "LINES_MAX", 5)
    golden = ROOT / "tests" / "golden"
    file = tmp_path / "report.html"
    answer = replay(golden / "incident.db", "--logs", golden / "incident-logs", "--html", file)
    assert re.search(r"of [\d,]+ lines of log files the report holds the last 5\n", answer.err)
    assert len(_columns(file.read_text())["written"]["text"]) == 5


def test_a_journal_is_never_written_over(journal: Path, replay) -> None:
    before = journal.read_bytes()
    for option in ("--html", "--svg"):
        answer = replay(journal, option, journal)
        assert answer.status == 1
        assert f"{journal}: this is an SQLite file, and is left as it is" in answer.err
    assert journal.read_bytes() == before


def test_an_earlier_report_is_written_over(journal: Path, replay, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old" * 1_000_000)
    assert replay(journal, "--html", file).status == 0
    assert "oldold" not in file.read_text()
