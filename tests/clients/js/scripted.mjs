// The stream over a socket that says what the test says. Argument: module.
import assert from "node:assert/strict";
import { getEventListeners } from "node:events";

const { Capture, Stream, connect, listen } = await import(process.argv[2]);
const EVENTS = 10_000;

class Socket extends EventTarget {
  constructor() {
    super();
    this.readyState = 0;
    this.bufferedAmount = 0;
    this.sent = [];
    this.seq = 0;
    Socket.newest = this;
  }

  send(message) {
    this.sent.push(message);
  }

  open() {
    this.readyState = 1;
    this.dispatchEvent(new Event("open"));
  }

  say(type, more = {}) {
    const data = JSON.stringify({ type, seq: this.seq, ...more });
    this.seq += 1;
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
  }

  ready() {
    this.say("ready", { session: "s_1", model: "m", received: 0, resumable_seconds: 30 });
  }

  /** All that a server says of one utterance. */
  sentence(utterance) {
    this.say("speech_started", { utterance, at: utterance });
    for (const committed of ["", "one"]) {
      this.say("partial", { utterance, committed, tentative: "", received: 0, lag: 0 });
      this.say("ack", { received: 0, lag: 0 });
    }
    this.say("speech_stopped", { utterance, at: utterance + 0.8 });
    this.say("final", { utterance, text: "one", start: utterance, end: utterance + 0.8, received: 0 });
  }

  close(code = 1000) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.dispatchEvent(Object.assign(new Event("close"), { code, reason: "" }));
  }
}

async function opened(options = {}) {
  const stream = new Stream("http://h", { WebSocket: Socket, ...options });
  const opening = stream.open();
  Socket.newest.open();
  Socket.newest.ready();
  await opening;
  return [stream, Socket.newest];
}

/** What a `for await` gets: its events by type, and what it throws. */
async function read(stream) {
  const found = { thrown: null };
  try {
    for await (const event of stream) (found[event.type] ??= []).push(event);
  } catch (error) {
    found.thrown = error;
  }
  return found;
}

/** Numbers of the finals that a listener hears. */
function heard(stream) {
  const found = [];
  stream.addEventListener("final", ({ detail }) => found.push(detail.utterance));
  return found;
}

function microphone() {
  const track = Object.assign(new EventTarget(), { stop: () => (track.stopped = true), stopped: false });
  const media = { getTracks: () => [track], getAudioTracks: () => [track] };
  const context = Object.assign(new EventTarget(), { state: "running", sampleRate: 16_000, close() {} });
  return { capture: new Capture(context, media, { port: {}, disconnect() {} }), track };
}

const frame = new Uint8Array(640); // 20 ms
const upTo = (count) => Array.from({ length: count }, (_, at) => at);

