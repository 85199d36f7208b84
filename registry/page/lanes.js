// The pictures: lanes of services, their axis, the strip of the whole time. A painter only draws what it is told.
"use strict";

const STATES = ["Failed", "Stopping", "Restarting", "Starting", "Running", "Stopped"]; // the worst first
const RANK = Object.fromEntries(STATES.map((state, at) => [state, at]));
const HATCHED = { Starting: [[0, 8, 8, 0]], Stopping: [[0, 0, 8, 8]], Restarting: [[2, 0, 2, 8], [6, 0, 6, 8]] };
const SHORT = { Failed: "F", Restarting: "R", Starting: "↑", Stopping: "↓" };
const MARK_WORDS = {
  gave_up: "gave up", failed: "failed", unhealthy: "unhealthy, timed out", asked: "asked by a person", restart: "restart",
  registry: "registry began or ended",
};
const COLOURS = ["back", "sheet", "ink", "faint", "line", "soft", "chosen", "accent", "sick", "on-strong", "hatch", ...STATES];
const FONT = 'system-ui, "Segoe UI", Helvetica, "DejaVu Sans", Arial, sans-serif';
const ARC = 46; // the width of the column of dependency arrows
const STEPS = [1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, ...[1, 2, 5, 10, 15, 30].map((n) => n * SECOND),
  ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), ...[1, 2, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 7, 14, 30, 90, 365].map((n) => n * DAY)];

/** The colours of the page as they are now, or under another `scheme`. */
function palette(scheme = "") {
  const probe = document.createElement("span");
  probe.style.colorScheme = scheme;
  document.body.append(probe);
  const found = {};
  for (const name of COLOURS) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return { ...found, fills: {} };
}

/** Give a canvas its size in pixels of the page, sharp on any screen; its context. */
function prepare(canvas, width, height, scale = window.devicePixelRatio || 1) {
  const [across, down] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** The fill of a state: its colour, and for some a hatch as well, where there is the width to see it. */
function fill(context, colours, state, width = Infinity) {
  if (!(state in HATCHED) || width < 5) return colours[state];
  if (!colours.fills[state]) {
    const tile = document.createElement("canvas");
    const size = 8;
    const pen = prepare(tile, size, size, 2);
    pen.fillStyle = colours[state];
    pen.fillRect(0, 0, size, size);
    pen.strokeStyle = colours.hatch;
    pen.lineWidth = 1.6;
    for (const [x1, y1, x2, y2] of HATCHED[state]) {
      for (const shift of x1 === x2 ? [0] : [-size, 0, size]) line(pen, x1 + shift, y1, x2 + shift, y2);
    }
    const pattern = context.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(0.5));
    colours.fills[state] = pattern;
  }
  return colours.fills[state];
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

function outline(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
}

/** The shape of a marked event around a point. */
function mark(pen, colours, kind, x, y, size = 1) {
  const at = (...points) => points.map(([dx, dy]) => [x + dx * size, y + dy * size]);
  pen.lineWidth = 1.5;
  pen.strokeStyle = colours.ink;
  if (kind === "failed" || kind === "gave_up") {
    if (kind === "gave_up") {
      outline(pen, at([-5, -5], [5, -5], [5, 5], [-5, 5]));
      pen.fillStyle = colours.sheet;
      pen.fill();
      pen.stroke();
    }
    const reach = (kind === "failed" ? 4 : 2.5) * size;
    if (kind === "failed") {
      pen.strokeStyle = colours.sheet;
      pen.lineWidth = 4;
      cross(pen, x, y, reach);
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 2;
    }
    cross(pen, x, y, reach);
    return;
  }
  const shapes = {
    unhealthy: [[0, -6], [6, 0], [0, 6], [-6, 0]],
    restart: [[-4, -5], [5, 0], [-4, 5]],
    asked: [[-5, -5], [5, -5], [0, 5]],
  };
  outline(pen, at(...shapes[kind]));
  pen.fillStyle = { unhealthy: colours.sick, restart: colours.ink, asked: colours.sheet }[kind];
  pen.fill();
  pen.strokeStyle = kind === "asked" ? colours.ink : colours.sheet;
  pen.stroke();
}

function cross(pen, x, y, reach) {
  line(pen, x - reach, y - reach, x + reach, y + reach);
  line(pen, x - reach, y + reach, x + reach, y - reach);
}

/** A canvas that shows a state or a kind of event, for legends and tables. */
function swatch(colours, what) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true");
  canvas.className = what in RANK ? "state" : "sign";
  const [width, height] = what in RANK ? [22, 14] : [16, 16];
  const pen = prepare(canvas, width, height, 2);
  if (what in RANK) {
    const thick = what === "Stopped" ? 4 : height;
    pen.fillStyle = fill(pen, colours, what);
    pen.fillRect(0, (height - thick) / 2, width, thick);
  } else if (MARKED.includes(what)) mark(pen, colours, what, 8, 8);
  else {
    pen.strokeStyle = colours.faint;
    pen.setLineDash([3, 3]);
    line(pen, 8.5, 0, 8.5, 16);
  }
  return canvas;
}

