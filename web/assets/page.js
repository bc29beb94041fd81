// The page: views, settings, and what connects the parts.

import { Captions } from "./captions.js";
import { Files } from "./files.js";
import { Live } from "./live.js";
import { Meter } from "./meter.js";
import { Models, pull } from "./models.js";
import { confidence, copy, download, menu } from "./transcript.js";
import { base, json } from "./server.js";
import { explain, show } from "./problems.js";

const $ = (selector) => document.querySelector(selector);
const SETTINGS = "open-speech-settings";
const TRANSCRIPT = "open-speech-transcript";
const captionsOnly = new URLSearchParams(location.search).get("view") === "captions";
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("open-speech") : null;
const status = $("#status");

function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

/** Models that can be asked for, and the one that answers where none is named. */
let offered = [];
let defaultModel = null;

// Views

const views = ["live", "files", "models"];
const files = new Files($("#files"), () => values($("#file-settings")), fetched);
const models = new Models($("#models"), fillModels);

function turn() {
  const wanted = views.find((view) => `#${view}` === location.hash) ?? "live";
  for (const view of views) $(`#${view}`).hidden = view !== wanted;
  for (const link of document.querySelectorAll("nav a[href^='#']")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = wanted === "live" ? "open-speech" : `${wanted[0].toUpperCase()}${wanted.slice(1)} · open-speech`;
  document.body.dataset.view = wanted;
  models.watch(wanted === "models");
}

addEventListener("hashchange", turn);

/**
 * Wait until a model is on the server, downloading it if need be; `onText` hears how far it is. A download that this
 * page may not begin is left to the request that follows, which says why.
 */
async function fetched(model, onText, signal) {
  const id = model || defaultModel;
  const row = offered.find((each) => each.id === id);
  if (!id || row?.downloaded || row?.loaded) return;
  try {
    await pull(id, (text) => onText(`Downloading the model: ${text}`), signal);
    await models.refresh();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
}

// Settings

function values(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || (field.type === "radio" && !field.checked)) continue;
    if (field.type === "checkbox") found[field.name] = field.checked;
    else if (field.value.trim()) found[field.name] = field.value.trim();
  }
  if (found.endpointing_ms) found.endpointing_ms = Number(found.endpointing_ms);
  return found;
}

function remember() {
  localStorage.setItem(SETTINGS, JSON.stringify(values($("#settings"))));
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    // not ours, or broken: the defaults are fine
  }
  // The languages depend on the model, so that is set first.
  for (const field of $("#settings").elements) {
    if (!(field.name in kept)) continue;
    if (field.type === "checkbox") field.checked = kept[field.name];
    else if (field.type === "radio") field.checked = field.value === kept[field.name];
    else if (field.tagName !== "SELECT" || [...field.options].some(({ value }) => value === String(kept[field.name]))) {
      field.value = kept[field.name];
      if (field.id === "model") fillLanguages(field, $("#language"));
    }
  }
  sources();
}

function sources() {
  const tab = values($("#settings")).source === "tab";
  for (const field of $("#settings").querySelectorAll("#device, .checks input")) field.disabled = tab;
}

$("#settings").addEventListener("change", () => {
  remember();
  sources();
});
$("#settings").addEventListener("submit", (event) => event.preventDefault());
$("#file-settings").addEventListener("submit", (event) => event.preventDefault());

// What the server offers

function fillModels(rows) {
  offered = rows.filter((row) => row.downloaded || row.loaded || row.id === defaultModel);
  for (const select of document.querySelectorAll("#model, #file-model")) {
    const chosen = select.value;
    const options = offered.map((row) => new Option(row.id, row.id));
    select.replaceChildren(select.options[0], ...options);
    select.value = offered.some(({ id }) => id === chosen) ? chosen : "";
  }
  fillLanguages($("#model"), $("#language"));
  fillLanguages($("#file-model"), $("#file-language"));
}

/** The languages of the chosen model, by name in the reader's own language. */
function fillLanguages(model, select) {
  const rows = model.value ? offered.filter(({ id }) => id === model.value) : offered.filter(({ id }) => id === defaultModel);
  const codes = [...new Set(rows.flatMap(({ languages }) => languages))];
  const names = new Intl.DisplayNames(navigator.languages, { type: "language" });
  const named = codes.map((code) => {
    let name = code;
    try {
      name = names.of(code) ?? code;
    } catch {
      // a code that the browser does not know
    }
    return { code, name };
  });
  named.sort((a, b) => a.name.localeCompare(b.name));
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...named.map(({ code, name }) => new Option(name, code)));
  select.value = codes.includes(chosen) ? chosen : "";
  const tasks = new Set(rows.flatMap((row) => row.tasks ?? []));
  const translate = select.form.elements.task.options[1];
  translate.disabled = rows.length > 0 && !tasks.has("translate");
  if (translate.disabled) select.form.elements.task.value = "transcribe";
}

$("#model").addEventListener("change", () => fillLanguages($("#model"), $("#language")));
$("#file-model").addEventListener("change", () => fillLanguages($("#file-model"), $("#file-language")));