const tests = {
  async "a loop that begins when all is said gets every sentence, and nothing that is void"() {
    const [stream, socket] = await opened();
    const listened = heard(stream);
    for (const utterance of upTo(3000)) socket.sentence(utterance);
    socket.say("error", { utterance: 3000, code: "failed", message: "not recognised" });
    stream.end();
    socket.say("end", { received: 0, reason: "client" });
    const { final, speech_started, speech_stopped, partial, ack, error, ready, end, thrown } = await read(stream);
    assert.deepEqual(final.map(({ utterance }) => utterance), upTo(3000));
    assert.deepEqual(listened, upTo(3000));
    assert.deepEqual([speech_started.length, speech_stopped.length, error.length, ready.length, end.length], [3000, 3000, 1, 1, 1]);
    assert.deepEqual([partial, ack.length, thrown], [undefined, 1, null]);
  },
  async "an unread partial gives way to a newer one of its utterance"() {
    const [stream, socket] = await opened();
    for (const [utterance, committed] of [[0, "a"], [1, "b"], [0, "a c"]]) {
      socket.say("partial", { utterance, committed, tentative: "", received: 0, lag: 0 });
      socket.say("ack", { received: 0, lag: 0 });
    }
    stream.close();
    const { partial } = await read(stream);
    assert.deepEqual(partial.map(({ committed }) => committed), ["b", "a c"]);
  },
  async "a loop that is too slow reads what waited, and then is told what to do"() {
    const [stream, socket] = await opened();
    const listened = heard(stream);
    const loop = stream[Symbol.asyncIterator]();
    await loop.next();
    for (const utterance of upTo(4000)) socket.sentence(utterance);
    const { final, speech_started, thrown } = await read(loop);
    assert.equal(thrown.code, "unread");
    assert.match(thrown.message, new RegExp(`^more than ${EVENTS} events .* addEventListener$`));
    assert.ok(speech_started.length + final.length > 0.6 * EVENTS);
    assert.deepEqual(final.map(({ utterance }) => utterance), upTo(final.length)); // none is left out
    assert.deepEqual(listened, upTo(4000));
    assert.equal(stream.state, "open");
    assert.equal((await read(stream)).thrown, thrown);
    stream.close();
  },
  async "where only listeners are, nothing is kept for ever and nothing fails"() {
    const [stream, socket] = await opened();
    const listened = heard(stream);
    for (const utterance of upTo(4000)) socket.sentence(utterance);
    assert.equal(stream._unread.length, 0);
    const late = await read(stream);
    assert.deepEqual(Object.keys(late), ["thrown"]);
    assert.equal(late.thrown.code, "unread");
    const ended = stream.end();
    socket.say("end", { received: 0, reason: "client" });
    await ended;
    assert.deepEqual(listened, upTo(4000));
  },
  async "a loop that was left does not count as one"() {
    const [stream, socket] = await opened();
    for await (const event of stream) if (event.type === "ready") break;
    for (const utterance of upTo(4000)) socket.sentence(utterance);
    assert.equal(stream._unread.length, 0);
    stream.close();
  },
  async "of two loops both see the end"() {
    const [stream] = await opened();
    const loops = [read(stream), read(stream)];
    await new Promise((resolve) => setTimeout(resolve, 0));
    stream.close();
    assert.deepEqual((await Promise.all(loops)).map(({ thrown }) => thrown), [null, null]);
  },
  async "all that is sent while nothing can go out waits for one promise"() {
    const [stream, socket] = await opened();
    socket.bufferedAmount = 1e6;
    const waits = new Set(upTo(150).map(() => stream.send(frame))); // three seconds
    assert.equal(waits.size, 50); // in the first second nothing has to wait
    socket.bufferedAmount = 0;
    stream.commit(); // which goes out, and all before it
    await Promise.all(waits);
    assert.equal(socket.sent.length, 152);
    socket.close(1006);
    assert.equal(stream.state, "reconnecting");
    const more = new Set(upTo(150).map(() => stream.send(frame)));
    assert.equal(more.size, 50);
    assert.ok(!waits.has([...more].at(-1)));
    stream.close();
    await Promise.all(more);
  },
  async "who waits to send is told that the stream failed, who does not wait is not troubled"() {
    const [stream, socket] = await opened({ reconnect: false });
    socket.bufferedAmount = 1e6;
    for (const _ of upTo(100)) stream.send(frame); // a rejection that nobody awaits would end Node
    const waiting = stream.send(frame);
    socket.close(1006);
    await assert.rejects(waiting, { code: "lost" });
  },
  async "audio for a stream that was closed is refused, and keeps nobody waiting"() {
    const [stream, socket] = await opened();
    stream.close();
    assert.throws(() => stream.send(new Uint8Array(32_000)), { code: "closed" });
    const [ended, other] = await opened();
    ended.end();
    other.say("end", { received: 0, reason: "client" });
    assert.throws(() => ended.send(frame), { code: "ended" });
    assert.equal(socket.sent.length, 1);
  },
  async "a signal aborts also what has not begun, and keeps nothing of a stream that is over"() {
    const controller = new AbortController();
    const { signal } = controller;
    const [over] = await opened({ signal });
    assert.equal(getEventListeners(signal, "abort").length, 1);
    over.close();
    assert.equal(getEventListeners(signal, "abort").length, 0);
    const [cut] = await opened({ signal });
    const unopened = new Stream("http://h", { WebSocket: Socket, signal });
    controller.abort();
    await assert.rejects(cut.end(), { code: "aborted" });
    await assert.rejects(unopened.open(), { code: "aborted" });
    await assert.rejects(connect("http://h", { WebSocket: Socket, signal }), { code: "aborted" });
    const closed = new Stream("http://h", { WebSocket: Socket });
    closed.close();
    await assert.rejects(closed.open(), { code: "closed" });
  },
  async "a listener that closes a stream that failed does not make it a success"() {
    const [stream, socket] = await opened({ reconnect: false });
    stream.addEventListener("failed", () => stream.close());
    const ended = stream.end();
    socket.close(1006);
    await assert.rejects(ended, { code: "lost" });
    assert.equal((await read(stream)).thrown?.code, "lost");
  },
  async "a listener may close the stream at any change, and no timer is left"() {
    for (const state of ["open", "reconnecting"]) {
      const stream = new Stream("http://h", { WebSocket: Socket });
      stream.addEventListener("connection", ({ detail }) => detail.state === state && stream.close());
      const opening = stream.open();
      Socket.newest.open();
      Socket.newest.ready();
      if (state === "open") await assert.rejects(opening, { code: "closed" });
      else Socket.newest.close(1006);
      assert.equal(stream.state, "closed");
      assert.equal(stream._timers.size, 0);
      assert.ok(!stream._watching || stream._watching._destroyed);
    }
  },
  async "a microphone that goes while a model loads ends the stream, and is given back whatever happens"() {
    const { capture, track } = microphone();
    const listening = listen("http://h", { WebSocket: Socket, microphone: capture });
    Socket.newest.open();
    capture._node.port.onmessage({ data: { frame: frame.buffer, level: 0.5 } });
    track.dispatchEvent(new Event("ended"));
    Socket.newest.ready();
    const stream = await listening;
    assert.deepEqual(Socket.newest.sent.slice(1).map((each) => (typeof each === "string" ? each : each.byteLength)), [640, '{"type":"end"}']);
    Socket.newest.say("end", { received: 640, reason: "client" });
    await stream.end();
    for (const [url, options] of [["http://", {}], ["http://h", { signal: AbortSignal.abort() }]]) {
      const other = microphone();
      await assert.rejects(listen(url, { WebSocket: Socket, microphone: other.capture, ...options }));
      assert.ok(other.track.stopped);
    }
  },
};
for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(name);
}
