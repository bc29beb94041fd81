// From the microphone to captions: what start and stop do, and what is told while it runs.

import { Stream, openMicrophone, openTab } from "../client/open-speech.js";
import { askKey, base, key } from "./server.js";
import { explain, hide, show } from "./problems.js";
import { short } from "./transcript.js";

/** Words whose delay the figure is the median of. */
const RECENT = 15;
/** Level below which no microphone that is on ever stays, and the milliseconds of it after which that is said. */
const MUTE = 1e-4;
const MUTE_AFTER = 6000;
/** Attempts after which a server that does not come back is called so. */
const STUBBORN = 4;

export class Live {
  /**
   * `onState(state, text, lost)` with `idle`, `busy` or `listening`, and whether the connection is lost; `settings()`
   * gives the form's values; `fetched(model, onText, signal)` resolves once the server has the model.
   */
  constructor({ captions, meter, figures, settings, fetched, onState, onChange, channel }) {
    this._captions = captions;
    this._meter = meter;
    this._figures = figures;
    this._settings = settings;
    this._fetched = fetched;
    this._onState = onState;
    this._onChange = onChange;
    this._channel = channel;
    this._stream = null;
    this._capture = null;
    this._state = "idle";
    this._before = 0; // seconds of the recordings before this one: times go on
    this._tick = null;
    this._wake = null;
    this._gaveUp = false;
    this._asking = 0; // number of the question for the device that is open
    this._lost = this._away = false;
    this._sounded = 0; // when the last sound came
    document.addEventListener("visibilitychange", () => this._stayAwake());
    /** The model that listened last. */
    this.model = null;
  }

  get idle() {
    return this._state === "idle";
  }

  toggle() {
    if (this._state === "idle") this.start();
    else if (this._state === "listening") this.stop();
    else if (this._stream) {
      // A model that takes long to load, or a server that does not come back: enough.
      this._gaveUp = true;
      this._stream.close();
    } else if (!this._capture) {
      // A question that nobody answers: forget it. A late answer is given back.
      this._asking += 1;
      this._fetching?.abort();
      this._set("idle", "Ready");
    }
  }

  /** Seconds of all recordings so far. */
  get seconds() {
    return Math.max(this._before, this._stream?.seconds ?? 0);
  }

  /** Go on in time after a transcript that was kept. */
  continueFrom(seconds) {
    this._before = Math.max(this._before, seconds);
  }

  async start() {
    hide();
    this._gaveUp = false;
    const { source, deviceId, echoCancellation, noiseSuppression, autoGainControl, ...options } = this._settings();
    this._silence = source === "tab" ? "Listening; nothing plays" : "No sound comes in. Is the microphone muted?";
    const question = source === "tab" ? "Choose what to share in the browser’s window" : "Waiting for the microphone: answer the browser’s question";
    const asking = (this._asking += 1);
    this._set("busy", "Connecting …");
    this._fetching = new AbortController();
    try {
      await this._fetched(options.model, (text) => this._set("busy", text), this._fetching.signal);
    } catch {
      return; // enough waited
    }
    if (asking !== this._asking) return;
    this._set("busy", question);
    try {
      const capture =
        source === "tab" ? await openTab() : await openMicrophone({ deviceId, echoCancellation, noiseSuppression, autoGainControl });
      if (asking !== this._asking) {
        capture.stop();
        return;
      }
      this._capture = capture;
    } catch (error) {
      if (asking !== this._asking) return;
      this._fail(source === "tab" && error instanceof DOMException ? { code: "not_shared" } : error);
      return;
    }
    this._sounded = performance.now();
    this._capture.addEventListener("level", ({ detail }) => {
      if (detail.level > MUTE) this._sounded = performance.now();
      this._meter.add(detail.level);
    });
    this._capture.addEventListener("ended", () => {
      show(explain({ code: "device_gone" }));
      this.stop();
    });
    this._set("busy", "Connecting …");
    if (!(await this._connect(options))) return;
    this._set("listening", "Listening");
    this._tick = setInterval(() => this._tell(), 250);
    this._stayAwake();
  }

  /** Keep the screen on. The browser takes the lock away whenever the page is hidden. */
  async _stayAwake() {
    if (this._state !== "listening" || document.hidden || !navigator.wakeLock) return;
    const lock = await navigator.wakeLock.request("screen").catch(() => null);
    if (this._state === "listening") this._wake = lock;
    else lock?.release().catch(() => {});
  }

  /** No more audio; the last words come, then it rests. */
  async stop() {
    if (this._state !== "listening") return;
    const stream = this._stream;
    this._set("busy", "Finishing …");
    this._release();
    try {
      await stream.end();
    } catch (error) {
      show(explain(error));
    }
    if (this._gaveUp) show({ title: "Stopped at once", text: "Words that were still being recognised are missing.", remedy: "" });
    this._captions.abandon();
    this._rest();
  }

