// Streams a file of 16-bit samples and prints every event as a JSON line. Arguments: module, URL, file, options as JSON.
import { readFileSync } from "node:fs";

const [module, url, file, given] = process.argv.slice(2);
const { connect } = await import(module);
const { size = 3200, pace = 0, commitAt = null, tell = 0, ...options } = JSON.parse(given);
const say = (event) => console.log(JSON.stringify(event));
const TYPES = ["speech_started", "partial", "speech_stopped", "final", "ack", "marker", "end", "error"];
try {
  const stream = await connect(url, options);
  const heard = [];
  const numbers = []; // of all events: listeners hear those too that a newer one makes void before the loop reads them
  stream.addEventListener("final", ({ detail }) => heard.push(detail.text));
  for (const type of TYPES) stream.addEventListener(type, ({ detail }) => numbers.push(detail.seq));
  const audio = readFileSync(file);
  const sending = (async () => {
    for (let at = 0; at < audio.length; at += size) {
      await stream.send(audio.subarray(at, at + size));
      if (commitAt !== null && at <= commitAt && commitAt < at + size) stream.commit("here");
      if (tell && Math.floor((at + size) / tell) > Math.floor(at / tell)) say({ type: "sent" });
      if (pace) await new Promise((resolve) => setTimeout(resolve, pace));
    }
    const ended = stream.end();
    say({ type: "ending" });
    await ended;
  })();
  for await (const event of stream) say(event);
  await sending;
  say({ type: "numbers", numbers });
  say({ type: "heard", heard });
} catch (error) {
  say({ type: "thrown", name: error.name, code: error.code, param: error.param, message: error.message });
}
