// Recordings: a queue, their progress, and a player whose words light up as they are said.

import { Problem, upload } from "./server.js";
import { explain } from "./problems.js";
import { confidence, copy, download, menu, short, words } from "./transcript.js";

/** How often a recording is tried again by itself while the server is busy. */
const PATIENCE = 5;

export class Files {
  /**
   * `settings()` gives model, language and task, as they are when a file is added; `fetched(model, onText, signal)`
   * resolves once the server has the model.
   */
  constructor(root, settings, fetched) {
    this._fetched = fetched;
    this._queue = root.querySelector("#queue");
    this._settings = settings;
    this._waiting = [];
    this._busy = false;
    const drop = root.querySelector("#drop");
    const picker = root.querySelector("#picker");
    root.querySelector("#choose").addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      this.add(picker.files);
      picker.value = "";
    });
    // A file dropped beside the mark must not replace the page.
    document.addEventListener("dragover", (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      drop.classList.remove("over");
      location.hash = "#files";
      this.add(event.dataTransfer.files);
    });
  }

  add(files) {
    const items = [...files].map((file) => new Recording(file, this._settings(), this._fetched, (again) => this._enqueue(again)));
    this._queue.prepend(...items.map(({ element }) => element));
    for (const item of items) this._enqueue(item);
  }

  _enqueue(item) {
    this._waiting.push(item);
    if (!this._busy) this._work();
  }

  /** One after the other, in the order they came. */
  async _work() {
    this._busy = true;
    while (this._waiting.length) await this._waiting.shift().run();
    this._busy = false;
  }
}

class Recording {
  constructor(file, options, fetched, again) {
    this._fetched = fetched;
    this._file = file;
    this._options = options;
    this._again = again;
    this._url = URL.createObjectURL(file);
    this._utterances = [];
    this._spans = []; // of all words, in order
    this._now = -1;
    this._abort = null;
    this._state = "waiting";
    this.element = document.createElement("li");
    this.element.className = "recording";
    this._build();
    this._say("Waiting");
  }

