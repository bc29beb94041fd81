/**
 * The client of open-speech: live transcription over its native WebSocket, in browsers and in Node.
 *
 * `Conversation` is the protocol without I/O or clock; `Stream` carries it over sockets, and opens a new one when one
 * breaks; `openMicrophone` and `openTab` capture audio; `srt`, `vtt` and `text` write what was heard.
 */

const PROTOCOL = "open-speech";
const KEY_PREFIX = "open-speech-key.";
const WIDTH = { pcm_s16le: 2, pcm_f32le: 4, mulaw: 1, alaw: 1 };
/** Options that are the client's own; all others go to the server as they are. */
const OWN = ["key", "reconnect", "bufferSeconds", "WebSocket", "signal", "connectTimeout"];
/** Bytes of audio in a message at most, however much is given at once: a server takes 4 MiB. */
const MESSAGE = 65_536;
/** Bytes that may wait in the socket before more is kept here. Half a second of 48 kHz audio. */
const IN_SOCKET = 48_000;
/** Milliseconds of silence from the server, while it owes an `ack`, after which the connection is taken for dead. */
const DEAD = 12_000;
/** Milliseconds without audio after which a `keepalive` is sent; the server gives up after 60 s. */
const KEEPALIVE = 20_000;
/** Milliseconds that the browser's audio may take to start. */
const STARTING = 8000;
/** Seconds of silence kept, to be heard again by a new session: pre-roll is 5 s at most. */
const MARGIN = 10;
/** Events that may wait for a `for await` that has not begun or is slow: three a sentence, so these are hours of speech. */
const EVENTS = 10_000;
/** Close codes after which another attempt would fail the same way, unless the error was one of these. */
const FATAL = new Set([1002, 1003, 1007, 1008, 1009]);
const ANEW = new Set(["not_resumable", "unknown_session", "events_gone", "session_limit"]);

/** What went wrong, in a sentence; `code` is the server's, or `unreachable`, `lost`, `closed`, `aborted`, `unread`. */
export class OpenSpeechError extends Error {
  constructor(message, { code = "failed", param, retryAfter, closeCode } = {}) {
    super(message);
    this.name = "OpenSpeechError";
    this.code = code;
    this.param = param;
    /** Seconds after which another attempt makes sense. */
    this.retryAfter = retryAfter;
    this.closeCode = closeCode;
  }
}

/** An event of a stream; `detail` is the message. */
export class StreamEvent extends Event {
  constructor(detail) {
    super(detail.type);
    this.detail = detail;
  }
}

/**
 * One transcription over any number of connections: what to send next, what an incoming message means. Pure.
 *
 * Audio is addressed by its byte from the start of the stream. It is kept until a final covers it, or until it is
 * older than `bufferSeconds`. A session that the server kept is resumed: it says from which byte on, and repeats what it
 * said meanwhile. Where it is gone, a new session hears again what no final covers, and its times go on by `offset`.
 */
export class Conversation {
  constructor(options = {}) {
    const { bufferSeconds = 120, ...wanted } = options;
    this._options = Object.fromEntries(
      Object.entries(wanted).filter(([name, value]) => value != null && !OWN.includes(name)),
    );
    const encoding = wanted.encoding ?? "pcm_s16le";
    this._framed = encoding in WIDTH;
    const rate = wanted.sample_rate ?? (encoding === "mulaw" || encoding === "alaw" ? 8000 : 16000);
    this._frame = (WIDTH[encoding] ?? 1) * (wanted.channels ?? 1);
    this._most = encoding === "opus" ? Infinity : MESSAGE; // a message is one Opus packet
    this._perSecond = this._framed ? rate * this._frame : 6000;
    this._start = wanted.offset ?? 0;
    this._limit = bufferSeconds * this._perSecond;
    this._items = []; // {at, data} and {at, text}, in order; `at` is the byte they begin at
    this._end = 0; // bytes given
    this._sent = 0; // bytes that went into this connection
    this._cursor = 0; // items that went into this connection
    this._safe = 0; // bytes that finals cover
    this._told = 0; // bytes up to which holes were told
    this._hole = 0; // bytes of a hole to tell once a session is open
    this._base = 0; // where this session began
    this._session = null;
    this._resumable = false;
    this._seq = -1; // of the last event
    this._held = -1; // bytes that the session had when it was resumed: commits before them are with it
    this._number = 0; // utterance that this session calls 0
    this._done = 0; // utterances that have their final
    this._language = null; // of the last final
    this._agreed = null; // of two in a row, after which the server's sessions keep to it
    this._cut = null; // the final of an utterance that the next session hears again
    this._open = false;
    this._ready = false;
    this._ending = false;
    this._received = 0;
    /** Seconds of audio that the server is behind, as it says itself. */
    this.lag = 0;
    /** The resumed session cannot go on, for it needs what is forgotten: leave it, a new one begins after the hole. */
    this.stale = false;
    /** The last message came: nothing more will. */
    this.ended = false;
  }

