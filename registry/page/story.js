// What the page shows: events, and what every service was after each of them. Columns as replay writes them
// (tools/replay/page.py). An event is meant by its index, a moment by the index of the last event before it.
"use strict";

const TROUBLE = new Set(["gave_up", "failed", "unhealthy"]);
const MARKED = ["gave_up", "failed", "unhealthy", "asked", "restart"]; // the most important first
const CHAIN_MAX = 200;

async function unpack(text) {
  const packed = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(plain).text());
}

/** Sums of what comes so far. */
function summed(differences, Kind = Float64Array) {
  const sums = new Kind(differences.length);
  let sum = 0;
  differences.forEach((difference, at) => (sums[at] = sum += difference));
  return sums;
}

/** How many of `values` from `first` up to `end`, which ascend, are at most `limit`; counted from 0. */
function countUpTo(values, limit, first = 0, end = values.length) {
  while (first < end) {
    const middle = (first + end) >> 1;
    if (values[middle] <= limit) first = middle + 1;
    else end = middle;
  }
  return first;
}

/** The columns of some events. */
class Events {
  constructor(columns, story) {
    this.story = story;
    this.count = columns.seq.length;
    this.seq = summed(columns.seq);
    this.at = summed(columns.at);
    this.axis = this.at.map((at, i) => at + columns.shift[i]);
    this.service = Int32Array.from(columns.service, (number) => number - 1);
    this.run = this.#runs(columns.run);
    this.what = Int32Array.from(columns.what);
    this.cause = this.seq.map((seq, i) => (columns.cause[i] ? seq - columns.cause[i] : 0));
    this.numbers = columns.numbers;
    this.firstNumber = new Int32Array(this.count);
    let first = 0;
    this.what.forEach((what, i) => {
      this.firstNumber[i] = first;
      first += story.whats[what].parts.length - 1;
    });
  }

  #runs(differences) {
    const last = new Map();
    return Int32Array.from(differences, (difference, i) => {
      const run = (last.get(this.service[i]) ?? 0) + difference;
      last.set(this.service[i], run);
      return run;
    });
  }

  type(i) { return this.story.whats[this.what[i]].type; }
  kind(i) { return this.story.whats[this.what[i]].kind; }
  name(i) { return this.service[i] < 0 ? "" : this.story.services[this.service[i]]; }

  text(i) {
    const { parts } = this.story.whats[this.what[i]];
    let text = parts[0];
    for (let at = 1; at < parts.length; at++) text += this.numbers[this.firstNumber[i] + at - 1] + parts[at];
    return text;
  }

  /** The index of event number `seq`, or -1. */
  find(seq) {
    const i = countUpTo(this.seq, seq) - 1;
    return i >= 0 && this.seq[i] === seq ? i : -1;
  }
}

/** One field of all lanes: the changes of each, after which event and to what. */
class Field {
  constructor(columns, story) {
    this.kind = columns.kind;
    this.story = story;
    this.to = columns.to;
    this.first = new Int32Array(columns.counts.length + 1);
    columns.counts.forEach((count, lane) => (this.first[lane + 1] = this.first[lane] + count));
    this.at = new Int32Array(columns.at.length); // -1 is before the first event
    for (let lane = 0; lane < columns.counts.length; lane++) {
      let at = -1;
      for (let i = this.first[lane]; i < this.first[lane + 1]; i++) this.at[i] = at += columns.at[i];
    }
  }

  /** The number of the change that counts for a lane after event `index`; -1 where there is none. */
  change(lane, index) {
    const i = countUpTo(this.at, index, this.first[lane], this.first[lane + 1]) - 1;
    return i >= this.first[lane] ? i : -1;
  }

  value(i) {
    if (i < 0) return null;
    const to = this.to[i];
    if (this.kind === "word") return to ? this.story.words[to - 1] : null;
    if (this.kind === "number") return to ? to - 1 : null;
    return to === null ? null : this.story.events.at[Math.max(this.at[i], 0)] + to;
  }

  then(lane, index) { return this.value(this.change(lane, index)); }
}

class Story {
  constructor(columns) {
    Object.assign(this, { journal: columns.journal, lanes: columns.lanes });
    this.services = columns.services;
    this.words = columns.words;
    this.whats = columns.whats.map(([type, kind, text]) => ({ type, kind, parts: text.split("\0") }));
    this.events = new Events(columns.events, this);
    this.elsewhere = new Events(columns.elsewhere, this);
    this.fields = {};
    for (const [name, field] of Object.entries(columns.fields)) this.fields[name] = new Field(field, this);
    this.laneOf = new Map(columns.services.slice(0, columns.lanes).map((name, lane) => [name, lane]));
    this.begin = this.events.axis[0];
    this.end = Math.max(this.events.axis[this.events.count - 1], this.begin + 1000);
    this.said = this.#said(columns.lines);
    this.written = this.#written(columns.written);
    this.ofLane = this.#byLane(() => true);
    this.marks = this.#byLane((i) => MARKED.includes(this.events.kind(i)));
    this.trouble = this.ofLane.map((all) => all.filter((i) => TROUBLE.has(this.events.kind(i))).length);
    this.allTrouble = [...Array(this.events.count).keys()].filter((i) => TROUBLE.has(this.events.kind(i)));
    this.idle = this.#idle();
    this.registry = this.#registry();
  }

