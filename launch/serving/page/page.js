"use strict";
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
let about = null;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, isProblem) {
  const status = byId("status");
  status.textContent = text;
  status.classList.toggle("problem", Boolean(isProblem));
}

function number(value) {
  if (value === null || value === undefined) return "none";
  const rounded = value.toFixed(2);
  return value > 0 && about.classes.length === 0 ? `+${rounded}` : rounded;
}

async function problemOf(response) {
  try {
    const detail = (await response.json()).detail;
    return typeof detail === "string" ? detail : "the server cannot read the request";
  } catch {
    return `the server answers ${response.status}`;
  }
}

async function ask(place, options, waiting) {
  const buttons = document.querySelectorAll("button");
  buttons.forEach((button) => { button.dataset.was = button.disabled; button.disabled = true; });
  say(waiting);
  try {
    const response = await fetch(place, { method: "POST", ...options });
    if (!response.ok) throw new Error(await problemOf(response));
    show(await response.json());
    say("");
  } catch (error) {
    byId("result").hidden = true;
    say(error.message, true);
  } finally {
    buttons.forEach((button) => { button.disabled = button.dataset.was === "true"; });
  }
}

function part(id, isShown) {
  byId(id).hidden = !isShown;
}

function show(report) {
  byId("result").hidden = false;
  showHeadline(report);
  part("said-part", Boolean(report.transcript));
  byId("said").textContent = report.transcript;
  const shares = report.shares.length > 1 ? report.shares : [];
  part("shares-part", shares.length > 0);
  const widest = Math.max(0.01, ...shares.map((share) => Math.abs(share.share)));
  showBars("shares", shares.map((share) => [share.modality, share.share, share.share / widest]));
  const heads = Object.entries(report.by_modality);
  part("heads-part", heads.length > 0);
  const most = Math.max(Math.abs(about.low), Math.abs(about.high));
  showBars("heads", heads.map(([name, value]) => [name, value, value / most]));
  part("curve-part", report.curve.length > 0);
  showCurve(report.curve);
  showList("missing", report.not_found);
  showList("warnings", report.warnings);
  byId("answer").focus();
}

function showHeadline(report) {
  const classes = Object.entries(report.classes);
  const scale = byId("scale");
  scale.replaceChildren();
  part("classes", classes.length > 0);
  part("scale", report.score !== null);
  if (classes.length > 0) {
    const best = classes.reduce((one, other) => (other[1] > one[1] ? other : one));
    byId("headline").textContent = `${best[0]} (${(100 * best[1]).toFixed(0)} %)`;
    showBars("classes", classes.map(([name, share]) => [name, share, share]));
    return;
  }
  if (report.score === null) {
    byId("headline").textContent = "No score: nothing that the model reads was found.";
    return;
  }
  byId("headline").textContent = number(report.score);
  const place = (report.score - about.low) / (about.high - about.low);
  const mark = element("span", "mark");
  mark.style.left = `${100 * Math.min(1, Math.max(0, place))}%`;
  scale.append(
    element("span", "line"), mark,
    element("span", "low", about.low), element("span", "high", about.high),
  );
  scale.setAttribute(
    "aria-label", `${number(report.score)} on a scale from ${about.low} to ${about.high}`,
  );
}

function showBars(id, rows) {
  const cells = [];
  for (const [name, value, length] of rows) {
    const track = element("div", "track");
    const bar = element("span", `bar ${value < 0 ? "minus" : "plus"}`);
    const width = 100 * Math.min(1, Math.abs(length));
    const isSigned = id !== "classes";
    bar.style.width = `${isSigned ? width / 2 : width}%`;
    if (isSigned) bar.style[value < 0 ? "right" : "left"] = "50%";
    track.append(bar);
    const middle = element("dd");
    middle.append(track);
    middle.setAttribute("aria-hidden", "true");
    const shown = isSigned ? (value > 0 ? "+" : "") + value.toFixed(2) : `${(100 * value).toFixed(0)} %`;
    cells.push(element("dt", "", name), middle, element("dd", "number", shown));
  }
  byId(id).replaceChildren(...cells);
}