  /** Seconds of audio given so far. */
  get seconds() {
    return this._start + this._end / this._perSecond;
  }

  /** Bytes that have not gone into the connection. */
  get unsent() {
    return this._end - this._sent;
  }

  /** Seconds of audio that the server has not confirmed. */
  get unconfirmed() {
    return Math.max(0, this._end - this._received) / this._perSecond;
  }

  /** Take audio. Answers an event if something had to be dropped because no connection came in time. */
  audio(data) {
    if (this._ending) throw new OpenSpeechError("the stream was ended; open another one", { code: "ended" });
    if (data.byteLength === 0) return null;
    this._items.push({ at: this._end, data });
    this._end += data.byteLength;
    return this._forget();
  }

  /** End the utterance here. */
  commit(marker) {
    if (this._ending) throw new OpenSpeechError("the stream was ended; open another one", { code: "ended" });
    this._items.push({ at: this._end, text: { type: "commit", ...(marker === undefined ? {} : { marker }) } });
  }

  /** No more audio. */
  end() {
    if (this._ending) return;
    this._ending = true;
    this._items.push({ at: this._end, text: { type: "end" } });
  }

  /** The first message of a new connection. */
  opening() {
    if (this._session !== null && this._resumable) {
      return JSON.stringify({ type: "resume", session: this._session, last_event: this._seq });
    }
    this._restart();
    const offset = this._start + this._base / this._perSecond;
    const { language = "auto" } = this._options;
    const heard = language === "auto" && this._agreed ? { language: this._agreed } : {};
    return JSON.stringify({ type: "start", ...this._options, ...heard, ...(offset > 0 ? { offset } : {}) });
  }

  /** The next message for the connection, binary or text; null if there is none. */
  next() {
    while (this._ready && this._cursor < this._items.length) {
      const { at, data, text } = this._items[this._cursor];
      if (text) {
        this._cursor += 1;
        if (at < this._held) continue;
        return JSON.stringify(text);
      }
      const skip = Math.max(0, this._sent - at);
      const until = Math.min(data.byteLength, skip + this._most);
      if (until === data.byteLength) this._cursor += 1;
      if (skip >= until) continue; // the session has it already
      this._sent = at + until;
      return data.subarray(skip, until);
    }
    return null;
  }

  /** Events of an incoming message. */
  receive(text) {
    const message = JSON.parse(text);
    if (message.type === "ready") return this._onReady(message);
    if (!this._isNew(message)) return [];
    if (typeof message.lag === "number") this.lag = message.lag;
    if (typeof message.received === "number") this._received = this._base + message.received;
    if (typeof message.utterance === "number") message.utterance += this._number;
    switch (message.type) {
      case "speech_started":
      case "partial":
        this._open = true;
        break;
      case "final":
        if (message.stream_language) this._agreed = message.stream_language;
        if (message.cut && this._framed) {
          this._cut = message; // left out, unless nothing comes after it
          return [];
        }
        this._done = message.utterance + 1;
        this._open = false;
        this._safe = Math.max(this._safe, this._byte(message.end));
        if (message.text && message.language) {
          if (message.language === this._language) this._agreed ??= message.language;
          this._language = message.language;
        }
        break;
      case "marker": {
        const sent = this._items.slice(0, this._cursor);
        const at = sent.findIndex(({ text }) => text?.type === "commit" && (text.marker ?? null) === (message.marker ?? null));
        if (at < 0) return []; // the commit was sent again after a resume, and had arrived the first time too
        this._items.splice(at, 1);
        this._cursor -= 1;
        break;
      }
      case "ack":
        // Where nobody speaks nothing has to be heard again, but for what the detector may not have looked at.
        if (!this._open) this._safe = Math.max(this._safe, this._received - (message.lag + MARGIN) * this._perSecond);
        break;
      case "error":
        if (typeof message.utterance === "number") this._done = message.utterance + 1;
        else if (!this._ready && message.code !== "overloaded") this._resumable = false; // a resume failed: start anew
        else if (message.code === "ended") return []; // an `end` that was sent again after a resume
        break;
      case "end":
        // A server that drains may end a session by itself; only the answer to our own `end` is the last word.
        if (this._ending && message.reason === "client") {
          this.ended = true;
          break;
        }
        this._resumable = false;
        return [];
    }
    this._forget();
    return [message];
  }

  /** What no session will hear again: the final of an utterance in which a server stopped that nobody follows. */
  leftover() {
    const found = this._cut ? [this._cut] : [];
    this._cut = null;
    return found;
  }

  /** The connection broke. Answers whether another one can go on: a container cannot be cut in the middle. */
  lost() {
    this._ready = false;
    return this._framed || this._resumable;
  }

