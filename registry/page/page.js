// The page itself: what is chosen, and what keys, mouse and buttons make of it. All drawing follows from `now`.
"use strict";

const ZOOM = 1.6;
const SPAN_LEAST = 1000; // microseconds
const NEAR = 7; // pixels
const ROWS_PRINTED = 60, SERVICES_PRINTED = 200, EVENTS_PRINTED = 400;

const $ = (id) => document.getElementById(id);

/** What is shown: `time` and `index` are the moment, `from` and `to` what the lanes show of the time. */
const now = {
  time: 0, index: 0, from: 0, to: 1, lane: null, event: null,
  query: "", order: "declared", kinds: "", rows: [], listed: [],
};
let story, colours, services, events, strip, listsSeen;
let due = false;

async function main() {
  story = new Story(await unpack($("story").textContent));
  colours = palette();
  Object.assign(now, { time: story.end, index: story.events.count - 1, from: story.begin, to: story.end });
  services = new LongTable($("services"), {
    row: (at) => serviceRow(story, colours, now.rows[at], now.index),
    choose: (at) => chooseLane(now.rows[at]),
    act: () => chooseEvent(now.index),
  });
  events = new LongTable($("events"), {
    row: (at) => eventRow(story, colours, now.listed[at], now.index),
    choose: (at, isClick) => (isClick || now.event !== null ? chooseEvent : moveTo)(now.listed[at]),
    act: (at) => chooseEvent(now.listed[at]),
  });
  head();
  legend();
  wire();
  restore();
  document.body.dataset.ready = "true";
}

// --- what is chosen ------------------------------------------------------------------------------------------

/** Change what is shown; all of it is drawn anew with the next frame. */
function change(what) {
  Object.assign(now, what);
  if ("query" in what || "order" in what || "kinds" in what || "lane" in what) choose();
  draw();
}

/** Which lanes and events there are to see, by what is searched for. */
function choose() {
  const words = now.query.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = words.length ? story.search(words) : null;
  now.rows = lanesFor(words, hits);
  const kinds = now.kinds ? new Set(now.kinds.split(" ")) : null;
  now.listed = [];
  for (let i = 0; i < story.events.count; i++) {
    const isOf = now.lane === null || story.events.service[i] === now.lane;
    if (isOf && (!hits || hits[i]) && (!kinds || kinds.has(story.events.kind(i)))) now.listed.push(i);
  }
  strip = null;
}

function lanesFor(words, hits) {
  let rows = [...Array(story.lanes).keys()];
  if (hits) {
    const names = story.services.map((name) => name.toLowerCase());
    rows = rows.filter((lane) => words.every((word) => names[lane].includes(word)) || story.ofLane[lane].some((i) => hits[i]));
  }
  if (now.order !== "declared") {
    if (now.order === "troubled") rows = rows.filter((lane) => story.trouble[lane]);
    rows.sort((a, b) => story.trouble[b] - story.trouble[a] || a - b);
  }
  return rows;
}

function moveTo(index) {
  const time = story.events.axis[index];
  change({ index, time, ...(now.event !== null && now.event !== index ? { event: null } : {}), ...including(time) });
}

function moveToTime(time) {
  const within = Math.min(Math.max(time, story.begin), story.end);
  change({ time: within, index: story.lastAt(within), event: null });
}

/** The span moved so that a time is in it, where it is not. */
function including(time) {
  if (time >= now.from && time <= now.to) return {};
  return span(time - (now.to - now.from) / 2, time + (now.to - now.from) / 2);
}

function span(from, to) {
  const size = Math.min(Math.max(to - from, SPAN_LEAST), story.end - story.begin);
  const start = Math.min(Math.max(from + (to - from - size) / 2, story.begin), story.end - size);
  return { from: start, to: start + size };
}

function chooseEvent(index) {
  const time = story.events.axis[index];
  change({ event: index, index, time, ...including(time) });
  reveal(story.events.service[index]);
}

function chooseLane(lane) {
  change({ lane: lane === now.lane ? null : lane });
  if (now.lane !== null) reveal(lane);
}

