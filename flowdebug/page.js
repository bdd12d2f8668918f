"use strict";
// Keys and errors are strangers' words: they get into the page as textContent and in no other way.
const byId = (id) => document.getElementById(id);

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function make(parent, name, className = "") {
  const node = document.createElement(name);
  node.className = className;
  parent.append(node);
  return node;
}

function time(s) {
  if (s <= 0) return "–";
  if (s < 0.0009995) return Math.round(s * 1e6) + " µs";
  if (s < 0.9995) return Number((s * 1000).toPrecision(3)) + " ms";
  if (s < 59.95) return s.toFixed(1) + " s";
  s = Math.round(s);
  if (s < 3600) return Math.floor(s / 60) + " min " + s % 60 + " s";
  return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
}

const count = (n) => n.toLocaleString("en");
const number = (text) => ({ text, name: "n" });
const key = (text) => text === "" ? { text: "(none)", name: "none" } : { text, name: "key" };

// Rows and cells are used again, so that what is selected or read aloud stays where it is. head is the column that names
// the row; all is how many rows there would be.
function fill(id, rows, head, all) {
  const table = byId(id), body = table.tBodies[0];
  const columns = table.tHead.rows[0].cells.length;
  set(byId("n-" + id), all > rows.length ? count(rows.length) + " of " + count(all) : "");
  const empty = rows.length === 0;
  if (empty) rows = [[{ text: "None", name: "none" }]];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, i) => {
    let row = body.rows[i];
    if (row && row.cells.length !== cells.length) {
      row.remove();
      row = undefined;
    }
    if (!row) {
      row = body.insertRow(i);
      cells.forEach((_, c) => {
        const cell = make(row, !empty && c === head ? "th" : "td");
        if (!empty && c === head) cell.scope = "row";
        if (empty) cell.colSpan = columns;
      });
    }
    cells.forEach((cell, c) => {
      set(row.cells[c], cell.text);
      if (row.cells[c].className !== cell.name) row.cells[c].className = cell.name;
    });
  });
}

// Times span decades, so theirs are logarithmic: a mean of milliseconds shows below a longest of seconds.
const plots = [
  { title: "Throughput", unit: (v) => count(v) + "/s", scale: linear, names: ["finished", "failed"], of: (h) => [h.finished, h.failed] },
  { title: "Wait for turn and slot", unit: time, scale: logarithmic, names: ["mean", "longest"], of: (h) => [h.waitMean, h.waitMax] },
  { title: "Handler", unit: time, scale: logarithmic, names: ["mean", "longest"], of: (h) => [h.handlerMean, h.handlerMax] },
  { title: "Batch size", unit: count, scale: linear, names: ["mean", "largest"], of: (h) => h.batchMean.length ? [h.batchMean, h.batchMax] : undefined },
];

// A scale has the values to draw a line at, and says how high a value is, from 0 to 1; undefined is not at all.
function linear(top) {
  let step = 10 ** Math.floor(Math.log10(Math.max(top, 1)));
  if (top / step > 5) step *= 5;
  else if (top / step > 2) step *= 2;
  const lines = [0, step];
  while (lines.at(-1) < top) lines.push(lines.at(-1) + step);
  return { lines, height: (v) => v / lines.at(-1) };
}

function logarithmic(top, bottom) {
  const high = Math.max(-5, Math.ceil(Math.log10(top || 1)));
  const low = Math.max(-6, Math.min(Math.floor(Math.log10(bottom)), high - 1)); // from a microsecond
  const lines = [];
  for (let e = low; e <= high; e += Math.ceil((high - low) / 4)) lines.push(10 ** e);
  return { lines, height: (v) => v > 0 ? Math.max(0, (Math.log10(v) - low) / (high - low)) : undefined };
}

const svg = (parent, name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  parent.append(node);
  return node;
};

for (const p of plots) {
  const figure = make(byId("plots"), "figure"), caption = make(figure, "figcaption");
  make(caption, "strong").textContent = p.title;
  p.legend = [make(caption, "span"), make(caption, "span", "second")];
  p.area = make(figure, "div", "plot");
  p.svg = svg(p.area, "svg", { role: "img", viewBox: "0 0 179 100", preserveAspectRatio: "none" });
  p.paths = ["grid", "", "second"].map((name) => svg(p.svg, "path", { class: name }));
  const axis = make(figure, "div", "axis");
  make(axis, "span").textContent = "3 min ago";
  make(axis, "span").textContent = "now";
}

function plot(history) {
  for (const p of plots) {
    const series = p.of(history);
    p.area.parentNode.hidden = !series;
    if (!series) continue;
    const all = series.flat().filter((v) => v > 0);
    const { lines, height } = p.scale(Math.max(0, ...all), Math.min(Infinity, ...all));
    const y = (v) => (100 - 100 * height(v)).toFixed(1);
    const drawn = series.map((values) => values.map((v, x) => height(v) === undefined ? "" :
      (x > 0 && height(values[x - 1]) !== undefined ? "L" : "M") + x + "," + y(v) + "h0").join(""));
    [lines.map((v) => "M0," + y(v) + "H179").join(""), ...drawn].forEach((d, i) => p.paths[i].setAttribute("d", d));
    lines.forEach((v, i) => {
      const label = p.area.getElementsByTagName("span")[i] ?? make(p.area, "span");
      label.style.top = y(v) + "%";
      set(label, v === 0 ? "0" : p.unit(v).replace(".0 ", " "));
    });
    while (p.area.getElementsByTagName("span").length > lines.length) p.area.lastChild.remove();
    const said = p.names.map((name, i) => name + " " + p.unit(series[i].at(-1)));
    said.forEach((text, i) => set(p.legend[i], text));
    p.svg.setAttribute("aria-label", p.title + " over three minutes: in the last second " + said.join(", ") +
      "; at most " + p.unit(Math.max(...series[1], ...series[0])));
  }
}