  _onReady(message) {
    const resumed = message.session === this._session;
    const from = this._base + message.received;
    const kept = this._items[0]?.at ?? this._end;
    if (resumed && from < kept) {
      // What the session would have to hear next is forgotten here: its times would be wrong from now on.
      this._resumable = false;
      this.stale = true;
      return [];
    }
    this._ready = true;
    this._session = message.session;
    this._resumable = (message.resumable_seconds ?? 0) > 0;
    if (resumed) this._rewind(from);
    else {
      this._seq = 0;
      this._cut = null;
    }
    this._held = resumed ? from : -1;
    this._received = from;
    const opened = { ...message, resumed, model: message.model ?? null };
    if (!this._hole) return [opened];
    const gap = { type: "gap", seconds: this._hole / this._perSecond };
    this._hole = 0;
    return [opened, gap];
  }

  /** Whether an event of the session was not heard before; after a resume some might come twice. */
  _isNew({ type, seq }) {
    if (typeof seq !== "number") return true;
    if (type === "error" && seq === 0) return true; // of the connection, which counts nothing
    if (this._ready && seq <= this._seq) return false;
    this._seq = Math.max(this._seq, seq);
    return true;
  }

  /** Begin a session at the first byte that no final covers. */
  _restart() {
    const from = Math.max(this._safe, this._items[0]?.at ?? this._end);
    // The broken session may have heard some that is forgotten here; no final of it came.
    this._hole += from - Math.min(from, Math.max(this._safe, this._told));
    this._told = from;
    // Silence ends at any byte, and so do pieces: what begins within a sample is noise to its end.
    this._base = Math.ceil(from / this._frame) * this._frame;
    this._session = null;
    this.stale = false;
    this._number = this._done;
    this._open = false;
    this._rewind(this._base);
  }

  _rewind(byte) {
    this._sent = byte;
    this._received = byte;
    this._cursor = 0; // commits without their marker, and what lies before `byte` is skipped
  }

  /** Drop audio that finals cover; beyond the limit also the oldest second, so that holes are few. */
  _forget() {
    const least = this._items[0] && this._end - this._items[0].at > this._limit ? this._end - this._limit + this._perSecond : 0;
    let lost = 0;
    while (this._items.length) {
      const { at, data } = this._items[0];
      if (!data && (at >= least || this._ending)) break; // a commit waits for its marker
      const until = at + (data?.byteLength ?? 0);
      const covered = until <= this._safe && until <= this._received;
      if (data && !covered && until > least) break;
      lost += Math.max(0, until - Math.max(at, this._sent, this._safe));
      this._items.shift();
      if (this._cursor > 0) this._cursor -= 1;
    }
    if (lost === 0) return null;
    this._told = this._items[0]?.at ?? this._end;
    this._sent = Math.max(this._sent, this._items[0]?.at ?? this._end);
    this._resumable = false; // after a hole the session's times would be wrong; a new one begins with an offset
    return { type: "gap", seconds: lost / this._perSecond };
  }

  _byte(seconds) {
    return Math.min(this._end, Math.round(((seconds - this._start) * this._perSecond) / this._frame) * this._frame);
  }
}

/**
 * A live transcription. Events come by `addEventListener`, and by `for await` until the end; both may be used.
 *
 * A `for await` gets what came before it began: every event waits until it is read, but for acks and partials that a
 * newer one or the final makes void. Where too many wait it throws `unread` after them, and listeners go on. If no loop
 * runs then, nobody is taken to want them: they are let go, and one that begins later throws at once.
 */
export class Stream extends EventTarget {
  constructor(url, options = {}) {
    super();
    this._address = address(url);
    this._protocols = options.key ? [PROTOCOL, KEY_PREFIX + options.key] : [PROTOCOL];
    this._Socket = options.WebSocket ?? globalThis.WebSocket;
    if (!this._Socket) {
      throw new OpenSpeechError("this JavaScript has no WebSocket; use Node 22, or node --experimental-websocket");
    }
    const again = options.reconnect ?? true;
    this._reconnect = again === false ? null : { attempts: Infinity, least: 0.5, most: 15, ...(again === true ? {} : again) };
    this._timeout = (options.connectTimeout ?? 10) * 1000;
    this._conversation = new Conversation(options);
    this._socket = null;
    this._attempt = 0;
    this._timers = new Set();
    this._unread = [];
    this._overrun = null; // why nothing more is kept for iterators
    this._iterators = 0;
    this._news = null; // what iterators wait for
    this._room = null; // what senders wait for
    this._fault = null;
    this._closed = false;
    this._heard = 0;
    this._owed = 0;
    this._spoke = 0;
    this._retryAfter = 0;
    this._pump = null;
    this._finish = null;
    this._fail = null;
    this._finished = new Promise((resolve, reject) => {
      this._finish = resolve;
      this._fail = reject;
    });
    this._finished.catch(() => {});
    /** `connecting`, `opening` (the server prepares, perhaps loads its model), `open`, `reconnecting` or `closed`. */
    this.state = "connecting";
    /** The session's id at the server. */
    this.session = null;
    /** The model that listens. */
    this.model = null;
    this._online = () => this._hurry();
    globalThis.addEventListener?.("online", this._online);
    this._signal = options.signal;
    this._abort = () => this._break(new OpenSpeechError("the stream was aborted", { code: "aborted" }));
    this._signal?.addEventListener("abort", this._abort);
  }