function reveal(lane) {
  const at = now.rows.indexOf(lane);
  const { row } = layout();
  const view = $("lanes");
  if (at < 0) return;
  if (at * row < view.scrollTop || (at + 1) * row > view.scrollTop + view.clientHeight) {
    view.scrollTop = at * row - view.clientHeight / 2;
  }
}

function zoom(factor, around = Math.min(Math.max(now.time, now.from), now.to)) {
  const from = around - (around - now.from) / factor;
  change(span(from, from + (now.to - now.from) / factor));
}

function pan(by) {
  change(span(now.from + by, now.to + by));
}

/** The event before (-1) or after (1) the moment, among those in `list`. */
function step(list, by) {
  const at = countUpTo(list, now.index);
  const is = at > 0 && list[at - 1] === now.index;
  const next = by > 0 ? at : at - 1 - (is && story.events.axis[now.index] <= now.time ? 1 : 0);
  return next >= 0 && next < list.length ? list[next] : null;
}

function stepTo(list, by) {
  const index = step(list, by);
  if (index !== null) (now.event === null ? moveTo : chooseEvent)(index);
}

function stepLane(by) {
  if (!now.rows.length) return;
  const at = now.rows.indexOf(now.lane);
  const next = now.rows[Math.min(Math.max(at < 0 ? 0 : at + by, 0), now.rows.length - 1)];
  if (next !== now.lane) chooseLane(next);
}

function trouble(by) {
  const list = story.allTrouble.filter((i) => now.lane === null || story.events.service[i] === now.lane);
  const index = step(list, by);
  if (index !== null) chooseEvent(index);
}

function clear() {
  $("search").value = "";
  change({ query: "", lane: null, event: null });
}

// --- drawing -------------------------------------------------------------------------------------------------

function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    drawLanes();
    drawStrip();
    drawWhy(); // first: it takes room from the list of events
    drawLists();
    remember();
  });
}

function layout() {
  const view = $("lanes");
  const room = Math.floor(view.clientHeight / Math.max(now.rows.length, 1));
  const row = now.rows.length > 60 ? 20 : Math.min(Math.max(room, 26), 38);
  const longest = story.longest ??= story.services.reduce((most, name) => Math.max(most, name.length), 6);
  const left = Math.round(Math.min(40 + longest * 7.4, view.clientWidth * 0.24, 230)) + ARC;
  return { width: view.clientWidth, height: view.clientHeight, left, row };
}

function frame() {
  const { from, to, rows } = now;
  return new Frame({ ...layout(), rows, from, to, top: $("lanes").scrollTop });
}

function drawLanes() {
  const { row, height } = layout();
  $("lanes-height").style.height = `${Math.max(now.rows.length * row, height - 1)}px`;
  const shown = frame();
  const canvas = $("canvas");
  canvas.style.width = `${shown.width}px`;
  canvas.style.height = `${shown.height}px`;
  const pen = prepare(canvas, shown.width, shown.height);
  paintLanes(pen, colours, story, shown, now);
  if (!now.rows.length) {
    pen.fillStyle = colours.faint;
    pen.font = `13px ${FONT}`;
    pen.fillText("No service is so.", 28, 24);
  }
  paintAxis(prepare($("axis"), $("axis").clientWidth, 26), colours, shown, now);
}

function drawStrip() {
  const canvas = $("overview");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!strip || strip.width !== width) strip = { width, ...census(story, now.rows, width) };
  paintOverview(prepare(canvas, width, height), colours, story, strip, width, height, now, now.time);
  const scrubber = $("scrubber");
  scrubber.value = Math.round(((now.time - story.begin) / (story.end - story.begin)) * 1e6);
  scrubber.setAttribute("aria-valuetext", `${moment(now.time)} UTC, event ${story.events.seq[now.index]}`);
}