// --- lanes ---------------------------------------------------------------------------------------------------

/** What is drawn where: `rows` are lanes from top to bottom, `top` is how far they are scrolled. */
class Frame {
  constructor({ width, height, left, row, rows, from, to, top }) {
    Object.assign(this, { width, height, left, row, rows, from, to, top });
    this.rowOf = new Map(rows.map((lane, at) => [lane, at]));
  }

  x(time) { return this.left + ((time - this.from) / (this.to - this.from)) * (this.width - this.left); }
  time(x) { return this.from + ((x - this.left) / (this.width - this.left)) * (this.to - this.from); }
  y(at) { return at * this.row - this.top; }
  middle(lane) { return this.y(this.rowOf.get(lane)) + this.row / 2; }
  lane(y) { return this.rows[Math.floor((y + this.top) / this.row)]; }
  get visible() {
    const first = Math.max(0, Math.floor(this.top / this.row));
    return [first, Math.min(this.rows.length, Math.ceil((this.top + this.height) / this.row))];
  }
}

/** Draw the lanes that `frame` shows. `now` is {time, index, lane, event}: what is chosen. */
function paintLanes(pen, colours, story, frame, now) {
  const [first, end] = frame.visible;
  paintGrid(pen, colours, story, frame);
  for (let at = first; at < end; at++) paintLane(pen, colours, story, frame, at, now);
  paintRegistry(pen, colours, story, frame);
  for (let at = first; at < end; at++) paintMarks(pen, colours, story, frame, frame.rows[at]);
  paintNeeds(pen, colours, story, frame, now);
  if (now.event !== null) paintChain(pen, colours, story, frame, now.event);
  paintMoment(pen, colours, frame, now.time);
}

function paintGrid(pen, colours, story, frame) {
  pen.fillStyle = colours.soft;
  for (const [begin, end] of story.idle) {
    const x = Math.max(frame.x(begin), frame.left);
    pen.fillRect(x, 0, Math.max(frame.x(end) - x, 0), frame.height);
  }
  pen.strokeStyle = colours.line;
  pen.lineWidth = 1;
  for (const [x] of ticks(frame)) line(pen, x, 0, x, frame.height);
}

function paintLane(pen, colours, story, frame, at, now) {
  const lane = frame.rows[at];
  const y = frame.y(at);
  if (lane === now.lane) {
    pen.fillStyle = colours.chosen;
    pen.fillRect(0, y, frame.width, frame.row);
  }
  clipped(pen, frame, () => {
    paintStates(pen, colours, story, frame, lane, y);
    story.stretches("health", lane, frame.from, frame.to, (begin, end, value) => {
      if (value !== "unhealthy") return;
      const x = Math.max(frame.x(begin), frame.left);
      pen.fillStyle = colours.sick;
      pen.fillRect(x, y + frame.row - 4, Math.max(frame.x(end) - x, 2), 3);
    });
  });
  paintName(pen, colours, story, frame, lane, y, now);
}