  /** Seconds that the server is behind the audio it has. */
  get lag() {
    return this._conversation.lag;
  }

  /** Seconds of audio that the server has not confirmed. */
  get unconfirmed() {
    return this._conversation.unconfirmed;
  }

  /** Seconds of audio that wait here to be sent. */
  get buffered() {
    return (this._conversation.unsent + (this._socket?.bufferedAmount ?? 0)) / this._conversation._perSecond;
  }

  /** Seconds of audio given so far: the time that events count in. */
  get seconds() {
    return this._conversation.seconds;
  }

  /** The first `ready`. Rejects if the server cannot be reached or refuses. */
  open() {
    const opening = deferred();
    this._opening = opening;
    if (this._closed) opening.reject(this._fault ?? new OpenSpeechError("the stream was closed", { code: "closed" }));
    else if (this._signal?.aborted) this._abort(); // its event has been
    else this._dial();
    return opening.promise;
  }

  /**
   * Send audio: bytes, or an Int16Array, which is not copied and must not be changed.
   *
   * Returns a promise that resolves when less than a second waits: a microphone ignores it, a file awaits it.
   */
  send(audio) {
    if (this._fault) throw this._fault;
    if (this._closed && !this._conversation.ended) throw new OpenSpeechError("the stream was closed; open another one", { code: "closed" });
    const data = ArrayBuffer.isView(audio)
      ? new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength)
      : new Uint8Array(audio);
    const gap = this._conversation.audio(data);
    if (gap) {
      this._emit(gap);
      if (this.state === "open") this._socket?.close(4000, "gap");
    }
    this._flush();
    if (this._closed || this._conversation.unsent < this._conversation._perSecond) return Promise.resolve();
    if (!this._room) {
      this._room = deferred();
      this._room.promise.catch(() => {}); // a microphone ignores it; who awaits it is told
    }
    return this._room.promise;
  }

  /** End the utterance here; a `marker` event comes once everything before it is final. */
  commit(marker) {
    this._conversation.commit(marker);
    this._flush();
  }

  /** No more audio: resolves when all finals have come and the server has said so. */
  end() {
    if (this._fault) return Promise.reject(this._fault);
    this._conversation.end();
    this._flush();
    return this._finished;
  }

  /** Leave at once; what is not final is lost. */
  close() {
    this._stop();
  }

  async *[Symbol.asyncIterator]() {
    this._iterators += 1;
    try {
      for (;;) {
        while (this._unread.length) yield this._unread.shift();
        const error = this._overrun ?? this._fault;
        if (error) throw error;
        if (this._closed) return;
        await (this._news ??= deferred()).promise;
      }
    } finally {
      this._iterators -= 1;
    }
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    this.close();
  }

  _dial() {
    if (this._closed) return;
    let socket;
    try {
      socket = new this._Socket(this._address, this._protocols);
    } catch (error) {
      this._break(new OpenSpeechError(`cannot open ${this._address}: ${error.message}`, { code: "unreachable" }));
      return;
    }
    this._socket = socket;
    socket.binaryType = "arraybuffer";
    this._last = null; // the error the server sent before it closed
    const patience = this._after(this._timeout, () => socket.close());
    socket.addEventListener("open", () => {
      this._cancel(patience);
      if (socket !== this._socket) return;
      socket.send(this._conversation.opening());
      if (this._opening) this._change("opening"); // the model may have to be loaded
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket === this._socket && !this._closed) this._hear(data);
    });
    const onClose = (code, reason) => {
      this._cancel(patience);
      if (socket === this._socket && !this._closed) this._onClose(code, reason);
    };
    socket.addEventListener("error", () => onClose(1006, "")); // Node 20 tells no close after a refused connection
    socket.addEventListener("close", ({ code, reason }) => onClose(code, reason));
  }

  _hear(data) {
    this._heard = Date.now();
    this._owed = 0;
    let events;
    try {
      events = this._conversation.receive(data);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      return; // not of this protocol
    }
    if (this._conversation.stale) this._socket.close(4000, "gap");
    for (const event of events) {
      if (event.type === "ready") this._onReady(event);
      if (event.type === "error" && event.utterance === undefined) this._last = event;
      if (event.type === "error" && (this._opening || (this.state === "reconnecting" && ANEW.has(event.code)))) continue;
      this._emit(event);
    }
    if (this._conversation.ended) this._stop();
    else this._flush();
  }

  _onReady(event) {
    this.session = event.session;
    this.model = event.model;
    this._attempt = 0;
    this._retryAfter = 0;
    this._change("open");
    if (this._closed) return; // by a listener
    this._opening?.resolve(this);
    this._opening = null;
    this._watch();
  }

  _onClose(code, reason) {
    const said = this._last;
    this._socket = null;
    this._owed = 0;
    const lasts = this._conversation.lost();
    const refused = said !== null && (FATAL.has(code) || this._opening !== null);
    const fatal = FATAL.has(code) && !ANEW.has(said?.code);
    if (refused && (fatal || this._opening !== null)) {
      this._break(
        new OpenSpeechError(said.message, { code: said.code, param: said.param, retryAfter: said.retry_after, closeCode: code }),
      );
    } else if (fatal) {
      this._break(new OpenSpeechError(`the server closed the connection: ${reason || code}`, { code: "closed", closeCode: code }));
    } else if (this._opening !== null) {
      const busy = code === 1013;
      this._break(
        new OpenSpeechError(busy ? "the server takes no more streams now" : `cannot reach ${this._address}`, {
          code: busy ? "overloaded" : "unreachable",
          closeCode: code,
        }),
      );
    } else if (!lasts || this._reconnect === null || this._attempt >= this._reconnect.attempts) {
      this._break(new OpenSpeechError("the connection was lost", { code: "lost", closeCode: code }));
    } else {
      this._retryAfter = said?.retry_after ?? 0;
      this._again(code, ANEW.has(said?.code));
    }
  }

  /** Try again after a pause that doubles, with jitter so that a thousand clients do not come back at once. */
  _again(code, anew = false) {
    const { least, most } = this._reconnect;
    const pause = Math.min(most, least * 2 ** Math.min(this._attempt, 10)) * (0.75 + Math.random() / 2);
    // A server that is there, and only has no such session, needs no pause.
    const delay = anew ? 0 : Math.max(this._attempt === 0 && code === 1012 ? least / 2 : pause, this._retryAfter);
    this._attempt += 1;
    this._change("reconnecting", { attempt: this._attempt, delay, code });
    if (this._closed) return; // by a listener
    this._pending = this._after(delay * 1000, () => {
      this._pending = null;
      this._dial();
    });
  }

  /** The network is back: no need to wait. */
  _hurry() {
    if (this._pending) {
      this._cancel(this._pending);
      this._pending = null;
      this._dial();
    }
  }

  /** Keep-alive, and the end of patience with a connection that says nothing. */
  _watch() {
    if (this._watching) return;
    this._watching = setInterval(() => {
      if (this.state !== "open" || !this._socket) return;
      const now = Date.now();
      if (this._owed && now - Math.max(this._heard, this._owed) > DEAD) {
        const socket = this._socket;
        socket.close();
        this._onClose(1006, "silent");
      } else if (now - this._spoke > KEEPALIVE) {
        this._spoke = now;
        this._socket.send('{"type":"keepalive"}');
      }
    }, 2000);
    this._watching.unref?.();
  }

  _flush() {
    const socket = this._socket;
    if (!socket || socket.readyState !== 1) return;
    while (socket.bufferedAmount < IN_SOCKET) {
      const message = this._conversation.next();
      if (message === null) break;
      socket.send(message);
      this._spoke = Date.now();
      if (typeof message !== "string" && !this._owed) this._owed = this._spoke;
    }
    if (socket.bufferedAmount >= IN_SOCKET && !this._pump) {
      this._pump = this._after(20, () => {
        this._pump = null;
        this._flush();
      });
    }
    if (this._conversation.unsent < this._conversation._perSecond) {
      this._room?.resolve();
      this._room = null;
    }
  }

  _emit(event) {
    if (!this._overrun) this._keep(event);
    this._news?.resolve();
    this._news = null;
    this.dispatchEvent(new StreamEvent(event));
  }

  /** For iterators, instead of an older event that says no more than this one. */
  _keep(event) {
    const at = this._unread.findLastIndex((older) => outdated(older, event));
    if (at >= 0) this._unread.splice(at, 1);
    if (this._unread.length < EVENTS) {
      this._unread.push(event);
      return;
    }
    this._overrun = new OpenSpeechError(
      `more than ${EVENTS} events waited for “for await”; begin it earlier and let it wait for nothing long, or use addEventListener`,
      { code: "unread" },
    );
    if (!this._iterators) this._unread = [];
  }

  _change(state, more = {}) {
    if (this.state === state && state !== "reconnecting") return;
    this.state = state;
    this._emit({ type: "connection", state, ...more });
  }

  _break(error) {
    if (this._closed) return;
    this._fault = error; // before listeners are told: one may close the stream, which makes nothing of it well
    for (const event of this._conversation.leftover()) this._emit(event);
    if (!this._opening) this._emit({ type: "failed", error });
    this._stop();
  }

  _stop() {
    if (this._closed) return;
    this._closed = true;
    const error = this._fault;
    clearInterval(this._watching);
    for (const timer of this._timers) clearTimeout(timer);
    globalThis.removeEventListener?.("online", this._online);
    this._signal?.removeEventListener("abort", this._abort); // it may outlive many streams
    const socket = this._socket;
    this._socket = null;
    if (socket && socket.readyState < 2) socket.close(1000);
    this._change("closed"); // which wakes iterators too
    const opening = this._opening;
    this._opening = null;
    if (error) {
      this._room?.reject(error);
      opening?.reject(error);
      this._fail(error);
    } else {
      this._room?.resolve();
      opening?.reject(new OpenSpeechError("the stream was closed", { code: "closed" }));
      this._finish();
    }
  }

  _after(milliseconds, deed) {
    const timer = setTimeout(() => {
      this._timers.delete(timer);
      deed();
    }, milliseconds);
    this._timers.add(timer);
    return timer;
  }

  _cancel(timer) {
    clearTimeout(timer);
    this._timers.delete(timer);
  }
}