function drawLists() {
  const { index, time, event, lane, rows, listed } = now;
  const seen = [index, time, event, lane, rows, listed, colours];
  if (listsSeen && seen.every((each, at) => each === listsSeen[at])) return; // only zoomed or panned
  listsSeen = seen;
  services.show(now.rows.length, now.rows.indexOf(now.lane), { follow: now.lane !== now.laneSeen });
  now.laneSeen = now.lane;
  const at = countUpTo(now.listed, now.index) - 1;
  const isListed = at >= 0 && now.listed[at] === now.index;
  events.show(now.listed.length, isListed ? at : -1);
  if (!isListed && at >= 0) events.scroll.scrollTop = Math.max(0, at * ROW - events.scroll.clientHeight / 2);
  $("then-title").textContent = thenWords();
  $("events-title").textContent = count(now.listed.length, "event");
  const button = $("of-service");
  button.hidden = now.lane === null;
  button.textContent = now.lane === null ? "" : `of ${story.services[now.lane]} ×`;
  button.title = "Events of all services";
  if (document.activeElement !== $("moment")) $("moment").value = `${moment(now.time)}`;
}

function thenWords() {
  const at = `${clock(story.events.at[now.index])}, after event ${story.events.seq[now.index]}`;
  return `${count(now.rows.length, "service")} at ${at}`;
}

