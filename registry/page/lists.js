// What is read: long tables of which only the rows in view are made, and why an event happened.
"use strict";

const ROW = 26;
const BEYOND = 8; // rows that are made above and below those in view
const EFFECTS_MAX = 8, LOGS_MAX = 3, LINES_SHOWN = 12;

/** An element with properties and children; whatever comes from the journal is only ever text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A table of any length: `row(at)` gives the cells of one, `choose(at)` is told of clicks. */
class LongTable {
  constructor(scroll, { row, choose, act }) {
    Object.assign(this, { scroll, row, count: 0, chosen: -1 });
    this.table = scroll.querySelector("table");
    this.body = scroll.querySelector("tbody");
    this.columns = scroll.querySelectorAll("thead th").length;
    scroll.addEventListener("scroll", () => this.#fill(), { passive: true });
    new ResizeObserver(() => this.#fill()).observe(scroll);
    this.body.addEventListener("click", ({ target }) => {
      const at = target.closest("tr")?.dataset.at;
      if (at !== undefined) choose(Number(at), true);
    });
    this.table.addEventListener("keydown", (event) => this.#key(event, choose, act));
  }

  #key(event, choose, act) {
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.count, End: this.count };
    if (event.key === "Enter" && this.chosen >= 0) act(this.chosen);
    else if (event.key in steps && this.count && !event.shiftKey) {
      choose(Math.min(this.count - 1, Math.max(0, this.chosen + steps[event.key])), false);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Show `count` rows with one of them chosen (or none, -1), which is brought into view. */
  show(count, chosen, { follow = true } = {}) {
    Object.assign(this, { count, chosen });
    this.table.setAttribute("aria-rowcount", count + 1);
    this.#fill();
    if (follow && chosen >= 0) this.#reveal(chosen);
  }

  #reveal(at) {
    const head = this.scroll.querySelector("thead:not(.unseen)")?.offsetHeight ?? 0;
    const view = this.scroll.clientHeight - head;
    const top = at * ROW;
    if (top < this.scroll.scrollTop || top + ROW > this.scroll.scrollTop + view) {
      this.scroll.scrollTop = Math.max(0, top - view / 2);
      this.#fill();
    }
  }

  #fill() {
    const first = Math.max(0, Math.min(Math.floor(this.scroll.scrollTop / ROW), this.count) - BEYOND);
    const end = Math.min(this.count, first + Math.ceil(this.scroll.clientHeight / ROW) + 2 * BEYOND);
    const rows = [];
    for (let at = first; at < end; at++) rows.push(this.#row(at));
    this.body.replaceChildren(this.#space(first), ...rows, this.#space(this.count - end));
    const active = this.body.querySelector("[aria-selected=true]");
    if (active) this.table.setAttribute("aria-activedescendant", active.id);
    else this.table.removeAttribute("aria-activedescendant");
  }

  #space(rows) {
    const cell = element("td", { colSpan: this.columns });
    cell.style.height = `${rows * ROW}px`;
    return element("tr", { className: "space", "aria-hidden": "true" }, cell);
  }

  #row(at) {
    const row = this.row(at);
    row.id = `${this.scroll.id}-${at}`;
    row.dataset.at = at;
    row.setAttribute("aria-rowindex", at + 2);
    row.setAttribute("aria-selected", at === this.chosen);
    return row;
  }
}

// --- rows ----------------------------------------------------------------------------------------------------

function cell(text, properties = {}) {
  const { children = [], ...rest } = properties;
  return element("td", { title: text, ...rest }, ...children, text);
}

/** A service as it was after event `index`. */
function serviceRow(story, colours, lane, index) {
  const then = story.then(lane, index);
  if (!then.status) {
    const gone = cell("not declared", { colSpan: 7, className: "faint" });
    return element("tr", {}, cell(story.services[lane]), gone);
  }
  const number = (value) => cell(value === null ? "–" : String(value), { className: "number" });
  return element("tr", {},
    cell(story.services[lane]),
    cell(then.status, { children: [swatch(colours, then.status)] }),
    cell(then.health ?? "–", { className: then.health === "unhealthy" ? "unhealthy" : "" }),
    number(then.pid), number(then.run), number(then.restarts),
    cell(then.since === null ? "–" : since(then.since, story.events.at[index])),
    cell(reason(then)),
  );
}

/** A time, and its day where that is another than that of the moment. */
function since(time, now) {
  return day(time) === day(now) ? clock(time) : moment(time).slice(5, 19);
}

function reason(then) {
  const more = [
    then.waiting_for && `waits for ${then.waiting_for}`,
    then.next_restart_at !== null && `next start ${clock(then.next_restart_at)}`,
    then.message,
    then.wanted === "down" && then.status !== "Stopped" && "wanted down",
  ];
  return [then.reason.replaceAll("_", " "), ...more.filter(Boolean)].join("; ");
}

function eventRow(story, colours, i, now) {
  const { events } = story;
  const manyDays = day(story.begin) !== day(story.end);
  const time = manyDays ? moment(events.at[i]).slice(5) : clock(events.at[i]);
  const kind = events.kind(i);
  const signs = MARKED.includes(kind) ? [swatch(colours, kind)] : [];
  return element("tr", { className: i > now ? "later" : "" },
    cell(time, { title: `event ${events.seq[i]}, ${moment(events.at[i])} UTC` }),
    element("td", {}, ...signs, ...(signs.length ? [unseen(MARK_WORDS[kind])] : [])),
    cell(events.name(i) || "registry", { className: events.name(i) ? "" : "faint" }),
    cell(events.text(i)),
  );
}

function unseen(text) {
  return element("span", { className: "unseen" }, text);
}

// --- why -----------------------------------------------------------------------------------------------------

/** Why event `i` happened: what led to it back to the root, what it led to, what its run said last. */
function whyPanel(story, i, { go, close }) {
  const { events } = story;
  const chain = story.chain(i);
  const parts = [
    element("button", { type: "button", className: "close", ariaLabel: "Close", onclick: close }, "×"),
    element("h2", {}, `${events.name(i) || "registry"}, ${clock(events.at[i])}`),
    element("p", { className: "say" }, `${events.text(i)} `, element("span", { className: "faint" }, `#${events.seq[i]}`)),
  ];
  if (chain.length > 1) {
    const causes = chain.slice(1).map(([from, at]) => whyLine(story, from, at, go));
    parts.push(element("h3", {}, "because"), element("ol", { className: "because" }, ...causes));
  }
  parts.push(element("p", { className: "faint root" }, rootWords(story, chain)));
  const effects = story.effects.get(events.seq[i]) ?? [];
  if (effects.length) {
    const lines = effects.slice(0, EFFECTS_MAX).map((at) => whyLine(story, events, at, go));
    const more = effects.length - lines.length;
    if (more > 0) lines.push(element("li", { className: "faint" }, `and ${more} more`));
    parts.push(element("h3", {}, "led to"), element("ul", {}, ...lines));
  }
  parts.push(...lastWords(story, chain));
  return element("div", {}, ...parts);
}

function rootWords(story, chain) {
  const [events, at] = chain.at(-1);
  const isBefore = events !== story.events && events.type(at) === "probe_changed"; // owed to a run that is not known here
  if (events.cause[at] || isBefore) return "What led to that is not in this report.";
  return chain.length > 1 ? "Nothing in the journal led to that: it is the root." : "Nothing in the journal led to it.";
}

function whyLine(story, events, at, go) {
  const text = [
    element("span", { className: "faint" }, `${clock(events.at[at])} `),
    element("b", {}, events.name(at) || "registry"),
    ` ${events.text(at)} `,
    element("span", { className: "faint" }, `#${events.seq[at]}`),
  ];
  if (events !== story.events) return element("li", {}, ...text, element("span", { className: "faint" }, " (outside of this report)"));
  return element("li", {}, element("button", { type: "button", onclick: () => go(at) }, ...text));
}

/** What the services of a chain wrote up to then: of log files, where there are any; else what runs said last. */
function lastWords(story, chain) {
  const [events, i] = chain[0];
  const services = [...new Set(chain.map(([from, at]) => from.service[at]))].filter((each) => story.written.has(each));
  if (services.length) return services.slice(0, LOGS_MAX).flatMap((each) => logLines(story, each, events.at[i]));
  for (const [from, at] of chain) {
    const lines = from.run[at] ? story.said.get(`${from.service[at]}/${from.run[at]}`) : undefined;
    if (lines) {
      const title = `last lines of ${from.name(at)}, run ${from.run[at]}`;
      return [element("h3", {}, title), element("pre", {}, lines.join("\n"))];
    }
  }
  return [];
}

/** The last lines of a service's log that were written up to a time. */
function logLines(story, service, time) {
  const { at, text } = story.written.get(service);
  const end = countUpTo(at, time);
  const lines = [];
  for (let i = Math.max(0, end - LINES_SHOWN); i < end; i++) lines.push(`${clock(at[i])}  ${text[i]}`);
  const title = `log of ${story.services[service]} up to then`;
  return [element("h3", {}, title), element("pre", {}, lines.length ? lines.join("\n") : "nothing")];
}