async function greet() {
  try {
    const health = await json("health");
    defaultModel = health.default_model;
    models.offline = health.offline;
    for (const select of document.querySelectorAll("#model, #file-model")) {
      select.options[0].textContent = `Default (${health.default_model})`;
    }
    const notice = $("#notice");
    notice.hidden = !health.notice;
    notice.textContent = health.notice ?? "";
    if (live.idle) say(health.status === "ok" ? "Ready" : health.status === "draining" ? "The server is stopping" : "The server is starting");
    await models.refresh();
    recall();
  } catch (error) {
    say("Not connected");
    show(explain(error));
  }
}

async function listDevices() {
  if (!navigator.mediaDevices?.enumerateDevices) return;
  const select = $("#device");
  const inputs = (await navigator.mediaDevices.enumerateDevices()).filter(
    ({ kind, deviceId }) => kind === "audioinput" && deviceId && deviceId !== "default",
  );
  const chosen = select.value || JSON.parse(localStorage.getItem(SETTINGS) ?? "{}").deviceId;
  select.replaceChildren(
    select.options[0],
    ...inputs.map(({ deviceId, label }, at) => new Option(label || `Microphone ${at + 1}`, deviceId)),
  );
  select.value = inputs.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
}

navigator.mediaDevices?.addEventListener?.("devicechange", listDevices);
if (!navigator.mediaDevices?.getDisplayMedia) $("#tab-source").hidden = true;

// Live captions

const captions = new Captions($("#live"));
const live = new Live({
  captions,
  meter: new Meter($("#meter")),
  figures: { elapsed: $("#elapsed"), latency: $("#latency"), lag: $("#lag") },
  settings: () => values($("#settings")),
  fetched,
  channel: captionsOnly ? null : channel,
  onChange: change,
  onState(state, text, lost = false) {
    const toggle = $("#toggle");
    const on = state !== "idle";
    if (toggle.getAttribute("aria-pressed") !== String(on)) toggle.setAttribute("aria-pressed", String(on));
    $("#toggle-text").textContent = on ? "Stop" : "Start";
    document.body.dataset.state = state;
    if (on) document.body.classList.remove("mirror"); // this window listens itself
    document.body.classList.toggle("lost", lost);
    say(text);
    if (state === "listening") listDevices(); // their names are known once one was allowed
    change();
  },
});

function change() {
  const some = captions.finals.length > 0;
  for (const button of [$("#copy"), $("#save"), $("#clear")]) button.disabled = !some;
}

$("#toggle").addEventListener("click", () => live.toggle());
addEventListener("keydown", (event) => {
  if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyS") {
    event.preventDefault();
    live.toggle();
  }
});
$("#copy").addEventListener("click", async () => {
  await copy(captions.finals);
  say("Copied");
});
$("#clear").addEventListener("click", () => live.clear());
$("#confidence").addEventListener("click", () => confidence.toggle());
menu($("#save"), $("#save-menu"), (format) => {
  const now = new Date();
  const stamp = new Date(now - now.getTimezoneOffset() * 60_000).toISOString().slice(0, 16).replace("T", " ").replace(":", "-");
  download(format, `open-speech ${stamp}`, captions.finals, { model: live.model });
});
addEventListener("beforeunload", (event) => {
  if (!live.idle) event.preventDefault();
});

// What was heard outlives a reload of this tab, and ends with it.

function keep() {
  if (captionsOnly) return;
  try {
    if (captions.finals.length) sessionStorage.setItem(TRANSCRIPT, JSON.stringify({ seconds: live.seconds, model: live.model, finals: captions.finals }));
    else sessionStorage.removeItem(TRANSCRIPT);
  } catch {
    // a day of speech is more than the browser keeps
  }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(TRANSCRIPT));
    for (const final of kept?.finals ?? []) captions.final(final);
    if (kept) live.continueFrom(kept.seconds);
    live.model = kept?.model ?? null;
  } catch {
    // not ours, or broken
  }
}

addEventListener("pagehide", keep);
document.addEventListener("visibilitychange", () => document.hidden && keep());

// A window of large captions shows what this page hears, or listens itself.

if (captionsOnly) {
  document.body.classList.add("captions");
  $("#options").open = false;
  channel?.addEventListener("message", ({ data }) => {
    if (!live.idle || data.type === "hello") return;
    document.body.classList.add("mirror");
    say("The other window listens");
    if (data.type === "so far") {
      if (!captions.finals.length) for (const final of data.finals) captions.final(final);
    } else if (data.type === "speech_started") captions.started(data.at);
    else if (data.type === "partial") captions.partial(data);
    else if (data.type === "final") captions.final(data);
    else if (data.type === "clear") captions.clear();
  });
  channel?.postMessage({ type: "hello" });
} else {
  channel?.addEventListener("message", ({ data }) => {
    if (data.type === "hello" && captions.finals.length) channel.postMessage({ type: "so far", finals: captions.finals });
  });
  if (matchMedia("(max-width: 60rem)").matches) $("#options").open = false;
  restore();
}

if (!isSecureContext) show(explain({ code: "insecure_context" }));
turn();
change();
recall();
listDevices();
greet();

export { base, captions, live };
