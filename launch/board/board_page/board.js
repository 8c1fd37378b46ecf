// The board: a table of runs, and curves of those that are chosen. Asks again every few seconds.
"use strict";

const PERIOD = 4000; // milliseconds
const COLOURS = 7;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 380, HEIGHT = 230, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 36;
const COLUMNS = [
  { key: "chosen", title: "chosen" },
  { key: "id", title: "run", words: true },
  { key: "recipe", title: "recipe", words: true },
  { key: "dataset", title: "data", words: true },
  { key: "seed", title: "seed" },
  { key: "state", title: "state", words: true },
  { key: "epochs", title: "epochs" },
  { key: "score", title: "score" },
  { key: "seconds", title: "seconds" },
  { key: "changed", title: "changed" },
];

const chosen = new Set();
let runs = [];
let sortKey = "changed";
let ascending = false;

const byId = (name) => document.getElementById(name);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function ask(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

function scoreNames() {
  const names = new Set();
  for (const run of runs) for (const name of Object.keys(run.scores || {})) names.add(name);
  return [...names];
}

function updateScores() {
  const select = byId("score");
  const names = scoreNames();
  const before = select.value;
  if (names.join() === [...select.options].map((option) => option.value).join()) return;
  select.replaceChildren(...names.map((name) => {
    const option = element("option", name);
    option.value = name;
    return option;
  }));
  if (names.includes(before)) select.value = before;
}

function valueOf(run, key) {
  if (key === "score") return (run.scores || {})[byId("score").value];
  if (key === "chosen") return chosen.has(run.id) ? 1 : 0;
  return run[key];
}

function visible() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("state").value;
  const kept = runs.filter((run) => {
    const text = `${run.id} ${run.recipe} ${run.dataset} ${run.seed} ${run.state}`.toLowerCase();
    return (!state || run.state === state) && words.every((word) => text.includes(word));
  });
  const direction = ascending ? 1 : -1;
  return kept.sort((one, other) => {
    const a = valueOf(one, sortKey), b = valueOf(other, sortKey);
    if (a === undefined || a === null) return 1;
    if (b === undefined || b === null) return -1;
    return (a < b ? -1 : a > b ? 1 : 0) * direction;
  });
}

function drawHeads() {
  byId("heads").replaceChildren(...COLUMNS.map((column) => {
    const head = element("th", undefined, column.words ? "words" : "");
    head.scope = "col";
    if (column.key === sortKey) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const button = element("button", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      ascending = column.key === sortKey ? !ascending : Boolean(column.words);
      sortKey = column.key;
      draw();
    });
    head.append(button);
    return head;
  }));
}

function rowOf(run) {
  const row = element("tr");
  const choice = element("input");
  choice.type = "checkbox";
  choice.checked = chosen.has(run.id);
  choice.setAttribute("aria-label", `choose ${run.id}`);
  choice.dataset.run = run.id;
  choice.addEventListener("change", () => {
    if (choice.checked) chosen.add(run.id); else chosen.delete(run.id);
    draw();
    drawCurves();
  });
  const first = element("td");
  first.append(choice);
  const name = element("th", undefined, "words");
  name.scope = "row";
  const link = element("a", run.id);
  link.href = `pages/${run.id.split("/").map(encodeURIComponent).join("/")}/report.html`;
  name.append(run.state === "unreadable" ? element("span", run.id) : link);
  const score = valueOf(run, "score");
  const state = element("td", run.problem || run.state, `words ${run.state}`);
  row.append(
    first, name, element("td", run.recipe || "", "words"), element("td", run.dataset || "", "words"),
    element("td", run.seed ?? ""), state,
    element("td", run.of ? `${run.epochs} of ${run.of}` : ""),
    element("td", score === undefined ? "" : `${score.toFixed(4)} (${run.split})`),
    element("td", run.seconds === undefined ? "" : run.seconds.toFixed(0)),
    element("td", run.changed ? new Date(run.changed * 1000).toLocaleString() : ""),
  );
  return row;
}

