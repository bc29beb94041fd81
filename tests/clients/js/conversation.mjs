// The protocol without a server: what is sent after a connection broke. Argument: module.
import assert from "node:assert/strict";

const { Conversation, OpenSpeechError, address } = await import(process.argv[2]);
const second = 32_000;
const message = (type, more = {}) => JSON.stringify({ type, ...more });
const ready = (more = {}) => message("ready", { seq: 0, session: "s_1", model: "m", received: 0, resumable_seconds: 0, ...more });
const audio = (seconds, value = 0) => new Uint8Array(seconds * second).fill(value);
const drained = (conversation) => {
  const found = [];
  for (let next = conversation.next(); next !== null; next = conversation.next()) found.push(next);
  return found;
};
const bytes = (messages) => messages.filter((each) => typeof each !== "string").reduce((sum, each) => sum + each.byteLength, 0);

const tests = {
  "nothing is sent before ready"() {
    const it = new Conversation({ language: "en", key: "secret", reconnect: true });
    it.audio(audio(1));
    assert.deepEqual(JSON.parse(it.opening()), { type: "start", language: "en" });
    assert.equal(it.next(), null);
    it.receive(ready());
    assert.equal(bytes(drained(it)), second);
  },
  "a new session hears again what no final covered, with the right offset and number"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready());
    for (let at = 0; at < 10; at += 1) it.audio(audio(1, at));
    drained(it);
    it.receive(message("speech_started", { seq: 1, utterance: 0, at: 0.5 }));
    it.receive(message("final", { seq: 2, utterance: 0, text: "one", start: 0.5, end: 2.5, received: 6 * second }));
    it.receive(message("speech_started", { seq: 3, utterance: 1, at: 3 }));
    it.receive(message("partial", { seq: 4, utterance: 1, committed: "two", received: 8 * second, lag: 0.1 }));
    assert.equal(it.lost(), true);
    it.audio(audio(1, 10));
    const opening = JSON.parse(it.opening());
    assert.equal(opening.type, "start");
    assert.equal(opening.offset, 2.5);
    it.receive(ready({ session: "s_2" }));
    const sent = drained(it);
    assert.equal(bytes(sent), 8.5 * second);
    const [event] = it.receive(message("final", { seq: 1, utterance: 0, text: "two", start: 3, end: 5, received: 8.5 * second }));
    assert.equal(event.utterance, 1);
    assert.equal(it.unconfirmed, 0);
  },
  "a resumed session gets what it had not received, and the missed events are asked for"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    it.audio(audio(4));
    drained(it);
    it.receive(message("ack", { seq: 7, received: 2 * second, lag: 0 }));
    it.lost();
    it.audio(audio(1));
    assert.deepEqual(JSON.parse(it.opening()), { type: "resume", session: "s_1", last_event: 7 });
    const [again] = it.receive(ready({ resumable_seconds: 30, received: 3 * second }));
    assert.equal(again.resumed, true);
    assert.equal(bytes(drained(it)), 2 * second);
  },
  "a session that cannot be resumed is begun anew"() {
    for (const code of ["not_resumable", "unknown_session", "events_gone"]) {
      const it = new Conversation({ language: "de" });
      it.opening();
      it.receive(ready({ resumable_seconds: 30 }));
      it.audio(audio(3));
      drained(it);
      it.receive(message("final", { seq: 1, utterance: 0, text: "eins", start: 0, end: 1, received: 2 * second }));
      it.lost();
      it.opening();
      it.receive(message("error", { seq: 0, code, message: "gone" }));
      it.lost();
      assert.deepEqual(JSON.parse(it.opening()), { type: "start", language: "de", offset: 1 });
      const [again] = it.receive(ready({ session: "s_2", resumable_seconds: 30 }));
      assert.equal(again.resumed, false);
      assert.equal(bytes(drained(it)), 2 * second);
      const [event] = it.receive(message("final", { seq: 1, utterance: 0, text: "zwei", start: 1, end: 2, received: second }));
      assert.deepEqual([event.utterance, event.text], [1, "zwei"]);
      it.lost();
      assert.deepEqual(JSON.parse(it.opening()), { type: "resume", session: "s_2", last_event: 1 });
    }
  },
  "a new session keeps to the language that the old one had settled on"() {
    for (const [option, heard, wanted] of [
      [undefined, ["de"], undefined],
      [undefined, ["de", "de"], "de"],
      [undefined, ["de", "en", "en", "de"], "en"],
      ["auto", ["fr", "fr"], "fr"],
      ["it", ["fr", "fr"], "it"],
    ]) {
      const it = new Conversation({ language: option });
      it.opening();
      it.receive(ready());
      it.audio(audio(9));
      drained(it);
      heard.forEach((language, at) => {
        it.receive(message("final", { seq: at + 1, utterance: at, text: "x", start: at, end: at + 1, received: 9 * second, language }));
      });
      it.lost();
      assert.equal(JSON.parse(it.opening()).language, wanted);
    }
  },
  "a sentence in which a server stopped is heard again by the next, and kept where there is none"() {
    for (const followed of [true, false]) {
      const it = new Conversation();
      it.opening();
      it.receive(ready({ resumable_seconds: 30 }));
      it.audio(audio(4));
      drained(it);
      it.receive(message("final", { seq: 1, utterance: 0, text: "one", start: 0, end: 1, received: 4 * second, stream_language: "de" }));
      it.receive(message("speech_started", { seq: 2, utterance: 1, at: 2 }));
      assert.deepEqual(it.receive(message("final", { seq: 3, utterance: 1, text: "tw", start: 2, end: 4, received: 4 * second, cut: true })), []);
      assert.deepEqual(it.receive(message("end", { seq: 4, received: 4 * second, reason: "restart" })), []);
      it.lost();
      assert.deepEqual(JSON.parse(it.opening()), { type: "start", language: "de", offset: 1 });
      if (followed) it.receive(ready({ session: "s_2" }));
      if (followed) assert.equal(bytes(drained(it)), 3 * second);
      assert.deepEqual(it.leftover().map(({ text }) => text), followed ? [] : ["tw"]);
    }
  },
  "events that come twice are heard once, those of a new session all"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    it.audio(audio(2));
    drained(it);
    const final = (seq, utterance) => message("final", { seq, utterance, text: "x", start: utterance, end: utterance + 1, received: second });
    assert.equal(it.receive(final(1, 0)).length, 1);
    it.lost();
    it.opening();
    it.receive(ready({ resumable_seconds: 30, received: second }));
    assert.equal(it.receive(final(1, 0)).length, 0);
    assert.equal(it.receive(final(2, 1)).length, 1);
    assert.equal(it.receive(final(2, 1)).length, 0);
    assert.equal(it.receive(message("error", { seq: 0, code: "replaced", message: "elsewhere" })).length, 1);
    it.lost();
    assert.equal(JSON.parse(it.opening()).last_event, 2);
  },
  "after a resume a commit that had arrived is not sent again, and no marker is heard twice"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    it.audio(audio(1));
    it.commit("a");
    it.audio(audio(1));
    it.commit("b");
    it.commit();
    drained(it);
    it.lost();
    it.opening();
    it.receive(ready({ resumable_seconds: 30, received: 2 * second }));
    it.end();
    assert.deepEqual(drained(it).map((each) => JSON.parse(each)), [
      { type: "commit", marker: "b" },
      { type: "commit" },
      { type: "end" },
    ]);
    const marks = ["a", "b", null, "b", null].flatMap((marker, at) => it.receive(message("marker", { seq: at + 1, marker, at: 2 })));
    assert.deepEqual(marks.map(({ marker }) => marker), ["a", "b", null]);
    // The end is answered once, though it was sent twice.
    it.lost();
    assert.equal(JSON.parse(it.opening()).last_event, 5);
    it.receive(ready({ resumable_seconds: 30, received: 2 * second }));
    assert.deepEqual(drained(it), ['{"type":"end"}']);
    assert.equal(it.receive(message("error", { seq: 6, code: "ended", message: "again" })).length, 0);
    it.receive(message("end", { seq: 7, received: 2 * second, reason: "client" }));
    assert.equal(it.ended, true);
  },
  "a session that wants what is forgotten is left, and the hole told"() {
    const it = new Conversation({ bufferSeconds: 10 });
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    for (let at = 0; at < 20; at += 1) {
      it.audio(audio(1));
      drained(it); // into a connection that carries nothing any more
    }
    it.lost();
    assert.equal(JSON.parse(it.opening()).type, "resume");
    assert.deepEqual(it.receive(ready({ resumable_seconds: 30, received: 2 * second })), []);
    assert.equal(it.stale, true);
    assert.equal(it.next(), null);
    it.lost();
    const { type, offset } = JSON.parse(it.opening());
    assert.deepEqual([type, offset >= 10], ["start", true]);
    const [, gap] = it.receive(ready({ session: "s_2", resumable_seconds: 30 }));
    assert.deepEqual(gap, { type: "gap", seconds: offset }); // no final came of any of it
    assert.equal(bytes(drained(it)) / second, it.seconds - offset);
  },
  "a session that the server has ended is not resumed"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    it.audio(audio(2));
    drained(it);
    it.receive(message("end", { seq: 1, received: 2 * second, reason: "restart" }));
    it.lost();
    assert.equal(JSON.parse(it.opening()).type, "start");
  },
  "a commit without its marker is sent again, one with it is not"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready());
    it.audio(audio(1));
    it.commit("a");
    it.audio(audio(1));
    it.commit("b");
    it.end();
    assert.equal(drained(it).length, 5);
    it.receive(message("final", { seq: 1, utterance: 0, text: "x", start: 0, end: 1, received: second }));
    it.receive(message("marker", { seq: 2, marker: "a", at: 1 }));
    it.lost();
    it.opening();
    it.receive(ready());
    const sent = drained(it);
    assert.deepEqual(sent.filter((each) => typeof each === "string").map((each) => JSON.parse(each)), [
      { type: "commit", marker: "b" },
      { type: "end" },
    ]);
    assert.equal(bytes(sent), second);
    assert.throws(() => it.audio(audio(1)), OpenSpeechError);
    it.receive(message("end", { seq: 9, received: second, reason: "client" }));
    assert.equal(it.ended, true);
  },
  "an end that the server chose is not the last word"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready());
    assert.deepEqual(it.receive(message("end", { seq: 1, received: 0, reason: "draining" })), []);
    assert.equal(it.ended, false);
  },
  "audio is bounded, and a hole is told and moves the offset"() {
    const it = new Conversation({ bufferSeconds: 10 });
    it.opening();
    it.receive(ready());
    it.audio(audio(1));
    drained(it);
    it.lost();
    let gap = 0;
    for (let at = 0; at < 30; at += 1) gap += it.audio(audio(1))?.seconds ?? 0;
    assert.ok(it.unsent <= 10 * second);
    const { offset } = JSON.parse(it.opening());
    assert.ok(offset >= 20, `offset ${offset}`);
    assert.equal(offset, gap + 1);
    it.receive(ready());
    assert.equal(bytes(drained(it)) / second, it.seconds - offset);
  },
  "long silence is forgotten, and is no gap"() {
    const it = new Conversation({ bufferSeconds: 20 });
    it.opening();
    it.receive(ready());
    for (let at = 1; at <= 600; at += 1) {
      assert.equal(it.audio(audio(1)), null);
      drained(it);
      it.receive(message("ack", { seq: at, received: at * second, lag: 0 }));
    }
    assert.ok(it._items.length <= 12, `${it._items.length} pieces kept`);
    it.lost();
    assert.equal(JSON.parse(it.opening()).offset, 590);
  },
  "a new session begins on a whole sample, wherever silence or a piece ended"() {
    const rate = 44_100;
    for (const frame of [2, 6]) {
      const sent = new Uint8Array(20 * rate * frame).map((_, at) => at % frame);
      for (let lag = 0; lag < 60; lag += 1) {
        const it = new Conversation({ sample_rate: rate, channels: frame / 2 });
        it.opening();
        it.receive(ready());
        for (let at = 0; at < sent.length; at += 1001) it.audio(sent.subarray(at, at + 1001));
        drained(it);
        it.receive(message("ack", { seq: 1, received: sent.length, lag: lag / 1000 }));
        it.lost();
        const { offset } = JSON.parse(it.opening());
        it.receive(ready({ session: "s_2" }));
        const again = drained(it);
        assert.equal(again[0][0], 0, `lag ${lag} ms: a sample begins with its byte ${again[0][0]}`);
        assert.equal(bytes(again), sent.length - Math.round(offset * rate) * frame);
      }
    }
  },
  "what begins after a hole begins on a whole sample"() {
    const it = new Conversation({ bufferSeconds: 10 });
    it.opening();
    it.receive(ready());
    it.lost();
    const sent = new Uint8Array(11 * second).map((_, at) => at % 2);
    let [given, gap] = [0, 0];
    for (; gap === 0; given += 329) gap = Math.round((it.audio(sent.subarray(given, given + 329))?.seconds ?? 0) * second);
    assert.equal(gap % 2, 1); // or this shows nothing
    const begun = Math.round(JSON.parse(it.opening()).offset * second);
    assert.equal(begun, gap + 1);
    assert.equal(it.receive(ready({ session: "s_2" })).length, 1); // half a sample is no gap to tell
    const again = drained(it);
    assert.equal(again[0][0], 0);
    assert.equal(bytes(again), given - begun);
  },
  "much audio at once goes in messages that a server takes, and on from where the session has it"() {
    const it = new Conversation();
    it.opening();
    it.receive(ready({ resumable_seconds: 30 }));
    const sent = new Uint8Array(1_000_000).map((_, at) => at % 251);
    it.audio(sent);
    it.commit();
    const first = drained(it);
    assert.equal(first.pop(), '{"type":"commit"}');
    assert.ok(first.every(({ byteLength }) => byteLength <= 65_536));
    assert.deepEqual(Buffer.concat(first), Buffer.from(sent));
    it.lost();
    it.opening();
    it.receive(ready({ resumable_seconds: 30, received: 123_457 }));
    it.next();
    assert.equal(it.unsent, 1_000_000 - 123_457 - 65_536);
    it.lost();
    it.opening();
    it.receive(ready({ resumable_seconds: 30, received: 654_321 }));
    const rest = drained(it);
    assert.equal(rest.pop(), '{"type":"commit"}');
    assert.deepEqual(Buffer.concat(rest), Buffer.from(sent.subarray(654_321)));
  },
  "an Opus packet is never cut"() {
    const it = new Conversation({ encoding: "opus" });
    it.opening();
    it.receive(ready());
    it.audio(audio(4));
    assert.deepEqual(drained(it).map(({ byteLength }) => byteLength), [4 * second]);
  },
  "addresses"() {
    assert.equal(address("http://h:8100"), "ws://h:8100/v1/audio/transcriptions/stream");
    assert.equal(address("https://h/speech/"), "wss://h/speech/v1/audio/transcriptions/stream");
    assert.equal(address("wss://h/v1/audio/transcriptions/stream?x=1"), "wss://h/v1/audio/transcriptions/stream");
  },
};
for (const [name, test] of Object.entries(tests)) {
  test();
  console.log(name);
}