function showList(id, lines) {
  part(`${id}-part`, lines.length > 0);
  byId(id).replaceChildren(...lines.map((line) => element("li", "", line)));
}

function svg(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function showCurve(points) {
  const table = byId("curve-table");
  table.replaceChildren();
  byId("curve").replaceChildren();
  if (points.length === 0) return;
  const isClasses = about.classes.length > 0;
  const [low, high] = isClasses ? [0, 1] : [about.low, about.high];
  const end = points[points.length - 1].end;
  const width = byId("curve").clientWidth || 600;  // one unit is one pixel: letters stay legible
  const right = width - 10;
  const x = (seconds) => 34 + (seconds / end) * (right - 34);
  const y = (value) => 150 - ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * 130;
  const drawing = svg("svg", { viewBox: `0 0 ${width} 180`, role: "img", "aria-label": "the value over time; the table below has its numbers" });
  for (const value of [low, (low + high) / 2, high]) {
    drawing.append(svg("line", { class: "axis", x1: 34, x2: right, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: 2, y: y(value) + 4 }, value));
  }
  drawing.append(svg("text", { x: 34, y: 172 }, "0 s"));
  drawing.append(svg("text", { x: right, y: 172, "text-anchor": "end" }, `${end.toFixed(0)} s`));
  const known = points.filter((point) => point.value !== null);
  const places = known.map((point) => `${x((point.start + point.end) / 2)},${y(point.value)}`);
  drawing.append(svg("polyline", { class: "path", points: places.join(" ") }));
  for (const place of places) {
    const [cx, cy] = place.split(",");
    drawing.append(svg("circle", { class: "dot", cx, cy, r: 4 }));
  }
  byId("curve").replaceChildren(drawing);
  const header = element("tr");
  header.append(...["from", "to", isClasses ? "class" : "score", "seen"].map((name) => {
    const cell = element("th", "", name);
    cell.scope = "col";
    return cell;
  }));
  table.append(header);
  for (const point of points) {
    const row = element("tr");
    const value = isClasses && point.class !== null ? `${about.classes[point.class]} ${number(point.value)}` : number(point.value);
    const cells = [`${point.start.toFixed(0)} s`, `${point.end.toFixed(0)} s`, value, point.seen.join(", ") || "nothing"];
    row.append(...cells.map((text) => element("td", "", text)));
    table.append(row);
  }
}

function scoreSentence(event) {
  event.preventDefault();
  const text = byId("sentence").value;
  if (!text.trim()) return say("Write a sentence first.", true);
  return ask("/api/sentence", { headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text }) }, "Scoring the sentence…");
}

function scoreClip(event) {
  event.preventDefault();
  const file = byId("clip").files[0];
  if (!file) return say("Choose a clip first.", true);
  if (file.size > about.upload_limit) return say("The clip is too large.", true);
  const words = encodeURIComponent(byId("transcript").value);
  return ask(`/api/clip?transcript=${words}`, { headers: { "Content-Type": "application/octet-stream" }, body: file }, `Looking at ${file.name}…`);
}

function listenForDrops() {
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    byId("clip").files = event.dataTransfer.files;
  });
}

function disable(form, why) {
  for (const control of byId(form).elements) control.disabled = true;
  const reason = element("p", "quiet", why);
  byId(form).append(reason);
}

async function begin() {
  byId("sentence-form").addEventListener("submit", scoreSentence);
  byId("clip-form").addEventListener("submit", scoreClip);
  listenForDrops();
  about = await (await fetch("/api/about")).json();
  const kind = about.synthetic ? "; made-up data: its answers say nothing about people" : "";
  byId("model").textContent = `${about.model} trained on ${about.data}, reads ${about.modalities.join(", ")}${kind}`;
  byId("limit").textContent = `At most ${Math.floor(about.upload_limit / 1e6)} MB and ${about.seconds_limit} s of work.`;
  if (about.no_words) disable("sentence-form", about.no_words);
  if (about.no_clips) disable("clip-form", about.no_clips);
}

begin();
