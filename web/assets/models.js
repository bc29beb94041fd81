// Models: what is in memory, what is on disk, what could be had.

import { askKey, json, lines, request } from "./server.js";
import { explain } from "./problems.js";

/** Milliseconds between looks while the panel is open. */
const EVERY = 4000;

export class Models {
  /** `onRows(rows)` gets the server's list whenever it was read. */
  constructor(root, onRows) {
    this._section = root;
    this._root = root.querySelector("#model-list");
    this._onRows = onRows;
    this._offline = false;
    this._locked = false;
    this._asked = new Map(); // by id: rows that are shown because somebody asked for them by name
    this._rows = new Map(); // by id: {element, shown}
    this._work = new Map(); // by id: what is being done, {text, fraction} or {error}
    this._timer = null;
    root.querySelector("#models-key").addEventListener("click", async () => {
      if (await askKey()) this._lock(false);
    });
    const form = root.querySelector("#pull");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const id = form.elements.repository.value.trim();
      if (!id) return;
      form.reset();
      this.pull(id);
    });
  }

  /** The server never downloads: offer nothing that it would refuse. */
  set offline(value) {
    this._offline = value;
    this._section.querySelector("#pull").hidden = value || this._locked;
    this._section.querySelector("#models-offline").hidden = !value || this._locked;
  }

  /** The key is good for looking, not for changing. */
  _lock(value) {
    this._locked = value;
    this._section.querySelector("#models-locked").hidden = !value;
    this.offline = this._offline;
    for (const entry of this._rows.values()) {
      entry.shown = "";
      this._draw(entry);
    }
  }

  /** Have a model downloaded, also one that the list does not know. */
  async pull(id) {
    if (!this._rows.has(id)) {
      this._asked.set(id, { id, downloaded: false, loaded: false });
      await this.refresh().catch(() => {});
    }
    this._rows.get(id)?.element.scrollIntoView({ block: "nearest" });
    if (!this._work.has(id) || this._work.get(id).error) this._do(id, "Downloading", () => this._pull(id));
  }

  watch(on) {
    clearInterval(this._timer);
    this._timer = null;
    if (!on) return;
    this._timer = setInterval(() => document.hidden || this.refresh().catch(() => {}), EVERY);
    this.refresh().catch((error) => this._broken(error));
  }

  async refresh() {
    const [{ data }, { loaded }] = await Promise.all([json("v1/models?all=true"), json("api/ps").catch(() => ({ loaded: [] }))]);
    const memory = new Map(loaded.map((each) => [each.id, each]));
    const rows = data.filter((row) => !row.alias_of && (row.downloaded || row.loaded || !this._offline));
    for (const { id } of rows) this._asked.delete(id);
    rows.push(...this._asked.values());
    rows.sort((a, b) => rank(b) - rank(a) || a.id.localeCompare(b.id));
    this._root.removeAttribute("aria-busy");
    if (!this._list) {
      this._list = document.createElement("ul");
      this._root.replaceChildren(this._list);
    }
    const seen = new Set(rows.map(({ id }) => id));
    for (const [id, { element }] of this._rows) {
      if (!seen.has(id)) {
        element.remove();
        this._rows.delete(id);
      }
    }
    let before = null;
    for (const row of rows) {
      const entry = this._rows.get(row.id) ?? { element: document.createElement("li"), shown: "" };
      this._rows.set(row.id, entry);
      entry.row = row;
      entry.memory = memory.get(row.id);
      this._draw(entry);
      const place = before ? before.nextSibling : this._list.firstChild;
      if (place !== entry.element) this._list.insertBefore(entry.element, place);
      before = entry.element;
    }
    this._onRows(rows);
  }

  _draw(entry) {
    const { row, memory, element } = entry;
    const work = this._work.get(row.id);
    const shown = JSON.stringify([row, { ...memory, idle_seconds: 0, expires_in: Math.ceil((memory?.expires_in ?? 0) / 30) }, work]);
    if (shown === entry.shown) return;
    entry.shown = shown;
    const focused = element.contains(document.activeElement) ? document.activeElement.dataset.deed : null;
    const name = document.createElement("h2");
    name.textContent = row.id;
    const facts = document.createElement("p");
    facts.className = "facts";
    const told = [
      row.backend?.replace("_", "-"),
      row.languages?.length === 1 ? "1 language" : row.languages?.length ? `${row.languages.length} languages` : null,
      row.tasks?.includes("translate") ? "translates" : null,
      row.size ? `${bytes(row.size)}${row.downloaded ? "" : " to download"}` : null,
      row.licence,
    ];
    if (memory) {
      told.push(`${memory.device}, ${memory.compute_type}`);
      if (memory.memory) told.push(`${bytes(memory.memory)} of memory`);
      told.push(memory.in_use ? `in use ${memory.in_use}×` : memory.expires_in ? `unloads in ${Math.ceil(memory.expires_in / 60)} min` : null);
    }
    facts.textContent = told.filter(Boolean).join(" · ");
    const state = document.createElement("span");
    state.className = memory ? "badge on" : "badge";
    state.textContent = memory ? "in memory" : row.downloaded ? "on disk" : "not here";
    name.append(" ", state);
    const deeds = document.createElement("div");
    deeds.className = "tools";
    const button = (deed, text, run) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.dataset.deed = deed;
      made.setAttribute("aria-label", `${text} ${row.id}`);
      made.addEventListener("click", () => run());
      deeds.append(made);
    };
    if (work && !work.error) {
      const bar = document.createElement("progress");
      bar.setAttribute("aria-label", `${work.text} ${row.id}`);
      if (work.fraction !== null) bar.value = work.fraction;
      const text = document.createElement("span");
      text.setAttribute("role", "status");
      text.textContent = work.text;
      deeds.append(bar, text);
    } else if (this._locked) {
      // nothing to offer
    } else if (memory) {
      button("unload", "Unload", () => this._do(row.id, "Unloading", () => request(`api/ps/${path(row.id)}`, { method: "DELETE" })));
    } else if (row.downloaded) {
      if (row.removable) button("remove", "Remove", () => this._remove(row));
      button("load", "Load", () => this._do(row.id, "Loading", () => request(`api/ps/${path(row.id)}`, { method: "POST" })));
    } else {
      button("pull", "Download", () => this.pull(row.id));
      if (this._asked.has(row.id)) button("forget", "Dismiss", () => this._forget(row.id));
    }
    const parts = [name, facts, deeds];
    if (work?.error) {
      const error = document.createElement("p");
      error.className = "error";
      error.setAttribute("role", "alert");
      error.textContent = work.error;
      parts.push(error);
    }
    element.replaceChildren(...parts);
    if (focused) (element.querySelector(`[data-deed="${focused}"]`) ?? element.querySelector("button"))?.focus();
  }

  async _do(id, text, deed) {
    this._set(id, { text: `${text} …`, fraction: null });
    try {
      await deed();
      this._set(id, null);
    } catch (error) {
      if (error.code === "missing_scope") {
        this._set(id, null);
        this._lock(true);
        return;
      }
      const { title, text: told } = explain(error);
      this._set(id, { error: title === "That did not work" ? told : `${title}. ${told}` });
    }
    await this.refresh().catch(() => {});
  }

  _forget(id) {
    this._asked.delete(id);
    this._work.delete(id);
    this.refresh().catch(() => {});
  }

  /** Delete a download, once it was asked whether to. */
  _remove({ id, size }) {
    const dialog = document.querySelector("#remove");
    dialog.querySelector("h2").textContent = `Remove ${id}?`;
    dialog.querySelector("p").textContent = `Its files are deleted from the server${size ? `, ${bytes(size)}` : ""}. To have it back it must be downloaded again.`;
    dialog.returnValue = "cancel";
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue !== "ok") return;
        this._do(id, "Removing", () => request(`api/pull/${path(id)}`, { method: "DELETE" }));
      },
      { once: true },
    );
    dialog.showModal();
  }

  async _pull(id) {
    await pull(id, (text, fraction) => this._set(id, { text, fraction }));
  }

  _set(id, work) {
    if (work) this._work.set(id, work);
    else this._work.delete(id);
    const entry = this._rows.get(id);
    if (entry) this._draw(entry);
  }

  _broken(error) {
    const { title, text } = explain(error);
    const told = document.createElement("p");
    told.className = "error";
    told.setAttribute("role", "alert");
    told.textContent = title === "That did not work" ? text : `${title}. ${text}`;
    this._list = null;
    this._rows.clear();
    this._root.removeAttribute("aria-busy");
    this._root.replaceChildren(told);
  }
}

/** Have a model downloaded: `onProgress("43 MB of 148 MB", 0.29)` while it comes. Throws what went wrong. */
export async function pull(id, onProgress, signal) {
  const response = await request(`api/pull/${path(id)}`, { method: "POST", signal });
  if (response.status === 200) return;
  for await (const line of lines(response)) {
    if (line.status === "error") throw new Error(line.error.message);
    if (line.total) onProgress(`${bytes(line.completed)} of ${bytes(line.total)}`, line.completed / line.total);
  }
}

/** In memory first, then on disk, then the rest. */
function rank(row) {
  return (row.loaded ? 2 : 0) + (row.downloaded ? 1 : 0);
}

function path(id) {
  return id.split("/").map(encodeURIComponent).join("/");
}

function bytes(count) {
  if (count < 1e6) return `${Math.ceil(count / 1e3)} kB`;
  return count < 1e9 ? `${Math.round(count / 1e6)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}
