/* Draws each section[data-figure] from the data beside it: controls, charts, table, CSV.
   Names and texts reach the page as textContent only. */
(() => {
"use strict";

const WIDE = 900; // what the wide specs need; narrower places get the narrow ones

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* Columns of the JSON: plain lists, or {names, codes} where values repeat. */
function column(data, name) {
  const stored = data.rows[name];
  return Array.isArray(stored) ? stored : stored.codes.map((code) => stored.names[code]);
}

function rowsOf(data) {
  const names = data.columns.map((one) => one.name);
  const columns = names.map((name) => column(data, name));
  const length = columns.length ? columns[0].length : 0;
  return Array.from({ length }, (_, i) =>
    Object.fromEntries(names.map((name, j) => [name, columns[j][i]])));
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/* The data of a figure: gzipped JSON in base64. */
function unpacked(name) {
  const stored = bytes(document.getElementById(`data-${name}`).textContent);
  const stream = new Blob([stored]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/* One tip for definitions of columns and for marks of charts. */
const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight, view = document.documentElement;
  const left = Math.min(Math.max(x + 12, 8), view.clientWidth - width - 8);
  const below = y + 18 + height < view.clientHeight;
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${(below ? y + 18 : Math.max(8, y - height - 12)) + window.scrollY}px`;
}
function hideTip() { tip.hidden = true; }
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
function defines(element, word) {
  const entry = document.getElementById(`word-${word}`);
  if (!entry) return;
  const text = entry.nextElementSibling.textContent;
  const show = () => {
    const box = element.getBoundingClientRect();
    showTip(text, box.left, box.bottom - 12);
  };
  element.setAttribute("aria-describedby", "tip");
  for (const name of ["mouseenter", "focus"]) element.addEventListener(name, show);
  for (const name of ["mouseleave", "blur"]) element.addEventListener(name, hideTip);
}
for (const link of document.querySelectorAll("a.term")) defines(link, link.hash.slice(6));

function written(value) {
  return value === null || value === undefined ? "-" : String(value);
}

function onMark(_, event, __, value) {
  if (value === null || value === undefined || value === "") return hideTip();
  const lines = typeof value === "object"
    ? Object.entries(value).map(([name, part]) => `${name}: ${written(part)}`) : [String(value)];
  showTip(lines.join("\n"), event.clientX, event.clientY);
}

/* A spreadsheet would run a cell that begins like a formula. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = value === null || value === undefined ? "" : String(value);
  return `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
}
function download(name, columns, rows) {
  const lines = [columns.map((one) => csvCell(one.name)).join(",")];
  for (const row of rows) lines.push(columns.map((one) => csvCell(row[one.name])).join(","));
  const content = "\uFEFF" + lines.join("\r\n") + "\r\n"; // Excel takes what has no mark for ANSI
  const blob = new Blob([content], { type: "text/csv;charset=utf-8" });
  const link = make("a", { href: URL.createObjectURL(blob), download: `${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function compare(a, b) {
  const blank = (value) => value === null || value === undefined || value === "";
  if (blank(a) || blank(b)) return blank(a) - blank(b); // what is missing comes last
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function table(columns, rows, label) {
  const body = make("tbody");
  const fill = (sorted) => body.replaceChildren(...sorted.map((row) =>
    make("tr", {}, ...columns.map(({ name, kind }) => {
      const cell = make("td", kind === "number" ? { class: "number" } : { dir: "auto" });
      cell.textContent = written(row[name]);
      return cell;
    }))));
  const heads = columns.map(({ name, title, kind, word }) => {
    const button = make("button", { type: "button" }, title);
    if (word) defines(button, word);
    const head = make("th", { scope: "col", ...(kind === "number" && { class: "number" }) }, button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = rows.map((row, i) => [row[name], i]);
      order.sort((a, b) => {
        const way = compare(a[0], b[0]);
        const missing = [a[0], b[0]].some((value) => value === null || value === "");
        return (down && !missing ? -way : way) || a[1] - b[1];
      });
      fill(order.map(([, i]) => rows[i]));
    });
    return head;
  });
  fill(rows);
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label },
    make("table", { "aria-label": label }, make("thead", {}, make("tr", {}, ...heads)), body));
}

/* Moving figures: one layer, pooling and language of all models at a time. */
const frames = {
  /* Points of texts: int8 [layer, pooling, text, 2] in units of the layer's reach / 127. */
  points(moving, at) {
    const [first, last] = moving.spans[at.lang];
    const i_cell = at.layer * moving.pooling.length + at.pooling;
    const reach = moving.reach[i_cell][at.lang];
    const total = moving.labels.length;
    const signals = { reach };
    return moving.model.map((model, i_model) => {
      const values = new Int8Array(moving.blobs[i_model][at.pooling].buffer);
      const rows = [];
      for (let i = first; i < last; i += 1) {
        const place = 2 * (at.layer * total + i);
        if (values[place] === -128) continue; // not finite
        const row = {
          model, text: moving.names[moving.labels[i]],
          x: values[place] / 127 * reach, y: values[place + 1] / 127 * reach,
        };
        if (moving.texts) row.words = moving.texts[i];
        rows.push(row);
      }
      return { title: model, rows, signals };
    });
  },
  /* Numbers of texts: uint32 [layer, pooling, lang, label, bin] for each model. */
  bins(moving, at) {
    const n = moving.bins;
    const i_cell = at.layer * moving.pooling.length + at.pooling;
    const [low, high] = moving.ends[i_cell][at.lang];
    const start = (i_cell * moving.lang.length + at.lang) * 2 * n;
    const shares = moving.model.map((_, i_model) => {
      const counts = new Uint32Array(moving.blobs[i_model].buffer).subarray(start, start + 2 * n);
      return [0, 1].map((label) => {
        const own = Array.from(counts.subarray(label * n, (label + 1) * n));
        const sum = own.reduce((a, b) => a + b, 0);
        return own.map((count) => (sum ? count / sum : 0));
      });
    });
    const signals = { low, high, top: Math.max(0.01, ...shares.flat(2)) };
    return moving.model.map((model, i_model) => {
      const rows = [];
      for (const label of [0, 1]) {
        shares[i_model][label].forEach((share, bin) => rows.push({
          model, text: moving.names[label], share: Math.round(share * 1e4) / 1e4,
          from: low + (high - low) * bin / n, to: low + (high - low) * (bin + 1) / n,
        }));
      }
      return { title: model, rows, signals };
    });
  },
};

const options = {
  mode: "vega-lite", actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: onMark,
};

class Figure {
  constructor(section, data) {
    this.section = section;
    this.name = section.dataset.figure;
    this.heading = section.querySelector("h2").textContent;
    this.data = data;
    this.rows = rowsOf(this.data);
    this.moving = this.data.moving; // of each store
    for (const own of this.moving || []) {
      const decoded = (blob) => Array.isArray(blob) ? blob.map(bytes) : bytes(blob);
      own.blobs = own.blobs.map(decoded);
    }
    this.at = {}; // places of what is chosen
    this.said = {}; // and their names
    this.views = [];
    this.charts = section.querySelector(".charts");
    this.caption = section.querySelector("figcaption");
    this.details = section.querySelector("details.table");
    this.place = section.querySelector(".controls");
    this.place.append(...this.controls(this.data.choices));
    this.controlsOfStore();
    this.details.addEventListener("toggle", () => this.showTable());
    this.label();
  }

  /* In a figure with a slider each store has its own layers and languages. */
  choices() {
    return this.moving ? [...this.data.choices, ...this.moving[this.at.store].choices] : this.data.choices;
  }

  controlsOfStore() {
    for (const old of this.ofStore || []) old.remove();
    this.ofStore = this.moving ? this.controls(this.moving[this.at.store].choices) : [];
    this.place.append(...this.ofStore);
    this.place.hidden = !this.place.childElementCount;
  }

  /* Controls of choices; a name that was chosen stays chosen where it is known. */
  controls(choices) {
    return choices.flatMap(({ name, title, values, start }) => {
      const known = this.moving && name === "layer";
      this.at[name] = values.includes(this.said[name]) ? values.indexOf(this.said[name]) : start;
      if (values.length < 2) return [];
      const input = known
        ? make("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: this.at[name] })
        : make("select", {}, ...values.map((value, i) => make("option", { value: i }, String(value))));
      input.value = this.at[name];
      const heading = make("span", {}, title);
      const say = () => {
        if (!known) return;
        heading.textContent = `${title}: ${values[this.at[name]]}`;
        input.setAttribute("aria-valuetext", values[this.at[name]]);
      };
      say();
      input.addEventListener("input", () => {
        this.at[name] = Number(input.value);
        this.said[name] = values[this.at[name]];
        say();
        if (name === "store") this.controlsOfStore();
        this.change(name === "store");
      });
      return [make("label", known ? { class: "slider" } : {}, heading, input)];
    });
  }

  /* The rows of what is chosen. */
  chosen() {
    const choices = this.choices();
    return this.rows.filter((row) => choices.every(({ name, values }) =>
      !(name in row) || row[name] === null || row[name] === values[this.at[name]]));
  }

  panels() {
    if (this.moving) {
      const moving = this.moving[this.at.store];
      return frames[moving.kind](moving, this.at)
        .map((panel) => ({ ...panel, spec: this.data.specs[this.wide() ? 0 : 1] }));
    }
    const key = this.data.choices.map(({ name }) => this.at[name]).join(" ");
    const { specs, caption, missing } = this.data.charts[key];
    this.caption.textContent = missing ? `Nothing to show: ${missing}` : caption;
    if (!specs) return [];
    return [{ spec: this.data.specs[specs[this.wide() ? 0 : 1]], rows: this.chosen(), signals: {} }];
  }

  wide() { return this.section.clientWidth >= WIDE; }

  /* Of two drawings at a time only the later one stays, whichever ends first. */
  async draw() {
    this.drawnWide = this.wide();
    const turn = this.turn = 1 + (this.turn || 0);
    for (const view of this.views) view.finalize();
    this.views = [];
    const panels = this.panels();
    const places = panels.map(() => make("div", { class: "chart" }));
    this.charts.replaceChildren(...places);
    const views = await Promise.all(panels.map(async ({ spec, rows, signals, title }, i) => {
      const whole = structuredClone(spec);
      whole.description = title ? `${this.heading}: ${title}` : this.heading; // the chart's name when it is read aloud
      if (title) whole.title = { text: title, limit: 300, anchor: "start" };
      whole.datasets = { rows };
      for (const param of whole.params || []) {
        if (param.name in signals) param.value = signals[param.name];
      }
      const { view } = await window.vegaEmbed(places[i], whole, options);
      return view;
    }));
    if (turn !== this.turn) {
      for (const view of views) view.finalize();
      return;
    }
    this.views = views;
    for (const place of places) {
      if (place.scrollWidth > place.clientWidth + 1) {
        place.tabIndex = 0; // so that a keyboard can scroll it
        place.setAttribute("role", "group");
        place.setAttribute("aria-label", `${this.heading}, scrolls sideways`);
      }
    }
    this.section.dataset.drawn = 1 + Number(this.section.dataset.drawn || 0);
  }

  async change(otherModels) {
    hideTip();
    if (this.moving && this.views.length && !otherModels) {
      await Promise.all(this.panels().map(({ rows, signals }, i) => {
        const view = this.views[i];
        for (const [name, value] of Object.entries(signals)) view.signal(name, value);
        return view.data("rows", rows).runAsync();
      }));
      this.section.dataset.drawn = 1 + Number(this.section.dataset.drawn);
    } else {
      await this.draw();
    }
    this.label();
    this.showTable();
  }

  label() {
    const rows = this.chosen().length;
    this.details.querySelector("summary").textContent =
      `Table of this figure: ${rows} ${rows === 1 ? "row" : "rows"}, and CSV`;
  }

  showTable() {
    for (const old of [...this.details.children].slice(1)) old.remove();
    if (!this.details.open) return;
    const rows = this.chosen(), { columns } = this.data;
    const button = make("button", { type: "button", class: "button" }, "Download all rows as CSV");
    button.setAttribute("aria-label", `Download all rows as CSV: ${this.heading}`);
    button.addEventListener("click", () => download(this.name, columns, this.rows));
    this.details.append(table(columns, rows, `Table: ${this.heading}`), button);
  }
}

async function main() {
  const figures = [];
  for (const section of document.querySelectorAll("section[data-figure]")) {
    try {
      const figure = new Figure(section, await unpacked(section.dataset.figure));
      figures.push(figure);
      await figure.draw();
    } catch (error) {
      section.querySelector("figcaption").textContent =
        `This browser cannot draw the figure (${error.message}). Open the page in a newer one.`;
    }
    await new Promise((resume) => setTimeout(resume)); // what a reader does comes first
  }
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const figure of figures) if (figure.drawnWide !== figure.wide()) figure.draw();
    }, 150);
  });
  performance.mark("drawn");
  document.documentElement.dataset.ready = "yes";
}
main();
})();