function paintName(pen, colours, story, frame, lane, y, now) {
  const state = story.fields.status.then(lane, now.index);
  if (state) {
    const thick = state === "Stopped" ? 3 : Math.min(12, frame.row - 8);
    pen.fillStyle = fill(pen, colours, state);
    pen.fillRect(10, y + (frame.row - thick) / 2, 10, thick);
  }
  pen.fillStyle = state ? colours.ink : colours.faint;
  pen.font = `${lane === now.lane ? "650 " : ""}${frame.row < 22 ? 11.5 : 13}px ${FONT}`;
  pen.textBaseline = "middle";
  pen.fillText(shorten(pen, story.services[lane], frame.left - ARC - 32), 28, y + frame.row / 2 + 0.5);
}

function shorten(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let length = text.length - 1;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}

function clipped(pen, frame, draw) {
  pen.save();
  pen.beginPath();
  pen.rect(frame.left, 0, frame.width - frame.left, frame.height);
  pen.clip();
  draw();
  pen.restore();
}

/** The states of a lane; of those that would share a pixel the worst is drawn. */
function paintStates(pen, colours, story, frame, lane, y) {
  let held = null;
  const draw = () => held && paintState(pen, colours, frame, y, ...held);
  story.stretches("status", lane, frame.from, frame.to, (beginTime, endTime, state) => {
    const begin = Math.max(frame.x(beginTime), frame.left - 20);
    const end = Math.min(frame.x(endTime), frame.width + 20);
    if (held && end <= held[1]) {
      if (held[1] - held[0] <= 2 && RANK[state] < RANK[held[2]]) held[2] = state;
      return;
    }
    const from = held ? Math.max(begin, held[1]) : begin;
    draw();
    held = [from, Math.max(end, from + 1.5), state];
  });
  draw();
}

function paintState(pen, colours, frame, y, begin, end, state) {
  const thick = state === "Stopped" ? 4 : frame.row - 9;
  const top = y + (frame.row - thick) / 2;
  pen.fillStyle = fill(pen, colours, state, end - begin);
  pen.fillRect(begin, top, end - begin, thick);
  if (state === "Stopped" || state === "Running" || frame.row < 18) return;
  pen.font = `600 11px ${FONT}`;
  const start = Math.max(begin, frame.left) + 9;
  const room = Math.min(end, frame.width) - start - 3;
  const word = pen.measureText(state).width <= room ? state : SHORT[state];
  if (room < 7) return;
  pen.textBaseline = "middle";
  pen.lineWidth = 3;
  pen.strokeStyle = colours[state];
  pen.strokeText(word, start, y + frame.row / 2 + 0.5);
  pen.fillStyle = state === "Stopping" || state === "Starting" ? "#10161b" : colours["on-strong"];
  pen.fillText(word, start, y + frame.row / 2 + 0.5);
}

/** When registries began and ended: lines through all lanes. */
function paintRegistry(pen, colours, story, frame) {
  pen.strokeStyle = colours.faint;
  pen.lineWidth = 1;
  pen.setLineDash([3, 3]);
  for (const time of story.registry) {
    const x = Math.round(frame.x(time)) + 0.5;
    if (x >= frame.left && x <= frame.width) line(pen, x, 0, x, frame.height);
  }
  pen.setLineDash([]);
}