/** Whether `newer` makes `older` void for who has read neither. */
function outdated(older, newer) {
  if (newer.type === "ack") return older.type === "ack";
  if (newer.type !== "partial" && newer.type !== "final") return false;
  return older.type === "partial" && older.utterance === newer.utterance;
}

/** A promise and what settles it. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** Open a stream at a server, by its URL (`http`, `https`, `ws` or `wss`). Resolves once the server is ready. */
export function connect(url, options = {}) {
  return new Stream(url, options).open();
}

/** The WebSocket address of a server's URL; one with a path keeps it as prefix. */
export function address(url) {
  const found = new URL(url, globalThis.location?.href);
  found.protocol = { "http:": "ws:", "https:": "wss:" }[found.protocol] ?? found.protocol;
  const route = "/v1/audio/transcriptions/stream";
  if (!found.pathname.endsWith(route)) found.pathname = found.pathname.replace(/\/+$/, "") + route;
  found.search = "";
  found.hash = "";
  return found.href;
}

/**
 * Captured audio as 20 ms frames of 16-bit samples at the device's own rate: the server resamples better than a browser.
 *
 * Events: `level` (`detail`: 0 … 1, the loudest sample of a frame) and `ended` (the device went, or sharing was stopped).
 */
export class Capture extends EventTarget {
  constructor(context, media, node) {
    super();
    this._context = context;
    this._media = media;
    this._node = node;
    this._sink = null;
    this._stopped = false;
    node.port.onmessage = ({ data }) => {
      this.dispatchEvent(new StreamEvent({ type: "level", level: data.level }));
      this._sink?.(new Int16Array(data.frame));
    };
    // A call that came in, or another page that took the sound, suspends it on phones.
    context.addEventListener("statechange", () => {
      if (!this._stopped && context.state !== "running") context.resume().catch(() => {});
    });
    for (const track of media.getTracks()) {
      track.addEventListener("ended", () => {
        if (this._stopped) return;
        this.stop();
        this.dispatchEvent(new StreamEvent({ type: "ended" }));
      });
    }
  }