  /** Upload and transcribe; never throws. */
  async run() {
    if (this._state !== "waiting") return;
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this._once();
        return;
      } catch (error) {
        if (error.name === "AbortError") {
          this._finish("cancelled", "Cancelled");
          return;
        }
        const busy = error instanceof Problem && [429, 503].includes(error.status) && error.retryAfter;
        if (!busy || attempt >= PATIENCE) {
          const { title, text } = explain(error);
          this._finish("failed", title === "That did not work" ? text : `${title}. ${text}`);
          return;
        }
        this._say(`The server is busy; trying again in ${Math.ceil(error.retryAfter)} s`);
        await this._pause(error.retryAfter);
        if (this._state === "cancelled") {
          this._finish("cancelled", "Cancelled");
          return;
        }
      }
    }
  }

  /** Wait, but not for somebody who cancels. */
  _pause(seconds) {
    return new Promise((resolve) => {
      this._bar.removeAttribute("value");
      const timer = setTimeout(resolve, seconds * 1000);
      this._abort.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  async _once() {
    this._state = "working";
    this._abort = new AbortController();
    this._utterances = [];
    this._spans = [];
    this._text.replaceChildren();
    this.element.dataset.state = "working";
    await this._fetched(this._options.model, (text) => this._progress(null, text), this._abort.signal);
    const form = new FormData();
    const { task, model, language } = this._options;
    if (model) form.append("model", model);
    if (language && task !== "translate") form.append("language", language);
    form.append("response_format", "verbose_json");
    form.append("timestamp_granularities[]", "segment");
    form.append("timestamp_granularities[]", "word");
    form.append("stream", "true");
    form.append("file", this._file);
    const began = performance.now();
    await upload(`v1/audio/${task === "translate" ? "translations" : "transcriptions"}`, form, {
      signal: this._abort.signal,
      onSent: (fraction) => {
        if (fraction < 1) this._progress(fraction, `Uploading, ${Math.floor(fraction * 100)} %`);
        else this._progress(null, "Transcribing");
      },
      onEvent: (event) => this._hear(event),
    });
    const seconds = (performance.now() - began) / 1000;
    const length = this._length();
    const took = seconds < 60 ? `${seconds.toFixed(1)} s` : short(seconds);
    this._finish("done", this._utterances.length ? `Done: ${length ? `${short(length)} of sound in ` : "in "}${took}` : "Done: no speech was found");
  }

  _hear(event) {
    if (event.error) throw new Problem(event.error.message, { code: event.error.code });
    for (const segment of event.segments ?? []) {
      const utterance = {
        text: segment.text.trim(),
        start: segment.start,
        end: segment.end,
        language: event.language_code ?? null,
        words: (segment.words ?? []).map(({ word, ...times }) => ({ text: word, ...times })),
      };
      this._utterances.push(utterance);
      this._append(utterance);
      const length = this._length();
      if (length) this._progress(Math.min(1, segment.end / length), `Transcribing, ${short(segment.end)} of ${short(length)}`);
      else this._progress(null, `Transcribing, ${short(segment.end)} so far`);
    }
  }

  _append(utterance) {
    const row = document.createElement("p");
    row.className = "utterance";
    const time = document.createElement("button");
    time.type = "button";
    time.className = "time";
    time.textContent = short(utterance.start);
    time.setAttribute("aria-label", `Play from ${short(utterance.start)}`);
    time.addEventListener("click", () => this._seek(utterance.start));
    const text = words(utterance);
    row.append(time, text);
    this._spans.push(...text.querySelectorAll(".w"));
    this._text.append(row);
    this._body.hidden = false;
  }

  _build() {
    const make = (tag, className, text) => {
      const made = document.createElement(tag);
      if (className) made.className = className;
      if (text) made.textContent = text;
      return made;
    };
    const button = (text, deed, className) => {
      const made = make("button", className, text);
      made.type = "button";
      made.addEventListener("click", deed);
      return made;
    };
    const head = make("div", "head");
    const size = this._file.size < 1e6 ? `${Math.ceil(this._file.size / 1e3)} kB` : `${(this._file.size / 1e6).toFixed(1)} MB`;
    const name = make("h2", "name", this._file.name);
    name.append(make("small", "", ` ${size}`));
    this._status = make("p", "state");
    this._status.setAttribute("role", "status");
    this._bar = document.createElement("progress");
    this._bar.max = 1;
    this._bar.setAttribute("aria-label", `Progress of ${this._file.name}`);
    const buttons = make("div", "tools");
    this._cancel = button("Cancel", () => this._stop());
    this._retry = button("Try again", () => {
      this._state = "waiting";
      this._say("Waiting");
      this._again(this);
    });
    this._remove = button("Remove", () => this._dispose());
    this._sure = button("Confidence", () => confidence.toggle());
    this._sure.dataset.confidence = "";
    this._sure.title = "Mark the words that the recogniser was unsure of";
    confidence.tell(this._sure);
    this._copy = button("Copy", async () => {
      await copy(this._utterances);
      this._status.textContent = "Copied";
    });
    const around = make("div", "menu");
    const save = button("Download", () => {});
    const choices = make("div", "choices");
    choices.hidden = true;
    choices.id = `choices-${Math.random().toString(36).slice(2)}`;
    save.setAttribute("aria-expanded", "false");
    save.setAttribute("aria-controls", choices.id);
    for (const [format, label] of [["txt", "Text (.txt)"], ["srt", "SubRip (.srt)"], ["vtt", "WebVTT (.vtt)"], ["json", "JSON, with words (.json)"]]) {
      const choice = make("button", "", label);
      choice.type = "button";
      choice.dataset.format = format;
      choices.append(choice);
    }
    around.append(save, choices);
    this._save = around;
    menu(save, choices, (format) => {
      const base = this._file.name.replace(/\.[^.]+$/, "");
      download(format, base, this._utterances, { file: this._file.name, model: this._options.model ?? null });
    });
    buttons.append(this._cancel, this._retry, this._copy, around, this._sure, this._remove);
    head.append(name, this._status, this._bar, buttons);

    this._body = make("div", "body");
    this._body.hidden = true;
    this._media = document.createElement(this._file.type.startsWith("video/") ? "video" : "audio");
    this._media.controls = true;
    this._media.preload = "metadata";
    this._media.src = this._url;
    this._media.setAttribute("aria-label", this._file.name);
    this._media.addEventListener("error", () => {
      this._media.hidden = true; // a format that this browser does not play; the server reads it all the same
    });
    this._media.addEventListener("play", () => this._follow());
    this._media.addEventListener("seeked", () => this._light());
    this._text = make("div", "transcript");
    this._text.tabIndex = 0;
    this._text.setAttribute("role", "region");
    this._text.setAttribute("aria-label", `Transcript of ${this._file.name}`);
    this._text.addEventListener("click", ({ target }) => {
      if (target.classList.contains("w")) this._seek(Number(target.dataset.start));
    });
    this._body.append(this._media, this._text);
    this.element.append(head, this._body);
  }

  _seek(seconds) {
    if (this._media.hidden) return;
    this._media.currentTime = seconds;
    this._media.play().catch(() => {});
  }

  _follow() {
    const step = () => {
      this._light();
      if (!this._media.paused && !this._media.ended) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  /** Mark the word that is being said. */
  _light() {
    const at = this._media.currentTime + 0.02;
    let low = 0;
    let high = this._spans.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (Number(this._spans[middle].dataset.start) <= at) low = middle + 1;
      else high = middle;
    }
    const found = low - 1;
    if (found === this._now) return;
    this._spans[this._now]?.classList.remove("now");
    this._now = found;
    const span = this._spans[found];
    if (!span) return;
    span.classList.add("now");
    const box = this._text.getBoundingClientRect();
    const { top, bottom } = span.getBoundingClientRect();
    if (top < box.top || bottom > box.bottom) this._text.scrollTop += top - box.top - box.height / 3;
  }

  _stop() {
    if (this._state === "waiting") this._finish("cancelled", "Cancelled");
    else {
      this._state = "cancelled";
      this._abort?.abort();
    }
  }

  _dispose() {
    this._stop();
    this._media.pause();
    URL.revokeObjectURL(this._url);
    this.element.remove();
  }

  _length() {
    return Number.isFinite(this._media.duration) ? this._media.duration : 0;
  }

  _progress(fraction, text) {
    if (fraction === null) this._bar.removeAttribute("value");
    else this._bar.value = fraction;
    this._say(text);
  }

  _finish(state, text) {
    this._state = state;
    this._say(text);
  }

  _say(text) {
    this._status.textContent = text;
    this.element.dataset.state = this._state;
    const over = ["done", "failed", "cancelled"].includes(this._state);
    this._cancel.hidden = over;
    this._bar.hidden = over || this._state === "waiting";
    this._retry.hidden = !["failed", "cancelled"].includes(this._state);
    this._remove.hidden = !over;
    this._copy.hidden = this._save.hidden = this._sure.hidden = !this._utterances.length;
  }
}