function drawWhy() {
  if (now.event === now.eventSeen) return;
  now.eventSeen = now.event;
  const box = $("why");
  box.replaceChildren();
  box.hidden = now.event === null;
  if (now.event !== null) box.append(whyPanel(story, now.event, { go: chooseEvent, close: () => change({ event: null }) }));
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

function head() {
  const [begin, end] = [story.events.at[0], story.events.at[story.events.count - 1]];
  const until = day(begin) === day(end) ? clock(end) : moment(end);
  $("range").textContent = `${moment(begin)} to ${until} UTC (${duration(story.end - story.begin)}), journal ${story.journal}`;
  const kinds = {};
  for (let i = 0; i < story.events.count; i++) kinds[story.events.kind(i)] = (kinds[story.events.kind(i)] ?? 0) + 1;
  const sums = [
    [story.lanes, "service"], [story.events.count, "event"], [kinds.restart, "restart"],
    [kinds.failed, "failure", "trouble"], [kinds.gave_up, "gave up", "trouble"], [kinds.asked, "asked by a person"],
  ];
  for (const [sum, noun, name] of sums) {
    if (!sum) continue;
    const word = noun.includes(" ") || sum === 1 ? noun : `${noun}s`;
    $("sums").append(element("li", { className: name ?? "" }, element("b", {}, sum.toLocaleString("en")), word));
  }
  if (new Set(story.events.axis.map((axis, i) => axis - story.events.at[i])).size > 1) {
    $("range").append(". The clock was set back: the axis runs on, the times of events are those of the journal.");
  }
}

function legend() {
  $("legend").replaceChildren(...legendItems(colours));
}

function legendItems(ink) {
  return [...STATES, ...MARKED, "registry"].map((what) => element("li", {}, swatch(ink, what), MARK_WORDS[what] ?? what));
}

// --- keys, mouse, buttons ------------------------------------------------------------------------------------

function wire() {
  wireButtons();
  wireLanes();
  wireStrip();
  document.addEventListener("keydown", key);
  $("lanes").addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe($("lanes"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  window.addEventListener("beforeprint", printed);
  window.addEventListener("hashchange", restore);
}

function wireButtons() {
  const actions = {
    "zoom-in": () => zoom(ZOOM), "zoom-out": () => zoom(1 / ZOOM), "zoom-fit": fit,
    "event-before": () => stepTo(now.listed, -1), "event-after": () => stepTo(now.listed, 1),
    "trouble-before": () => trouble(-1), "trouble-after": () => trouble(1),
    "of-service": () => change({ lane: null }), help: () => $("keys").showModal(), print: () => window.print(), theme,
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("search").addEventListener("input", () => change({ query: $("search").value }));
  $("order").addEventListener("change", () => change({ order: $("order").value }));
  $("kind").addEventListener("change", () => change({ kinds: $("kind").value }));
  $("moment").addEventListener("change", () => goTo($("moment").value));
  $("theme").textContent = isDark() ? "Light" : "Dark";
}

function fit() {
  change({ from: story.begin, to: story.end });
}

/** Go to what somebody typed: `#123`, or a time, or a time of the day that is shown. */
function goTo(text) {
  const number = /^#?(\d+)$/.exec(text.trim());
  const found = number && story.bySeq(Number(number[1]));
  if (found && found[0] === story.events) return chooseEvent(found[1]);
  const words = text.trim().replace(" ", "T").replace(/Z$/, "");
  const time = Date.parse(`${words.includes("T") ? words : `${day(now.time)}T${words}`}Z`) * 1000;
  if (!number && !Number.isNaN(time)) {
    moveToTime(time);
    change(including(now.time));
  }
  $("moment").blur();
  return draw();
}

const KEYS = {
  ArrowLeft: () => stepTo(now.listed, -1), ArrowRight: () => stepTo(now.listed, 1),
  ArrowUp: () => stepLane(-1), ArrowDown: () => stepLane(1),
  Home: () => moveTo(0), End: () => moveTo(story.events.count - 1),
  Enter: () => chooseEvent(now.index), c: cause, p: () => trouble(-1), n: () => trouble(1),
  "+": () => zoom(ZOOM), "=": () => zoom(ZOOM), "-": () => zoom(1 / ZOOM), 0: fit,
  "/": () => $("search").focus(), "?": () => $("keys").showModal(), Escape: clear,
};
const SHIFTED = { ArrowLeft: () => pan((now.from - now.to) / 5), ArrowRight: () => pan((now.to - now.from) / 5) };

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const { target } = event;
  if (event.key === "Escape" && target.matches("input")) target.blur();
  else if (target.matches("#search, #moment, select")) return;
  else if (event.key === "Enter" && target.matches("button")) return;
  const action = (event.shiftKey && SHIFTED[event.key]) || KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function cause() {
  const found = now.event !== null && story.bySeq(story.events.cause[now.event]);
  if (found && found[0] === story.events) chooseEvent(found[1]);
}

function wireLanes() {
  const view = $("lanes");
  let held = null;
  view.addEventListener("wheel", wheel, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    if (event.button || event.offsetX > view.clientWidth) return;
    held = { x: event.clientX, y: event.clientY, from: now.from, to: now.to, top: view.scrollTop, shift: event.shiftKey };
  });
  view.addEventListener("pointermove", (event) => {
    if (!held) return hover(event);
    const moved = Math.hypot(event.clientX - held.x, event.clientY - held.y);
    if (!held.moves && moved < 4) return undefined;
    if (!held.moves) view.setPointerCapture(event.pointerId);
    held.moves = true;
    $("tip").hidden = true;
    return held.shift ? mine(event, held) : drag(event, held);
  });
  view.addEventListener("pointerup", (event) => {
    if (held && !held.moves) click(event);
    if (held?.moves && held.shift) change(span(...held.span));
    held = null;
  });
  view.addEventListener("pointercancel", () => (held = null));
  view.addEventListener("pointerleave", () => ($("tip").hidden = true));
}

function wheel(event) {
  const shown = frame();
  const { x } = place(event);
  if (x < shown.left && !event.ctrlKey) return; // over the names: the lanes scroll
  event.preventDefault();
  const across = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
  const perPixel = (now.to - now.from) / (shown.width - shown.left);
  if (Math.abs(across) > Math.abs(event.deltaY) || event.shiftKey) pan(across * perPixel);
  else zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 120 : 400)), shown.time(Math.max(x, shown.left)));
}