  /** Hertz. */
  get sampleRate() {
    return this._context.sampleRate;
  }

  /** Name of the device. */
  get label() {
    return this._media.getAudioTracks()[0]?.label ?? "";
  }

  /** Where frames go from now on: a function of an Int16Array. */
  start(sink) {
    this._sink = sink;
  }

  /** Give the device back. */
  stop() {
    if (this._stopped) return;
    this._stopped = true;
    this._sink = null;
    this._node.port.onmessage = null;
    this._node.disconnect();
    for (const track of this._media.getTracks()) track.stop();
    this._context.close();
  }
}

/** The microphone. Call it from a click. Rejects with the browser's DOMException, or `insecure_context`. */
export async function openMicrophone({
  deviceId,
  echoCancellation = true,
  noiseSuppression = true,
  autoGainControl = true,
  worklet,
} = {}) {
  devices();
  const audio = { channelCount: 1, echoCancellation, noiseSuppression, autoGainControl };
  if (deviceId) audio.deviceId = { exact: deviceId };
  return capture(await navigator.mediaDevices.getUserMedia({ audio }), worklet);
}

/** The sound of a tab, a window or the system, as the user chooses. */
export async function openTab({ worklet } = {}) {
  if (!devices().getDisplayMedia) {
    throw new OpenSpeechError("this browser cannot share the sound of a tab", { code: "unsupported" });
  }
  const media = await navigator.mediaDevices.getDisplayMedia({
    video: true, // browsers refuse audio alone
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, suppressLocalAudioPlayback: false },
    systemAudio: "include",
  });
  if (!media.getAudioTracks().length) {
    for (const track of media.getTracks()) track.stop();
    throw new OpenSpeechError("what was shared has no sound; share a tab and tick “share audio”", { code: "no_sound" });
  }
  return capture(media, worklet);
}

