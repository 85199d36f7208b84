"""The report in a real browser: scrubbed, zoomed, searched, clicked, by keyboard alone, printed, at scale."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from circle_replay import page
from registry.core.projection import Projection
from registry.journal.opening import open_for_reading
from registry.journal.read import pages
from registry.page import SCRIPTS
from registry.questions.lanes import lanes
from registry.questions.records import rfc3339, service_record

from .browser import CHROMIUM, Browser
from .fleet import fleet
from .test_page import HOSTILE, hostile_story

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]

GOLDEN = Path(__file__).parents[1] / "golden"
INCIDENT, LOGS = GOLDEN / "incident.db", GOLDEN / "incident-logs"
AT_GAVE_UP = 158  # db gives up


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with closing(Browser(tmp_path_factory.mktemp("browser"))) as found:
        yield found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture
def report(reports: Path, replay) -> Path:
    """The report on the recorded incident."""
    path = reports / "incident.html"
    if not path.exists():
        assert replay(INCIDENT, "--logs", LOGS, "--html", path).status == 0
    return path


@pytest.fixture
def shown(browser: Browser, report: Path) -> Iterator[Browser]:
    """The report as it opens; the page complains of nothing, and asks for nothing but itself."""
    browser.open(report)
    yield browser
    assert browser.complaints == []
    assert {url.partition("#")[0] for url in browser.requests} <= {report.as_uri(), "about:blank"}


def _now(browser: Browser, name: str) -> Any:
    return browser.run(f"now.{name}")


def _point(browser: Browser, service: str, seq: int | None = None) -> tuple[float, float]:
    """Where an event (or else the beginning of the name) is in the window."""
    code = f"""(() => {{
        const box = $("lanes").getBoundingClientRect(), shown = frame(), seq = {json.dumps(seq)};
        const lane = story.laneOf.get({json.dumps(service)});
        const x = seq === null ? 30 : shown.x(story.events.axis[story.events.find(seq)]);
        return [box.left + x, box.top + shown.middle(lane)];
    }})()"""
    x, y = browser.run(code)
    return x, y


def _colour(browser: Browser, x: float, y: float) -> list[int]:
    """The colour of the lanes at a place in the window."""
    code = f"""(() => {{
        const box = $("canvas").getBoundingClientRect();
        return [...$("canvas").getContext("2d").getImageData({x} - box.left, {y} - box.top, 1, 1).data];
    }})()"""
    found: list[int] = browser.run(code)
    return found[:3]


def _rows(browser: Browser, table: str) -> list[list[str]]:
    """The rows of a table that are there, by cells."""
    code = f"""[...document.querySelectorAll("#{table} tbody tr[data-at]")]
        .map(row => [...row.cells].map(cell => cell.innerText.trim()))"""
    found: list[list[str]] = browser.run(code)
    return found


# --- the moment -----------------------------------------------------------------------------------


def test_after_every_event_the_page_knows_what_the_journal_comes_to(shown: Browser) -> None:
    told = shown.run("""[...story.events.seq].map((seq, i) => [...Array(story.lanes).keys()].map(
        lane => ({ name: story.services[lane], ...story.then(lane, i) })))""")
    projection = Projection()
    with closing(open_for_reading(INCIDENT)) as journal:
        records = [record for page_ in pages(journal) for record in page_]
    assert len(told) == len(records)
    for record, then in zip(records, told, strict=True):
        projection.fold([record])
        declared = [each for each in then if each["status"] is not None]
        for each in declared:
            del each["needs"]
            for time in ("since", "next_restart_at"):
                each[time] = rfc3339(each[time] * 1000) if each[time] is not None else None
        services = projection.services
        assert sorted(declared, key=lambda each: str(each["name"])) == sorted(
            (msgspec.to_builtins(service_record(each, services)) for each in services.values()),
            key=lambda each: str(each["name"]),
        )


def test_scrubbing_shows_the_services_as_of_that_moment(shown: Browser) -> None:
    assert "8 services at 11:19:48.244, after event 256" in shown.text("#then-title")
    box = shown.run(
        "(b => [b.left, b.top, b.width, b.height])($('scrubber').getBoundingClientRect())"
    )
    left, top, width, height = box
    shown.drag((left + width - 8, top + height / 2), (left + width * 0.69, top + height / 2))
    seq = shown.run("story.events.seq[now.index]")
    assert 140 < seq < 180
    assert f"after event {seq}" in shown.text("#then-title")
    assert f"event {seq}" in shown.run("$('scrubber').getAttribute('aria-valuetext')")
    with closing(open_for_reading(INCIDENT)) as journal:
        projection = Projection()
        projection.fold(r for page_ in pages(journal) for r in page_ if r.seq <= seq)
    expected = [[each.name, each.state.value] for each in projection.in_order()]
    assert [row[:2] for row in _rows(shown, "services")] == expected


def test_a_time_or_a_number_may_be_typed(shown: Browser) -> None:
    for typed, seq in (
        (f"#{AT_GAVE_UP}", AT_GAVE_UP),
        ("11:19:41.0", 151),
        ("2026-11-28 11:19:41", 151),
    ):
        shown.press("#moment")
        shown.run("$('moment').select()")
        shown.type(typed)
        shown.key("Enter")
        found = shown.run("story.events.seq[now.index]")
        at = (
            shown.run("iso(story.events.at[now.index])"),
            shown.run("iso(story.events.at[now.index + 1])"),
        )
        assert found == seq or at[0] <= "2026-11-28T11:19:41" < at[1]


# --- zoom and pan ---------------------------------------------------------------------------------


def test_the_wheel_zooms_around_the_pointer_and_shift_pans(shown: Browser) -> None:
    x, y = _point(shown, "db", AT_GAVE_UP)
    before = _now(shown, "to") - _now(shown, "from")
    shown.mouse("Wheel", x, y, deltaX=0, deltaY=-600)
    shown.wait(f"now.to - now.from < {before} * 0.3")
    shown.drawn()
    assert abs(_point(shown, "db", AT_GAVE_UP)[0] - x) < 2
    start = _now(shown, "from")
    shown.mouse("Wheel", x, y, deltaX=0, deltaY=80, shift=True)
    shown.wait(f"now.from > {start}")


def test_buttons_and_keys_zoom(shown: Browser) -> None:
    whole = [_now(shown, "from"), _now(shown, "to")]
    shown.press("#zoom-in")
    nearer = [_now(shown, "from"), _now(shown, "to")]
    assert nearer[1] - nearer[0] < whole[1] - whole[0]
    shown.key("+")
    assert _now(shown, "to") - _now(shown, "from") < nearer[1] - nearer[0]
    shown.key("-")
    assert _now(shown, "to") - _now(shown, "from") == pytest.approx(nearer[1] - nearer[0])
    shown.key("ArrowLeft", shift=True)
    assert _now(shown, "from") < nearer[0]
    shown.key("0")
    assert [_now(shown, "from"), _now(shown, "to")] == whole
    shown.press("#zoom-in")
    shown.press("#zoom-fit")
    assert [_now(shown, "from"), _now(shown, "to")] == whole


def test_dragging_pans_and_with_shift_or_in_the_strip_zooms(shown: Browser) -> None:
    x, y = _point(shown, "cache", AT_GAVE_UP)
    shown.drag((x - 150, y), (x, y), shift=True)
    first = _now(shown, "from"), _now(shown, "to")
    assert first[1] - first[0] < 6e6
    shown.drag((x, y), (x - 100, y))
    assert _now(shown, "from") > first[0]
    assert _now(shown, "to") - _now(shown, "from") == pytest.approx(first[1] - first[0])
    shown.drag((200, 90), (500, 90))
    strip = shown.run("(now.to - now.from) / (story.end - story.begin) * $('overview').clientWidth")
    assert strip == pytest.approx(300, abs=3)


# --- search ---------------------------------------------------------------------------------------


def test_search_narrows_lanes_table_and_events(shown: Browser) -> None:
    shown.key("/")
    shown.type("queue=billing")
    assert [row[0] for row in _rows(shown, "services")] == ["worker"]
    listed = _rows(shown, "events")
    assert listed
    assert all("--queue=billing" in row[3] for row in listed)
    assert shown.text("#events-title") == f"{len(listed)} events"
    shown.key("Escape")
    assert len(_rows(shown, "services")) == 8
    shown.run("$('search').focus()")
    shown.type("no such thing")
    assert _rows(shown, "services") == _rows(shown, "events") == []


def test_events_are_filtered_by_kind_and_service(shown: Browser) -> None:
    shown.run("$('kind').value = 'asked'; $('kind').dispatchEvent(new Event('change'))")
    shown.drawn()
    assert all("by uid" in row[3] for row in _rows(shown, "events"))
    assert shown.text("#events-title") == "10 events"
    shown.click(*_point(shown, "db"))
    assert {row[2] for row in _rows(shown, "events")} == {"db"}
    shown.press("#of-service")
    assert _now(shown, "lane") is None
    shown.run("$('order').value = 'troubled'; $('order').dispatchEvent(new Event('change'))")
    shown.drawn()
    assert {row[0] for row in _rows(shown, "services")} == {"db", "api", "web", "worker", "audit"}


# --- why ------------------------------------------------------------------------------------------


def test_a_click_on_a_mark_says_why_with_the_causes_back_to_the_root_and_the_log(
    shown: Browser,
) -> None:
    shown.click(*_point(shown, "audit", 183))
    said = shown.text("#why")
    assert "audit, 11:19:43.671" in said
    numbers = shown.run(r"""[...document.querySelectorAll("#why .because li")]
        .map(line => Number(/#(\d+)$/.exec(line.innerText)[1]))""")
    assert numbers == [181, 180, 177, 176, 175, 170, 169]
    assert "by uid 1000 (circlectl, pid 8699)" in said
    assert "it is the root" in said
    assert "log of audit up to then" in said
    assert "asked to stop, stopping" in said
    shown.press("#why .because li:nth-child(3) button")
    assert shown.run("story.events.seq[now.event]") == 177
    shown.press("#why .close")
    assert shown.run("$('why').hidden")


def test_the_chain_of_an_event_is_that_which_why_tells(shown: Browser, replay) -> None:
    chains = shown.run("""[...story.events.seq.keys()].map(
        i => story.chain(i).map(([events, at]) => events.seq[at]))""")
    for seq in range(12, 257, 11):
        told = json.loads(replay(INCIDENT, "--why", f"seq:{seq}", "--json").out)
        assert chains[seq - 1] == told["chain"], seq


def test_the_last_words_of_a_run_are_shown_where_there_are_no_log_files(
    browser: Browser, reports: Path, replay
) -> None:
    path = reports / "without.html"
    assert replay(INCIDENT, "--html", path).status == 0
    browser.open(path, f"#seq={AT_GAVE_UP}&why=")
    assert "last lines of db, run 5\nFATAL: run/db.lock exists" in browser.text("#why").replace(
        "\n\n", "\n"
    )


def test_a_cause_outside_of_the_report_is_told(browser: Browser, reports: Path, replay) -> None:
    path = reports / "audit.html"
    seen = ("-s", "audit", "--since", "2026-11-28T11:19:43.670Z")
    assert replay(INCIDENT, *seen, "--html", path).status == 0
    browser.open(path, "#seq=183&why=")
    said = browser.text("#why")
    assert "#175 (outside of this report)" in said
    assert "What led to that is not in this report." in said
    assert browser.complaints == []


def test_the_keyboard_alone_is_enough(shown: Browser) -> None:
    shown.key("Home")
    assert _now(shown, "index") == 0
    shown.key("n")
    assert "Failed" in shown.text("#why .say")
    first = _now(shown, "index")
    shown.key("n")
    shown.key("p")
    assert _now(shown, "index") == first
    shown.key("c")
    shown.key("Escape")
    assert shown.run("$('why').hidden")
    shown.key("ArrowDown")
    assert shown.run("story.services[now.lane]") == "db"
    shown.key("ArrowRight")
    shown.key("ArrowRight")
    assert shown.run("story.events.name(now.index)") == "db"
    shown.key("Enter")
    assert shown.text("#why h2").startswith("db, ")
    shown.key("?")
    assert shown.run("$('keys').open")


def test_the_tables_are_worked_by_keys_and_tell_where_one_is(shown: Browser) -> None:
    shown.run("document.querySelector('#events table').focus()")
    for _ in range(3):
        shown.key("ArrowUp")
    active = shown.run("""(table => document.getElementById(table.getAttribute("aria-activedescendant"))
        .getAttribute("aria-rowindex"))(document.querySelector("#events table"))""")
    assert active == str(256 - 3 + 1)
    shown.key("Enter")
    assert shown.run("story.events.seq[now.event]") == 253
    assert (
        shown.run("document.querySelector('#events table').getAttribute('aria-rowcount')") == "257"
    )
    for code in ("$('lanes').ariaLabel", "$('scrubber').ariaLabel", "$('moment').ariaLabel"):
        assert shown.run(code)


# --- how it looks ---------------------------------------------------------------------------------


def test_lanes_have_the_colours_of_their_states_in_light_and_dark(
    browser: Browser, report: Path
) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.ask("Emulation.setEmulatedMedia", features=[feature])
        browser.open(report)
        x, y = _point(browser, "db", AT_GAVE_UP)
        later, _ = _point(browser, "db", 200)
        seen[scheme] = [_colour(browser, x + 35, y - 6), _colour(browser, later, y - 6)]
    browser.ask("Emulation.setEmulatedMedia", features=[])
    assert seen["light"] == [[0xC5, 0x34, 0x1A], [0x86, 0xC7, 0xB1]]
    assert seen["dark"] == [[0xFF, 0x73, 0x50], [0x2F, 0x7A, 0x66]]


def test_the_theme_is_switched_by_hand(shown: Browser) -> None:
    before = shown.run("getComputedStyle(document.body).backgroundColor")
    shown.press("#theme")
    assert shown.run("getComputedStyle(document.body).backgroundColor") != before
    shown.press("#theme")
    assert shown.run("getComputedStyle(document.body).backgroundColor") == before


def test_arrows_of_the_chosen_service_are_drawn(shown: Browser) -> None:
    accent = shown.run("palette().accent")
    code = """(() => { const { left } = layout(), pen = $("canvas").getContext("2d");
        const { data } = pen.getImageData(left - ARC, 0, ARC, $("canvas").height);
        const wanted = palette().accent.match(/\\d+/g).map(Number); let count = 0;
        for (let i = 0; i < data.length; i += 4) if (wanted.every((part, at) => data[i + at] === part)) count++;
        return count; })()"""
    assert accent
    assert shown.run(code) == 0
    shown.click(*_point(shown, "worker"))
    assert shown.run(code) > 20


def test_a_narrow_window_has_no_sideways_scroll(browser: Browser, report: Path) -> None:
    browser.open(report, width=420, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= 420
    assert browser.complaints == []


def test_what_is_shown_is_kept_in_the_address(browser: Browser, report: Path) -> None:
    place = "#seq=158&why=&from=2026-11-28T11:19:37&to=2026-11-28T11:19:45&service=db&order=trouble"
    browser.open(report, place)
    assert browser.run("story.events.seq[now.event]") == AT_GAVE_UP
    assert browser.run("(now.to - now.from) / 1e6") == 8
    assert browser.run("story.services[now.lane]") == "db"
    browser.key("Home")
    browser.wait("location.hash.startsWith('#seq=1&')")


# --- paper, no scripts, hostile text, many --------------------------------------------------------


def test_paper_gets_the_lanes_the_services_and_the_events_of_the_time_that_is_shown(
    shown: Browser,
) -> None:
    shown.run("location.hash = '#seq=158&why=&from=2026-11-28T11:19:41&to=2026-11-28T11:19:45'")
    shown.wait("now.event !== null")
    pdf = base64.b64decode(shown.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
    text = shown.run("$('paper').textContent")
    assert "Shown: 2026-11-28 11:19:41.000 to 2026-11-28 11:19:45.000 UTC" in text
    assert "8 services at 11:19:41.727, after event 158" in text
    assert "gave up after 3 restarts within 60 s" in text
    tables = shown.run("[...$('paper').querySelectorAll('tbody')].map(body => body.rows.length)")
    within = shown.run("story.events.axis.filter(at => at >= now.from && at <= now.to).length")
    assert tables == [8, within]


def test_without_scripts_there_is_a_picture(browser: Browser, report: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.go("about:blank")
        browser.go(report.as_uri())
        root = browser.ask("DOM.getDocument", depth=-1)["root"]["nodeId"]
        found = browser.ask("DOM.querySelector", nodeId=root, selector="noscript > svg > title")
        assert found["nodeId"]
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_a_page_that_cannot_be_read_says_so(browser: Browser, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.html"
    before, data, after = re.split(r'(?<=id="story">)([^<]*)', report.read_text(), maxsplit=1)
    path.write_text(before + data[: len(data) // 8 * 4] + after)
    browser.go(path.as_uri())
    browser.wait("document.querySelector('[role=alert]') !== null")
    assert browser.text("[role=alert]").startswith("This page cannot be shown here: ")


def test_hostile_names_and_lines_stay_text(browser: Browser, tmp_path: Path) -> None:
    found = lanes(Projection(), hostile_story(), lambda _: ())
    path = tmp_path / "hostile.html"
    path.write_text(page.html(found, title=HOSTILE, lines=[page.Line(HOSTILE, 3_000_000, HOSTILE)]))
    browser.open(path, "#seq=4&why=")
    assert browser.complaints == []
    assert browser.run("document.scripts.length") == len(SCRIPTS) + 1
    assert HOSTILE[:34] in browser.text("#why")
    assert HOSTILE[:34] in browser.run("document.querySelector('#services [data-at] td').innerText")
    assert browser.run("document.title").startswith(HOSTILE[:34])
    assert browser.run("document.querySelectorAll('[onload]').length") == 0


def test_a_thousand_services_and_many_events_stay_few_elements(
    browser: Browser, tmp_path: Path
) -> None:
    found = lanes(Projection(), fleet(1000, 20_000), lambda _: ())
    path = tmp_path / "fleet.html"
    path.write_text(page.html(found, title="fleet"))
    browser.open(path)
    assert browser.complaints == []
    assert browser.run("document.querySelectorAll('*').length") < 2000
    assert browser.run("$('canvas').height") < 2000
    assert browser.text("#then-title").startswith("1,000 services")
    browser.run("$('search').focus()")
    browser.type("web-199")
    assert [row[0] for row in _rows(browser, "services")] == ["web-199"]
    browser.key("Escape")
    browser.run("$('lanes').scrollTop = 1e9")
    browser.drawn()
    x, y = browser.run("(b => [b.left + 30, b.bottom - 12])($('lanes').getBoundingClientRect())")
    browser.click(x, y)
    assert browser.run("story.services[now.lane]") == "worker-199"
    assert "worker-199" in [row[0] for row in _rows(browser, "services")]