function place(event) {
  const box = $("lanes").getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

function drag(event, held) {
  const shown = frame();
  const by = ((held.x - event.clientX) / (shown.width - shown.left)) * (held.to - held.from);
  $("lanes").scrollTop = held.top + held.y - event.clientY;
  change(span(held.from + by, held.to + by));
}

/** With Shift: the stretch that will be zoomed to. */
function mine(event, held) {
  const shown = frame();
  const box = $("lanes").getBoundingClientRect();
  const times = [held.x, event.clientX].map((x) => shown.time(Math.max(x - box.left, shown.left)));
  held.span = [Math.min(...times), Math.max(...times)];
  drawLanes();
  const pen = $("canvas").getContext("2d");
  pen.fillStyle = colours.accent;
  pen.globalAlpha = 0.25;
  pen.fillRect(shown.x(held.span[0]), 0, shown.x(held.span[1]) - shown.x(held.span[0]), shown.height);
  pen.globalAlpha = 1;
}

function click(event) {
  const shown = frame();
  const { x, y } = place(event);
  const lane = shown.lane(y);
  if (x < shown.left) {
    if (lane !== undefined) chooseLane(lane);
    return;
  }
  const hit = lane === undefined ? null : nearest(shown, lane, x);
  if (hit !== null) chooseEvent(hit);
  else {
    moveToTime(shown.time(x));
    if (lane !== undefined && lane !== now.lane) change({ lane });
  }
}

/** The event of a lane that is nearest to a place, a marked one before others; null where none is near. */
function nearest(shown, lane, x) {
  for (const list of [story.marks[lane], story.ofLane[lane]]) {
    let best = null;
    const time = shown.time(x - NEAR);
    for (let at = lowest(list, (i) => story.events.axis[i] >= time); at < list.length; at++) {
      const distance = Math.abs(shown.x(story.events.axis[list[at]]) - x);
      if (shown.x(story.events.axis[list[at]]) > x + NEAR) break;
      if (best === null || distance < best.distance - 0.5) best = { distance, i: list[at] };
    }
    if (best) return best.i;
  }
  return null;
}

function hover(event) {
  const shown = frame();
  const { x, y } = place(event);
  const lane = shown.lane(y);
  const tip = $("tip");
  tip.hidden = lane === undefined || x < 0;
  if (tip.hidden) return;
  tip.textContent = x < shown.left ? story.services[lane] : tipText(shown, lane, x);
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  const below = event.clientY + 18;
  tip.style.top = `${below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : below}px`;
}

function tipText(shown, lane, x) {
  const time = Math.min(Math.max(shown.time(x), story.begin), story.end);
  const index = story.lastAt(time);
  const then = story.then(lane, index);
  const lines = [`${story.services[lane]} at ${clock(time)}: ${then.status ?? "not declared"}`];
  if (then.status) {
    lines[0] += then.since === null ? "" : ` for ${duration(Math.max(0, story.events.at[index] - then.since + time - story.events.axis[index]))}`;
    lines.push(reason(then));
  }
  const hit = nearest(shown, lane, x);
  if (hit !== null) lines.push(`${clock(story.events.at[hit])}  ${story.events.text(hit)}`);
  return lines.join("\n");
}

function wireStrip() {
  const canvas = $("overview");
  const time = (event) => {
    const box = canvas.getBoundingClientRect();
    return story.begin + Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * (story.end - story.begin);
  };
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    start = { x: event.clientX, time: time(event) };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start && Math.abs(event.clientX - start.x) > 4) {
      const times = [start.time, time(event)];
      change(span(Math.min(...times), Math.max(...times)));
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (start && Math.abs(event.clientX - start.x) <= 4) scrub(time(event));
    start = null;
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), time(event));
  }, { passive: false });
  $("scrubber").addEventListener("input", (event) => {
    scrub(story.begin + (event.target.value / 1e6) * (story.end - story.begin));
  });
}

function scrub(time) {
  moveToTime(time);
  change(including(now.time));
}

// --- colours, address, paper ---------------------------------------------------------------------------------