  /** The last lines of runs, by service and run. */
  #said(lines) {
    return new Map(lines.map(([i, ...said]) => [`${this.events.service[i]}/${this.events.run[i]}`, said]));
  }

  /** The lines of log files, by service: when each was written, and its text. */
  #written({ service, at, text }) {
    const found = new Map();
    summed(at).forEach((time, i) => {
      const lines = found.get(service[i]) ?? { at: [], text: [] };
      lines.at.push(time);
      lines.text.push(text[i]);
      found.set(service[i], lines);
    });
    return found;
  }

  #byLane(isWanted) {
    const found = Array.from({ length: this.lanes }, () => []);
    for (let i = 0; i < this.events.count; i++) {
      const lane = this.events.service[i];
      if (lane >= 0 && lane < this.lanes && isWanted(i)) found[lane].push(i);
    }
    return found;
  }

  /** The times from an orderly end of a registry to the beginning of the next. */
  #idle() {
    const found = [];
    for (let i = 0; i < this.events.count; i++) {
      if (this.events.service[i] >= 0) continue;
      const type = this.events.type(i);
      if (type === "registry_stopped") found.push([this.events.axis[i], this.end]);
      if (type === "registry_started" && found.length) found.at(-1)[1] = Math.min(found.at(-1)[1], this.events.axis[i]);
    }
    return found;
  }

  /** When registries began and ended. */
  #registry() {
    const types = ["registry_started", "registry_stopped"];
    const all = [...this.events.service.keys()].filter((i) => this.events.service[i] < 0);
    return all.filter((i) => types.includes(this.events.type(i))).map((i) => this.events.axis[i]);
  }

  /** The index of the last event up to a time on the axis; 0 at least. */
  lastAt(time) { return Math.max(countUpTo(this.events.axis, time) - 1, 0); }

  /** What a service was after event `index`, by field. */
  then(lane, index) {
    return Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.then(lane, index)]));
  }

  /** Calls `tell(beginTime, endTime, value, i)` for each value of a field between two times. */
  stretches(name, lane, from, to, tell) {
    const field = this.fields[name];
    const end = field.first[lane + 1];
    const time = (i) => this.events.axis[Math.max(field.at[i], 0)];
    const start = field.change(lane, this.lastAt(from));
    for (let i = Math.max(start, field.first[lane]); i < end && time(i) <= to; i++) {
      const value = field.value(i);
      if (value !== null) tell(time(i), i + 1 < end ? time(i + 1) : this.end, value, i);
    }
  }

  /** The lanes that a lane needs, as [lane, condition]; a service without a lane is left out. */
  needs(lane, index) {
    const words = this.fields.needs.then(lane, index);
    if (!words) return [];
    return words.split(" ").map((word) => {
      const colon = word.lastIndexOf(":");
      return [this.laneOf.get(word.slice(0, colon)), word.slice(colon + 1)];
    }).filter(([needed]) => needed !== undefined);
  }

  /** The lanes that need a lane. */
  dependents(lane, index) {
    const field = this.fields.needs;
    return [...this.laneOf.values()].filter(
      (other) => field.change(other, index) >= 0 && this.needs(other, index).some(([needed]) => needed === lane),
    );
  }

  /** An event and what led to it, back to the root: [events, index] of each. */
  chain(i) {
    const found = [[this.events, i]];
    while (found.length < CHAIN_MAX) {
      const [events, at] = found.at(-1);
      const cause = this.bySeq(events.cause[at]);
      if (!cause) break;
      found.push(cause);
    }
    return found;
  }

  bySeq(seq) {
    if (!seq) return null;
    for (const events of [this.events, this.elsewhere]) {
      const i = events.find(seq);
      if (i >= 0) return [events, i];
    }
    return null;
  }

  /** The events that an event led to: their indices, by its number. */
  get effects() {
    if (!this._effects) {
      this._effects = new Map();
      this.events.cause.forEach((seq, i) => {
        if (!seq) return;
        if (this._effects.has(seq)) this._effects.get(seq).push(i);
        else this._effects.set(seq, [i]);
      });
    }
    return this._effects;
  }

  /** Which events hold all `words` (lower case) in their service's name or their text: 1 each. */
  search(words) {
    const hits = new Uint8Array(this.events.count);
    const names = this.services.map((name) => name.toLowerCase());
    for (let i = 0; i < hits.length; i++) {
      const name = this.events.service[i] < 0 ? "" : names[this.events.service[i]];
      if (words.every((word) => name.includes(word))) hits[i] = 1;
      else {
        const text = `${name} ${this.events.type(i)} ${this.events.text(i).toLowerCase()}`;
        if (words.every((word) => text.includes(word))) hits[i] = 1;
      }
    }
    return hits;
  }
}

// --- times in words ------------------------------------------------------------------------------------------

const SECOND = 1e6, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

/** A time in microseconds as 2026-01-02T03:04:05.678. */
function iso(time) {
  return new Date(Math.floor(time / 1000)).toISOString().replace("Z", "");
}

function clock(time) { return iso(time).slice(-12); }
function day(time) { return iso(time).slice(0, -13); }
function moment(time) { return `${day(time)} ${clock(time)}`; }

/** How long, in two units at most. */
function duration(time) {
  if (time < 1000) return `${Math.round(time)} µs`;
  if (time < SECOND) return `${Math.round(time / 1000)} ms`;
  if (time < MINUTE) return `${(time / SECOND).toFixed(time < 10 * SECOND ? 1 : 0)} s`;
  const units = [[DAY, "d"], [HOUR, "h"], [MINUTE, "min"], [SECOND, "s"]];
  const at = units.findIndex(([size]) => time >= size);
  const [[large, one], small] = [units[at], units[at + 1]];
  const rest = small ? Math.floor((time % large) / small[0]) : 0;
  return `${Math.floor(time / large)} ${one}${rest ? ` ${rest} ${small[1]}` : ""}`;
}