  clear() {
    this._captions.clear();
    if (this.idle) this._before = 0;
    this._say({ type: "clear" });
    this._onChange();
  }

  async _connect(options) {
    for (;;) {
      const stream = new Stream(base, {
        ...options,
        words: true,
        encoding: "pcm_s16le",
        sample_rate: this._capture.sampleRate,
        offset: this._before,
        key: key(),
      });
      this._stream = stream;
      this._delays = [];
      this._latest = 0;
      this._follow(stream);
      // What is said while a model loads is heard too: the client keeps it.
      this._capture.start((frame) => stream.state !== "closed" && stream.send(frame));
      try {
        await stream.open();
        this.model = stream.model;
        return true;
      } catch (error) {
        if (this._gaveUp) {
          this._release();
          this._rest();
          return false;
        }
        if (error.code === "invalid_api_key" && (await askKey())) continue;
        this._fail(error);
        return false;
      }
    }
  }

  _follow(stream) {
    const on = (type, deed) =>
      stream.addEventListener(type, ({ detail }) => {
        deed(detail);
        this._say(detail);
      });
    on("speech_started", ({ at }) => this._captions.started(at));
    on("partial", (partial) => {
      this._captions.partial(partial);
      this._time(partial.words);
    });
    on("final", (final) => {
      const { text, start, end, language, words } = final;
      this._captions.final({ text, start, end, language, words });
      this._onChange();
    });
    stream.addEventListener("connection", ({ detail }) => {
      if (detail.state === "opening") this._set("busy", "Preparing the model …");
      if (detail.state === "reconnecting") {
        this._lost = true;
        const doing = this._state === "busy" ? "What you said is kept" : "What you say is kept";
        this._onState(this._state, `Reconnecting … ${doing}.`, true);
        this._away ||= detail.attempt === STUBBORN;
        if (detail.attempt === STUBBORN) show(explain({ code: "away" }));
      }
      if (detail.state === "open" && this._lost) {
        if (this._away) hide();
        this._lost = this._away = false;
        this._set(this._state, this._state === "listening" ? "Listening" : "Finishing …");
      }
    });
    stream.addEventListener("error", ({ detail }) => {
      if (detail.utterance !== undefined) show({ ...explain(new Error(detail.message)), title: "A sentence was not recognised" });
    });
    stream.addEventListener("gap", ({ detail }) => {
      show({
        title: "Some words were lost",
        text: `The connection was away for too long: ${Math.ceil(detail.seconds)} s of sound could not be kept.`,
        remedy: "",
      });
    });
    stream.addEventListener("failed", ({ detail }) => {
      if (stream === this._stream) this._fail(detail.error);
    });
  }

  /** How long words took from their end, as captured, to the screen. */
  _time(words) {
    for (const word of words ?? []) {
      if (word.end <= this._latest + 0.02) continue;
      this._latest = word.end;
      this._delays.push(Math.max(0, this._stream.seconds - word.end));
      if (this._delays.length > RECENT) this._delays.shift();
    }
  }

  _tell() {
    const stream = this._stream;
    if (!stream) return;
    const { elapsed, latency, lag } = this._figures;
    elapsed.textContent = short(stream.seconds);
    const sorted = [...this._delays].sort((a, b) => a - b);
    latency.textContent = sorted.length ? `${sorted[Math.floor(sorted.length / 2)].toFixed(2)} s` : "–";
    // While there is no connection, what waits here is what the server has not seen.
    lag.textContent = `${(stream.state === "open" ? stream.lag + stream.buffered : stream.unconfirmed).toFixed(1)} s`;
    if (this._state !== "listening" || stream.state !== "open") return;
    const silent = performance.now() - this._sounded > MUTE_AFTER;
    if (stream.buffered > 1) this._onState("listening", `The network is slow: ${stream.buffered.toFixed(0)} s of sound wait to be sent`);
    else if (silent) this._onState("listening", this._silence);
    else this._onState("listening", "Listening");
  }

  _fail(error) {
    this._release();
    this._captions.abandon();
    this._rest();
    show(explain(error));
  }

  _rest() {
    clearInterval(this._tick);
    this._before = this.seconds;
    this._stream = null;
    this._lost = this._away = false;
    this._meter.rest();
    this._set("idle", "Ready");
  }

  _release() {
    this._capture?.stop();
    this._capture = null;
    this._wake?.release().catch(() => {});
    this._wake = null;
  }

  _set(state, text) {
    this._state = state;
    this._onState(state, text, this._lost);
  }

  _say(event) {
    this._channel?.postMessage(event);
  }
}