/** The browser's devices, or why there are none. */
function devices() {
  if (globalThis.navigator?.mediaDevices) return navigator.mediaDevices;
  throw new OpenSpeechError("browsers give the microphone only to pages from HTTPS or localhost", { code: "insecure_context" });
}

async function capture(media, worklet) {
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    // A file of its own: a strict content security policy forbids modules from a blob.
    await context.audioWorklet.addModule(worklet ?? new URL("./open-speech-worklet.js", import.meta.url));
    await running(context);
    const source = context.createMediaStreamSource(new MediaStream(media.getAudioTracks()));
    const node = new AudioWorkletNode(context, "open-speech-capture", { numberOfOutputs: 1, channelCount: 1, channelCountMode: "explicit" });
    source.connect(node);
    node.connect(context.destination); // silent; without it Safari does not run the node
    return new Capture(context, media, node);
  } catch (error) {
    for (const track of media.getTracks()) track.stop();
    context.close();
    throw error;
  }
}

/** Firefox waits for ever where the machine has nothing that sound could come out of. */
async function running(context) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new OpenSpeechError("the browser’s audio does not start", { code: "no_audio" })), STARTING);
  });
  await Promise.race([context.resume(), late]).finally(() => clearTimeout(timer));
}

/** Microphone to text in one call: a stream that ends, device included, with `stream.end()` or `stream.close()`. */
export async function listen(url, { microphone = {}, ...options } = {}) {
  const source = microphone instanceof Capture ? microphone : await openMicrophone(microphone);
  try {
    const stream = new Stream(url, { ...options, encoding: "pcm_s16le", sample_rate: source.sampleRate, channels: 1 });
    const end = stream.end.bind(stream);
    stream.end = () => {
      source.stop();
      return end();
    };
    stream.addEventListener("connection", ({ detail }) => detail.state === "closed" && source.stop());
    // A model may take a minute to load: what is said meanwhile is kept, and the device may go meanwhile.
    source.addEventListener("ended", () => end().catch(() => {}));
    source.start((frame) => stream.state !== "closed" && stream.send(frame));
    return await stream.open();
  } catch (error) {
    source.stop();
    throw error;
  }
}

// Subtitles. The rules are the server's: a cue has at most two lines of 42 columns and stays for at most 7 s, shows no
// words across a pause, and does not overlap the next one. Times are counted in samples of 16 kHz, as the server does.

const RATE = 16_000;
const PAUSE = RATE / 2;
const LINGER = RATE;
const LONGEST = 7 * RATE;
const BLINK = RATE / 1000;
const CLAUSE = /[,;:.?!，、。？！；：]$/u;

/** Finals as plain text, an utterance a line. */
export function text(finals) {
  return finals.map((final) => final.text).filter(Boolean).join("\n") + (finals.length ? "\n" : "");
}

/** Finals as SubRip. */
export function srt(finals, options) {
  return cues(finals, options)
    .map((cue, at) => `${at + 1}\n${clock(cue.start, ",")} --> ${clock(cue.end, ",")}\n${cue.lines.join("\n")}\n\n`)
    .join("");
}

/** Finals as WebVTT. */
export function vtt(finals, options) {
  const escaped = (line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return (
    "WEBVTT\n\n" +
    cues(finals, options)
      .map((cue) => `${clock(cue.start, ".")} --> ${clock(cue.end, ".")}\n${cue.lines.map(escaped).join("\n")}\n\n`)
      .join("")
  );
}

/** `01:02:03,456`, always with hours. */
export function clock(seconds, mark = ".") {
  const all = Math.floor((samples(seconds) * 1000 + RATE / 2) / RATE);
  const two = (number) => String(number).padStart(2, "0");
  const rest = String(all % 1000).padStart(3, "0");
  return `${two(Math.floor(all / 3_600_000))}:${two(Math.floor(all / 60_000) % 60)}:${two(Math.floor(all / 1000) % 60)}${mark}${rest}`;
}

/** Cues of finals: `{start, end, lines}` in seconds. Words, where finals have them, give the times inside. */
export function cues(finals, { width = 42, lines = 2 } = {}) {
  const made = [];
  for (const final of finals) {
    for (const group of groups(spaced(final).flatMap(parts), width, lines)) {
      const last = made.at(-1);
      const start = last ? Math.max(group[0].start, last.start + BLINK) : group[0].start;
      const end = Math.max(start + BLINK, group.at(-1).end);
      made.push({ start, end, lines: balanced(group, width, lines) });
    }
  }
  return made.map((cue, at) => {
    const end = Math.min(Math.max(cue.end, cue.start + LINGER), cue.end + LINGER, cue.start + LONGEST, made[at + 1]?.start ?? Infinity);
    return { start: cue.start / RATE, end: end / RATE, lines: cue.lines };
  });
}

function samples(seconds) {
  return Math.round(seconds * RATE);
}

/** The words of a final with the space before each, in samples; without times, these are spread by length. */
function spaced(final) {
  if (!final.words?.length) {
    return timed(final.text.match(/\s*\S+/g) ?? [], samples(final.start), samples(final.end));
  }
  let at = 0;
  return final.words.map((word) => {
    const found = final.text.indexOf(word.text, at);
    const space = found > at && at > 0 ? final.text.slice(at, found) : "";
    if (found >= 0) at = found + word.text.length;
    return { text: space + word.text, start: samples(word.start), end: samples(word.end) };
  });
}

function timed(texts, start, end) {
  const total = texts.reduce((sum, each) => sum + columns(each), 0) || 1;
  let at = 0;
  const time = () => start + Math.floor(((end - start) * at) / total);
  return texts.map((text) => {
    const begin = time();
    at += columns(text);
    return { text, start: begin, end: time() };
  });
}

// Scripts without spaces between words: Thai, Lao, Burmese, Khmer; kana and Han. A letter of them takes the opening marks
// before it and whatever may not begin a line.
const UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}";
const PART = new RegExp(
  `\\s*[（「『【〈《“‘(\\[]*(?:[${UNSPACED}]|[^\\s${UNSPACED}]+?(?=[${UNSPACED}（「『【〈《]|\\s|$))` +
    "[、。，．！？：；・）」』】〉》”’)\\],.!?:;…ー々ゝぁぃぅぇぉっゃゅょァィゥェォッャュョ" +
    "\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3]*",
  "gu",
);
const HAS_UNSPACED = new RegExp(`[${UNSPACED}]`, "u");