function paintMarks(pen, colours, story, frame, lane) {
  const marks = story.marks[lane];
  const y = frame.middle(lane);
  const last = {};
  const places = [];
  let at = lowest(marks, (i) => story.events.axis[i] >= frame.from);
  for (; at < marks.length && story.events.axis[marks[at]] <= frame.to; at++) {
    const kind = story.events.kind(marks[at]);
    const x = frame.x(story.events.axis[marks[at]]);
    if (last[kind] === undefined || x - last[kind] >= 7) places.push([kind, (last[kind] = x)]);
  }
  places.sort((a, b) => MARKED.indexOf(b[0]) - MARKED.indexOf(a[0]));
  for (const [kind, x] of thinned(places, (frame.width - frame.left) / 16)) mark(pen, colours, kind, x, y, frame.row < 22 ? 0.75 : 1);
}

/** Where marks would hide the lane: without those of the least important kinds, which the colours show as well. */
function thinned(places, room) {
  for (const kind of ["restart", "failed", "asked", "unhealthy"]) {
    if (places.length <= room) break;
    places = places.filter((place) => place[0] !== kind);
  }
  return places;
}

/** The first place in an array from which on `is` holds. */
function lowest(array, is) {
  let [first, end] = [0, array.length];
  while (first < end) {
    const middle = (first + end) >> 1;
    if (is(array[middle])) end = middle;
    else first = middle + 1;
  }
  return first;
}

const ARROWS_MAX = 24;

/** Arrows from a service to what it depends on: of the chosen one; of all where they are few. */
function paintNeeds(pen, colours, story, frame, now) {
  const arrows = [];
  if (frame.rows.length <= 40) {
    for (const lane of frame.rows) for (const [needed] of story.needs(lane, now.index)) arrows.push([lane, needed]);
  }
  if (arrows.length <= ARROWS_MAX) for (const [lane, needed] of arrows) paintArrow(pen, frame, lane, needed, colours.faint, 1);
  if (now.lane === null) return;
  for (const [needed] of story.needs(now.lane, now.index)) paintArrow(pen, frame, now.lane, needed, colours.accent, 2);
  for (const lane of story.dependents(now.lane, now.index)) paintArrow(pen, frame, lane, now.lane, colours.ink, 2);
}

function paintArrow(pen, frame, lane, needed, colour, width) {
  if (!frame.rowOf.has(lane) || !frame.rowOf.has(needed)) return;
  const [from, to] = [frame.middle(lane), frame.middle(needed)];
  const x = frame.left - 8;
  const reach = Math.min(ARC - 10, 12 + Math.abs(frame.rowOf.get(lane) - frame.rowOf.get(needed)) * 5);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = width;
  const end = to + Math.sign(from - to) * 2;
  pen.beginPath();
  pen.moveTo(x, from);
  pen.bezierCurveTo(x - reach, from, x - reach, end, x - 5, end);
  pen.stroke();
  outline(pen, [[x + 1, end], [x - 6, end - 4], [x - 6, end + 4]]);
  pen.fill();
}

