"use strict";
// The page of the local cloud. Everything that comes from outside is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const env = new URLSearchParams(location.search).get("env") || "dev";
const WINDOW = 900; // seconds of requests that are kept
const now = { parts: {}, alarms: [], requests: new Map(), lines: new Map(), shares: [], live: {} };

/** An element: attributes, "on..." handlers, and children as text or elements. */
function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((each) => each != null));
  return made;
}
const show = (id, ...children) => $(id).replaceChildren(...children.filter((each) => each != null));

async function ask(path, query = {}, options = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams({ env, ...query })}`, options);
  const text = await answer.text();
  const found = answer.headers.get("content-type").startsWith("application/json") ? JSON.parse(text) : text;
  if (!answer.ok) throw new Error(found.error || text);
  return found;
}
/** Shows what a promise gives, or its error, in an element. */
async function into(id, work) {
  try {
    await work();
  } catch (error) {
    show(id, h("p", { class: "bad" }, error instanceof TypeError ? "The local cloud does not answer: python -m taplocal up" : error.message));
  }
}

const hour = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
const clock = (seconds) => h("time", {}, hour(seconds));
const size = (bytes) => bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
const dollars = (value) => (value < 0 ? "−$" : "$") + Math.abs(value).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const percentile = (values, share) => values.sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))];

/** A table; a column's name that ends with # is one of numbers. */
function table(columns, rows, empty) {
  if (!rows.length) return h("p", { class: "hint" }, empty);
  const kinds = columns.map((name) => (name.endsWith("#") ? "number" : null));
  const head = columns.map((name, i) => h("th", { scope: "col", class: kinds[i] }, name.replace("#", "")));
  return h("table", {}, h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell, i) => h("td", { class: kinds[i] }, cell))))));
}
/** Names and values, without the empty ones. */
const facts = (pairs) => h("table", {}, h("tbody", {}, ...pairs.filter(([, value]) => value !== "").map(([name, value]) =>
  h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, String(value))))));
const link = (text, act) => h("button", { type: "button", class: "plain", onclick: act }, text);
function bars(rows, format) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-9);
  return h("div", {}, ...rows.map(([name, value]) => h("div", { class: "bar" }, h("span", {}, name),
    h("meter", { value: Math.abs(value), max: most, "aria-label": name }), h("span", { class: "number" }, format(value)))));
}

/** A chart of series of [seconds, value] until now; drawn again when the theme's colours change. */
const charts = new Map();
function chart(place, all, seconds) {
  const series = all.filter((each) => each.points.length);
  const times = [...new Set(series.flatMap((each) => each.points.map(([at]) => at)))].sort((a, b) => a - b);
  charts.get(place)?.destroy();
  charts.delete(place);
  if (!times.length) return place.replaceChildren(h("p", { class: "hint" }, "No data yet."));
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const many = new Intl.NumberFormat("en", { notation: "compact" }).format;
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, font: "11px system-ui" };
  const data = [times, ...series.map((each) => { const at = new Map(each.points); return times.map((time) => at.get(time) ?? null); })];
  place.replaceChildren();
  charts.set(place, new uPlot({
    width: Math.max(place.clientWidth, 200), height: 150, cursor: { drag: { setScale: false } },
    legend: { live: false }, axes: [{ ...axis, values: (_, all) => all.map(hour) }, { ...axis, size: 44, values: (_, all) => all.map(many) }], scales: { x: { range: () => { const end = Date.now() / 1000; return [end - seconds, end]; } }, y: { range: (_, low, high) => [Math.min(0, low), high || 1] } },
    series: [{}, ...series.map((each, i) => ({ label: each.name, stroke: colour(`--c${i % 6}`), width: 1.6, spanGaps: true, points: { show: times.length < 40 } }))],
  }, data, place));
}

// --- What is there now ---

function connect() {
  const source = new EventSource(`/live?env=${encodeURIComponent(env)}`);
  source.onmessage = (event) => {
    const live = JSON.parse(event.data);
    if (live.error) return state(live.error, true);
    state(live.complete ? "" : "The last run did not reach its end: python -m taplocal up", !live.complete);
    take(live);
  };
  source.onerror = () => {
    state("The local cloud has stopped: python -m taplocal up", true);
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}
function state(text, bad) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = bad ? "bad" : "";
}

function take(live) {
  if (live.changed !== now.changed) { now.changed = live.changed; picture(); fill(); }
  Object.assign(now, { live, parts: live.parts, alarms: live.alarms });
  for (const each of live.requests) now.requests.set(each.message.requestId, each);
  for (const each of live.lines) now.lines.set(`${each.group} ${each.message.request_id} ${each.message.key || ""} ${each.message.version_id || ""}`, each);
  for (const kept of [now.requests, now.lines]) for (const [id, each] of kept) if (each.time < live.time - WINDOW) kept.delete(id);
  now.shares.push({ time: live.time, releases: live.releases });
  if (now.shares.length > 3600) now.shares.shift();
  figures(live); parts(); requests(live); files(live); alarms(); releases();
}

function figures(live) {
  const minute = [...now.requests.values()].filter((each) => each.time > live.time - 60);
  const slow = percentile(minute.map((each) => +each.message.responseLatency), 0.95);
  const firing = now.alarms.filter((each) => each.state === "ALARM").length;
  const failed = minute.filter((each) => +each.message.status >= 500).length;
  const rows = [];
  if (live.api) rows.push([minute.length, "requests a minute"], [slow ?? "–", "ms p95"], [failed, "errors", failed]);
  rows.push([firing, `of ${now.alarms.length} alarms`, firing]);
  if (live.waiting) rows.push([live.waiting, "dead letters", 1]);
  for (const each of live.web) rows.push(["", each, !/healthy|available/.test(each) || /unhealthy/.test(each)]);
  show("figures", ...rows.map(([value, name, bad]) => h("div", {}, h("dt", {}, name), h("dd", { class: bad ? "bad" : null }, String(value)))));
}

async function picture() {
  await into("picture", async () => {
    const text = await ask("/architecture");
    const drawn = document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
    drawn.setAttribute("role", "group");
    for (const part of drawn.querySelectorAll(".part")) {
      part.setAttribute("tabindex", "0");
      part.setAttribute("role", "button");
      part.addEventListener("click", () => choose(part.dataset.part));
      part.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(part.dataset.part); } });
    }
    show("picture", drawn);
    parts();
    if (now.chosen) mark();
  });
}
function parts() {
  const made = Math.min(...Object.values(now.parts).map((each) => each.changed)) + 60;  // the first run
  for (const part of document.querySelectorAll(".part")) {
    const said = now.parts[part.dataset.part] || { alarms: 0, text: "" };
    const changed = said.changed > made ? `changed ${hour(said.changed)}` : "";
    const text = said.alarms ? `${said.alarms} alarm${said.alarms > 1 ? "s" : ""}` : said.text || changed;
    let says = part.querySelector(".says");
    if (!says) {
      says = document.createElementNS("http://www.w3.org/2000/svg", "text");
      says.setAttribute("class", "says"); says.setAttribute("x", "170"); says.setAttribute("y", "32");
      part.append(says);
    }
    if (says.textContent !== text) says.textContent = text;
    part.classList.toggle("alarm", said.alarms > 0);
    part.setAttribute("aria-label", `${part.querySelector(".name").textContent}, ${part.querySelector(".kind").textContent}${text ? `, ${text}` : ""}`);
  }
}
function mark() {
  for (const part of document.querySelectorAll(".part")) part.classList.toggle("chosen", part.dataset.part === now.chosen);
  for (const edge of document.querySelectorAll(".edge")) {
    const near = [edge.dataset.source, edge.dataset.target].includes(now.chosen);
    edge.classList.toggle("near", near); edge.classList.toggle("dim", !near);
  }
}
async function choose(name) {
  now.chosen = name;
  mark();
  await into("part", async () => {
    const part = await ask("/part", { name });
    const list = (items) => items.length ? h("ul", {}, ...items.map((each) => h("li", {}, each))) : null;
    const known = [["Id", part.id], ["ARN", part.arn], ["How many", part.count > 1 ? part.count : ""], ["Last change", part.changed ? new Date(part.changed * 1000).toLocaleString() : ""], ...Object.entries(part.tags)];
    const alarmed = part.alarms.map((each) => link(`${each}: ${now.alarms.find((x) => x.name === each)?.state ?? ""}`, () => openAlarm(each)));
    show("part", h("h2", {}, name), h("p", { class: "hint" }, part.kind), list(part.does), list(part.is),
      alarmed.length ? h("h3", {}, "Alarms") : null, list(alarmed),
      h("h3", {}, "Facts"), facts(known),
      part.command ? h("p", {}, h("code", {}, part.command)) : null);
  });
}

const newest = (kept, count) => [...kept.values()].sort((a, b) => b.time - a.time).slice(0, count);
function requests(live) {
  const all = [...now.requests.values()], key = `${all.length} ${Math.floor(live.time / 5)}`;
  if (now.drawn === key) return;
  now.drawn = key;
  const seconds = new Map(), begin = Math.floor(live.time) - 120;
  for (let at = begin; at < live.time; at += 5) seconds.set(at, 0);
  for (const each of all) { const at = begin + Math.floor((each.time - begin) / 5) * 5; if (seconds.has(at)) seconds.set(at, seconds.get(at) + 1 / 5); }
  chart($("rate"), all.length ? [{ name: "requests a second", points: [...seconds] }] : [], 120);
  const routes = new Map();
  for (const { message } of all) { const kept = routes.get(message.routeKey) || []; kept.push(message); routes.set(message.routeKey, kept); }
  const rows = [...routes].sort().map(([route, messages]) => {
    const times = messages.map((each) => +each.responseLatency), bad = messages.filter((each) => +each.status >= 500).length;
    return [route, String(messages.length), String(percentile(times, 0.5)), String(percentile(times, 0.95)), statuses(messages), String(bad)];
  });
  show("routes", table(["Route", "Requests#", "p50 ms#", "p95 ms#", "Status", "Errors#"], rows, live.api ? "None in the last 15 minutes: send one below." : "This stack has no API."));
  show("last", table(["Time", "Status#", "Request", "ms#", "Id"], newest(now.requests, 50).map(({ time, message }) =>
    [clock(time), message.status, `${message.method} ${message.path}`, message.responseLatency, link(message.requestId, () => follow(message.requestId))]), "None yet."));
}
function statuses(messages) {
  const counts = {};
  for (const { status } of messages) counts[status] = (counts[status] || 0) + 1;
  return Object.entries(counts).map(([status, count]) => `${status} × ${count}`).join(", ");
}

function files(live) {
  const recorded = newest(now.lines, 1000).filter((each) => each.message.message === "file" && each.message.key);
  const key = recorded.map((each) => each.message.version_id).join() + live.waiting;
  if (now.filed === key) return;
  now.filed = key;
  show("recorded", table(["Time", "Key", "Content type", "Size#", "ms#"], recorded.slice(0, 50).map(({ time, message }) =>
    [clock(time), link(message.key, () => follow(message.version_id)), message.content_type || message.event || message.error || "", message.size ? size(+message.size) : "", String(message.latency_ms)]), "None in the last 15 minutes."));
  const types = {};
  for (const { message } of recorded) if (message.content_type) types[message.content_type] = (types[message.content_type] || 0) + 1;
  show("types", Object.keys(types).length ? bars(Object.entries(types).sort((a, b) => b[1] - a[1]), String) : h("p", { class: "hint" }, "None yet."));
  show("waiting", h("p", { class: live.waiting ? "bad" : "" }, live.waiting ? `${live.waiting} waiting` : "None is waiting."));
}

function alarms() {
  const order = { ALARM: 0, INSUFFICIENT_DATA: 1, OK: 2 }, key = now.alarms.map((each) => each.name + each.state + each.reason).join();
  if (now.alarmed === key) return;
  now.alarmed = key;
  const rows = [...now.alarms].sort((a, b) => order[a.state] - order[b.state] || a.name.localeCompare(b.name)).map((each) =>
    [h("span", { class: each.state === "ALARM" ? "bad" : each.state === "OK" ? "good" : null }, each.state), link(each.name, () => openAlarm(each.name)), each.reason, clock(each.since)]);
  show("alarm-list", table(["State", "Alarm", "Reason", "Since"], rows, "This stack has no alarms."));
}
async function openAlarm(name) {
  await into("alarm", async () => {
    const found = await ask("/alarm", { name }), alarm = now.alarms.find((each) => each.name === name) || {};
    show("alarm", h("h2", {}, name), h("p", {}, alarm.about || ""), found.runbook ? h("pre", {}, found.runbook) : null, h("h3", {}, "History"),
      table(["Time", "Change"], found.history.map((each) => [clock(each.time), each.text]), "It has not changed."));
    $("alarm").scrollIntoView({ block: "nearest" });
  });
}

function releases() {
  const range = $("replay"), last = now.shares.length - 1, followsNow = range.value === range.max;
  range.max = last;
  if (followsNow) range.value = last;
  const seen = now.shares[+range.value];
  $("when").textContent = followsNow ? "now" : hour(seen.time);
  const counts = {};
  for (const { time, message } of now.lines.values())
    if (time <= seen.time && time > seen.time - 60) { const at = `${message.FunctionVersion}`; counts[at] = (counts[at] || 0) + 1; }
  const key = JSON.stringify([seen.releases, seen === now.shares[last] ? "" : seen.time]);
  if (now.released === key) return;
  now.released = key;
  show("shares", ...seen.releases.flatMap((each) => [
    h("h3", {}, `${each.function}${each.under_way ? ": a release is under way, or failed" : ""}`),
    h("div", { class: "share" }, ...Object.entries(each.shares).map(([version, share]) => {
      const part = h("span", {}, `version ${version}: ${Math.round(share * 100)} %`);
      part.style.flex = String(share);
      return part;
    })),
    h("p", { class: "hint" }, each.verdict)]));
  if (!seen.releases.length) show("shares", h("p", { class: "hint" }, "This stack has no functions."));
}

// --- What one asks for ---

async function follow(id) {
  const form = $("follow");
  form.elements.id.value = id;
  $("trace").scrollIntoView({ block: "nearest" });
  await into("followed", async () => {
    const found = await ask("/trace", { id });
    const first = found.lines[0]?.time ?? 0;
    const record = found.record ? facts(Object.entries(found.record)) : null;
    show("followed", record && h("h3", {}, "Record"), record, h("h3", {}, "Lines"),
      ...found.lines.map((each) => h("details", { open: found.lines.length < 4 },
        h("summary", {}, `${hour(each.time)} ${each.group.split("/").pop()} ${each.message.message || each.message.routeKey || ""}`), h("pre", {}, JSON.stringify(each.message, null, 1)))),
      h("h3", {}, "Calls"), table(["After#", "Call", "On", "ms#", "Status"], found.calls.map((each) => [`${Math.round((each.time - first) * 1000)} ms`, each.what, each.on, String(each.milliseconds), each.error || String(each.status)]), "None was traced."),
      h("h3", {}, "Metrics"), h("p", {}, found.metrics.join(", ") || "None."), h("h3", {}, "Alarms on them"), h("p", {}, found.alarms.join(", ") || "None."),
      h("p", {}, h("code", {}, `python -m taplocal trace '${id}' --env ${env}`)));
  });
}

async function dashboard() {
  await into("widgets", async () => {
    const found = await ask("/dashboard", { minutes: $("minutes").value });
    const places = $("widgets");
    if (places.childElementCount !== found.length)
      places.replaceChildren(...found.map((each) => h("div", { class: "widget" }, h("h3", {}, each.title), h("div", { class: "chart" }))));
    found.forEach((each, i) => {
      const place = places.children[i].lastChild, key = JSON.stringify(each);
      if (place.key !== key) { place.key = key; chart(place, each.series, 60 * +$("minutes").value); }
    });
    if (!found.length) places.replaceChildren(h("p", { class: "hint" }, "This stack has no dashboard."));
  });
}

let routes = [];
async function fill() {
  await into("answer", async () => {
    routes = await ask("/routes");
    $("call").hidden = !routes.length;
    if (!routes.length) return show("answer", h("p", { class: "hint" }, "This stack has no API."));
    show("answer");
    const chosen = $("route").value;
    show("route", ...routes.map((each, i) => h("option", { value: i, selected: String(i) === chosen }, `${each.method} ${each.path}: ${each.summary}`)));
    if (!$("call").elements.path.value) route();
  });
  await into("snapshot-list", snapshots);
}
function route() {
  const chosen = routes[+$("route").value || 0], form = $("call").elements;
  form.path.value = chosen.path;
  form.body.disabled = !chosen.body;
  form.body.value = chosen.body ? JSON.stringify(chosen.example ?? {}, null, 1) : "";
}
async function call(event) {
  event.preventDefault();
  const form = $("call").elements, method = routes[+$("route").value || 0].method;
  show("answer", h("p", { class: "hint" }, "Sending…"));
  await into("answer", async () => {
    const found = await ask("/call", {}, { method: "POST", body: JSON.stringify({ method, path: form.path.value, user: form.user.value, body: form.body.value }) });
    let text = found.body, rows = null;
    try {
      const value = JSON.parse(text);
      text = JSON.stringify(value, null, 1);
      rows = Object.values(value).find((each) => Array.isArray(each) && each.every((x) => x instanceof Object && !Array.isArray(x)));
    } catch { /* it is no JSON */ }
    const id = found.headers["apigw-requestid"];
    show("answer", h("p", { class: found.status < 400 ? "good" : "bad" }, `${found.status} in ${Math.round(found.seconds * 1000)} ms, after ${Math.round(found.sign_in_seconds * 1000)} ms of signing in `, id ? link("follow it", () => follow(id)) : ""),
      rows?.length ? listed(rows) : null, h("details", { open: !rows?.length }, h("summary", {}, "Body"), h("pre", {}, text)), h("details", {}, h("summary", {}, "Headers"), h("pre", {}, Object.entries(found.headers).map((each) => each.join(": ")).join("\n"))), h("p", {}, h("code", {}, found.command)));
  });
}

/** Items or files of a list, with a column for each member that one of them has. */
function listed(rows) {
  const columns = [...new Set(rows.flatMap((each) => Object.keys(each)))];
  const text = (value) => value === undefined ? "" : value instanceof Object ? JSON.stringify(value) : String(value);
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Listed" }, table(columns, rows.map((each) => columns.map((name) => text(each[name]))), ""));
}

async function upload(list) {
  for (const file of list) {
    const line = h("li", {}, `${file.name}: sending…`);
    $("uploads").prepend(line);
    try {
      const began = performance.now();
      const found = await ask("/upload", { name: file.name, type: file.type, user: $("call").elements.user.value }, { method: "POST", body: file });
      line.replaceChildren(`${file.name}: ${found.status < 400 ? "sent" : `refused, ${found.status}`} in ${Math.round(performance.now() - began)} ms. `);
      if (found.id) line.append(link("Follow it", () => follow(found.id)), h("span", { class: "hint" }, ` python -m taplocal upload '${file.name}'`));
      else line.append(h("span", { class: "bad" }, found.body));
    } catch (error) { line.replaceChildren(h("span", { class: "bad" }, `${file.name}: ${error.message}`)); }
  }
}

async function letters(path, method) {
  show("waiting", h("p", { class: "hint" }, "Asking the queue…"));
  await into("waiting", async () => {
    const found = await ask(path, {}, { method });
    now.filed = null;
    show("waiting", found.length ? h("div", {}, ...found.map((each) => h("details", {}, h("summary", { class: each.error ? "bad" : "good" }, each.error || "redriven"), h("pre", {}, JSON.stringify(each.event, null, 1))))) : h("p", {}, "None is waiting."));
  });
}

async function snapshots() {
  const found = await ask("/snapshots");
  show("snapshot-list", table(["Taken", "Name", "Of", "Go back"], found.map((each) => [each.created, each.name, `${each.kind}: ${each.of}`,
    h("button", { type: "button", onclick: async () => {
      if (!confirm(`Go back to ${each.name}? What is there now is deleted.`)) return;
      await into("snapshot-list", async () => { await ask("/restore", { name: each.name, kind: each.kind }, { method: "POST" }); show("snapshot-list", h("p", {}, `Going back to ${each.name}…`)); setTimeout(() => into("snapshot-list", snapshots), 5000); });
    } }, "Restore")]), "There are no snapshots."));
}

async function estimate() {
  show("dollars", h("p", { class: "hint" }, "Running the program…"));
  await into("dollars", async () => {
    const found = await ask("/cost");
    const systems = Object.entries(found.fixed).map(([system, rows]) => [system, rows.reduce((sum, row) => sum + row.dollars, 0), rows]);
    show("dollars", h("p", {}, `${dollars(systems.reduce((sum, each) => sum + each[1], 0))} a month without traffic; with ${found.use}, ${dollars(found.by_use.reduce((sum, row) => sum + row.dollars, 0))} more.`),
      ...systems.flatMap(([system, sum, rows]) => [h("h3", {}, `${system}: ${dollars(sum)}`), bars(rows.map((row) => [row.what, row.dollars]), dollars)]),
      h("h3", {}, "By use"), bars(found.by_use.map((row) => [row.what, row.dollars]), dollars),
      h("h3", {}, "What other choices would change"), bars(found.choices.map((row) => [`${row.setting} = ${row.value}`, row.dollars]), (value) => (value > 0 ? "+" : "") + dollars(value)));
  });
}

async function begin() {
  const found = await ask("/environments");
  show("env", ...(found.includes(env) ? found : [env, ...found]).map((each) => h("option", { value: each, selected: each === env }, each)));
  document.title = `${env}: tap-stack`;
}

$("env").onchange = (event) => location.assign(`/?env=${encodeURIComponent(event.target.value)}`);
for (const each of document.querySelectorAll("code[data-command]")) each.textContent = each.dataset.command.replaceAll("@env@", env);
$("follow").onsubmit = (event) => { event.preventDefault(); follow(event.target.elements.id.value.trim()); };
$("minutes").onchange = dashboard;
$("route").onchange = route;
$("call").onsubmit = call;
$("choose").onchange = (event) => upload([...event.target.files]);
$("replay").oninput = releases;
$("show").onclick = () => letters("/letters", "GET");
$("redrive").onclick = () => letters("/redrive", "POST");
$("estimate").onclick = estimate;
for (const kind of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") upload([...event.dataTransfer.files]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { now.drawn = null; for (const each of $("widgets").children) each.lastChild.key = null; dashboard(); });
setInterval(() => { if (!document.hidden) dashboard(); }, 5000);
begin().catch(() => state("The local cloud does not answer: python -m taplocal up", true));
connect();
dashboard();