function isDark() {
  const scheme = document.documentElement.style.colorScheme;
  return scheme ? scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function theme() {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  recolour();
}

function recolour() {
  colours = palette();
  $("theme").textContent = isDark() ? "Light" : "Dark";
  legend();
  draw();
}

/** Keep what is shown in the address, so that it can be reloaded and told to others. */
function remember() {
  const told = new URLSearchParams();
  if (now.index !== story.events.count - 1 || now.event !== null) told.set("seq", story.events.seq[now.index]);
  if (now.event !== null) told.set("why", "");
  if (now.from !== story.begin || now.to !== story.end) {
    told.set("from", iso(now.from));
    told.set("to", iso(now.to));
  }
  if (now.lane !== null) told.set("service", story.services[now.lane]);
  if (now.query) told.set("q", now.query);
  if (now.order !== "declared") told.set("order", now.order);
  clearTimeout(remember.timer);
  remember.timer = setTimeout(() => {
    remember.told = `#${told}`;
    try {
      history.replaceState(null, "", remember.told);
    } catch { /* some places where files are shown have no address to write to */ }
  }, 300);
}

function restore() {
  if (remember.told !== undefined && remember.told === location.hash) return;
  const told = new URLSearchParams(location.hash.slice(1));
  const time = (name) => Date.parse(`${told.get(name)}Z`) * 1000;
  const found = story.bySeq(Number(told.get("seq")));
  const what = { query: told.get("q") ?? "", lane: story.laneOf.get(told.get("service")) ?? null, event: null };
  what.order = ["trouble", "troubled"].includes(told.get("order")) ? told.get("order") : "declared";
  Object.assign(what, time("to") > time("from") ? span(time("from"), time("to")) : span(story.begin, story.end));
  if (found && found[0] === story.events) {
    Object.assign(what, { index: found[1], time: story.events.axis[found[1]] });
    if (told.has("why")) what.event = found[1];
  }
  $("search").value = what.query;
  $("order").value = what.order;
  change(what);
  requestAnimationFrame(() => reveal(now.event === null ? now.lane : story.events.service[now.event]));
}

/** For paper: what the lanes show, the services at the moment, the events of that time, each whole. */
function printed() {
  const ink = palette("light");
  const rows = now.rows.slice(0, ROWS_PRINTED);
  const shown = new Frame({ ...layout(), width: 1400, row: 26, height: rows.length * 26, rows, from: now.from, to: now.to, top: 0 });
  const picture = element("canvas", { className: "lanes" });
  const pen = prepare(picture, shown.width, shown.height + 28, 2);
  paintLanes(pen, ink, story, shown, now);
  pen.translate(0, shown.height);
  paintAxis(pen, ink, shown, now);
  $("paper").replaceChildren(
    element("h1", {}, document.title),
    element("p", {}, $("range").textContent),
    element("p", {}, `Shown: ${moment(now.from)} to ${moment(now.to)} UTC${leftOut(now.rows.length, rows.length, "service")}`),
    picture, element("ul", { className: "legend" }, ...legendItems(ink)),
    ...(now.event === null ? [] : [whyPanel(story, now.event, { go: () => {}, close: () => {} })]),
    ...printedServices(ink), ...printedEvents(ink),
  );
  for (const button of $("paper").querySelectorAll(".close")) button.remove();
}

function printedServices(ink) {
  const rows = now.rows.slice(0, SERVICES_PRINTED);
  const head = $("services").querySelector("thead").cloneNode(true);
  return [
    element("h2", {}, `${thenWords()}${leftOut(now.rows.length, rows.length, "service")}`),
    element("table", {}, head, element("tbody", {}, ...rows.map((lane) => serviceRow(story, ink, lane, now.index)))),
  ];
}

/** All events of the time that is shown; where they are too many those that are marked, and of them the first. */
function printedEvents(ink) {
  const within = now.listed.filter((i) => story.events.axis[i] >= now.from && story.events.axis[i] <= now.to);
  const marked = within.filter((i) => MARKED.includes(story.events.kind(i)));
  const chosen = (within.length > EVENTS_PRINTED ? marked : within).slice(0, EVENTS_PRINTED);
  const rows = chosen.map((i) => {
    const row = eventRow(story, ink, i, Infinity);
    for (const narrow of [...row.children].slice(0, 3)) narrow.className = "tight";
    return row;
  });
  return [
    element("h2", {}, `${count(within.length, "event")}${leftOut(within.length, rows.length, "event")}`),
    element("table", {}, element("tbody", {}, ...rows)),
  ];
}

function leftOut(all, shown, noun) {
  return all > shown ? `; ${count(all - shown, noun)} left out` : "";
}

main().catch((error) => {
  document.body.prepend(element("p", { role: "alert" }, `This page cannot be shown here: ${error.message}. A browser of 2024 or later can.`));
});