function draw() {
  updateScores();
  drawHeads();
  const focused = document.activeElement?.dataset?.run;
  const shown = visible();
  byId("rows").replaceChildren(...shown.map(rowOf));
  if (focused) byId("rows").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  byId("count").textContent = `${shown.length} of ${runs.length} runs, ${chosen.size} chosen`;
  byId("compare").disabled = chosen.size < 2;
  byId("clear").disabled = chosen.size < 1;
}

function drawStudies(studies) {
  byId("studies").hidden = !studies.length;
  byId("study-list").replaceChildren(...studies.map((study) => {
    const item = element("li");
    if (study.page) {
      const link = element("a", study.title);
      const place = study.id === "." ? "" : `${study.id.split("/").map(encodeURIComponent).join("/")}/`;
      link.href = `pages/${place}report.html`;
      item.append(link, ` (${study.id})`);
    } else {
      item.textContent = `${study.title} (${study.id}, no table yet)`;
    }
    return item;
  }));
}

function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart(title, lines) {
  const points = lines.flatMap((line) => line.points);
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const lowX = Math.min(...xs), highX = Math.max(...xs), lowY = Math.min(...ys), highY = Math.max(...ys);
  const x = (value) => LEFT + (highX > lowX ? (value - lowX) / (highX - lowX) : .5) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (highY > lowY ? (value - lowY) / (highY - lowY) : .5) * (HEIGHT - TOP - BOTTOM);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} by epoch` });
  for (const part of [0, .5, 1]) {
    const value = lowY + part * (highY - lowY);
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { class: "tick end", x: LEFT - 6, y: y(value) + 4 }, Number(value.toPrecision(3))));
  }
  for (const value of new Set([lowX, highX])) {
    drawing.append(svg("text", { class: "tick middle", x: x(value), y: HEIGHT - BOTTOM + 17 }, value));
  }
  drawing.append(svg("text", { class: "label middle", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4 }, "epoch"));
  const legend = element("ul", undefined, "legend");
  lines.forEach((line, number) => {
    const colour = `c${number % COLOURS}`;
    const places = line.points.map((point) => `${x(point[0])},${y(point[1])}`).join(" ");
    drawing.append(svg("polyline", { class: `line ${colour}`, points: places }));
    for (const point of line.points) {
      const dot = svg("circle", { class: `point ${colour}`, cx: x(point[0]), cy: y(point[1]), r: 2.5 });
      dot.append(svg("title", {}, `${line.name} at ${point[0]}: ${point[1]}`));
      drawing.append(dot);
    }
    const item = element("li");
    const sample = svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
    sample.append(svg("line", { class: `line ${colour}`, x1: 0, x2: 24, y1: 4, y2: 4 }));
    item.append(sample, line.name);
    legend.append(item);
  });
  const figure = element("figure");
  figure.append(element("figcaption", title), drawing, legend);
  return figure;
}

async function drawCurves() {
  byId("curves").hidden = !chosen.size;
  if (!chosen.size) return;
  const query = [...chosen].map((name) => `run=${encodeURIComponent(name)}`).join("&");
  const found = await ask(`api/curves?${query}`);
  const keys = new Set(Object.values(found).flatMap((lines) => Object.keys(lines)));
  const charts = [...keys].map((key) => {
    const lines = Object.entries(found).filter(([, of]) => of[key]).map(([name, of]) => ({ name, points: of[key] }));
    return chart(key.startsWith("loss_") ? `training loss ${key.slice(5)}` : `validation ${key}`, lines);
  });
  byId("charts").replaceChildren(...charts);
}

async function refresh() {
  try {
    const found = await ask("api/runs");
    runs = found.runs;
    byId("folder").textContent = found.folder;
    for (const name of chosen) if (!runs.some((run) => run.id === name)) chosen.delete(name);
    drawStudies(found.studies);
    draw();
    await drawCurves();
  } catch (error) {
    byId("count").textContent = `the board does not answer: ${error.message}`;
  }
  setTimeout(refresh, PERIOD);
}

for (const name of ["words", "state", "score"]) byId(name).addEventListener("input", draw);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("compare").addEventListener("click", () => {
  const query = [...chosen].map((name) => `run=${encodeURIComponent(name)}`).join("&");
  window.open(`compare?${query}`, "_blank", "noopener");
});
byId("clear").addEventListener("click", () => { chosen.clear(); draw(); drawCurves(); });
refresh();
