"use strict";
// Text from a run reaches the page as text nodes only: nothing here reads or writes HTML.

const state = { run: null, clients: null, history: { rounds: [] }, log: { lines: [] } };
const view = { byBytes: false, skew_s: 0, connected: false, heard_s: 0 };
const at = id => document.getElementById(id);
const isOver = () => Boolean(state.run) && ["completed", "failed", "stopped"].includes(state.run.phase);
const now_s = () => Date.now() / 1000 + view.skew_s;

// ---- numbers, as the terminal writes them

const BYTE_UNITS = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];

function size(bytes) {
  const [divisor, unit] = BYTE_UNITS.find(([least]) => bytes >= 0.9995 * least) ?? [1, "B"];
  return `${divisor > 1 ? Number((bytes / divisor).toPrecision(3)) : Math.round(bytes)} ${unit}`;
}

function duration(seconds) {
  if (seconds < 1) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 60) return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))} s`;
  const whole = Math.floor(seconds), two = number => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`;
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)} h`;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const number = value => (value === null || value === undefined ? undefined : Number(value));
const isTiny = value => value !== 0 && Math.abs(value) < 1e-3;
const plain = value => (!Number.isFinite(value) ? String(value) : isTiny(value) ? value.toExponential(1) : String(Number(value.toPrecision(4))));
const score = value => (state.run.metric.is_share && Number.isFinite(value) ? `${(100 * value).toFixed(2)}%` : plain(value));
const sum = pair => pair[0] + pair[1];
const capital = text => text.charAt(0).toUpperCase() + text.slice(1);
const named = name => name.replaceAll("_", " ");

// ---- elements

function put(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fill(id, share) {
  const percent = Math.round(100 * Math.min(Math.max(share || 0, 0), 1));
  at(id).setAttribute("aria-valuenow", percent);
  at(id).firstElementChild.style.width = `${percent}%`;
}

const color = index => `var(--c${index % 8})`;

// ---- what the tiles say

function showRun() {
  const run = state.run;
  if (!run) return;
  put("what", run.what);
  put("run-id", run.run_id ? `run ${run.run_id}` : "the run has not begun");
  put("phase", run.phase);
  at("phase").className = `pill ${run.phase}`;
  document.title = `${run.phase === "running" ? `${run.round}/${run.rounds}` : run.phase} · ${run.what}`;
  const reason = run.reason || (run.phase === "completed" ? "All rounds are done, and the final model was delivered." : "");
  at("reason").hidden = !reason;
  at("reason").className = `banner ${{ paused: "warn", stopped: "warn", failed: "bad", completed: "good" }[run.phase] ?? ""}`;
  put("reason", run.phase === "failed" ? `The run failed: ${reason}` : capital(reason));
  const again = run.attempt ? `, attempt ${run.attempt + 1}` : "";
  put("round", run.round ? `${run.round} of ${run.rounds}${again}` : `– of ${run.rounds}`);
  const inRound = run.exchanges ? Math.min(run.exchanges_done / run.exchanges, 1) : 0;
  const isOpen = run.phase !== "completed" && run.round > run.rounds_done;
  const rounds = run.phase === "completed" ? run.rounds_done : run.rounds_done + (isOpen ? inRound : 0);
  fill("run-bar", run.phase === "completed" ? 1 : rounds / run.rounds);
  fill("round-bar", run.phase === "completed" ? 1 : inRound);
  showBytes(run);
}

function showExchange() {
  const { run, clients } = state;
  if (!run) return;
  const exchange = run.exchange;
  const place = run.exchanges ? ` (${Math.min(run.exchanges_done + 1, run.exchanges)} of ${run.exchanges} in this round)` : "";
  const joined = clients ? clients.connected + clients.working : 0;
  const idle = {
    waiting: run.run_id ? "waiting" : `waiting for clients, ${joined} of ${run.expected} ${joined === 1 ? "is" : "are"} there`,
    running: "between two exchanges", paused: "paused", completed: "no exchange any more", failed: "no exchange any more", stopped: "no exchange any more",
  }[run.phase];
  const isDelivery = exchange && exchange.label === "deliver";
  put("exchange", exchange ? `${named(exchange.label)}${isDelivery ? "" : place}, ${duration(Math.max(now_s() - exchange.since_s, 0))}` : idle);
  const awaited = exchange && clients ? clients.rows.filter(row => row.state === "working").map(row => row.id) : [];
  const names = awaited.slice(0, 4).join(", ") + (clients && clients.working > 4 ? `, … (${clients.working})` : "");
  put("replies", awaited.length ? `waiting for ${names}` : exchange ? `${plural(exchange.asked, "client")} asked` : "");
}

function last(key) {
  const rounds = state.history.rounds;
  for (let place = rounds.length - 1; place >= 0; place--) {
    if (rounds[place][key] !== undefined && rounds[place][key] !== null) return [rounds[place].round, Number(rounds[place][key])];
  }
  return null;
}

function showLearning() {
  const run = state.run;
  if (!run) return;
  const title = capital(run.metric.title);
  const scored = last("score") ?? last("client_score");
  const where = last("score") ? "test set" : "clients' held-out data";
  put("score-title", title);
  // Where the loss is the metric of the task, one tile has it.
  put("score-chart-title", title === "Loss" ? "Loss of the global model" : title);
  at("loss-tile").hidden = title === "Loss";
  put("score", scored ? score(scored[1]) : "–");
  const best = run.best ? `, best ${score(run.best[1])} in round ${run.best[0]}` : "";
  put("score-note", scored ? `round ${scored[0]}, ${where}${best}` : run.has_test_set ? "after the first round" : "no test set at the server");
  const lost = last("loss") ?? last("client_loss") ?? last("training_loss") ?? last("step_loss");
  const ofLoss = last("loss") ? "test set" : last("client_loss") ? "clients' held-out data" : "clients' training";
  put("loss", lost ? plain(lost[1]) : "–");
  put("loss-note", lost ? `round ${lost[0]}, ${ofLoss}` : "after the first exchange");
}

function showBytes(run) {
  const kinds = Object.entries(run.bytes);
  const down = kinds.reduce((total, [, pair]) => total + pair[0], 0), up = kinds.reduce((total, [, pair]) => total + pair[1], 0);
  put("bytes", down + up ? size(down + up) : "–");
  put("bytes-note", down + up ? `${size(down)} down, ${size(up)} up` : "nothing yet");
  const rows = kinds.filter(([, pair]) => sum(pair)).map(([kind, pair]) => row(kind, run.in_round[kind] ?? [0, 0], pair, ""));
  const inRound = Object.values(run.in_round).reduce((total, pair) => total + sum(pair), 0);
  if (rows.length > 1) rows.push(row("all", [inRound, 0], [down, up], "total"));
  at("kinds").replaceChildren(...rows);

  function row(kind, here, pair, className) {
    const line = document.createElement("tr");
    line.append(make("td", className, named(kind)));
    for (const bytes of [sum(here), sum(pair), ...pair]) line.append(make("td", `number ${className}`, bytes ? size(bytes) : "–"));
    return line;
  }
}

function showTime() {
  const run = state.run;
  if (!run) return;
  const elapsed = run.started_s ? Math.max((run.ended_s ?? now_s()) - run.started_s, 0) : null;
  put("time", elapsed === null ? "–" : duration(elapsed));
  const timed = state.history.rounds.filter(row => row.seconds !== undefined).slice(-5);
  const mean = timed.reduce((total, row) => total + row.seconds, 0) / (timed.length || 1);
  put("time-note", timed.length ? `${duration(mean)} a round` : run.started_s ? "first round" : "not begun");
  const left = run.rounds - run.rounds_done;
  put("remaining", run.phase === "running" && timed.length && left ? `about ${duration(left * mean)} left` : "");
}

function showClients() {
  const clients = state.clients;
  if (!clients) return;
  const here = clients.connected + clients.working;
  put("clients", clients.lost ? `${here} + ${clients.lost} lost` : String(here));
  at("clients").className = `value${clients.lost ? " lost" : ""}`;
  const doing = isOver() ? "were there at the end" : `${clients.working} working, ${clients.connected} ready`;
  put("clients-note", here ? doing : "nobody is connected");
  put("clients-more", clients.more ? `${plural(clients.more, "more client")} not listed` : "");
  at("client-rows").replaceChildren(...clients.rows.map(clientRow));
}

function clientRow(client) {
  const line = document.createElement("tr");
  const name = make("td", "", client.id);
  if (client.reason) name.append(make("div", "why", client.reason));
  line.append(name);
  const silent = client.heard_s === null ? "" : `, heard ${duration(client.heard_s)} ago`;
  const text = { lost: `lost${silent}`, working: "working", connected: isOver() ? "done" : "ready" }[client.state];
  const cell = document.createElement("td");
  cell.append(make("span", `state ${client.state}`, text));
  line.append(cell);
  const seconds = make("td", "number", client.seconds === null ? "–" : duration(client.seconds));
  if (client.slow) seconds.append(make("div", "slow", "slow"));
  line.append(seconds, make("td", "number", client.misses ? String(client.misses) : "–"));
  return line;
}

// New lines are added and old ones dropped, so that a screen reader reads only what is new.
function showLog() {
  const list = at("log"), lines = state.log.lines;
  const isAtTop = list.scrollTop < 8;
  const shown = new Set();
  for (const line of lines) shown.add(`${line.at_s} ${line.text}`);
  for (const item of [...list.children]) if (!shown.delete(item.dataset.key)) item.remove();
  for (const line of lines) {
    const key = `${line.at_s} ${line.text}`;
    if (!shown.delete(key)) continue;
    const item = make("li", line.kind);
    item.dataset.key = key;
    const time = make("time", "", new Date(1000 * line.at_s).toLocaleTimeString("en-GB"));
    time.dateTime = new Date(1000 * line.at_s).toISOString();
    item.append(time, make("span", "", line.text));
    item.dataset.at = line.at_s;
    // A round is told of late where its accuracy comes with the next broadcast.
    list.insertBefore(item, [...list.children].find(other => Number(other.dataset.at) <= line.at_s) ?? null);
  }
  if (isAtTop) list.scrollTop = 0;
}

// ---- charts

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 14, top: 8, bottom: 26 };

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") for (const [key, setting] of Object.entries(value)) element.style[key] = setting;
    else element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(least, most, count) {
  const span = most - least || Math.abs(most) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => span / candidate <= count);
  const found = [];
  for (let value = Math.ceil(least / step - 1e-9) * step; value <= most + 1e-9 * span; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// Lays out the axes of a chart, and returns the functions that place a point.
function axes(svg, xs, ys, writeX, writeY) {
  const width = svg.clientWidth || 480, height = svg.clientHeight || 240;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = value => MARGIN.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (right - MARGIN.left);
  const y = value => bottom - ((value - ys[0]) / (ys[1] - ys[0] || 1)) * (bottom - MARGIN.top);
  for (const value of ticks(ys[0], ys[1], 5)) {
    svg.append(draw("line", { class: "grid-line", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, writeY(value)));
  }
  for (const value of ticks(xs[0], xs[1], Math.max(4, Math.floor(width / 90))).filter(value => writeX(value) !== "")) {
    svg.append(draw("text", { x: x(value), y: height - 7, "text-anchor": x(value) > right - 18 ? "end" : "middle" }, writeX(value)));
  }
  return { x, y, right, bottom, width, height };
}

function empty(svg, legend, text) {
  const width = svg.clientWidth || 480, height = svg.clientHeight || 240;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(draw("text", { class: "empty", x: width / 2, y: height / 2 }, text));
  at(legend).replaceChildren();
}

function range(values, isShare) {
  let least = Math.min(...values), most = Math.max(...values);
  if (least === most) { least -= Math.abs(least) * 0.1 || 0.5; most += Math.abs(most) * 0.1 || 0.5; }
  const margin = 0.06 * (most - least);
  least -= margin; most += margin;
  return isShare ? [Math.max(least, 0), Math.min(most, 1)] : [least, most];
}

function legendOf(id, entries) {
  at(id).replaceChildren(...entries.map(([index, name, value]) => {
    const entry = document.createElement("span");
    const swatch = document.createElement("i");
    swatch.style.background = color(index);
    entry.append(swatch, name);
    if (value !== undefined) entry.append(" ", make("b", "", value));
    return entry;
  }));
}

const hovered = {};

function lines(id, series, write, isShare) {
  const svg = at(`${id}-chart`), legend = `${id}-legend`;
  const xOf = row => (view.byBytes && id === "score" ? row.total : row.round);
  const rows = state.history.rounds.filter(row => xOf(row) !== undefined);
  const used = series.filter(([key]) => rows.some(row => Number.isFinite(number(row[key]))));
  if (!used.length) return empty(svg, legend, "no value yet");
  const values = used.flatMap(([key]) => rows.map(row => number(row[key])).filter(Number.isFinite));
  const places = rows.map(xOf);
  const first = view.byBytes && id === "score" ? 0 : Math.min(...places);
  const writeX = view.byBytes && id === "score" ? size : value => (Number.isInteger(value) ? String(value) : "");
  const frame = axes(svg, [first, Math.max(...places, first + 1)], range(values, isShare), writeX, isShare ? percent : plain);
  for (const [key, , index] of used) {
    // A gap where a value is missing between two others would hide the line of a metric that comes late.
    for (const part of parts(rows, key)) {
      const points = part.map(row => `${frame.x(xOf(row)).toFixed(1)},${frame.y(Number(row[key])).toFixed(1)}`);
      svg.append(draw("polyline", { points: points.join(" "), style: { stroke: color(index) } }));
      if (part.length === 1 || rows.length <= 30) for (const point of points) dot(svg, point, index, 2.5);
    }
  }
  const chosen = nearest(id, rows, xOf, frame);
  if (chosen) {
    const place = frame.x(xOf(chosen));
    svg.append(draw("line", { class: "cursor", x1: place, x2: place, y1: MARGIN.top, y2: frame.bottom }));
    for (const [key, , index] of used) if (Number.isFinite(number(chosen[key]))) dot(svg, `${place},${frame.y(Number(chosen[key]))}`, index, 4);
  }
  legendOf(legend, [
    ...used.map(([key, name, index]) => {
      const value = chosen ? number(chosen[key]) : last(key)?.[1];
      return [index, name, value === undefined ? "–" : write(value)];
    }),
  ]);
  if (chosen) at(legend).append(make("span", "", `round ${chosen.round}`));
}

const percent = value => `${Number((100 * value).toPrecision(4))}%`;

function dot(svg, point, index, radius) {
  const [cx, cy] = point.split(",");
  svg.append(draw("circle", { cx, cy, r: radius, style: { fill: color(index) } }));
}

// NaN breaks a line; a round without the value does not.
function parts(rows, key) {
  const found = [[]];
  for (const row of rows) {
    const value = number(row[key]);
    if (value === undefined) continue;
    if (Number.isFinite(value)) found.at(-1).push(row);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter(part => part.length);
}

function nearest(id, rows, xOf, frame) {
  if (hovered[id] === undefined || !rows.length) return null;
  return rows.reduce((best, row) => (Math.abs(frame.x(xOf(row)) - hovered[id]) < Math.abs(frame.x(xOf(best)) - hovered[id]) ? row : best));
}

function bars() {
  const svg = at("bytes-chart"), rounds = state.history.rounds;
  const kinds = [...new Set(rounds.flatMap(row => Object.keys(row.bytes)))];
  if (!kinds.length) return empty(svg, "bytes-legend", "no exchange yet");
  const totals = rounds.map(row => Object.values(row.bytes).reduce((total, pair) => total + sum(pair), 0));
  const first = rounds[0].round, end = rounds.at(-1).round, most = Math.max(...totals, 1);
  const unit = BYTE_UNITS.find(([least]) => most >= least) ?? [1, "B"];
  const writeX = value => (Number.isInteger(value) && value >= first && value <= end ? String(value) : "");
  const frame = axes(svg, [first - 0.5, Math.max(end, first + 9) + 0.5], [0, most / unit[0] * 1.05], writeX, value => (value ? `${value} ${unit[1]}` : "0"));
  const step = (frame.right - MARGIN.left) / (Math.max(end, first + 9) - first + 1);
  const width = Math.max(Math.min(0.72 * step * (rounds.length < end - first ? (end - first) / rounds.length : 1), 36), 1);
  const chosen = nearest("bytes", rounds, row => row.round, frame);
  for (const row of rounds) {
    let below = 0;
    kinds.forEach((kind, index) => {
      const bytes = sum(row.bytes[kind] ?? [0, 0]) / unit[0];
      if (!bytes) return;
      const top = frame.y(below + bytes);
      const style = { fill: color(index), opacity: chosen && chosen !== row ? 0.4 : 1 };
      svg.append(draw("rect", { x: frame.x(row.round) - width / 2, y: top, width, height: Math.max(frame.y(below) - top, 0.5), style }));
      below += bytes;
    });
  }
  const shown = chosen ?? rounds.at(-1);
  legendOf("bytes-legend", kinds.map((kind, index) => [index, named(kind), shown.bytes[kind] ? size(sum(shown.bytes[kind])) : "–"]));
  at("bytes-legend").append(make("span", "", `round ${shown.round}`));
}

function showCharts() {
  if (!state.run) return;
  lines("score", [["score", "test set", 0], ["client_score", "clients' held-out data", 1]], score, state.run.metric.is_share);
  lines("loss", [["loss", "test set", 0], ["client_loss", "clients' held-out data", 1], ["training_loss", "local training", 2], ["step_loss", "last step", 3]], plain, false);
  bars();
}

// ---- the stream

// The history comes once a round; the bytes of the open round come with every exchange.
function mergeOpenRound() {
  const { run, history: { rounds } } = state;
  if (!run || !run.round) return;
  const row = rounds.at(-1);
  if (row && row.round === run.round) row.bytes = run.in_round;
  else if (!row || row.round < run.round) rounds.push({ round: run.round, bytes: run.in_round });
}

function showAll() {
  mergeOpenRound();
  showConnection();
  showRun(); showExchange(); showLearning(); showTime(); showClients(); showCharts();
}

function showConnection() {
  const lost = !view.connected && view.heard_s > 0;
  document.body.classList.toggle("stale", lost && !isOver());
  at("connection").hidden = !lost;
  at("connection").className = `banner ${isOver() ? "" : "bad"}`;
  const since = new Date(1000 * view.heard_s).toLocaleTimeString("en-GB");
  put("connection", lost ? (isOver() ? `The server has ended; this is the state of ${since}.` : `Connection lost: this is the state of ${since}. Trying again.`) : "");
  const version = state.run ? `feddkd ${state.run.version}` : "";
  put("footer", `${version} · ${view.connected ? "live" : "not connected"} · bytes are those of gRPC messages, retries included`);
}

function listen() {
  const source = new EventSource("events");
  const take = (name, show) => source.addEventListener(name, event => { state[name] = JSON.parse(event.data); show(); });
  source.addEventListener("clock", event => {
    view.skew_s = JSON.parse(event.data).now_s - Date.now() / 1000;
    view.connected = true; view.heard_s = Date.now() / 1000;
    showConnection();
  });
  take("run", showAll);
  take("clients", () => { showClients(); showExchange(); });
  take("history", () => { mergeOpenRound(); showLearning(); showTime(); showCharts(); });
  take("log", showLog);
  source.addEventListener("error", () => {
    view.connected = false;
    showConnection();
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // it was refused: too many browsers
  });
}

function choose(byBytes) {
  view.byBytes = byBytes;
  at("by-round").setAttribute("aria-pressed", String(!byBytes));
  at("by-bytes").setAttribute("aria-pressed", String(byBytes));
  showCharts();
}

at("by-round").addEventListener("click", () => choose(false));
at("by-bytes").addEventListener("click", () => choose(true));
for (const id of ["score", "loss", "bytes"]) {
  const svg = at(`${id}-chart`);
  svg.addEventListener("pointermove", event => { hovered[id] = event.clientX - svg.getBoundingClientRect().left; showCharts(); });
  svg.addEventListener("pointerleave", () => { delete hovered[id]; showCharts(); });
}
addEventListener("resize", showCharts);
setInterval(() => {
  if (!view.connected) return;
  // The server sends the time at least every five seconds.
  if (Date.now() / 1000 - view.heard_s > 15) { view.connected = false; showConnection(); return; }
  showExchange(); showTime();
}, 500);
listen();
