"use strict";
// Keys and errors are strangers' words: they get into the page as textContent and in no other way.
const byId = (id) => document.getElementById(id);

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function time(s) {
  if (s <= 0) return "–";
  if (s < 0.001) return Math.round(s * 1e6) + " µs";
  if (s < 1) return (s * 1000).toPrecision(3) + " ms";
  if (s < 60) return s.toFixed(1) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + Math.floor(s % 60) + " s";
  return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
}

const count = (n) => n.toLocaleString("en");
const number = (text) => ({ text, name: "n" });
const key = (text) => text === "" ? { text: "(none)", name: "none" } : { text, name: "key" };

// Rows and cells are used again, so that what is selected or read aloud stays where it is.
function fill(id, rows, head) {
  const table = byId(id), body = table.tBodies[0];
  const columns = table.tHead.rows[0].cells.length;
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
        const cell = document.createElement(!empty && c === head ? "th" : "td");
        if (!empty && c === head) cell.scope = "row";
        row.append(cell);
      });
    }
    if (empty) row.cells[0].colSpan = columns;
    cells.forEach((cell, c) => {
      set(row.cells[c], cell.text);
      if (row.cells[c].className !== cell.name) row.cells[c].className = cell.name;
    });
  });
}

const plots = [
  { title: "Throughput", unit: (v) => count(v) + "/s", names: ["finished", "failed"], of: (h) => [h.finished, h.failed] },
  { title: "Wait", unit: time, names: ["mean", "longest"], of: (h) => [h.waitMean, h.waitMax] },
  { title: "Handler", unit: time, names: ["mean", "longest"], of: (h) => [h.handlerMean, h.handlerMax] },
];

const svg = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  return node;
};

for (const p of plots) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const title = document.createElement("strong");
  title.textContent = p.title;
  p.text = document.createElement("span");
  caption.append(title, " ", p.text);
  p.svg = svg("svg", { role: "img", viewBox: "0 0 179 100", preserveAspectRatio: "none" });
  p.lines = [svg("polyline", {}), svg("polyline", { class: "second" })];
  p.svg.append(...p.lines);
  figure.append(caption, p.svg);
  byId("plots").append(figure);
}

function plot(history) {
  for (const p of plots) {
    const series = p.of(history), top = Math.max(...series[0], ...series[1]);
    series.forEach((values, i) => p.lines[i].setAttribute("points",
      values.map((v, x) => x + "," + (top > 0 ? 99 - 97 * v / top : 99).toFixed(1)).join(" ")));
    const said = p.names.map((name, i) => name + (i ? " (dashed) " : " ") + p.unit(series[i].at(-1))).join(", ");
    set(p.text, said + ", top " + p.unit(top));
    p.svg.setAttribute("aria-label", p.title + " over three minutes: " + said + " in the last second; at most " + p.unit(top));
  }
}

const numbers = [
  ["Waiting", (f) => f.waiting], ["Active keys", (f) => f.activeKeys], ["Streams", (f) => f.openStreams],
  ["Succeeded", (f) => f.total.succeeded], ["Failed", (f) => f.total.failed], ["Rejected", (f) => f.total.rejected],
  ["Dropped", (f) => f.total.dropped], ["Retried", (f) => f.total.retried],
];
for (const n of numbers) {
  const group = document.createElement("div"), term = document.createElement("dt");
  n.push(document.createElement("dd"));
  term.textContent = n[0];
  group.append(term, n[2]);
  byId("numbers").append(group);
}

let failures;
function show(f) {
  for (const [, of, node] of numbers) set(node, count(of(f)));
  byId("load").hidden = f.capacity === 0;
  if (f.capacity > 0) {
    byId("load").max = f.capacity;
    byId("load").value = f.inFlight;
  }
  set(byId("inflight"), count(f.inFlight) + (f.capacity > 0 ? " of " + count(f.capacity) : ", unlimited"));
  byId("unobserved").hidden = f.observed;
  fill("keys", f.keys.map((k) => [key(k.key), number(count(k.waiting)),
    number(!k.running ? "–" : k.age > 0 ? time(k.age) : "runs")]), 0);
  fill("running", f.running.map((m) => [key(m.key), number(count(m.stream)), number(count(m.seq)),
    number(count(m.attempt)), number(time(m.age))]), 0);
  fill("streams", f.streams.map((s) => [number(count(s.id)), { text: s.peer, name: "" }, { text: s.method, name: "text" },
    number(time(s.age)), number(count(s.received)), number(count(s.pending)), number(count(s.committed))]), 0);
  fill("failures", f.failures.map((e) => [number(time(e.ago)), e.seq ? key(e.key) : { text: "(stream)", name: "none" },
    number(count(e.stream)), number(e.seq ? count(e.seq) : "–"), number(e.attempt ? count(e.attempt) : "–"),
    { text: e.kind.replace(/^Failure/, "") + (e.settled ? ", skipped" : ""), name: "" },
    { text: e.error, name: "text" }]), 1);
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
let source;
function connect() {
  source = new EventSource("?" + new URLSearchParams({ format: "events", flow: document.body.dataset.flow }));
  source.onmessage = (e) => {
    set(byId("status"), "Live");
    show(JSON.parse(e.data).flows[0]);
  };
  source.onerror = () => {
    set(byId("status"), source.readyState === EventSource.CLOSED ? "The Flow can't be read: reload" : "Connection lost: trying again");
  };
}

byId("pause").addEventListener("click", () => {
  const paused = byId("pause").getAttribute("aria-pressed") !== "true";
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    source?.close();
    set(byId("status"), "Paused");
  } else {
    connect();
  }
});

if (document.body.dataset.flow === "") {
  set(byId("status"), "Nothing to show");
  byId("pause").disabled = true;
} else {
  connect();
}