/** How one thing led to another, from the root to the chosen event. */
function paintChain(pen, colours, story, frame, event) {
  const points = story.chain(event)
    .filter(([events, i]) => events === story.events && frame.rowOf.has(events.service[i]))
    .map(([events, i]) => [frame.x(events.axis[i]), frame.middle(events.service[i])]);
  clipped(pen, frame, () => {
    for (const [colour, width] of [[colours.sheet, 5], [colours.accent, 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      points.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.stroke();
    }
    points.forEach(([x, y], at) => {
      pen.beginPath();
      pen.arc(x, y, at ? 3 : 7, 0, 2 * Math.PI);
      pen.fillStyle = colours.accent;
      if (at) pen.fill();
      else pen.stroke();
    });
  });
}

function paintMoment(pen, colours, frame, time) {
  const x = Math.round(frame.x(time)) + 0.5;
  if (x < frame.left || x > frame.width + 1) return;
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 1.5;
  line(pen, x, 0, x, frame.height);
}

// --- axis ----------------------------------------------------------------------------------------------------

/** The ticks of an axis: [x, time, step]. */
function ticks(frame) {
  const room = Math.max(2, Math.floor((frame.width - frame.left) / 110));
  const step = STEPS.find((each) => (frame.to - frame.from) / each <= room) ?? STEPS.at(-1);
  const found = [];
  for (let time = Math.ceil(frame.from / step) * step; time <= frame.to; time += step) {
    found.push([Math.round(frame.x(time)) + 0.5, time, step]);
  }
  return found;
}

function tickWord(time, step) {
  if (step >= DAY || time % DAY === 0) return day(time);
  return clock(time).slice(0, step < SECOND ? 12 : step % MINUTE ? 8 : 5);
}

function paintAxis(pen, colours, frame, now) {
  pen.font = `11.5px ${FONT}`;
  pen.textBaseline = "middle";
  pen.fillStyle = colours.faint;
  pen.textAlign = "left";
  pen.fillText(`${day(frame.from)} UTC`, 10, 13);
  pen.textAlign = "center";
  const x = frame.x(now.time);
  const word = clock(now.time);
  for (const [at, time, step] of ticks(frame)) {
    if (at > frame.left + 20 && at < frame.width - 30 && Math.abs(at - x) > 74) pen.fillText(tickWord(time, step), at, 13);
  }
  if (x < frame.left - 1 || x > frame.width + 1) return;
  const centre = Math.min(Math.max(x, frame.left + 42), frame.width - 42);
  pen.fillStyle = colours.accent;
  pen.fillRect(centre - 42, 3, 84, 19);
  pen.fillStyle = colours.sheet;
  pen.fillText(word, centre, 13);
}

// --- the strip of the whole time -----------------------------------------------------------------------------

const STRIP = ["Failed", "Stopping", "Restarting", "Starting"];
const BIN = 3;

/** How many services were in each state of STRIP in each bin of the strip; a state however short is in one. */
function census(story, lanes, width) {
  const bins = Math.max(1, Math.floor(width / BIN));
  const counts = Object.fromEntries(STRIP.map((state) => [state, new Int32Array(bins + 1)]));
  const bin = (time) => Math.min(bins - 1, Math.floor(((time - story.begin) / (story.end - story.begin)) * bins));
  for (const lane of lanes) {
    story.stretches("status", lane, story.begin, story.end, (begin, end, state) => {
      if (!(state in counts)) return;
      counts[state][bin(begin)]++;
      counts[state][bin(end) + 1]--;
    });
  }
  for (const column of Object.values(counts)) for (let at = 1; at <= bins; at++) column[at] += column[at - 1];
  return { bins, counts };
}

function paintOverview(pen, colours, story, { bins, counts }, width, height, view, time) {
  const all = Array.from({ length: bins }, (_, at) => STRIP.reduce((sum, state) => sum + counts[state][at], 0));
  const most = Math.max(1, ...all);
  const size = width / bins;
  for (let at = 0; at < bins; at++) {
    let base = height;
    for (const state of STRIP) {
      if (!counts[state][at]) continue;
      const tall = (counts[state][at] / all[at]) * Math.sqrt(all[at] / most) * (height - 6); // by the root: few count, too
      pen.fillStyle = fill(pen, colours, state);
      pen.fillRect(at * size, base - tall, size + 0.3, tall);
      base -= tall;
    }
  }
  const x = (at) => ((at - story.begin) / (story.end - story.begin)) * width;
  pen.fillStyle = colours.back;
  pen.globalAlpha = 0.72;
  pen.fillRect(0, 0, x(view.from), height);
  pen.fillRect(x(view.to), 0, width - x(view.to), height);
  pen.globalAlpha = 1;
  pen.strokeStyle = colours.faint;
  pen.lineWidth = 1;
  pen.strokeRect(x(view.from) + 0.5, 0.5, Math.max(x(view.to) - x(view.from) - 1, 1), height - 1);
  pen.strokeStyle = colours.accent;
  pen.lineWidth = 1.5;
  line(pen, x(time), 0, x(time), height);
}