const numbers = [
  ["Waiting", (f) => f.waiting], ["Active keys", (f) => f.activeKeys], ["Streams", (f) => f.openStreams],
  ["Succeeded", (f) => f.total.succeeded], ["Retried", (f) => f.total.retried],
  ["Failed", (f) => f.total.failed, "lost"], ["Rejected", (f) => f.total.rejected, "lost"], ["Dropped", (f) => f.total.dropped, "lost"],
].map(([title, of, name]) => {
  const group = make(byId("numbers"), "div");
  make(group, "dt").textContent = title;
  return { of, name, node: make(group, "dd") };
});

let failures;
function show(f) {
  for (const { of, name, node } of numbers) {
    set(node, count(of(f)));
    node.className = name && of(f) > 0 ? name : "";
  }
  const load = byId("load");
  load.hidden = f.capacity === 0;
  if (f.capacity > 0) {
    load.max = f.capacity;
    load.high = 0.9 * f.capacity;
    load.value = f.calls;
  }
  set(byId("inflight"), count(f.calls) + (f.capacity > 0 ? " of " + count(f.capacity) : ", unlimited") +
    (f.inFlight > f.calls ? " calls, of " + count(f.inFlight) + " messages" : ""));
  byId("unobserved").hidden = f.observed;
  byId("h-plots").parentNode.hidden = !f.observed;
  fill("keys", f.keys.map((k) => [key(k.key), number(count(k.waiting)),
    number(!k.running ? "–" : k.age > 0 ? time(k.age) : "runs")]), 0, f.activeKeys);
  fill("running", f.running.map((m) => [key(m.key), number(time(m.age)), number(count(m.attempt)),
    number(count(m.stream)), number(count(m.seq))]), 0, f.inFlight);
  fill("streams", f.streams.map((s) => [number(count(s.id)), number(count(s.pending)), number(count(s.received)),
    number(count(s.committed)), number(time(s.age)), { text: s.peer, name: "" }, { text: s.method, name: "" }, { text: s.session || "–", name: "" }]), 0, f.openStreams);
  fill("failures", f.failures.map((e) => [number(time(e.ago)), e.seq ? key(e.key) : { text: "(stream)", name: "none" },
    { text: e.kind.replace(/^Failure/, "") + (e.settled ? ", skipped" : ""), name: "" }, { text: e.error, name: "text" },
    number(e.attempt ? count(e.attempt) : "–"), number(count(e.stream)), number(e.seq ? count(e.seq) : "–")]), 1, f.failuresSoFar);
  if (failures !== undefined && f.failuresSoFar > failures) {
    const row = byId("failures").tBodies[0].rows[0];
    row.classList.remove("new");
    void row.offsetWidth; // so that the animation begins anew
    row.classList.add("new");
  }
  failures = f.failuresSoFar;
  if (f.history) plot(f.history);
}

// The status is read aloud, so it changes only when the connection does.
function say(state, text) {
  document.body.dataset.state = state;
  set(byId("status"), text);
}

const clock = () => new Date().toLocaleTimeString();
const silence = 5000; // ms without news after which a connection is given up: a dead network says nothing
let source, silent, heard;

// begin connects for the first time, or after a pause.
function begin() {
  heard = undefined;
  say("connecting", "Connecting");
  connect();
}

function connect() {
  disconnect();
  silent = setTimeout(connect, silence);
  if (heard) say("lost", "Connection lost at " + heard + ": trying again");
  source = new EventSource("?" + new URLSearchParams({ format: "events", flow: document.body.dataset.flow }));
  source.onmessage = (e) => {
    clearTimeout(silent);
    silent = setTimeout(connect, silence);
    show(JSON.parse(e.data).flows[0]);
    document.querySelector("main").hidden = false;
    heard = clock();
    say("live", "Live");
  };
  source.onerror = () => say("lost", heard ? "Connection lost at " + heard + ": trying again" : "No connection: trying again");
}

function disconnect() {
  clearTimeout(silent);
  source?.close();
}

const paused = () => byId("pause").getAttribute("aria-pressed") === "true";

byId("pause").addEventListener("click", () => {
  byId("pause").setAttribute("aria-pressed", String(!paused()));
  if (paused()) {
    disconnect();
    say("paused", "Paused at " + clock());
  } else {
    begin();
  }
});

// A page that nobody sees asks for nothing: a browser has few connections for one server.
document.addEventListener("visibilitychange", () => {
  if (document.body.dataset.flow === "" || paused()) return;
  if (document.hidden) disconnect();
  else begin();
});

if (document.body.dataset.flow === "") {
  say("paused", "Nothing to show");
  byId("pause").disabled = true;
} else {
  begin();
}