/** A word, or in a script without spaces the places at which a line of it may be broken. */
function parts(word) {
  if (!HAS_UNSPACED.test(word.text)) return [word];
  const found = word.text.match(PART) ?? [];
  return found.length < 2 || found.join("") !== word.text ? [word] : timed(found, word.start, word.end);
}

/** Words that share a cue: as many as fit, cut at pauses, and at clauses or evenly where a cut is needed anyway. */
function groups(words, width, lines) {
  const made = [];
  for (const stretch of stretches(words)) {
    let rest = stretch;
    while (rest.length) {
      let fit = 1;
      while (fit < rest.length && fits(rest.slice(0, fit + 1), width, lines)) fit += 1;
      if (fit < rest.length) fit = cut(rest, fit, width, lines);
      made.push(rest.slice(0, fit));
      rest = rest.slice(fit);
    }
  }
  return made;
}

/** Where to end a cue of at most `fit` words: after the last clause, or halfway where two cues take what is left. */
function cut(words, fit, width, lines) {
  for (let at = fit; at > Math.floor(fit / 2); at -= 1) {
    if (CLAUSE.test(words[at - 1].text.trimEnd())) return at;
  }
  if (!fits(words.slice(fit), width, lines)) return fit;
  const half = words.reduce((sum, word) => sum + columns(word.text), 0) / 2;
  let taken = 0;
  for (let at = 1; at < fit; at += 1) {
    taken += columns(words[at - 1].text);
    if (taken >= half && fits(words.slice(at), width, lines)) return at;
  }
  return fit;
}

function fits(words, width, lines) {
  return words.at(-1).end - words[0].start <= LONGEST && filled(words, width).length <= lines;
}

function stretches(words) {
  const made = [];
  for (const word of words) {
    const last = made.at(-1);
    if (last && word.start - last.at(-1).end < PAUSE) last.push(word);
    else made.push([word]);
  }
  return made;
}

/** Lines filled greedily: the fewest there can be. */
function filled(words, width) {
  const rows = [];
  for (const word of words) {
    if (rows.length && columns(rows.at(-1) + word.text) <= width) rows[rows.length - 1] += word.text;
    else rows.push(word.text.trim());
  }
  return rows;
}

/** The words in as few lines as they need, two of them balanced. */
function balanced(words, width, lines) {
  let rows = filled(words, width);
  if (rows.length === 2 && lines >= 2) {
    const unevenness = ([first, second]) => [CLAUSE.test(first) ? 0 : 1, Math.abs(columns(first) - columns(second))];
    const less = (a, b) => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
    for (let at = 1; at < words.length; at += 1) {
      const pair = [words.slice(0, at), words.slice(at)].map((part) => part.map((word) => word.text).join("").trim());
      if (Math.max(...pair.map(columns)) <= width && less(unevenness(pair), unevenness(rows))) rows = pair;
    }
  }
  rows = rows.filter(Boolean);
  return rows.length ? rows : [""];
}

const WIDE = /[\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]/u;

/** Columns of a line: East Asian characters take two, marks on others none. */
function columns(line) {
  let sum = 0;
  for (const letter of line) sum += WIDE.test(letter) ? 2 : /\p{Mn}/u.test(letter) ? 0 : 1;
  return sum;
}
